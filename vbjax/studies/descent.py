"""Adam in optax's interface, for studies that train something small: optax itself stays in `vbjax.training`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vbjax.estimators.learning import Optimizer
from vbjax.types import Params


class AdamState(NamedTuple):
    """First and second moments of the gradient, pytrees like the parameters, and the number of steps as a float."""

    first: Any
    second: Any
    count: Array


def adam(learning_rate: int | float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam (Kingma & Ba 2015, algorithm 1); `update` returns the step to add to the parameters."""

    def init(params: Params) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(zeros, zeros, jnp.zeros((), jnp.result_type(*jax.tree.leaves(params))))

    def update(gradient: Params, state: AdamState, params: Params) -> tuple[Params, AdamState]:
        count = state.count + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, gradient)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.second, gradient)

        def step(m, v):
            return -learning_rate * (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + eps)

        return jax.tree.map(step, first, second), AdamState(first, second, count)

    return Optimizer(init, update)
