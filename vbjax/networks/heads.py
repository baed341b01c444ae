"""Likelihood heads: features -> the law of an image. Each names the scale that its pixels live on.

The Bernoulli head reads pixels in {0, 1}; the discretised and categorical ones read integer levels 0 … levels-1, so
their likelihoods are comparable in bits per dimension on the same integers. Continuous Bernoulli and normal heads read
levels divided by levels-1, in [0, 1]: theirs are *densities*, which may exceed one and compare with no likelihood of
integers. Start with `HEADS`.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.distributions import (
    Autoregressive,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    DiscretisedNormal,
    Normal,
)
from vbjax.networks.convolutional import PixelParameters

Features = Float[Array, " h"] | Float[Array, "h w c"]
"""Of a perceptron, or a map that a transposed convolution takes to the image (`convolutional.PixelParameters`)."""


class BernoulliHead(nn.Module):
    """Independent bits, `(*shape)`."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Features) -> Bernoulli:
        return Bernoulli(_dense(h, self.shape))


class CategoricalHead(nn.Module):
    """A free probability for every level of every pixel."""

    shape: tuple[int, ...]
    levels: int

    @nn.compact
    def __call__(self, h: Features) -> Categorical:
        return Categorical(_dense(h, self.shape, after=(self.levels,)))


class DiscretisedNormalHead(nn.Module):
    """A normal law per pixel, integrated over its level."""

    shape: tuple[int, ...]
    levels: int

    @nn.compact
    def __call__(self, h: Features) -> DiscretisedNormal:
        loc, raw_scale = _dense(h, self.shape, before=(2,))
        return DiscretisedNormal(loc, _scale(raw_scale, self.levels), self.levels)


class DiscretisedLogisticHead(nn.Module):
    """A logistic law per pixel, integrated over its level."""

    shape: tuple[int, ...]
    levels: int

    @nn.compact
    def __call__(self, h: Features) -> DiscretisedLogistic:
        loc, raw_scale = _dense(h, self.shape, before=(2,))
        return DiscretisedLogistic(loc, _scale(raw_scale, self.levels), self.levels)


class DiscretisedLogisticMixtureHead(nn.Module):
    """A mixture of logistic laws per pixel, integrated over its level (Salimans et al. 2017)."""

    shape: tuple[int, ...]
    levels: int
    components: int = 3

    @nn.compact
    def __call__(self, h: Features) -> DiscretisedLogisticMixture:
        logits, loc, raw_scale = _dense(h, self.shape, before=(3,), after=(self.components,))
        spread = jnp.linspace(-1.0, 1.0, self.components) if self.components > 1 else jnp.zeros(1)
        loc = loc + jnp.broadcast_to(spread, loc.shape)  # components start at different grey levels
        return DiscretisedLogisticMixture(logits, loc, _scale(raw_scale, self.levels), self.levels)


class ContinuousBernoulliHead(nn.Module):
    """A density on [0, 1] per pixel, with one parameter each (Loaiza-Ganem & Cunningham 2019)."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Features) -> ContinuousBernoulli:
        return ContinuousBernoulli(_dense(h, self.shape))


class FixedNormalHead(nn.Module):
    """A normal density per pixel whose scale is given: squared error in units of 2 scale²."""

    shape: tuple[int, ...]
    scale: int | float = 0.1

    @nn.compact
    def __call__(self, h: Features) -> Normal:
        return Normal(_dense(h, self.shape), jnp.asarray(self.scale, h.dtype))


class LearnedNormalHead(nn.Module):
    """A normal density per pixel whose scale is a parameter, the same for all images.

    scale_shape: `()` for one scale, the image's shape for one per pixel. floor: see `positive`.
    """

    shape: tuple[int, ...]
    floor: int | float
    scale_shape: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, h: Features) -> Normal:
        raw_scale = self.param("raw_scale", lambda key: jnp.full(self.scale_shape, START))
        return Normal(_dense(h, self.shape), positive(raw_scale, floor=self.floor))


class PredictedNormalHead(nn.Module):
    """A normal density per pixel whose scale the network predicts with the mean. floor: see `positive`."""

    shape: tuple[int, ...]
    floor: int | float

    @nn.compact
    def __call__(self, h: Features) -> Normal:
        loc, raw_scale = _dense(h, self.shape, before=(2,))
        return Normal(loc, positive(raw_scale + START, floor=self.floor))


class AutoregressiveHead(nn.Module):
    """Pixels that also look back, linearly, on the pixels before them; the code need not explain what a neighbour says.

    The weights are shared by all codes and start at zero, where this is the head `pixels`.
    """

    pixels: BernoulliHead | DiscretisedLogisticMixtureHead

    @nn.compact
    def __call__(self, h: Features) -> Autoregressive:
        size = math.prod(self.pixels.shape)
        return Autoregressive(self.pixels(h), self.param("weights", nn.initializers.zeros, (size, size)))


class Head(NamedTuple):
    """A kind of likelihood. reads: what its pixels are: bits, the integers 0 … levels-1, or these divided by levels-1.

    build: `(image shape, levels) -> head`.
    """

    reads: Literal["bits", "integers", "unit interval"]
    build: Callable[[tuple[int, ...], int], nn.Module]


HEADS: dict[str, Head] = {
    "bernoulli": Head("bits", lambda shape, levels: BernoulliHead(shape)),
    "categorical": Head("integers", CategoricalHead),
    "discretised_normal": Head("integers", DiscretisedNormalHead),
    "discretised_logistic": Head("integers", DiscretisedLogisticHead),
    "discretised_logistic_mixture": Head("integers", DiscretisedLogisticMixtureHead),
    "autoregressive_bernoulli": Head("bits", lambda shape, levels: AutoregressiveHead(BernoulliHead(shape))),
    "autoregressive_logistic_mixture": Head(
        "integers", lambda shape, levels: AutoregressiveHead(DiscretisedLogisticMixtureHead(shape, levels))
    ),
    "continuous_bernoulli": Head("unit interval", lambda shape, levels: ContinuousBernoulliHead(shape)),
    "normal_fixed": Head("unit interval", lambda shape, levels: FixedNormalHead(shape)),
    "normal_shared": Head("unit interval", lambda shape, levels: LearnedNormalHead(shape, rounding(levels))),
    "normal_per_pixel": Head("unit interval", lambda shape, levels: LearnedNormalHead(shape, rounding(levels), shape)),
    "normal_predicted": Head("unit interval", lambda shape, levels: PredictedNormalHead(shape, rounding(levels))),
}
"""Likelihood by name."""

START = -2.0
"""Of raw scales on [0, 1]: softplus makes about 0.13 of it."""


def rounding(levels: int) -> float:
    """Standard deviation of the rounding to one of so many levels of [0, 1]: no density should be narrower."""
    return 1 / (math.sqrt(12) * (levels - 1))


def positive(raw: Array, *, floor: int | float) -> Array:
    """A scale above the floor: without one, a free scale that shrinks around a pixel makes its density unbounded."""
    return jax.nn.softplus(raw) + floor


def _dense(h: Features, pixels: tuple[int, ...], before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Array:
    """Numbers for every pixel, `(*before, *pixels, *after)`."""
    if h.ndim == 3:
        return PixelParameters(pixels, before, after, name="parameters")(h)
    shape = (*before, *pixels, *after)
    return nn.Dense(math.prod(shape), name="parameters")(h).reshape(shape)


def _scale(raw: Array, levels: int) -> Array:
    """Positive scales on [-1, 1] with a floor far below one level, where all mass sits on one level anyway."""
    return jax.nn.softplus(raw) * 0.5 + 0.02 / levels
