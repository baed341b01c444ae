"""Discrete families: Bernoulli, categorical, one-hot categorical, Poisson.

Logits reach ±inf (probabilities of exactly zero and one) without NaN in densities, entropies or their gradients.
Events carry the parameters' floating-point type, except the index of a `Categorical`, which is int32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, xlogy
from jaxtyping import Array, Float

from vbjax.distributions.family import (
    Distribution,
    Integers,
    Simplex,
    as_parameters,
    check_node_count,
    family,
    require,
)
from vbjax.distributions.quadrature import tensor_rule
from vbjax.types import Nodes


@family
class Bernoulli(Distribution):
    """Independent coin flips on {0, 1}; logits: log p/(1-p) per coordinate, ±inf allowed."""

    logits: Float[Array, "*event"]
    discrete = True
    support = Integers(0, 1)

    def __post_init__(self):
        as_parameters(self, "logits")
        require(self, "logits", lambda v: np.full(v.shape, True), "a number")

    @classmethod
    def from_probs(cls, probs) -> "Bernoulli":
        """Build from probabilities in [0, 1]."""
        return cls(logit(check_probability("Bernoulli.probs", probs)))

    @property
    def enumerable(self):
        return True

    @property
    def probs(self) -> Float[Array, "*event"]:
        """Probability of a one."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key, shape=()):
        probs = jnp.broadcast_to(self.probs, shape + self.logits.shape)
        return jax.random.bernoulli(key, probs).astype(self.dtype)

    def log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        # -softplus of ∓logits: one branch, stable for every logit, and 0 · inf never occurs
        log_density = -jnp.sum(jax.nn.softplus(jnp.where(x == 1, -self.logits, self.logits)))
        return jnp.where(self.support.contains(x), log_density, -jnp.inf)

    def mean(self):
        return self.probs

    def variance(self):
        return self.probs * jax.nn.sigmoid(-self.logits)

    def entropy(self):
        size = jnp.abs(self.logits)
        certain = jnp.isinf(size)
        size = jnp.where(certain, 0, size)
        terms = jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)
        return jnp.sum(jnp.where(certain, 0, terms))

    def enumerate(self):
        check_node_count(2**self.logits.size)
        corners = np.indices((2,) * self.logits.size).reshape(self.logits.size, -1).T
        return jnp.asarray(corners.reshape(-1, *self.logits.shape), self.dtype)


@family
class Categorical(Distribution):
    """One index out of k; logits: `(..., k)`, -inf for probability zero. Leading axes are independent.

    The event has the leading shape and dtype int32.
    """

    logits: Float[Array, "*event k"]
    discrete = True

    def __post_init__(self):
        as_parameters(self, "logits")
        _require_logits(self)

    @classmethod
    def from_probs(cls, probs) -> "Categorical":
        """Build from non-negative probabilities that sum to one along the last axis."""
        return cls(jnp.log(check_simplex("Categorical.probs", probs)))

    @property
    def enumerable(self):
        return True

    @property
    def event_shape(self):
        return self.logits.shape[:-1]

    @property
    def support(self):
        return Integers(0, self.logits.shape[-1] - 1)

    @property
    def log_probs(self) -> Float[Array, "*event k"]:
        """Normalised log-probabilities, in nats."""
        return jax.nn.log_softmax(self.logits)

    @property
    def probs(self) -> Float[Array, "*event k"]:
        """Probabilities."""
        return jax.nn.softmax(self.logits)

    def sample(self, key, shape=()):
        return jax.random.categorical(key, self.logits, shape=shape + self.event_shape).astype(jnp.int32)

    def log_prob(self, x):
        inside = self.support.contains(x)
        index = jnp.where(inside, x, 0).astype(jnp.int32)
        chosen = jnp.take_along_axis(self.log_probs, index[..., None], axis=-1)
        return jnp.where(inside, chosen.sum(), -jnp.inf)

    def mean(self):
        return self.probs @ jnp.arange(self.logits.shape[-1], dtype=self.dtype)

    def variance(self):
        k = jnp.arange(self.logits.shape[-1], dtype=self.dtype)
        deviation = jnp.expand_dims(k, tuple(range(self.logits.ndim - 1))) - self.mean()[..., None]
        return jnp.sum(self.probs * deviation**2, axis=-1)

    def entropy(self):
        return -expected_log(self.probs, self.log_probs).sum()

    def enumerate(self):
        shape, k = self.event_shape, self.logits.shape[-1]
        size = math.prod(shape)
        check_node_count(k**size)
        return jnp.asarray(np.indices((k,) * size).reshape(size, -1).T.reshape(-1, *shape), jnp.int32)


