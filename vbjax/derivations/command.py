"""`vbjax check`: run entries, print a table or JSON, and return the exit status."""

import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from vbjax.derivations.identity import Identity, Statistical, Verdict, check, draw
from vbjax.derivations.registry import CHAPTERS, UnknownEntry, select


def run_checks(
    ids: Sequence[str] = (),
    *,
    chapter: int | None = None,
    lecture: str | None = None,
    seed: int = 0,
    instances: int = 0,
    as_json: bool = False,
    list_only: bool = False,
    publish: Callable[[Sequence[Verdict]], None] | None = None,
    console: Console | None = None,
) -> int:
    """Check the selected entries and print what came of it.

    ids: none means all. instances: how many to draw from each entry's family, beside its own. list_only: print the
    entries, check nothing. as_json: one JSON document on standard output. publish: called with the verdicts on the
    entries' own instances, and with every one that did not pass. Returns 0 if every statement holds and every control
    is rejected, 1 if not, 2 if the selection is unknown.
    """
    console = Console() if console is None else console
    try:
        chosen = select(ids, chapter=chapter, lecture=lecture)
    except UnknownEntry as unknown:
        print(f"vbjax check: {unknown}", file=sys.stderr)
        return 2
    if list_only:
        rows = [
            {"id": i.id, "chapter": i.chapter, "lecture": i.lecture, "slide": i.slide, "title": i.title} for i in chosen
        ]
        console.print_json(data=rows) if as_json else console.print(_listing(rows))
        return 0
    begin, verdicts = time.perf_counter(), []
    # closed when the loop is left, so that an interruption waits for the checks in progress and no others
    with contextlib.closing(verdicts_of(chosen, seed=seed, instances=instances)) as found:
        for verdict in found:
            verdicts.append(verdict)
            if not as_json and console.is_terminal:
                progress = f"{len(verdicts)}/{len(chosen) * (1 + instances)} {verdict.identity.id}"
                console.print(f"[dim]{progress:60s}[/dim]", end="\r")
    if as_json:
        print(json.dumps([as_row(v) for v in verdicts], indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console.print(_table(verdicts))
        for verdict in verdicts:
            if not verdict.passed:
                console.print(_complaint(verdict), markup=False, highlight=False, soft_wrap=True)
        console.print(_summary(verdicts, time.perf_counter() - begin))
    if publish is not None:
        # last, so that a page that cannot be built or written takes no printed verdict with it
        sys.stdout.flush()
        publish([v for v in verdicts if v.instance is v.identity.instance or not v.passed])
    return 0 if all(v.passed for v in verdicts) else 1


def verdicts_of(chosen: Sequence[Identity], *, seed: int = 0, instances: int = 0) -> Generator[Verdict, None, None]:
    """The verdicts in order, as they are reached: each entry on its own instance, then on draws of its family.

    Two at a time: most of the work is compilation, which leaves a core idle. Closing it, or an interruption, waits for
    the checks in progress and drops the others.
    """

    def verdict(identity: Identity, index: int) -> Verdict:
        instance = draw(identity, seed=seed, index=index) if index else None
        return check(identity, seed=seed, instance=instance)

    asked = [(identity, index) for identity in chosen for index in range(instances + 1)]
    if len(asked) == 1:
        yield verdict(*asked[0])
        return
    with ThreadPoolExecutor(2) as pool:
        try:
            yield from pool.map(lambda pair: verdict(*pair), asked)
        finally:
            pool.shutdown(cancel_futures=True)


def reproduction(verdict: Verdict) -> str:
    """Python that repeats a check, its instance written out."""
    types = sorted({(t.__module__, t.__name__) for t in _instance_types(verdict.instance)})
    imports = "".join(f"from {module} import {name}\n" for module, name in types)
    return (
        f"from vbjax.derivations import check, select\n{imports}"
        f'verdict = check(*select(["{verdict.identity.id}"]), seed={verdict.seed}, instance={verdict.instance!r})\n'
        "print(verdict.holds, verdict.control_rejected, verdict.lhs, verdict.rhs)"
    )


def _instance_types(value: Any) -> set[type]:
    if not isinstance(value, tuple):
        return set()
    return set().union(*map(_instance_types, value), {type(value)} - {tuple})


def as_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON: what was compared, both sides, the control, the errors and the time."""
    identity = verdict.identity
    sides = {
        name: {"value": _plain(side.values), "standard_error": _plain(side.standard_error)}
        for name, side in (("lhs", verdict.lhs), ("rhs", verdict.rhs), ("control", verdict.control))
    }
    return {
        "id": identity.id,
        "title": identity.title,
        "lecture": identity.lecture,
        "slide": identity.slide,
        "kind": identity.kind,
        "test": type(identity.test).__name__,
        "holds": verdict.holds,
        "control_rejected": verdict.control_rejected,
        "quantities": list(verdict.lhs.names),
        **sides,
        "error": _plain([verdict.error])[0],
        "limit": verdict.limit,
        "control_error": _plain([verdict.control_error])[0],
        "control_limit": verdict.control_limit,
        "instance": repr(verdict.instance),
        "code": reproduction(verdict),
        "seed": verdict.seed,
        "seconds": round(verdict.seconds, 3),
        "failure": verdict.failure,
    }


def error_text(verdict: Verdict, error: float) -> str:
    """An error in the words of the verdict's test: `|z| = 1.2` or `3.4e-13`."""
    if isinstance(verdict.identity.test, Statistical):
        return f"|z| = {error:.1f}"
    return f"{error:.1e}" if error else "0"


def _plain(values) -> list[float | str]:
    return [float(v) if math.isfinite(v) else str(float(v)) for v in values]


def _listing(rows) -> Table:
    table = Table("id", "lecture", "slide", "what it says", box=None, header_style="bold")
    chapter = None
    for row in rows:
        if row["chapter"] != chapter:
            chapter = row["chapter"]
            table.add_row(f"[bold]{chapter}. {CHAPTERS[chapter]}[/bold]")
        table.add_row(row["id"], row["lecture"], f"«{row['slide']}»", row["title"])
    return table


def _table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each entry; of several instances, the largest error and the control's smallest."""
    # six narrow columns fit a terminal of 80 with every id, which the next command takes, unbroken
    table = Table("entry", "error", "limit", "holds", "control", "rejected", box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    for _, group in itertools.groupby(verdicts, key=lambda v: v.identity.id):
        group = list(group)
        worst = max(group, key=lambda v: (not v.holds, v.error / v.limit))
        table.add_row(
            worst.identity.id,
            _narrow(worst, worst.error),
            _narrow(worst, worst.limit),
            _share([v.holds for v in group]),
            _narrow(worst, min(v.control_error for v in group)),
            _share([v.control_rejected for v in group]),
        )
    return table


def _narrow(verdict: Verdict, error: float) -> str:
    """The error in five characters or six, |z| in standard errors."""
    if isinstance(verdict.identity.test, Statistical):
        return f"{error:.1f}σ" if error < 100 else f"{error:.0f}σ"
    return f"{error:.0e}" if error else "0"


def _share(passed: Sequence[bool]) -> str:
    text = f"{sum(passed)}/{len(passed)}" if len(passed) > 1 else "yes" if all(passed) else "NO"
    return f"[green]{text}[/green]" if all(passed) else f"[bold red]{text}[/bold red]"


def _complaint(verdict: Verdict) -> str:
    head = f"{verdict.identity.id}: "
    if verdict.failure:
        return f"{head}{verdict.failure}\n{reproduction(verdict)}"
    lines = [] if verdict.holds else [f"the sides differ: {_values(verdict.lhs)} against {_values(verdict.rhs)}"]
    if not verdict.control_rejected:
        lines.append(f"the control passes, so the check proves nothing: {verdict.identity.control.claim}")
    return head + "; ".join(lines) + "\n" + reproduction(verdict)


def _values(side) -> str:
    return ", ".join(f"{name} = {value:.10g}" for name, value in zip(side.names, side.values, strict=True))


def _summary(verdicts: Sequence[Verdict], seconds: float) -> str:
    total = len(verdicts)
    holding, rejected = sum(v.holds for v in verdicts), sum(v.control_rejected for v in verdicts)
    entries = len({v.identity.id for v in verdicts})
    drawn = f", on {total} instances of {entries} entries" if total > entries else ""
    return f"{holding} of {total} statements hold, {rejected} of {total} controls are rejected{drawn}, {seconds:.0f} s"
