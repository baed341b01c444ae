"""Exact answers: expectations by enumeration or certified quadrature, and the moments of an estimator over its noise.

A quadrature rule is believed only when doubling its order, and then a coprime order between the two, change nothing
to the stated tolerance; otherwise `NotConverged`. No rule can see what all its points miss: a spike of f narrower
than their spacing (for one normal coordinate about a fifth of a standard deviation), or mass where the law has less
than 1e-16 of its own. Meant for float64 (`with jax.enable_x64(True)`); float32 is held to a looser tolerance.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from vbjax import bounds
from vbjax.distributions import Copies, Distribution
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.types import (
    Bound,
    Event,
    GradientEstimator,
    Nodes,
    NotAvailable,
    Params,
    Problem,
    Scalar,
    stop_gradient,
)

MAX_ORDER = 2**14
_BATCHES = (512, 2**14)
"""Numbers of points that f is compiled for; the rules are cut into them."""


class NotConverged(ArithmeticError):  # noqa: N818 - it reads as the answer that it is
    """No affordable quadrature rule reached the tolerance; the message says how far it came."""


class Certified(NamedTuple):
    """An expectation with its certificate.

    value: a pytree like f's result. error: largest change between the last orders, relative to E|f| (0 for an
    enumeration). nodes: how many points were summed.
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

    f: one event -> any pytree of arrays; values where the law has no mass are ignored. rtol: largest change between
    orders, relative to E|f|; by default 1e-10 in float64, 1e-5 in float32. Raises `NotAvailable` if the law has
    no nodes, `NotConverged` if they never settle (heavy tails, kinks, jumps): then use Monte Carlo.
    """
    return _certify(law, _averages(f), rtol)[0]


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

    evaluate = _batched(estimate)

    def moments(nodes: Nodes):
        (values, gradients), weights = evaluate(nodes), np.asarray(nodes.weights)
        mean = weights @ gradients
        deviations = gradients - mean
        covariance = (weights[:, None] * deviations).T @ deviations
        value_size = weights @ np.abs(values)
        # a gradient of zero variance, as at an exact posterior, is rounding error of f: no rule can settle that
        rounding = 1e-5 * value_size
        variance = np.diagonal(covariance).max(initial=0)
        size = (value_size, weights @ np.abs(gradients) + rounding, variance + rounding**2)
        return (weights @ values, mean, covariance), size

    certified, _ = _certify(estimator.noise(q), moments, rtol)
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

    A reparameterised law is integrated over its noise, any other by its score; the objective is certified along
    with the gradient. Raises as `expectation`, and `NotConverged` where f jumps, which a derivative along the sample
    does not see.
    """
    q, _ = problem(params)
    by_path, by_score = q.capabilities.reparameterised, q.capabilities.fixed_support
    if not by_path and not by_score:
        raise NotAvailable(f"{type(q).__name__} has no reparameterisation and a support that moves; use differences "
                           "of exact_objective.")  # fmt: skip

    def path(params, noise):
        q, f = problem(params)
        return bound(jax.vmap(lambda xi: f(q.transport(xi)))(noise))

    def score(params, noise, baseline):
        fixed, _ = problem(stop_gradient(params))
        q, f = problem(params)
        z = jax.vmap(fixed.transport)(noise) if by_path else noise
        log_q = jax.vmap(q.log_prob)(z).sum()
        return baseline + (bound(jax.vmap(f)(z)) - baseline) * jnp.exp(log_q - stop_gradient(log_q))

    law = Copies(q.noise() if by_path else q, samples)
    value_and_grad = jax.value_and_grad(path if by_path else functools.partial(score, baseline=0.0))
    certified, nodes = _certify(law, _averages(lambda noise: value_and_grad(params, noise)), rtol)
    value, gradient = certified.value
    if by_path and by_score:
        by_the_score, size = _averages(lambda noise: jax.grad(score)(params, noise, value))(nodes)
        # an infinite score, as that of a beta law at 1 - 1e-17, says nothing
        error = _relative_change(by_the_score, gradient, size)
        if math.isfinite(error) and error > max(1e-3, 10 * certified.error):
            raise NotConverged(
                f"the gradients along the sample and by the score differ by {error:.1e} of E|f score|: f jumps; use "
                "score_function with moments.replicate (Monte Carlo)"
            )
    return certified._replace(value=gradient)


