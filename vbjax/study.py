"""The command `vbjax study`: from names and files to a table, a file of rows and a page.

Start at `run_study`. Everything that can be refused is refused before anything is computed or written.
"""

import dataclasses
import importlib.util
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vbjax import cards, runs, tails, testing
from vbjax.estimators.catalogue import METHODS, Method
from vbjax.progress import Progress, duration
from vbjax.reports import page
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.studies import study_sections
from vbjax.studies import bias, collection, preflight, rows, schedule, user_files
from vbjax.studies.bundled import bundled_problems
from vbjax.studies.cells import Cell, Result
from vbjax.studies.pairs import Pair, pairs
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import GradientEstimator

QUICK_REPLICATIONS = 10_000
DEFAULT_PROBLEMS, DEFAULT_ESTIMATORS = ("square", "coin-rebar"), ("score", "rloo", "pathwise")


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for, as the command line says it.

    problems: names and files. estimators: names, FILE.py and FILE.py:NAME. sweeps: `NAME=lo:hi:n`, or None for none
    and an empty list for the problems' own. reference: the estimator that others are compared with, by
    default the first that serves the problem. cost: what efficiency is measured by. out: a folder, or None to write
    nothing.
    """

    problems: Sequence[str] = ()
    estimators: Sequence[str] = ()
    reference: str | None = None
    samples: Sequence[int] = (1,)
    sweeps: Sequence[str] | None = None
    replications: int = 100_000
    seed: int = 0
    delta: int | float = schedule.DELTA
    cost: str = "evaluations"
    quick: bool = False
    out: Path | None = None
    format: str = "csv"
    resume: bool = False
    overwrite: bool = False
    as_json: bool = False


def run_study(request: Request, *, console: Console | None = None) -> int:
    """Run a study and show it; returns 0, or 1 if an estimator was found biased that claims not to be.

    Raises RunError, before any work, for whatever cannot be done as asked.
    """
    console = Console() if console is None else console
    begin = time.monotonic()
    if request.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise runs.RunError("--format parquet needs pyarrow, which is not installed: pip install pyarrow, or use csv")
    if request.out is None and (request.resume or request.overwrite):
        raise runs.RunError("--resume and --overwrite need the folder of the study: --out DIR")
    problems, estimators, files = _select(request)
    if request.reference is not None and request.reference not in estimators:
        raise collection.unknown("estimator in this study", request.reference, list(estimators))
    cells = _cells(problems, estimators, request)
    paths = [file.path for file in files]
    preflight.check(cells, paths)
    replications = min(request.replications, QUICK_REPLICATIONS) if request.quick else request.replications

    def examine(folder: Path | None) -> tuple[list[Result], list[Pair]]:
        with (
            Progress(len(cells) * replications, quiet=request.as_json, unit="estimates") as bar,
            user_files.blame(*paths),
        ):
            results = schedule.study(
                cells,
                replications=replications,
                seed=request.seed,
                delta=request.delta,
                integrate=not request.quick,
                folder=folder,
                on_progress=_Pace(bar),
            )
            return results, pairs(
                cells, results, reference=request.reference, replications=replications, seed=request.seed, folder=folder
            )

    provenance = cards.provenance()
    if request.out is None:
        results, compared = examine(None)
        found = rows.rows(results, _provenance(provenance, request.seed), cost=request.cost, pairs=compared)
    else:
        config = _config(request, problems, estimators, files, replications)
        with runs.RunFolder.open(request.out, config, resume=request.resume, overwrite=request.overwrite) as folder:
            results, compared = examine(folder.checkpoints)
            found = rows.rows(results, _provenance(provenance, request.seed), cost=request.cost, pairs=compared)
            _write(request, problems, results, compared, found, provenance, time.monotonic() - begin)
    if request.as_json:
        print(json.dumps([_plain(row) for row in found], indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(results, console, cost=request.cost, delta=request.delta, pairs=compared)
        console.print(f"{len(cells)} cells, {replications:,} replications each, {duration(time.monotonic() - begin)}")
        if request.out is not None:
            console.print(f"rows: {request.out / f'study.{request.format}'}  page: {request.out / 'index.html'}",
                          highlight=False, soft_wrap=True)  # fmt: skip
    return 1 if any(result.mismatch for result in results) else 0


def list_all(files: Sequence[str] = (), *, console: Console | None = None, as_json: bool = False) -> int:
    """Print every problem and estimator with its summary and source, those of the given files too."""
    console = Console() if console is None else console
    loaded = [user_files.load(file) for file in files]
    problems, methods = [(p.name, p.summary, p.source) for p in bundled_problems().values()], dict(METHODS)
    for file in loaded:
        problems += [(name, p.summary, str(file.path)) for name, p in file.problems.items()]
        for name, value in file.estimators.items():
            fixed = isinstance(value, GradientEstimator)
            methods[name] = (
                Method(name, file.path.name, _made(value), value.spec.name, str(file.path)) if fixed else value
            )
    if as_json:
        listed = {
            "problems": [{"name": name, "summary": what, "source": source} for name, what, source in problems],
            "estimators": [
                {"name": name, "family": m.family, "summary": m.summary, "source": m.source,
                 "fewest_samples": m.min_samples}
                for name, m in methods.items()
            ],
        }  # fmt: skip
        print(json.dumps(listed, indent=2, ensure_ascii=False))
        return 0
    table = Table("problem", "what it is", "source", box=None, header_style="bold")
    table.columns[0].no_wrap = True
    for row in problems:
        table.add_row(*row)
    console.print(table)
    console.print()
    table = Table("estimator", "K", "what it does", "source", box=None, header_style="bold")
    table.columns[0].no_wrap = True
    for family, group in itertools.groupby(sorted(methods.values(), key=_families(methods)), key=lambda m: m.family):
        table.add_row(f"[bold]{family}[/bold]")
        for method in group:
            table.add_row(method.name, f"{method.min_samples}+", method.summary, method.source)
    console.print(table)
    return 0


def show(
    results: Sequence[Result], console: Console, *, cost: str, delta: int | float, pairs: Sequence[Pair] = ()
) -> None:
    """Print a table for each problem at each point, one of the pairs, the legend, and what nobody must miss."""
    width = max((len(r.estimator) for r in results), default=0)
    groups = list(rows.by_setting(results).values())
    for group, after in itertools.zip_longest(groups, groups[1:]):
        places = {id(s.result): s for s in rows.standings(group, cost=cost)}
        title = f"{group[0].problem}" + "".join(f", {name} = {value:.6g}" for name, value in group[0].point.items())
        table = Table(
            "estimator", "K", "bias", "variance", "calls", "FLOPs", "µs", "eff.", "", box=None, title=title,
            title_justify="left", title_style="bold", header_style="bold", padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.columns[0].min_width = min(width, 26)
        for column in (1, 4, 5, 6, 7):
            table.columns[column].justify = "right"
            table.columns[column].no_wrap = True
        for result in group:
            if not result.refusal:
                table.add_row(*_line(result, places[id(result)]))
        if table.row_count:
            console.print(table, highlight=False)
        beside = [pair for pair in pairs if id(pair.result) in places]
        if beside:
            console.print(_pairs_table(beside, cost), highlight=False)
        if after is None or after[0].problem != group[0].problem:
            # once for all points of a sweep
            mine = [result for result in results if result.problem == group[0].problem]
            for name, refusal in rows.refusals(mine).items():
                console.print(f"{name} refuses: {refusal}", style="dim", markup=False, highlight=False)
        console.print()
    words = {rows.outcome_text(r) for r in results}
    console.print(_legend(words, delta, cost), style="dim", markup=False, highlight=False)
    for result in results:
        if result.mismatch:
            console.print(
                f"[bold red]CONTRADICTS ITS SPECIFICATION[/bold red] {result.estimator} ({result.call}) says that it "
                f"is unbiased; on {result.setting} {result.explanation}.",
                highlight=False,
            )
        elif result.outcome in (bias.HEAVY_TAILS, bias.NOT_FINITE):
            console.print(
                f"{result.estimator} on {result.setting}: {result.explanation}", markup=False, highlight=False
            )


def _line(result: Result, place: rows.Standing) -> list[str]:
    return [
        result.estimator,
        str(result.samples or "–"),
        bias_text(result, place),
        variance_text(result, place),
        f"{result.evaluations:.0f}",
        _short(result.flops),
        _short(result.microseconds),
        "" if math.isnan(place.efficiency) else f"{place.efficiency:.2g}",
        "*" if place.front else "",
    ]


def _pairs_table(pairs: Sequence[Pair], cost: str) -> Table:
    unit = "calls" if cost == "evaluations" else cost
    table = Table(
        f"against {pairs[0].reference.estimator}", "K", "its K", "variance ratio", "95%", f"ratio of variance × {unit}",
        box=None, header_style="bold", padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in table.columns[1:3]:
        column.justify = "right"
    for pair in pairs:
        interval = "exact" if pair.exact else f"{number(pair.low, 3)} to {number(pair.high, 3)}"
        counts = (str(r.samples or "–") for r in (pair.result, pair.reference))
        table.add_row(
            pair.result.estimator, *counts, number(pair.ratio, 3), interval, number(pair.work(cost), 3)
        )  # fmt: skip
    return table


def bias_text(result: Result, place: rows.Standing) -> str:
    """The verdict in a word, the number where there is a bias."""
    if result.outcome == bias.BIASED:
        size = number(place.bias, 3) if result.exact else uncertain(place.bias, place.bias_error)
        return f"[bold red]{size}[/bold red]" if result.mismatch else f"[yellow]{size}[/yellow]"
    if result.outcome == bias.UNBIASED:
        return "[green]0 exactly[/green]"
    if result.outcome == bias.CERTIFIED:
        return "[green]none seen[/green]"
    return rows.outcome_text(result)


def variance_text(result: Result, place: rows.Standing) -> str:
    """The trace of the covariance: plain where it is exact, with its standard error where it was sampled."""
    if math.isinf(place.variance):
        return "not finite"
    if result.exact:
        return number(place.variance, 6)
    error = rows.summed(result, range(len(result.coordinates)))["variance_error"]
    return uncertain(place.variance, error) + (" ?" if result.tail == tails.UNRELIABLE else "")


def _legend(words: set[str], delta: int | float, cost: str) -> str:
    lines = [
        "bias: norm over all coordinates; variance: of one estimate, summed over them; digits in parentheses: standard "
        "error of the last digits, none where exact. calls: of f. eff.: 1/(variance × "
        f"{'calls' if cost == 'evaluations' else cost}), the best unbiased is 1. *: on the front, nothing beats it in "
        "bias, variance and cost."
    ]
    if bias.CERTIFIED in words:
        lines.append(f"none seen: any bias is below {delta:g} standard deviations of one estimate (wrong once in 10⁶).")
    if bias.INCONCLUSIVE in words:
        lines.append("inconclusive: more replications would decide.")
    if "says biased" in words:
        lines.append("says biased: by its specification; more replications would show by how much.")
    if bias.NO_TRUTH in words:
        lines.append("no truth: the exact gradient is not known.")
    return "\n".join(lines)


def _short(value: float) -> str:
    if not math.isfinite(value):
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _select(request: Request):
    """Names and files into problems and estimators."""
    loaded: dict[str, user_files.Loaded] = {}

    def open_file(name: str) -> user_files.Loaded:
        if name not in loaded:
            loaded[name] = user_files.load(name)
        return loaded[name]

    problems: list[ToyProblem] = []
    estimators: dict[str, Method | GradientEstimator] = {}
    for name in request.problems:
        if not _is_file(name):
            problems += collection.find(name)
            continue
        file = open_file(name)
        if not file.problems and not file.estimators:
            raise _nothing_in(name, "no problem and no estimator")
        problems += file.problems.values()
        estimators |= file.estimators
    if not problems:
        problems = [problem for name in DEFAULT_PROBLEMS for problem in collection.find(name)]
    named: dict[str, Method | GradientEstimator] = {}
    for name in request.estimators:
        path, _, function = name.rpartition(":")
        if _is_file(name):
            file = open_file(name)
            if not file.estimators:
                raise user_files.UserError(
                    f"{name} defines no estimator. A file to start from:\n\n{user_files.EXAMPLE}\n"
                )
            named |= file.estimators
        elif path and _is_file(path):
            named[function] = user_files.named(open_file(path), function)
        elif name in estimators or name in METHODS:
            named[name] = estimators[name] if name in estimators else METHODS[name]
        else:
            raise collection.unknown("estimator", name, [*METHODS, *estimators])
    named = named or {name: METHODS[name] for name in DEFAULT_ESTIMATORS} | estimators
    unique = {problem.name: problem for problem in problems}
    return list(unique.values()), named, list(loaded.values())


def _cells(problems: Sequence[ToyProblem], estimators, request: Request) -> list[Cell]:
    if request.sweeps is None:
        return schedule.grid(problems, estimators, samples=request.samples)
    if not request.sweeps:
        if not any(problem.sweep for problem in problems):
            raise runs.RunError("none of these problems has a sweep of its own: --sweep NAME=lo:hi:n")
        cells = []
        for problem in problems:
            own = dict([problem.sweep]) if problem.sweep else {}
            cells += schedule.grid([problem], estimators, samples=request.samples, sweeps=own)
        return cells
    sweeps = dict(parse_sweep(text) for text in request.sweeps)
    names = list(dict.fromkeys(name for p in problems for name in testing.coordinate_names(p.params)))
    for name in sweeps:
        if name not in names:
            raise collection.unknown("parameter", name, names[:20])
    return schedule.grid(problems, estimators, samples=request.samples, sweeps=sweeps)


def parse_sweep(text: str) -> tuple[str, list[float]]:
    """`NAME=lo:hi:n` (evenly), `NAME=lo:hi:n:log` (by a factor), or `NAME=1,2,5`. Raises RunError."""
    name, equals, values = text.partition("=")
    refusal = runs.RunError(f"--sweep takes NAME=lo:hi:n, NAME=lo:hi:n:log or NAME=1,2,5, got {text!r}")
    if not equals or not name:
        raise refusal
    try:
        if ":" not in values:
            points = [float(value) for value in values.split(",")]
        else:
            low, high, count, *kind = values.split(":")
            if kind not in ([], ["log"]) or not 2 <= int(count) <= 1000:
                raise refusal
            space = np.geomspace if kind else np.linspace
            points = space(float(low), float(high), int(count)).tolist()
    except ValueError as error:
        raise refusal from error
    if not all(map(math.isfinite, points)):
        raise refusal
    return name.strip(), points


def _nothing_in(name: str, what: str) -> user_files.UserError:
    return user_files.UserError(f"{name} defines {what}. A file to start from:\n\n{user_files.EXAMPLE}\n")


def _is_file(name: str) -> bool:
    return name.endswith(".py")


def _made(estimator: GradientEstimator):
    return lambda samples: estimator


def _families(methods: Mapping[str, Method]):
    order = list(dict.fromkeys(method.family for method in methods.values()))
    return lambda method: order.index(method.family)


class _Pace:
    """Turns the study's progress into the bar's rows."""

    def __init__(self, bar: Progress):
        self.bar, self.begin, self.first = bar, time.monotonic(), -1

    def __call__(self, done: int, wanted: int, finished: str) -> None:
        if self.first < 0:
            self.first = done  # what an earlier run had done says nothing about this one's pace
        seconds = max(time.monotonic() - self.begin, 1e-3)
        pace = (done - self.first) / seconds
        left = (wanted - done) / pace if pace else 0.0
        self.bar.update({"step": done, "estimates_per_second": pace, "seconds": seconds, "seconds_left": left})


def _config(request: Request, problems, estimators, files, replications: int) -> dict[str, Any]:
    return {
        "problems": [problem.name for problem in problems],
        "estimators": list(estimators),
        "files": {str(file.path): file.digest for file in files},
        "samples": list(request.samples),
        "sweeps": None if request.sweeps is None else list(request.sweeps),
        "replications": replications,
        "seed": request.seed,
        "delta": request.delta,
        "exact": not request.quick,
    }


def _provenance(provenance: Mapping[str, Any], seed: int) -> dict[str, Any]:
    commit = provenance["commit"] or {}
    return {
        "seed": seed,
        "commit": commit.get("hash", "") + (" with changes" if commit.get("dirty") else ""),
        "device": f"{provenance['device']['count']} x {provenance['device']['kind']}",
        "started": provenance["started"],
        "versions": " ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        "command": provenance["command"],
    }


def _write(request: Request, problems, results, compared, found, provenance, seconds: float) -> None:
    """The rows, then the page; each file is the old one or the new one."""
    assert request.out is not None
    write = rows.write_parquet if request.format == "parquet" else rows.write_csv
    write(request.out / f"study.{request.format}", found)
    document = page(
        "A study of gradient estimators",
        study_sections(problems, results, cost=request.cost, delta=request.delta, pairs=compared),
        subtitle="Bias, variance and cost of each estimator: integrated over all of its noise where that is possible, "
        "sampled with intervals elsewhere.",
        provenance={**_provenance(provenance, request.seed), "seconds": round(seconds)},
    )
    runs.write_atomically(request.out / "index.html", document)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds it: null for a number that does not exist, and a word for an infinite one."""

    def plain(value):
        if not isinstance(value, float) or math.isfinite(value):
            return value
        return None if math.isnan(value) else str(value)

    return {name: plain(value) for name, value in row.items()}
