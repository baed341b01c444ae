"""Derivation checks on a page: an overview, an index by slide, the slides' errata, and a card for each entry.

`derivations_section(verdicts)` is a part of a larger page, `report(verdicts)` a page of its own.
"""

import inspect
import itertools
import math
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vbjax import cards, runs
from vbjax.derivations.command import error_text, reproduction
from vbjax.derivations.identity import Statistical, Verdict
from vbjax.derivations.registry import CHAPTERS, LECTURES
from vbjax.reports.derivation_pictures import PICTURES
from vbjax.reports.figures import SERIES, figure, figure_style
from vbjax.reports.html import Html, badge, code, element, formula, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.page import Section, details, page, section, stat_tiles, subsection, table


def report_writer(folder: Path) -> Callable[[Sequence[Verdict]], None]:
    """A function of the verdicts that writes `folder/index.html`; raises RunError now if it cannot be written."""
    begin, origin = time.perf_counter(), cards.provenance()
    target = runs.writable_folder(folder) / "index.html"

    def write(verdicts: Sequence[Verdict]) -> None:
        told = {
            "command": origin["command"],
            "commit": (origin["commit"] or {}).get("hash", "not in a checkout"),
            "device": origin["device"]["kind"],
            "started": origin["started"],
            "seconds": f"{time.perf_counter() - begin:.0f}",
            "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        }
        runs.write_atomically(target, report(verdicts, provenance=told))
        print(f"page: {target}", file=sys.stderr)

    return write


def report(verdicts: Sequence[Verdict], *, provenance: Mapping[str, Any] | None = None) -> str:
    """The page about the entries: overview, index by lecture and slide, errata, and every card with its picture.

    verdicts: the first of each entry is shown, and any further one only if it did not pass.
    """
    drawn = {v.identity.id for v in verdicts}
    pictures = {name: _drawn(draw) for name, draw in PICTURES.items() if name in drawn}
    corrections = errata(_first(verdicts))
    sections = [
        section("Overview", *_overview(verdicts)),
        section("By lecture and slide", *lecture_index(_first(verdicts))),
        section("Errata of the slides", *corrections) if corrections else None,
        section("Entries", *_chapters(verdicts, pictures)),
    ]
    return page(
        "The lectures, executable",
        [s for s in sections if s is not None],
        subtitle="Every statement computed twice, by routes that share no code, beside a wrong variant that the same "
        "test rejects.",
        provenance=provenance,
    )


def _drawn(draw: Callable[[], Html]) -> Html:
    """The picture, or what stopped it: it asks the library, and a page about what is broken must come all the same."""
    try:
        return draw()
    except Exception as exception:
        return prose(f"No picture, it stopped: {type(exception).__name__}: {exception}")


def _first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return list({v.identity.id: v for v in reversed(verdicts)}.values())[::-1]


def derivations_section(verdicts: Sequence[Verdict], *, title: str = "Derivations") -> Section:
    """Counts, a picture of all errors, a table that links to the cards, and the cards by chapter."""
    return section(title, *_overview(verdicts), summary_table(verdicts), *_chapters(verdicts))


def _overview(verdicts: Sequence[Verdict]) -> list[Html]:
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
            (f"{sum(v.seconds for v in verdicts):.0f} s", "in the checks, two at a time"),
        ]
    )
    return [introduction, tiles, error_figure(verdicts)]


def _chapters(verdicts: Sequence[Verdict], pictures: Mapping[str, Html] | None = None) -> list[Html]:
    parts = []
    by_chapter = sorted(verdicts, key=lambda v: v.identity.chapter)
    for chapter, group in itertools.groupby(by_chapter, key=lambda v: v.identity.chapter):
        parts.append(element("h3", f"{chapter}. {CHAPTERS[chapter]}", id=f"chapter-{chapter}"))
        for _, same in itertools.groupby(group, key=lambda v: v.identity.id):
            first, *others = same
            parts.append(card(first, picture=(pictures or {}).get(first.identity.id)))
            parts += [_failed_instance(verdict) for verdict in others]
    return parts


def _failed_instance(verdict: Verdict) -> Html:
    title = f"{verdict.identity.title}: another instance"
    return element(
        "div",
        element("header", element("h4", title), badge(_what_is_wrong(verdict), "bad")),
        sides_table(verdict) if verdict.failure is None else prose(f"The check stopped: {verdict.failure}"),
        code(reproduction(verdict)),
        class_="card bad",
    )


