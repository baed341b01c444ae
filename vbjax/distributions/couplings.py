"""Laws of the noise that couples evaluations: uniforms with known break points, antithetic bits, draws without return.

Each is exact to integrate: a rule that knows where its integrand breaks, or an enumeration by a closed-form mass.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from vbjax.distributions.family import (
    Distribution,
    Integers,
    Interval,
    as_parameters,
    check_node_count,
    family,
    require,
    require_finite,
    static_field,
    vmap_over,
)
from vbjax.distributions.quadrature import tensor_rule, uniform_rule
from vbjax.types import Nodes


@family
class PiecewiseUniform(Distribution):
    """Uniform law on [0, 1), independent coordinates, for functions that may jump at the given break points.

    breaks: `(..., m)` in [0, 1], the m points of each coordinate. They change no draw: `nodes` is a Gauss-Legendre rule
    on each of the m + 1 pieces, exact for functions that are cubic on them or less, whatever the order.
    """

    breaks: Float[Array, "*event m"]
    support = Interval(0.0, 1.0)

    def __post_init__(self):
        as_parameters(self, "breaks")
        require(self, "breaks", lambda v: (v >= 0) & (v <= 1), "in [0, 1]")

    @property
    def event_shape(self):
        return self.breaks.shape[:-1]

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape + self.event_shape, self.dtype)

    def log_prob(self, x):
        return jnp.where(self.support.contains(x), 0, -jnp.inf).astype(self.dtype)

    def mean(self):
        return jnp.full(self.event_shape, 1 / 2, self.dtype)

    def variance(self):
        return jnp.full(self.event_shape, 1 / 12, self.dtype)

    def entropy(self):
        return jnp.zeros((), self.dtype)

    def nodes(self, order):
        shape = self.event_shape
        ends = np.broadcast_to([0.0, 1.0], (*shape, 2))
        edges = np.sort(np.concatenate([ends, np.asarray(self.breaks, np.float64)], axis=-1), axis=-1)
        low, width = edges[..., :-1, None], np.diff(edges)[..., None]
        per_piece = max(2, -(-order // (edges.shape[-1] - 1)))
        points, weights = uniform_rule(per_piece)
        points = (low + width * points).reshape(*shape, -1)
        weights = (width * weights).reshape(*shape, -1)
        points, weights = tensor_rule(points, weights, shape)
        return Nodes(jnp.asarray(points, self.dtype), jnp.asarray(weights, self.dtype), exact=False)


@family
class AntitheticBernoulli(Distribution):
    """`count` coin flips of the same coins, each Bernoulli(logits), any two of them negatively correlated.

    The Dirichlet copula of each coordinate: d ~ Dir(1_n) and the rarer side turns up in copy i where d_i > t,
    1 - t = q^{1/(n-1)}, q = min(p, 1 - p). Taking the *rarer* side gives the smaller correlation of the two ways to
    cut. Events are stacked on a leading axis of length n. For n = 2 this is the pair 1[u > 1 - p], 1[u < p].
    Source: Dimitriev & Zhou (2021), section 4.
    """

    logits: Float[Array, "*event"]
    count: int = static_field()
    discrete = True
    closed_form_entropy = False
    support = Integers(0, 1)

    def __post_init__(self):
        as_parameters(self, "logits")
        require(self, "logits", lambda v: np.full(v.shape, True), "a number")
        if self.count < 2:
            raise ValueError(f"AntitheticBernoulli.count must be at least 2, got {self.count}")

    @property
    def enumerable(self):
        return True

    @property
    def event_shape(self):
        return (self.count, *self.logits.shape)

    @property
    def rare(self) -> Float[Array, "*event"]:
        """q = min(p, 1 - p), the probability of the rarer side."""
        return jax.nn.sigmoid(-jnp.abs(self.logits))

    def centred(self, x: Float[Array, "count *event"]) -> Float[Array, "count *event"]:
        """x - p, without the rounding of p next to one."""
        return jnp.where(self.logits > 0, -1, 1).astype(self.dtype)[None] * (self._is_rare(x) - self.rare[None])

    def pair_correlation(self) -> Float[Array, "*event"]:
        """ρ of any two copies, per coordinate: ((1-2t)₊^{n-1} - q²) / (q(1-q)), at most zero."""
        q = self.rare
        both = jnp.maximum(1 - 2 * self._threshold(), 0) ** (self.count - 1)
        return jnp.where(both > 0, both / jnp.where(both > 0, q, 1) - q, -q) / (1 - q)

    def sample(self, key, shape=()):
        e = jax.random.exponential(key, shape + self.event_shape, self.dtype)
        return vmap_over(shape, self._flip)(e)

    def _flip(self, e):
        own = jnp.eye(self.count, dtype=bool).reshape(self.count, self.count, *[1] * self.logits.ndim)
        others = jnp.where(own, 0, e[None]).sum(1)
        # 1 - d_i < 1 - t, by sums of exponentials: 1 - d_i would round to zero
        rare = others < e.sum(0)[None] * jnp.exp(self._log_cut())[None]
        return jnp.where(self.logits[None] > 0, ~rare, rare).astype(self.dtype)

    def log_prob(self, x):
        """Inclusion-exclusion over the copies above t, P(those in S are) = (1 - |S| t)₊^{n-1}."""
        n, t = self.count, self._threshold()
        level = jnp.arange(n + 1, dtype=self.dtype).reshape(-1, *[1] * t.ndim)
        above = jnp.maximum(1 - level * t[None], 0) ** (n - 1)
        mass = jnp.stack(
            [sum((-1) ** j * math.comb(n - m, j) * above[m + j] for j in range(n - m + 1)) for m in range(n + 1)]
        )
        inside = self.support.contains(x)
        m = jnp.where(inside, self._is_rare(jnp.asarray(x, self.dtype)).sum(0), 0).astype(jnp.int32)
        mass = jnp.take_along_axis(mass, m[None], axis=0)[0]
        # shares that sum to one cannot all be below t < 1/n
        possible = inside & ((m > 0) | (n * t >= 1)) & (mass > 0)
        return jnp.where(possible, jnp.log(jnp.where(possible, mass, 1)), -jnp.inf).sum()

    def mean(self):
        return jnp.broadcast_to(jax.nn.sigmoid(self.logits), self.event_shape)

    def variance(self):
        return jnp.broadcast_to(self.rare * (1 - self.rare), self.event_shape)

    def enumerate(self):
        size = math.prod(self.event_shape)
        check_node_count(2**size)
        corners = np.indices((2,) * size).reshape(size, -1).T
        return jnp.asarray(corners.reshape(-1, *self.event_shape), self.dtype)

    def _log_cut(self):
        """log (1 - t)."""
        return jax.nn.log_sigmoid(-jnp.abs(self.logits)) / (self.count - 1)

    def _threshold(self):
        return -jnp.expm1(self._log_cut())

    def _is_rare(self, x):
        return jnp.where(self.logits[None] > 0, 1 - x, x)


class Distinct(Integers):
    """Integers that differ from each other, as well."""

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether every coordinate of the event is an integer inside, and none comes twice."""
        return super().contains(x) & jnp.all(jnp.diff(jnp.sort(x)) > 0)


