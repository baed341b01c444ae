"""Is it biased? The verdict of a study, exact where the mean is, and sequential where it was sampled.

A sampled mean is judged by the confidence sequence of `testing`, which covers the truth at all numbers of draws at
once: a study that is repeated with the same seed and more replications is a further look at the same draws.
"""

from typing import NamedTuple

import numpy as np

from vbjax import tails, testing

UNBIASED, BIASED, CERTIFIED = "unbiased", "biased", "certified"
INCONCLUSIVE, HEAVY_TAILS, NO_TRUTH, NOT_FINITE = "inconclusive", "heavy tails", "no truth", "not finite"

ERROR_RATE = 1e-6
"""Probability of a wrong rejection, and of a wrong certificate, in one cell."""

_BEST_AT = 2**17
"""Draws at which the confidence sequence is narrowest."""

_ROUNDING, _EXACT_ROUNDING = 1e-5, 1e-7
"""Differences below this share of the gradient's and the draws' size are rounding, in float32 and float64."""


class Verdict(NamedTuple):
    """outcome: one of the words above. explanation: a sentence. biased: the coordinates found biased."""

    outcome: str
    explanation: str
    biased: np.ndarray


class Evidence(NamedTuple):
    """The sampled gradient: mean, variance of one draw, count, what its tail says, draws that are not finite."""

    mean: np.ndarray
    variance: np.ndarray
    count: int
    tail: str
    non_finite: int


def judge_exact(truth: np.ndarray, mean: np.ndarray, variance: np.ndarray, no_truth: str = "") -> Verdict:
    """Compare two exact numbers: no error rate, only rounding."""
    if np.isnan(truth).any():
        return Verdict(NO_TRUTH, f"the exact gradient is not known: {no_truth}", np.zeros(truth.size, bool))
    size = np.abs(truth).max(initial=0) + np.sqrt(np.maximum(variance, 0)).max(initial=0)
    biased = np.abs(mean - truth) > _EXACT_ROUNDING * size
    if not biased.any():
        return Verdict(UNBIASED, "the mean over all of the noise is the exact gradient", biased)
    worst = np.abs(mean - truth).max()
    return Verdict(BIASED, f"the mean over all of the noise is off by {worst:.4g}, exactly", biased)


def judge(truth: np.ndarray, found: Evidence, delta: int | float, no_truth: str = "") -> Verdict:
    """Compare a sampled mean with the truth; delta in standard deviations of one draw, coordinate by coordinate."""
    nowhere = np.zeros(truth.size, bool)
    if found.non_finite:
        return Verdict(NOT_FINITE, f"{found.non_finite:,} of {found.count:,} draws hold a NaN or an infinity", nowhere)
    if np.isnan(truth).any():
        return Verdict(NO_TRUTH, f"the exact gradient is not known: {no_truth}", nowhere)
    if found.tail == tails.NOT_FINITE:
        return Verdict(HEAVY_TAILS, "the draws have no variance to judge their mean by", nowhere)
    deviation = np.sqrt(found.variance)
    size = np.abs(truth).max(initial=0) + deviation.max(initial=0)
    off, chance = (
        np.abs(found.mean - truth),
        testing.half_width(found.count, deviation, ERROR_RATE / truth.size, _BEST_AT),
    )
    biased = off > chance + _ROUNDING * size
    if biased.any():
        worst = int(np.argmax(np.where(biased, off, 0)))
        return Verdict(BIASED, f"the mean is off by {off[worst]:.4g}, chance allows {chance[worst]:.2g}", biased)
    if np.all(off + chance <= delta * deviation + _ROUNDING * size):
        return Verdict(CERTIFIED, f"any bias is below {delta:g} standard deviations of one estimate", nowhere)
    worst = int(np.argmax(chance))
    return Verdict(
        INCONCLUSIVE,
        f"chance allows {chance[worst]:.2g}, more than {delta:g} standard deviations: more replications would decide",
        nowhere,
    )


def judge_again(first: Verdict, truth: np.ndarray, fresh: Evidence, delta: int | float) -> Verdict:
    """A rejection stands if fresh draws reject too, in the same coordinate."""
    again = judge(truth, fresh, delta)
    both = first.biased & again.biased
    if again.outcome == BIASED and both.any():
        return Verdict(BIASED, f"{again.explanation}, and so in two sets of draws", both)
    return Verdict(INCONCLUSIVE, "a first rejection was not confirmed by fresh draws", np.zeros(truth.size, bool))
