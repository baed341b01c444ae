"""Exact answers: expectations by enumeration or certified quadrature, and the moments of an estimator over its noise.

A quadrature rule is believed only when doubling its order changes nothing to the stated tolerance; otherwise
`NotConverged`. Meant for float64 (`with jax.enable_x64(True)`); float32 is held to a looser tolerance.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from vbjax import bounds
from vbjax.distributions import Copies, Distribution
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.types import Bound, Event, GradientEstimator, Nodes, NotAvailable, Params, Problem, Scalar

MAX_ORDER = 2**14
_BATCH = 2**14


class NotConverged(ArithmeticError):  # noqa: N818 - it reads as the answer that it is
    """No affordable quadrature rule reached the tolerance; the message says how far it came."""


class Certified(NamedTuple):
    """An expectation with its certificate.

    value: a pytree like f's result. error: largest change at the last doubling of the order, relative to E|f| (0 for
    an enumeration). nodes: how many points were summed.
    """

    value: PyTree[Array]
    error: float
    nodes: int


class ExactMoments(NamedTuple):
    """The moments of an estimator over all of its noise.

    value: E of its value. mean: E of its gradient, a pytree like the parameters. covariance: of the gradient,
    flattened in the tree's order, `(d, d)`. error, nodes: the certificate, as in `Certified`.
    """

    value: Scalar
    mean: Params
    covariance: Float[Array, "d d"]
    error: float
    nodes: int

    @property
    def variance(self) -> Params:
        """Variance of each coordinate of the gradient, a pytree like the parameters."""
        return ravel_pytree(self.mean)[1](jnp.diagonal(self.covariance))


def expectation(law: Distribution, f: Callable[[Event], PyTree[Array]], *, rtol: float | None = None) -> Certified:
    """E f under the law, by enumeration or by a quadrature rule whose order doubles until the answer stands still.

    f: one event -> any pytree of arrays; values where the law has no mass are ignored. rtol: largest change at a
    doubling, relative to E|f|; by default 1e-10 in float64, 1e-5 in float32. Raises `NotAvailable` if the law has
    no nodes, `NotConverged` if they never settle (heavy tails, kinks, jumps): then use Monte Carlo.
    """
    return _certify(law, lambda nodes: _average(nodes, f), rtol)


def exact_moments(
    estimator: GradientEstimator, problem: Problem, params: Params, *, state: Any = None, rtol: float | None = None
) -> ExactMoments:
    """Mean and covariance of an estimator's gradient by integrating its noise: no error bar, only a certificate.

    problem: `params -> (q, f)`. Raises as `expectation`; the cost is (nodes per draw)^(samples).
    """
    q, _ = problem(params)
    state = estimator.init(q) if state is None else state

    def estimate(noise):
        value, gradient = value_and_grad_at(noise, estimator, problem, params, state)
        return value, ravel_pytree(gradient)[0]

    def moments(nodes: Nodes):
        values, gradients = _evaluate(estimate, nodes)
        mean = nodes.weights @ gradients
        deviations = gradients - mean[None]
        covariance = (nodes.weights[:, None] * deviations).T @ deviations
        size = (nodes.weights @ jnp.abs(values), nodes.weights @ jnp.abs(gradients), jnp.diagonal(covariance).max())
        return (nodes.weights @ values, mean, covariance), size

    certified = _certify(estimator.noise(q), moments, rtol)
    value, mean, covariance = certified.value
    return ExactMoments(value, ravel_pytree(params)[1](mean), covariance, certified.error, certified.nodes)


def exact_objective(
    problem: Problem, params: Params, *, samples: int = 1, bound: Bound = bounds.mean, rtol: float | None = None
) -> Certified:
    """E B(f(z_1), …, f(z_K)) for K draws of q: what an estimator's value should average to."""
    q, f = problem(params)
    return expectation(Copies(q, samples), lambda z: bound(jax.vmap(f)(z)), rtol=rtol)


