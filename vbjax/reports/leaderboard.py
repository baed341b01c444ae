"""The leaderboard of likelihoods as a section of a page: a table, best first, and the same as a picture."""

from collections.abc import Sequence

import numpy as np

from vbjax.leaderboard import Entry
from vbjax.reports.figures import figure, figure_style
from vbjax.reports.html import prose
from vbjax.reports.numbers import uncertain
from vbjax.reports.page import Section, section, table


def leaderboard_section(entries: Sequence[Entry], *, title: str, about: str) -> Section:
    """The entries with intervals, best first, and how far each is behind the first, image by image.

    about: which images, which levels, which split.
    """
    ranked = ranking(entries)
    rows = [
        (
            entry.name,
            entry.likelihood.bits_per_dim,
            "" if entry is ranked[0] else entry.behind(ranked[0]),
            entry.likelihood.nats,
            entry.measured,
            f"{entry.parameters:,}",
            f"{entry.seconds:.0f}",
        )
        for entry in ranked
    ]
    header = ("model", "bits/dim", "behind the best", "nats", "measured", "parameters", "seconds")
    return section(
        title,
        prose(
            f"{about} Every row scores the same integers. Each number is exact or an upper bound in expectation, so "
            "that none is low by the way it was measured. In parentheses: the standard error over test images, in the "
            "last digits; the distance to the best model is paired image by image, so its error is far smaller."
        ),
        table(header, rows, caption="Held-out likelihood, lower is better", align="lrrrlrr"),
        _picture(ranked),
        id="leaderboard",
    )


def ranking(entries: Sequence[Entry]) -> list[Entry]:
    """Best first."""
    return sorted(entries, key=lambda entry: float(entry.likelihood.nats.value))


def text_table(entries: Sequence[Entry]) -> str:
    """The same as lines of text."""
    ranked = ranking(entries)
    width = max(len(entry.name) for entry in ranked)
    lines = [f"{'model':{width}}  {'bits/dim':>12}  {'behind':>12}  measured"]
    for entry in ranked:
        behind = "" if entry is ranked[0] else _brief(entry.behind(ranked[0]))
        lines.append(
            f"{entry.name:{width}}  {_brief(entry.likelihood.bits_per_dim):>12}  {behind:>12}  {entry.measured}"
        )
    return "\n".join(lines)


def _brief(estimate) -> str:
    return uncertain(float(estimate.value), float(estimate.standard_error))


def drawing(entries: Sequence[Entry]):
    """Bits per dimension with 95% intervals, best at the top, as a matplotlib figure."""
    from matplotlib.figure import Figure

    ranked = ranking(entries)[::-1]
    bits = [entry.likelihood.bits_per_dim for entry in ranked]
    values = np.array([float(b.value) for b in bits])
    half = np.array([1.959963984540054 * float(b.standard_error) for b in bits])
    with figure_style():
        picture = Figure(figsize=(7.2, 0.34 * len(ranked) + 0.9), layout="constrained")
        axes = picture.subplots()
        axes.errorbar(values, np.arange(len(ranked)), xerr=half, fmt="o", markersize=5, capsize=3, linewidth=1.5)
        axes.set_yticks(np.arange(len(ranked)), [entry.name for entry in ranked])
        axes.set(xlabel="bits per dimension on the test split, 95% interval", ylim=(-0.6, len(ranked) - 0.4))
    return picture


def _picture(ranked: Sequence[Entry]):
    best, last = ranked[0], ranked[-1]
    alt = f"Bits per dimension of {len(ranked)} models, from {best.name} to {last.name}"
    return figure(drawing(ranked), name="leaderboard-bits", alt=alt, caption="The same, with 95% intervals.")
