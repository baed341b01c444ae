"""Exact answers for diffusion models: the best denoiser of a known law, and every gap of the bound on Gaussian data.

The best denoiser is the conditional mean E[x_0 | x_t] (Tweedie's formula gives the same of the score). For data of a
normal law it is affine, each step of the model is Gaussian, and the chain

    entropy ≤ mean of -log p(x_0) ≤ mean of the bound

splits into terms that `gaussian_gaps` names. Start at `gaussian_denoiser`, then `mixture_denoiser`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.diffusion.process import (
    Denoiser,
    Variance,
    forward_variance,
    noise,
    optimal_variance,
    posterior_mean,
    posterior_variance,
    signal,
)
from vbjax.diffusion.schedules import Schedule
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence
from vbjax.types import Scalar


def gaussian_denoiser(mean: Float[Array, "*d"], variance: Float[Array, "..."]) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ N(mean, variance).

    variance: for each coordinate, or one for all; or, where mean is a vector, the covariance `(d, d)`, singular or not.
    Raises ValueError for any other shape.
    """
    if mean.ndim == 1 and variance.shape == mean.shape * 2:
        values, vectors = jnp.linalg.eigh(variance)
        # rounding may put the zeros of a singular covariance below zero
        values = jnp.maximum(values, 0)
        return lambda x_t, gamma: mean + vectors @ (_gain(values, gamma) * (vectors.T @ (x_t - signal(gamma) * mean)))
    if variance.shape not in ((), mean.shape):
        raise ValueError(
            f"variance must be a scalar, of the mean's shape {mean.shape} or a covariance, got {variance.shape}"
        )
    return lambda x_t, gamma: mean + _gain(variance, gamma) * (x_t - signal(gamma) * mean)


def gaussian_error(variance: Float[Array, "..."]) -> Callable[[Scalar], Float[Array, "..."]]:
    """γ_t -> Var(x_0 | x_t) of normal data, for each coordinate: what `optimal_variance` takes."""
    return lambda gamma: variance * noise(gamma) ** 2 / _diffused(variance, gamma)


def mixture_denoiser(weights: Float[Array, " k"], means: Float[Array, "k *d"], scales: Float[Array, "..."]) -> Denoiser:
    """E[x_0 | x_t] for x_0 of a mixture of normal laws with independent coordinates.

    weights: probabilities. scales: standard deviations, `(k, *d)`, `(k,)` or one for all; zero is allowed. Any γ from
    -30 to 30 gives finite numbers in float32. Raises ValueError for weights that are no law and for other shapes.
    """
    if scales.shape not in ((), weights.shape, means.shape):
        raise ValueError(f"scales must be a scalar or of shape {weights.shape} or {means.shape}, got {scales.shape}")
    if not isinstance(weights, jax.core.Tracer) and not (bool((weights >= 0).all()) and abs(weights.sum() - 1) < 1e-4):
        raise ValueError(f"weights must be non-negative and sum to one, got {weights}")
    if scales.ndim == 1:
        scales = scales.reshape(-1, *[1] * (means.ndim - 1))
    variances, log_weights = jnp.broadcast_to(scales**2, means.shape), jnp.log(weights)

    def denoiser(x_t, gamma):
        residuals = x_t[None] - signal(gamma) * means
        spread = _diffused(variances, gamma)
        log_densities = -0.5 * (residuals**2 / spread + jnp.log(spread)).reshape(len(weights), -1).sum(1)
        parts = means + _gain(variances, gamma) * residuals
        return jnp.tensordot(jax.nn.softmax(log_weights + log_densities), parts, 1)

    return denoiser


def empirical_denoiser(data: Float[Array, "n *d"]) -> Denoiser:
    """E[x_0 | x_t] for x_0 drawn from a finite data set: what training on it converges to, were it never stopped."""
    count = data.shape[0]
    return mixture_denoiser(jnp.full(count, 1 / count, data.dtype), data, jnp.zeros((), data.dtype))


