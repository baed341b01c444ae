"""The bound of a diffusion in continuous time, where the number of steps is infinite, for one datum and in nats.

    -log p(x) ≤ KL(q(x_1|x_0) || N(0, I)) + ½ ∫_0^1 γ'(t) E‖ε - ε̂(x_t, γ(t))‖² dt + E -log p(x|x at γ(0))

As an integral over γ the middle term knows the schedule by its ends only; the rest of γ(t) sets the variance of its
estimate. It is the limit of `bound.diffusion_bound` on `fine_chain`, from above at the rate 1/T for the best denoiser.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.diffusion.bound import DiffusionBound, prior_kl
from vbjax.diffusion.decoders import Decoder
from vbjax.diffusion.losses import denoising_loss
from vbjax.diffusion.process import Denoiser, marginal
from vbjax.diffusion.schedules import Gamma, Schedule
from vbjax.types import PRNGKey, Scalar


class ContinuousModel(NamedTuple):
    """embed: x, as stored, -> x_0, of order one. denoiser. decode: at the lowest level, (x_t, γ(0)) -> p(x|x_t)."""

    embed: Callable[[Array], Float[Array, "*d"]]
    denoiser: Denoiser
    decode: Decoder


def continuous_bound(key: PRNGKey, model: ContinuousModel, gamma: Gamma, x: Array, t: Scalar) -> DiffusionBound:
    """The bound without bias from one time t, uniform on [0, 1]: one call of the denoiser.

    For a batch take `times.stratified_uniforms`. γ(0) and γ(1) must be finite. `diffusion` is a scalar, the estimate of
    the integral. Source: Kingma et al. (2021, section 5).
    """
    key_diffusion, key_decode = jax.random.split(key)
    x0 = model.embed(x)
    start, end = gamma(jnp.zeros_like(t)), gamma(jnp.ones_like(t))
    gamma_t, speed = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
    noise_error = denoising_loss(key_diffusion, model.denoiser, x0, gamma_t)
    decoder = model.decode(marginal(x0, start).sample(key_decode), start)
    return DiffusionBound(prior_kl(x0, end), speed * noise_error / 2, -decoder.log_prob(x))


def fine_chain(gamma: Gamma, steps: int) -> Schedule:
    """γ(0), γ(1/T), …, γ(1): a chain of T + 1 times with the ends of the continuous one; ValueError unless T >= 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return Schedule(jax.vmap(gamma)(jnp.arange(steps + 1) / steps))
