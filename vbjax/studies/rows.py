"""Results as rows: every coordinate with its numbers, its interval and its standing among the other estimators.

Start at `standings`, which compares the cells of one problem at one point, then `rows`, whose dictionaries go to CSV,
Parquet and JSON as they are.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vbjax import runs, tails
from vbjax.studies import bias
from vbjax.studies.cells import Result

if TYPE_CHECKING:
    from vbjax.studies.pairs import Pair

MOST_COORDINATES = 12
"""More coordinates than this are summed up by parameter."""

COSTS = ("evaluations", "flops", "microseconds")
ALL = "(all)"
"""The row for the gradient as a whole: the norm of its bias, the trace of its covariance."""


class Standing(NamedTuple):
    """One result beside the others on its problem at its point.

    bias: norm of the bias, 0 where none was found, NaN where nothing is known; bias_error: its standard error, 0 where
    it is exact. variance: trace of the covariance, infinite where the tail says so; low, high: 95%. cost: in the unit
    chosen. efficiency: 1/(variance · cost), over the best of those presumed unbiased; NaN for the others. front:
    whether no other result is at least as good in |bias|, variance and cost, and better in one.
    """

    result: Result
    bias: float
    bias_error: float
    variance: float
    low: float
    high: float
    cost: float
    efficiency: float
    front: bool


def standings(results: Sequence[Result], *, cost: str = "evaluations") -> list[Standing]:
    """Compare results of one problem at one point; those that refused are left out."""
    alone = [_alone(result, cost) for result in results if not result.refusal]
    sound = [s for s in alone if presumed_unbiased(s.result) and math.isfinite(s.variance)]
    best = min((s.variance * s.cost for s in sound), default=math.nan)
    finished = []
    for s in alone:
        work = s.variance * s.cost
        efficiency = math.nan
        if s in sound:
            efficiency = 1.0 if work == best else best / work
        finished.append(s._replace(efficiency=efficiency, front=_on_front(s, alone)))
    return finished


def presumed_unbiased(result: Result) -> bool:
    """Whether it was found to be without bias, or says so and nothing was found."""
    if result.outcome in (bias.UNBIASED, bias.CERTIFIED):
        return True
    return result.claims_unbiased and result.outcome in (bias.INCONCLUSIVE, bias.NO_TRUTH)


def outcome_text(result: Result) -> str:
    """The outcome in a word or two; where nothing was found, what the estimator says of itself if that is a bias."""
    if result.outcome in (bias.INCONCLUSIVE, bias.NO_TRUTH) and not result.claims_unbiased:
        return "says biased"
    return result.outcome


def summed(result: Result, which: Sequence[int]) -> dict[str, Any]:
    """Bias, variance and interval of some coordinates together.

    The ends of the interval and the standard error of a sum of variances are the sums of theirs, which is what they
    come to where all rise and fall together, and too wide elsewhere.
    """
    index = np.asarray(which, int)

    def numbers(name):
        return np.asarray(getattr(result, name), float)[index]

    exact = result.exact
    mean = numbers("exact_mean" if exact else "mean")
    error = 0.0 if exact else float(np.sqrt(np.sum(numbers("standard_error") ** 2)))
    variance = float(np.sum(numbers("exact_variance" if exact else "variance")))
    spread = 0.0 if exact else float(np.sum(numbers("variance_standard_error")))
    low, high = (variance if exact else float(np.sum(numbers(f"variance_{end}"))) for end in ("low", "high"))
    if not exact and result.tail == tails.NOT_FINITE:
        variance, low, high = math.inf, math.nan, math.nan
    return {
        "bias": float(np.linalg.norm(mean - numbers("truth"))),
        "bias_error": error,
        "variance": variance,
        "variance_error": spread,
        "low": low,
        "high": high,
    }


def rows(
    results: Sequence[Result],
    provenance: Mapping[str, Any],
    *,
    cost: str = "evaluations",
    pairs: "Sequence[Pair]" = (),
) -> list[dict[str, Any]]:
    """One dictionary a result and coordinate, first of all coordinates together; all have the same keys.

    pairs: comparisons with a reference, which stand in the rows of all coordinates together.
    """
    beside = {id(pair.result): pair for pair in pairs}
    swept = list(dict.fromkeys(name for result in results for name in result.point))
    standing = {id(s.result): s for group in by_setting(results).values() for s in standings(group, cost=cost)}
    found = []
    for result in results:
        place = standing.get(id(result))
        for name, which in _groups(result):
            together = summed(result, which)
            found.append(
                {
                    "problem": result.problem,
                    **{f"at {name}": result.point.get(name, math.nan) for name in swept},
                    "estimator": result.estimator,
                    "family": result.family,
                    "samples": result.samples,
                    "coordinate": name,
                    "coordinates": len(which),
                    "outcome": result.outcome,
                    "contradicts_spec": result.mismatch,
                    "truth": result.truth[which[0]] if len(which) == 1 else _norm(result.truth, which),
                    "bias": together["bias"],
                    "bias_standard_error": together["bias_error"],
                    "variance": together["variance"],
                    "variance_low": together["low"],
                    "variance_high": together["high"],
                    "exact": result.exact,
                    "sampled_mean": result.mean[which[0]] if len(which) == 1 else _norm(result.mean, which),
                    "sampled_variance": sum(result.variance[i] for i in which),
                    "sampled_variance_standard_error": sum(result.variance_standard_error[i] for i in which),
                    "kurtosis": max(result.kurtosis[i] for i in which),
                    "tail_index": max(result.tail_index[i] for i in which),
                    "tail": result.tail,
                    "not_finite": result.non_finite,
                    "replications": result.replications,
                    "evaluations": result.evaluations,
                    "flops": result.flops,
                    "microseconds": result.microseconds,
                    "efficiency": place.efficiency if place and name == ALL else math.nan,
                    "pareto": place.front if place else False,
                    **_compared(beside.get(id(result)) if name == ALL else None, cost),
                    "explanation": result.explanation,
                    "no_exact": result.no_exact,
                    **provenance,
                }
            )
    return found


def by_setting(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results that can be compared: of one problem at one point, in order."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.setting, []).append(result)
    return groups


def refusals(results: Sequence[Result]) -> dict[str, str]:
    """Why an estimator does not serve the problem, once for each estimator."""
    return {result.estimator: result.refusal for result in reversed(results) if result.refusal}


def write_csv(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, all of it or nothing; a number that does not exist is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in found)
    runs.write_atomically(path, text.getvalue())


def write_parquet(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet through a temporary neighbour; pyarrow, which is no dependency, must be installed."""
    import pyarrow  # pyrefly: ignore
    import pyarrow.parquet  # pyrefly: ignore

    temporary = path.with_name(f".{path.name}.unfinished")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in found]), temporary)
    temporary.replace(path)


