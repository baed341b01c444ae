"""Combinations of unbiased estimators: weights that sum to one, and never see the draws that they weigh."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vbjax.bounds import LogWeight
from vbjax.distributions import Copies, Joint
from vbjax.estimators.estimate import inject
from vbjax.types import GradientEstimator, Objective, Spec, stop_gradient


def cross_fitted(
    estimators: Sequence[GradientEstimator], *, draws: int = 4, shrinkage: int | float = 0.5
) -> GradientEstimator:
    """The combination of least variance of unbiased estimators, per parameter of q, fitted on draws that it leaves out.

    g_j = (1/D) Σ_d Σ_i a_ij⁽⁻ᵈ⁾ g_ij⁽ᵈ⁾,  a_ij⁽⁻ᵈ⁾ ∝ 1 / (v_ij + λ v̄_j),  Σ_i a_ij = 1,
    v_ij: spread of estimator i over the other D - 1 draws, around the mean of all members (they share one expectation;
    few draws of a discrete law often coincide, and would hide a variance around their own mean); v̄_j: its mean over
    i; λ = shrinkage / (D - 1), towards equal weights. Weights are independent of the draws that they weigh, so the
    gradient stays unbiased; the members share no noise, so inverse variances are best, and are reached as D grows.
    The value and the model's gradient are plain averages.
    estimators: two or more, *of one bound*, which no check can see. draws: D >= 3 of each; the cost is D times that of
    all members together, and `spec.evaluations` says so; what a member evaluates without its noise, as `taylor` at the
    mean, is shared by the draws and makes it less. With a `bounds.LogWeight` the weights see the gradient through -log
    q as well, and members may treat it differently; with another f it is averaged like the model's. A member that
    learns is updated by the mean of its D updates. First derivatives only. *Not where one member is known to win*:
    draws of it alone cost less, and with D below ten the weights are rough. Raises ValueError for a member that is
    biased in q, for fewer than three draws, and for a shrinkage that is not positive; `NotAvailable` as its members do.
    Source: Geffner & Domke (2018), section 3, with weights from held-out draws.
    """
    estimators = tuple(estimators)
    if len(estimators) < 2:
        raise ValueError(f"estimators must be two or more, got {len(estimators)}")
    for estimator in estimators:
        if not estimator.spec.unbiased_variational:
            raise ValueError(f"{estimator.spec.name} is biased, and so would be its combination with others")
    if draws < 3:
        raise ValueError(f"draws must be at least 3, so that two are left for a variance, got {draws}")
    if not shrinkage > 0:
        raise ValueError(f"shrinkage must be positive, got {shrinkage}")
    specs = [estimator.spec for estimator in estimators]
    name = f"cross_fitted({', '.join(spec.name for spec in specs)}, draws={draws})"

    def noise(q):
        return Joint(tuple(Copies(estimator.noise(q), draws) for estimator in estimators))

    def surrogate(state, noise, f, q):
        laws = _laws(f, q)

        def values_and_gradients(estimator, state, noise):
            def value(laws, noise):
                return estimator.surrogate(state, noise, _at(f, laws), laws[0])

            return jax.vmap(jax.value_and_grad(value), (None, 0))(stop_gradient(laws), noise)

        drawn = [values_and_gradients(*member) for member in zip(estimators, state, noise, strict=True)]
        gradients = jax.tree.map(lambda *g: jnp.stack(g), *(gradients for _, gradients in drawn))
        weights = jax.tree.map(lambda *g: _inverse_variances(functools.reduce(jnp.add, g), shrinkage), *gradients)
        combined = tuple(jax.tree.map(lambda a, g: (a * g).sum(0).mean(0), weights, part) for part in gradients)
        # the laws were held fixed, so what is left to differentiate in the values is the model
        return jnp.stack([values for values, _ in drawn]).mean() + inject(laws, combined, estimator=name)

    def init(q):
        return tuple(estimator.init(q) for estimator in estimators)

    def update(state, noise, f, q):
        def updated(estimator, state, noise):
            each = jax.vmap(lambda noise: estimator.update(state, noise, f, q))(noise)
            return jax.tree.map(lambda x: x.mean(0), each)

        return tuple(updated(*member) for member in zip(estimators, state, noise, strict=True))

    spec = Spec(
        name,
        all(spec.unbiased_value for spec in specs),
        True,
        all(spec.unbiased_model for spec in specs),
        tuple(dict.fromkeys(need for spec in specs for need in spec.needs)),
        draws * sum(spec.evaluations for spec in specs),
        1,
    )
    return GradientEstimator(spec, noise, surrogate, init, update)


def _laws(f: Objective, q: Any) -> tuple[Any, ...]:
    """q, and the q inside a log-weight, whose gradient the members may share out between the two as they like."""
    if isinstance(f, LogWeight) and jax.tree.structure(f.q) == jax.tree.structure(q):
        return q, f.q
    return (q,)


def _at(f: Objective, laws: tuple[Any, ...]) -> Objective:
    return f._replace(q=laws[1]) if isinstance(f, LogWeight) and len(laws) == 2 else f


def _inverse_variances(gradients: Float[Array, "m d *p"], shrinkage: int | float) -> Float[Array, "m d *p"]:
    """Weights for each draw from the spread of all other draws; they sum to one over the first axis."""
    draws = gradients.shape[1]
    # the other draws themselves: a difference of sums would carry the own draw's rounding into ties, and a bias
    others = [[other for other in range(draws) if other != draw] for draw in range(draws)]
    seen = gradients[:, np.array(others)]
    variances = jnp.mean((seen - seen.mean((0, 2), keepdims=True)) ** 2, axis=2)
    mean = variances.mean(0, keepdims=True)
    relative = jnp.where(mean > 0, variances / jnp.where(mean > 0, mean, 1), 1)
    precisions = 1 / (relative + shrinkage / (draws - 1))
    return precisions / precisions.sum(0, keepdims=True)
