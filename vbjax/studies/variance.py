"""The variance of gradient estimators, exactly (by integrating their noise) and by Monte Carlo, side by side."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax.exact import NotConverged, exact_gradient, exact_moments
from vbjax.moments import Moments, replicate
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import GradientEstimator, NotAvailable, PRNGKey


class Row(NamedTuple):
    """One coordinate of the gradient of one problem under one estimator; NaN where there is no number.

    gradient: exact, of the objective E f. exact_mean, exact_variance: of the estimator; no_exact says why they are
    missing. mean, standard_error, variance, variance_standard_error: by Monte Carlo. z_mean, z_variance: deviations
    from `gradient` and `exact_variance` in standard errors. evaluations: calls of f per estimate.
    work_normalised_variance: variance times evaluations, exact where known. refusal: why the estimator does not
    serve this problem, in its own words, or "".
    """

    problem: str
    estimator: str
    parameter: str
    gradient: float
    exact_mean: float
    exact_variance: float
    no_exact: str
    mean: float
    standard_error: float
    variance: float
    variance_standard_error: float
    z_mean: float
    z_variance: float
    evaluations: int
    work_normalised_variance: float
    refusal: str


def variance_study(
    key: PRNGKey,
    problems: Sequence[ToyProblem],
    estimators: Sequence[GradientEstimator],
    *,
    replications: int,
    threads: int = 2,
) -> list[Row]:
    """Run every estimator on every problem and return one row per coordinate of the gradient, in that order.

    Problem p, estimator e draws with the key `fold_in(fold_in(key, p), e)`, so a row does not depend on its
    neighbours. Exact numbers are float64; Monte Carlo has JAX's default type. threads: pairs at a time, since the
    time goes into compilation. An estimator that refuses a problem leaves rows that say why.
    """
    pairs = [(p, e) for p in range(len(problems)) for e in range(len(estimators))]
    with ThreadPoolExecutor(threads) as pool:
        gradients = [pool.submit(_gradient, problem) for problem in problems]
        rows = [
            pool.submit(
                _rows,
                jax.random.fold_in(jax.random.fold_in(key, p), e),
                problems[p],
                gradients[p].result,
                estimators[e],
                replications,
            )
            for p, e in pairs
        ]
        return [row for future in rows for row in future.result()]


def _rows(key, toy: ToyProblem, gradient, estimator: GradientEstimator, replications: int) -> list[Row]:
    truth, no_truth = gradient()
    names, size = _parameter_names(toy.params), len(truth)
    nothing = np.full(size, np.nan)
    params = jax.tree.map(lambda x: jnp.asarray(x, float), toy.params)
    refusal, moments = "", None
    try:
        moments = replicate(key, estimator, toy.problem, params, replications=replications)
    except NotAvailable as error:
        refusal = str(error)
    exact_mean, exact_variance, no_exact = (nothing, nothing, "") if refusal else _exact(estimator, toy)
    if moments is None:
        mean = standard_error = variance = spread = nothing
    else:
        mean, standard_error, variance, spread = _monte_carlo(moments)
    best = np.where(np.isnan(exact_variance), variance, exact_variance)
    return [
        Row(
            problem=toy.name,
            estimator=estimator.spec.name,
            parameter=names[i],
            gradient=float(truth[i]),
            exact_mean=float(exact_mean[i]),
            exact_variance=float(exact_variance[i]),
            no_exact=no_exact or no_truth,
            mean=float(mean[i]),
            standard_error=float(standard_error[i]),
            variance=float(variance[i]),
            variance_standard_error=float(spread[i]),
            z_mean=_deviation(mean[i], truth[i], standard_error[i]),
            z_variance=_deviation(variance[i], exact_variance[i], spread[i]),
            evaluations=estimator.spec.evaluations,
            work_normalised_variance=float(best[i]) * estimator.spec.evaluations,
            refusal=refusal,
        )
        for i in range(size)
    ]


def _gradient(toy: ToyProblem) -> tuple[np.ndarray, str]:
    """The exact gradient of E f, or NaN and the reason."""
    with jax.enable_x64(True):
        params = _float64(toy.params)
        try:
            return _flat(exact_gradient(toy.problem, params).value), ""
        except (NotAvailable, NotConverged) as error:
            return np.full(len(_flat(params)), np.nan), str(error)


def _exact(estimator: GradientEstimator, toy: ToyProblem) -> tuple[np.ndarray, np.ndarray, str]:
    """Exact mean and variance of the flat gradient, or NaN and the reason."""
    with jax.enable_x64(True):
        params = _float64(toy.params)
        try:
            moments = exact_moments(estimator, toy.problem, params)
        except (NotAvailable, NotConverged) as error:
            nothing = np.full(len(_flat(params)), np.nan)
            return nothing, nothing, str(error)
        return _flat(moments.mean), np.diagonal(moments.covariance), ""


def _monte_carlo(moments: Moments) -> tuple[np.ndarray, ...]:
    return tuple(
        _flat(field)
        for field in (moments.mean, moments.standard_error, moments.variance, moments.variance_standard_error)
    )


def _deviation(estimate: float, exact: float, standard_error: float) -> float:
    # a variance of zero leaves rounding alone, which is not a deviation
    rounding = 8 * float(np.finfo(np.float32).eps) * abs(float(exact))
    difference = float(estimate) - float(exact)
    return 0.0 if difference == 0 else difference / max(math.hypot(float(standard_error), rounding), 1e-300)


def _float64(params):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def _parameter_names(params) -> list[str]:
    """One name per coordinate, in the flattened order: `loc`, `logits[0]`, ..."""
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        shape = np.shape(leaf)
        names += [name] if shape == () else [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(shape)]
    return names
