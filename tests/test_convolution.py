"""Convolutions equal Flax's and SciPy's with all their derivatives, on CPU in their own formulation; the VAE's bodies.

Rounding is bounded by 1e-12 in float64, where results are of order one to ten.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import linen as nn

from vbjax.networks import convolution
from vbjax.networks.convolution import Conv, ConvTranspose, convolve, convolve_transposed
from vbjax.networks.convolutional import ConvDecoderBody, ConvEncoderBody, PixelParameters

PAIRS = {"conv": (Conv, nn.Conv), "transposed": (ConvTranspose, nn.ConvTranspose)}

# (which, kernel, strides, padding, (h, w), channels in and out, batch): every kernel size, stride, kind of padding,
# parity of size and single channel occurs for both kinds of convolution
CASES = (
    ("conv", (3, 3), (1, 1), "SAME", (7, 6), (2, 3), 3),
    ("conv", (4, 4), (2, 2), "SAME", (6, 9), (1, 2), 17),
    ("conv", (3, 5), (2, 2), "VALID", (8, 9), (2, 1), 1),
    ("conv", (1, 1), (2, 1), ((1, 2), (0, 1)), (5, 6), (2, 3), 2),
    ("conv", (4, 3), (2, 1), ((1, 2), (2, 0)), (7, 8), (3, 2), 9),
    ("transposed", (3, 3), (1, 1), "SAME", (5, 4), (2, 3), 3),
    ("transposed", (4, 4), (2, 2), "SAME", (4, 5), (1, 2), 17),
    ("transposed", (5, 3), (2, 2), "VALID", (4, 3), (2, 1), 1),
    ("transposed", (1, 1), (2, 2), "SAME", (3, 4), (2, 3), 2),
    ("transposed", (4, 3), (2, 1), ((1, 3), (2, 0)), (4, 5), (3, 2), 9),
)
MORE = tuple(
    (which, (k, k), (s, s), padding, size, channels, batch)
    for which in PAIRS
    for k in (1, 3, 4, 5)
    for s in (1, 2)
    for padding, size, channels, batch in (
        ("SAME", (7, 6), (1, 3), 1),
        ("VALID", (6, 9), (3, 1), 10),
        (((0, 0), (0, 0)) if k == 1 else ((2, 1), (0, 2)), (5, 7), (2, 2), 9),
    )
)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def values_and_gradients(apply, params, x, weights):
    """What `apply` returns, and the gradients of its inner product with fixed weights."""

    def loss(params, x):
        y = apply(params, x)
        return jnp.sum(y * weights), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return y, gradients


@functools.partial(jax.jit, static_argnums=0)
def both(cases, inputs):
    """Ours and Flax's outputs and gradients for many cases in one program."""
    results = []
    for (which, kernel, strides, padding, _, (_, features), _), (params, x, weights) in zip(cases, inputs, strict=True):
        ours, stock = (module(features, kernel, strides, padding) for module in PAIRS[which])
        each = jax.vmap(ours.apply, (None, 0))
        results.append([values_and_gradients(f, params, x, weights) for f in (each, stock.apply)])
    return results


def inputs_of(cases, dtype):
    inputs = []
    for which, kernel, strides, padding, size, (channels, features), batch in cases:
        seed = 100 * batch + size[0]
        x = draw(seed, batch, *size, channels).astype(dtype)
        params = {"kernel": draw(seed, *kernel, channels, features), "bias": draw(seed + 1, features)}
        params = {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), params)}
        y = jax.eval_shape(PAIRS[which][1](features, kernel, strides, padding).apply, params, x)
        inputs.append((params, x, draw(seed + 2, *y.shape).astype(dtype)))
    return inputs


def largest_difference(ours, stock):
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), ours, stock)
    return float(jax.tree.reduce(max, differences))


@functools.cache
def in_both(cases, dtype):
    with jax.enable_x64(dtype == "float64"):
        return both(cases, inputs_of(cases, dtype))


@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "all"])
def test_outputs_and_gradients_equal_flax_with_the_same_parameters_in_float64(cases):
    for case, (ours, stock) in zip(cases, in_both(cases, "float64"), strict=True):
        assert ours[0].shape == stock[0].shape, case
        assert largest_difference(ours, stock) < 1e-12, case


