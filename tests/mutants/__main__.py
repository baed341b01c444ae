"""`make mutants`, or `python -m tests.mutants`: plant every fault, and fail if one goes unnoticed."""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.mutants import MUTATIONS, trial
from tests.mutants.mutation import Mutation
from tests.mutants.trial import ROOT, Complaint, Outcome, fault_of, is_test
from vbjax.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all are killed, 1 if not, 2 if nothing could be said."""
    options = _parser().parse_args(arguments)
    chosen = [m for m in MUTATIONS if options.only.search(f"{m.file} {m.name}")]
    if options.every_killer:
        chosen = [m._replace(killers=(killer,)) for m in chosen for killer in m.killers]
    if not chosen:
        print(f"no mutation's file and name match {options.only.pattern!r}; see --list", file=sys.stderr)
        return 2
    if options.list:
        _show([Outcome(m, "", ", ".join(m.killers)) for m in chosen], options.json)
        return 0
    faults = [f"{m.name}: {fault}" for m in chosen if (fault := fault_of(m, (ROOT / "vbjax" / m.file).read_text()))]
    if faults:
        print("\n".join(["The table does not fit the code:", *faults]), file=sys.stderr)
        return 2
    begin = time.monotonic()
    killers = list(dict.fromkeys(killer for mutation in chosen for killer in mutation.killers))
    with workers(min(options.jobs, len(chosen))) as pool:
        print(f"First the {len(killers)} killers without a fault ...", file=sys.stderr)
        red = list(_baseline(pool, killers, options.jobs))
        if red:
            lines = [f"{complaint.killer}: {complaint.detail}" for complaint in red]
            print("\n".join(["Red without a mutation, so that its word means nothing:", *lines]), file=sys.stderr)
            return 2
        outcomes = list(_outcomes(pool, chosen))
    outcomes.sort(key=lambda outcome: chosen.index(outcome.mutation))
    _show(outcomes, options.json)
    alive = [outcome for outcome in outcomes if outcome.fate != "killed"]
    for outcome in alive:
        name = f"{outcome.mutation.name} ({outcome.mutation.file}; {', '.join(outcome.mutation.killers)})"
        print(f"{outcome.fate}: {name} {outcome.detail}", file=sys.stderr)
    seconds = time.monotonic() - begin
    counted = "pairs of a mutation and a killer" if options.every_killer else "mutations"
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} {counted} killed, {seconds:.0f} s", file=sys.stderr)
    return 1 if alive else 0


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that have a workplace each."""
    # what a mutation does not touch was compiled by the tests before
    settings = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_COMPILATION_CACHE_DIR": f"{ROOT}/.jax_cache",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}  # fmt: skip
    context = multiprocessing.get_context("spawn")
    folders = context.SimpleQueue()
    with mock.patch.dict(os.environ, settings), tempfile.TemporaryDirectory(prefix="mutants-") as root:
        for job in range(jobs):
            (Path(root) / str(job)).mkdir()
            folders.put(Path(root) / str(job))
        with ProcessPoolExecutor(jobs, context, initializer=trial.settle, initargs=(folders,)) as pool:
            yield pool


def _baseline(pool: ProcessPoolExecutor, killers: Sequence[str], parts: int) -> Iterator[Complaint]:
    """Complaints without any fault; the tests of one file stay together, for their fixtures' sake."""
    entries = [killer for killer in killers if not is_test(killer)]
    files = [
        list(tests) for _, tests in itertools.groupby(sorted(filter(is_test, killers)), lambda k: k.split("::")[0])
    ]
    shares = [[*entries[i::parts], *itertools.chain(*files[i::parts])] for i in range(parts)]
    yield from itertools.chain.from_iterable(pool.map(trial.complaints, shares))


def _outcomes(pool: ProcessPoolExecutor, mutations: Sequence[Mutation]) -> Iterator[Outcome]:
    """Outcomes as they come, with a progress bar."""
    begin, killed = time.monotonic(), 0
    with Progress(len(mutations), unit="mutations") as progress:
        for done, future in enumerate(as_completed(pool.submit(trial.try_out, m) for m in mutations), 1):
            outcome = future.result()
            killed += outcome.fate == "killed"
            seconds = time.monotonic() - begin
            left = seconds * (len(mutations) / done - 1)
            pace = {"mutations_per_second": done / seconds, "seconds": seconds, "seconds_left": left}
            progress.update({"step": done, "killed": killed, "alive": done - killed, **pace})
            yield outcome


def _show(outcomes: Sequence[Outcome], as_json: bool) -> None:
    if as_json:
        rows = [
            {"mutation": o.mutation.name, "file": o.mutation.file, "fate": o.fate, "by": o.by, "detail": o.detail,
             "seconds": round(o.seconds, 1)} for o in outcomes
        ]  # fmt: skip
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    shown = Table("mutation", "file", "killed by", "s", box=None, header_style="bold")
    shown.columns[2].overflow, shown.columns[3].justify = "fold", "right"
    for outcome in outcomes:
        by = escape(outcome.by)
        fate = by if outcome.fate in ("killed", "") else f"[bold red]{outcome.fate}[/bold red] {by}"
        seconds = f"{outcome.seconds:.1f}" if outcome.fate else ""
        shown.add_row(escape(outcome.mutation.name), outcome.mutation.file, fate, seconds)
    Console().print(shown)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("--jobs", type=_count, default=2, help="mutations at a time (default: 2)")
    parser.add_argument(
        "--only", type=_pattern, default="", metavar="PATTERN", help="those whose file or name match it"
    )
    parser.add_argument(
        "--every-killer", action="store_true", help="ask each killer alone, and fail if one does not notice"
    )
    parser.add_argument("--list", action="store_true", help="print the table, plant nothing")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
