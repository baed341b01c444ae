"""One cell of a study: one estimator on one problem at one setting of its parameters, and all that is found there.

Start at `examine`. Exact moments come from integrating the noise, in float64; Monte-Carlo moments from
`moments.replicate`, in JAX's default type. Replication r of a problem at a setting draws with the same key whatever
the estimator, so two estimators with the same noise law see the same noise and their difference is paired; another
problem or another setting has a key of its own, taken from its name and its values, not from its place in the study.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import bounds, moments, tails, testing
from vbjax.estimators.estimate import value_and_grad
from vbjax.exact import NotConverged, exact_gradient, exact_moments
from vbjax.studies import bias, cost
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import Bound, GradientEstimator, NotAvailable, PRNGKey, Problem

NO_ANSWER = (NotAvailable, NotConverged, TypeError)
"""What integration answers where it cannot: no nodes, no convergence, or a function that is not for float64."""


_MOST_INTEGRATED = 512
"""More coordinates than this are sampled only: their integral holds a gradient for every node."""

_ROUNDING = 1e-13
_FEWEST_EXTREMES = 128


class Cell(NamedTuple):
    """What to study.

    problem, params: the problem at its setting, with float leaves. point: the parameters that a sweep has set, by
    name. estimator: its name; family: the heading it is listed under. samples: K, or 0 for an estimator that was
    made outside. make: the estimator. bound: of the samples' values, what it estimates.
    """

    problem: ToyProblem
    params: Any
    point: Mapping[str, int | float]
    estimator: str
    family: str
    samples: int
    make: Callable[[], GradientEstimator]
    bound: Bound = bounds.mean

    @property
    def name(self) -> str:
        """All that tells the cell from others, as one line."""
        samples = f" K={self.samples}" if self.samples else ""
        return f"{self.setting}: {self.estimator}{samples}"

    @property
    def setting(self) -> str:
        """The problem and its point: cells that share it share their noise."""
        return " ".join([self.problem.name, *(f"{name}={value!r}" for name, value in self.point.items())])


class Result(NamedTuple):
    """What was found in a cell: plain numbers that JSON holds; lists have one entry a coordinate, NaN for no number.

    call: the estimator by its own name. truth: the exact gradient, no_truth: why there is none. exact_mean,
    exact_variance: over all the noise, no_exact: why not. mean, standard_error, variance, variance_standard_error,
    variance_low, variance_high (95%), kurtosis, tail_index: sampled. tail: what the tail says of the variance.
    non_finite: draws with a NaN or an infinity. outcome, explanation: of the question whether it is biased
    (`bias.judge`); mismatch: against its specification. claims_unbiased: what that says of all of the gradient.
    evaluations: calls of f; flops, microseconds: of one estimate. refusal: why the estimator does not serve the
    problem, in its own words, or "".
    """

    problem: str
    point: dict[str, float]
    estimator: str
    family: str
    samples: int
    call: str
    coordinates: list[str]
    truth: list[float]
    no_truth: str
    exact_mean: list[float]
    exact_variance: list[float]
    no_exact: str
    mean: list[float]
    standard_error: list[float]
    variance: list[float]
    variance_standard_error: list[float]
    variance_low: list[float]
    variance_high: list[float]
    kurtosis: list[float]
    tail_index: list[float]
    tail: str
    non_finite: int
    replications: int
    outcome: str
    explanation: str
    mismatch: bool
    claims_unbiased: bool
    evaluations: float
    flops: float
    microseconds: float
    refusal: str

    @property
    def setting(self) -> str:
        """The problem and its point, as `Cell.setting`."""
        return " ".join([self.problem, *(f"{name}={value!r}" for name, value in self.point.items())])

    @property
    def exact(self) -> bool:
        """Whether mean and variance are known exactly."""
        return not self.refusal and bool(np.all(np.isfinite(self.exact_variance)))

    def to_json(self) -> str:
        """One line that `from_json` reads back to the same bits; NaN and infinities in Python's spelling."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """What `to_json` wrote."""
        return cls(**json.loads(text))