def _certify(
    law: Distribution, integrate: Callable[[Nodes], tuple[PyTree, PyTree]], rtol: float | None
) -> tuple[Certified, Nodes]:
    """Double the order until `integrate(nodes) -> (value, size)` changes by less than rtol of its size.

    Below order 64 two doublings in a row must agree: low orders can agree by accident. The last word has an odd
    order, whose rule has a point where symmetry or a period of two may hide something from the even ones.
    """
    nodes = law.nodes(8)
    if nodes.exact:
        return _certified(integrate(nodes)[0], 0.0, nodes), nodes
    if rtol is None:
        rtol = 1e-10 if nodes.weights.dtype == jnp.float64 else 1e-5
    order, error, settled = 8, math.inf, 0
    if nodes.weights.shape[0] <= 8**2:
        order, nodes = 64, law.nodes(64)
    value, _ = integrate(nodes)
    while settled < 2 and not (settled and order >= 64):
        order *= 2
        count = nodes.weights.shape[0]
        try:
            if order > MAX_ORDER:
                raise NotAvailable(f"order {order} exceeds {MAX_ORDER}")
            nodes = law.nodes(order)
        except NotAvailable as limit:
            raise NotConverged(
                f"quadrature still changes by {error:.1e} of E|f| at {count} nodes, tolerance {rtol:.1e} ({limit}); "
                "use moments.replicate (Monte Carlo), or a looser rtol"
            ) from None
        previous, (value, size) = value, integrate(nodes)
        error = max(_relative_change(value, previous, size), abs(float(np.sum(nodes.weights)) - 1))
        if error <= rtol:
            odd, _ = integrate(law.nodes(3 * order // 4 + 1))
            error = max(error, _relative_change(value, odd, size))
        settled = settled + 1 if error <= rtol else 0
    return _certified(value, error, nodes), nodes


def _certified(value: PyTree, error: float, nodes: Nodes) -> Certified:
    value = jax.tree.map(lambda v: jnp.asarray(v, nodes.weights.dtype), value)
    return Certified(value, error, nodes.weights.shape[0])


def _relative_change(value: PyTree, previous: PyTree, size: PyTree) -> float:
    def change(new, old, scale):
        moved = np.max(np.abs(np.asarray(new) - np.asarray(old)), initial=0)
        change = 0 if moved == 0 else moved / np.max(scale, initial=0)
        # a NaN must fail the comparison with the tolerance
        return math.inf if np.isnan(change) else float(change)

    with np.errstate(all="ignore"):
        return max(jax.tree.leaves(jax.tree.map(change, value, previous, size)), default=0.0)


def _averages(f: Callable[[Event], PyTree]) -> Callable[[Nodes], tuple[PyTree, PyTree]]:
    """Integrate f and |f|."""
    evaluate = _batched(f)

    def integrate(nodes):
        values, weights = evaluate(nodes), np.asarray(nodes.weights)
        with np.errstate(all="ignore"):
            mean = jax.tree.map(lambda v: np.tensordot(weights, v, 1), values)
            return mean, jax.tree.map(lambda v: np.tensordot(weights, np.abs(v), 1), values)

    return integrate


def _batched(f: Callable[[Event], PyTree]) -> Callable[[Nodes], PyTree]:
    """Evaluate f at every point as NumPy float64, zero where the weight is: there 0 · ∞ counts for nothing.

    The points are cut or padded to batches of few sizes, so that f is compiled once or twice for all orders.
    """
    apply = jax.jit(jax.vmap(f))

    def evaluate(nodes):
        points = jax.tree.map(np.asarray, nodes.points)
        count = nodes.weights.shape[0]
        size = next((size for size in _BATCHES if count <= size), _BATCHES[-1])
        batches = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
        values = [apply(jax.tree.map(lambda x, i=i: x[i], points)) for i in batches]

        def gather(*parts):
            v = np.concatenate(parts)[:count].astype(np.float64)
            v[np.asarray(nodes.weights) == 0] = 0
            return v

        return jax.tree.map(gather, *values)

    return evaluate
