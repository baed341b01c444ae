"""Pictures inside the page: matplotlib figures as SVG that follows the page's colours, arrays as PNG.

Draw inside `with figure_style():`; its colours become the page's own, in light and dark. Every id inside an SVG is
prefixed with the figure's name, so that several live on one page.
"""

import base64
import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vbjax.reports.html import Html, element, prose

_INK, _QUIET, _GRID = "#1d2530", "#5c6675", "#d5dae1"
SERIES = ("#2f6db3", "#c2571a", "#2e8b63", "#8a4fb0", "#b0892a", "#b33a5b")
"""Colours of the lines, in order; each has a counterpart for dark pages in the stylesheet."""

_VARIABLES = {_INK: "ink", _QUIET: "quiet", _GRID: "line", **{c: f"series-{i + 1}" for i, c in enumerate(SERIES)}}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's settings for figures on a page: transparent ground, page colours, text as text."""
    import matplotlib as mpl
    from cycler import cycler

    settings = {
        "axes.edgecolor": _QUIET,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": _INK,
        "axes.prop_cycle": cycler(color=SERIES),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": _INK,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.labelcolor": _INK,
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "text.color": _INK,
        "xtick.color": _QUIET,
        "ytick.color": _QUIET,
    }
    with mpl.rc_context(settings):
        yield


def figure(drawing: Any, *, name: str, alt: str, caption: str | None = None) -> Html:
    """A matplotlib Figure as inline SVG.

    name: unique on the page, letters, digits and hyphens; the ids inside start with it. alt: what the picture says,
    for those who do not see it. caption: prose below it.
    """
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    title = element("title", alt, id=f"{name}-title")
    width, height = (72 * size for size in drawing.get_size_inches())
    box = f"0 0 {width:g} {height:g}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
        f'role="img" aria-labelledby="{name}-title" style="width: {width * 96 / 72:.0f}px">'
    )
    drawn = element("div", Html(head + title + svg[svg.index(">") + 1 :].strip()), class_="plot", tabindex="0")
    return _captioned(drawn, caption)


def png(pixels: np.ndarray) -> bytes:
    """Encode an image, `(height, width)` or `(height, width, 3)`: uint8, or floats in [0, 1] (clipped)."""
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def image(encoded: bytes, *, alt: str, caption: str | None = None, width: int | None = None) -> Html:
    """A PNG inside the page, its pixels kept sharp. width: in CSS pixels; None takes the image's own."""
    source = "data:image/png;base64," + base64.b64encode(encoded).decode()
    return _captioned(element("img", src=source, alt=alt, width=width), caption)


def image_grid(images: Sequence[tuple[bytes, str]], *, caption: str | None = None, width: int = 160) -> Html:
    """Pictures side by side that wrap on a narrow screen: pairs of PNG bytes and a label (also the alt text)."""
    tiles = [image(encoded, alt=label, caption=label, width=width) for encoded, label in images]
    return _captioned(element("div", tiles, class_="tiles"), caption)


def _captioned(content: Html, caption: str | None) -> Html:
    return element("figure", content, prose(caption, "figcaption") if caption else None)
