"""What a trained latent-variable model is worth on held-out data: likelihoods with intervals, active units.

A likelihood is a mean over test examples; its standard error says how far another test set of the same size would
move it. The Monte-Carlo error of the importance weights is separate and reported beside it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.types import Estimate, PRNGKey
from vbjax.vae import VAE, elbo, log_weights

ACTIVE_VARIANCE = 0.01
"""A latent coordinate is active if its posterior mean varies more than this over the data (Burda et al. 2016)."""


class Likelihood(NamedTuple):
    """A held-out negative log-likelihood, or a bound on it, per example in nats.

    nats: mean with its standard error over examples. monte_carlo_error: standard error of that mean from the random
    weights alone. dimensions: pixels per example, for bits per dimension.
    """

    nats: Estimate
    monte_carlo_error: Array
    dimensions: int

    @property
    def bits_per_dim(self) -> Estimate:
        """The same in bits per dimension: nats / (dimensions log 2)."""
        unit = self.dimensions * math.log(2)
        return Estimate(self.nats.value / unit, self.nats.standard_error / unit, self.nats.count)


class ELBOReport(NamedTuple):
    """Mean ELBO terms over the examples, in nats, each with its standard error over examples."""

    negative_elbo: Estimate
    reconstruction: Estimate
    kl: Estimate


def over_examples(values: Float[Array, " n"]) -> Estimate:
    """Mean over examples with its standard error."""
    count = values.shape[0]
    return Estimate(values.mean(), values.std(ddof=1) / count**0.5, count)


def elbo_report(key: PRNGKey, vae: VAE, images: Array, *, batch_size: int = 256) -> ELBOReport:
    """The ELBO's terms on held-out images `(n, *event)`, one draw of z each, the KL exact."""

    def terms(example):
        key, x = example
        return elbo(key, vae, x)

    keys = jax.random.split(key, images.shape[0])
    result = jax.lax.map(terms, (keys, images), batch_size=batch_size)
    negative = over_examples(result.kl - result.reconstruction)
    return ELBOReport(negative, over_examples(result.reconstruction), over_examples(result.kl))


def importance_weighted_nll(key: PRNGKey, vae: VAE, images: Array, *, samples: int, batch_size: int = 16) -> Likelihood:
    """-log p(x) on held-out images `(n, *event)` by the IWAE bound with K draws of the encoder (Burda et al. 2016).

    An upper bound in expectation, which falls towards the truth as `samples` grows. Memory grows with
    samples × batch_size. Raises ValueError for fewer than two samples: one weight says nothing of its own spread.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2 for a Monte-Carlo error, got {samples}; use elbo_report")

    def one(example):
        key, x = example
        weights = log_weights(key, vae, x, samples=samples)
        effective_samples = jnp.exp(-jax.scipy.special.logsumexp(2 * jax.nn.log_softmax(weights)))
        # delta method: Var log mean w = Var(w) / (K E[w]²) = 1/ESS - 1/K
        # equal weights have none, which rounding may put below zero
        return -bounds.iwae(weights), jnp.maximum(1 / effective_samples - 1 / samples, 0)

    keys = jax.random.split(key, images.shape[0])
    nll, variance = jax.lax.map(one, (keys, images), batch_size=batch_size)
    return Likelihood(over_examples(nll), jnp.sqrt(variance.sum()) / nll.shape[0], math.prod(images.shape[1:]))


def posterior_means(vae: VAE, images: Array, *, batch_size: int = 256) -> Float[Array, "n dim"]:
    """E[z|x] under the encoder for images `(n, *event)`."""
    return jax.lax.map(lambda x: vae.encode(x).mean(), images, batch_size=batch_size)


def active_units(codes: Float[Array, "n dim"]) -> int:
    """How many latent coordinates carry information: variance of the posterior mean above 0.01 (Burda et al. 2016)."""
    return int(jnp.sum(codes.var(0, ddof=1) > ACTIVE_VARIANCE))
