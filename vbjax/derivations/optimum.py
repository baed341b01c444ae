"""Maximise a smooth objective to rounding error: what an entry needs when a side is an optimum."""

from collections.abc import Callable

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize, root

from vbjax.types import Params, Scalar


def maximise(objective: Callable[[Params], Scalar], start: Params) -> tuple[float, Params]:
    """Largest value of the objective near start, and where it is taken, by BFGS and a root of the exact gradient."""
    flat, unravel = ravel_pytree(start)
    value_and_grad = jax.jit(jax.value_and_grad(lambda v: -objective(unravel(v))))

    def loss(v):
        value, gradient = value_and_grad(v)
        return float(value), np.asarray(gradient)

    found = minimize(loss, np.asarray(flat), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 500})
    # BFGS compares values, whose rounding hides half the digits of the argument; the gradient shows the rest
    polished = root(lambda v: loss(v)[1], found.x, tol=1e-13).x
    least, gradient = loss(polished)
    if least > found.fun + 1e-12 * abs(found.fun) or np.abs(gradient).max() > np.abs(found.jac).max():
        least, polished = found.fun, found.x
    return -float(least), unravel(jax.numpy.asarray(polished))
