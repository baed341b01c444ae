"""Deep belief nets: a restricted Boltzmann machine for the codes of another, and the bound that says why that helps.

Training layer by layer keeps p(v|h) and q(h|v) of the first machine and replaces its p(h) by a better law of the codes:
the variational bound, tight at first, rises with every nat that the new law gains on them. Start at `layerwise_bound`.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import Bernoulli, Mixture
from vbjax.distributions.discrete import expected_log
from vbjax.energy.rbm import RBM, Hidden, Visible, gibbs_chain
from vbjax.energy.states import MAX_UNITS, at_states, check_units, log_sum_exp
from vbjax.types import PRNGKey, Scalar


class LayerwiseBound(NamedTuple):
    """A lower bound on log p(v), by its terms, in nats: `total = reconstruction + prior + entropy`.

    reconstruction: E_q log p(v|h). prior: E_q log p(h), or of a lower bound on it. entropy: of q(h|v).
    """

    reconstruction: Scalar
    prior: Scalar
    entropy: Scalar

    @property
    def total(self) -> Array:
        """The bound itself."""
        return self.reconstruction + self.prior + self.entropy


def layerwise_bound(rbm: RBM, v: Visible, log_prior: Callable[[Hidden], Scalar]) -> LayerwiseBound:
    """The bound of one datum under p(v|h) of the machine, any p(h), and q(h|v) of the machine; exact, over all h.

    log_prior: `h -> log p(h)`. With the machine's own, `rbm.transposed.log_prob`, the bound is log p(v). Raises
    ValueError for more than `MAX_UNITS` hidden units. Source: Hinton, Osindero and Teh (2006), section 4.
    """
    q = rbm.given_visible(v)

    def logarithms(h):
        return q.log_prob(h), rbm.given_hidden(h).log_prob(v), log_prior(h)

    log_q, log_likelihood, log_p = at_states(logarithms, _codes(rbm), rbm.weights.dtype)
    weights = jnp.exp(log_q)
    return LayerwiseBound(expected_log(weights, log_likelihood), expected_log(weights, log_p), q.entropy())


def aggregated_posterior(rbm: RBM, data: Float[Array, "data visible"]) -> Mixture:
    """The mean of q(h|v) over data, a law of h: of all p(h) the one with the largest mean bound on these data."""
    logits = jax.vmap(lambda v: rbm.given_visible(v).logits)(data)
    return Mixture(jnp.zeros_like(logits[:, 0]), Bernoulli(logits))


class DeepBeliefNet(NamedTuple):
    """p(v, h1, …) = p(v|h1) p(h1|h2) … p(h_{L-1}, h_L): directed layers under one undirected pair.

    machines: the first one next to the data; each one's hidden units are the visible units of the next. All but the
    last give p(below|above) and q(above|below) alone; the last is the top pair. `(rbm, rbm.transposed)` has the law
    of `rbm` itself: where greedy training of a second layer starts. Source: Hinton, Osindero and Teh (2006).
    """

    machines: tuple[RBM, ...]

    def log_prob(self, v: Visible) -> Scalar:
        """log p(v), in nats, by summing over the codes of every layer; raises ValueError as `bound` does."""
        self._check()
        return _log_weight(self.machines, v) - self.machines[-1].log_partition()

    def bound(self, v: Visible) -> LayerwiseBound:
        """The bound of one datum, whose prior is that of the codes' own bounds, up to the top pair's log p(h).

        Raises ValueError for machines that do not fit each other, for fewer than two, and where the codes below the
        top pair have more than `MAX_UNITS` units in all.
        """
        self._check()
        return _bound(self.machines, self.machines[-1].log_partition(), v)

    def sample(self, key: PRNGKey, top: Float[Array, " code"], *, steps: int) -> Visible:
        """A draw of v: that many Gibbs steps of the top pair from the code `top`, and a pass down; exact in the limit.

        Raises ValueError for machines that do not fit each other, and below one step.
        """
        _check_fit(self.machines)
        key_top, *keys = jax.random.split(key, len(self.machines))
        code = gibbs_chain(key_top, self.machines[-1], top, steps=steps)
        for key_layer, rbm in zip(keys, reversed(self.machines[:-1]), strict=True):
            code = rbm.given_hidden(code).sample(key_layer)
        return code

    def _check(self) -> None:
        _check_fit(self.machines)
        codes = sum(rbm.weights.shape[1] for rbm in self.machines[:-1])
        check_units("a deep belief net", codes, MAX_UNITS, "average the terms over codes drawn from given_visible")


def _bound(machines: tuple[RBM, ...], log_z: Scalar, v: Visible) -> LayerwiseBound:
    """log_z: of the top pair, computed once for all codes."""
    first, *rest = machines
    if len(rest) == 1:
        return layerwise_bound(first, v, lambda h: -rest[0].free_energy(h) - log_z)
    return layerwise_bound(first, v, lambda h: _bound(tuple(rest), log_z, h).total)


def _log_weight(machines: tuple[RBM, ...], v: Visible) -> Scalar:
    """log p(v), without the top pair's log Z."""
    first, *rest = machines
    if not rest:
        return -first.free_energy(v)
    return log_sum_exp(
        lambda h: first.given_hidden(h).log_prob(v) + _log_weight(tuple(rest), h), _codes(first), first.weights.dtype
    )


def _codes(rbm: RBM) -> int:
    hidden = rbm.weights.shape[1]
    check_units("a layer's bound", hidden, MAX_UNITS, "average its terms over draws of given_visible")
    return hidden


def _check_fit(machines: tuple[RBM, ...]) -> None:
    shapes = [rbm.weights.shape for rbm in machines]
    fits = all(below[1] == above[0] for below, above in itertools.pairwise(shapes))
    if len(shapes) < 2 or not fits:
        raise ValueError(
            "machines must be two or more, each with as many visible units as the one before has hidden ones, got "
            f"{shapes}; (rbm, rbm.transposed) always fits"
        )
