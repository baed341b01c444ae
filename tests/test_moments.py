"""Replication: the moments of exactly these draws, the same bits on any number of devices, honest error bars."""

import inspect
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax import moments
from vbjax.distributions import Bernoulli, Normal
from vbjax.estimators import leave_one_out, pathwise, score_function, value_and_grad
from vbjax.moments import BLOCK, replicate
from vbjax.types import NotAvailable

# The probability that a statistical test below refuses correct code, shared among its comparisons; keys are fixed.
FALSE_ALARM = 1e-6


def square(params):
    """The square cost (z - a)² under N(loc, scale²): every moment of its gradients is a polynomial."""
    return Normal(params["loc"], params["scale"]), lambda z: (z + 0.4) ** 2


PARAMS = {"loc": jnp.asarray(0.7), "scale": jnp.asarray(1.3)}


def regenerated(key, estimator, problem, params, replications):
    """The draws, one by one: replication r has the key fold_in(key, r)."""

    def one(r):
        return value_and_grad(jax.random.fold_in(key, r), estimator, problem, params)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jnp.arange(replications)))


@pytest.mark.parametrize("replications", [2, 255, BLOCK + 1, 3 * BLOCK])
def test_moments_equal_numpy_on_the_same_draws(replications):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        estimator = score_function(2, baseline=leave_one_out)
        result = replicate(jax.random.key(3), estimator, square, params, replications=replications)
        values, gradients = regenerated(jax.random.key(3), estimator, square, params, replications)
    n = replications
    assert result.count == n
    assert int(result.non_finite) == 0
    assert float(result.value.value) == pytest.approx(values.mean(), rel=1e-12)
    assert float(result.value.standard_error) == pytest.approx(values.std(ddof=1) / np.sqrt(n), rel=1e-11)
    for name, draws in gradients.items():
        variance, kurtosis = draws.var(ddof=1), stats.kurtosis(draws, fisher=False)
        assert float(result.mean[name]) == pytest.approx(draws.mean(), rel=1e-11)
        assert float(result.variance[name]) == pytest.approx(variance, rel=1e-11)
        assert float(result.standard_error[name]) == pytest.approx(np.sqrt(variance / n), rel=1e-11)
        assert float(result.kurtosis[name]) == pytest.approx(kurtosis, rel=1e-10)
        # Var s² = (μ4 - (n - 3)/(n - 1) σ⁴) / n
        spread = np.sqrt(max(kurtosis * ((n - 1) / n) ** 2 * variance**2 - (n - 3) / (n - 1) * variance**2, 0) / n)
        assert float(result.variance_standard_error[name]) == pytest.approx(spread, rel=2 / n)


def test_merged_power_sums_equal_those_of_the_whole_and_an_empty_block_changes_no_bit():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.gamma(0.5, size=(300, 3)) + np.array([0, 10, 1e3]))
        everything = moments._power_sums(x, jnp.full(300, True))
        parts = [moments._power_sums(x[a:b], jnp.full(b - a, True)) for a, b in ((0, 10), (10, 170), (170, 300))]
        merged = moments._merge(moments._merge(parts[0], parts[1]), parts[2])
        for a, b in zip(everything, merged, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
        nothing = moments._power_sums(x[:5], jnp.full(5, False))
        for a, b in zip(merged, moments._merge(merged, nothing), strict=True):
            np.testing.assert_array_equal(a, b)


PROGRAM = """
import sys, json, jax, jax.numpy as jnp, numpy as np
from vbjax.distributions import Bernoulli, Normal
from vbjax.estimators import leave_one_out, pathwise, score_function
from vbjax.moments import replicate
def square(params):
    return Normal(params["loc"], params["scale"]), lambda z: (z + 0.4) ** 2
def coins(params):
    return Bernoulli(params["logits"]), lambda b: jnp.sum((b - 0.45) ** 2) * params["gain"]
normal = {"loc": jnp.asarray(0.7), "scale": jnp.asarray(1.3)}
bernoulli = {"logits": jnp.asarray([0.3, -1.0, 2.0]), "gain": jnp.asarray(1.5)}
cases = [(square, normal, pathwise(3)), (coins, bernoulli, score_function(4, baseline=leave_one_out))]
out = [jax.device_count()]
for problem, params, estimator in cases:
    result = replicate(jax.random.key(1), estimator, problem, params, replications=1500)
    out.append([np.asarray(x).tobytes().hex() for x in jax.tree.leaves(result)])
print(json.dumps(out))
"""


def run_with_devices(count):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout)


