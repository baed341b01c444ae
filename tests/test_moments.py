"""Replication: the moments of exactly these draws, the same bits however they were computed, honest error bars."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax import moments, replication
from vbjax.distributions import Bernoulli, Normal
from vbjax.estimators import leave_one_out, pathwise, score_function, value_and_grad
from vbjax.moments import finite_variance, replicate, variance_interval
from vbjax.replication import BLOCK, replication_key
from vbjax.tails import FINITE, NOT_FINITE, UNKNOWN, UNRELIABLE
from vbjax.types import NotAvailable

# The probability that a statistical test below refuses correct code, shared among its comparisons; keys are fixed.
FALSE_ALARM = 1e-6


def square(params):
    """The square cost (z - a)² under N(loc, scale²): every moment of its gradients is a polynomial."""
    return Normal(params["loc"], params["scale"]), lambda z: (z + 0.4) ** 2


PARAMS = {"loc": jnp.asarray(0.7), "scale": jnp.asarray(1.3)}


def regenerated(key, estimator, problem, params, replications):
    """The draws, one by one: replication r has the key replication_key(key, r)."""

    def one(r):
        return value_and_grad(replication_key(key, r), estimator, problem, params)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jnp.arange(replications)))


@pytest.mark.parametrize("replications", [2, 255, 2 * BLOCK + 1])
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
        everything = moments.power_sums(x, jnp.full(300, True))
        parts = [moments.power_sums(x[a:b], jnp.full(b - a, True)) for a, b in ((0, 10), (10, 170), (170, 300))]
        merged = moments.merge(moments.merge(parts[0], parts[1]), parts[2])
        for a, b in zip(everything, merged, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
        nothing = moments.power_sums(x[:5], jnp.full(5, False))
        for a, b in zip(merged, moments.merge(merged, nothing), strict=True):
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
            assert float(result.variance_standard_error[name]) < 0.04 * variance


def test_non_finite_replications_are_counted_and_poison_the_moments():
    def logarithm(params):
        return Bernoulli(params), lambda b: jnp.log(b)

    result = replicate(jax.random.key(0), score_function(), logarithm, jnp.asarray(1.0), replications=1000)
    draws = jax.vmap(lambda r: Bernoulli(jnp.asarray(1.0)).sample(replication_key(jax.random.key(0), r), (1,)))(
        jnp.arange(1000)
    )
    assert int(result.non_finite) == int((draws == 0).sum()) > 0
    assert jnp.isnan(result.variance)


def test_program_is_the_same_for_a_thousand_and_for_a_million_replications(monkeypatch):
    """One compilation, whose temporary memory and output are small, serves any number of replications."""
    sizes, jit = [], jax.jit

    def recording_jit(f):
        jitted = jit(f)

        def call(*args):
            memory = jitted.lower(*args).compile().memory_analysis()
            sizes[-1].add(memory.temp_size_in_bytes + memory.output_size_in_bytes)
            return jitted(*args)

        return call

    monkeypatch.setattr(jax, "jit", recording_jit)
    monkeypatch.setattr(moments, "_TAIL_DRAWS", 1000)
    for replications in (1_000, 30_000):
        sizes.append(set())
        replicate(jax.random.key(0), pathwise(1), square, PARAMS, replications=replications)
    assert sizes[0] == sizes[1]
    assert max(sizes[0]) < 4_000_000


def bits(result):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(result)]


def study(replications, **options):
    return replicate(
        jax.random.key(8), score_function(2, baseline=leave_one_out), square, PARAMS, replications=replications,
        **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted():
    return study(5 * BLOCK + 77)


@pytest.mark.parametrize(("blocks", "seconds"), [(1, 0.0), (3, 1e9), (256, 1e9)])
def test_result_has_the_same_bits_whatever_the_size_of_a_call(monkeypatch, uninterrupted, blocks, seconds):
    monkeypatch.setattr(replication, "_CALL_BLOCKS", blocks)
    monkeypatch.setattr(replication, "_CALL_SECONDS", seconds)
    assert bits(study(5 * BLOCK + 77)) == bits(uninterrupted)


class Interrupted(Exception):  # noqa: N818 - it is not an error
    pass


def interrupt_after(done):
    def on_progress(so_far, wanted):
        if so_far >= done:
            raise Interrupted

    return on_progress


def test_interrupted_study_goes_on_to_the_same_bits_and_repeats_no_block(monkeypatch, tmp_path, uninterrupted):
    monkeypatch.setattr(moments, "_SECONDS_BETWEEN_REPORTS", 0)
    checkpoint, seen = tmp_path / "study.npz", []
    for stop in (2 * BLOCK, 3 * BLOCK):
        with pytest.raises(Interrupted):
            study(5 * BLOCK + 77, checkpoint=checkpoint, on_progress=interrupt_after(stop))
    result = study(5 * BLOCK + 77, checkpoint=checkpoint, on_progress=lambda *progress: seen.append(progress))
    assert bits(result) == bits(uninterrupted)
    assert seen == [(done, 5 * BLOCK + 77) for done in (4 * BLOCK, 5 * BLOCK, 5 * BLOCK + 77)]


def test_finished_study_is_extended_to_the_bits_of_the_longer_one(tmp_path, uninterrupted):
    checkpoint = tmp_path / "study.npz"
    study(2 * BLOCK + 5, checkpoint=checkpoint)
    assert bits(study(5 * BLOCK + 77, checkpoint=checkpoint)) == bits(uninterrupted)


def test_checkpoint_of_anything_else_is_refused(tmp_path):
    checkpoint = tmp_path / "study.npz"
    study(3 * BLOCK, checkpoint=checkpoint)
    estimator, key = score_function(2, baseline=leave_one_out), jax.random.key
    shifted = jax.tree.map(lambda x: x + 0.1, PARAMS)
    steeper = lambda params: (square(params)[0], lambda z: (z + 0.5) ** 2)  # noqa: E731
    for case in ((key(9), estimator, square, PARAMS), (key(8), pathwise(2), square, PARAMS),
                 (key(8), estimator, steeper, PARAMS), (key(8), estimator, square, shifted)):  # fmt: skip
        with pytest.raises(ValueError, match="holds another replication"):
            replicate(*case, replications=4 * BLOCK, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="holds 3072 replications already"):
        study(2 * BLOCK, checkpoint=checkpoint)


KILLED = """
import sys, jax, jax.numpy as jnp, pathlib
from vbjax import moments
from vbjax.distributions import Normal
from vbjax.estimators import leave_one_out, score_function
moments._SECONDS_BETWEEN_SAVES = 0
def square(params):
    return Normal(params["loc"], params["scale"]), lambda z: (z + 0.4) ** 2
