"""Probabilities of integer pixels from a density on the reals: uniform noise, its bound, and the bound's gap.

A density p on the reals gives the integer x the mass P(x) = ∫ p(x + u) du over the cell u ∈ [-1/2, 1/2]^d, and so a
likelihood on the same footing as that of a discrete model. Fit the density to `dequantise`d data, then bound its mass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.types import LogDensity, PRNGKey, Scalar


class Dequantised(NamedTuple):
    """Estimates of lower bounds on log P(x) of one datum, in nats, from the same draws of the noise.

    bound: the mean of log p(x + u), unbiased for E log p(x + u) <= log P(x). importance_weighted: log of the mean of
    p(x + u), whose expectation lies between that bound and log P(x) and grows to log P(x) with the draws; variance: of
    this number over the draws.
    """

    bound: Scalar
    importance_weighted: Scalar
    variance: Scalar

    @property
    def closed(self) -> Array:
        """How much of the gap log P(x) - bound the draws have closed: at least zero, in nats."""
        return self.importance_weighted - self.bound


def dequantise(key: PRNGKey, x: Array) -> Float[Array, "*shape"]:
    """Integers of any shape with independent uniform noise on [-1/2, 1/2) added."""
    return x.astype(jnp.result_type(float)) + _noise(key, x.shape)


def dequantised_log_prob(key: PRNGKey, log_prob: LogDensity, x: Array, *, samples: int) -> Dequantised:
    """Lower bounds on the log-mass of the cell about one integer datum x, from a density on the reals.

    log_prob: the density's logarithm in nats, at a real event of x's shape. Raises ValueError for samples < 1.
    Source: Theis et al. (2016), section 3.1; Ho et al. (2019), section 4.1; Burda et al. (2016), theorem 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    points = x.astype(jnp.result_type(float))[None] + _noise(key, (samples, *x.shape))
    log_densities = jax.vmap(log_prob)(points)
    return Dequantised(bounds.mean(log_densities), bounds.iwae(log_densities), bounds.iwae_variance(log_densities))


def _noise(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)