class GaussianGaps(NamedTuple):
    """Entropy ≤ NLL ≤ bound for normal data, split; in nats, averages over the data, summed over coordinates.

    entropy: of the data. marginal: KL(q(x_0) || p(x_0)), by which the model's NLL exceeds it. prior, reverse `(T-1,)`
    and reconstruction make the bound exceed it: KL(q(x_T) || N(0, I)); for t = 2 … T the KL of q(x_{t-1}|x_t) from
    p, which differs in variance alone; and that of q(x_0|x_1).
    """

    entropy: Scalar
    marginal: Scalar
    prior: Scalar
    reverse: Float[Array, " T-1"]
    reconstruction: Scalar

    def nll(self) -> Scalar:
        """The mean of -log p(x_0)."""
        return self.entropy + self.marginal

    def bound(self) -> Scalar:
        """The mean of the bound on it."""
        return self.entropy + self.prior + self.reverse.sum() + self.reconstruction


def gaussian_gaps(
    mean: Float[Array, "*d"],
    variance: Float[Array, "*d"],
    schedule: Schedule,
    *,
    reverse_variance: Variance = posterior_variance,
    decoder_variance: Variance = forward_variance,
) -> GaussianGaps:
    """What the model with the exact denoiser and these variances loses on x_0 ~ N(mean, variance), in closed form.

    The model: `reverse_kernel(denoiser, reverse_variance)` and `normal_decoder(denoiser, decoder_variance)`; the
    variances may depend on the level, not on x_t. With `optimal_variance(gaussian_error(variance))` for both, the
    prior is the only gap. A covariance: in the basis of its eigenvectors.
    """
    before, gamma = schedule.at(jnp.arange(schedule.steps)), schedule.gamma
    exact = optimal_variance(gaussian_error(variance))
    best = jax.vmap(lambda s, t: exact(mean, s, t))(before, gamma)
    used = jax.vmap(lambda s, t: jnp.broadcast_to(reverse_variance(mean, s, t), mean.shape))(before[1:], gamma[1:])
    decoded = jnp.broadcast_to(decoder_variance(mean, before[0], gamma[0]), mean.shape)
    used = jnp.concatenate([decoded[None], used])
    excess = (best - used) / used
    gaps = 0.5 * (excess - jnp.log1p(excess)).reshape(schedule.steps, -1).sum(1)

    data, standard = Normal(mean, jnp.sqrt(variance)), Normal(jnp.zeros_like(mean), jnp.ones_like(mean))
    last = Normal(signal(gamma[-1]) * mean, jnp.sqrt(_diffused(variance, gamma[-1])))
    return GaussianGaps(
        entropy=data.entropy(),
        marginal=kl_divergence(data, _model_marginal(mean, variance, before, gamma, used)),
        prior=kl_divergence(last, standard),
        reverse=gaps[1:],
        reconstruction=gaps[0],
    )


def _model_marginal(mean, variance, before, gamma, used) -> Normal:
    """p(x_0), from N(0, I) down the affine chain."""
    denoiser = gaussian_denoiser(mean, variance)

    def step(law, level):
        centre, spread = law
        gamma_s, gamma_t, added = level
        slope = posterior_mean(jnp.ones_like(mean), _gain(variance, gamma_t), gamma_s, gamma_t)
        return (posterior_mean(centre, denoiser(centre, gamma_t), gamma_s, gamma_t), slope**2 * spread + added), None

    start = (jnp.zeros_like(mean), jnp.ones_like(mean))
    (centre, spread), _ = jax.lax.scan(step, start, (before, gamma, used), reverse=True)
    return Normal(centre, jnp.sqrt(spread))


def _diffused(variance: Array, gamma: Scalar) -> Array:
    """The variance of x_t for data of this variance."""
    return signal(gamma) ** 2 * variance + noise(gamma) ** 2


def _gain(variance: Array, gamma: Scalar) -> Array:
    """By how much E[x_0 | x_t] grows with x_t."""
    return signal(gamma) * variance / _diffused(variance, gamma)
