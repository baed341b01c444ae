"""What a study checks before any work: that problems and estimators have the shapes and types that they must have.

Start at `check`. Everything is traced, nothing but a handful of values of f is computed, so that a mistake in the last
cell is told in the first second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vbjax.studies.cells import Cell
from vbjax.studies.toy_problems import ToyProblem
from vbjax.studies.user_files import UserError, blame, where
from vbjax.types import GradientEstimator, NotAvailable

_DRAWS = 16


def check(cells: Sequence[Cell], files: Sequence[Path] = ()) -> None:
    """Raise UserError for the first problem or estimator that cannot be studied; files: the user's."""
    seen, made = set(), set()
    for cell in cells:
        if cell.setting not in seen:
            seen.add(cell.setting)
            check_problem(cell.problem, cell.params, files)
        if (cell.problem.name, cell.estimator, cell.samples) not in made:
            made.add((cell.problem.name, cell.estimator, cell.samples))
            check_estimator(cell, files)


def check_problem(problem: ToyProblem, params: Any, files: Sequence[Path] = ()) -> None:
    """Raise UserError unless `problem(params)` is a law and a scalar function of its events, finite where it starts."""
    place, name = where(problem.problem), problem.name
    params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
    with blame(*files):
        pair = problem.problem(params)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(f"{place}{name} must return (q, f), a law and a function of its events, not {_kind(pair)}")
    q, f = pair
    if not all(hasattr(q, ability) for ability in ("sample", "log_prob", "capabilities")):
        raise UserError(f"{place}{name} must return a law of vbjax.distributions first, not {_kind(q)}")
    if not callable(f):
        raise UserError(f"{place}{name} must return a function f(z) second, not {_kind(f)}")

    def value(key):
        q, f = problem.problem(params)
        return f(q.sample(key))

    try:
        with blame(*files):
            shape = jax.eval_shape(value, jax.random.key(0))
            _check_scalar(shape, f"{where(f) or place}f of {name}", "of one event z")
            values = jax.jit(jax.vmap(value))(jax.random.split(jax.random.key(0), _DRAWS))
    except NotAvailable as error:
        raise UserError(f"{place}{name}: {error}") from error
    bad = int(np.isnan(np.asarray(values)).sum())
    if bad:
        raise UserError(
            f"{where(f) or place}f of {name} is NaN at {bad} of {_DRAWS} events drawn from q: check the parameters "
            f"({_shown(params)}) and the domain of f"
        )


def check_estimator(cell: Cell, files: Sequence[Path] = ()) -> None:
    """Raise UserError unless the cell's estimator is one and its surrogate is a scalar; refusals are no mistake."""
    with blame(*files):
        estimator = cell.make()
    if not isinstance(estimator, GradientEstimator):
        raise UserError(
            f"{where(cell.make)}{cell.estimator}({cell.samples}) returned {_kind(estimator)}, not a GradientEstimator"
        )
    params = jax.tree.map(lambda x: jnp.asarray(x, float), cell.params)

    def surrogate(params, key):
        q, f = cell.problem.problem(params)
        return estimator.surrogate(estimator.init(q), estimator.noise(q).sample(key), f, q)

    try:
        with blame(*files):
            shape = jax.eval_shape(surrogate, params, jax.random.key(0))
            what = f"{where(estimator.surrogate)}the surrogate of {cell.estimator}"
            _check_scalar(shape, what, "whose gradient is the estimate")
            jax.eval_shape(jax.grad(surrogate), params, jax.random.key(0))
    except (NotAvailable, ValueError):
        return


def _check_scalar(found: Any, what: str, of_what: str) -> None:
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape is None or dtype is None:
        raise UserError(f"{what} must return one number {of_what}, not {_kind(found)}")
    if shape != ():
        raise UserError(f"{what} must return one number {of_what}, not an array of shape {shape}: sum or average it")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{what} must return a float {of_what}, not {dtype}: multiply by 1.0 or use .astype(float)")


def _kind(value: Any) -> str:
    return "nothing (is there a return?)" if value is None else f"a value of type {type(value).__name__}"


def _shown(params: Any) -> str:
    text = str(jax.tree.map(lambda x: np.asarray(x).tolist(), params))
    return text if len(text) < 80 else text[:77] + "..."