params = {"loc": jnp.asarray(0.7), "scale": jnp.asarray(1.3)}
result = moments.replicate(
    jax.random.key(8), score_function(2, baseline=leave_one_out), square, params, replications=int(sys.argv[1]),
    checkpoint=pathlib.Path(sys.argv[2]) if sys.argv[2] else None)
print([float(x).hex() for x in jax.tree.leaves(result)])
"""


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL at random moments, most of them in the middle of a save; each life must find a whole checkpoint."""
    checkpoint, rng, command = tmp_path / "study.npz", np.random.default_rng(0), [sys.executable, "-c", KILLED]
    replications, sizes = str(2_000 * BLOCK + 9), []
    for _ in range(4):
        with subprocess.Popen([*command, replications, str(checkpoint)], stdout=subprocess.DEVNULL) as child:
            before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            deadline = time.monotonic() + 60
            while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            child.send_signal(signal.SIGKILL)
        with np.load(checkpoint) as stored:
            sizes.append(int(stored["blocks_done"]))
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < 2_000

    def finish(path):
        return subprocess.run(
            [*command, replications, path], capture_output=True, text=True, timeout=300, check=True
        ).stdout

    assert finish(str(checkpoint)) == finish("")


def laws_to_cover(size, studies):
    """Draws of laws with known variance and kurtosis from 3 to 14, `(studies, size)` each."""

    def leave_one_out_gradient(key):
        e = jax.random.normal(key, (studies, 8, size))
        f = (1.1 + 1.3 * e) ** 2
        return ((f - f.mean(1, keepdims=True)) * e).sum(1) / 7 / 1.3

    def along_the_path(key):
        e = jax.random.normal(key, (studies, size))
        return 2 * (1.1 + 1.3 * e) * e

    return {
        "normal": (lambda key: jax.random.normal(key, (studies, size)), 1.0),
        "exponential": (lambda key: jax.random.exponential(key, (studies, size)), 1.0),
        "leave-one-out gradient": (leave_one_out_gradient, exact_leave_one_out_variance()),
        "pathwise gradient of the scale": (along_the_path, 4 * 1.1**2 + 8 * 1.3**2),
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000, 3_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_variance_interval_covers_93_to_97_percent_where_chi_square_does_not(size):
    """4,000 studies a law; the bounds are widened by what binomial error does to so many, false alarm 1e-6."""
    studies, chunk = 4_000, 200
    for number, (name, (draw, variance)) in enumerate(laws_to_cover(size, chunk).items()):

        @jax.jit
        def moments_of(key, draw=draw):
            x = draw(key)
            deviation = x - x.mean(1, keepdims=True)
            second = (deviation**2).sum(1)
            return second / (size - 1), size * (deviation**4).sum(1) / second**2

        keys = jax.random.split(jax.random.key(number), studies // chunk)
        estimates, kurtosis = (np.concatenate(parts) for parts in zip(*map(moments_of, keys), strict=True))
        nothing = jnp.zeros(())
        result = moments.Moments(
            None, nothing, nothing, jnp.asarray(estimates), nothing, jnp.asarray(kurtosis), nothing, 0, nothing, size
        )
        interval = variance_interval(result)
        covered = int(np.sum((interval.lower <= variance) & (variance <= interval.upper)))
        low, high = stats.binom.ppf(FALSE_ALARM, studies, 0.93), stats.binom.isf(FALSE_ALARM, studies, 0.97)
        assert low <= covered <= high, (name, size, covered / studies)
        bounds = np.asarray([(size - 1) * estimates / q for q in stats.chi2.ppf([0.975, 0.025], size - 1)])
        naive = np.mean((bounds[0] <= variance) & (variance <= bounds[1]))
        assert naive > 0.93 if name == "normal" else naive < 0.8


def exact_leave_one_out_variance():
    """The estimate is a U-statistic with kernel (f_i - f_j)(s_i - s_j)/2: its variance by Hoeffding (1948)."""
    x, w = np.polynomial.hermite_e.hermegauss(40)
    w = w / w.sum()
    d, s, k = 1.1, 1.3, 8
    f, score = (d + s * x) ** 2, x / s
    kernel = (f[:, None] - f[None]) * (score[:, None] - score[None]) / 2
    g = w @ kernel @ w
    first = w @ (kernel @ w - g) ** 2
    second = w @ (kernel - g) ** 2 @ w
    return (4 * (k - 2) * first + 2 * second) / (k * (k - 1))


def test_variance_interval_is_the_log_scale_formula_and_refuses_a_bad_level(uninterrupted):
    n = uninterrupted.count
    interval = variance_interval(uninterrupted, level=0.9)
    for name in ("loc", "scale"):
        variance, kurtosis = float(uninterrupted.variance[name]), float(uninterrupted.kurtosis[name])
        half = 1.6448536 * np.sqrt((kurtosis * (1 + 10 * kurtosis / n) - (n - 3) / (n - 1)) / n)
        assert float(interval.lower[name]) == pytest.approx(variance * np.exp(-half), rel=1e-5)
        assert float(interval.upper[name]) == pytest.approx(variance * np.exp(half), rel=1e-5)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        variance_interval(uninterrupted, level=1.5)


def test_verdict_on_the_variance_follows_the_tail():
    """Along the sample, exp(c z²/2) has the slope c z exp(c z²/2), whose tail index is c: c < 1/2 has a variance."""
    c = jnp.asarray([0.05, 0.35, 1.0])

    def problem(params):
        return Normal(params, jnp.ones(3)), lambda z: jnp.sum(jnp.exp(c * z**2 / 2))

    result = replicate(jax.random.key(2), pathwise(1), problem, jnp.zeros(3), replications=20_000)

    def verdict(i):
        return finite_variance(result._replace(tail_index=result.tail_index[i], kurtosis=result.kurtosis[i]))

    assert [verdict(i) for i in range(3)] == [FINITE, UNRELIABLE, NOT_FINITE]
    assert finite_variance(result) == NOT_FINITE
    assert finite_variance(result._replace(tail_extremes=10)) == UNKNOWN
    assert finite_variance(result._replace(tail_index=jnp.zeros(3), non_finite=jnp.asarray(1))) == NOT_FINITE
    tight = result._replace(tail_index=jnp.zeros(3), kurtosis=jnp.full(3, 3.0))
    assert finite_variance(tight) == FINITE
    assert finite_variance(tight._replace(count=100)) == UNRELIABLE


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