def test_in_float32_they_are_as_near_to_the_exact_ones_as_flax_is():
    chosen = slice(1, 7, 5)
    for results, (_, exact) in zip(in_both(CASES[chosen], "float32"), in_both(CASES, "float64")[chosen], strict=True):
        ours, stock = (largest_difference(result, exact) for result in results)
        assert ours < 4 * stock + 1e-6
        assert stock < 1e-4


def wrong_offset(geometry):
    return geometry._replace(offset=tuple(p + 1 for p in geometry.offset))


def test_the_comparison_rejects_a_shifted_padding_and_a_kernel_that_is_not_flipped():
    with jax.enable_x64(True):
        x, kernel = draw(0, 6, 7, 2), draw(1, 4, 4, 2, 3)
        right = convolve(x, kernel, strides=2)
        geometry = convolution.Geometry((2, 2), (1, 0), (6, 7), (4, 4), (3, 4))
        assert geometry.padding()[0] == (1, 1)
        shifted = convolution._convolution.bind(x[None], kernel, geometry=wrong_offset(geometry))[0]
        assert shifted.shape == right.shape
        assert jnp.abs(shifted - right).max() > 0.1
        right = convolve_transposed(x, kernel, strides=2)
        # a transposed convolution flips the kernel: one flip too many or too few is another map of the same shape
        unflipped = convolve_transposed(x, kernel[::-1, ::-1], strides=2)
        assert jnp.abs(unflipped - right).max() > 0.1


def channelwise(operation, x, kernel, mode):
    channels, features = kernel.shape[2:]
    return np.stack(
        [sum(operation(x[..., c], kernel[..., c, o], mode) for c in range(channels)) for o in range(features)], -1
    )


def test_both_are_scipys_correlation_the_transposed_one_of_the_dilated_image():
    with jax.enable_x64(True):
        x, kernel = np.array(draw(0, 5, 6, 2)), np.array(draw(1, 3, 4, 2, 3))
        strided = channelwise(scipy.signal.correlate2d, x, kernel, "valid")[::2, ::2]
        ours = convolve(jnp.asarray(x), jnp.asarray(kernel), strides=2, padding="VALID")
        np.testing.assert_allclose(ours, strided, atol=1e-13)
        dilated = np.zeros((9, 11, 2))
        dilated[::2, ::2] = x
        spread = channelwise(scipy.signal.correlate2d, dilated, kernel, "full")
        ours = convolve_transposed(jnp.asarray(x), jnp.asarray(kernel), strides=2, padding="VALID")
        np.testing.assert_allclose(ours, spread, atol=1e-13)


def test_every_derivative_up_to_the_third_agrees_with_finite_differences_in_both_modes():
    with jax.enable_x64(True):

        @jax.jit
        def f(x, up, down):
            y = jnp.tanh(convolve(x, down, strides=2))
            return jnp.sum(jnp.sin(convolve_transposed(y, up, strides=2, output_size=(5, 4))))

        x, up, down = (0.3 * draw(seed, *shape) for seed, shape in enumerate([(5, 4, 1), (3, 3, 2, 1), (3, 3, 1, 2)]))
        directions = [draw(seed, *leaf.shape) for seed, leaf in enumerate((x, up, down), start=3)]

        def along(t):
            return f(*(leaf + t * d for leaf, d in zip((x, up, down), directions, strict=True)))

        # reverse over forward over forward; the differences err by step^4 times a fifth derivative
        first = jax.jit(lambda t: jax.jvp(along, (t,), (1.0,))[1])
        second = jax.jit(lambda t: jax.jvp(first, (t,), (1.0,))[1])
        third = jax.jit(jax.grad(second))
        step = 1e-3
        for lower, higher in ((along, first), (first, second), (second, third)):
            a, b, c, d = (lower(k * step) for k in (-2.0, -1.0, 1.0, 2.0))
            np.testing.assert_allclose(higher(0.0), (a - 8 * b + 8 * c - d) / (12 * step), rtol=1e-8, atol=1e-9)
        gradient = jax.grad(f, (0, 1, 2))(x, up, down)
        inner = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, tuple(directions))))
        np.testing.assert_allclose(inner, first(0.0), rtol=1e-12)


