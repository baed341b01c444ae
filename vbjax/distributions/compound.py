"""Laws built from laws: independent copies, joint laws, finite mixtures."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from vbjax.distributions.family import (
    Distribution,
    Power,
    Product,
    Union,
    check_node_count,
    family,
    is_shape,
    require,
    static_field,
    vmap_over,
)
from vbjax.types import Nodes, stop_gradient


class OfParts(Distribution):
    """A law made of others, which can do what all of its parts can."""

    @property
    def reparameterised(self) -> bool:  # type: ignore[override]
        return all(part.reparameterised for part in self._parts())

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        return all(part.discrete for part in self._parts())

    @property
    def fixed_support(self) -> bool:  # type: ignore[override]
        return all(part.fixed_support for part in self._parts())

    @property
    def enumerable(self) -> bool:
        return all(part.enumerable for part in self._parts())

    @property
    def support(self):
        return Product(tuple(part.support for part in self._parts()))

    def _parts(self) -> tuple[Any, ...]:
        raise NotImplementedError


class _Independent(OfParts):
    """Independent parts; subclasses say how the parts are stored and how their events are put together."""

    @property
    def closed_form_entropy(self) -> bool:  # type: ignore[override]
        return all(part.closed_form_entropy for part in self._parts())

    def _assemble(self, parts: list[Any]) -> Any:
        raise NotImplementedError

    def enumerate(self):
        if not self.enumerable:
            return super().enumerate()
        return self._tensor([part.enumerate() for part in self._parts()])[0]

    def nodes(self, order):
        rules = [part.nodes(order) for part in self._parts()]
        points, grid = self._tensor([rule.points for rule in rules])
        weights = jnp.stack([rule.weights[i] for rule, i in zip(rules, grid, strict=True)])
        return Nodes(points, jnp.prod(weights, axis=0), all(rule.exact for rule in rules))

    def _tensor(self, points: list[Any]) -> tuple[Any, np.ndarray]:
        """Tensor product of the parts' points, and which point of each part it took: `(parts, n)`."""
        sizes = [jax.tree.leaves(part)[0].shape[0] for part in points]
        check_node_count(math.prod(sizes))
        grid = np.indices(sizes).reshape(len(sizes), -1)
        chosen = [jax.tree.map(lambda x, i=i: x[i], part) for part, i in zip(points, grid, strict=True)]
        return jax.vmap(lambda *xs: self._assemble(list(xs)))(*chosen), grid


@family
class Copies(_Independent):
    """`count` independent copies of one law; events are stacked on a leading axis of length `count`."""

    base: Any
    count: int = static_field()

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"Copies.count must be at least 1, got {self.count}")

    def _parts(self):
        return (self.base,) * self.count

    def _assemble(self, parts):
        return jax.tree.map(lambda *xs: jnp.stack(xs), *parts)

    @property
    def event_shape(self):
        return jax.tree.map(lambda shape: (self.count, *shape), self.base.event_shape, is_leaf=is_shape)

    @property
    def support(self):
        return Power(self.base.support)

    def sample(self, key, shape=()):
        return self.base.sample(key, (*shape, self.count))

    def log_prob(self, x):
        return jax.vmap(self.base.log_prob)(x).sum()

    def mean(self):
        return self._assemble([self.base.mean()] * self.count)

    def variance(self):
        return self._assemble([self.base.variance()] * self.count)

    def entropy(self):
        return self.count * self.base.entropy()

    def noise(self):
        return Copies(self.base.noise(), self.count)

    def transport(self, noise):
        return jax.vmap(self.base.transport)(noise)

    def inverse_transport(self, x):
        return jax.vmap(self.base.inverse_transport)(x)

    def reflect(self, x):
        return jax.vmap(self.base.reflect)(x)

    def quantile(self, u):
        return jax.vmap(self.base.quantile)(u)


@family
class Joint(_Independent):
    """Independent laws of different kinds; the event is a tuple with one entry per law."""

    laws: tuple[Any, ...]

    def _parts(self):
        return self.laws

    def _assemble(self, parts):
        return tuple(parts)

    @property
    def event_shape(self):
        return tuple(law.event_shape for law in self.laws)

    def sample(self, key, shape=()):
        keys = jax.random.split(key, len(self.laws))
        return tuple(law.sample(k, shape) for law, k in zip(self.laws, keys, strict=True))

    def log_prob(self, x):
        return sum(law.log_prob(x_i) for law, x_i in zip(self.laws, x, strict=True))

    def mean(self):
        return tuple(law.mean() for law in self.laws)

    def variance(self):
        return tuple(law.variance() for law in self.laws)

    def entropy(self):
        return sum(law.entropy() for law in self.laws)

    def noise(self):
        return Joint(tuple(law.noise() for law in self.laws))

    def transport(self, noise):
        return tuple(law.transport(e) for law, e in zip(self.laws, noise, strict=True))

    def inverse_transport(self, x):
        return tuple(law.inverse_transport(x_i) for law, x_i in zip(self.laws, x, strict=True))

    def reflect(self, x):
        return tuple(law.reflect(x_i) for law, x_i in zip(self.laws, x, strict=True))

    def quantile(self, u):
        return tuple(law.quantile(u_i) for law, u_i in zip(self.laws, u, strict=True))


