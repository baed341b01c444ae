"""Convolution of images, ordinary and transposed, with gradients that are fast on CPU too. Start at `Conv`.

A convolution is a form T(x, kernel, y), linear in each of image, kernel and output's cotangent, and each of the three
primitives below is its derivative in one of them. So each one's derivatives are the other two, for any order, in
forward and reverse mode, and `vmap` over examples becomes the batch axis before anything is differentiated.

Everywhere but on CPU all three are XLA's own convolution. XLA's CPU compiler is fast at one kind of convolution only:
axes in the order NHWC and HWIO, and an image that is not dilated. The stock gradients are of other kinds, up to 50
times slower and slower still inside a loop (jax-ml/jax#12868); on CPU both gradients are written as the fast kind.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Pair = tuple[int, int]
Padding = Literal["SAME", "VALID", "CIRCULAR"] | tuple[Pair, Pair]

_NHWC = ("NHWC", "HWIO", "NHWC")
_PIECE, _PIECES = 16, 32
"""How many examples the kernel's gradient takes at once on CPU, to stay in cache; and at most how many times."""


class Geometry(NamedTuple):
    """Which input pixel a tap reads: output i and tap t read input `stride * i + t - offset` along each axis."""

    stride: tuple[int, ...]
    offset: tuple[int, ...]
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]

    def padding(self) -> list[Pair]:
        """Pixels to add before and after the image; negative where the last ones are never read."""
        return [(p, s * (o - 1) + k - n - p) for s, p, n, k, o in zip(*self, strict=True)]


