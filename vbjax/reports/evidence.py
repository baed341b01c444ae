"""What backs the estimators: the conformance matrix and published results reproduced, as sections and as Markdown."""

from collections.abc import Sequence
from typing import Any

from vbjax.reports.html import Html, badge, element, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.page import Section, section, table
from vbjax.studies import conformance
from vbjax.studies.conformance import Cell
from vbjax.studies.published_case import PublishedCase
from vbjax.types import Estimate

LEGEND = (
    "exact: every estimate of the value, of the gradient in q and of the gradient in the model is unbiased, by "
    f"integration of all noise (relative bias below {conformance.TOLERANCE:g}). tested: where no rule serves, "
    f"certified by a sequential test to {conformance.DELTA:g} standard deviations of one draw, at a family-wise error "
    f"of {conformance.ERROR_RATE:g}. open: the draws ran out before the test decided. biased: found biased, as its "
    "specification says. –: refused, with a way out in the message. Objectives: smooth, discontinuous, with q's own "
    "parameters in it, and a log-weight (IWAE at 1, 2 and 5 samples); the refused ones in parentheses."
)

_LAWS_ABREAST = 3


def conformance_section(cells: Sequence[Cell], *, title: str = "Conformance of the estimators") -> Section:
    """The matrix, laws in columns."""
    laws, rows = conformance.rows(cells)
    return section(
        title,
        prose(f"{_count(cells)} {LEGEND}"),
        [
            prose(f"{c.method} on {c.family}: biased {c.group}, {c.objective}, by {number(c.bias, 3)}")
            for c in cells
            if not c.kept
        ],
        table(("estimator", *laws), rows, caption="Every estimator on every law"),
        id="conformance",
    )


def conformance_markdown(cells: Sequence[Cell], command: str, missing: Sequence[str] = ()) -> str:
    """The same for a repository's documentation, a few laws at a time; estimators that refuse them all left out.

    missing: laws that the command has not come to; with any, the document says that it is incomplete.
    """
    laws, rows = conformance.rows(cells)
    lines = ["# Conformance of the gradient estimators", "", f"Written by `{command}`."]
    if missing:
        of_all = f"{len(laws)} of {len(laws) + len(missing)} laws are done"
        lines += ["", f"**Incomplete**: {of_all}, still missing: {', '.join(missing)}."]
    lines += ["", f"{_count(cells)} {LEGEND}"]
    for start in range(0, len(laws), _LAWS_ABREAST):
        some = slice(start, start + _LAWS_ABREAST)
        lines += ["", "| " + " | ".join(("estimator", *laws[some])) + " |", "|---" * (len(laws[some]) + 1) + "|"]
        judged = [(name, marks[some]) for name, *marks in rows if set(marks[some]) != {conformance.REFUSED}]
        lines += ["| " + " | ".join((name, *marks)) + " |" for name, marks in judged]
    return "\n".join(lines) + "\n"


def _count(cells: Sequence[Cell]) -> str:
    judged = sum(cell.verdict in ("biased", "unbiased") for cell in cells)
    return f"{judged} estimates judged, {sum(not cell.kept for cell in cells)} broken promises."


def published_section(case: PublishedCase) -> Section:
    """One result of the literature: the claim, our table, and what of it holds."""
    findings = [
        element("li", badge("holds" if f.holds else "does not", "good" if f.holds else "bad"), " ", f.statement)
        for f in case.findings
    ]
    return section(
        case.title,
        prose(case.claim),
        prose(f"Source: {case.source}"),
        table(case.columns, [[cell_text(cell) for cell in row] for row in case.rows], caption=case.title),
        element("ul", findings),
        prose(case.remark) if case.remark else None,
        id=case.name,
    )


def cell_text(cell: Any) -> str | Html:
    """Text as it is, numbers shortly, estimates with their error in the last digits."""
    if isinstance(cell, Estimate):
        return uncertain(float(cell.value), float(cell.standard_error))
    return cell if isinstance(cell, str) else number(cell, 4)
