"""Exact moments of an estimator at many parameters of one problem, compiled once: the curves of the literature.

`exact_moments` compiles for every problem that it is given; a curve of thirty points needs one program. Start at
`exact_sweep`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from vbjax.distributions import Distribution
from vbjax.distributions.family import family
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import expectation
from vbjax.types import GradientEstimator, Nodes, Problem


class Sweep(NamedTuple):
    """Moments of a gradient at n settings of d parameters, flattened in the tree's order.

    mean, variance: `(n, d)`, of one estimate. error: the certificate of the quadrature, as in `exact.Certified`.
    """

    mean: Float[np.ndarray, "n d"]
    variance: Float[np.ndarray, "n d"]
    error: float


@family
class OneOf(Distribution):
    """One of n laws, each with probability 1/n; the event is (its index, its event). Only its nodes are wanted."""

    laws: tuple[Any, ...]

    def nodes(self, order):
        rules = [law.nodes(order) for law in self.laws]
        index = np.concatenate([np.full(len(rule.weights), i, np.int32) for i, rule in enumerate(rules)])
        points = jax.tree.map(lambda *x: jnp.concatenate(x), *(rule.points for rule in rules))
        weights = jnp.concatenate([rule.weights for rule in rules]) / len(rules)
        return Nodes((jnp.asarray(index), points), weights, all(rule.exact for rule in rules))


def exact_sweep(
    estimator: GradientEstimator,
    problem: Problem,
    settings: Sequence[Any],
    *,
    states: Sequence[Any] | None = None,
    rtol: float | None = None,
) -> Sweep:
    """Mean and variance of the gradient at every setting, each certified by itself; float64 throughout.

    settings: parameters of one structure. states: one for each setting; by default a fresh one. Raises as
    `exact.expectation`.
    """
    with jax.enable_x64(True):
        settings = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params) for params in settings]
        laws = [problem(params)[0] for params in settings]
        if states is None:
            states = [estimator.init(q) for q in laws]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *settings)
        stacked_states = jax.tree.map(lambda *x: jnp.stack(x), *states)

        def squares(event):
            i, noise = event
            params, state = jax.tree.map(lambda x: x[i], (stacked, stacked_states))
            gradient = ravel_pytree(value_and_grad_at(noise, estimator, problem, params, state)[1])[0]
            mine = jnp.where(jnp.arange(len(settings), dtype=i.dtype) == i, float(len(settings)), 0.0)
            # one leaf for each setting, because the certificate is relative to the leaf
            return [(m * gradient, m * gradient**2) for m in mine]

        certified = expectation(OneOf(tuple(estimator.noise(q) for q in laws)), squares, rtol=rtol)
        mean, second = (np.stack([np.asarray(leaf[j]) for leaf in certified.value]) for j in range(2))
    return Sweep(mean, np.maximum(second - mean**2, 0), certified.error)