@family
class OneHotCategorical(Distribution):
    """A corner of the simplex; logits: `(..., k)`, -inf for probability zero. Leading axes are independent."""

    logits: Float[Array, "*event"]
    discrete = True
    support = Simplex(one_hot=True)

    def __post_init__(self):
        as_parameters(self, "logits")
        _require_logits(self)

    @classmethod
    def from_probs(cls, probs) -> "OneHotCategorical":
        """Build from non-negative probabilities that sum to one along the last axis."""
        return cls(jnp.log(check_simplex("OneHotCategorical.probs", probs)))

    @property
    def enumerable(self):
        return True

    def index(self) -> Categorical:
        """The law of the index of the one."""
        return Categorical(self.logits)

    @property
    def log_probs(self) -> Float[Array, "*event"]:
        """Normalised log-probabilities, in nats."""
        return self.index().log_probs

    @property
    def probs(self) -> Float[Array, "*event"]:
        """Probabilities."""
        return self.index().probs

    def sample(self, key, shape=()):
        return self._one_hot(self.index().sample(key, shape))

    def log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        return jnp.where(self.support.contains(x), self.index().log_prob(jnp.argmax(x, axis=-1)), -jnp.inf)

    def mean(self):
        return self.probs

    def variance(self):
        return self.probs * (1 - self.probs)

    def entropy(self):
        return self.index().entropy()

    def enumerate(self):
        return self._one_hot(self.index().enumerate())

    def _one_hot(self, index):
        return jax.nn.one_hot(index, self.logits.shape[-1], dtype=self.dtype)


@family
class Poisson(Distribution):
    """Independent counts with mean and variance `rate` >= 0."""

    rate: Float[Array, "*event"]
    discrete = True
    closed_form_entropy = False
    support = Integers(0, jnp.inf)

    def __post_init__(self):
        as_parameters(self, "rate")
        require(self, "rate", lambda v: (v >= 0) & np.isfinite(v), "non-negative and finite")

    def sample(self, key, shape=()):
        if jax.random.key_impl(key) != "threefry2x32":
            # JAX draws counts from its own generator only
            key = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
        return jax.random.poisson(key, self.rate, shape + self.rate.shape).astype(self.dtype)

    def log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        inside = self.support.contains(x)
        x = jnp.where(inside, x, 0)
        # no count, no logarithm: its derivative 0/0 at a rate of zero would be NaN
        counts = xlogy(x, jnp.where(x > 0, self.rate, 1))
        return jnp.where(inside, jnp.sum(counts - self.rate - gammaln(x + 1)), -jnp.inf)

    def mean(self):
        return self.rate

    def variance(self):
        return self.rate

    def nodes(self, order):
        rate = np.asarray(self.rate, np.float64)[..., None]
        start = np.maximum(np.floor(rate) - order // 2, 0)
        counts = start + np.arange(order, dtype=np.float64)
        log_weights = np.asarray(xlogy(counts, rate) - rate - gammaln(counts + 1), np.float64)
        points, weights = tensor_rule(counts, np.exp(log_weights), self.rate.shape)
        return Nodes(jnp.asarray(points, self.dtype), jnp.asarray(weights, self.dtype), exact=False)


def expected_log(probs: Array, log_values: Array) -> Array:
    """`Σ_k p_k log v_k` over the last axis with 0 · log 0 = 0, and finite gradients there."""
    possible = probs > 0
    return jnp.sum(jnp.where(possible, probs * jnp.where(possible, log_values, 0), 0), axis=-1)


def logit(probs: Array) -> Array:
    """log p/(1-p), exact at zero and one."""
    return jnp.log(probs) - jnp.log1p(-probs)


def check_probability(name: str, probs) -> Array:
    """Return the array; ValueError unless concrete values lie in [0, 1]."""
    probs = jnp.asarray(probs)
    if not isinstance(probs, jax.core.Tracer) and not np.all((np.asarray(probs) >= 0) & (np.asarray(probs) <= 1)):
        raise ValueError(f"{name} must lie in [0, 1]")
    return probs


def check_simplex(name: str, probs) -> Array:
    """Return the array; ValueError unless concrete values are non-negative and sum to one along the last axis."""
    probs = check_probability(name, probs)
    if not isinstance(probs, jax.core.Tracer) and not np.allclose(np.asarray(probs).sum(-1), 1, atol=1e-5):
        raise ValueError(f"{name} must sum to one along the last axis")
    return probs


def _require_logits(dist) -> None:
    if dist.logits.ndim < 1:
        raise ValueError(f"{type(dist).__name__}.logits must have a last axis of length k, got a scalar")
    require(dist, "logits", lambda v: v < np.inf, "below +inf")
    require(dist, "logits", lambda v: v.max(-1) > -np.inf, "finite for one category at least")
