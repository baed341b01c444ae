"""The linear VAE, on which evidence, posterior, best encoder and every gap are known: probabilistic PCA.

z ~ N(0, I), x|z ~ N(W z + μ, σ² I). A full-covariance linear encoder is exact here, a diagonal one loses a gap that
does not depend on x, and a β-VAE keeps the directions whose variance exceeds β σ². Start at `LinearVAE`;
`maximum_likelihood` is what training should find.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import Distribution, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence
from vbjax.types import Scalar
from vbjax.vae import VAE


class LinearVAE(NamedTuple):
    """weights W: `(D, k)`; offset μ: `(D,)`; noise_variance: σ² > 0."""

    weights: Float[Array, "D k"]
    offset: Float[Array, " D"]
    noise_variance: Scalar

    @property
    def prior(self) -> Normal:
        """p(z) = N(0, I)."""
        zeros = jnp.zeros_like(self.weights[0])
        return Normal(zeros, zeros + 1)

    def decode(self, z: Float[Array, " k"]) -> Normal:
        """p(x|z) = N(W z + μ, σ² I)."""
        return Normal(self.weights @ z + self.offset, jnp.sqrt(self.noise_variance))

    def marginal(self) -> MultivariateNormal:
        """p(x) = N(μ, W Wᵀ + σ² I); its `log_prob` is the exact evidence."""
        noise = self.noise_variance * jnp.eye(self.offset.shape[0], dtype=self.offset.dtype)
        return MultivariateNormal.from_covariance(self.offset, self.weights @ self.weights.T + noise)

    def posterior_precision(self) -> Float[Array, "k k"]:
        """P = I + Wᵀ W / σ², the same for every x."""
        width = self.weights.shape[1]
        return jnp.eye(width, dtype=self.weights.dtype) + self.weights.T @ self.weights / self.noise_variance

    def posterior_mean(self, x: Float[Array, " D"]) -> Float[Array, " k"]:
        """E[z|x] = P⁻¹ Wᵀ (x - μ) / σ²."""
        return jnp.linalg.solve(self.posterior_precision(), self.weights.T @ (x - self.offset) / self.noise_variance)

    def posterior(self, x: Float[Array, " D"]) -> MultivariateNormal:
        """p(z|x), which a linear encoder with a full covariance can be."""
        return MultivariateNormal.from_covariance(self.posterior_mean(x), jnp.linalg.inv(self.posterior_precision()))

    def best_diagonal(self, x: Float[Array, " D"]) -> Normal:
        """The q(z) with independent coordinates that is nearest in KL(q‖p(z|x)): variances 1 / P_ii."""
        return Normal(self.posterior_mean(x), 1 / jnp.sqrt(jnp.diagonal(self.posterior_precision())))

    def diagonal_gap(self) -> Scalar:
        """log p(x) - ELBO of `best_diagonal`, in nats: (Σ log P_ii - log det P) / 2, whatever x."""
        precision = self.posterior_precision()
        return 0.5 * (jnp.log(jnp.diagonal(precision)).sum() - jnp.linalg.slogdet(precision)[1])

    def elbo(self, x: Float[Array, " D"], q: Distribution) -> Scalar:
        """The exact ELBO of x under a Gaussian q, in nats: log p(x) - KL(q‖p(z|x))."""
        return self.marginal().log_prob(x) - kl_divergence(q, self.posterior(x))

    def vae(self) -> VAE:
        """The model with its exact posterior as the encoder: every log-weight is log p(x)."""
        return VAE(self.prior, self.posterior, self.decode)


class Spectrum(NamedTuple):
    """What the optimal linear β-VAE does with each principal direction, all of shape `(D,)`.

    weight: length of the decoder's column. rate: mean KL(q(z_i|x)‖p(z_i)), in nats. distortion: mean squared error of
    the reconstruction from a draw of z.
    """

    weight: Float[Array, " D"]
    rate: Float[Array, " D"]
    distortion: Float[Array, " D"]

    @property
    def active_units(self) -> Array:
        """How many directions carry information."""
        return jnp.sum(self.rate > 0)


def spectrum(eigenvalues: Float[Array, " D"], noise_variance: float | Scalar, *, beta: int | float = 1) -> Spectrum:
    """The optimum of E log p(x|z) - β KL over linear decoders with this fixed σ² and linear encoders.

    eigenvalues λ: of the data's covariance. A direction is used iff λ > β σ²; it then has weight sqrt(λ - β σ²), rate
    log(λ / (β σ²)) / 2 and distortion β σ²: reverse water-filling, the rate-distortion function of the Gaussian.
    β = 1 is PPCA at this σ². Raises ValueError unless β > 0. Source: Lucas et al. (2019), section 4, with σ² → β σ².
    """
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    level = beta * noise_variance
    filled = jnp.minimum(level, eigenvalues)
    rate = 0.5 * jnp.log(jnp.maximum(eigenvalues / level, 1))
    return Spectrum(jnp.sqrt(eigenvalues - filled), rate, filled)


def maximum_likelihood(mean: Float[Array, " D"], covariance: Float[Array, "D D"], *, latent_dim: int) -> LinearVAE:
    """The PPCA solution: σ² is the mean of the eigenvalues left out, W = U (Λ - σ² I)^½ up to a rotation.

    covariance: of the data, with 1/N. WᵀW is diagonal, so that a diagonal encoder is exact too. Raises ValueError
    unless 1 <= latent_dim < D and σ² is positive beyond rounding: a covariance of rank latent_dim has none. Source:
    Tipping & Bishop (1999), eqs. 7 and 8.
    """
    dimension = mean.shape[0]
    if not 1 <= latent_dim < dimension:
        raise ValueError(f"latent_dim must be from 1 to {dimension - 1}, below the dimension of x, got {latent_dim}")
    values, vectors = jnp.linalg.eigh(covariance)
    left_out, values, vectors = values[:-latent_dim], values[-latent_dim:], vectors[:, -latent_dim:]
    noise_variance = left_out.mean()
    rounding = dimension * jnp.finfo(values.dtype).eps * values[-1]
    if not isinstance(noise_variance, jax.core.Tracer) and not noise_variance > rounding:
        raise ValueError(
            f"covariance leaves no noise beyond its first {latent_dim} directions (σ² = {noise_variance:.3g}); lower "
            "latent_dim, leave constant coordinates out of x, or add a small multiple of I"
        )
    # equal eigenvalues differ from their mean by rounding, either way
    return LinearVAE(vectors * jnp.sqrt(jnp.maximum(values - noise_variance, 0))[None], mean, noise_variance)


def mean_log_evidence(model: LinearVAE, mean: Float[Array, " D"], covariance: Float[Array, "D D"]) -> Scalar:
    """The mean of log p(x) over data with this mean and this covariance (1/N), in nats per example."""
    marginal = model.marginal()
    shift = mean - model.offset
    spread = jnp.linalg.solve(marginal.covariance(), covariance + jnp.outer(shift, shift))
    dimension = mean.shape[0]
    return -0.5 * (dimension * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(marginal.covariance())[1] + jnp.trace(spread))
