"""Mixtures: one latent component, any law of the data given it. Bernoulli and categorical here, normal in `gaussians`.

The model is a `vbjax.distributions.Mixture`, so its density is that law's own. A pass over 10⁵ data needs the same
numbers as matrix products, twenty times faster: that is `Components.log_probs`, and the tests hold it to
`Mixture.component_log_probs`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from vbjax.distributions import Bernoulli, Categorical, Distribution, Mixture
from vbjax.distributions.family import family
from vbjax.em.fitting import Batches, Data, Family, Step, as_real, batches, check_count, sum_over
from vbjax.em.kmeans import nearest, seeds
from vbjax.types import PRNGKey, Scalar

Shares = Float[Array, "size components"]
"""q(z = k | x) of each datum of a block; zero where the block is padded."""


@family
class MixtureModel(Mixture):
    """A `Mixture` with its latent component: p(z), p(x|z) and the posterior q(z|x) of the E-step."""

    @property
    def prior(self) -> Categorical:
        """p(z), the weights of the components."""
        return Categorical(self.logits)

    def likelihood(self, z) -> Distribution:
        """p(x|z) for one component."""
        return self._component(z)

    def posterior(self, x) -> Categorical:
        """p(z|x) of one datum: the responsibilities, exactly."""
        return Categorical(self.component_log_probs(x))


class Components(NamedTuple):
    """Laws p(x|z = k), stacked on a leading axis, as an EM step sees them.

    prepare: data -> what the rest reads, or ValueError. start: (centres, data) -> laws about the centres.
    log_probs: laws -> (one datum -> its `(components,)` log-densities in nats); what does not depend on the datum is
    computed once a step. statistics: (laws, block, shares) -> sums over the block, which add. maximise: (laws,
    statistics, counts) -> the laws that maximise the expected log-likelihood plus log_prior. log_prior: laws -> nats.
    """

    prepare: Callable[[np.ndarray], Array]
    start: Callable[[Array, Data], Any]
    log_probs: Callable[[Any], Callable[[Array], Float[Array, " components"]]]
    statistics: Callable[[Any, Array, Shares], Any]
    maximise: Callable[[Any, Any, Float[Array, " components"]], Any]
    log_prior: Callable[[Any], Scalar]


def mixture(components: Components, count: int, *, equal_weights: bool = False) -> Family:
    """The EM family of a mixture of `count` such laws; starts are k-means++ with a few Lloyd updates.

    A component that no datum supports keeps its law, at weight zero. Raises ValueError for a count below one, or for
    more components than data.
    """
    if count < 1:
        raise ValueError(f"components must be at least 1, got {count}")

    def prepare(values):
        check_count("components", count, values)
        return components.prepare(values)

    def maximise(laws, statistics, counts):
        supported = counts > jnp.finfo(counts.dtype).tiny
        new = components.maximise(laws, statistics, jnp.where(supported, counts, 1))
        new = jax.tree.map(lambda new, old: jnp.where(_over(supported, old), new, old), new, laws)
        return MixtureModel(jnp.zeros_like(counts) if equal_weights else jnp.log(counts / counts.sum()), new)

    def start(key: PRNGKey, data):
        real = data if jnp.issubdtype(data.dtype, jnp.floating) else data.astype(jnp.result_type(float))
        centres = seeds(key, real, count)
        laws = components.start(centres, data)

        def one_block(data, present):
            index = jax.vmap(nearest, (None, 0))(centres, data.astype(real.dtype))
            shares = present[:, None] * jax.nn.one_hot(index, count, dtype=real.dtype)
            return components.statistics(laws, data, shares), shares.sum(0)

        return maximise(laws, *sum_over(batches(data, min(512, len(data)), real.dtype), one_block))

    def step(model: MixtureModel, blocks: Batches) -> Step:
        log_weights, log_probs = jax.nn.log_softmax(model.logits), components.log_probs(model.components)

        def posterior(x, present):
            log_joint = log_weights + log_probs(x)
            log_evidence = logsumexp(log_joint)
            return present * jnp.exp(log_joint - log_evidence), present * log_evidence

        def one_block(data, present):
            shares, log_evidence = jax.vmap(posterior)(data, present)
            return components.statistics(model.components, data, shares), shares.sum(0), log_evidence.sum()

        statistics, counts, log_evidence = sum_over(blocks, one_block)
        log_prior = components.log_prior(model.components) / blocks.count
        return Step(maximise(model.components, statistics, counts), log_evidence / blocks.count, log_prior)

    def summarise(data, batch_size):
        floating = jnp.issubdtype(data.dtype, jnp.floating)
        return batches(data, batch_size, data.dtype if floating else jnp.result_type(float))

    return Family(prepare, start, summarise, step)


@functools.cache
def bernoulli_mixture(components: int, *, smoothing: int | float = 1.0) -> Family:
    """Mixture of independent coin flips per coordinate, on data in {0, 1}.

    smoothing: pseudo-counts of a one and of a zero per component and coordinate, the mode under a Beta(1 + smoothing,
    1 + smoothing) prior; 0 is maximum likelihood, where a probability may become 0 or 1. Raises ValueError if it is
    negative. Source: Bishop (2006), section 9.3.3.
    """
    _check_smoothing(smoothing)

    def prepare(values):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"data of a Bernoulli mixture must be 0 or 1, got {values.min():g} to {values.max():g}; "
                             "binarise them")  # fmt: skip
        return as_real(values)

    def start(centres, data):
        return Bernoulli(jnp.zeros_like(centres))

    def log_probs(laws):
        # finite, for 0 · ∞ is no number: an impossible coordinate costs 708 nats, 87 in float32
        logits = jnp.clip(laws.logits, *_finite(laws.dtype))
        constant = -jax.nn.softplus(logits).sum(1)
        return lambda x: logits @ x + constant

    def statistics(laws, data, shares):
        return shares.T @ data

    def maximise(laws, ones, counts):
        zeros = jnp.maximum(counts[:, None] - ones, 0)
        return Bernoulli(jnp.log(ones + smoothing) - jnp.log(zeros + smoothing))

    def log_prior(laws):
        if smoothing == 0:
            return jnp.zeros((), laws.dtype)
        return -smoothing * jnp.sum(jax.nn.softplus(laws.logits) + jax.nn.softplus(-laws.logits))

    return mixture(Components(prepare, start, log_probs, statistics, maximise, log_prior), components)


@functools.cache
def categorical_mixture(components: int, levels: int, *, smoothing: int | float = 1.0) -> Family:
    """Mixture of independent categorical coordinates, on integers 0 … levels-1.

    smoothing: pseudo-counts of each level per component and coordinate, the mode under a Dirichlet(1 + smoothing)
    prior; 0 is maximum likelihood, where a level that was never seen has probability zero. Raises ValueError if it is
    negative, or for fewer than two levels.
    """
    _check_smoothing(smoothing)
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")

    def prepare(values):
        if not ((values >= 0) & (values < levels) & (values == np.floor(values))).all():
            raise ValueError(f"data of a categorical mixture must be integers 0 … {levels - 1}, got values from "
                             f"{values.min():g} to {values.max():g}")  # fmt: skip
        return jnp.asarray(values, jnp.int32)

    def one_hot(x, dtype):
        return jax.nn.one_hot(x, levels, dtype=dtype).ravel()

    def start(centres, data):
        return Categorical(jnp.zeros((*centres.shape, levels), centres.dtype))

    def log_probs(laws):
        table = jnp.maximum(laws.log_probs, _finite(laws.dtype)[0]).reshape(components, -1)
        return lambda x: table @ one_hot(x, laws.dtype)

    def statistics(laws, data, shares):
        seen = jax.vmap(lambda x: one_hot(x, laws.dtype))(data)
        return (shares.T @ seen).reshape(components, -1, levels)

    def maximise(laws, seen, counts):
        return Categorical(jnp.log(seen + smoothing) - jnp.log(counts + levels * smoothing)[:, None, None])

    def log_prior(laws):
        return smoothing * laws.log_probs.sum() if smoothing else jnp.zeros((), laws.dtype)

    return mixture(Components(prepare, start, log_probs, statistics, maximise, log_prior), components)


def _over(supported: Array, leaf: Array) -> Array:
    return supported.reshape(-1, *[1] * (leaf.ndim - 1))


def _finite(dtype: Any) -> tuple[float, float]:
    limit = float(-np.log(np.finfo(dtype).tiny))
    return -limit, limit


def _check_smoothing(smoothing: int | float) -> None:
    if not 0 <= smoothing < float("inf"):
        raise ValueError(f"smoothing must be at least 0 and finite, got {smoothing}")