@pytest.mark.parametrize("which", sorted(PAIRS))
def test_vmap_over_images_kernels_or_both_equals_a_loop(which):
    f = {"conv": convolve, "transposed": convolve_transposed}[which]
    with jax.enable_x64(True):
        xs, kernels = draw(0, 2, 4, 5, 2), draw(1, 2, 3, 3, 2, 3)

        def gradient(x, kernel):
            return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel, strides=2))), (0, 1))(x, kernel)

        @jax.jit
        def mapped(xs, kernels):
            return [
                jax.vmap(gradient, (0, None))(xs, kernels[0]),
                jax.vmap(gradient, (None, 0))(xs[0], kernels),
                jax.vmap(gradient)(xs, kernels),
            ]

        def loop(pairs):
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(gradient(*pair) for pair in pairs))

        expected = [
            loop([(xs[0], kernels[0]), (xs[1], kernels[0])]),
            loop([(xs[0], kernels[0]), (xs[0], kernels[1])]),
            loop([(xs[0], kernels[0]), (xs[1], kernels[1])]),
        ]
        assert largest_difference(mapped(xs, kernels), expected) < 1e-12


def primitives(jaxpr):
    """Names of all primitives of a jaxpr with the shape of their first result, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, equation.outvars[0].aval.shape
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from primitives(getattr(inner, "jaxpr", inner))


def test_the_kernels_gradient_of_a_batch_is_one_contraction_and_never_one_per_example():
    def loss(kernel, xs):
        return jax.vmap(lambda x: jnp.sum(jnp.sin(convolve(x, kernel))))(xs).mean()

    names = list(primitives(jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 3, 1, 4)), jnp.ones((7, 5, 5, 1))).jaxpr))
    assert [shape for name, shape in names if name == "convolution_kernel_gradient"] == [(3, 3, 1, 4)]
    # the control: a mean of gradients is what this must not become
    each = jax.vmap(jax.grad(loss), (None, 0))
    names = primitives(jax.make_jaxpr(each)(jnp.ones((3, 3, 1, 4)), jnp.ones((7, 1, 5, 5, 1))).jaxpr)
    assert (7, 3, 3, 1, 4) in [shape for _, shape in names]


def lowered(platform):
    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel, strides=2))), (0, 1))(x, kernel)

    shapes = jax.ShapeDtypeStruct((6, 6, 2), jnp.float32), jax.ShapeDtypeStruct((4, 4, 2, 3), jnp.float32)
    return jax.export.export(jax.jit(gradients), platforms=[platform])(*shapes).mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_elsewhere_than_on_cpu_gradients_are_the_stock_convolutions(platform):
    # forward, and one convolution for each gradient, the strided one dilated; ours on CPU are many, none dilated so
    assert lowered(platform).count("stablehlo.convolution") == 3
    assert "lhs_dilate = [2, 2]" in lowered(platform)


def test_on_cpu_no_convolution_dilates_its_input():
    text = lowered("cpu")
    # forward, four phases, and one piece of a batch of one
    assert text.count("stablehlo.convolution") == 6
    assert "lhs_dilate = [2, 2]" not in text


def test_linear_transpose_and_the_loop_of_training_see_the_same_numbers():
    x, kernel = draw(0, 6, 6, 2).astype(jnp.float32), draw(1, 4, 4, 2, 3).astype(jnp.float32)
    y = convolve(x, kernel, strides=2)

    @jax.jit
    def transposes(y):
        back = jax.linear_transpose(lambda x: convolve(x, kernel, strides=2), x)(y)[0]
        return back, jax.lax.fori_loop(0, 3, lambda _, total: total + convolve(x, kernel, strides=2), 0 * y)

    back, total = transposes(y)
    np.testing.assert_allclose(jnp.sum(back * x), jnp.sum(y * y), rtol=1e-5)
    np.testing.assert_allclose(total, 3 * y, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, k: convolve(x[None], k), "x .h, w, in."),
        (lambda x, k: convolve(x, k[:, :, :1]), "do not fit"),
        (lambda x, k: convolve(x, k, strides=0), "strides must be"),
        (lambda x, k: convolve(x, k, padding=((1, 1), (-1, 0))), "padding must be"),
        (lambda x, k: convolve(x[:2], k, padding="VALID"), "does not fit into the image"),
        (lambda x, k: convolve_transposed(x, k, padding=((3, 0), (0, 0))), "below the kernel"),
        (lambda x, k: convolve_transposed(x, k, strides=2, output_size=(12, 8)), "output_size .12, 8. is shrunk to"),
        (lambda x, k: convolve_transposed(x, k, padding="VALID", output_size=(5, 4)), "output_size goes with"),
        (lambda x, k: Conv(2).init(jax.random.key(0), x[None]), "vmap over examples"),
        (lambda x, k: ConvTranspose(2, (3, 0)).init(jax.random.key(0), x), "kernel_size must be"),
    ],
)
def test_bad_shapes_and_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(jnp.ones((5, 4, 2)), jnp.ones((3, 3, 2, 3)))


@pytest.mark.parametrize("shape", [(28, 28), (7, 10, 3)])
@pytest.mark.parametrize("extra", [(), (2,)])
def test_bodies_go_from_an_image_to_features_and_back_to_its_own_size(shape, extra):
    encoder = ConvEncoderBody(shape, (2, 4), hidden=(8,), groups=2)
    decoder = ConvDecoderBody(shape, (4, 2, *extra), hidden=(8,), groups=2)
    head = PixelParameters(shape, before=(2,), after=(3,))

    def shapes():
        x = jnp.zeros(shape)
        key = jax.random.key(0)
        features, encoded = encoder.init_with_output(key, x.ravel())
        maps, decoded = decoder.init_with_output(jax.random.clone(key), features)
        return features, maps, head.init_with_output(jax.random.clone(key), maps)[0], encoded, decoded

    features, maps, numbers, encoded, decoded = jax.eval_shape(shapes)
    assert features.shape == (8,)
    halved = tuple(-(-n // 2) for n in shape[:2])
    assert maps.shape == ((*shape[:2], 2) if extra else (*halved, 2))
    assert numbers.shape == (2, *shape, 3)
    count = sum(name.startswith("Conv_") for name in encoded["params"])
    assert count == sum(name.startswith("ConvTranspose_") for name in decoded["params"]) + 1 - len(extra) == 2


def test_a_vector_of_features_gives_the_same_numbers_as_a_dense_layer():
    x = draw(0, 5).astype(jnp.float32)
    numbers, variables = PixelParameters((2, 3), before=(2,), after=(4,)).init_with_output(jax.random.key(0), x)
    dense = variables["params"]["parameters"]
    np.testing.assert_allclose(numbers.ravel(), x @ dense["kernel"] + dense["bias"], rtol=1e-5)


def test_numbers_of_a_pixel_do_not_change_places():
    # one transposed convolution whose bias says which number it is
    h = jnp.zeros((2, 3, 4))
    layer = PixelParameters((4, 6, 3), before=(2,), after=(5,))
    variables = layer.init(jax.random.key(0), h)
    variables["params"]["parameters"]["bias"] = jnp.arange(30.0)
    numbers = layer.apply(variables, h)
    expected = np.arange(30.0).reshape(2, 3, 5)[:, None, None]
    np.testing.assert_array_equal(numbers, np.broadcast_to(expected, (2, 4, 6, 3, 5)))


def test_dropout_follows_its_key_and_is_off_without_one():
    body = ConvEncoderBody((8, 8), (2,), hidden=(4,), dropout=0.5)
    x = jnp.ones((8, 8))
    variables = body.init(jax.random.key(0), x)
    apply = jax.jit(body.apply)
    off, masked, again, other = apply(variables, x), *(apply(variables, x, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(masked, again)
    assert np.abs(masked - other).max() > 0
    assert np.abs(masked - off).max() > 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ConvEncoderBody((8,)), "image_shape must be"),
        (lambda: ConvEncoderBody((8, 8), ()), "features must be one or more"),
        (lambda: ConvEncoderBody((8, 8), (4, 4, 4, 4)), "features make 4 stages, but a 8x8 image"),
        (lambda: ConvEncoderBody((8, 8), hidden=(0,)), "hidden widths"),
        (lambda: ConvEncoderBody((8, 8), kernel_size=1), "kernel_size must be at least strides"),
        (lambda: ConvEncoderBody((8, 8), activation="swish"), "activation must be one of"),
        (lambda: ConvEncoderBody((8, 8), groups=5), "groups must divide"),
        (lambda: ConvDecoderBody((8, 8), dropout=1.0), "dropout must lie"),
        (lambda: ConvDecoderBody((8, 8), (4, 4, 4, 4)), "features must be as many as stages or one more"),
        (lambda: PixelParameters((8, 8)).init(jax.random.key(0), jnp.ones((3, 4, 2))), "no map of an image"),
    ],
)
def test_bodies_name_what_does_not_fit(make, named):
    with pytest.raises(ValueError, match=named):
        make()