def test_result_has_the_same_bits_on_one_device_and_on_two():
    """Also a guard against gradients summed over devices, which shard_map does to replicated parameters."""
    one, *more = (run_with_devices(count) for count in (1, 2))
    assert [one[0], *(run[0] for run in more)] == [1, 2]
    for run in more:
        assert run[1:] == one[1:]


def test_mean_and_variance_agree_with_the_closed_forms_within_their_error_bars():
    """Square cost, d = 1.1: pathwise 4s² and 4d² + 8s²; leave-one-out with two draws 16d² + 12s² over two."""
    d, s = 1.1, 1.3
    variances = {
        pathwise(1): (4 * s**2, 4 * d**2 + 8 * s**2),
        score_function(2, baseline=leave_one_out): (8 * d**2 + 6 * s**2, 24 * d**2 + 32 * s**2),
    }
    threshold = stats.norm.isf(FALSE_ALARM / 8 / 2)
    for estimator, exact in variances.items():
        result = replicate(jax.random.key(5), estimator, square, PARAMS, replications=200_000)
        for name, mean, variance in zip(("loc", "scale"), (2 * d, 2 * s), exact, strict=True):
            assert abs(float(result.mean[name]) - mean) < threshold * float(result.standard_error[name])
            deviation = abs(float(result.variance[name]) - variance)
            assert deviation < threshold * float(result.variance_standard_error[name])
            # the error bars are not so wide that they would pass anything
            assert float(result.variance_standard_error[name]) < 0.03 * variance


@pytest.mark.slow
def test_variance_interval_covers_at_its_stated_rate():
    """600 studies of 4,096 pathwise draws: the 90% interval of the variance covers 90% within binomial error."""
    runs, size, level = 600, 4096, 0.9
    variance = 4 * 1.1**2 + 8 * 1.3**2

    def study(key):
        result = replicate(key, pathwise(1), square, PARAMS, replications=size)
        return result.variance["scale"], result.variance_standard_error["scale"]

    estimates, errors = jax.vmap(study)(jax.random.split(jax.random.key(0), runs))
    covered = int(np.sum(np.abs(estimates - variance) < stats.norm.isf((1 - level) / 2) * errors))
    # the interval is asymptotic: it may lose a hundredth at this size
    low = stats.binom.ppf(FALSE_ALARM / 2, runs, level - 0.01)
    assert low <= covered <= stats.binom.isf(FALSE_ALARM / 2, runs, level)


def test_non_finite_replications_are_counted_and_poison_the_moments():
    def logarithm(params):
        return Bernoulli(params), lambda b: jnp.log(b)

    result = replicate(jax.random.key(0), score_function(), logarithm, jnp.asarray(1.0), replications=1000)
    draws = jax.vmap(lambda r: Bernoulli(jnp.asarray(1.0)).sample(jax.random.fold_in(jax.random.key(0), r), (1,)))(
        jnp.arange(1000)
    )
    assert int(result.non_finite) == int((draws == 0).sum()) > 0
    assert jnp.isnan(result.variance)


def test_memory_does_not_grow_with_the_replications(monkeypatch):
    """The program that draws is the same for a thousand and for a million replications, and small."""
    sizes, jit = [], jax.jit

    def recording_jit(f):
        jitted = jit(f)

        def call(*args):
            memory = jitted.lower(*args).compile().memory_analysis()
            sizes[-1].add(memory.temp_size_in_bytes + memory.output_size_in_bytes)
            return jitted(*args)

        return call

    monkeypatch.setattr(jax, "jit", recording_jit)
    for replications in (1_000, 30_000):
        sizes.append(set())
        moments._replicate(jax.random.key(0), pathwise(1), square, PARAMS, (), replications)
    assert sizes[0] == sizes[1]
    assert max(sizes[0]) < 1_000_000


def test_python_floats_serve_as_parameters():
    # unwrapped, as outside of the tests, which check types at every call
    floats = inspect.unwrap(replicate)(
        jax.random.key(0), pathwise(), square, {"loc": 0.7, "scale": 1.3}, replications=300
    )
    arrays = replicate(jax.random.key(0), pathwise(), square, PARAMS, replications=300)
    jax.tree.map(np.testing.assert_array_equal, floats, arrays)


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match=r"replications must be below 2\*\*31"):
        replicate(jax.random.key(0), pathwise(), square, PARAMS, replications=2**31)
    with pytest.raises(ValueError, match="replications must be at least 2 for a variance, got 1"):
        replicate(jax.random.key(0), pathwise(), square, PARAMS, replications=1)
    with pytest.raises(NotAvailable, match="use score_function"):
        replicate(jax.random.key(0), pathwise(), lambda p: (Bernoulli(p), jnp.sum), jnp.asarray(0.0), replications=10)
