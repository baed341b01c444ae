"""What denoisers are trained on: weighted squared errors, and the hybrid loss that also trains the variance.

Every prediction is a way to write x̂_0, so every loss of the literature is w(γ) ‖x_0 - x̂_0‖² with another w:

    ‖ε - ε̂‖² = e^{-γ} ‖x_0 - x̂_0‖²,    ‖v - v̂‖² = (1 + e^{-γ}) ‖x_0 - x̂_0‖²

One datum at one noise level; draw the level outside (`times`). Start at `denoising_loss`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.diffusion.bound import DiffusionModel, bound_term, variance_only
from vbjax.diffusion.process import Denoiser, marginal
from vbjax.diffusion.schedules import Schedule
from vbjax.types import PRNGKey, Scalar

Weight = Callable[[Scalar], Scalar]
"""w(γ), what the squared error of x̂_0 is multiplied by."""


def epsilon_weight(gamma: Scalar) -> Scalar:
    """The squared error of ε̂: L_simple (Ho et al. 2020, eq. 14)."""
    return jnp.exp(-gamma)


def x0_weight(gamma: Scalar) -> Scalar:
    """The squared error of x̂_0 itself."""
    return jnp.ones_like(gamma)


def v_weight(gamma: Scalar) -> Scalar:
    """The squared error of v̂: SNR + 1 (Salimans & Ho 2022, section 4)."""
    return 1 + jnp.exp(-gamma)


def min_snr_weight(limit: int | float = 5.0) -> Weight:
    """The signal-to-noise ratio, but no more than `limit`; ValueError unless it is positive (Hang et al. 2023)."""
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    return lambda gamma: jnp.minimum(jnp.exp(-gamma), limit)


def denoising_loss(
    key: PRNGKey, denoiser: Denoiser, x0: Float[Array, "*d"], gamma: Scalar, *, weight: Weight = epsilon_weight
) -> Scalar:
    """w(γ) ‖x_0 - x̂_0(x_t, γ)‖² at one draw of x_t, summed over coordinates: by default L_simple at this time."""
    return _squared_error(denoiser, x0, marginal(x0, gamma).sample(key), gamma, weight)


def hybrid_loss(
    key: PRNGKey,
    denoiser: Denoiser,
    model: DiffusionModel,
    schedule: Schedule,
    x: Array,
    t: Int[Array, ""],
    *,
    bound_weight: int | float = 1e-3,
) -> Scalar:
    """L_simple + bound_weight · T · L_{t-1} at one draw of x_t, t uniform on 1 … T: it trains mean and variance.

    denoiser: the one in the means of `model`, which take gradients from L_simple alone. Both see the same x_t, so that
    compiled code calls the network once. Source: Nichol & Dhariwal (2021, eq. 16, where bound_weight is λ).
    """
    x0, gamma = model.embed(x), schedule.at(t)
    x_t = marginal(x0, gamma).sample(key)
    simple = _squared_error(denoiser, x0, x_t, gamma, epsilon_weight)
    return simple + bound_weight * schedule.steps * bound_term(variance_only(model), schedule, x, x_t, t)


def _squared_error(denoiser, x0, x_t, gamma, weight) -> Scalar:
    # the root of the weight first: neither it nor the error alone need fit the range of a float
    return jnp.sum((jnp.sqrt(weight(gamma)) * (x0 - denoiser(x_t, gamma))) ** 2)