@family
class Mixture(Distribution):
    """Finite mixture `Σ_k softmax(logits)_k components_k`.

    logits: `(k,)`, -inf for a component of weight zero. components: one distribution whose parameters carry the
    component axis first, e.g. `Normal(loc=(k, d), scale=(k, d))` for a mixture over R^d. Reparameterised, by
    `implicit_mixture`, where the components have independent coordinates with a distribution function: normal,
    Laplace, logistic.
    """

    logits: Float[Array, " k"]
    components: Any
    closed_form_entropy = False

    def __post_init__(self):
        object.__setattr__(self, "logits", jnp.asarray(self.logits, self.components.dtype))
        require(self, "logits", lambda v: (v < np.inf) & (v.max() > -np.inf), "below +inf, one at least finite")
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(self.components)}
        if sizes != {self.logits.shape}:
            raise ValueError(f"Mixture.components must have leading axis {self.logits.shape} like logits, got {sizes}")

    @property
    def reparameterised(self) -> bool:  # type: ignore[override]
        return self.components.closed_form_cdf

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        return self.components.discrete

    @property
    def fixed_support(self) -> bool:  # type: ignore[override]
        return self.components.fixed_support

    @property
    def event_shape(self):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.components).event_shape

    @property
    def enumerable(self) -> bool:
        return self.components.enumerable

    @property
    def support(self):
        if self.fixed_support:
            return self._component(0).support
        return Union(tuple(self._component(k).support for k in range(self.logits.shape[0])))

    def _component(self, k):
        return jax.tree.map(lambda leaf: leaf[k], self.components)

    def sample(self, key, shape=()):
        key_component, key_event = jax.random.split(key)
        k = jax.random.categorical(key_component, self.logits, shape=shape)
        keys = jax.random.split(key_event, shape)
        return vmap_over(shape, lambda k, key: self._component(k).sample(key))(k, keys)

    def noise(self):
        if not self.reparameterised:
            return super().noise()
        return stop_gradient(self)

    def transport(self, noise):
        if not self.reparameterised:
            return super().transport(noise)
        return implicit_mixture(self, noise)

    def log_prob(self, x):
        return logsumexp(self.component_log_probs(x))

    def component_log_probs(self, x) -> Float[Array, " k"]:
        """`log w_k + log p_k(x)` for each component, in nats; their softmax is the posterior of the component."""
        return jax.nn.log_softmax(self.logits) + jax.vmap(lambda law: law.log_prob(x))(self.components)

    def mean(self):
        return jnp.tensordot(jax.nn.softmax(self.logits), jax.vmap(lambda law: law.mean())(self.components), 1)

    def variance(self):
        means = jax.vmap(lambda law: law.mean())(self.components)
        spread = jax.vmap(lambda law: law.variance())(self.components) + (means - self.mean()[None]) ** 2
        return jnp.tensordot(jax.nn.softmax(self.logits), spread, 1)

    def enumerate(self):
        return self._component(0).enumerate()

    def nodes(self, order):
        if self.enumerable:
            return super().nodes(order)
        rules = [self._component(k).nodes(order) for k in range(self.logits.shape[0])]
        shares = jax.nn.softmax(self.logits)
        return Nodes(
            jax.tree.map(lambda *xs: jnp.concatenate(xs), *(rule.points for rule in rules)),
            jnp.concatenate([share * rule.weights for share, rule in zip(shares, rules, strict=True)]),
            all(rule.exact for rule in rules),
        )


@jax.custom_jvp
def implicit_mixture(mixture: Mixture, z: Array) -> Array:
    """Return the sample z of the mixture, with its derivative in the parameters η by implicit differentiation.

    The distributional transform u(z; η) of independent uniforms, u_i = F(z_i | z_1, …, z_{i-1}), holds u fixed as η
    moves: ∂u/∂z dz + ∂u/∂η dη = 0, and ∂u/∂z is lower triangular. In one dimension dz/dη = -(∂F/∂η) / p(z). The
    noise is the sample itself. Source: Graves (2016); Figurnov et al. (2018), section 4.
    """
    del mixture
    return z


@implicit_mixture.defjvp
def _implicit_mixture_jvp(primals, tangents):
    (mixture, z), (mixture_dot, z_dot) = primals, tangents
    z = implicit_mixture(mixture, z)  # so that a further derivative follows z as η moves
    slope = jax.jacfwd(_distributional_transform, argnums=1)(mixture, z.ravel())
    _, moved = jax.jvp(lambda mixture: _distributional_transform(mixture, z.ravel()), (mixture,), (mixture_dot,))
    back = jax.lax.linalg.triangular_solve(slope, moved[:, None], left_side=True, lower=True)
    return z, z_dot - back.reshape(z.shape)


def _distributional_transform(mixture: Mixture, z: Float[Array, " d"]) -> Float[Array, " d"]:
    """F(z_i | z_1, …, z_{i-1}) for each coordinate, less one above a half: so both tails keep their digits."""
    laws = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), mixture.components)

    def of_components(function):
        return jax.vmap(lambda laws: jax.vmap(function)(laws, z))(laws)

    log_density = of_components(lambda law, z: law.log_prob(z))
    # component probabilities given the coordinates before each
    log_joint = jax.nn.log_softmax(mixture.logits)[:, None] + jnp.cumsum(log_density, 1) - log_density
    weight = jax.nn.softmax(log_joint, axis=0)
    below = jnp.sum(weight * of_components(lambda law, z: law.cdf(z)), 0)
    above = jnp.sum(weight * of_components(lambda law, z: law.cdf(law.reflect(z))), 0)
    return jnp.where(below < above, below, -above)
