"""The pictures of a study: variance against a parameter, signal-to-noise against K, variance against cost.

Each function takes the results of one problem and returns a figure; colours come from the style in force.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vbjax.studies import bias
from vbjax.studies.cells import Result
from vbjax.studies.rows import Standing, by_setting, standings, summed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*<>"
_COST = {"evaluations": "calls of f", "flops": "FLOPs", "microseconds": "microseconds"}


def sweep_figure(results: Sequence[Result], parameter: str) -> "Figure":
    """Variance of the gradient (trace) against a swept parameter, one curve an estimator; 95% where it was sampled."""
    figure, axes = _axes()
    curves = _curves(results, lambda r: f"{r.estimator}, K = {r.samples}" if r.samples else r.estimator)
    for i, (label, mine) in enumerate(curves.items()):
        mine = sorted((r for r in mine if parameter in r.point), key=lambda r: r.point[parameter])
        numbers = [summed(r, range(len(r.coordinates))) for r in mine]
        x = [r.point[parameter] for r in mine]
        variance, low, high = (np.array([n[name] for n in numbers]) for name in ("variance", "low", "high"))
        line = axes.plot(x, _positive(variance), marker=_marker(i), markersize=3.5, linewidth=1.2, **_look(i, label))
        if np.any(high > low):
            axes.fill_between(x, _positive(low), _positive(high), color=line[0].get_color(), alpha=0.18, linewidth=0)
    axes.set(yscale="log", xlabel=parameter, ylabel="variance of one estimate")
    _plain_ticks(axes.yaxis)
    _legend(figure, curves)
    return figure


def snr_figure(results: Sequence[Result]) -> "Figure":
    """Signal-to-noise ratio |E g| / sd(g) over all coordinates against the samples, both logarithmic."""
    figure, axes = _axes()
    curves = _curves([r for r in results if r.samples], lambda r: r.estimator)
    for i, (label, mine) in enumerate(curves.items()):
        mine = sorted(mine, key=lambda r: r.samples)
        ratio = [signal_to_noise(r) for r in mine]
        x = [r.samples for r in mine]
        axes.plot(x, _positive(np.array(ratio)), marker=_marker(i), markersize=4.5, linewidth=1.2, **_look(i, label))
    samples = sorted({r.samples for r in results if r.samples})
    axes.set(xscale="log", yscale="log", xlabel="samples K", ylabel="signal-to-noise ratio of one estimate")
    axes.set_xticks(samples, [str(k) for k in samples])
    axes.minorticks_off()
    _plain_ticks(axes.yaxis)
    _legend(figure, curves)
    return figure


def cost_figure(results: Sequence[Result], *, cost: str = "evaluations") -> "Figure":
    """Variance against cost at one point; a line joins the front of those that were not found biased."""
    import matplotlib as mpl

    figure, axes = _axes()
    places = [s for s in standings(results, cost=cost) if math.isfinite(s.variance) and s.variance > 0]
    curves: dict[str, list[Standing]] = {}
    for place in places:
        curves.setdefault(place.result.estimator, []).append(place)
    for i, (label, mine) in enumerate(curves.items()):
        look = _look(i, label)
        for found_biased in (False, True):
            these = [s for s in mine if (s.result.outcome == bias.BIASED) == found_biased]
            if not these:
                continue
            x, y = [s.cost for s in these], np.array([s.variance for s in these])
            spread = np.nan_to_num([y - [s.low for s in these], [s.high for s in these] - y])
            face = "none" if found_biased else look["color"]
            axes.errorbar(
                x, y, yerr=np.maximum(spread, 0), fmt=_marker(i), markersize=6, linewidth=1,
                markerfacecolor=face, color=look["color"], label=look["label"],
            )  # fmt: skip
            look = {**look, "label": None}
    front = sorted((s for s in places if s.front and s.result.outcome != bias.BIASED), key=lambda s: s.cost)
    if len(front) > 1:
        path = ([s.cost for s in front], [s.variance for s in front])
        axes.plot(
            *path, color=mpl.rcParams["ytick.color"], linewidth=1, linestyle="--", zorder=0, drawstyle="steps-post"
        )
    axes.set(xscale="log", yscale="log", xlabel=f"cost of one estimate ({_COST[cost]})", ylabel="variance")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    _legend(figure, curves)
    return figure


def signal_to_noise(result: Result) -> float:
    """|E g| over the square root of the trace of the covariance; NaN where there is no variance to divide by."""
    mean = np.asarray(result.exact_mean if result.exact else result.mean)
    variance = summed(result, range(len(result.coordinates)))["variance"]
    return float(np.linalg.norm(mean)) / math.sqrt(variance) if 0 < variance < math.inf else math.nan


def figures(results: Sequence[Result], *, cost: str = "evaluations") -> "dict[str, Figure]":
    """The figures that the results of one problem allow, by the name of a file."""
    served = [r for r in results if not r.refusal and r.outcome != bias.NOT_FINITE]
    drawn = {}
    for parameter in dict.fromkeys(name for r in served for name in r.point):
        others = {name: r.point[name] for r in served[:1] for name in r.point if name != parameter}
        # one curve through a product of sweeps: the others stay at their first value
        line = [r for r in served if all(r.point.get(name) == value for name, value in others.items())]
        if len({r.point.get(parameter) for r in line}) > 1:
            drawn[f"variance against {parameter}"] = sweep_figure(line, parameter)
    first = next(iter(by_setting(served).values()), [])
    if len({r.samples for r in first if r.samples}) > 1:
        drawn["signal-to-noise ratio against K"] = snr_figure(first)
    if len(first) > 1:
        drawn[f"variance against {_COST[cost]}"] = cost_figure(first, cost=cost)
    return drawn


def _axes():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def _curves(results: Sequence[Result], label) -> dict[str, list[Result]]:
    curves: dict[str, list[Result]] = {}
    for result in results:
        curves.setdefault(label(result), []).append(result)
    return curves


def _look(i: int, label: str) -> dict[str, Any]:
    # the page has six colours; a second round differs by its marker
    return {"color": f"C{i % 6}", "label": label}


def _marker(i: int) -> str:
    return _MARKERS[(i + i // 6) % len(_MARKERS)]


def _positive(values: np.ndarray) -> np.ndarray:
    # a logarithmic axis has no zero and no infinity
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _legend(figure, curves) -> None:
    if curves:
        figure.legend(loc="outside upper center", ncols=3)


def _plain_ticks(axis) -> None:
    # less than a decade would have no tick at all
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
