"""Every estimator against a reference on the same problem at the same point: the ratio of their total variances.

Start at `pairs`. Where both variances are exact the ratio is; where both were sampled it comes from draws on common
keys, the very draws of the study, whose pairing its interval takes into account (`comparison.trace_ratio`).
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from vbjax import bounds, comparison, runs
from vbjax.studies.cells import Cell, Result, draw_key, floats
from vbjax.studies.rows import presumed_unbiased, summed

MOST_REPLICATIONS = 100_000
"""More draws than this are not spent on a ratio."""


class Pair(NamedTuple):
    """A result beside the reference's: ratio of the total variances, its over the reference's; low, high: 95%.

    low and high equal the ratio where it is exact.
    """

    result: Result
    reference: Result
    ratio: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether both variances are known exactly."""
        return self.result.exact and self.reference.exact

    def work(self, cost: str) -> float:
        """The ratio of variance times cost: above 1, the reference reaches the same error for less."""
        return self.ratio * getattr(self.result, cost) / getattr(self.reference, cost)


def pairs(
    cells: Sequence[Cell],
    results: Sequence[Result],
    *,
    reference: str | None = None,
    replications: int,
    seed: int = 0,
    folder: Path | None = None,
    threads: int = 2,
) -> list[Pair]:
    """Compare each estimator with the reference, where both estimate one gradient without bias and have a variance.

    cells, results: as `schedule.study` takes and returns them. reference: an estimator's name, by default the first
    that serves the problem; at the same number of samples, or at the first it was studied with. folder: where ratios
    that were sampled are kept, as in `study`.
    """
    found: dict[tuple, dict[int, int]] = {}
    chosen: dict[tuple, str] = {}
    for i, cell in enumerate(cells):
        if not _comparable(results[i]) or reference not in (None, cell.estimator):
            continue
        if chosen.setdefault(_target(cell), cell.estimator) == cell.estimator:
            found.setdefault(_target(cell), {})[cell.samples] = i

    def pair(i: int) -> Pair | None:
        cell, result = cells[i], results[i]
        others = found.get(_target(cell))
        if not others or chosen[_target(cell)] == cell.estimator or not _comparable(result):
            return None
        other = others.get(cell.samples, next(iter(others.values())))
        against = results[other]
        mine, theirs = (summed(r, range(len(r.coordinates))) for r in (result, against))
        if not theirs["variance"] > 0:
            return None
        if result.exact or against.exact:
            # an exact one has an interval of no width
            low, high = mine["low"] / theirs["high"], mine["high"] / theirs["low"] if theirs["low"] > 0 else math.inf
            return Pair(result, against, mine["variance"] / theirs["variance"], low, high)
        sampled = _kept(cell, cells[other], folder, functools.partial(_sampled, cell, cells[other], replications, seed))
        return Pair(result, against, *sampled) if all(map(math.isfinite, sampled)) else None

    with ThreadPoolExecutor(threads) as pool:
        return [p for p in pool.map(pair, range(len(cells))) if p is not None]


def _comparable(result: Result) -> bool:
    if result.refusal or not presumed_unbiased(result):
        return False
    return math.isfinite(summed(result, range(len(result.coordinates)))["variance"])


def _target(cell: Cell) -> tuple:
    """Cells that share it estimate one gradient."""
    return (cell.setting, id(cell.bound), 0 if cell.bound is bounds.mean else cell.samples)


def _sampled(cell: Cell, other: Cell, replications: int, seed: int) -> tuple[float, float, float]:
    count = min(replications, MOST_REPLICATIONS)
    if count < 2 * comparison.BATCH:
        return math.nan, math.nan, math.nan
    ratio = comparison.trace_ratio(
        draw_key(seed, cell.setting),
        cell.make(),
        other.make(),
        cell.problem.problem,
        floats(cell.params, float),
        replications=count,
    )
    width = stats.t.isf(0.025, count // comparison.BATCH - 1) * ratio.standard_error
    with np.errstate(all="ignore"):
        return float(np.exp(ratio.value)), float(np.exp(ratio.value - width)), float(np.exp(ratio.value + width))


def _kept(cell: Cell, other: Cell, folder: Path | None, ask) -> tuple[float, float, float]:
    if folder is None:
        return ask()
    path = folder / f"{hashlib.sha256(f'{cell.name} / {other.name}'.encode()).hexdigest()[:16]}.pair"
    if path.exists():
        return tuple(json.loads(path.read_text("utf-8")))
    found = ask()
    runs.write_atomically(path, json.dumps(found) + "\n")
    return found
