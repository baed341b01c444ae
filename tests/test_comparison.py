"""Comparing estimators: tests of level as stated, paired or not; evaluations of f as they happen, not as declared."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax import comparison
from vbjax.comparison import compare, costs, count_evaluations
from vbjax.distributions import Normal
from vbjax.estimators import leave_one_out, pathwise, score_function

FALSE_ALARM = 1e-6
PARAMS = {"loc": jnp.asarray(0.7), "scale": jnp.asarray(1.3)}


def square(params):
    return Normal(params["loc"], params["scale"]), lambda z: (z + 0.4) ** 2


def test_log_ratio_agrees_with_the_closed_forms_and_pairing_narrows_it():
    """Pathwise against leave-one-out with two draws in loc: 4s² against 8d² + 6s²; in scale, by their forms."""
    d, s = 1.1, 1.3
    first = {"loc": 4 * s**2, "scale": 4 * d**2 + 8 * s**2}
    second = {"loc": 8 * d**2 + 6 * s**2, "scale": 24 * d**2 + 32 * s**2}
    estimators = (pathwise(1), score_function(2, baseline=leave_one_out))
    result = compare(jax.random.key(0), *estimators, square, PARAMS, replications=60_000)
    threshold = stats.norm.isf(FALSE_ALARM / 3 / 2)
    for name in first:
        exact = math.log(first[name] / second[name])
        assert abs(float(result.variance.value[name]) - exact) < threshold * float(result.variance.standard_error[name])
    trace = math.log(sum(first.values()) / sum(second.values()))
    assert abs(result.trace.value - trace) < threshold * result.trace.standard_error
    assert result.trace.standard_error < 0.1
    # one call and one gradient against two calls
    assert result.work_normalised.value == result.trace.value
    assert result.count == 60_000

    twice = pathwise(2)
    paired = compare(jax.random.key(1), twice, twice, square, PARAMS, replications=6_400)
    assert paired.trace.value == 0
    apart = compare(jax.random.key(1), twice, twice, square, PARAMS, replications=6_400, paired=False)
    assert abs(apart.trace.z) < threshold


def null_statistics(tail, correlation, studies=2_000, batches=100):
    """z of compare's delta method, and F-tests, for two laws of one variance: a fold of simulated draws."""
    rng = np.random.default_rng(0)
    z, f = [], []
    for _ in range(studies):
        common, own = tail(rng, (2, batches, comparison.BATCH)), tail(rng, (2, batches, comparison.BATCH))
        x = [common[0], correlation * common[0] + math.sqrt(1 - correlation**2) * own[0]]
        a, b = (x_i.var(1, ddof=1) for x_i in x)
        value, error = comparison.log_ratio(*(v.mean() for v in (a, b, a * a, b * b, a * b)), batches)
        z.append(value / error)
        f.append(x[0].var() / x[1].var())
    p = 2 * stats.t.sf(np.abs(z), batches - 1)
    dof = batches * comparison.BATCH - 1
    f = np.asarray(f)
    p_f = 2 * np.minimum(stats.f.sf(f, dof, dof), stats.f.cdf(f, dof, dof))
    return p, p_f


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("kurtosis", [3, 6])
def test_true_nulls_are_rejected_at_the_nominal_level_where_the_f_test_is_wrong(correlation, kurtosis):
    tail = {3: lambda rng, shape: rng.normal(size=shape), 6: lambda rng, shape: rng.laplace(size=shape)}[kurtosis]
    p, p_f = null_statistics(tail, correlation)
    for level in (0.05, 0.2):
        low, high = (stats.binom.ppf(q, len(p), level) for q in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))
        assert low <= (p < level).sum() <= high
        if (kurtosis, correlation) != (3, 0.0):
            assert not low <= (p_f < level).sum() <= high


def test_evaluations_are_counted_as_they_happen():
    assert count_evaluations(pathwise(3), square, PARAMS) == (3, 3)
    # the explicit part of f has parameters of its own only where f closes over them
    assert count_evaluations(score_function(4, baseline=leave_one_out), square, PARAMS) == (4, 0)

    def closing_over(params):
        return Normal(params["loc"], 1.0), lambda z: (z - params["scale"]) ** 2

    assert count_evaluations(score_function(4, baseline=leave_one_out), closing_over, PARAMS) == (4, 4)

    def greedy(state, noise, f, q):
        # one more call than it declares, in a scan of three and a conditional
        more = jax.lax.scan(lambda total, z: (total + f(z), None), 0.0, jnp.arange(3.0))[0]
        more = more + jax.lax.cond(noise[0] > 0, f, lambda z: z, noise[0])
        return pathwise(2).surrogate(state, noise, f, q) + 0 * jax.lax.stop_gradient(more)

    assert count_evaluations(pathwise(2)._replace(surrogate=greedy), square, PARAMS)[0] == 2 + 3 + 1

    def endless(state, noise, f, q):
        return jax.lax.while_loop(lambda x: x < 9, lambda x: x + f(noise[0]), jnp.asarray(0.0))

    with pytest.raises(ValueError, match="while loop"):
        count_evaluations(pathwise(2)._replace(surrogate=endless), square, PARAMS)


def test_costs_grow_with_the_samples():
    one, four = costs(jax.random.key(0), [pathwise(1), pathwise(4)], square, PARAMS, batch=256, repeats=3)
    assert (one.name, one.evaluations, four.evaluations) == ("pathwise(1)", 1, 4)
    assert 2 < four.flops / one.flops < 8
    assert one.bytes > 0
    assert one.seconds > 0


def test_too_few_replications_are_refused():
    with pytest.raises(ValueError, match="replications must be from 64"):
        compare(jax.random.key(0), pathwise(1), pathwise(2), square, PARAMS, replications=63)
