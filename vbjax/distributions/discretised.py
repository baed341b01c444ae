"""Likelihoods of integer pixels: normal, logistic and mixtures of logistics, integrated over each grey level.

Level k of L is the point 2k/(L-1) - 1 of [-1, 1] with a bin of width 2/(L-1) around it; the first and the last bin
take the tails, so the levels' probabilities sum to one (Salimans et al. 2017, section 2.1). Nothing is clamped:
the interval's probability is computed without cancellation, however far in the tail.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, logsumexp
from jaxtyping import Array, Float

from vbjax.distributions.discrete import expected_log
from vbjax.distributions.family import (
    LOG_2PI,
    Distribution,
    Integers,
    as_parameters,
    check_node_count,
    family,
    require,
    require_finite,
    require_positive,
    static_field,
)


class _Discretised(Distribution):
    """Integers 0 … levels-1 per coordinate, through `level_log_prob`."""

    levels: int
    discrete = True

    @property
    def enumerable(self):
        return True

    @property
    def support(self):
        return Integers(0, self.levels - 1)

    def level_log_prob(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Log-probability of each coordinate's level, in nats, unreduced."""
        raise NotImplementedError

    def log_probs(self) -> Float[Array, "*event levels"]:
        """Log-probabilities of all levels of every coordinate, in nats."""
        level = jnp.arange(self.levels, dtype=self.dtype)
        return jax.vmap(lambda k: self.level_log_prob(jnp.full(self.event_shape, k)), out_axes=-1)(level)

    def log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        inside = self.support.contains(x)
        return jnp.where(inside, self.level_log_prob(jnp.where(inside, x, 0)).sum(), -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.categorical(key, self.log_probs(), shape=shape + self.event_shape).astype(self.dtype)

    def mean(self):
        return jnp.exp(self.log_probs()) @ jnp.arange(self.levels, dtype=self.dtype)

    def variance(self):
        level = jnp.arange(self.levels, dtype=self.dtype)
        deviation = jnp.expand_dims(level, tuple(range(len(self.event_shape)))) - self.mean()[..., None]
        return jnp.sum(jnp.exp(self.log_probs()) * deviation**2, axis=-1)

    def entropy(self):
        log_probs = self.log_probs()
        return -expected_log(jnp.exp(log_probs), log_probs).sum()

    def enumerate(self):
        size = math.prod(self.event_shape)
        check_node_count(self.levels**size)
        grid = np.indices((self.levels,) * size).reshape(size, -1).T
        return jnp.asarray(grid.reshape(-1, *self.event_shape), self.dtype)

    def _edges(self, x):
        """Position of the level, half the bin, and whether it is the first or the last bin."""
        half = 1 / (self.levels - 1)
        return 2 * half * x - 1, half, x == 0, x == self.levels - 1


def _check_levels(dist) -> None:
    if dist.levels < 2:
        raise ValueError(f"{type(dist).__name__}.levels must be at least 2, got {dist.levels}")


@family
class DiscretisedNormal(_Discretised):
    """Normal law on [-1, 1], integrated over each of `levels` bins; events are the integers 0 … levels-1.

    loc, scale: per coordinate, in units of the interval [-1, 1].
    """

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    levels: int = static_field()

    def __post_init__(self):
        as_parameters(self, "loc", "scale")
        require_finite(self, "loc")
        require_positive(self, "scale")
        _check_levels(self)

    def level_log_prob(self, x):
        point, half, first, last = self._edges(x)
        centre, radius = (point - self.loc) / self.scale, half / self.scale
        inner = log_normal_interval(centre, radius)
        return jnp.where(
            first, log_normal_tail(centre + radius), jnp.where(last, log_normal_tail(radius - centre), inner)
        )


@family
class DiscretisedLogistic(_Discretised):
    """Logistic law on [-1, 1], integrated over each of `levels` bins; events are the integers 0 … levels-1.

    loc, scale: per coordinate, in units of the interval [-1, 1].
    """

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    levels: int = static_field()

    def __post_init__(self):
        as_parameters(self, "loc", "scale")
        require_finite(self, "loc")
        require_positive(self, "scale")
        _check_levels(self)

    def level_log_prob(self, x):
        point, half, first, last = self._edges(x)
        return _logistic_level(point, half, first, last, self.loc, self.scale)


@family
class DiscretisedLogisticMixture(_Discretised):
    """Per coordinate, a mixture of k logistic laws integrated over each of `levels` bins.

    logits, loc, scale: `(*event, k)`; the event has the leading shape, its coordinates are independent.
    """

    logits: Float[Array, "*event k"]
    loc: Float[Array, "*event k"]
    scale: Float[Array, "*event k"]
    levels: int = static_field()

    def __post_init__(self):
        as_parameters(self, "logits", "loc", "scale")
        if self.logits.ndim < 1:
            raise ValueError("DiscretisedLogisticMixture.logits must have a last axis of length k, got a scalar")
        require(self, "logits", lambda v: (v < np.inf) & (v.max(-1, keepdims=True) > -np.inf), "below +inf")
        require_finite(self, "loc")
        require_positive(self, "scale")
        _check_levels(self)

    @property
    def event_shape(self):
        return self.logits.shape[:-1]

    def level_log_prob(self, x):
        point, half, first, last = (
            v if isinstance(v, float) else jnp.broadcast_to(v[..., None], self.loc.shape) for v in self._edges(x)
        )
        components = _logistic_level(point, half, first, last, self.loc, self.scale)
        return logsumexp(jax.nn.log_softmax(self.logits) + components, axis=-1)


def _logistic_level(point, half, first, last, loc, scale):
    """log P(level) under a logistic law: σ(b) - σ(a) = σ(b) σ(-a) (1 - e^(a-b)), each factor stable."""
    upper, lower = (point + half - loc) / scale, (point - half - loc) / scale
    log_below = -jax.nn.softplus(-upper)
    log_above = -jax.nn.softplus(lower)
    inner = log_below + log_above + log1mexp(2 * half / scale)
    return jnp.where(first, log_below, jnp.where(last, log_above, inner))


def log1mexp(x: Array) -> Array:
    """log(1 - e^(-x)) for x > 0 without cancellation; -inf at 0 (Mächler 2012)."""
    small = x < math.log(2)
    return jnp.where(small, jnp.log(-jnp.expm1(-jnp.where(small, x, 1))), jnp.log1p(-jnp.exp(-jnp.where(small, 1, x))))


def log_normal_interval(centre: Array, radius: Array) -> Array:
    """log P(|ξ - centre| < radius) for a standard normal ξ, to rounding error, in nats.

    Wide intervals: a difference of log Φ on the left tail, by symmetry, without the squares that its terms share.
    Narrow ones, where that difference cancels: φ(centre) times an eight-point Gauss-Legendre rule of
    e^(-centre u - u²/2), whose exponent is small.
    """
    centre = -jnp.abs(centre)
    narrow = radius * (1 + jnp.abs(centre)) < 0.5
    wide_radius = jnp.where(narrow, 1, radius)
    upper, lower = centre + wide_radius, centre - wide_radius
    squares = jnp.where(upper < 0, -2 * centre * wide_radius, 0.5 * lower**2)
    gap = squares + _scaled_log_ndtr(upper) - _scaled_log_ndtr(lower)
    wide = log_normal_tail(upper) + log1mexp(gap)
    r, c = jnp.where(narrow, radius, 0.25), jnp.where(narrow, centre, 0)
    rule = zip(*(v.tolist() for v in np.polynomial.legendre.leggauss(8)), strict=True)
    integral = sum(w * jnp.exp(-c * r * u - 0.5 * (r * u) ** 2) for u, w in rule)
    return jnp.where(narrow, -0.5 * (c**2 + LOG_2PI) + jnp.log(r) + jnp.log(integral), wide)


def log_normal_tail(x: Array) -> Array:
    """log Φ(x) with a gradient that is right however far in the left tail.

    That of `jax.scipy.special.log_ndtr` is the exponential of a difference of numbers near x²/2: in float32 it is
    off by 0.4% at x = -500, and by any factor at -10⁴.
    """
    return _scaled_log_ndtr(x) - 0.5 * jnp.minimum(x, 0) ** 2


def _scaled_log_ndtr(x: Array) -> Array:
    """log Φ(x) + min(x, 0)²/2; in the tail by Laplace's continued fraction, Φ(-y) = φ(y) / (y + 1/(y + 2/(y + …)))."""
    far = x < -10
    y, near = jnp.where(far, -x, 10), jnp.where(far, 0, x)
    fraction = y
    for k in range(8, 0, -1):
        fraction = y + k / fraction
    left = near < 0
    # each branch sees its own arguments only: an underflowed tail inside the dead logarithm has a gradient of NaN
    below = jnp.log(0.5 * erfc(jnp.where(left, -near, 0) / 2**0.5)) + 0.5 * near**2
    log_near = jnp.where(left, below, jnp.log1p(-0.5 * erfc(jnp.where(left, 0, near) / 2**0.5)))
    return jnp.where(far, -0.5 * LOG_2PI - jnp.log(fraction), log_near)
