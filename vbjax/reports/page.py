"""A page and its larger parts: sections, tables, tiles of numbers, foldable details."""

import collections
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from vbjax.reports.html import Html, element, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.types import Estimate


class Section(NamedTuple):
    """A part of the page with a place in its contents: anchor, title, and what stands below the title."""

    id: str
    title: str
    body: Html


def page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", provenance: Mapping[str, Any] | None = None
) -> str:
    """The whole document.

    subtitle: prose under the title. provenance: what produced the page (command, versions, seed, device), listed at
    its foot. Raises ValueError if two elements share an id, because links and pictures would then go astray.
    """
    style = resources.files("vbjax.reports").joinpath("style.css").read_text(encoding="utf-8")
    contents = [element("li", element("a", s.title, href=f"#{s.id}")) for s in sections]
    body = [
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", element("h1", title), prose(subtitle, class_="lead") if subtitle else None),
        element("nav", element("ol", contents), aria_label="Contents") if len(sections) > 1 else None,
        element(
            "main",
            [
                element(
                    "section",
                    element("h2", s.title, id=f"{s.id}-title"),
                    s.body,
                    id=s.id,
                    aria_labelledby=f"{s.id}-title",
                )
                for s in sections
            ],
            id="content",
        ),
        element("footer", _provenance(provenance)) if provenance else None,
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    document = "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"
    counts = collections.Counter(re.findall(r'\sid="([^"]+)"', document))
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"ids used more than once on the page: {', '.join(repeated[:5])}")
    return document


def section(title: str, *content: Any, id: str | None = None) -> Section:
    """A section of the page. id: its anchor, by default made from the title."""
    return Section(id or _slug(title), title, element("div", *content))


def subsection(title: str, *content: Any, id: str | None = None) -> Html:
    """A part of a section, under a smaller heading."""
    return element("div", element("h3", title, id=id), *content, class_="part")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str | None = None,
    digits: int = 6,
    align: str | None = None,
) -> Html:
    """A table that scrolls sideways by itself on a narrow screen.

    rows: cells are text, `Html`, numbers (to `digits` significant digits), or an `Estimate`, shown with its standard
    error in parentheses. The first column names the row. align: one of `l` and `r` per column, by default `r` where
    every cell is a number.
    """
    if align is None:
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        align = "".join("r" if c and all(isinstance(v, Estimate) or _is_number(v) for v in c) else "l" for c in columns)
    classes = ["number" if letter == "r" else None for letter in align]

    def cell(value, i, first):
        if isinstance(value, Estimate):
            value = uncertain(value.value, value.standard_error)
        elif _is_number(value):
            value = number(value, digits)
        return element("th" if first else "td", value, scope="row" if first else None, class_=classes[i])

    head = [element("th", name, scope="col", class_=kind) for name, kind in zip(header, classes, strict=True)]
    body = [element("tr", [cell(value, i, i == 0) for i, value in enumerate(row)]) for row in rows]
    return element(
        "div",
        element(
            "table",
            prose(caption, "caption") if caption else None,
            element("thead", element("tr", head)),
            element("tbody", body),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=re.sub(r"[$`*]", "", caption) if caption else "Table",
    )


def stat_tiles(tiles: Sequence[tuple[Any, str]]) -> Html:
    """The page's main numbers, large: pairs of a value and what it counts."""
    return element(
        "dl", [element("div", element("dt", label), element("dd", value)) for value, label in tiles], class_="stats"
    )


def details(summary: str, *content: Any) -> Html:
    """Content folded under a line that opens it; open on paper."""
    return element("details", element("summary", summary), *content)


def _provenance(provenance: Mapping[str, Any]) -> Html:
    return element(
        "dl", [element("div", element("dt", key), element("dd", value)) for key, value in provenance.items()]
    )


def _is_number(value: Any) -> bool:
    """Whether a cell is one number, of Python, NumPy or JAX."""
    return not isinstance(value, (bool, str)) and getattr(value, "ndim", 0) == 0 and hasattr(value, "__float__")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