@family
class WithoutReplacement(Distribution):
    """The first `count` indices drawn without replacement, in their order (Plackett-Luce).

    logits: `(k,)`, finite log-weights. Sampled by the `count` largest of logits + Gumbel noise. The event is int32 of
    shape `(count,)`. Source: Kool et al. (2020), section 2.
    """

    logits: Float[Array, " k"]
    count: int = static_field()
    discrete = True
    closed_form_entropy = False

    def __post_init__(self):
        as_parameters(self, "logits")
        require_finite(self, "logits")
        if self.logits.ndim != 1 or not 1 <= self.count <= self.logits.shape[0]:
            raise ValueError(f"WithoutReplacement.count must lie between 1 and the number of logits, got {self.count} "
                             f"for logits of shape {self.logits.shape}")  # fmt: skip

    @property
    def enumerable(self):
        return True

    @property
    def event_shape(self):
        return (self.count,)

    @property
    def support(self):
        return Distinct(0, self.logits.shape[0] - 1)

    def sample(self, key, shape=()):
        gumbel = jax.random.gumbel(key, shape + self.logits.shape, self.dtype)
        return vmap_over(shape, lambda g: jax.lax.top_k(self.logits + g, self.count)[1])(gumbel).astype(jnp.int32)

    def log_prob(self, x):
        """Σ_i logits[x_i] - log Σ exp of the logits that are left before draw i."""
        inside = self.support.contains(x)
        x = jnp.where(inside, x, jnp.arange(self.count, dtype=x.dtype)).astype(jnp.int32)
        taken = (x[:, None] == jnp.arange(self.logits.shape[0], dtype=jnp.int32)[None]).astype(jnp.int32)
        before = jnp.cumsum(taken, axis=0) > taken
        left = logsumexp(jnp.where(before, -jnp.inf, self.logits[None]), axis=1)
        return jnp.where(inside, jnp.sum(self.logits[x] - left), -jnp.inf)

    def enumerate(self):
        k = self.logits.shape[0]
        check_node_count(math.perm(k, self.count))
        return jnp.asarray(list(itertools.permutations(range(k), self.count)), jnp.int32)
