"""The picture of a variance study: exact values as marks, Monte Carlo as points with their error bars."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vbjax.studies.variance import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*"


def variance_figure(rows: Sequence[Row], *, error_bars: float = 3.0) -> "Figure":
    """Draw the variance of every coordinate of the gradient, on a logarithmic axis, one colour and shape a method.

    error_bars: half-length in standard errors. Exact variances are wide ticks behind the points; refusals are left
    out, since the rows already say why. Colours come from the style in force. Raises ValueError for no rows.
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row.problem, row.parameter) for row in rows))
    methods = list(dict.fromkeys(row.estimator for row in rows if not row.refusal))
    if not methods:
        raise ValueError("variance_figure needs at least one row that was not refused")
    figure = Figure(figsize=(7.5, 1.4 + 0.34 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for m, method in enumerate(methods):
        mine = [row for row in rows if row.estimator == method and not row.refusal]
        height = np.array([groups.index((row.problem, row.parameter)) for row in mine])
        height = height + 0.22 * (m - (len(methods) - 1) / 2)
        variance, exact = (np.array([getattr(row, name) for row in mine]) for name in ("variance", "exact_variance"))
        spread = error_bars * np.array([row.variance_standard_error for row in mine])
        low = np.minimum(spread, 0.999 * variance)  # a logarithmic axis has no zero
        colour, marker = f"C{m}", _MARKERS[m % len(_MARKERS)]
        axes.plot(exact, height, "|", color=colour, markersize=13, markeredgewidth=2.4, alpha=0.55)
        axes.errorbar(
            variance, height, xerr=[low, spread], fmt=marker, color=colour, markersize=4, linewidth=1, label=method
        )
    axes.plot([], [], "|", color="C7", markersize=13, markeredgewidth=2.4, label="exact")
    axes.set(
        xscale="log",
        xlabel=f"variance of one gradient estimate (± {error_bars:g} standard errors)",
        yticks=range(len(groups)),
        yticklabels=[f"{problem}: {parameter}" for problem, parameter in groups],
    )
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
