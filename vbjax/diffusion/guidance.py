"""Guidance: denoisers of conditional laws, made of others; each is a denoiser again, for any sampler.

x̂_0 is (x_t + σ² score) / α, so what adds up for scores adds up for denoisers, and a gradient of log p(y|x_t) enters
with the weight σ²/α. Start at `guided`; `evidence_guided` with the exact log p(y|x_t) is exact conditioning.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.diffusion.process import Denoiser, epsilon, noise, signal
from vbjax.distributions import MultivariateNormal
from vbjax.types import PRNGKey, Scalar

Evidence = Callable[[Float[Array, "*d"], Scalar], Scalar]
"""`(x_t, γ_t) -> log p(y|x_t)` for one y, in nats, up to a constant in x_t."""


def guided(conditional: Denoiser, unconditional: Denoiser, w: int | float | Scalar) -> Denoiser:
    """Classifier-free guidance: the denoiser of the score of p_c^(1+w) p_u^(-w) at each noise level.

    w = 0 is the conditional one, w = -1 the unconditional. What is tilted is the law of x_t: the tilted laws of the
    levels are not one law, diffused. Source: Ho and Salimans (2022), eq. 6.
    """

    def denoiser(x_t, gamma):
        given = conditional(x_t, gamma)
        return given + w * (given - unconditional(x_t, gamma))

    return denoiser


def evidence_guided(denoiser: Denoiser, evidence: Evidence, scale: int | float | Scalar = 1) -> Denoiser:
    """The denoiser of the score of p(x_t) p(y|x_t)^scale: at scale 1 and with exact parts, E[x_0|x_t, y].

    evidence: a classifier of noisy data, its log-probability of the class wanted, or `gaussian_evidence`.
    Source: Dhariwal and Nichol (2021), algorithm 1; Song et al. (2021), eq. 14.
    """

    def guided_denoiser(x_t, gamma):
        slope = jax.grad(evidence)(x_t, gamma)
        return denoiser(x_t, gamma) + scale * noise(gamma) ** 2 / signal(gamma) * slope

    return guided_denoiser


def gaussian_evidence(
    denoiser: Denoiser, observe: Callable[[Float[Array, "*d"]], Float[Array, " m"]], y: Float[Array, " m"]
) -> Evidence:
    """log p(y|x_t) for y = observe(x_0), observe linear, as if p(x_0|x_t) were Gaussian; exact for Gaussian data.

    Its mean is the denoiser, its covariance σ²/α times the denoiser's Jacobian (Tweedie's formula, second order), so
    with an exact denoiser both moments are right for any data. The Jacobian costs m reverse passes.
    Source: Boys et al. (2024), "Tweedie Moment Projected Diffusions".
    """

    def evidence(x_t, gamma):
        mean, pullback = jax.vjp(lambda x_t: observe(denoiser(x_t, gamma)), x_t)
        rows = jax.vmap(lambda e: observe(pullback(e)[0]))(jnp.eye(y.shape[0], dtype=y.dtype))
        covariance = noise(gamma) ** 2 / signal(gamma) * (rows + rows.T) / 2
        return MultivariateNormal.from_covariance(mean, covariance).log_prob(y)

    return evidence


def score_distillation(key: PRNGKey, denoiser: Denoiser, x0: Float[Array, "*d"], gamma: Scalar) -> Float[Array, "*d"]:
    """ε̂(x_t) - ε at one draw of x_t ~ q(x_t|x_0): α/σ times its mean is the gradient in x_0 of KL(q(x_t|x_0) || p_t).

    Descent along it seeks a mode of p_t, not a draw. Source: Poole et al. (2023), "DreamFusion", eqs. 3, 4.
    """
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    x_t = signal(gamma) * x0 + noise(gamma) * eps
    return epsilon(denoiser)(x_t, gamma) - eps
