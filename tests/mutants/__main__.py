"""`make mutants`, or `python -m tests.mutants`: plant every fault, and fail if one goes unnoticed."""

import argparse
import contextlib
import itertools
import json
import queue
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.table import Table

from tests.mutants import MUTATIONS
from tests.mutants.mutation import Mutation
from tests.mutants.trial import ROOT, Complaint, Outcome, TimedOut, Workplace, fault_of, is_test
from vbjax.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all are killed, 1 if not, 2 if nothing could be said."""
    options = _parser().parse_args(arguments)
    chosen = [m for m in MUTATIONS if re.search(options.only, f"{m.file} {m.name}", re.IGNORECASE)]
    if not chosen:
        print(f"no mutation's file and name match {options.only!r}; see --list", file=sys.stderr)
        return 2
    if options.list:
        _show([Outcome(m, "", ", ".join(m.killers)) for m in chosen], options.json)
        return 0
    faults = [f"{m.name}: {fault}" for m in chosen if (fault := fault_of(m, (ROOT / "vbjax" / m.file).read_text()))]
    if faults:
        print("\n".join(["The table does not fit the code:", *faults]), file=sys.stderr)
        return 2
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        workplaces = [stack.enter_context(Workplace()) for _ in range(min(options.jobs, len(chosen)))]
        print(f"First the {len(_killers(chosen))} killers without a fault ...", file=sys.stderr)
        red = list(_baseline(workplaces, _killers(chosen)))
        if red:
            lines = [f"{complaint.killer}: {complaint.detail}" for complaint in red]
            print("\n".join(["Red without a mutation, so that its word means nothing:", *lines]), file=sys.stderr)
            return 2
        outcomes = list(_outcomes(workplaces, chosen))
    outcomes.sort(key=lambda outcome: chosen.index(outcome.mutation))
    _show(outcomes, options.json)
    alive = [outcome for outcome in outcomes if outcome.fate != "killed"]
    for outcome in alive:
        print(f"{outcome.fate}: {outcome.mutation.name} ({outcome.mutation.file}) {outcome.detail}", file=sys.stderr)
    seconds = time.monotonic() - begin
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} mutations killed, {seconds:.0f} s", file=sys.stderr)
    return 1 if alive else 0


def _killers(mutations: Sequence[Mutation]) -> list[str]:
    return list(dict.fromkeys(killer for mutation in mutations for killer in mutation.killers))


def _baseline(workplaces: Sequence[Workplace], killers: Sequence[str]) -> Iterator[Complaint]:
    """Complaints without any fault; the tests of one file stay together, for their fixtures' sake."""
    entries = [killer for killer in killers if not is_test(killer)]
    files = [list(tests) for _, tests in itertools.groupby(sorted(filter(is_test, killers)), lambda k: k.split("::")[0])]
    share = len(workplaces)
    parts = [(entries[i::share], sum(files[i::share], [])) for i in range(share)]

    def ask(workplace: Workplace, part: tuple[list[str], list[str]]) -> list[Complaint]:
        try:
            return list(workplace.complaints(*part))
        except TimedOut as late:
            return [Complaint("a killer", str(late), noticed=False)]

    with ThreadPoolExecutor(share) as pool:
        for complaints in pool.map(ask, workplaces, parts):
            yield from complaints


def _outcomes(workplaces: Sequence[Workplace], mutations: Sequence[Mutation]) -> Iterator[Outcome]:
    """Outcomes as they come, one mutation at each workplace at a time, with a progress bar."""
    idle: queue.SimpleQueue[Workplace] = queue.SimpleQueue()
    for workplace in workplaces:
        idle.put(workplace)

    def try_out(mutation: Mutation) -> Outcome:
        workplace = idle.get()
        try:
            return workplace.try_out(mutation)
        finally:
            idle.put(workplace)

    begin, killed = time.monotonic(), 0
    with Progress(len(mutations), unit="mutations") as progress, ThreadPoolExecutor(len(workplaces)) as pool:
        futures = [pool.submit(try_out, mutation) for mutation in mutations]
        for done, future in enumerate(as_completed(futures), 1):
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
    shown.columns[3].justify = "right"
    for outcome in outcomes:
        fate = outcome.by if outcome.fate in ("killed", "") else f"[bold red]{outcome.fate}[/bold red] {outcome.by}"
        seconds = f"{outcome.seconds:.1f}" if outcome.fate else ""
        shown.add_row(outcome.mutation.name, outcome.mutation.file, fate, seconds)
    Console().print(shown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="mutations at a time (default: 2)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="those whose file or name match it")
    parser.add_argument("--list", action="store_true", help="print the table, plant nothing")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