def convolve(
    x: Array,
    kernel: Array,
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
) -> Float[Array, "h2 w2 out"]:
    """Slide a kernel `(kh, kw, in, out)` over one image `(h, w, in)`, without flipping it, as `flax.linen.Conv` does.

    padding: "SAME", "VALID", "CIRCULAR" (the image goes on as it began) or pixels of zeros ((top, bottom), (left,
    right)). Every order of derivative is right, in forward and reverse mode. Raises ValueError where shapes and
    arguments do not fit.
    """
    _check(x, kernel)
    taps, stride = _spatial(kernel), _pair("strides", strides)
    if padding == "CIRCULAR":
        x, padding = _wrapped(x, *(((k - 1) // 2, k // 2) for k in taps)), "VALID"
    size = _spatial(x)
    if padding == "SAME":
        output = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
        offset = _same_offset(size, taps, stride)
    else:
        before_after = _explicit(padding)
        offset = tuple(lo for lo, _ in before_after)
        rooms = (n + sum(p) - k for n, p, k in zip(size, before_after, taps, strict=True))
        output = tuple(room // s + 1 for room, s in zip(rooms, stride, strict=True))
        if min(output) < 1:
            raise ValueError(f"kernel {taps} does not fit into the image {size} with padding {padding!r}")
    geometry = Geometry(stride, offset, size, taps, output)
    return _convolution.bind(x[None], kernel, geometry=geometry)[0]


def convolve_transposed(
    x: Array,
    kernel: Array,
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
    output_size: Pair | None = None,
) -> Float[Array, "h2 w2 out"]:
    """Spread every pixel of one image `(h, w, in)` through a kernel `(kh, kw, in, out)`: upsampling by `strides`.

    As `flax.linen.ConvTranspose` does. padding: "SAME" and "CIRCULAR" (output = strides x input), "VALID", or zeros
    around the dilated image, each less than the kernel's size. output_size: with "SAME", any size that a strided
    convolution would shrink to this image, so that odd sizes come back too. Raises ValueError where shapes and
    arguments do not fit.
    """
    _check(x, kernel)
    size, taps = _spatial(x), _spatial(kernel)
    stride = _pair("strides", strides)
    if output_size is not None and padding != "SAME":
        raise ValueError(f'output_size goes with padding="SAME" only, got {padding!r}')
    if padding == "CIRCULAR":
        # so much of the image again on either side that the zeros beyond reach none of the pixels kept
        (top, left), (height, width) = (-(-k // s) for k, s in zip(taps, stride, strict=True)), size
        y = convolve_transposed(_wrapped(x, (top, top), (left, left)), kernel, strides=stride)
        return y[top * stride[0] :, left * stride[1] :][: height * stride[0], : width * stride[1]]
    if padding == "SAME":
        image = tuple(n * s for n, s in zip(size, stride, strict=True)) if output_size is None else output_size
        shrunk = tuple(-(-n // s) for n, s in zip(image, stride, strict=True))
        if shrunk != size:
            raise ValueError(f"output_size {output_size} is shrunk to {shrunk} by strides {stride}, not to {size}")
        offset = _same_offset(image, taps, stride)
    else:
        if padding == "VALID":
            before_after = tuple((k - 1, max(k, s) - 1) for k, s in zip(taps, stride, strict=True))
        else:
            before_after = _explicit(padding)
            if any(max(p) >= k for p, k in zip(before_after, taps, strict=True)):
                raise ValueError(f"padding of a transposed convolution must be below the kernel {taps}, got {padding}")
        offset = tuple(k - 1 - lo for k, (lo, _) in zip(taps, before_after, strict=True))
        grown = zip(size, stride, before_after, taps, strict=True)
        image = tuple(s * (n - 1) + 1 + sum(p) - k + 1 for n, s, p, k in grown)
        if min(image) < 1:
            raise ValueError(f"kernel {taps} does not fit into the image {size} with padding {padding!r}")
    geometry = Geometry(stride, offset, image, taps, size)
    return _input_gradient.bind(x[None], jnp.swapaxes(kernel[::-1, ::-1], 2, 3), geometry=geometry)[0]


class Conv(nn.Module):
    """A convolution of one image `(h, w, in)`: the arguments and parameters of `flax.linen.Conv`, without groups."""

    features: int
    kernel_size: int | Pair = 3
    strides: int | Pair = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, "h2 w2 out"]:
        x, kernel, bias = _parameters(self, x)
        y = convolve(x, kernel, strides=self.strides, padding=self.padding)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


class ConvTranspose(nn.Module):
    """A transposed convolution of one image: the arguments and parameters of `flax.linen.ConvTranspose`.

    output_size: see `convolve_transposed`.
    """

    features: int
    kernel_size: int | Pair = 3
    strides: int | Pair = 1
    padding: Padding = "SAME"
    output_size: Pair | None = None
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, "h2 w2 out"]:
        x, kernel, bias = _parameters(self, x)
        y = convolve_transposed(x, kernel, strides=self.strides, padding=self.padding, output_size=self.output_size)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _parameters(module: Conv | ConvTranspose, x: Array) -> tuple[Array, Array, Array | None]:
    if x.ndim != 3:
        raise ValueError(f"the input must be one image (h, w, channels), got shape {x.shape}: vmap over examples")
    shape = (*_pair("kernel_size", module.kernel_size), x.shape[-1], module.features)
    kernel = module.param("kernel", module.kernel_init, shape)
    bias = module.param("bias", module.bias_init, (module.features,)) if module.use_bias else None
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None)
    return x, kernel, bias


def _spatial(x: Array) -> Pair:
    return x.shape[0], x.shape[1]


def _wrapped(x: Array, rows: Pair, columns: Pair) -> Array:
    return jnp.pad(x, (rows, columns, (0, 0)), mode="wrap")


def _pair(name: str, value: int | Pair) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be one or two whole numbers of at least 1, got {value!r}")
    return pair


def _check(x: Array, kernel: Array) -> None:
    if x.ndim != 3 or kernel.ndim != 4 or x.shape[2] != kernel.shape[2]:
        raise ValueError(f"x (h, w, in) and kernel (kh, kw, in, out) do not fit: {x.shape} and {kernel.shape}")


def _explicit(padding: Padding) -> tuple[Pair, Pair]:
    if padding == "VALID":
        return (0, 0), (0, 0)
    if isinstance(padding, str) or len(padding) != 2 or any(len(p) != 2 or min(p) < 0 for p in padding):
        raise ValueError(
            f'padding must be "SAME", "VALID", "CIRCULAR" or ((top, bottom), (left, right)), got {padding!r}'
        )
    return padding


def _same_offset(image: tuple[int, ...], kernel: Pair, stride: Pair) -> tuple[int, ...]:
    read = (max(s * (-(-n // s) - 1) + k - n, 0) for n, k, s in zip(image, kernel, stride, strict=True))
    return tuple(n // 2 for n in read)


def _stock_convolution(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
    # pixels behind the last that is read change nothing, so the padding need not be negative
    padding = [(lo, max(hi, 0)) for lo, hi in geometry.padding()]
    return lax.conv_general_dilated(x, kernel, geometry.stride, padding, dimension_numbers=_NHWC)


def _stock_input_gradient(y: Array, kernel: Array, *, geometry: Geometry) -> Array:
    x = jax.ShapeDtypeStruct((y.shape[0], *geometry.image, kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: _stock_convolution(x, kernel, geometry=geometry), x)(y)[0]


def _stock_kernel_gradient(x: Array, y: Array, *, geometry: Geometry) -> Array:
    kernel = jax.ShapeDtypeStruct((*geometry.kernel, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _stock_convolution(x, kernel, geometry=geometry), kernel)(y)[0]


def _cpu_input_gradient(y: Array, kernel: Array, *, geometry: Geometry) -> Array:
    """One dense convolution for each phase, the input pixels whose position leaves the same rest by the stride."""
    size = tuple(-(-n // s) for n, s in zip(geometry.image, geometry.stride, strict=True))
    rows, columns = ([_phase(geometry, axis, rest) for rest in range(geometry.stride[axis])] for axis in (0, 1))
    kernel = jnp.swapaxes(kernel, 2, 3)

    def pixels(taps_h, first_h, taps_w, first_w):
        if not taps_h or not taps_w:
            return jnp.zeros((y.shape[0], *size, kernel.shape[3]), y.dtype)
        part = kernel[taps_h[-1] : taps_h[0] + 1 : geometry.stride[0], taps_w[-1] : taps_w[0] + 1 : geometry.stride[1]]
        windows = zip((first_h, first_w), size, (len(taps_h), len(taps_w)), y.shape[1:3], strict=True)
        padding = [(-first, first + n - 1 + taps - read) for first, n, taps, read in windows]
        return _dense(y, part[::-1, ::-1], padding)

    parts = jnp.stack([jnp.stack([pixels(*row, *column) for column in columns], 3) for row in rows], 2)
    whole = parts.reshape(y.shape[0], size[0] * geometry.stride[0], size[1] * geometry.stride[1], kernel.shape[3])
    return whole[:, : geometry.image[0], : geometry.image[1]]


def _phase(geometry: Geometry, axis: int, rest: int) -> tuple[list[int], int]:
    """Return the taps that reach input pixels `rest`, `rest + stride`, …, last first, and the first output read."""
    stride, offset, kernel = geometry.stride[axis], geometry.offset[axis], geometry.kernel[axis]
    taps = [t for t in range(kernel - 1, -1, -1) if (rest + offset - t) % stride == 0]
    return taps, (rest + offset - taps[0]) // stride if taps else 0


def _cpu_kernel_gradient(x: Array, y: Array, *, geometry: Geometry) -> Array:
    """A convolution whose channels are the examples: the images, slid over by the cotangents."""
    size = max(_PIECE, -(-x.shape[0] // _PIECES))

    def piece(begin):
        images = jnp.transpose(x[begin : begin + size], (3, 1, 2, 0))
        cotangents = jnp.transpose(y[begin : begin + size], (1, 2, 0, 3))
        return _dense(images, cotangents, geometry.padding(), dilation=geometry.stride)

    total = sum((piece(begin) for begin in range(size, x.shape[0], size)), start=piece(0))
    return jnp.transpose(total, (1, 2, 0, 3))


def _dense(x: Array, kernel: Array, padding: Sequence[Pair], dilation: tuple[int, ...] = (1, 1)) -> Array:
    # the fast convolution adds pixels but cannot take them away
    (top, bottom), (left, right) = padding
    height, width = x.shape[1:3]
    x = x[:, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    padding = [(max(lo, 0), max(hi, 0)) for lo, hi in padding]
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, rhs_dilation=dilation, dimension_numbers=_NHWC)


def _primitive(name: str, stock: Callable, cpu: Callable, merges: tuple[Pair, Pair]) -> Primitive:
    """Make a bilinear primitive.

    merges: for either operand, if it alone is mapped, the axis of it and the axis of the result that take the mapped
    axis in.
    """
    primitive = Primitive(name)

    def shape(a, b, *, geometry):
        a, b = (jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b))
        result = jax.eval_shape(partial(stock, geometry=geometry), a, b)
        return ShapedArray(result.shape, result.dtype)

    @partial(jax.jit, static_argnames="geometry")
    def alone(a, b, *, geometry):
        return primitive.bind(a, b, geometry=geometry)

    def batched(operands, axes, *, geometry):
        a, b = operands
        if None not in axes:
            return jax.vmap(partial(stock, geometry=geometry), axes)(a, b), 0
        which = 0 if axes[0] is not None else 1
        into, out = merges[which]
        mapped = operands[which]
        count = mapped.shape[axes[which]]
        mapped = jnp.moveaxis(mapped, axes[which], into)
        each = mapped.shape[into + 1]  # named, for a batch may be empty
        mapped = mapped.reshape(*mapped.shape[:into], count * each, *mapped.shape[into + 2 :])
        both = (mapped, b) if which == 0 else (a, mapped)
        result = primitive.bind(*both, geometry=geometry)
        return result.reshape(*result.shape[:out], count, each, *result.shape[out + 1 :]), out

    primitive.def_abstract_eval(shape)
    primitive.def_impl(alone)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(stock, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive


_convolution = _primitive("convolution", _stock_convolution, _stock_convolution, ((0, 0), (3, 3)))
_input_gradient = _primitive("convolution_input_gradient", _stock_input_gradient, _cpu_input_gradient, ((0, 0), (2, 3)))
_kernel_gradient = _primitive(
    "convolution_kernel_gradient", _stock_kernel_gradient, _cpu_kernel_gradient, ((3, 2), (3, 3))
)

ad.defbilinear(
    _convolution,
    lambda y, x, kernel, **geometry: _input_gradient.bind(y, kernel, **geometry),
    lambda y, x, kernel, **geometry: _kernel_gradient.bind(x, y, **geometry),
)
ad.defbilinear(
    _input_gradient,
    lambda x, y, kernel, **geometry: _convolution.bind(x, kernel, **geometry),
    lambda x, y, kernel, **geometry: _kernel_gradient.bind(x, y, **geometry),
)
ad.defbilinear(
    _kernel_gradient,
    lambda kernel, x, y, **geometry: _input_gradient.bind(y, kernel, **geometry),
    lambda kernel, x, y, **geometry: _convolution.bind(x, kernel, **geometry),
)
