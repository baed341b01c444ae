"""Draws of a law as functions of standard noise, which stays put while the law's parameters move.

For nested sites: the noise of z2 is drawn before z1 is known. Reparameterised laws have such noise; discrete ones get
uniform numbers and their inverse distribution function. Read `StandardNoise` and `draw`, its two sides.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vbjax.distributions import Bernoulli, Categorical, Copies, Distribution, Joint, OneHotCategorical, Uniform
from vbjax.distributions.couplings import AntitheticBernoulli, PiecewiseUniform
from vbjax.distributions.family import family, static_field
from vbjax.distributions.hierarchy import depends
from vbjax.types import Event, NotAvailable, stop_gradient


@family
class StandardNoise(Distribution):
    """The noise from which `draw(law_at(z1), noise)` draws: a law that does not depend on z1.

    law_at: a callable pytree, z1 -> a law of one structure for all z1. first: the law of z1; if it is finite, the
    places where a discrete draw jumps are known, and with them exact nodes. estimator: named in refusals. Sampling
    and nodes raise `NotAvailable` for laws that have no such noise.
    """

    law_at: Any
    first: Any
    estimator: str = static_field()

    @property
    def event_shape(self):
        return self.law().event_shape

    def sample(self, key, shape=()):
        return self.law().sample(key, shape)

    def nodes(self, order):
        return self.law(exact=self.first.enumerable).nodes(order)

    def law(self, *, exact: bool = False) -> Any:
        """The same law built of known families; exact: with the jumps of the discrete draws at every z1."""
        first = self.first
        z1 = first.enumerate() if exact else jax.tree.map(lambda x: x[None], first.sample(jax.random.key(0)))
        laws = stop_gradient(jax.vmap(self.law_at)(z1))
        return self._standard(laws, z1, lambda law: law, exact)

    def _standard(self, laws, z1, part, exact):
        """laws: the law at every z1, stacked. part: picks, from the whole law at one z1, the part treated here."""

        def again(laws, inner):
            return self._standard(laws, z1, lambda law: inner(part(law)), exact)

        if isinstance(laws, Joint):
            return Joint(tuple(again(sub, lambda law, i=i: law.laws[i]) for i, sub in enumerate(laws.laws)))
        if isinstance(laws, Copies):
            return Copies(again(laws.base, lambda law: law.base), laws.count)
        if isinstance(laws, StandardNoise):
            return again(jax.vmap(lambda law: law.law(exact=exact))(laws), lambda law: law.law(exact=exact))
        if isinstance(laws, Bernoulli):
            return _uniform(laws.probs[..., None], exact)
        if isinstance(laws, (Categorical, OneHotCategorical)):
            return _uniform(_breaks(laws.probs), exact)
        if isinstance(laws, PiecewiseUniform):
            return _uniform(laws.breaks, exact)
        if _antithetic_pair(laws):
            return _uniform(jnp.stack([jax.nn.sigmoid(-laws.logits), jax.nn.sigmoid(laws.logits)], -1), exact)

        def noise(law):
            return law.noise() if law.reparameterised else law

        law = jax.tree.map(lambda x: x[0], laws)
        if depends(lambda z1: jax.tree.leaves(noise(part(self.law_at(z1)))), jax.tree.map(lambda x: x[0], z1)):
            raise NotAvailable(
                f"{self.estimator}: the noise of a {type(law).__name__} in an inner site moves with the outer event; "
                "inner sites may be Bernoulli, Categorical, OneHotCategorical, or have noise without parameters."
            )
        return noise(law)


def draw(law: Any, noise: Event) -> Event:
    """An event of the law from its standard noise; no gradient flows into it."""
    return stop_gradient(_draw(law, noise))


def _draw(law, u):
    if isinstance(law, Joint):
        return tuple(_draw(part, u_i) for part, u_i in zip(law.laws, u, strict=True))
    if isinstance(law, Copies):
        return jax.vmap(lambda u: _draw(law.base, u))(u)
    if isinstance(law, Bernoulli):
        return (u < law.probs).astype(law.dtype)
    if isinstance(law, (Categorical, OneHotCategorical)):
        index = jnp.sum(u[..., None] >= _breaks(law.probs), axis=-1, dtype=jnp.int32)
        return index if isinstance(law, Categorical) else jax.nn.one_hot(index, law.logits.shape[-1], dtype=law.dtype)
    if _antithetic_pair(law):
        return jnp.stack([u >= jax.nn.sigmoid(-law.logits), u < jax.nn.sigmoid(law.logits)]).astype(law.dtype)
    return law.transport(u) if law.reparameterised else u


def _breaks(probs: Array) -> Array:
    """Where the inverse distribution function jumps; exactly one from the last possible category on."""
    below = jnp.cumsum(probs, -1)
    return (below / below[..., -1:])[..., :-1]


def _antithetic_pair(law):
    """More than two antithetic copies take more than one uniform."""
    return isinstance(law, AntitheticBernoulli) and law.count == 2


def _uniform(breaks: Array, exact: bool) -> Any:
    """breaks: `(n1, *event, m)`, for every z1; without all of them there is no exact rule."""
    breaks = jnp.minimum(jnp.moveaxis(breaks, 0, -2), 1)
    breaks = breaks.reshape(*breaks.shape[:-2], -1)
    if exact:
        return PiecewiseUniform(breaks)
    return Uniform(jnp.zeros_like(breaks[..., 0]), jnp.ones_like(breaks[..., 0]))
