"""The forward process, its posterior, and what a network may predict about it, for one datum at noise level γ.

    q(x_t | x_0) = N(α x_0, σ² I),   α² = sigmoid(-γ_t) = ᾱ_t,   σ² = sigmoid(γ_t) = 1 - ᾱ_t

A *denoiser* maps (x_t, γ_t) to an estimate of x_0. It is what samplers and bounds take: the exact posterior mean of a
known law, a trained network, a student's function. `from_epsilon`, `from_v` and `from_score` make one of a function
that predicts something else. All formulas hold for any γ_s < γ_t, and for γ_s = -∞, where x_s = x_0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import Normal
from vbjax.types import PRNGKey, Scalar

Denoiser = Callable[[Float[Array, "*d"], Scalar], Float[Array, "*d"]]
"""`(x_t, γ_t) -> x̂_0`."""

Reverse = Callable[[Float[Array, "*d"], Scalar, Scalar], Normal]
"""`(x_t, γ_s, γ_t) -> p(x_s | x_t)` for γ_s < γ_t, finite."""

Variance = Callable[[Float[Array, "*d"], Scalar, Scalar], Float[Array, "..."]]
"""`(x_t, γ_s, γ_t) ->` a variance of p(x_s | x_t), one for all coordinates or one for each."""


def signal(gamma: Scalar) -> Scalar:
    """α, what is left of the datum at this noise level."""
    return jnp.sqrt(jax.nn.sigmoid(-gamma))


def noise(gamma: Scalar) -> Scalar:
    """σ, the standard deviation of the noise at this noise level."""
    return jnp.sqrt(jax.nn.sigmoid(gamma))


def marginal(x0: Float[Array, "*d"], gamma: Scalar) -> Normal:
    """q(x_t | x_0) (Ho et al. 2020, eq. 4)."""
    return _normal(signal(gamma) * x0, noise(gamma) ** 2)


def transition(x_s: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar) -> Normal:
    """q(x_t | x_s), s < t: from one step of the chain to any number of them (Ho et al. 2020, eq. 2)."""
    return _normal(jnp.exp(_log_signal_ratio(gamma_s, gamma_t)) * x_s, forward_variance(x_s, gamma_s, gamma_t))


def posterior(x_t: Float[Array, "*d"], x0: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar) -> Normal:
    """q(x_s | x_t, x_0), s < t, for finite γ_s (Ho et al. 2020, eqs. 6, 7)."""
    return _normal(posterior_mean(x_t, x0, gamma_s, gamma_t), posterior_variance(x_t, gamma_s, gamma_t))


def posterior_mean(
    x_t: Float[Array, "*d"], x0: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar
) -> Float[Array, "*d"]:
    """Mean of q(x_s | x_t, x_0): x_0 itself at γ_s = -∞."""
    kept = jnp.exp(gamma_s - gamma_t - _log_signal_ratio(gamma_s, gamma_t))
    return kept * x_t + signal(gamma_s) * _lost(gamma_s, gamma_t) * x0


def posterior_variance(x_t: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar) -> Scalar:
    """β̃, the variance of q(x_s | x_t, x_0) and the best for data that are one point; 0 at γ_s = -∞."""
    return jax.nn.sigmoid(gamma_s) * _lost(gamma_s, gamma_t)


def forward_variance(x_t: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar) -> Scalar:
    """β, the variance of q(x_t | x_s), and the best reverse variance for data that are white noise of variance one."""
    return jax.nn.sigmoid(gamma_t) * _lost(gamma_s, gamma_t)


def optimal_variance(error: Callable[[Scalar], Float[Array, "..."]]) -> Variance:
    """The variance of q(x_s | x_t) on average, the best one given the mean; exact at γ_s = -∞ too.

    error: γ_t -> E (x_0 - x̂_0)² at that level, for each coordinate or their mean, with x̂_0 = E[x_0|x_t]: in closed
    form (`exact.gaussian_error`) or measured (`measured_error`). Source: Bao et al. (2022, theorem 1), in terms of x̂_0.
    """

    def variance(x_t, gamma_s, gamma_t):
        slope = signal(gamma_s) * _lost(gamma_s, gamma_t)
        return posterior_variance(x_t, gamma_s, gamma_t) + slope**2 * error(gamma_t)

    return variance


def squared_errors(
    key: PRNGKey, denoiser: Denoiser, x0: Float[Array, "*d"], gammas: Float[Array, " levels"]
) -> Float[Array, " levels"]:
    """The mean over coordinates of (x_0 - x̂_0)² for one datum at each level, one draw of x_t each."""

    def error(level):
        index, gamma = level
        x_t = marginal(x0, gamma).sample(jax.random.fold_in(key, index))
        return jnp.mean((x0 - denoiser(x_t, gamma)) ** 2)

    return jax.lax.map(error, (jnp.arange(gammas.shape[0]), gammas))


def measured_error(
    gammas: Float[Array, " levels"], errors: Float[Array, " levels"]
) -> Callable[[Scalar], Float[Array, ""]]:
    """What `optimal_variance` takes, of `squared_errors` averaged over data: linear in γ and log error in between."""
    return lambda gamma: jnp.exp(jnp.interp(gamma, gammas, jnp.log(errors)))


def interpolated_variance(fraction: Denoiser, *, smallest: int | float | Scalar = 1e-20) -> Variance:
    """β^v β̃^(1-v) with v = fraction(x_t, γ_t) in [0, 1], which a network may learn.

    smallest: what β̃ is not less than, so that log β̃ is finite at γ_s = -∞; Nichol & Dhariwal (2021, eq. 15) take β̃_2.
    """

    def variance(x_t, gamma_s, gamma_t):
        log_least = jnp.log(jnp.maximum(posterior_variance(x_t, gamma_s, gamma_t), smallest))
        log_most = jnp.log(forward_variance(x_t, gamma_s, gamma_t))
        v = fraction(x_t, gamma_t)
        return jnp.exp(v * log_most + (1 - v) * log_least)

    return variance


def reverse_kernel(denoiser: Denoiser, variance: Variance = posterior_variance) -> Reverse:
    """p(x_s | x_t): q(x_s | x_t, x̂_0) with x̂_0 of the denoiser, and a variance of one's choice."""

    def reverse(x_t, gamma_s, gamma_t):
        mean = posterior_mean(x_t, denoiser(x_t, gamma_t), gamma_s, gamma_t)
        return _normal(mean, variance(x_t, gamma_s, gamma_t))

    return reverse


