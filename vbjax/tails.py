"""Tails: the Pareto index of a sample's extremes, and what it says about whether a variance exists.

A law whose tail falls like x^(-1/k) has moments below order 1/k only: k > 1/2 means no variance, k > 1/4 no fourth
moment, so that no interval of the variance can be trusted. Start at `tail_index`; NumPy only.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float

NOT_FINITE, UNRELIABLE, FINITE, UNKNOWN = (
    "variance is not finite",
    "variance finite, interval unreliable",
    "variance finite",
    "too few replications to say",
)
MIN_EXCEEDANCES = 25
"""The fewest extremes that an index is fitted to."""

_COLUMNS = 128

_FEWEST_LEVELS = 4
"""Fewer distinct extremes look like a law with finitely many outcomes, which has every moment."""


def exceedance_count(draws: int) -> int:
    """How many of the largest deviations count as the tail: min(n/5, 3√n) (Vehtari et al. 2024, section 3)."""
    return int(min(draws / 5, 3 * math.sqrt(draws)))


def tail_index(draws: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """Pareto index k of the absolute deviations from the median, one per coordinate.

    NaN where fewer than `MIN_EXCEEDANCES` extremes are left or a draw is not finite; -∞ where the extremes have
    fewer than four values, as in a law with two outcomes; other ties are spread evenly. The standard error is about
    (1 + k)/√m for m extremes. Deviations to both sides count together: the heavier tail decides, but a light one
    dilutes it. Source: Vehtari et al. (2024).
    """
    if exceedance_count(len(draws)) < MIN_EXCEEDANCES:
        return np.full(draws.shape[1], np.nan)
    # some coordinates at a time, for memory's sake
    parts = [_tail_index(draws[:, i : i + _COLUMNS]) for i in range(0, draws.shape[1], _COLUMNS)]
    return np.concatenate(parts)


def _tail_index(draws: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    count = exceedance_count(len(draws))
    # one coordinate after the other in memory, for the partitions
    columns = np.ascontiguousarray(draws.T)
    finite = np.isfinite(columns).all(1)
    columns[~finite] = 0
    deviations = np.abs(columns - np.median(columns, 1, keepdims=True))
    largest = np.sort(np.partition(deviations, -count - 1, 1)[:, -count - 1 :], 1).astype(np.float64)
    for row in np.flatnonzero((np.diff(largest, axis=1) == 0).sum(1) > count // 20):
        largest[row] = _without_ties(largest[row])
    exceedances = largest[:, 1:] - largest[:, :1]
    spread = exceedances[:, -1] > 0
    index = np.full(len(columns), -np.inf)
    index[spread] = pareto_shape(exceedances[spread])
    return np.where(finite, index, np.nan)


def _without_ties(x: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Spread the values of a lattice law evenly between the midpoints to their neighbours; sorted in and out."""
    levels, first, counts = np.unique(x, return_index=True, return_counts=True)
    if len(levels) < _FEWEST_LEVELS:
        return np.full_like(x, x[0])
    middles = (levels[1:] + levels[:-1]) / 2
    lower = np.concatenate([levels[:1], middles])
    upper = np.concatenate([middles, 2 * levels[-1:] - middles[-1:]])
    rank = np.arange(len(x)) - np.repeat(first, counts)
    return np.repeat(lower, counts) + np.repeat(upper - lower, counts) * rank / np.repeat(counts, counts)


def pareto_shape(exceedances: Float[np.ndarray, "d m"]) -> Float[np.ndarray, " d"]:
    """Shape k of the generalised Pareto law of each row of sorted exceedances over a threshold.

    The empirical-Bayes estimate: the profile likelihood averaged over a grid of m-dependent prior quantiles.
    Source: Zhang and Stephens (2009), eqs. 7-9, with k of the opposite sign.
    """
    count = exceedances.shape[1]
    points = 30 + int(math.sqrt(count))
    # unit maximum; the quartile of what is left of ties may be zero
    x = exceedances / exceedances[:, -1:]
    quartile = np.maximum(x[:, int(count / 4 + 0.5) - 1], 1e-12)
    grid = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    theta = 1 + grid / (3 * quartile[:, None])
    # logarithms are what it costs: one for each product of eight factors, all of them between 1e-3 and 1e12
    padded = np.pad(x, ((0, 0), (0, -count % 8))).reshape(len(x), 8, -(-count // 8))
    shapes = np.empty_like(theta)
    for j in range(points):
        shapes[:, j] = np.log((1 - theta[:, j, None, None] * padded).prod(1)).sum(1) / count
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = count * (np.log(-theta / shapes) - shapes - 1)
    likelihood = np.where(np.isnan(likelihood), -np.inf, likelihood)
    weights = np.exp(likelihood - likelihood.max(1, keepdims=True))
    best = (weights * theta).sum(1) / weights.sum(1)
    return np.log1p(-best[:, None] * x).mean(1)


def variance_verdict(index: Any, exceedances: int, *, error_rate: float = 0.01) -> str:
    """What the tail indices of all coordinates say of their variances, the worst coordinate speaking for all.

    «variance is not finite» is said of a finite variance with probability error_rate at most, over all coordinates
    together: the largest k must exceed 1/2 by the normal quantile of error_rate/d times 1.5/√m, its standard error
    at the boundary. Below that, k > 1/4 makes the interval unreliable. Both are statements about the tail that the
    sample shows: extremes rarer than one in the sample stay unseen.
    """
    index = np.ravel(np.asarray(index, np.float64))
    known = index[~np.isnan(index)]
    if exceedances < MIN_EXCEEDANCES or known.size == 0:
        return UNKNOWN
    threshold = 0.5 + -NormalDist().inv_cdf(error_rate / index.size) * 1.5 / math.sqrt(exceedances)
    if known.max() > threshold:
        return NOT_FINITE
    return UNRELIABLE if known.max() > 0.25 else FINITE
