"""A U-Net for denoising: one image in, numbers for each of its pixels out. Start at `UNet`.

Its convolutions are `networks.convolution`'s, and its normalisation is written as two sums and one affine map per
channel, into which the conditioning goes: on CPU, with its gradients, two thirds of the time of Flax's.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.attention import attention
from vbjax.networks.conditioning import Conditioning, Label, with_fourier_features
from vbjax.networks.convolution import Conv
from vbjax.types import PRNGKey, Scalar

Map = Float[Array, "h w c"]
Features = Float[Array, " width"]

_ZEROS = nn.initializers.zeros_init()


class UNet(nn.Module):
    """(x_t, γ, label) -> `(*image_shape, outputs)`, the last layer zero at first.

    Level i has `channels * multipliers[i]` channels and half the size of the level before; `blocks` residual blocks on
    the way down and as many on the way up, where the level's last map of the way down stands beside its input.
    attention: levels whose blocks end in self-attention, counted from 0. groups: of GroupNorm. octaves: of Fourier
    features of the input. Raises ValueError, naming the argument, where sizes do not fit. Source: Ho et al. (2020,
    appendix B), with one skip connection per level.
    """

    image_shape: tuple[int, ...]
    outputs: int = 1
    channels: int = 32
    multipliers: Sequence[int] = (1, 2, 4)
    blocks: int = 1
    attention: Sequence[int] = (2,)
    heads: int = 1
    groups: int = 8
    dropout: float = 0.0
    classes: int = 0
    octaves: Sequence[int] = ()

    def __post_init__(self):
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "*d"], gamma: Scalar, label: Label = None, key: PRNGKey | None = None
    ) -> Float[Array, "*d outputs"]:
        """key: draws the dropout masks; None switches dropout off."""
        widths = [self.channels * m for m in self.multipliers]
        keys = iter([None] * 2 * len(widths) if key is None else jax.random.split(key, 2 * len(widths)))
        told = Conditioning(4 * self.channels, self.classes)(gamma, label)
        image = x.reshape(*self.image_shape[:2], -1)
        h = Conv(widths[0])(with_fourier_features(image, self.octaves))
        skips = []
        for level, width in enumerate(widths):
            if level:
                h = Conv(width, strides=2)(h)
            h = self._level(level, h, told, next(keys))
            skips.append(h)
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                h = jnp.concatenate([Doubled(widths[level])(h), skips[level]], -1)
            h = self._level(level, h, told, next(keys))
        h = nn.silu(GroupNorm(self.groups)(h))
        return Conv(image.shape[-1] * self.outputs, kernel_init=_ZEROS, name="outputs")(h).reshape(
            *x.shape, self.outputs
        )

    def _level(self, level: int, h: Map, told: Features, key: PRNGKey | None) -> Float[Array, "h w features"]:
        """Apply the residual blocks of one level; called in a compact method, whose submodules these become."""
        keys = [None] * self.blocks if key is None else jax.random.split(key, self.blocks)
        width = self.channels * self.multipliers[level]
        for block_key in keys:
            h = ResidualBlock(width, self.groups, self.dropout)(h, told, block_key)
        return SelfAttention(self.heads, self.groups)(h) if level in self.attention else h


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; the conditioning scales and shifts what is between them."""

    features: int
    groups: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Map, told: Features, key: PRNGKey | None = None) -> Float[Array, "h w features"]:
        h = Conv(self.features)(nn.silu(GroupNorm(self.groups)(x)))
        scale, shift = jnp.split(nn.Dense(2 * self.features, name="film")(told), 2)
        h = nn.silu(GroupNorm(self.groups)(h, scale, shift))
        if self.dropout and key is not None:
            h = nn.Dropout(self.dropout, deterministic=False)(h, rng=key)
        h = Conv(self.features, kernel_init=_ZEROS)(h)
        return h + (x if x.shape == h.shape else nn.Dense(self.features, use_bias=False, name="shortcut")(x))


class Doubled(nn.Module):
    """Twice the height and the width: every pixel becomes four, each by its own linear map."""

    features: int

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "h2 w2 features"]:
        height, width, _ = x.shape
        four = nn.Dense(4 * self.features, use_bias=False)(x).reshape(height, width, 2, 2, self.features)
        return jnp.swapaxes(four, 1, 2).reshape(2 * height, 2 * width, self.features)


class SelfAttention(nn.Module):
    """Every pixel looks at all others, in so many heads, beside the identity; softmax in float32 or better."""

    heads: int
    groups: int

    @nn.compact
    def __call__(self, x: Map) -> Map:
        height, width, channels = x.shape
        pixels = GroupNorm(self.groups)(x).reshape(height * width, channels)
        q, k, v = jnp.split(nn.Dense(3 * channels)(pixels).reshape(height * width, self.heads, -1), 3, -1)
        seen = jax.vmap(attention, 1, 1)(q, k, v).reshape(height * width, channels)
        return x + nn.Dense(channels, kernel_init=_ZEROS, name="outputs")(seen).reshape(x.shape)


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm` of one image, with its parameters; then times (1 + scale), plus shift, per channel.

    Raises ValueError unless the groups divide the channels. Source: Wu and He (2018); Perez et al. (2018) for the map.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Map, scale: Float[Array, " c"] | None = None, shift: Float[Array, " c"] | None = None) -> Map:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"groups must divide the {channels} channels, got {self.groups}")
        gain = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        per_group = (self.groups, channels // self.groups)
        mean, square = (v.mean((0, 1)).reshape(per_group).mean(1) for v in (x, x * x))
        rate = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
        mean, rate = (jnp.repeat(v, channels // self.groups) for v in (mean, rate))
        slope = rate * gain
        offset = bias - mean * slope
        if scale is not None:
            slope, offset = slope * (1 + scale), offset * (1 + scale)
        if shift is not None:
            offset = offset + shift
        # lest the compiler do all of the above again for every pixel
        slope, offset = jax.lax.optimization_barrier((slope, offset))
        return x * jnp.broadcast_to(slope, x.shape) + jnp.broadcast_to(offset, x.shape)


def _check(unet: UNet) -> None:
    if len(unet.image_shape) not in (2, 3) or min(unet.image_shape) < 1:
        raise ValueError(f"image_shape must be (h, w) or (h, w, channels), got {unet.image_shape}")
    if not unet.multipliers or min(unet.multipliers) < 1:
        raise ValueError(f"multipliers must be one or more whole numbers of at least 1, got {tuple(unet.multipliers)}")
    levels = len(unet.multipliers)
    for name, least in (("outputs", 1), ("channels", 1), ("blocks", 1), ("heads", 1), ("groups", 1), ("classes", 0)):
        if getattr(unet, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(unet, name)}")
    if unet.channels % unet.groups:
        raise ValueError(f"groups must divide the channels {unet.channels}, got {unet.groups}")
    if any(not 0 <= level < levels for level in unet.attention):
        raise ValueError(f"attention must name levels in 0 … {levels - 1}, got {tuple(unet.attention)}")
    if any(unet.channels * unet.multipliers[level] % unet.heads for level in unet.attention):
        raise ValueError(f"heads must divide the channels of the levels with attention, got {unet.heads}")
    if not 0 <= unet.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {unet.dropout}")
    size, unit = unet.image_shape[:2], 2 ** (levels - 1)
    if any(n % unit for n in size):
        padded = "x".join(str(-(-n // unit) * unit) for n in size)
        raise ValueError(
            f"image_shape {'x'.join(map(str, size))} is not divisible by {unit}, as {levels} multipliers need: "
            f"pad the images to {padded}, or give fewer multipliers"
        )
