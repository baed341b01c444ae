"""Samplers: from noise at the top of a ladder of noise levels to a datum at its foot, for one datum.

A ladder is an array of γ in the order in which it is walked, from γ_T down; it may end at γ = -∞, where the last move
gives x̂_0 without noise. `descent` makes one of a `Schedule`. `ancestral` walks it with any kernel `(x_t, γ_s, γ_t) ->
Normal`: `process.reverse_kernel`, `ddim_kernel`, those of `inpainting`. `heun` and `dpm_solver` solve the same ODE as
`ddim_kernel` at η = 0, one order better.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vbjax.diffusion.bound import DiffusionModel
from vbjax.diffusion.process import Denoiser, Reverse, noise, signal
from vbjax.diffusion.schedules import Schedule
from vbjax.distributions import Normal
from vbjax.types import Event, PRNGKey, Scalar

Levels = Float[Array, " levels"]
"""Noise levels γ in the order in which they are walked."""


def descent(schedule: Schedule, steps: int | None = None) -> Levels:
    """γ_T, …, γ_0 = -∞ in this many steps (default: all T), as even in t as whole times can be.

    Raises ValueError unless 1 ≤ steps ≤ T.
    """
    steps = schedule.steps if steps is None else steps
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must lie between 1 and the schedule's {schedule.steps}, got {steps}")
    return schedule.at(jnp.asarray(np.round(np.linspace(schedule.steps, 0, steps + 1)).astype(int)))


def ancestral(key: PRNGKey, kernel: Reverse, levels: Levels, x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x at the last level, drawn step by step from x at the first; at γ = -∞ the kernel's mean.

    Raises ValueError for fewer than two levels. Source: Ho et al. (2020), algorithm 2.
    """
    step = _step(key, kernel)
    return jax.lax.scan(lambda x, move: (step(x, move), None), x, _moves(levels))[0]


def ancestral_path(key: PRNGKey, kernel: Reverse, levels: Levels, x: Float[Array, "*d"]) -> Float[Array, "levels *d"]:
    """x at every level: the same draws as `ancestral`, all kept. Raises as it does."""
    step = _step(key, kernel)
    return jnp.concatenate([x[None], jax.lax.scan(lambda x, move: (step(x, move),) * 2, x, _moves(levels))[1]])


