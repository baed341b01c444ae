"""The sequential test: its arithmetic, its error rates against a control that breaks them, its power, its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax import testing
from vbjax.distributions import Bernoulli, Normal
from vbjax.estimators import Baseline, leave_one_out, pathwise, score_function
from vbjax.testing import Verdict, bias_test, exact_bias, exact_truth, half_width, sequential_test, tail_index

own_sample = Baseline("own sample", lambda values: jnp.full_like(values, 1) * values.mean(), independent=False)


def coin(params):
    return Bernoulli(params["q"]), lambda b: params["model"] * jnp.sum((b - 0.45) ** 2)


PARAMS = {"q": np.array([0.3, -1.0], np.float32), "model": np.float32(1.5)}


def in_batches(draw, size=4096):
    while True:
        yield draw(size)


def normal_draws(seed, mean=0.0):
    rng = np.random.default_rng(seed)
    return in_batches(lambda n: mean + rng.normal(size=(n, 1)))


def closed_form(params):
    """The gradient of E m Σ (b - t)² by hand: m p (1 - p) (1 - 2t), and Σ E (b - t)²."""
    p = 1 / (1 + np.exp(-np.asarray(params["q"], np.float64)))
    return {"model": np.sum(p * 0.55**2 + (1 - p) * 0.45**2), "q": 1.5 * p * (1 - p) * 0.1}


def test_half_width_is_two_sided_at_its_rate_and_covers_at_all_counts_at_once():
    """The line-crossing bound of Robbins: at one count the width exceeds the normal quantile of the same rate."""
    counts = 2.0 ** np.arange(8, 20)
    for alpha in (1e-2, 1e-6):
        widths = half_width(counts, 1.0, alpha, 4096.0) * np.sqrt(counts)
        assert np.all(widths > stats.norm.isf(alpha / 2))
        assert widths.min() < 1.5 * stats.norm.isf(alpha / 2) + 1
        assert abs(int(np.argmin(widths)) - 4) <= 1  # narrowest, in standard errors, where it is tuned: 2^12
        # written out: s √(2 (t r² + 1)/(t² r²) log(√(t r² + 1)/α)) at one point
    r2, t = (-2 * np.log(1e-6) + np.log(-2 * np.log(1e-6)) + 1) / 4096, 5000
    written_out = 3 * np.sqrt(2 * (t * r2 + 1) / (t**2 * r2) * np.log(np.sqrt(t * r2 + 1) / 1e-6))
    assert half_width(t, 3.0, 1e-6, 4096.0) == pytest.approx(written_out, rel=1e-12)


def test_moments_do_not_depend_on_how_the_draws_are_cut():
    rng = np.random.default_rng(0)
    draws = 1e4 + rng.normal(size=(20_000, 3))
    verdicts = [
        sequential_test(np.split(draws, cuts), np.full(3, 1e4), delta=1e-9, last_look=20_000)
        for cuts in ([4096, 5793, 8192, 11586, 16385], [1000, 4096, 5793, 8192, 11586, 16385, 19_999])
    ]
    assert verdicts[0].draws == verdicts[1].draws == 20_000
    assert verdicts[0].deviation == pytest.approx(verdicts[1].deviation, abs=1e-10)
    assert abs(verdicts[0].deviation) == pytest.approx(np.abs(draws.mean(0) - 1e4).max(), abs=1e-10)


def test_half_width_is_that_of_all_draws_at_the_rate_that_the_directions_share():
    draws = np.random.default_rng(0).normal(size=(20_000, 3)) + np.repeat([0.0, 0.04], 10_000)[:, None]
    verdict = sequential_test(np.split(draws, 5), np.full(3, 0.02), delta=1e-9, last_look=20_000)
    column = draws[:, int(verdict.direction.removeprefix("coordinate "))]
    expected = half_width(20_000, column.std(), 1e-6 / 3, np.sqrt(4096 * 20_000))
    assert verdict.half_width == pytest.approx(expected, rel=1e-9)


def test_verdicts_reject_certify_and_stay_undecided():
    rejected = sequential_test(normal_draws(0, 0.2), [0.0], delta=0.05)
    assert (rejected.outcome, rejected.draws) == ("reject", 8192)  # the first look, and once more
    assert rejected.deviation == pytest.approx(0.2, abs=0.1)
    assert "biased" in rejected.explanation
    certified = sequential_test(normal_draws(1), [0.0], delta=0.05)
    assert certified.outcome == "certify"
    assert abs(certified.deviation) + certified.half_width < 0.05
    undecided = sequential_test(normal_draws(2), [0.0], delta=0.001, last_look=2**14)
    assert (undecided.outcome, undecided.draws) == ("inconclusive", 2**14)
    assert "16,384 draws do not decide" in undecided.explanation


def test_a_rejection_must_happen_twice():
    """Draws that are off at first and right later: the first rejection alone does not stand."""
    rng = np.random.default_rng(3)
    late = (rng.normal(size=(4096, 1)) + (0.3 if i == 0 else 0) for i in range(100))
    verdict = sequential_test(late, [0.0], delta=0.01, last_look=2**14)
    assert verdict.outcome == "inconclusive"
    assert verdict.explanation.startswith("A first rejection was not confirmed")


def test_a_bias_that_no_coordinate_shows_alone_is_seen_along_a_projection():
    rng = np.random.default_rng(4)
    direction = np.full(100, 0.1)

    def draw(n):
        return rng.normal(size=(n, 100)) + 0.06 * direction[None]

    options = {"delta": 1e-3, "last_look": 2**15}
    along = sequential_test(in_batches(draw), np.zeros(100), projections=direction[None], **options)
    assert (along.outcome, along.direction) == ("reject", "projection 0")
    assert sequential_test(in_batches(draw), np.zeros(100), **options).outcome == "inconclusive"


def test_constant_draws_are_judged_to_float32_rounding():
    right = np.full((4096, 2), np.float32(0.1))
    assert sequential_test(iter([right] * 20), [0.1, 0.1], delta=1e-3).outcome == "certify"
    assert sequential_test(iter([right] * 20), [0.1, 0.101], delta=1e-4).outcome == "reject"


def test_a_draw_that_is_no_number_rejects_and_names_its_coordinate():
    draws = np.zeros((4096, 2))
    draws[7, 1] = np.nan
    verdict = sequential_test(iter([draws]), [0.0, 0.0], delta=1, names=("first", "second"))
    assert (verdict.outcome, verdict.direction) == ("reject", "second")
    assert "not a finite number" in verdict.explanation


def test_too_few_draws_test_nothing():
    assert "nothing was tested" in sequential_test(iter([np.zeros((10, 1))]), [1.0], delta=0.1).explanation


def test_tails_without_variance_go_to_a_person_and_light_ones_do_not():
    rng = np.random.default_rng(5)
    heavy = sequential_test(in_batches(lambda n: rng.standard_cauchy((n, 1))), [0.0], delta=0.1)
    assert heavy.outcome == "heavy tails"
    assert "let a person look" in heavy.explanation
    light = {
        "normal": rng.normal(size=(4096, 100)),
        "exponential": rng.exponential(size=(4096, 100)),
        "log-normal": rng.lognormal(0, 0.5, (4096, 100)),
        "folded": np.cos(rng.normal(size=(4096, 100))) * rng.normal(size=(4096, 100)) ** 2,
        "coin": rng.integers(0, 2, (4096, 100)) + 1e-9 * rng.normal(size=(4096, 100)),
        "counts": rng.poisson(3.0, (4096, 100)).astype(float),
    }
    for draws in light.values():
        assert max(tail_index(np.abs(x - x.mean())[np.argsort(np.abs(x - x.mean()))[-192:]]) for x in draws.T) < 0.5


def test_pareto_index_is_found():
    """Exact Pareto tails, k = 1 and 0.25: the estimate averages to what it is less what taking the least costs."""
    rng = np.random.default_rng(6)
    for k in (1.0, 0.25):
        samples = rng.pareto(1 / k, (200, 4096)) + 1
        found = np.mean([tail_index(np.sort(x)[-192:]) for x in samples])
        assert k - 0.2 < found < k + 0.05


def test_exact_bias_separates_the_value_the_model_and_q():
    with jax.enable_x64(True):
        params = {name: jnp.asarray(value, jnp.float64) for name, value in PARAMS.items()}
        truth = exact_truth(coin, params)
        np.testing.assert_allclose(testing.flat(truth.gradient), testing.flat(closed_form(params)), rtol=1e-9)
        right = exact_bias(score_function(2, baseline=leave_one_out), coin, params, truth=truth)
        wrong = exact_bias(score_function(2, baseline=own_sample), coin, params, truth=truth)
    assert max(right.value, *right.gradient.values()) < 1e-12
    assert wrong.gradient["q"] == pytest.approx(0.5, abs=1e-12)
    assert max(wrong.value, wrong.gradient["model"]) < 1e-12
    assert right.error == wrong.error == 0


def test_exact_bias_at_a_zero_truth_is_relative_to_a_draw():
    """(z - loc)² is minimal at its target: a pathwise gradient of mean zero there, not 0/0."""
    with jax.enable_x64(True):
        bias = exact_bias(
            pathwise(1), lambda loc: (Normal(loc, jnp.ones(())), lambda z: (z - 0.4) ** 2), jnp.asarray(0.4)
        )
    assert bias.gradient < 1e-9


def test_bias_test_units_names_and_directions():
    truth = closed_form(PARAMS)
    reference = score_function(10, baseline=leave_one_out)
    problem = (coin, jax.tree.map(jnp.asarray, PARAMS))
    wrong = bias_test(
        jax.random.key(0), score_function(10, baseline=own_sample), *problem, truth=truth, delta=0.05,
        reference=reference,
    )  # fmt: skip
    assert wrong.outcome == "reject"
    right = bias_test(jax.random.key(1), reference, *problem, truth=truth, delta=0.05, reference=reference)
    assert right.outcome == "certify"
    names = {*testing.coordinate_names(truth), "the exact gradient's direction"}
    assert names == {"model", "q[0]", "q[1]", "the exact gradient's direction"}
    assert right.direction in names | {f"random projection {i}" for i in range(1, 9)}


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match="needs delta > 0"):
        sequential_test(iter([]), [0.0], delta=0.0)
    with pytest.raises(ValueError, match=r"truth must be \(d,\)"):
        sequential_test(iter([]), [0.0], delta=1.0, projections=np.ones((1, 2)))
    constant = pathwise(1)
    with pytest.raises(ValueError, match="the reference estimator must have a finite, positive variance"):
        bias_test(jax.random.key(0), constant, lambda m: (Normal(m, jnp.ones(())), lambda z: 2 * z), jnp.zeros(()),
                  truth=np.zeros(()), delta=0.1, reference=constant)  # fmt: skip


LIGHT = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "log-normal": lambda rng, shape: rng.lognormal(0, 0.5, shape) - np.exp(0.125),
}


def rejections(draw, rate, repetitions, seed):
    rng = np.random.default_rng(seed)
    outcomes = [
        sequential_test(
            (draw(rng, (512, 1)) for _ in range(1000)), [0.0], delta=1e-9, error_rate=rate,
            first_look=512, last_look=2**13,
        )
        for _ in range(repetitions)
    ]  # fmt: skip
    return [verdict.outcome for verdict in outcomes]


def single_pass_rejections(draw, widths, repetitions, seed):
    """Share of vectorised repetitions that leave the band at any look: what the first pass alone would reject."""
    rng = np.random.default_rng(seed)
    looks = np.unique(np.ceil(512 * 2 ** (np.arange(11) / 2)).astype(int))
    totals, squares, count = np.zeros(repetitions), np.zeros(repetitions), 0
    out = np.zeros(repetitions, bool)
    for look in looks:
        x = draw(rng, (repetitions, int(look) - count))
        totals, squares, count = totals + x.sum(1), squares + (x**2).sum(1), int(look)
        mean = totals / count
        out |= np.abs(mean) > widths(count, np.sqrt(squares / count - mean**2))
    return out.mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("rate", [1e-2, pytest.param(1e-3, marks=pytest.mark.long)])
def test_false_rejections_stay_below_nominal_where_a_peeking_t_test_exceeds_it(name, rate):
    """4,000 repetitions of 11 looks. The first pass alone keeps its rate, though it need not wait for a second."""
    repetitions = 4000
    best_at = np.sqrt(512 * 2**14)
    sequence = single_pass_rejections(LIGHT[name], lambda t, s: half_width(t, s, rate, best_at), repetitions, 0)
    peeking = single_pass_rejections(LIGHT[name], lambda t, s: stats.norm.isf(rate / 2) * s / t**0.5, repetitions, 0)
    # 1e-6: the chance that a test at its nominal rate shows more than this
    assert sequence <= stats.binom.isf(1e-6, repetitions, rate) / repetitions
    assert peeking > max(2 * rate, 2 * sequence)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_whole_test_with_its_confirmation_rejects_no_null(name):
    outcomes = rejections(LIGHT[name], 1e-2, 300, 1)
    assert outcomes.count("reject") <= stats.binom.isf(1e-6, 300, 1e-2)
    assert outcomes.count("inconclusive") > 280


def test_the_control_a_mean_that_is_off_is_rejected():
    assert rejections(lambda rng, shape: 0.5 + rng.normal(size=shape), 1e-3, 20, 2) == ["reject"] * 20
    assert isinstance(sequential_test(normal_draws(0), [0.0], delta=1), Verdict)
