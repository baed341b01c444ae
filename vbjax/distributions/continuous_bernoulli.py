"""The continuous Bernoulli law of a grey value in [0, 1]: Bernoulli's exponential family, with its normaliser.

Everything is the function log(sinh t / t) at t = logit / 2 and its derivatives; read `log_sinhc` first.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vbjax.distributions.family import Distribution, Interval, as_parameters, family, require_finite, vmap_over


@family
class ContinuousBernoulli(Distribution):
    """Density ∝ p^x (1 - p)^(1-x) on [0, 1], independent coordinates; logits: log p/(1-p), any finite numbers.

    The normaliser is what a cross-entropy of grey values leaves out. p is not the mean. Source: Loaiza-Ganem &
    Cunningham (2019), eq. 6 to 9.
    """

    logits: Float[Array, "*event"]
    support = Interval(0.0, 1.0)

    def __post_init__(self):
        as_parameters(self, "logits")
        require_finite(self, "logits")

    def log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        inside = self.support.contains(x)
        log_density = jnp.sum(self.logits * (x - 0.5) - self.log_normaliser())
        return jnp.where(inside, log_density, -jnp.inf)

    def log_normaliser(self) -> Float[Array, "*event"]:
        """log ∫ exp(logit (x - 1/2)) dx per coordinate, even in the logit."""
        return log_sinhc(0.5 * self.logits)

    def mean(self):
        return 0.5 + 0.5 * _slope(0.5 * self.logits)

    def variance(self):
        t = 0.5 * self.logits
        return 0.25 * jax.jvp(_slope, (t,), (jnp.ones_like(t),))[1]

    def entropy(self):
        return jnp.sum(self.log_normaliser() - self.logits * (self.mean() - 0.5))

    def cdf(self, x):
        # of the side on which the density rises towards 1/2, where nothing overflows
        x = jnp.clip(x, 0, 1)
        falls, size = self.logits <= 0, self._size()
        below = jnp.expm1(-size * jnp.where(falls, x, 1 - x)) / jnp.expm1(-size)
        return jnp.where(falls, below, 1 - below)

    def quantile(self, u):
        falls, size = self.logits <= 0, self._size()
        distance = -jnp.log1p(jnp.where(falls, u, 1 - u) * jnp.expm1(-size)) / size
        distance = jnp.minimum(distance, 1)  # expm1 rounds to -1
        return jnp.where(falls, distance, 1 - distance)

    def sample(self, key, shape=()):
        return vmap_over(shape, self.quantile)(jax.random.uniform(key, shape + self.logits.shape, self.dtype))

    def _size(self):
        """|logit|, kept from zero, where the law is uniform and the ratios below are 0/0."""
        return jnp.maximum(jnp.abs(self.logits), jnp.finfo(self.dtype).eps)


def log_sinhc(t: Float[Array, "*event"]) -> Float[Array, "*event"]:
    """log(sinh t / t), even, with derivatives of all orders that keep their digits at 0 and at ±∞.

    Near 0 by Σ_n (-1)^(n+1) ζ(2n) t^(2n) / (n π^(2n)), from Euler's product for the sine.
    """
    near = jnp.abs(t) < 1
    square = jnp.where(near, t, 0) ** 2
    series = jnp.zeros_like(square)
    for coefficient in reversed(_series()):
        series = (series + coefficient) * square
    size = jnp.abs(jnp.where(near, 1, t))
    return jnp.where(near, series, size - jnp.log(2 * size) + jnp.log1p(-jnp.exp(-2 * size)))


@functools.cache
def _series() -> list[float]:
    from scipy.special import zeta  # where it is needed: most programs have no such law

    n = np.arange(1, 18)
    return (-((-1.0) ** n) * zeta(2.0 * n) / (n * np.pi ** (2.0 * n))).tolist()


def _slope(t: Float[Array, "*event"]) -> Float[Array, "*event"]:
    """coth t - 1/t, Langevin's function."""
    return jax.grad(lambda t: log_sinhc(t).sum())(t)
