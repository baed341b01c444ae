"""A q of its own for every datum: stochastic variational inference, and where an encoder's bound is lost.

`svi` climbs the ELBO of one datum from the encoder's answer; with few steps and a gradient through them it is the
semi-amortised VAE, made by `semi_amortised`. `inference_gaps` splits log p(x) - ELBO into what the family of q and
what the encoder cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.distributions import Distribution, MultivariateNormal, Normal
from vbjax.evaluation import over_examples
from vbjax.types import Estimate, Params, PRNGKey, Scalar
from vbjax.vae import VAE


class Family(NamedTuple):
    """A family of q over unconstrained parameters. coordinates: q -> parameters; law: parameters -> q."""

    coordinates: Callable[[Any], Params]
    law: Callable[[Params], Any]


def _diagonal_coordinates(q: Distribution) -> Params:
    return {"loc": q.mean(), "log_scale": 0.5 * jnp.log(q.variance())}


def _full_coordinates(q: Distribution) -> Params:
    tril = q.scale_tril if isinstance(q, MultivariateNormal) else jnp.diag(jnp.sqrt(q.variance()))
    return {"loc": q.mean(), "log_diagonal": jnp.log(jnp.diagonal(tril)), "below": jnp.tril(tril, -1)}


DIAGONAL = Family(_diagonal_coordinates, lambda p: Normal(p["loc"], jnp.exp(p["log_scale"])))
"""Normal laws with independent coordinates, from the means and variances of any law that knows its own."""

FULL_COVARIANCE = Family(
    _full_coordinates,
    lambda p: MultivariateNormal(p["loc"], jnp.tril(p["below"], -1) + jnp.diag(jnp.exp(p["log_diagonal"]))),
)
"""Normal laws with a full covariance, by its Cholesky factor."""


def svi(
    key: PRNGKey,
    vae: VAE,
    x: Array,
    q: Distribution,
    optimizer: Any,
    *,
    steps: int,
    samples: int = 1,
    family: Family = DIAGONAL,
) -> Distribution:
    """The q of one datum after some steps up its ELBO, from a start q such as `vae.encode(x)`; the encoder is not used.

    optimizer: anything with optax's `init` and `update`; let its rate decay if q* is wanted to many digits. samples:
    draws of z per step. Gradients flow through the steps into the decoder, the prior and the start. Raises ValueError
    below one sample or zero steps. Source: Hoffman et al. (2013); Kim et al. (2018) for the gradient through it.
    """
    if steps < 0 or samples < 1:
        raise ValueError(f"steps must be at least 0 and samples at least 1, got {steps} and {samples}")

    def loss(params: Params, key: PRNGKey) -> Scalar:
        return -sampled_elbo(key, vae, x, family.law(params), draws=samples)

    def step(carry, t):
        params, state = carry
        gradient = jax.grad(loss)(params, jax.random.fold_in(key, t))
        # optax raises its decay rates to integer step counts, which strict promotion would refuse
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state, params)
        return (jax.tree.map(jnp.add, params, change), state), None

    params = family.coordinates(q)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return family.law(params)


def semi_amortised(
    key: PRNGKey, vae: VAE, optimizer: Any, *, steps: int, samples: int = 1, family: Family = DIAGONAL
) -> VAE:
    """The same model, whose encoder's answer is improved by some steps of `svi`: trained as it is, its encoder learns
    where to start.

    key: of the search's noise, one for all data: independent of what the bound then draws, so that q is fixed and the
    bound holds. The others, and ValueError, as `svi`. Source: Kim et al. (2018).
    """

    def encode(x: Array) -> Distribution:
        return svi(key, vae, x, vae.encode(x), optimizer, steps=steps, samples=samples, family=family)

    return vae._replace(encode=encode)


def sampled_elbo(key: PRNGKey, vae: VAE, x: Array, q: Distribution, *, draws: int) -> Scalar:
    """The ELBO of x under any reparameterised q with a closed entropy, from some draws of log p(x, z), in nats."""
    z = jax.vmap(q.transport)(q.noise().sample(key, (draws,)))
    return jax.vmap(lambda z: vae.decode(z).log_prob(x) + vae.prior.log_prob(z))(z).mean() + q.entropy()


class InferenceGaps(NamedTuple):
    """Where the bound is lost: means over examples in nats, each with its standard error over examples.

    approximation: log p(x) - ELBO[q*], what the best q of the family loses. amortisation: ELBO[q*] - ELBO[encoder],
    what one encoder for all data loses; it turns negative where the search stopped short of q*. total: their sum,
    log p(x) - ELBO[encoder]. monte_carlo_error: standard errors of the three means from the ELBOs' draws alone.
    """

    approximation: Estimate
    amortisation: Estimate
    total: Estimate
    monte_carlo_error: Float[Array, "3"]


def inference_gaps(
    key: PRNGKey,
    vae: VAE,
    images: Array,
    log_evidence: Float[Array, " n"],
    optimizer: Any,
    *,
    steps: int,
    samples: int = 8,
    draws: int = 256,
    family: Family = DIAGONAL,
    batch_size: int = 16,
) -> InferenceGaps:
    """Split log p(x) - ELBO on images `(n, *event)`; q* is found by `svi` from the encoder's q.

    log_evidence: log p(x) of each, exact or by `evaluation.annealed_evidence(...).nats`; its error goes into
    `approximation` alone. draws: of each ELBO, the same noise for both, so that their difference is sharp. Memory
    grows with max(samples, draws) × batch_size. Raises ValueError below two images or two draws, for a log_evidence
    of another length, and as `svi`. Source: Cremer et al. (2018), eqs. 6 to 8.
    """
    count = images.shape[0]
    if count < 2 or log_evidence.shape[0] != count:
        raise ValueError(
            f"log_evidence must hold one number for each of 2 or more images, got {log_evidence.shape[0]} for {count}"
        )
    if draws < 2:
        raise ValueError(f"draws must be at least 2 for a Monte-Carlo error, got {draws}")

    def one(example):
        key, x = example
        key_search, key_draws = jax.random.split(key)
        amortised = vae.encode(x)
        best = svi(key_search, vae, x, amortised, optimizer, steps=steps, samples=samples, family=family)
        noise = amortised.noise().sample(key_draws, (draws,))

        def weights(q: Distribution) -> Array:
            log_weight = bounds.LogWeight(lambda z: vae.decode(z).log_prob(x), vae.prior, q)
            return jax.vmap(lambda e: log_weight(q.transport(e)))(noise)

        return weights(best), weights(amortised)

    best, amortised = jax.lax.map(one, (jax.random.split(key, count), images), batch_size=batch_size)
    losses = [log_evidence[:, None] - best, best - amortised, log_evidence[:, None] - amortised]
    approximation, amortisation, total = (over_examples(loss.mean(1)) for loss in losses)
    noise = jnp.stack([jnp.sqrt(jnp.sum(loss.var(1, ddof=1) / draws)) / count for loss in losses])
    return InferenceGaps(approximation, amortisation, total, noise)
