"""Linear-Gaussian latent variables: probabilistic PCA and factor analysis, x = loc + W z + ε with normal z and ε.

Both see the data only through their mean and covariance, so an EM step costs the same for any number of data.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Float

from vbjax.distributions import Distribution, MultivariateNormal, Normal
from vbjax.distributions.family import LOG_2PI, family, require_finite, require_positive
from vbjax.em.fitting import Family, Step, as_data, as_real
from vbjax.types import PRNGKey, Scalar

FLOOR = 1e-6
"""Smallest noise variance, in squared units of the data."""


@family
class FactorModel(Distribution):
    """N(loc, W Wᵀ + diag(noise)) with its latent z ~ N(0, I): p(x|z) = N(loc + W z, diag(noise)).

    loadings: W. noise: variances > 0, all equal for probabilistic PCA.
    """

    loc: Float[Array, " d"]
    loadings: Float[Array, "d latent"]
    noise: Float[Array, " d"]

    def __post_init__(self):
        for name in ("loc", "loadings", "noise"):
            object.__setattr__(self, name, jnp.asarray(getattr(self, name)))
        d = self.loc.shape[0]
        if self.loadings.ndim != 2 or self.loadings.shape[0] != d or self.noise.shape != (d,):
            raise ValueError(f"FactorModel: shapes must be (d,), (d, latent), (d,), got {self.loc.shape}, "
                             f"{self.loadings.shape}, {self.noise.shape}")  # fmt: skip
        require_finite(self, "loc", "loadings")
        require_positive(self, "noise")

    @property
    def prior(self) -> Normal:
        """p(z), the standard normal law."""
        zero = jnp.zeros(self.loadings.shape[1], self.dtype)
        return Normal(zero, jnp.ones_like(zero))

    def likelihood(self, z) -> Normal:
        """p(x|z) of one latent vector."""
        return Normal(self.loc + self.loadings @ z, jnp.sqrt(self.noise))

    def posterior(self, x) -> MultivariateNormal:
        """p(z|x) of one datum: N(P⁻¹ Wᵀ (x - loc) / noise, P⁻¹) with P = I + Wᵀ W / noise."""
        scaled = self.loadings / self.noise[:, None]
        precision = _posterior_precision(self)
        covariance = jnp.linalg.inv(precision)
        return MultivariateNormal(covariance @ (scaled.T @ (x - self.loc)), jnp.linalg.cholesky(covariance))

    def marginal(self) -> MultivariateNormal:
        """p(x) as a plain normal law."""
        return MultivariateNormal(self.loc, jnp.linalg.cholesky(_covariance(self)))

    def log_prob(self, x):
        return self.marginal().log_prob(x)

    def sample(self, key, shape=()):
        return self.marginal().sample(key, shape)

    def mean(self):
        return self.loc

    def variance(self):
        return jnp.sum(self.loadings**2, 1) + self.noise

    def entropy(self):
        return self.marginal().entropy()


class Moments(NamedTuple):
    """What the data say about a linear-Gaussian model: their mean and covariance, divided by n."""

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]


@functools.cache
def ppca(latent: int, *, floor: int | float = FLOOR) -> Family:
    """Probabilistic PCA by EM; `ppca_maximum` is where it goes. Raises ValueError for latent < 1 or floor <= 0.

    floor: smallest noise variance; the M-step maximises above it. Source: Tipping & Bishop (1999), section 3.3.
    """
    return _linear(latent, floor, lambda variance: jnp.broadcast_to(variance.mean(), variance.shape))


@functools.cache
def factor_analysis(latent: int, *, floor: int | float = FLOOR) -> Family:
    """Factor analysis by EM: a noise variance for each coordinate. Raises ValueError for latent < 1 or floor <= 0.

    floor: smallest noise variance; the M-step maximises above it. Source: Rubin & Thayer (1982), eq. 3-6.
    """
    return _linear(latent, floor, lambda variance: variance)


def ppca_maximum(data: ArrayLike, latent: int, *, floor: int | float = FLOOR) -> FactorModel:
    """The maximum-likelihood PPCA of data `(n, d)`: W = U (Λ - σ²)^½, σ² the mean of the eigenvalues left out.

    The covariance is divided by n (scikit-learn's PCA divides by n - 1). Raises ValueError for bad data, or unless
    1 <= latent < d. Source: Tipping & Bishop (1999), eq. 7-8.
    """
    points = as_real(as_data(data))
    _check(latent, floor)
    if latent >= points.shape[1]:
        raise ValueError(f"latent must be below the data's {points.shape[1]} dimensions, got {latent}")
    mean, covariance = _moments(points)
    values, vectors = jnp.linalg.eigh(covariance)  # ascending
    noise = jnp.maximum(values[:-latent].mean(), floor)
    loadings = vectors[:, -latent:] * jnp.sqrt(jnp.maximum(values[-latent:] - noise, 0))[None]
    return FactorModel(mean, loadings, jnp.full_like(mean, noise))


def _linear(latent: int, floor: int | float, pool: Callable[[Array], Array]) -> Family:
    _check(latent, floor)

    def start(key: PRNGKey, data):
        variance = jnp.maximum(data.var(0), floor)
        direction = jax.random.normal(key, (data.shape[1], latent), data.dtype)
        return FactorModel(data.mean(0), jnp.sqrt(variance / latent)[:, None] * direction, pool(variance))

    def step(model: FactorModel, moments: Moments) -> Step:
        log_likelihood = _log_likelihood(model, moments)
        # the mean is best for any W, so it goes first; then E[z|x] = β (x - mean), Cov[z|x] = P⁻¹ (the E-step)
        covariance = moments.covariance
        spread = jnp.linalg.inv(_posterior_precision(model))
        regression = spread @ (model.loadings / model.noise[:, None]).T
        cross = covariance @ regression.T
        second = spread + regression @ cross
        loadings = jnp.linalg.solve(second, cross.T).T
        noise = pool(jnp.diagonal(covariance) - jnp.sum(loadings * cross, 1))
        new = FactorModel(moments.mean, loadings, jnp.maximum(noise, floor))
        return Step(new, log_likelihood, jnp.zeros_like(log_likelihood))

    return Family(as_real, start, lambda data, batch_size: _moments(data), step)


def _log_likelihood(model: FactorModel, moments: Moments) -> Scalar:
    """Mean log-density of the data behind the moments, in nats."""
    shift = moments.mean - model.loc
    scatter = moments.covariance + shift[:, None] * shift[None]
    tril = jnp.linalg.cholesky(_covariance(model))
    log_determinant = 2 * jnp.log(jnp.diagonal(tril)).sum()
    return -0.5 * (model.loc.shape[0] * LOG_2PI + log_determinant + jnp.trace(cho_solve((tril, True), scatter)))


def _covariance(model: FactorModel) -> Float[Array, "d d"]:
    return model.loadings @ model.loadings.T + jnp.diag(model.noise)


def _posterior_precision(model: FactorModel) -> Float[Array, "latent latent"]:
    scaled = model.loadings / model.noise[:, None]
    return jnp.eye(scaled.shape[1], dtype=scaled.dtype) + scaled.T @ model.loadings


def _moments(data: Float[Array, "n d"]) -> Moments:
    mean = data.mean(0)
    centred = data - mean[None]
    return Moments(mean, centred.T @ centred / data.shape[0])


def _check(latent: int, floor: int | float) -> None:
    if latent < 1:
        raise ValueError(f"latent must be at least 1, got {latent}")
    if not 0 < floor < float("inf"):
        raise ValueError(f"floor must be positive and finite, got {floor}")