def affine_law(
    kernel: Reverse, levels: Levels, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Mean and covariance of what `ancestral` draws, from those of x at the first level, with no draws.

    Exact for a kernel whose mean is affine in x_t and whose scale does not depend on it, as with the exact denoiser
    of Gaussian data. Raises as `ancestral`.
    """

    def step(law, move):
        mean, covariance = law
        _, gamma_t, gamma_s = move
        slope = jax.jacfwd(lambda x_t: kernel(x_t, gamma_s, gamma_t).loc)(mean)
        drawn = kernel(mean, gamma_s, gamma_t)
        fresh = jnp.where(jnp.isneginf(gamma_s), 0, drawn.scale**2)
        return (drawn.loc, slope @ covariance @ slope.T + jnp.diag(fresh)), None

    return jax.lax.scan(step, (mean, covariance), _moves(levels))[0]


def generate(key: PRNGKey, model: DiffusionModel, schedule: Schedule, shape: tuple[int, ...]) -> Event:
    """One draw of p(x): noise of the shape of x_0, down to x_1 by the model's kernel, then the decoder's draw."""
    key_noise, key_chain, key_decode = jax.random.split(key, 3)
    x = jax.random.normal(key_noise, shape, schedule.gamma.dtype)
    if schedule.steps > 1:
        x = ancestral(key_chain, model.reverse, schedule.gamma[::-1], x)
    return model.decode(x, schedule.gamma[0]).sample(key_decode)


def ddim_kernel(denoiser: Denoiser, *, eta: int | float = 0) -> Reverse:
    """The kernel whose law of (x_s, x_0) is the forward process's for every η in [0, 1], though its noise is η² β̃.

    η = 1 is `reverse_kernel(denoiser)`; η = 0 draws nothing, a scale of 0 that `ancestral` takes and a KL divergence
    does not. Raises ValueError for another η. Source: Song, Meng and Ermon (2021), eqs. 12, 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0, deterministic, and 1, ancestral, got {eta}")

    def kernel(x_t, gamma_s, gamma_t):
        x0 = denoiser(x_t, gamma_t)
        fresh = eta**2 * -jnp.expm1(gamma_s - gamma_t)  # the part of σ_s² that is drawn anew
        kept = jnp.sqrt(1 - fresh) * (x_t - signal(gamma_t) * x0) / noise(gamma_t)
        mean = signal(gamma_s) * x0 + noise(gamma_s) * kept
        return Normal(mean, jnp.broadcast_to(noise(gamma_s) * jnp.sqrt(fresh), mean.shape))

    return kernel


def heun(denoiser: Denoiser, levels: Levels, x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x at the last level along the probability-flow ODE, by Heun's method in σ/α: second order, two calls a step.

    A step to γ = -∞ is of first order. Raises ValueError unless two levels or more decrease.
    Source: Karras et al. (2022), algorithm 1.
    """
    _check_decreasing(levels)

    def slope(y, ratio, gamma):
        return (y - denoiser(signal(gamma) * y, gamma)) / ratio

    def step(y, move):
        gamma_t, gamma_s = move
        at_t, at_s = jnp.exp(gamma_t / 2), jnp.exp(gamma_s / 2)
        first = slope(y, at_t, gamma_t)
        guess = y + (at_s - at_t) * first
        last = jnp.isneginf(gamma_s)
        there = jnp.where(last, gamma_t, gamma_s)  # no network is asked at γ = -∞
        second = slope(guess, jnp.exp(there / 2), there)
        return jnp.where(last, guess, y + (at_s - at_t) * (first + second) / 2), None

    y, _ = jax.lax.scan(step, x / signal(levels[0]), (levels[:-1], levels[1:]))
    return signal(levels[-1]) * y


def dpm_solver(denoiser: Denoiser, levels: Levels, x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x at the last level along the probability-flow ODE, by DPM-Solver++(2M): second order, one call a step.

    The first step, and one to γ = -∞, are of first order, as DDIM's. Raises ValueError unless two levels or more
    decrease. Source: Lu et al. (2022), "DPM-Solver++", algorithm 2.
    """
    _check_decreasing(levels)

    def step(carry, move):
        x_t, x0_before, width_before = carry
        gamma_t, gamma_s = move
        x0, width = denoiser(x_t, gamma_t), gamma_t - gamma_s
        ahead = jnp.where(jnp.isneginf(gamma_s), 0, width / (2 * width_before))
        aim = x0 + ahead * (x0 - x0_before)
        return (_towards(x_t, aim, gamma_s, gamma_t), x0, width), None

    start = (x, x, jnp.full((), jnp.inf, levels.dtype))  # an infinite step before the first: nothing to extrapolate
    return jax.lax.scan(step, start, (levels[:-1], levels[1:]))[0][0]


def _towards(x_t: Float[Array, "*d"], x0: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar) -> Float[Array, "*d"]:
    """The ODE's exact solution at γ_s were x̂_0 constant: DDIM's step."""
    shrunk = jnp.exp((gamma_s - gamma_t) / 2) * signal(gamma_s) / signal(gamma_t)
    return shrunk * x_t - signal(gamma_s) * jnp.expm1((gamma_s - gamma_t) / 2) * x0


def _step(key: PRNGKey, kernel: Reverse):
    def step(x_t, move):
        i, gamma_t, gamma_s = move
        law = kernel(x_t, gamma_s, gamma_t)
        return jnp.where(jnp.isneginf(gamma_s), law.mean(), law.sample(jax.random.fold_in(key, i)))

    return step


def _moves(levels: Levels) -> tuple[Array, Array, Array]:
    """Number, γ_t and γ_s of every move."""
    if levels.size < 2:
        raise ValueError(f"levels must hold the first and the last noise level at least, got {levels.size}")
    return jnp.arange(levels.size - 1), levels[:-1], levels[1:]


def _check_decreasing(levels: Levels) -> None:
    """Raise ValueError unless the levels decrease; traced ones were checked outside."""
    if levels.size < 2 or (not isinstance(levels, jax.core.Tracer) and not (np.diff(np.asarray(levels)) < 0).all()):
        raise ValueError(f"levels must decrease, from the noise to the datum, and be two or more, got {levels}")
