"""The variational bound of a diffusion model on -log p(x), term by term, in nats. Start at `diffusion_bound`.

    -log p(x) ≤ KL(q(x_T|x_0) || N(0, I)) + Σ_{t=2}^T E KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)) + E -log p(x|x_1)

called L_T, L_{t-1} and L_0 by Ho et al. (2020, eq. 5). All expectations are over q(x_1, …, x_T | x_0), one draw each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.diffusion.process import Reverse, marginal, posterior
from vbjax.diffusion.schedules import Schedule
from vbjax.distributions import Distribution, Normal
from vbjax.divergences import kl_divergence
from vbjax.types import PRNGKey, Scalar


class DiffusionModel(NamedTuple):
    """embed: x, as stored, -> x_0, of order one. reverse: p(x_{t-1}|x_t). decode: (x_1, γ_1) -> p(x|x_1)."""

    embed: Callable[[Array], Float[Array, "*d"]]
    reverse: Reverse
    decode: Callable[[Float[Array, "*d"], Scalar], Distribution]


class DiffusionBound(NamedTuple):
    """Estimates of the terms of an upper bound on -log p(x), in nats.

    prior: L_T, exact; diffusion: L_{t-1} for t = 2 … T; reconstruction: L_0.
    """

    prior: Scalar
    diffusion: Float[Array, " T-1"]
    reconstruction: Scalar

    def total(self) -> Scalar:
        """The bound itself."""
        return self.prior + self.diffusion.sum() + self.reconstruction


def diffusion_bound(key: PRNGKey, model: DiffusionModel, schedule: Schedule, x: Array) -> DiffusionBound:
    """All terms, each at its own draw of x_t; T + 1 calls of the model, one after the other."""
    key_terms, key_decode = jax.random.split(key)
    times = jnp.arange(2, schedule.steps + 1)
    keys = jax.random.split(key_terms, schedule.steps - 1)
    terms = jax.lax.map(lambda pair: diffusion_term(pair[0], model, schedule, x, pair[1]), (keys, times))
    return DiffusionBound(prior_term(model, schedule, x), terms, reconstruction_term(key_decode, model, schedule, x))


def prior_term(model: DiffusionModel, schedule: Schedule, x: Array) -> Scalar:
    """L_T, the KL divergence from q(x_T|x_0) to N(0, I)."""
    last = marginal(model.embed(x), schedule.gamma[-1])
    return kl_divergence(last, Normal(jnp.zeros_like(last.loc), jnp.ones_like(last.scale)))


def diffusion_term(
    key: PRNGKey, model: DiffusionModel, schedule: Schedule, x: Array, t: int | Int[Array, ""]
) -> Scalar:
    """L_{t-1} at one draw of x_t, for t from 2 to T."""
    x0, gamma_s, gamma_t = model.embed(x), schedule.at(t - 1), schedule.at(t)
    x_t = marginal(x0, gamma_t).sample(key)
    return kl_divergence(posterior(x_t, x0, gamma_s, gamma_t), model.reverse(x_t, gamma_s, gamma_t))


def reconstruction_term(key: PRNGKey, model: DiffusionModel, schedule: Schedule, x: Array) -> Scalar:
    """L_0 at one draw of x_1."""
    x_1 = marginal(model.embed(x), schedule.gamma[0]).sample(key)
    return -model.decode(x_1, schedule.gamma[0]).log_prob(x)