def _compared(pair: "Pair | None", cost: str) -> dict[str, Any]:
    return {
        "reference": pair.reference.estimator if pair else "",
        "reference_samples": pair.reference.samples if pair else 0,
        "variance_ratio": pair.ratio if pair else math.nan,
        "variance_ratio_low": pair.low if pair else math.nan,
        "variance_ratio_high": pair.high if pair else math.nan,
        "work_ratio": pair.work(cost) if pair else math.nan,
    }


def _alone(result: Result, cost: str) -> Standing:
    together = summed(result, range(len(result.coordinates)))
    biased = result.outcome == bias.BIASED
    known = result.outcome not in (bias.NO_TRUTH, bias.NOT_FINITE, bias.HEAVY_TAILS)
    off = together["bias"] if biased else (0.0 if known else math.nan)
    return Standing(
        result,
        off,
        together["bias_error"] if biased else 0.0,
        together["variance"],
        together["low"],
        together["high"],
        getattr(result, cost),
        math.nan,
        False,
    )


def _on_front(mine: Standing, everyone: Sequence[Standing]) -> bool:
    def marks(s):
        # what is not known of a bias does not count against it
        return (0.0 if math.isnan(s.bias) else s.bias, s.variance, s.cost)

    here = marks(mine)
    if not all(map(math.isfinite, here)):
        return False
    for other in map(marks, everyone):
        if all(a <= b for a, b in zip(other, here, strict=True)) and other != here:
            return False
    return True


def _groups(result: Result) -> list[tuple[str, list[int]]]:
    everything = list(range(len(result.coordinates)))
    if len(everything) == 1:
        return [(ALL, everything)]
    if len(everything) <= MOST_COORDINATES:
        return [(ALL, everything), *((result.coordinates[i], [i]) for i in everything)]
    groups: dict[str, list[int]] = {}
    for i in everything:
        groups.setdefault(result.coordinates[i].split("[")[0].split(".")[0], []).append(i)
    return [(ALL, everything), *groups.items()]


def _norm(values: Sequence[float], which: Sequence[int]) -> float:
    return float(np.linalg.norm(np.asarray(values, float)[np.asarray(which, int)]))
