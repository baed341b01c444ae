"""What every estimator's factory and user share: one draw of an estimate, and the checks before it."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from vbjax import bounds
from vbjax.distributions import Distribution
from vbjax.types import (
    Bound,
    Event,
    GradientEstimator,
    NotAvailable,
    Params,
    PRNGKey,
    Problem,
    Scalar,
    stop_gradient,
)

Q = TypeVar("Q")


def value_and_grad(
    key: PRNGKey, estimator: GradientEstimator, problem: Problem, params: Params, *, state: Any = None
) -> tuple[Scalar, Params]:
    """One estimate of the objective and of its gradient in every parameter.

    problem: `params -> (q, f)`. state: what `estimator.init` or `update` returned; None starts afresh. Returns a
    scalar and a pytree like params. Raises `NotAvailable` if q lacks what the estimator needs.
    """
    q, _ = problem(params)
    noise = estimator.noise(q).sample(key)
    return value_and_grad_at(noise, estimator, problem, params, estimator.init(q) if state is None else state)


def value_and_grad_at(
    noise: Event, estimator: GradientEstimator, problem: Problem, params: Params, state: Any
) -> tuple[Scalar, Params]:
    """The estimate as a function of its noise: what `exact_moments` integrates and `replicate` repeats."""

    def surrogate(params):
        q, f = problem(params)
        return estimator.surrogate(state, noise, f, q)

    return jax.value_and_grad(surrogate)(params)


def inject(q: Q, gradient: Q, *, estimator: str) -> Scalar:
    """A scalar zero whose gradient in q is the given one, for estimators that know the gradient itself.

    q, gradient: pytrees of the same structure. The gradient counts as a constant, so a second derivative would be
    wrong: asking for one raises `NotAvailable`, naming the estimator (one across q and what else the gradient depends
    on is NaN in forward mode, which cannot tell whether it is used).
    """
    leaves, gradients = jax.tree.leaves(q), jax.tree.leaves(gradient)
    if not leaves:
        return jnp.zeros(())
    message = first_order_only(estimator)

    @jax.custom_jvp
    def constant(g):
        return g

    @constant.defjvp
    def refuse_if_used(primals, tangents):
        return constant(*primals), _unknown.bind(tangents[0], message=message)

    @jax.custom_jvp
    def zero(leaves, gradients):
        return sum(jnp.zeros_like(leaf).sum() for leaf in leaves)

    def slope(primals, tangents):
        terms = [
            jnp.vdot(constant(g) + without_derivative(x, message), x_dot)
            for x, g, x_dot in zip(*primals, tangents[0], strict=True)
            if not isinstance(x_dot, jax.custom_derivatives.SymbolicZero)
        ]
        value = zero(*primals)
        return value, sum(terms, jnp.zeros_like(value))

    zero.defjvp(slope, symbolic_zeros=True)
    return jnp.asarray(zero(leaves, gradients))


def first_order_only(estimator: str) -> str:
    """What is said to whoever asks for a second derivative."""
    return f"{estimator} gives first derivatives only; use score_function or pathwise."


def without_derivative(x: Array, message: str) -> Array:
    """Zeros like x, whose derivative raises `NotAvailable` with this message."""

    @jax.custom_jvp
    def nothing(x):
        return jnp.zeros_like(x)

    @nothing.defjvp
    def refuse(primals, tangents):
        raise NotAvailable(message)

    return nothing(x)


def _refuse(cotangent, tangent, *, message: str):
    raise NotAvailable(message)


# refuses when it is used, not when it is traced: a gradient that goes into another constant has a derivative as well
_unknown = Primitive("derivative_of_injected_gradient")
_unknown.def_impl(lambda tangent, message: tangent * jnp.nan)
_unknown.def_abstract_eval(lambda tangent, message: tangent)
batching.defvectorized(_unknown)
mlir.register_lowering(_unknown, mlir.lower_fun(_unknown.impl, multiple_results=False))
ad.deflinear2(_unknown, _refuse)


def score(q: Q, z: Event) -> Q:
    """The gradient of log q(z) in the parameters of q, a pytree like q, with no gradient flowing through it."""
    z = stop_gradient(z)
    return jax.grad(lambda q: q.log_prob(z))(stop_gradient(q))


def check_samples(samples: int) -> None:
    """Raise ValueError for a number of samples below one."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")


def estimator_name(factory: str, *arguments: object, bound: Bound) -> str:
    """The call that made an estimator; the bound is named where it is not the mean."""
    if bound is not bounds.mean:
        arguments = (*arguments, getattr(bound, "__name__", type(bound).__name__))
    return f"{factory}({', '.join(map(str, arguments))})"


def require_capability(estimator: str, q: Distribution, capability: str, way_out: str) -> None:
    """Raise `NotAvailable`, naming the way out, unless q has the capability."""
    if not getattr(q.capabilities, capability):
        raise NotAvailable(f"{estimator} needs a law that is {capability}, {type(q).__name__} is not; {way_out}.")