def from_epsilon(predict: Denoiser) -> Denoiser:
    """A denoiser of a function that predicts the noise ε."""
    return lambda x_t, gamma: (x_t - noise(gamma) * predict(x_t, gamma)) / signal(gamma)


def from_v(predict: Denoiser) -> Denoiser:
    """A denoiser of a function that predicts v = α ε - σ x_0 (Salimans and Ho 2022, appendix D)."""
    return lambda x_t, gamma: signal(gamma) * x_t - noise(gamma) * predict(x_t, gamma)


def from_score(score: Denoiser) -> Denoiser:
    """A denoiser of the score ∇ log q(x_t): Tweedie's formula (Efron 2011)."""
    return lambda x_t, gamma: (x_t + noise(gamma) ** 2 * score(x_t, gamma)) / signal(gamma)


def epsilon(denoiser: Denoiser) -> Denoiser:
    """The noise that a denoiser implies, (x_t - α x̂_0) / σ."""
    return lambda x_t, gamma: (x_t - signal(gamma) * denoiser(x_t, gamma)) / noise(gamma)


def velocity(denoiser: Denoiser) -> Denoiser:
    """The v = α ε - σ x_0 that a denoiser implies, (α x_t - x̂_0) / σ."""
    return lambda x_t, gamma: (signal(gamma) * x_t - denoiser(x_t, gamma)) / noise(gamma)


def score(denoiser: Denoiser) -> Denoiser:
    """The score that a denoiser implies, (α x̂_0 - x_t) / σ²."""
    return lambda x_t, gamma: (signal(gamma) * denoiser(x_t, gamma) - x_t) / noise(gamma) ** 2


def _lost(gamma_s: Scalar, gamma_t: Scalar) -> Scalar:
    """1 - SNR_t / SNR_s, without cancellation."""
    return -jnp.expm1(gamma_s - gamma_t)


def _log_signal_ratio(gamma_s: Scalar, gamma_t: Scalar) -> Scalar:
    """log α_t / α_s, where α itself would vanish too."""
    return (jax.nn.log_sigmoid(-gamma_t) - jax.nn.log_sigmoid(-gamma_s)) / 2


def _normal(mean: Float[Array, "*d"], variance: Array) -> Normal:
    return Normal(mean, jnp.broadcast_to(jnp.sqrt(variance), mean.shape))