class Truth(NamedTuple):
    """The exact gradient, flat, or NaN and the reason. variational: which coordinates are parameters of q."""

    gradient: np.ndarray
    reason: str
    variational: np.ndarray


def setting_key(seed: int, setting: str) -> PRNGKey:
    """The key of a problem at a point: its noise does not depend on what else is studied."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(setting.encode()))


def draw_key(seed: int, setting: str, again: int = 0) -> PRNGKey:
    """The key that the draws at a setting are made with; again: those of a second look."""
    return jax.random.fold_in(setting_key(seed, setting), again)


def truth_of(cell: Cell) -> Truth:
    """The exact gradient of what the cell's estimator estimates."""
    with jax.enable_x64(True):
        params = floats(cell.params, jnp.float64)
        variational = _moves_q(cell.problem, params)
        try:
            if cell.problem.truth is not None and cell.bound is bounds.mean:
                return Truth(testing.flat(cell.problem.truth(params)), "", variational)
            samples = 1 if cell.bound is bounds.mean else max(cell.samples, 1)
            gradient = exact_gradient(cell.problem.problem, params, samples=samples, bound=cell.bound).value
            return Truth(testing.flat(gradient), "", variational)
        except NO_ANSWER as error:
            return Truth(np.full(variational.size, np.nan), str(error), variational)


