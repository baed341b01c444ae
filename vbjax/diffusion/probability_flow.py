"""The probability-flow ODE: the same marginals as the diffusion without its noise, and an exact log-density.

    dx/dγ = α (α x - x̂_0) / 2

`flow` carries x between noise levels, up (an encoder) or down (a decoder). `log_density` adds the divergence along
the way. Ladders of γ as in `samplers`; Runge-Kutta of order four, each interval one step.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.diffusion.process import Denoiser, signal
from vbjax.diffusion.samplers import Levels
from vbjax.distributions import Normal
from vbjax.types import Scalar

Drift = Callable[[Float[Array, "*d"], Scalar], Float[Array, "*d"]]
"""`(x, γ) -> dx/dγ`."""

Divergence = Callable[[Drift, Float[Array, "*d"], Scalar], Scalar]
"""`(drift, x, γ) ->` the trace of the drift's Jacobian in x, or an estimate of it."""

State = TypeVar("State")


class FlowDensity(NamedTuple):
    """log_prob: log-density of x, in nats. error: how far off the steps put it. latent: x at the last level."""

    log_prob: Scalar
    error: Scalar
    latent: Float[Array, "*d"]


def drift(denoiser: Denoiser) -> Drift:
    """dx/dγ, to which DDIM's step at η = 0 tends: ασ/2 times v (Song et al. 2021, eq. 13, with γ for time)."""
    return lambda x, gamma: signal(gamma) * (signal(gamma) * x - denoiser(x, gamma)) / 2


def flow(denoiser: Denoiser, levels: Levels, x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x at the last level, carried there from the first; with the levels turned round, back again."""
    return _runge_kutta(drift(denoiser), levels, x)


def exact_divergence(drift: Drift, x: Float[Array, "*d"], gamma: Scalar) -> Scalar:
    """The trace itself: one forward derivative for each coordinate."""
    units = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return jax.vmap(lambda unit: jnp.vdot(unit, _derivative(drift, x, gamma, unit)))(units).sum()


def log_density(
    denoiser: Denoiser, levels: Levels, x: Float[Array, "*d"], divergence: Divergence = exact_divergence
) -> FlowDensity:
    """The log-density at x, at the first level, of N(0, I) at the last, carried down by the ODE.

    It is that of q(x_t) where the denoiser is exact and the last level all noise; with `hutchinson` it is unbiased.
    error is the difference to what every other level gives, by 15 (Richardson); rounding is not in it. Raises
    ValueError unless the levels are odd in number, three or more.
    Source: Song et al. (2021), eq. 39; Chen et al. (2018), theorem 1.
    """
    if levels.size < 3 or levels.size % 2 == 0:
        raise ValueError(f"levels must be odd in number, so that every other one is a ladder too, got {levels.size}")
    field = drift(denoiser)

    def augmented(state, gamma):
        x, _ = state
        return field(x, gamma), divergence(field, x, gamma)

    def along(levels):
        latent, change = _runge_kutta(augmented, levels, (x, jnp.zeros((), x.dtype)))
        return Normal(jnp.zeros_like(latent), jnp.ones_like(latent)).log_prob(latent) + change, latent

    # twice the steps and steps of width zero in between, so that one program takes both
    coarse = levels.at[1::2].set(levels[:-1:2])
    log_probs, latents = jax.vmap(along)(jnp.stack([levels, coarse]))
    return FlowDensity(log_probs[0], jnp.abs(log_probs[0] - log_probs[1]) / 15, latents[0])


def hutchinson(probe: Float[Array, "*d"]) -> Divergence:
    """An unbiased estimate for a random probe with E probe probeᵀ = I, `jax.random.rademacher`: one derivative.

    One probe serves the whole way. Source: Grathwohl et al. (2019), eq. 8.
    """
    return lambda drift, x, gamma: jnp.vdot(probe, _derivative(drift, x, gamma, probe))


def _derivative(drift: Drift, x: Float[Array, "*d"], gamma: Scalar, direction: Float[Array, "*d"]) -> Array:
    return jax.jvp(lambda x: drift(x, gamma), (x,), (direction,))[1]


def _runge_kutta(field: Callable[[State, Scalar], State], levels: Levels, state: State) -> State:
    """The state at the last level by the classical method of order four."""

    def step(state, move):
        gamma, h = move

        def stage(carry, node):
            slope, mean = carry
            at, weight = node
            slope = field(jax.tree.map(lambda a, b: a + at * h * b, state, slope), gamma + at * h)
            return (slope, jax.tree.map(lambda a, b: a + weight * b, mean, slope)), None

        nothing = jax.tree.map(jnp.zeros_like, state)
        (_, mean), _ = jax.lax.scan(stage, (nothing, nothing), (nodes, weights))
        return jax.tree.map(lambda a, b: a + h * b, state, mean), None

    nodes, weights = jnp.array([0, 1, 1, 2], levels.dtype) / 2, jnp.array([1, 2, 2, 1], levels.dtype) / 6
    return jax.lax.scan(step, state, (levels[:-1], jnp.diff(levels)))[0]
