"""The commands `vbjax conformance` and `vbjax published`: what backs the estimators, recomputed."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from vbjax import cards, runs
from vbjax.estimators.catalogue import METHODS
from vbjax.progress import Progress
from vbjax.reports import page
from vbjax.reports.evidence import cell_text, conformance_markdown, published_section
from vbjax.studies import conformance, families, published


def run_conformance(
    methods: Sequence[str], laws: Sequence[str], *, seed: int, tests: bool, markdown: Path | None, as_json: bool
) -> int:
    """Judge and show; returns 0 if every promise is kept. Raises RunError for unknown names, before any work."""
    if markdown is not None:
        runs.writable_folder(markdown.parent)
    chosen, places = list(methods or METHODS), list(laws or (family.name for family in families.families()))
    command = "vbjax conformance" + "".join(f" --{option} {' '.join(map(repr, given))}" for option, given in
                                            (("methods", methods), ("laws", laws)) if given)  # fmt: skip
    command += (" --no-tests" if not tests else "") + (f" --seed {seed}" if seed else "") + " --markdown FILE"

    def keep(complete: list[conformance.Cell]) -> None:
        if markdown is not None:
            missing = [law for law in places if law not in {cell.family for cell in complete}]
            runs.write_atomically(markdown, conformance_markdown(complete, command, missing))

    cells: list[conformance.Cell] = []
    try:
        found = conformance.conformance(jax.random.key(seed), methods=chosen, laws=places, tests=tests)
        with Progress(len(chosen) * len(places), quiet=as_json, unit="pairs") as bar:
            begin, pairs = time.monotonic(), set()
            for cell in found:
                if cells and cell.family != cells[-1].family:
                    keep(cells)
                cells.append(cell)
                if (cell.method, cell.family) not in pairs:
                    pairs.add((cell.method, cell.family))
                    pace = len(pairs) / max(time.monotonic() - begin, 1e-9)
                    left = (len(chosen) * len(places) - len(pairs)) / pace
                    bar.update({"step": len(pairs), "pairs_per_second": pace, "seconds_left": left})
    except ValueError as error:
        raise runs.RunError(str(error)) from error
    keep(cells)
    broken = [cell for cell in cells if not cell.kept]
    if as_json:
        print(json.dumps([_plain_cell(cell) for cell in cells], allow_nan=False))
        return 1 if broken else 0
    console = Console()
    header, rows = conformance.rows(cells)
    for start in range(0, len(header), 6):
        shown = Table("estimator", *header[start : start + 6], box=None, pad_edge=False)
        for name, *marks in rows:
            shown.add_row(name, *marks[start : start + 6])
        console.print(shown, "")
    for cell in broken:
        console.print(f"[bold red]broken promise[/]: {cell.method} on {cell.family}, {cell.objective}, {cell.group}: "
                      f"bias {cell.bias:.3g}")  # fmt: skip
    judged = sum(cell.verdict in ("biased", "unbiased") for cell in cells)
    console.print(f"{judged} estimates judged, {len(broken)} broken promises")
    return 1 if broken else 0


def run_published(names: Sequence[str], *, quick: bool, out: Path | None, as_json: bool) -> int:
    """Compute published cases and show them; returns 0 if all findings hold. Raises RunError before any work."""
    begin, provenance = time.perf_counter(), cards.provenance()
    chosen = list(names or published.CASES)
    target = None if out is None else runs.writable_folder(out) / "index.html"
    cases = []
    console = Console(stderr=True, quiet=as_json)
    # unknown names first: they are refused before any work
    for name in sorted(chosen, key=lambda name: name in published.CASES):
        try:
            with console.status(f"{name} ..."):
                cases += published.published_cases([name], quick=quick)
        except ValueError as error:
            raise runs.RunError(str(error)) from error
    failed = [case.name for case in cases if not case.verdict]
    if target is not None:
        told = {"command": provenance["command"], "device": provenance["device"]["kind"]}
        told |= {"commit": (provenance["commit"] or {}).get("hash", "not in a checkout")}
        told |= {"seconds": f"{time.perf_counter() - begin:.0f}"}
        sections = [published_section(case) for case in cases]
        subtitle = "Results of the literature on gradient estimators, recomputed: exactly where the noise can be "
        subtitle += "integrated, with standard errors elsewhere."
        runs.write_atomically(
            target, page("Published results, reproduced", sections, subtitle=subtitle, provenance=told)
        )
    if as_json:
        print(json.dumps([_plain(case) for case in cases], allow_nan=False))
        return 1 if failed else 0
    shown = Console()
    for case in cases:
        table = Table(*case.columns, title=f"{case.name}: {case.title}", title_justify="left", pad_edge=False)
        for row in case.rows:
            table.add_row(*(str(cell_text(cell)) for cell in row))
        shown.print(table)
        for finding in case.findings:
            shown.print("  [green]holds[/]   " if finding.holds else "  [bold red]does not hold[/]", finding.statement)
        shown.print("")
    shown.print(f"{len(cases) - len(failed)} of {len(cases)} cases hold{f'; page: {target}' if target else ''}")
    return 1 if failed else 0


def _plain_cell(cell: conformance.Cell) -> dict:
    """JSON has no NaN or infinity: a bias that was not measured is null, and so is one that no number measures."""
    unknown = {name for name, value in cell._asdict().items() if isinstance(value, float) and not math.isfinite(value)}
    return cell._asdict() | dict.fromkeys(unknown)


def _plain(case: published.PublishedCase) -> dict:
    return {
        "name": case.name,
        "source": case.source,
        "columns": case.columns,
        "rows": [[str(cell_text(cell)) for cell in row] for row in case.rows],
        "findings": [finding._asdict() for finding in case.findings],
        "holds": case.verdict,
    }
