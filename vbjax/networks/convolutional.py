"""Convolutional bodies for the encoder and decoder of a VAE, in the place of `mlp.MLP`.

Every stage of the encoder shrinks the image by `strides`, rounding up. The decoder goes back through the same sizes,
odd ones too, and `PixelParameters` takes its last map to the image.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.networks.convolution import Conv, ConvTranspose, Pair
from vbjax.networks.mlp import ACTIVATIONS, MLP
from vbjax.types import PRNGKey


class ConvEncoderBody(nn.Module):
    """An image -> features: `Conv -> GroupNorm -> activation -> dropout` for each stage, then an MLP.

    image_shape: `(h, w)` or `(h, w, c)`; the image may come flattened. features: channels of the stages, from the
    pixels inwards. groups: of GroupNorm; None leaves it out. hidden: widths of the MLP. Raises ValueError, naming the
    argument.
    """

    image_shape: tuple[int, ...]
    features: Sequence[int] = (32, 64)
    hidden: Sequence[int] = (256,)
    kernel_size: int = 4
    strides: int = 2
    activation: str = "relu"
    groups: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        _check(self, len(self.features))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, key: PRNGKey | None = None) -> Float[Array, " h"]:
        """key: draws the dropout masks; None switches dropout off."""
        keys = _keys(key, len(self.features) + 1)
        x = x.reshape(*self.image_shape[:2], -1)
        for channels, layer_key in zip(self.features, keys, strict=False):
            x = _finish(self, Conv(channels, self.kernel_size, self.strides)(x), layer_key)
        return MLP(self.hidden, self.activation, self.dropout)(x.ravel(), keys[-1])


class ConvDecoderBody(nn.Module):
    """Features -> a map of features: an MLP, whose last layer is the smallest map, then `ConvTranspose -> ...` stages.

    The arguments are those of the encoder that it mirrors, in the decoder's order: features, of every map, and hidden
    from the code outwards. stages: how often the encoder shrinks the image. As many features mirror it, and leave the
    last stage to `PixelParameters`; one more also makes a map of the image's own size, at a higher cost. Raises
    ValueError, naming the argument.
    """

    image_shape: tuple[int, ...]
    features: Sequence[int] = (64, 32)
    stages: int = 2
    hidden: Sequence[int] = (256,)
    kernel_size: int = 4
    strides: int = 2
    activation: str = "relu"
    groups: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        if self.stages < 1 or len(self.features) - self.stages not in (0, 1):
            raise ValueError(f"features must be as many as stages or one more, got {self.features} and {self.stages}")
        _check(self, self.stages)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Float[Array, " d"], key: PRNGKey | None = None) -> Float[Array, "h w features"]:
        """key: draws the dropout masks; None switches dropout off."""
        keys = _keys(key, len(self.features) + 1)
        first, *sizes = _sizes(self, self.stages)[::-1]
        shape = (*first, self.features[0])
        h = MLP((*self.hidden, math.prod(shape)), self.activation, self.dropout)(z, keys[-1]).reshape(shape)
        for channels, size, layer_key in zip(self.features[1:], sizes, keys, strict=False):
            h = ConvTranspose(channels, self.kernel_size, self.strides, output_size=size)(h)
            h = _finish(self, h, layer_key)
        return h


class PixelParameters(nn.Module):
    """Features -> numbers for every pixel, `(*before, *image_shape, *after)`, by one linear layer.

    A vector of features goes through a dense layer. A map of features, of which each pixel stands for a square of the
    image, goes through a transposed convolution, whose kernels overlap by half; one of the image's own size through a
    3x3 one. Raises ValueError where the map does not fit the image.
    """

    image_shape: tuple[int, ...]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, h: Array) -> Array:
        if h.ndim == 1:
            shape = (*self.before, *self.image_shape, *self.after)
            return nn.Dense(math.prod(shape), name="parameters")(h).reshape(shape)
        size = (self.image_shape[0], self.image_shape[1])
        fits = (s for s in range(1, max(size) + 1) if tuple(-(-n // s) for n in size) == h.shape[:2])
        scale = next(fits, None)
        if h.ndim != 3 or scale is None:
            raise ValueError(f"features {h.shape} are no map of an image {self.image_shape}")
        channels = (*self.before, *self.image_shape[2:], *self.after)
        kernel_size = max(2 * scale, 3)
        layer = ConvTranspose(math.prod(channels), kernel_size, scale, output_size=size, name="parameters")
        first = tuple(range(2, 2 + len(self.before)))
        return jnp.moveaxis(layer(h).reshape(*size, *channels), first, tuple(range(len(first))))


def _check(body: ConvEncoderBody | ConvDecoderBody, stages: int) -> None:
    if len(body.image_shape) not in (2, 3) or min(body.image_shape) < 1:
        raise ValueError(f"image_shape must be (h, w) or (h, w, channels), got {body.image_shape}")
    if not body.features or min(body.features) < 1:
        raise ValueError(f"features must be one or more channel counts of at least 1, got {tuple(body.features)}")
    if any(width < 1 for width in body.hidden):
        raise ValueError(f"hidden widths must be at least 1, got {tuple(body.hidden)}")
    if body.strides < 1 or body.kernel_size < body.strides:
        raise ValueError(
            f"kernel_size must be at least strides, which is at least 1, lest pixels be skipped; got "
            f"{body.kernel_size} and {body.strides}"
        )
    if body.strides > 1 and max(_sizes(body, stages)[-2]) == 1:
        size = "x".join(map(str, body.image_shape[:2]))
        raise ValueError(f"features make {stages} stages, but a {size} image is down to one pixel before the last")
    if body.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {body.activation!r}")
    if body.groups is not None and (body.groups < 1 or any(channels % body.groups for channels in body.features)):
        raise ValueError(f"groups must divide all features {tuple(body.features)}, got {body.groups}")
    if not 0 <= body.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {body.dropout}")


def _sizes(body: ConvEncoderBody | ConvDecoderBody, stages: int) -> list[Pair]:
    """Return the sizes of the maps, from the image inwards."""
    sizes = [(body.image_shape[0], body.image_shape[1])]
    for _ in range(stages):
        height, width = sizes[-1]
        sizes.append((-(-height // body.strides), -(-width // body.strides)))
    return sizes


def _keys(key: PRNGKey | None, count: int) -> Sequence[PRNGKey | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


def _finish(body: ConvEncoderBody | ConvDecoderBody, x: Array, key: PRNGKey | None) -> Array:
    """Apply what follows a convolution; called in a compact method, whose submodules these become."""
    if body.groups is not None:
        # Flax takes the first axis for the batch
        x = nn.GroupNorm(num_groups=body.groups)(x[None])[0]
    x = ACTIVATIONS[body.activation](x)
    if body.dropout and key is not None:
        x = nn.Dropout(body.dropout, deterministic=False)(x, rng=key)
    return x
