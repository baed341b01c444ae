"""Noise schedules: γ_t = log((1-ᾱ_t)/ᾱ_t), the negative log signal-to-noise ratio, growing with time.

A discrete `Schedule` has times 1 … T, and 0 where nothing is lost (γ_0 = -∞). A continuous one is any growing function
γ(t) of t in [0, 1]; `discretise` turns it into the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.types import Scalar

Gamma = Callable[[Scalar], Scalar]
"""A continuous schedule: γ(t) for t in [0, 1], growing."""


class Schedule(NamedTuple):
    """gamma: γ_1 … γ_T."""

    gamma: Float[Array, " T"]

    @property
    def steps(self) -> int:
        """T."""
        return self.gamma.shape[0]

    def at(self, t: int | Int[Array, "*times"]) -> Float[Array, "*times"]:
        """γ_t for whole t from 0 to T; γ_0 is -∞."""
        start = jnp.full(1, -jnp.inf, self.gamma.dtype)
        return jnp.concatenate([start, self.gamma])[t]


def from_betas(betas: Float[Array, " T"]) -> Schedule:
    """The schedule whose step t adds noise of variance β_t in (0, 1): ᾱ_t = Π_{s=1}^t (1 - β_s)."""
    log_left = jnp.cumsum(jnp.log1p(-betas))
    return Schedule(jnp.log(-jnp.expm1(log_left)) - log_left)


def discretise(gamma: Gamma, steps: int) -> Schedule:
    """γ_t = γ(t/T) for t = 1 … T."""
    return Schedule(jnp.stack([gamma(t) for t in jnp.arange(1, steps + 1) / steps]))
