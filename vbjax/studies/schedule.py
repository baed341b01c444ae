"""A study: problems × settings × estimators × samples, every cell examined once, kept on disk, resumed after a kill.

Start at `grid`, which lists the cells, then `study`, which examines them in parallel: the time goes into compilation.
"""

import functools
import hashlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vbjax import bounds, runs, testing
from vbjax.estimators.catalogue import Method
from vbjax.studies.cells import Cell, Result, Truth, examine, price_of, truth_of
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import GradientEstimator

DELTA = 0.05
"""The bias that does not matter, in standard deviations of one estimate."""

Progress = Callable[[int, int, str], object]
"""Called with the replications done and wanted over all cells, and the name of a cell just finished, or ""."""


def grid(
    problems: Sequence[ToyProblem],
    estimators: Mapping[str, Method | GradientEstimator],
    *,
    samples: Sequence[int] = (1,),
    sweeps: Mapping[str, Sequence[int | float]] | None = None,
) -> list[Cell]:
    """Every estimator at every number of samples that it takes, on every problem at every point of the sweeps.

    estimators: by name; one that is already made counts once. sweeps: values by the name of a parameter (`loc`,
    `logits[2]`); several make a product; a problem without the parameter stands still.
    """
    cells = []

    @functools.cache
    def maker(method: Method, samples: int) -> Callable[[], GradientEstimator]:
        # one estimator for all problems and points: what was compiled for it is found again
        return functools.cache(functools.partial(method.make, samples))

    for problem in problems:
        for point in points(problem, sweeps or {}):
            params = at(problem.params, point)
            for name, method in estimators.items():
                if isinstance(method, GradientEstimator):
                    cells.append(Cell(problem, params, point, name, "made", 0, lambda method=method: method))
                    continue
                # fewer samples than a method needs are no cell; none at all would leave the method out
                counts = [k for k in samples if k >= method.min_samples] or [method.min_samples]
                for k in counts:
                    make = maker(method, k)
                    cells.append(Cell(problem, params, point, name, method.family, k, make, method.bound))
    return cells


def points(problem: ToyProblem, sweeps: Mapping[str, Sequence[int | float]]) -> list[dict[str, float]]:
    """The settings of a problem: the product of the sweeps over parameters that it has, or one empty point."""
    mine = [name for name in sweeps if name in testing.coordinate_names(problem.params)]
    return [
        dict(zip(mine, map(float, values), strict=True)) for values in itertools.product(*(sweeps[n] for n in mine))
    ]


def at(params: Any, point: Mapping[str, int | float]) -> Any:
    """The parameters as float64 arrays, with some coordinates set."""
    names = testing.coordinate_names(params)
    flat = testing.flat(params)
    for name, value in point.items():
        flat[names.index(name)] = value
    leaves, structure = jax.tree.flatten(params)
    shapes = [np.shape(leaf) for leaf in leaves]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(flat, ends[:-1])
    return jax.tree.unflatten(structure, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])


def study(
    cells: Sequence[Cell],
    *,
    replications: int,
    seed: int = 0,
    delta: int | float = DELTA,
    integrate: bool = True,
    folder: Path | None = None,
    threads: int = 2,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Examine every cell and return the results in the order of the cells.

    A result does not depend on the other cells, their order, the threads or the devices. folder: where finished
    cells are kept, one file each, and unfinished ones every few seconds: the same call goes on from there, to the
    same bits. It is for the caller to see that the folder belongs to this study (`runs.RunFolder`). Raises what the
    problems and estimators raise.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    paths = [None if folder is None else folder / f"{_digest(cell)}.json" for cell in cells]
    found = {i: Result.from_json(path.read_text("utf-8")) for i, path in enumerate(paths) if path and path.exists()}
    tally = _Tally(len(cells), replications, on_progress)
    for i in found:
        tally.finished(cells[i])

    def one(cell: Cell, path: Path | None, truth: Callable[[], Truth]) -> Result:
        if stop.is_set():
            raise _Stopped
        checkpoint = None if path is None else path.with_suffix(".npz")
        result = examine(
            cell,
            truth,
            prices[_kind(cell)],
            seed=seed,
            replications=replications,
            delta=delta,
            integrate=integrate,
            checkpoint=checkpoint,
            on_progress=lambda done, _: tally.report(cell, done, stop),
        )
        if path is not None and checkpoint is not None:
            runs.write_atomically(path, result.to_json() + "\n")
            checkpoint.unlink(missing_ok=True)
        tally.finished(cell)
        return result

    stop = threading.Event()
    # the same program at every point of a sweep, so its price is asked for once
    prices = {_kind(cell): functools.cache(functools.partial(price_of, cell)) for cell in cells}
    truths: dict[Any, Future[Truth]] = {}
    with ThreadPoolExecutor(threads) as pool:
        # all truths come first in the queue, so that no cell can wait for one that waits for a thread
        wanted = [i for i in range(len(cells)) if i not in found]
        for cell in (cells[i] for i in wanted):
            if _question(cell) not in truths:
                truths[_question(cell)] = pool.submit(truth_of, cell)
        futures = {i: pool.submit(one, cells[i], paths[i], truths[_question(cells[i])].result) for i in wanted}
        try:
            found |= {i: future.result() for i, future in futures.items()}
        except BaseException:
            stop.set()
            raise
    return [found[i] for i in range(len(cells))]


class _Stopped(Exception):  # noqa: N818
    """Another cell has failed; this one need not go on."""


def _question(cell: Cell) -> tuple:
    """Cells that share it share their exact gradient."""
    return (cell.setting, id(cell.bound), 0 if cell.bound is bounds.mean else cell.samples)


def _kind(cell: Cell) -> tuple:
    """Cells that share it cost the same."""
    return (cell.problem.name, cell.estimator, cell.samples)


def _digest(cell: Cell) -> str:
    return hashlib.sha256(cell.name.encode()).hexdigest()[:16]


class _Tally:
    """Adds up the progress of cells that run at the same time."""

    def __init__(self, cells: int, replications: int, on_progress: Progress | None):
        self.wanted, self.replications, self.on_progress = cells * replications, replications, on_progress
        self.done: dict[str, int] = {}
        self.lock = threading.Lock()

    def report(self, cell: Cell, done: int, stop: threading.Event) -> None:
        if stop.is_set():
            raise _Stopped
        self._tell(cell, done, "")

    def finished(self, cell: Cell) -> None:
        self._tell(cell, self.replications, cell.name)

    def _tell(self, cell: Cell, done: int, finished: str) -> None:
        if self.on_progress is None:
            return
        with self.lock:
            # a cell counts as done when its exact part is, too
            self.done[cell.name] = done if finished else min(done, max(self.replications - 1, 0))
            self.on_progress(sum(self.done.values()), self.wanted, finished)
