"""What estimators learn while they are used: small networks of their own, any optax optimiser, and states that average.

`start` and `step` keep a `Learned` state; `baselines.nvil` and `rebar.relax` show them in use.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vbjax.types import PRNGKey, Scalar, stop_gradient


class Network(NamedTuple):
    """A function with parameters. init: (key, x) -> parameters; apply: (parameters, x) -> a scalar, differentiable."""

    init: Callable[[PRNGKey, Array], PyTree]
    apply: Callable[[PyTree, Array], Scalar]


class Optimizer(NamedTuple):
    """The part of optax's interface that is used, so that any of its optimisers will do."""

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


class Learned(NamedTuple):
    """Parameters, and their optimiser's state with every number a float: the state of a batch is a mean."""

    params: Any
    optimizer: PyTree


def start(optimizer: Any, params: PyTree) -> Learned:
    """The state before the first step."""
    return Learned(params, _as_floats(optimizer.init(params), params))


def step(optimizer: Any, gradient: PyTree, state: Learned) -> Learned:
    """The state after one step; no gradient flows through it."""
    kinds = jax.eval_shape(optimizer.init, state.params)
    inner = jax.tree.map(
        lambda x, kind: x if x.dtype == kind.dtype else jnp.round(x).astype(kind.dtype), state.optimizer, kinds
    )
    # optax raises its decay rates to integer step counts, which strict promotion would refuse
    with jax.numpy_dtype_promotion("standard"):
        change, inner = optimizer.update(gradient, inner, state.params)
    params = jax.tree.map(jnp.add, state.params, change)
    return stop_gradient(Learned(params, _as_floats(inner, params)))


def sgd(learning_rate: int | float) -> Optimizer:
    """Plain gradient descent, in optax's interface; it has no state."""

    def update(gradient, state, params):
        return jax.tree.map(lambda g: -learning_rate * g, gradient), state

    return Optimizer(lambda params: (), update)


def mlp(hidden: tuple[int, ...] = (32,)) -> Network:
    """A multilayer perceptron with tanh units on a flattened array; its output is zero before it learns."""

    def init(key, x):
        sizes = (x.size, *hidden)
        keys = jax.random.split(key, len(sizes))
        layers = [
            (jax.random.normal(k, (n, m), x.dtype) / max(1, n) ** 0.5, jnp.zeros(m, x.dtype))
            for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
        ]
        return [*layers, (jnp.zeros((sizes[-1], 1), x.dtype), jnp.zeros(1, x.dtype))]

    def apply(params, x):
        *layers, (weights, bias) = params
        x = x.ravel()
        for layer, shift in layers:
            x = jnp.tanh(x @ layer + shift)
        return (x @ weights + bias)[0]

    return Network(init, apply)


def _as_floats(tree: PyTree, params: PyTree) -> PyTree:
    dtype = jax.tree.leaves(params)[0].dtype
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype), tree)
