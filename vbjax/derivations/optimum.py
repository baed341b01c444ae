"""Maximise a smooth objective to rounding error: what an entry needs when a side is an optimum."""

from collections.abc import Callable

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from vbjax.types import Params, Scalar


def maximise(objective: Callable[[Params], Scalar], start: Params) -> tuple[float, Params]:
    """Largest value of the objective near start, and where it is taken, by BFGS with exact gradients."""
    flat, unravel = ravel_pytree(start)
    value_and_grad = jax.jit(jax.value_and_grad(lambda v: -objective(unravel(v))))

    def loss(v):
        value, gradient = value_and_grad(v)
        return float(value), np.asarray(gradient)

    found = minimize(loss, np.asarray(flat), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 500})
    return -float(found.fun), unravel(jax.numpy.asarray(found.x))
