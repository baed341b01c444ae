"""The variational bound of a diffusion model on -log p(x), term by term, in nats. Start at `diffusion_bound`.

    -log p(x) ≤ KL(q(x_T|x_0) || N(0, I)) + Σ_{t=2}^T E KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)) + E -log p(x|x_1)

called L_T, L_{t-1} and L_0 by Ho et al. (2020, eq. 5). All expectations are over q(x_1, …, x_T | x_0), one draw each.
In float32 keep γ_1 above -15: below, the rounding of x_t is no longer small against σ.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.diffusion.decoders import Decoder
from vbjax.diffusion.process import Reverse, marginal, posterior
from vbjax.diffusion.schedules import Schedule
from vbjax.diffusion.times import Times
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence
from vbjax.types import PRNGKey, Scalar


class DiffusionModel(NamedTuple):
    """embed: x, as stored, -> x_0, of order one. reverse: p(x_{t-1}|x_t). decode: (x_1, γ_1) -> p(x|x_1)."""

    embed: Callable[[Array], Float[Array, "*d"]]
    reverse: Reverse
    decode: Decoder


class DiffusionBound(NamedTuple):
    """Estimates of the terms of an upper bound on -log p(x), in nats.

    prior: L_T, exact; diffusion: L_{t-1} for t = 2 … T, or one number for their sum; reconstruction: L_0.
    """

    prior: Scalar
    diffusion: Float[Array, "*terms"]
    reconstruction: Scalar

    def total(self) -> Scalar:
        """The bound itself."""
        return self.prior + self.diffusion.sum() + self.reconstruction


def diffusion_bound(key: PRNGKey, model: DiffusionModel, schedule: Schedule, x: Array) -> DiffusionBound:
    """All terms, each at its own draw of x_t; T + 1 calls of the model, one after the other."""
    key_terms, key_decode = jax.random.split(key)

    def term(t):
        # a key by the time, not a row of keys: JAX's check for reused keys takes those for used once vmapped
        return diffusion_term(jax.random.fold_in(key_terms, t), model, schedule, x, t)

    terms = jax.lax.map(term, jnp.arange(2, schedule.steps + 1))
    return DiffusionBound(prior_term(model, schedule, x), terms, reconstruction_term(key_decode, model, schedule, x))


def prior_term(model: DiffusionModel, schedule: Schedule, x: Array) -> Scalar:
    """L_T, the KL divergence from q(x_T|x_0) to N(0, I)."""
    return prior_kl(model.embed(x), schedule.gamma[-1])


def prior_kl(x0: Float[Array, "*d"], gamma: Scalar) -> Scalar:
    """KL(N(α x_0, σ² I) || N(0, I)), zero when nothing of x_0 is left."""
    last = marginal(x0, gamma)
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


def sampled_bound(key: PRNGKey, model: DiffusionModel, schedule: Schedule, x: Array, time: Times) -> DiffusionBound:
    """The bound without bias from one of its terms L_0 … L_{T-1}: one call of the model, at the given time.

    time: one draw of a law over 1 … T with its weight (`times`), both scalars. `diffusion` is a scalar as well, for the
    whole sum. Source: Nichol & Dhariwal (2021, section 3.3).
    """
    x_t = marginal(model.embed(x), schedule.at(time.t)).sample(key)
    term = time.weight * bound_term(model, schedule, x, x_t, time.t)
    first = time.t == 1
    return DiffusionBound(prior_term(model, schedule, x), jnp.where(first, 0, term), jnp.where(first, term, 0))


def bound_term(
    model: DiffusionModel, schedule: Schedule, x: Array, x_t: Float[Array, "*d"], t: int | Int[Array, ""]
) -> Scalar:
    """L_{t-1} given x_t, for t from 1 to T."""
    first = jnp.asarray(t) == 1
    gamma_t = schedule.at(t)
    # at t = 1 the middle term is not used, but must have a finite gradient
    gamma_s = jnp.where(first, gamma_t - 1, schedule.at(t - 1))
    middle = kl_divergence(posterior(x_t, model.embed(x), gamma_s, gamma_t), model.reverse(x_t, gamma_s, gamma_t))
    return jnp.where(first, -model.decode(x_t, gamma_t).log_prob(x), middle)


def variance_only(model: DiffusionModel) -> DiffusionModel:
    """The same model, whose reverse and decoding means take no gradient."""

    def frozen(make: Callable[..., Any]) -> Callable[..., Any]:
        def law(*arguments):
            made = make(*arguments)
            loc = getattr(made, "loc", None)
            return made if loc is None else dataclasses.replace(made, loc=jax.lax.stop_gradient(loc))

        return law

    return model._replace(reverse=frozen(model.reverse), decode=frozen(model.decode))