def exact_gradient(
    problem: Problem, params: Params, *, samples: int = 1, bound: Bound = bounds.mean, rtol: float | None = None
) -> Certified:
    """The gradient of `exact_objective` in every parameter: what an estimator's gradient should average to.

    A reparameterised law is integrated over its noise, a finite one by differentiating the sum of its masses.
    """
    q, _ = problem(params)
    if q.capabilities.reparameterised:

        def gradient_at(noise):
            def value(params):
                q, f = problem(params)
                return bound(jax.vmap(lambda xi: f(q.transport(xi)))(noise))

            return jax.grad(value)(params)

        return expectation(Copies(q.noise(), samples), gradient_at, rtol=rtol)

    def summed(nodes: Nodes):
        def value(params):
            q, f = problem(params)
            weights = jnp.exp(jax.vmap(Copies(q, samples).log_prob)(nodes.points))
            values = jax.vmap(lambda z: bound(jax.vmap(f)(z)))(nodes.points)
            possible = nodes.weights > 0
            return jnp.sum(jnp.where(possible, weights * jnp.where(possible, values, 0), 0))

        gradient = jax.grad(value)(params)
        return gradient, jax.tree.map(jnp.abs, gradient)

    return _certify(Copies(q, samples), summed, rtol)


def _certify(law: Distribution, integrate: Callable[[Nodes], tuple[PyTree, PyTree]], rtol: float | None) -> Certified:
    """Double the order until `integrate(nodes) -> (value, size)` changes by less than rtol of its size.

    Below order 64 two doublings in a row must agree: low orders can agree by accident.
    """
    nodes = law.nodes(8)
    value, size = integrate(nodes)
    count = nodes.weights.shape[0]
    if nodes.exact:
        return Certified(value, 0.0, count)
    if rtol is None:
        rtol = 1e-10 if nodes.weights.dtype == jnp.float64 else 1e-5
    order, error, settled = 8, math.inf, 0
    while settled < 2 and not (settled and order >= 64):
        order *= 2
        try:
            if order > MAX_ORDER:
                raise NotAvailable(f"order {order} exceeds {MAX_ORDER}")
            nodes = law.nodes(order)
        except NotAvailable as limit:
            raise NotConverged(
                f"quadrature still changes by {error:.1e} of E|f| at {count} nodes, tolerance {rtol:.1e} ({limit}); "
                "use moments.replicate (Monte Carlo), or a looser rtol"
            ) from None
        previous, count = value, nodes.weights.shape[0]
        value, size = integrate(nodes)
        error = max(_relative_change(value, previous, size), abs(float(nodes.weights.sum()) - 1))
        settled = settled + 1 if error <= rtol else 0
    return Certified(value, error, count)


def _relative_change(value: PyTree, previous: PyTree, size: PyTree) -> float:
    def change(new, old, scale):
        moved = jnp.max(jnp.abs(new - old), initial=0)
        return jnp.where(moved == 0, 0, moved / jnp.max(scale, initial=0))

    # a NaN must fail the comparison with the tolerance
    changes = jax.tree.leaves(jax.tree.map(change, value, previous, size))
    return max((float(jnp.where(jnp.isnan(c), jnp.inf, c)) for c in changes), default=0.0)


def _average(nodes: Nodes, f: Callable[[Event], PyTree]) -> tuple[PyTree, PyTree]:
    values = _evaluate(f, nodes)
    mean = jax.tree.map(lambda v: jnp.tensordot(nodes.weights, v, 1), values)
    return mean, jax.tree.map(lambda v: jnp.tensordot(nodes.weights, jnp.abs(v), 1), values)


def _evaluate(f: Callable[[Event], PyTree], nodes: Nodes) -> PyTree:
    """f at every point, zero where the weight is, so that 0 · ∞ counts for nothing."""
    values = jax.jit(lambda points: jax.lax.map(f, points, batch_size=_BATCH))(nodes.points)

    def mask(v):
        return jnp.where(jnp.expand_dims(nodes.weights > 0, tuple(range(1, v.ndim))), v, 0).astype(nodes.weights.dtype)

    return jax.tree.map(mask, values)