def lecture_index(verdicts: Sequence[Verdict]) -> list[Html]:
    """For each lecture a table of its slides, with links to the cards."""
    parts = []
    for lecture, name in LECTURES.items():
        slides: dict[str, list[Verdict]] = {}
        for v in verdicts:
            if v.identity.lecture == lecture:
                slides.setdefault(v.identity.slide, []).append(v)
        if slides:
            rows = [(f"«{slide}»", element("ul", _items(found), class_="plain")) for slide, found in slides.items()]
            parts.append(subsection(f"{lecture} {name}", table(("slide", "statements"), rows), id=f"lecture-{lecture}"))
    return parts


def _items(verdicts: Sequence[Verdict]) -> list[Html]:
    return [
        element(
            "li",
            element("a", v.identity.title, href=f"#{v.identity.id}"),
            " ",
            badge("holds", "good") if v.passed else badge(_what_is_wrong(v), "bad"),
        )
        for v in verdicts
    ]


def errata(verdicts: Sequence[Verdict]) -> list[Html]:
    """Two tables: slips of the slides, each with the checked number beside the slide's; and what slides leave out.

    The number is the quantity on which the control is farthest out. It is the slide's own where the control is what
    the slide says.
    """
    slips = [v for v in verdicts if v.identity.correction and v.identity.control.on_slide]
    notes = [v for v in verdicts if v.identity.correction and not v.identity.control.on_slide]
    parts = []
    for found, caption, last in (
        (slips, "What a slide says, beside what is so", ("as on the slide",)),
        (notes, "What a slide leaves out or words too strongly", ()),
    ):
        if found:
            rows = [_erratum(v)[: 3 + len(last)] for v in found]
            header = ("slide", "how it should read", "checked", *last)
            parts.append(element("div", table(header, rows, caption=caption, align="l" * len(header)), class_="errata"))
    return parts


def _erratum(verdict: Verdict) -> tuple[Any, ...]:
    identity = verdict.identity
    name, right, wrong = _telling(verdict)
    link = element("a", f"{identity.lecture} «{identity.slide}»", href=f"#{identity.id}")
    return link, prose(identity.correction or "", "span"), f"{name} {identity.test.relation} {right}", wrong


def _telling(verdict: Verdict) -> tuple[str, str, str]:
    """The quantity that the control misses by most: its name, its value, and the control's."""
    if verdict.failure is not None:
        return "none", "stopped", "–"
    exact = verdict.lhs if verdict.identity.control.lhs else verdict.rhs
    with np.errstate(invalid="ignore"):
        miss = np.abs(verdict.control.values - exact.values) / np.maximum(np.abs(exact.values), 1)
    i = int(np.argmax(np.nan_to_num(miss, nan=-1, posinf=np.inf)))
    return exact.names[i], number(exact.values[i], 6), number(verdict.control.values[i], 6)


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


def card(verdict: Verdict, *, picture: Html | None = None) -> Html:
    """One entry: statement, picture, both sides with the control's, the verdict, the slide's correction, the code."""
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
        picture,
        note,
        details("Code of both sides, and how to run it", *_listing(verdict)),
        class_="card" if verdict.passed else "card bad",
        id=identity.id,
        aria_labelledby=f"{identity.id}-title",
    )


_MOST_NUMBERS = 16
"""Of an entry, which are all shown at once."""


def sides_table(verdict: Verdict) -> Html | list[Html]:
    """Each quantity as the library has it, as the oracle has it, and as the control would have it.

    Of many numbers, one for each quantity, where the control is farthest out, and all of them folded away.
    """
    names = verdict.lhs.names
    if len(names) <= _MOST_NUMBERS:
        return _sides_table(verdict, range(len(names)))
    wrong = verdict.lhs if verdict.identity.control.rhs else verdict.rhs
    with np.errstate(invalid="ignore"):
        out = np.nan_to_num(np.abs(verdict.control.values - wrong.values))
    farthest: dict[str, int] = {}
    for i, name in enumerate(names):
        best = farthest.setdefault(name.split(" [")[0], i)
        farthest[name.split(" [")[0]] = i if out[i] > out[best] else best
    return [
        _sides_table(verdict, list(farthest.values())),
        details(f"All {len(names)} numbers", _sides_table(verdict, range(len(names)))),
    ]


def _sides_table(verdict: Verdict, indices: Sequence[int]) -> Html:
    relation = verdict.identity.test.relation
    replaced = "library" if verdict.identity.control.lhs else "oracle"
    sides = (verdict.lhs, verdict.rhs, verdict.control)
    rows = [
        (verdict.lhs.names[i], *(_value(side.values[i], side.standard_error[i]) for side in sides)) for i in indices
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
