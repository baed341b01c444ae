"""Likelihood heads: features -> the law of an image. Each names the scale that its pixels live on.

Bernoulli heads read pixels in {0, 1}; the discretised and categorical ones read integer levels 0 … levels-1, so
their likelihoods are comparable in bits per dimension on the same integers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.distributions import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    DiscretisedNormal,
)

Features = Float[Array, " h"]


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
        return Categorical(_dense(h, (*self.shape, self.levels)))


class DiscretisedNormalHead(nn.Module):
    """A normal law per pixel, integrated over its level."""

    shape: tuple[int, ...]
    levels: int

    @nn.compact
    def __call__(self, h: Features) -> DiscretisedNormal:
        loc, raw_scale = _dense(h, (2, *self.shape))
        return DiscretisedNormal(loc, _scale(raw_scale, self.levels), self.levels)


class DiscretisedLogisticHead(nn.Module):
    """A logistic law per pixel, integrated over its level."""

    shape: tuple[int, ...]
    levels: int

    @nn.compact
    def __call__(self, h: Features) -> DiscretisedLogistic:
        loc, raw_scale = _dense(h, (2, *self.shape))
        return DiscretisedLogistic(loc, _scale(raw_scale, self.levels), self.levels)


class DiscretisedLogisticMixtureHead(nn.Module):
    """A mixture of logistic laws per pixel, integrated over its level (Salimans et al. 2017)."""

    shape: tuple[int, ...]
    levels: int
    components: int = 3

    @nn.compact
    def __call__(self, h: Features) -> DiscretisedLogisticMixture:
        logits, loc, raw_scale = _dense(h, (3, *self.shape, self.components))
        spread = jnp.linspace(-1.0, 1.0, self.components) if self.components > 1 else jnp.zeros(1)
        loc = loc + jnp.broadcast_to(spread, loc.shape)  # components start at different grey levels
        return DiscretisedLogisticMixture(logits, loc, _scale(raw_scale, self.levels), self.levels)


HEADS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "bernoulli": lambda shape, levels: BernoulliHead(shape),
    "categorical": CategoricalHead,
    "discretised_normal": DiscretisedNormalHead,
    "discretised_logistic": DiscretisedLogisticHead,
    "discretised_logistic_mixture": DiscretisedLogisticMixtureHead,
}
"""Likelihood by name: `(image shape, grey levels) -> head`."""


def _dense(h: Features, shape: tuple[int, ...]) -> Array:
    return nn.Dense(math.prod(shape), name="parameters")(h).reshape(shape)


def _scale(raw: Array, levels: int) -> Array:
    """Positive scales on [-1, 1] with a floor far below one level, where all mass sits on one level anyway."""
    return jax.nn.softplus(raw) * 0.5 + 0.02 / levels
