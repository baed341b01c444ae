"""Laws whose second event depends on the first: p(z1, z2) = p(z1) p(z2 | z1), deeper by nesting."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from vbjax.distributions.compound import Joint, OfParts
from vbjax.distributions.family import check_node_count, family, vmap_over
from vbjax.types import Event, Nodes, stop_gradient


@family
class Hierarchy(OfParts):
    """The law of (z1, z2): z1 by `first`, then z2 by the law `then(z1)`.

    then: a pytree that can be called, as `jax.tree_util.Partial(function, parameters)`, so that its parameters are
    leaves; a plain function that closes over parameters would hide them. The law it returns keeps its type and the
    shape of its event. Raises TypeError for a plain function.
    """

    first: Any
    then: Any
    closed_form_entropy = False

    def __post_init__(self):
        leaves = jax.tree.leaves(self.then)
        if not callable(self.then) or any(callable(leaf) for leaf in leaves):
            raise TypeError("Hierarchy.then must be a callable pytree: jax.tree_util.Partial(function, parameters)")

    def second(self) -> Any:
        """The law of z2 at some z1: for its type and its shapes, not for its numbers."""
        return self.then(self.first.sample(jax.random.key(0)))

    def _parts(self):
        return self.first, self.second()

    @property
    def event_shape(self):
        return tuple(part.event_shape for part in self._parts())

    @property
    def dtype(self):
        return self.first.dtype

    def sample(self, key, shape=()):
        key_first, key_second = jax.random.split(key)
        z1 = self.first.sample(key_first, shape)
        keys = jax.random.split(key_second, shape)
        return z1, vmap_over(shape, lambda z1, key: self.then(z1).sample(key))(z1, keys)

    def log_prob(self, x):
        z1, z2 = x
        return self.first.log_prob(z1) + self.then(z1).log_prob(z2)

    def noise(self):
        first = self.first.noise()

        def second(noise):
            return self.then(self.first.transport(noise)).noise()

        example = first.sample(jax.random.key(0))
        if not depends(lambda noise: jax.tree.leaves(second(noise)), example):
            return Joint((first, second(example)))
        return Hierarchy(first, jax.tree_util.Partial(_second_noise, stop_gradient((self.first, self.then))))

    def transport(self, noise):
        first, second = noise
        z1 = self.first.transport(first)
        return z1, self.then(z1).transport(second)

    def enumerate(self):
        if not self.enumerable:
            return super().enumerate()
        z1 = self.first.enumerate()
        return self._pairs(z1, self._for_each(z1, lambda law: law.enumerate()))

    def nodes(self, order):
        first = self.first.nodes(order)
        points, weights = self._for_each(first.points, lambda law: law.nodes(order)[:2])
        exact = first.exact and self.second().nodes(order).exact
        return Nodes(self._pairs(first.points, points), (first.weights[:, None] * weights).ravel(), exact)

    def _for_each(self, z1: Event, of: Callable[[Any], Any]) -> Any:
        """The points of z2 for every z1 of a stack: `(n1, n2, ...)`."""
        try:
            return jax.vmap(lambda z1: of(self.then(z1)))(z1)
        except jax.errors.TracerArrayConversionError:  # a rule that depends on the law's numbers
            count = jax.tree.leaves(z1)[0].shape[0]
            laws = [self.then(jax.tree.map(lambda x, i=i: x[i], z1)) for i in range(count)]
            return jax.tree.map(lambda *xs: jnp.stack(xs), *map(of, laws))

    def _pairs(self, z1: Event, z2: Event) -> Event:
        n1, n2 = jax.tree.leaves(z2)[0].shape[:2]
        check_node_count(n1 * n2)
        first = jax.tree.map(lambda x: jnp.repeat(x, n2, axis=0), z1)
        return first, jax.tree.map(lambda x: x.reshape(n1 * n2, *x.shape[2:]), z2)


def depends(function: Callable[[Event], Any], x: Event) -> bool:
    """Whether the result of a function, a pytree of arrays, can depend on the value of its argument.

    Read off the traced program: True may be too cautious, False is certain.
    """
    program = jax.make_jaxpr(function)(x).jaxpr
    moved = set(program.invars)
    for equation in program.eqns:
        if any(v in moved for v in equation.invars if not isinstance(v, Literal)):
            moved.update(equation.outvars)
    return any(v in moved for v in program.outvars if not isinstance(v, Literal))


def _second_noise(laws, noise):
    first, then = laws
    return then(first.transport(noise)).noise()
