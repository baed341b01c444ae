"""Self-contained HTML: one file, MathML and SVG inside, no network, no scripts, for a screen, a phone or paper.

Everything is a function that returns `Html`; plain strings are escaped wherever they are put in. Start with `page`;
`derivations` and its sisters build sections from results.
"""

from vbjax.reports.figures import figure, figure_style, image, image_grid, png
from vbjax.reports.html import Html, badge, code, element, formula, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.page import Section, details, page, section, stat_tiles, subsection, table

__all__ = [
    "Html",
    "Section",
    "badge",
    "code",
    "details",
    "element",
    "figure",
    "figure_style",
    "formula",
    "image",
    "image_grid",
    "number",
    "page",
    "png",
    "prose",
    "section",
    "stat_tiles",
    "subsection",
    "table",
    "uncertain",
]
