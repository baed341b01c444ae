"""The contracts that the modules share: keys, laws, problems and gradient estimators.

Read `GradientEstimator` first: everything that is exact, replicated, compared or graded follows from it.
A `Law` is one random event; a `Problem` turns parameters into a law and an objective.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
from jaxtyping import Array, Float, Key, PyTree

PRNGKey = Key[Array, ""]
"""One typed JAX key (`jax.random.key`), consumed once."""

Scalar = Float[Array, ""]
Params = PyTree[Array]
Event = Any
"""One outcome of a law: an array, or a tuple of events for a joint law."""

LogDensity = Callable[[Event], Scalar]
"""Log-density of one event, in nats."""

Objective = Callable[[Event], Scalar]
"""`f(z)`: a scalar of one event; it may close over parameters."""

Bound = Callable[[Float[Array, " k"]], Scalar]
"""A function of the K log-weights `f(z_1), …, f(z_K)`; the plain mean gives `E f`."""


class Nodes(NamedTuple):
    """Points and weights that stand for a law: `E f ≈ Σ_i weights_i f(points_i)`.

    points: events stacked on a leading axis of length n; weights: `(n,)`, summing to one;
    exact: True for a complete enumeration, False for a quadrature rule or a truncated support.
    """

    points: Event
    weights: Float[Array, " n"]
    exact: bool


class Law(Protocol):
    """The law of one event: what an estimator needs of its noise."""

    def sample(self, key: PRNGKey) -> Event:
        """Draw one event."""
        ...

    def nodes(self, order: int) -> Nodes:
        """Return points and weights, `order` per continuous coordinate; raises `NotAvailable` if there are none."""
        ...


class NotAvailable(NotImplementedError):  # noqa: N818 - it reads as the answer that it is
    """The law, pair or estimator has no such thing; the message names what to use instead."""


class Spec(NamedTuple):
    """What an estimator promises.

    name; unbiased_value, unbiased_variational, unbiased_model: whether the value, the gradient in the
    parameters η of q and the gradient in the model's parameters are unbiased for the *stated bound*;
    needs: capabilities of q, e.g. `("reparameterised",)`; evaluations: calls of `f` per estimate;
    derivative_order: the highest order of `jax.grad` of the surrogate that is still right (None: any).
    """

    name: str
    unbiased_value: bool
    unbiased_variational: bool
    unbiased_model: bool
    needs: tuple[str, ...]
    evaluations: int
    derivative_order: int | None


def _no_state(q):
    return ()


def _same_state(state, noise, f, q):
    return state


class GradientEstimator(NamedTuple):
    """A Monte-Carlo gradient estimator as pure functions of explicit noise.

    noise: q -> the law of all the randomness. surrogate: (state, noise, f, q) -> a scalar whose value estimates
    the objective and whose `jax.grad`, in q and in everything that `f` closes over, is the gradient estimate.
    init: q -> state. update: (state, noise, f, q) -> state, applied strictly after use, so that a learned
    baseline never sees its own sample. A stateless estimator leaves both out and carries `()`. The state of a batch
    of examples is the mean of what `update` returns for each, so a state is a pytree of floats that averages.
    """

    spec: Spec
    noise: Callable[[Any], Any]
    surrogate: Callable[[Any, Event, Objective, Any], Scalar]
    init: Callable[[Any], Any] = _no_state
    update: Callable[[Any, Event, Objective, Any], Any] = _same_state


P = TypeVar("P")
Problem = Callable[[P], tuple[Any, Objective]]
"""`params -> (q, f)`: binds the law and the objective to one set of parameters, so that `f` may depend on them
(as `log p(x, z) - log q(z)` does) and one `jax.grad` reaches the encoder and the model alike."""


class Estimate(NamedTuple):
    """A Monte-Carlo number with its uncertainty: value and standard_error share a shape; count: draws behind it."""

    value: Array
    standard_error: Array
    count: int


def stop_gradient(tree: P) -> P:
    """Return the same pytree with no gradient flowing into its leaves."""
    return jax.tree.map(jax.lax.stop_gradient, tree)
