"""What a trained latent-variable model is worth on held-out data: likelihoods with intervals, active units.

A likelihood is a mean over test examples; its standard error says how far another test set of the same size would
move it. The Monte-Carlo error of the importance weights is separate and reported beside it. `importance_weighted_nll`
is fast; `annealed_evidence` is nearer to the truth, `bidirectional_bounds` says how near on data drawn from the model.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import annealing, bounds
from vbjax.annealing import Annealing, Betas
from vbjax.types import Estimate, LogDensity, PRNGKey
from vbjax.vae import VAE, code, elbo, log_weights

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


class Evidence(NamedTuple):
    """log p(x) of each example from random weights. nats: `(n,)`; variance: `(n,)`, of that number over the weights."""

    nats: Float[Array, " n"]
    variance: Float[Array, " n"]

    def likelihood(self, dimensions: int) -> Likelihood:
        """The mean over the examples; dimensions: pixels of one example."""
        error = jnp.sqrt(self.variance.sum()) / self.nats.shape[0]
        return Likelihood(over_examples(-self.nats), error, dimensions)


class BidirectionalBounds(NamedTuple):
    """log p(x) on data drawn from the model, between two bounds: means in nats, with standard errors over examples.

    gap: upper - lower of each example, so it is far sharper than the two. It bounds what annealing loses in the mean.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate


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
    """The ELBO's terms on held-out images `(n, *event)`, one draw of z each, the KL exact where `vae.elbo`'s is."""

    def terms(example):
        key, x = example
        return elbo(key, vae, x)

    keys = jax.random.split(key, images.shape[0])
    result = jax.lax.map(terms, (keys, images), batch_size=batch_size)
    negative = over_examples(result.kl - result.reconstruction)
    return ELBOReport(negative, over_examples(result.reconstruction), over_examples(result.kl))


