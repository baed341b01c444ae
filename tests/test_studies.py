"""Studies: numbers agree with closed forms, verdicts with right and wrong estimators, a kill costs nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vbjax import tails
from vbjax.distributions import Bernoulli, Normal, Poisson
from vbjax.estimators import catalogue, score_function
from vbjax.estimators.catalogue import METHODS
from vbjax.exact import exact_gradient
from vbjax.random import rekey
from vbjax.studies import (
    ToyProblem,
    bias,
    collection,
    cost,
    grid,
    plots,
    rows,
    schedule,
    standings,
    study,
)
from vbjax.studies.cells import Result
from vbjax.studies.pairs import pairs
from vbjax.studies.toy_problems import coin, cosine, linear_gaussian_elbo, square, toy_problems

# The probability that a statistical test below refuses correct code, shared among its comparisons; keys are fixed.
FALSE_ALARM = 1e-6
CLASSIC = {name: METHODS[name] for name in ("score", "rloo", "pathwise")}
REPLICATIONS = 20_000


def own_sample(samples):
    """A baseline that contains its own sample: 1/K of the gradient is missing, and the variance looks better."""

    def surrogate(state, z, f, q):
        values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
        signal = jax.lax.stop_gradient(values - values.mean())
        return jnp.mean(values + signal * (log_q - jax.lax.stop_gradient(log_q)))

    return score_function(samples)._replace(surrogate=surrogate)


WRONG = catalogue.Method("wrong", "mine", own_sample, "", "")


@pytest.fixture(scope="module")
def cells():
    squares = grid([square()], {"score": METHODS["score"], "pathwise": METHODS["pathwise"]}, sweeps={"loc": (0.7, 1.7)})
    return [*squares, *grid([coin(0.45)], {**CLASSIC, "wrong": WRONG}, samples=(2,))]


@pytest.fixture(scope="module")
def results(cells):
    return study(cells, replications=REPLICATIONS)


def test_results_come_in_order_and_do_not_depend_on_their_neighbours(cells, results):
    assert [(r.problem, r.point, r.estimator, r.samples) for r in results] == [
        ("square", {"loc": 0.7}, "score", 1),
        ("square", {"loc": 0.7}, "pathwise", 1),
        ("square", {"loc": 1.7}, "score", 1),
        ("square", {"loc": 1.7}, "pathwise", 1),
        ("coin t=0.45", {}, "score", 2),
        ("coin t=0.45", {}, "rloo", 2),
        ("coin t=0.45", {}, "pathwise", 2),
        ("coin t=0.45", {}, "wrong", 2),
    ]
    (alone,) = study(cells[5:6], replications=REPLICATIONS, threads=1)
    assert alone._replace(microseconds=0.0) == results[5]._replace(microseconds=0.0)


def test_exact_numbers_equal_the_closed_forms(results):
    d, s, p = 1.1, 1.3, special.expit(0.3)
    slope = p * (1 - p) * 0.1
    by_path = [4 * s**2, 4 * d**2 + 8 * s**2]
    np.testing.assert_allclose(results[1].exact_variance, by_path, rtol=1e-9)
    np.testing.assert_allclose(results[1].truth, [2 * d, 2 * s], rtol=1e-9)
    d = 2.1
    np.testing.assert_allclose(results[3].exact_variance, [4 * s**2, 4 * d**2 + 8 * s**2], rtol=1e-9)
    np.testing.assert_allclose(results[5].exact_variance, [slope * 0.1 / 2 - slope**2], rtol=1e-9)
    assert [r.evaluations for r in results[:6]] == [1, 1, 1, 1, 2, 2]


def test_sampled_numbers_agree_with_the_exact_ones(results):
    served = [r for r in results if not r.refusal]
    comparisons = 2 * sum(len(r.coordinates) for r in served)
    threshold = stats.norm.isf(FALSE_ALARM / comparisons / 2)
    for r in served:
        off = np.subtract(r.mean, r.exact_mean) / np.maximum(r.standard_error, 1e-7)
        assert np.all(np.abs(off) < threshold)
        off = np.subtract(r.variance, r.exact_variance) / np.maximum(r.variance_standard_error, 1e-7)
        assert np.all(np.abs(off) < threshold)


def test_verdicts_are_exact_and_a_wrong_estimator_contradicts_its_specification(results):
    assert [r.outcome for r in results] == ["unbiased"] * 6 + ["refused", "biased"]
    assert [r.mismatch for r in results] == [False] * 7 + [True]
    wrong = results[7]
    assert wrong.exact_mean[0] == pytest.approx(wrong.truth[0] / 2, rel=1e-9)
    assert "use score_function" in results[6].refusal


def test_sampled_verdicts_certify_the_right_estimator_and_reject_the_wrong_one(results):
    methods = {"score": METHODS["score"], "wrong": WRONG, "rloo": METHODS["rloo"]}
    cells = grid([coin(0.45)], methods, samples=(2,))
    found = study(cells, replications=50_000, integrate=False)
    right, wrong, _ = found
    assert (right.outcome, wrong.outcome, wrong.mismatch) == (bias.CERTIFIED, bias.BIASED, True)
    assert right.no_exact == "not asked for"
    # the biased one, whose variance would look good, is not compared
    (pair,) = pairs(cells, found, replications=50_000)
    assert pairs(cells, found, reference="wrong", replications=50_000) == []
    assert (pair.result.estimator, pair.reference.estimator, pair.exact) == ("rloo", "score", False)
    exact = results[5].exact_variance[0] / results[4].exact_variance[0]
    width = math.log(pair.high / pair.low) / 2 / stats.norm.isf(0.025)
    assert width < 0.02
    assert abs(math.log(pair.ratio / exact)) < stats.norm.isf(FALSE_ALARM / 2) * width


def test_exact_variances_have_an_exact_ratio(cells, results, tmp_path):
    found = pairs(cells, results, reference="score", replications=REPLICATIONS, folder=tmp_path)
    assert [(p.result.estimator, p.result.point) for p in found] == [
        ("pathwise", {"loc": 0.7}),
        ("pathwise", {"loc": 1.7}),
        ("rloo", {}),
    ]
    assert all(p.exact and p.low == p.ratio == p.high for p in found)
    assert found[0].ratio == pytest.approx(sum(results[1].exact_variance) / sum(results[0].exact_variance))
    assert found[2].work("evaluations") == found[2].ratio
    assert not list(tmp_path.iterdir())  # nothing was sampled
    row = rows.rows(results, {}, pairs=found)[3]
    assert (row["estimator"], row["reference"], row["variance_ratio"]) == ("pathwise", "score", found[0].ratio)


def test_verdict_on_hand_made_evidence():
    truth, one = np.zeros(2), np.ones(2)
    calm = bias.Evidence(np.array([0.001, 0.0]), one, 10**6, tails.FINITE, 0)
    assert bias.judge(truth, calm, 0.05).outcome == bias.CERTIFIED
    assert bias.judge(truth, calm, 0.005).outcome == bias.INCONCLUSIVE
    off = calm._replace(mean=np.array([0.0, 0.02]))
    rejected = bias.judge(truth, off, 0.05)
    assert rejected.outcome == bias.BIASED
    assert rejected.biased.tolist() == [False, True]
    assert bias.judge_again(rejected, truth, calm, 0.05).outcome == bias.INCONCLUSIVE
    assert bias.judge_again(rejected, truth, off, 0.05).outcome == bias.BIASED
    assert bias.judge(truth, calm._replace(tail=tails.NOT_FINITE), 0.05).outcome == bias.HEAVY_TAILS
    assert bias.judge(truth, calm._replace(non_finite=3), 0.05).outcome == bias.NOT_FINITE
    assert bias.judge(np.full(2, np.nan), calm, 0.05).outcome == bias.NO_TRUTH


def test_a_killed_study_goes_on_to_the_same_bits(cells, results, tmp_path, monkeypatch):
    """Killed inside the second cell, after the first was kept: nothing that was kept is drawn again."""
    few = [cells[5], cells[4]]

    class Killed(BaseException):
        pass

    def kill(done, wanted, finished):
        if finished:
            raise Killed

    with pytest.raises(Killed):
        study(few, replications=REPLICATIONS, folder=tmp_path, threads=1, on_progress=kill)
    assert len(list(tmp_path.glob("*.json"))) == 1
    examined = []
    original = schedule.examine

    def examine(cell, *arguments, **settings):
        examined.append(cell.name)
        return original(cell, *arguments, **settings)

    monkeypatch.setattr(
        schedule, "examine", lambda cell, *a, **k: examined.append(cell.name) or original(cell, *a, **k)
    )
    again = study(few, replications=REPLICATIONS, folder=tmp_path)
    assert examined == [cells[4].name]
    expected = [results[5], results[4]]
    assert [r._replace(microseconds=0.0) for r in again] == [r._replace(microseconds=0.0) for r in expected]
    assert not list(tmp_path.glob("*.npz*"))


@pytest.mark.slow
def test_estimators_with_the_same_noise_see_the_same_noise():
    """The score function with and without a constant shift of f: their difference is c Σ score, draw by draw."""
    toy = coin(0.45)
    shifted = score_function(1)._replace(
        surrogate=lambda state, z, f, q: score_function(1).surrogate(state, z, lambda z: f(z) + 10.0, q)
    )
    plain, moved = study(grid([toy], {"plain": score_function(1), "moved": shifted}), replications=4096)
    p = special.expit(0.3)
    # the difference of the means tells the share of heads, which gives either mean back only if the coins were the same
    heads = (moved.mean[0] - plain.mean[0]) / 10 + p
    expected = heads * 0.55**2 * (1 - p) + (1 - heads) * 0.45**2 * (-p)
    assert plain.mean[0] == pytest.approx(expected, abs=1e-6)


def test_rows_have_one_shape_and_sum_coordinates(results):
    found = rows.rows(results, {"seed": 0}, cost="evaluations")
    assert len({tuple(row) for row in found}) == 1
    assert [row["coordinate"] for row in found[:3]] == ["(all)", "loc", "scale"]
    assert found[0]["variance"] == pytest.approx(found[1]["variance"] + found[2]["variance"])
    assert found[0]["at loc"] == 0.7


def made(estimator, *, variance, evaluations, outcome=bias.UNBIASED, mean=1.0):
    return Result(
        problem="p", point={}, estimator=estimator, family="", samples=1, call=estimator, coordinates=["a"],
        truth=[1.0], no_truth="", exact_mean=[mean], exact_variance=[variance], no_exact="", mean=[mean],
        standard_error=[0.1], variance=[variance], variance_standard_error=[0.1],
        variance_low=[0.9], variance_high=[1.1], kurtosis=[3.0], tail_index=[0.0],
        tail=tails.FINITE, non_finite=0, replications=100, outcome=outcome, explanation="", mismatch=False,
        claims_unbiased=True,
        evaluations=evaluations, flops=1.0, microseconds=1.0, refusal="",
    )  # fmt: skip


def test_front_and_efficiency_on_hand_made_results():
    places = standings(
        [
            made("cheap", variance=8.0, evaluations=1.0),
            made("dear", variance=1.0, evaluations=4.0),
            made("beaten", variance=9.0, evaluations=2.0),
            made("biased", variance=0.5, evaluations=1.0, outcome=bias.BIASED, mean=1.5),
        ]
    )
    assert [place.front for place in places] == [True, True, False, True]
    assert [place.efficiency for place in places[:3]] == [0.5, 1.0, pytest.approx(4 / 18)]
    assert math.isnan(places[3].efficiency)
    assert places[3].bias == 0.5
    modest = made("modest", variance=0.1, evaluations=1.0, outcome=bias.INCONCLUSIVE)
    honest, biased = standings([modest, modest._replace(claims_unbiased=False)])
    assert honest.efficiency == 1.0
    assert math.isnan(biased.efficiency)
    assert rows.outcome_text(biased.result) == "says biased"


def test_infinite_variance_is_said_and_never_on_the_front():
    endless = made("endless", variance=8.0, evaluations=1.0)._replace(exact_variance=[math.nan], tail=tails.NOT_FINITE)
    (place,) = standings([endless])
    assert math.isinf(place.variance)
    assert not place.front


def test_calls_of_f_are_counted_in_the_traced_program():
    toy = coin(0.45)
    params = jax.tree.map(lambda x: jnp.asarray(x, float), toy.params)

    def calls(name, samples):
        return cost.evaluations(METHODS[name].make(samples), toy.problem, params)

    assert [calls("score", 3), calls("rloo", 4), calls("disarm", 2), calls("arm", 3)] == [3, 4, 2, 6]
    # a gradient counts as one more, once for each draw; an expansion at the mean is one for all draws
    for name in ("straight_through", "rebar"):
        assert calls(name, 4) == METHODS[name].make(4).spec.evaluations
    assert [calls("taylor", 4), calls("cross_fitted", 4)] == [4 + 2, 4 * (2 + 1) + 2]
    scanned = score_function(1)._replace(
        surrogate=lambda state, z, f, q: jax.lax.scan(lambda c, x: (c + f(z[0]), None), 0.0, None, length=5)[0]
    )
    assert cost.evaluations(scanned, toy.problem, params) == 5


def test_counts_are_drawn_from_the_engines_generator():
    jax.eval_shape(Poisson(jnp.full((), 4.0)).sample, rekey(jax.random.key(0)))


@pytest.mark.slow
def test_counts_from_the_engines_generator_have_the_right_moments():
    draws = Poisson(jnp.full((), 4.0)).sample(rekey(jax.random.key(0)), (10_000,))
    assert abs(float(draws.mean()) - 4.0) < stats.norm.isf(FALSE_ALARM / 2) * 2 / math.sqrt(10_000)
    assert float(draws.var()) == pytest.approx(4.0, rel=0.1)


def test_sweeps_set_scalars_and_coordinates():
    params = {"logits": np.array([0.1, -0.4]), "scale": 2}
    moved = schedule.at(params, {"logits[1]": 3.0, "scale": 1.5})
    assert moved["logits"].tolist() == [0.1, 3.0]
    assert float(moved["scale"]) == 1.5
    pair = ToyProblem("pair", "b", lambda p: (Bernoulli(p["logits"]), lambda b: b[0] * b[1]), params)
    assert schedule.points(pair, {"logits[1]": (0, 1), "absent": (5,)}) == [{"logits[1]": 0.0}, {"logits[1]": 1.0}]


def test_names_pick_problems_and_unknown_ones_have_near_matches():
    assert [p.name for p in collection.find("coin")] == ["coin-rebar", "coin-relax", "coin-arm"]
    (one,) = collection.find("square")
    assert (one.name, one.source) == ("square", "Mohamed et al. (2020), section 3")
    with pytest.raises(collection.UnknownName, match="did you mean square"):
        collection.find("sqare")


@pytest.mark.slow
def test_what_has_no_exact_answer_says_so_and_keeps_its_samples():
    step = ToyProblem(
        "step", r"1[z > 0]", lambda p: (Normal(p["loc"], 1.0), lambda z: jnp.where(z > 0.3, 1.0, 0.0)), {"loc": 0.7}
    )
    (result,) = study(grid([step], {"score": METHODS["score"]}), replications=20_000)
    assert not result.exact
    assert "Monte Carlo" in result.no_exact
    assert result.outcome == bias.NO_TRUTH
    threshold = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(result.mean[0] - stats.norm.pdf(0.4)) < threshold * result.standard_error[0]


def test_figures_show_what_there_is(results):
    drawn = plots.figures([r for r in results if r.problem == "square"])
    assert list(drawn) == ["variance against loc", "variance against calls of f"]
    (axes,) = drawn["variance against loc"].axes
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [sum(results[i].exact_variance) for i in (1, 3)])
    assert axes.get_yscale() == "log"
    for figure in drawn.values():
        figure.canvas.draw()


def test_toy_gradients_equal_their_closed_forms():
    """cos ωz: E = e^(-ω²s²/2) cos ωm; the linear ELBO: a polynomial in its three parameters."""
    with jax.enable_x64(True):
        toy = cosine()
        gradient = exact_gradient(toy.problem, jax.tree.map(jnp.asarray, toy.params)).value
        level = math.exp(-2 * 1.3**2)
        assert float(gradient["loc"]) == pytest.approx(-2 * level * math.sin(1.4), rel=1e-9)
        assert float(gradient["scale"]) == pytest.approx(-4 * 1.3 * level * math.cos(1.4), rel=1e-9)
        toy = linear_gaussian_elbo()
        gradient = exact_gradient(toy.problem, jax.tree.map(jnp.asarray, toy.params)).value
        x, g, m, s = 1.2, 0.9, 0.8, 0.6
        assert float(gradient["loc"]) == pytest.approx(4 * g * (x - g * m) - m, rel=1e-9)
        assert float(gradient["scale"]) == pytest.approx(1 / s - s - 4 * g**2 * s, rel=1e-9)
        assert float(gradient["gain"]) == pytest.approx(4 * (x * m - g * (m**2 + s**2)), rel=1e-9)


def test_toy_problems_have_distinct_names_and_a_statement():
    problems = toy_problems()
    assert len({toy.name for toy in problems}) == len(problems) == 7
    assert all(toy.statement for toy in problems)
