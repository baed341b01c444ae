"""The section of a page that shows derivation checks: an overview, and a card for each entry.

`derivations_section(verdicts)` is all that a page needs.
"""

import inspect
import itertools
import math
import textwrap
from collections.abc import Sequence

import numpy as np

from vbjax.derivations.command import error_text
from vbjax.derivations.identity import Statistical, Verdict
from vbjax.derivations.registry import CHAPTERS, LECTURES
from vbjax.reports.figures import SERIES, figure, figure_style
from vbjax.reports.html import Html, badge, code, element, formula, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.page import Section, details, section, stat_tiles, table


def derivations_section(verdicts: Sequence[Verdict], *, title: str = "Derivations") -> Section:
    """Counts, a picture of all errors, a table that links to the cards, and the cards by chapter."""
    holding, rejected = sum(v.holds for v in verdicts), sum(v.control_rejected for v in verdicts)
    introduction = prose(
        "Each statement of the lectures is computed twice, by routes that share no code: the library on one side, an "
        "oracle (SciPy, enumeration, algebra) on the other. Beside it stands a *control*, the same statement with a "
        "typical mistake in it: the test must reject that, or it would prove nothing."
    )
    tiles = stat_tiles(
        [
            (f"{holding} / {len(verdicts)}", "statements hold"),
            (f"{rejected} / {len(verdicts)}", "controls are rejected"),
            (sum(v.identity.correction is not None for v in verdicts), "notes on what a slide says"),
            (f"{sum(v.seconds for v in verdicts):.0f} s", "for all of them"),
        ]
    )
    chapters = []
    for chapter, group in itertools.groupby(verdicts, key=lambda v: v.identity.chapter):
        chapters.append(element("h3", f"{chapter}. {CHAPTERS[chapter]}", id=f"chapter-{chapter}"))
        chapters += [card(verdict) for verdict in group]
    return section(title, introduction, tiles, error_figure(verdicts), summary_table(verdicts), *chapters)


def error_figure(verdicts: Sequence[Verdict]) -> Html:
    """Every statement's error and its control's, in units of what the test allows, on a logarithmic axis."""
    import matplotlib.figure

    with figure_style():
        drawing = matplotlib.figure.Figure(figsize=(9, 3.1))
        axes = drawing.subplots()
        rows = np.arange(len(verdicts))
        floor, ceiling = 1e-8, 1e14
        for errors, limits, colour, marker, label in (
            ([v.error for v in verdicts], [v.limit for v in verdicts], SERIES[2], "o", "statement"),
            ([v.control_error for v in verdicts], [v.limit for v in verdicts], SERIES[1], "D", "control"),
        ):
            ratios = np.nan_to_num(np.divide(errors, limits), nan=ceiling, posinf=ceiling)
            axes.scatter(rows, np.clip(ratios, floor, ceiling), s=22, color=colour, marker=marker, label=label)
        axes.axhline(1, color=SERIES[0], linewidth=1.2)
        axes.text(len(verdicts) - 0.5, 1.6, "largest error that passes", ha="right", va="bottom", color=SERIES[0])
        axes.set(
            yscale="log",
            ylim=(floor / 5, ceiling * 5),
            xlim=(-1, len(verdicts)),
            xticks=[],
            ylabel="error ÷ tolerance",
            xlabel="entries, in the order of the table",
        )
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1.0), borderaxespad=0)
        alt = "Errors in units of the tolerance: statements below one, controls far above it."
        caption = (
            "Errors in units of the largest one that passes. Statements lie below the line, controls must lie above "
            "it; values under 10⁻⁸ and over 10¹⁴ are drawn at the edge."
        )
        return figure(drawing, name="derivation-errors", alt=alt, caption=caption)


def summary_table(verdicts: Sequence[Verdict]) -> Html:
    """One row per entry, linked to its card."""
    rows = [
        (
            element("a", v.identity.title, href=f"#{v.identity.id}"),
            f"{v.identity.lecture} «{v.identity.slide}»",
            badge("holds", "good") if v.holds else badge("fails", "bad"),
            error_text(v, v.error),
            badge("rejected", "good") if v.control_rejected else badge("passes", "bad"),
        )
        for v in verdicts
    ]
    return table(
        ("statement", "lecture and slide", "verdict", "error", "control"), rows, caption="All entries", align="lllrl"
    )