def importance_weighted_evidence(
    key: PRNGKey, vae: VAE, images: Array, *, samples: int, batch_size: int = 16
) -> Evidence:
    """log p(x) of images `(n, *event)` by the IWAE bound with K draws of the encoder (Burda et al. 2016).

    A lower bound in expectation. Memory and ValueError as `importance_weighted_nll`.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2 for a Monte-Carlo error, got {samples}; use elbo_report")

    def one(example):
        key, x = example
        return _evidence(log_weights(key, vae, x, samples=samples))

    return jax.lax.map(one, (jax.random.split(key, images.shape[0]), images), batch_size=batch_size)


def importance_weighted_nll(key: PRNGKey, vae: VAE, images: Array, *, samples: int, batch_size: int = 16) -> Likelihood:
    """-log p(x) on held-out images `(n, *event)` by the IWAE bound with K draws of the encoder (Burda et al. 2016).

    An upper bound in expectation, which falls towards the truth as `samples` grows. Memory grows with
    samples × batch_size. Raises ValueError for fewer than two samples: one weight says nothing of its own spread.
    """
    evidence = importance_weighted_evidence(key, vae, images, samples=samples, batch_size=batch_size)
    return evidence.likelihood(math.prod(images.shape[1:]))


def _evidence(weights: bounds.LogWeights) -> Evidence:
    """log mean w of one example, with its variance."""
    return Evidence(bounds.iwae(weights), bounds.iwae_variance(weights))


def tune_annealing(
    key: PRNGKey, vae: VAE, images: Array, betas: Betas, *, leapfrog_steps: int = 5, chains: int = 2
) -> Annealing:
    """Step sizes for these betas: the geometric mean over images `(n, *event)` of those of `annealing.tune`.

    A dozen images are enough; they may be test images, for the chains that count are others. Starts from the
    encoder's q(z|x). Raises as `annealing.tune`.
    """
    annealing.check_betas(betas)

    def one(key: PRNGKey, x: Array) -> Array:
        log_joint, q = _log_joint(vae, x), vae.encode(x)
        tuned = annealing.tune(key, log_joint, q, betas, leapfrog_steps=leapfrog_steps, chains=chains)
        return jnp.log(tuned.step_sizes)

    log_steps = jax.jit(jax.vmap(one))(jax.random.split(key, images.shape[0]), images)
    return Annealing(betas, jnp.exp(log_steps.mean(0)), leapfrog_steps)


def annealed_evidence(
    key: PRNGKey,
    vae: VAE,
    images: Array,
    plan: Annealing,
    *,
    chains: int = 8,
    chunk: int = 64,
    on_chunk: Callable[[dict[str, int | float]], None] | None = None,
) -> Evidence:
    """log p(x) of images `(n, *event)` by annealed importance sampling from the encoder's q(z|x) (Wu et al. 2017).

    A lower bound in expectation. plan: from `tune_annealing`. Each image costs chains × betas × leapfrog_steps
    gradients of the decoder in z; memory grows with chains × chunk, whose size changes nothing but rounding. on_chunk:
    is called after every chunk with a row that `progress.Progress(n, unit="images").update` shows. Not to be jitted: it
    compiles its own loop. To start elsewhere, tune and call with `vae._replace(encode=lambda x: vae.prior)`. Raises
    ValueError below two chains, and as `annealing.log_weights`.
    """
    annealing.check_betas(plan.betas)
    if chains < 2 or chunk < 1:
        raise ValueError(f"chains must be at least 2 for a Monte-Carlo error and chunk 1, got {chains} and {chunk}")

    def one(key: PRNGKey, x: Array) -> Evidence:
        return _evidence(annealing.log_weights(key, _log_joint(vae, x), vae.encode(x), plan, chains=chains))

    count = images.shape[0]
    measure, keys, parts = jax.jit(jax.vmap(one)), jax.random.split(key, count), []
    begin, total = time.perf_counter(), 0.0
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        # every chunk has one length, so that one program serves them all
        rows = jnp.minimum(jnp.arange(start, start + min(chunk, count)), count - 1)
        part = jax.tree.map(lambda v, stop=stop, start=start: v[: stop - start], measure(keys[rows], images[rows]))
        parts.append(part)
        if on_chunk is not None:
            total -= float(part.nats.sum())
            seconds = time.perf_counter() - begin
            pace = {
                "images_per_second": stop / seconds,
                "seconds": seconds,
                "seconds_left": seconds * (count / stop - 1),
            }
            on_chunk({"step": stop, "nll": total / stop, **pace})
    return jax.tree.map(lambda *v: jnp.concatenate(v), *parts)


def bidirectional_bounds(
    key: PRNGKey, vae: VAE, plan: Annealing, *, count: int, chains: int = 8, batch_size: int = 64
) -> BidirectionalBounds:
    """log p(x) from both sides on `count` examples drawn from the model, whose z is an exact draw of the posterior.

    The lower bound walks as `annealed_evidence` does, the upper one back: their gap is the accuracy of the first on
    data that look like the model's. Jit it; memory grows with chains × batch_size. Raises ValueError below two
    examples, and as `annealing.log_weights`. Source: Grosse et al. (2015), section 4; Wu et al. (2017), section 3.
    """
    annealing.check_betas(plan.betas)
    if count < 2:
        raise ValueError(f"count must be at least 2 for a standard error, got {count}")

    def one(key: PRNGKey):
        key_z, key_x, key_walks = jax.random.split(key, 3)
        z = vae.prior.sample(key_z)
        x = vae.decode(z).sample(key_x).astype(vae.prior.dtype)
        log_joint, q = _log_joint(vae, x), vae.encode(x)
        up, down = annealing.both_ways(key_walks, log_joint, q, plan, z, chains=chains)
        return bounds.iwae(up), -bounds.iwae(-down)

    lower, upper = jax.lax.map(one, jax.random.split(key, count), batch_size=batch_size)
    return BidirectionalBounds(over_examples(lower), over_examples(upper), over_examples(upper - lower))


def _log_joint(vae: VAE, x: Array) -> LogDensity:
    return lambda z: vae.decode(z).log_prob(x) + vae.prior.log_prob(z)


def posterior_means(vae: VAE, images: Array, *, batch_size: int = 256) -> Float[Array, "n dim"]:
    """E[z|x] under the encoder for images `(n, *event)`; for a flow, what stands for it (`vae.code`)."""
    return jax.lax.map(lambda x: code(vae, x), images, batch_size=batch_size)


def active_units(codes: Float[Array, "n dim"]) -> int:
    """How many latent coordinates carry information: variance of the posterior mean above 0.01 (Burda et al. 2016)."""
    return int(jnp.sum(codes.var(0, ddof=1) > ACTIVE_VARIANCE))
