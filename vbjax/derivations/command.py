"""`vbjax check`: run entries, print a table or JSON, and return the exit status."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vbjax.derivations.identity import Identity, Statistical, Verdict, check
from vbjax.derivations.registry import CHAPTERS, UnknownEntry, select


def run_checks(
    ids: Sequence[str] = (),
    *,
    chapter: int | None = None,
    lecture: str | None = None,
    seed: int = 0,
    as_json: bool = False,
    list_only: bool = False,
    console: Console | None = None,
) -> int:
    """Check the selected entries and print what came of it.

    ids: none means all. list_only: print the entries, check nothing. as_json: one JSON document on standard output.
    Returns 0 if every statement holds and every control is rejected, 1 if not, 2 if the selection is unknown.
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
    verdicts = []
    for verdict in verdicts_of(chosen, seed=seed):
        verdicts.append(verdict)
        if not as_json and console.is_terminal:
            console.print(f"[dim]{len(verdicts)}/{len(chosen)} {verdict.identity.id}[/dim]", end="\r")
    if as_json:
        print(json.dumps([as_row(v) for v in verdicts], indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console.print(_table(verdicts))
        for verdict in verdicts:
            if not verdict.passed:
                console.print(_complaint(verdict), markup=False, highlight=False)
        console.print(_summary(verdicts))
    return 0 if all(v.passed for v in verdicts) else 1


def verdicts_of(chosen: Sequence[Identity], *, seed: int = 0) -> Iterator[Verdict]:
    """The verdicts, one by one as they are reached."""
    for identity in chosen:
        yield check(identity, seed=seed)


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
    # six narrow columns fit a terminal of 80 with every id, which the next command takes, unbroken
    table = Table("entry", "error", "limit", "holds", "control", "rejected", box=None)
    table.columns[0].no_wrap = True
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    for v in verdicts:
        table.add_row(
            v.identity.id,
            error_text(v, v.error).replace(" = ", " "),
            error_text(v, v.limit).replace(" = ", " "),
            "[green]yes[/green]" if v.holds else "[bold red]NO[/bold red]",
            error_text(v, v.control_error).replace(" = ", " "),
            "[green]yes[/green]" if v.control_rejected else "[bold red]NO[/bold red]",
        )
    return table


def _complaint(verdict: Verdict) -> str:
    head = f"{verdict.identity.id}: "
    if verdict.failure:
        return head + verdict.failure
    lines = [] if verdict.holds else [f"the sides differ: {_values(verdict.lhs)} against {_values(verdict.rhs)}"]
    if not verdict.control_rejected:
        lines.append(f"the control passes, so the check proves nothing: {verdict.identity.control.claim}")
    return head + "; ".join(lines) + f"\n  instance: {verdict.instance!r}, seed {verdict.seed}"


def _values(side) -> str:
    return ", ".join(f"{name} = {value:.10g}" for name, value in zip(side.names, side.values, strict=True))


def _summary(verdicts: Sequence[Verdict]) -> str:
    total, seconds = len(verdicts), sum(v.seconds for v in verdicts)
    holding, rejected = sum(v.holds for v in verdicts), sum(v.control_rejected for v in verdicts)
    return f"{holding} of {total} statements hold, {rejected} of {total} controls are rejected, {seconds:.0f} s"