def card(verdict: Verdict) -> Html:
    """One entry: the statement, both sides with the control's, the verdict, the slide's correction, the code."""
    identity = verdict.identity
    heading = element(
        "header",
        element("h4", identity.title, id=f"{identity.id}-title"),
        badge("holds, control rejected", "good") if verdict.passed else badge(_what_is_wrong(verdict), "bad"),
    )
    source = element(
        "p",
        f"Lecture {identity.lecture} «{identity.slide}» · {identity.kind} · ",
        element("code", identity.id),
        f" · {verdict.seconds:.1f} s",
        class_="source",
        title=LECTURES[identity.lecture],
    )
    note = (
        element("aside", prose(f"*On the slide.* {identity.correction}"), class_="note")
        if identity.correction
        else None
    )
    return element(
        "article",
        heading,
        source,
        formula(identity.statement),
        sides_table(verdict) if verdict.failure is None else prose(f"The check stopped: {verdict.failure}"),
        _verdict_list(verdict),
        note,
        details("Code of both sides, and how to run it", *_listing(verdict)),
        class_="card" if verdict.passed else "card bad",
        id=identity.id,
        aria_labelledby=f"{identity.id}-title",
    )


def sides_table(verdict: Verdict) -> Html:
    """Each quantity as the library has it, as the oracle has it, and as the control would have it."""
    relation = verdict.identity.test.relation
    replaced = "library" if verdict.identity.control.lhs else "oracle"
    sides = (verdict.lhs, verdict.rhs, verdict.control)
    rows = [
        (name, *(_value(side.values[i], side.standard_error[i]) for side in sides))
        for i, name in enumerate(verdict.lhs.names)
    ]
    header = ("quantity", "library", f"{relation} oracle", f"control, for the {replaced}")
    return table(header, rows, align="lrrr")


def _value(value: float, error: float) -> str:
    return uncertain(value, error) if error > 0 else number(value, 12)


def _verdict_list(verdict: Verdict) -> Html:
    identity = verdict.identity
    if isinstance(identity.test, Statistical):
        allowed = (
            f"{error_text(verdict, verdict.limit)} allows one false alarm in {1 / identity.test.error_rate:,.0f} runs"
        )
    else:
        allowed = f"at most {number(verdict.limit, 2)} passes"
    control = prose(identity.control.claim, "span")
    rejected = "Rejected" if verdict.control_rejected else "NOT rejected"
    return element(
        "dl",
        element("dt", "Error"),
        element("dd", f"{_error(verdict, verdict.error)} ({allowed})"),
        element("dt", "Control"),
        element("dd", control, f" {rejected}, its error being {_error(verdict, verdict.control_error)}."),
        class_="verdict",
    )


def _error(verdict: Verdict, error: float) -> str:
    if isinstance(verdict.identity.test, Statistical):
        return f"|z| = {number(error, 3)}"
    return number(error, 2) if not math.isnan(error) else "none computed"


def _what_is_wrong(verdict: Verdict) -> str:
    if verdict.failure:
        return "stopped by an error"
    return "does not hold" if not verdict.holds else "control not rejected"


def _listing(verdict: Verdict) -> list[Html]:
    identity = verdict.identity
    parts = [
        ("Library", _source(identity.lhs)),
        ("Oracle", _source(identity.rhs)),
        ("Control", _source(identity.control.side)),
        ("Instance", repr(verdict.instance)),
    ]
    command = f"vbjax check {identity.id} --seed {verdict.seed}"
    return [*(Html(element("h5", name) + code(source)) for name, source in parts), code(command)]


def _source(side) -> str:
    """Source of a side, with the helpers that it closes over before it."""
    side = inspect.unwrap(side)
    functions, queue = [side], [side]
    while queue:
        helpers = inspect.getclosurevars(queue.pop()).nonlocals.values()
        for helper in (inspect.unwrap(h) for h in helpers if inspect.isfunction(h)):
            if helper not in functions:
                functions.append(helper)
                queue.append(helper)
    return "\n".join(textwrap.dedent(inspect.getsource(f)) for f in reversed(functions)).rstrip()
