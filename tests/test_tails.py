"""Tail indices: right on laws whose tails are known, and a verdict that keeps its stated error rate."""

import numpy as np
import pytest
from scipy import stats

from vbjax import tails

ERROR_RATE = 0.01


def indices(draw, size=4096, columns=400):
    return tails.tail_index(draw(np.random.default_rng(size), (size, columns)).astype(np.float32))


def verdicts(k, size=4096):
    """Rate of each verdict over the columns, one coordinate at a time."""
    said = [tails.variance_verdict(x, tails.exceedance_count(size), error_rate=ERROR_RATE) for x in k]
    return {what: said.count(what) / len(said) for what in set(said)}


@pytest.mark.parametrize(
    ("draw", "index", "bias"),
    [
        (lambda rng, shape: rng.pareto(1, shape), 1.0, 0.02),
        (lambda rng, shape: rng.pareto(2, shape), 0.5, 0.02),
        (lambda rng, shape: rng.pareto(4, shape), 0.25, 0.02),
        (lambda rng, shape: rng.exponential(size=shape), 0.0, 0.03),
        (lambda rng, shape: rng.standard_t(1, shape), 1.0, 0.03),
        (lambda rng, shape: rng.standard_t(3, shape), 1 / 3, 0.04),
        (lambda rng, shape: 3 + 1e-3 * rng.standard_t(5, shape), 1 / 5, 0.07),
        (lambda rng, shape: rng.random(shape), -1.0, 0.3),
    ],
)
def test_index_finds_the_tail_of_known_laws(draw, index, bias):
    """Within the bias of a finite threshold, and with the spread (1 + k)/√m of the asymptotic theory."""
    k = indices(draw)
    assert abs(k.mean() - index) < bias
    if index >= 0:
        expected = (1 + index) / np.sqrt(tails.exceedance_count(4096))
        assert 0.85 < k.std() / expected < 1.2


def test_pareto_shape_is_near_maximum_likelihood():
    rng = np.random.default_rng(1)
    x = np.sort(stats.genpareto.rvs(0.4, size=(20, 300), random_state=rng), 1)
    ours = tails.pareto_shape(x)
    by_likelihood = np.asarray([stats.genpareto.fit(row, floc=0)[0] for row in x])
    # the two differ by far less than either errs
    assert np.abs(ours - by_likelihood).max() < 0.5 * 1.4 / np.sqrt(300)


@pytest.mark.parametrize("df", [3, 4, 5])
def test_finite_variance_is_called_infinite_no_more_often_than_stated(df):
    rates = verdicts(indices(lambda rng, shape: rng.standard_t(df, shape)))
    assert rates.get(tails.NOT_FINITE, 0) * 400 <= stats.binom.isf(1e-6, 400, ERROR_RATE)


def test_infinite_variance_is_found_with_the_power_that_theory_gives():
    """At index k the rate is Φ((k - threshold)√m/(1 + k)): 0.89 for Cauchy's law, 0.2 at df = 1.5 with 4,096 draws."""
    m = tails.exceedance_count(4096)
    threshold = 0.5 + stats.norm.isf(ERROR_RATE) * 1.5 / np.sqrt(m)
    for df, least in ((1, 0.85), (1.5, 0.1)):
        k = indices(lambda rng, shape, df=df: rng.standard_t(df, shape))
        rate = verdicts(k).get(tails.NOT_FINITE, 0)
        expected = stats.norm.cdf((1 / df - threshold) * np.sqrt(m) / (1 + 1 / df))
        assert rate > least
        assert abs(rate - expected) < 0.12


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.random(shape) < 0.3,
        lambda rng, shape: np.zeros(shape),
        lambda rng, shape: rng.poisson(3, shape),
        lambda rng, shape: rng.poisson(100, shape),
        lambda rng, shape: rng.geometric(0.2, shape),
        lambda rng, shape: rng.binomial(8, 0.3, shape),
    ],
)
def test_ties_of_a_lattice_law_raise_no_alarm(draw):
    rates = verdicts(indices(lambda rng, shape: draw(rng, shape).astype(np.float32), columns=200))
    assert rates.get(tails.NOT_FINITE, 0) == 0


def test_a_lattice_law_without_variance_is_still_found():
    k = indices(lambda rng, shape: np.round(rng.standard_t(1, shape)), columns=100)
    assert verdicts(k).get(tails.NOT_FINITE, 0) > 0.8


def test_what_cannot_be_known_is_not_said():
    k = tails.tail_index(np.random.default_rng(0).normal(size=(100, 2)))
    assert np.isnan(k).all()
    assert tails.variance_verdict(k, 20) == tails.UNKNOWN
    x = np.random.default_rng(0).normal(size=(2000, 2))
    x[7, 1] = np.inf
    k = tails.tail_index(x)
    assert np.isfinite(k[0])
    assert np.isnan(k[1])