def examine(
    cell: Cell,
    truth: Callable[[], Truth],
    price: Callable[[], cost.Cost],
    *,
    seed: int,
    replications: int,
    delta: int | float,
    integrate: bool = True,
    checkpoint: Path | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Find out all there is to know about a cell.

    truth, price: called when they are needed. delta: the bias that does not matter, in standard deviations of one
    estimate.
    integrate: whether to try exact moments. checkpoint, on_progress: as in `moments.replicate`. An estimator that
    refuses the problem leaves a result that says why.
    """
    estimator, problem = cell.make(), cell.problem.problem
    params = floats(cell.params, float)
    names, (gradient, no_truth, variational) = list(testing.coordinate_names(params)), truth()
    nothing = np.full(len(names), np.nan)
    key_draws, key_again = (draw_key(seed, cell.setting, again) for again in range(2))

    def draw(key, **arguments):
        return moments.replicate(key, estimator, problem, params, replications=replications, **arguments)

    refusal = refusal_of(cell)
    sampled, priced = None, cost.Cost(float(estimator.spec.evaluations), np.nan, np.nan)
    if not refusal:
        sampled = draw(key_draws, checkpoint=checkpoint, on_progress=on_progress)
        priced = price()
    exact_mean, exact_variance, no_exact = nothing, nothing, "" if integrate else "not asked for"
    if integrate and not refusal:
        exact_mean, exact_variance, no_exact = _exact(estimator, cell)
    sample = {
        name: nothing if sampled is None else testing.flat(getattr(sampled, name))
        for name in ("mean", "standard_error", "variance", "variance_standard_error", "kurtosis", "tail_index")
    }
    sample |= {"variance_low": nothing, "variance_high": nothing}
    tail, non_finite = "", 0
    spec = estimator.spec
    if sampled is not None:
        interval = moments.variance_interval(sampled)
        sample |= {"variance_low": testing.flat(interval.lower), "variance_high": testing.flat(interval.upper)}
        tail, non_finite = _tail(sampled, estimator, problem, params), int(sampled.non_finite)
    if refusal:
        verdict = bias.Verdict("refused", refusal, np.zeros(len(names), bool))
    elif not np.isnan(exact_mean).any():
        verdict = bias.judge_exact(gradient, exact_mean, exact_variance, no_truth)
    else:
        evidence = bias.Evidence(sample["mean"], sample["variance"], replications, tail, non_finite)
        verdict = bias.judge(gradient, evidence, delta, no_truth)
        if verdict.outcome == bias.BIASED:
            again = draw(key_again)
            fresh = evidence._replace(mean=testing.flat(again.mean), variance=testing.flat(again.variance))
            verdict = bias.judge_again(verdict, gradient, fresh, delta)
    promised = np.where(variational, spec.unbiased_variational, spec.unbiased_model)
    return Result(
        problem=cell.problem.name,
        point=dict(cell.point),
        estimator=cell.estimator,
        family=cell.family,
        samples=cell.samples,
        call=spec.name,
        coordinates=names,
        truth=gradient.tolist(),
        no_truth=no_truth,
        exact_mean=exact_mean.tolist(),
        exact_variance=exact_variance.tolist(),
        no_exact=no_exact,
        **{name: values.tolist() for name, values in sample.items()},
        tail=tail,
        non_finite=non_finite,
        replications=replications,
        outcome=verdict.outcome,
        explanation=verdict.explanation,
        mismatch=bool(np.any(verdict.biased & promised)),
        claims_unbiased=spec.unbiased_variational and spec.unbiased_model,
        evaluations=priced.evaluations,
        flops=priced.flops,
        microseconds=priced.microseconds,
        refusal=refusal,
    )


def price_of(cell: Cell) -> cost.Cost:
    """What one estimate costs; the estimator must serve the problem."""
    return cost.measure(cell.make(), cell.problem.problem, floats(cell.params, float))


def refusal_of(cell: Cell) -> str:
    """Why the estimator does not serve the problem, in its own words, or ""; found by tracing, so in no time."""
    estimator, params = cell.make(), floats(cell.params, float)
    try:
        jax.eval_shape(lambda key: value_and_grad(key, estimator, cell.problem.problem, params), jax.random.key(0))
    except (NotAvailable, ValueError) as error:
        return str(error)
    return ""


def _tail(sampled: moments.Moments, estimator: GradientEstimator, problem: Problem, params: Any) -> str:
    """The verdict of `moments.finite_variance`, less bold where the extremes cannot tell."""
    verdict = moments.finite_variance(sampled)
    if verdict != tails.NOT_FINITE or int(sampled.non_finite):
        return verdict
    # finitely many outcomes have every moment; few extremes, as many coordinates leave, show no tail yet
    finite = estimator.noise(problem(params)[0]).capabilities.enumerable
    return tails.UNRELIABLE if finite or sampled.tail_extremes < _FEWEST_EXTREMES else verdict


def _exact(estimator: GradientEstimator, cell: Cell) -> tuple[np.ndarray, np.ndarray, str]:
    """Exact mean and variance of the flat gradient, or NaN and the reason."""
    size = testing.flat(cell.params).size
    if size > _MOST_INTEGRATED:
        nothing = np.full(size, np.nan)
        return nothing, nothing, f"{size} coordinates are too many to integrate"
    with jax.enable_x64(True):
        params = floats(cell.params, jnp.float64)
        try:
            found = exact_moments(estimator, cell.problem.problem, params)
        except NO_ANSWER as error:
            nothing = np.full(testing.flat(params).size, np.nan)
            return nothing, nothing, str(error)
        mean, variance = testing.flat(found.mean), np.diagonal(found.covariance)
        # what rounding leaves of a constant is no variance
        return mean, np.where(variance > (_ROUNDING * mean) ** 2, variance, 0.0), ""


def _moves_q(problem: ToyProblem, params: Any) -> np.ndarray:
    """Which coordinates of the parameters q depends on, by its derivative there."""

    def leaves(params):
        q, _ = problem.problem(params)
        leaves = [jnp.ravel(x) for x in jax.tree.leaves(q) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
        return jnp.concatenate(leaves) if leaves else jnp.zeros(0, jnp.float64)

    jacobian = jax.tree.leaves(jax.jit(jax.jacfwd(leaves))(params))
    return np.concatenate([np.any(np.asarray(j).reshape(len(j), -1) != 0, axis=0) for j in jacobian])


def floats(params: Any, dtype: Any) -> Any:
    """Parameters as arrays of one float type."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
