"""The published cases and the bundled problems: each case's verdict, and wrong variants that it must reject."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import every
from scipy import integrate, special

from vbjax import bounds
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence
from vbjax.estimators import arm, constant, leave_one_out, measure_valued, pathwise, score_function
from vbjax.estimators.relaxed import straight_through
from vbjax.exact import exact_gradient, exact_moments
from vbjax.moments import replicate
from vbjax.studies import (
    bandit,
    binary_programmes,
    coins,
    cost_functions,
    diffusion_times,
    digits_gradients,
    logistic_regression,
    tighter_bounds,
)
from vbjax.studies.bundled import bundled_problems, make_problem
from vbjax.studies.descent import adam
from vbjax.studies.published import CASES, published_cases
from vbjax.studies.published_case import Finding, PublishedCase
from vbjax.studies.sweeps import exact_sweep


def failed(case: PublishedCase) -> list[str]:
    return [finding.statement for finding in case.findings if not finding.holds]


def test_a_case_stands_only_if_every_finding_holds():
    case = PublishedCase("n", "t", "c", "s", (), (), (Finding("a", True), Finding("b", True)))
    assert case.verdict
    assert not case._replace(findings=(Finding("a", True), Finding("b", False))).verdict
    assert not case._replace(findings=()).verdict


def test_the_quadrature_of_the_costs_has_the_published_closed_forms():
    loc, scale, k = 0.7, 1.3, -0.4
    d, s = loc - k, scale
    variances = cost_functions.direct_variances(cost_functions.COSTS["square"], k, loc, scale)
    np.testing.assert_allclose(
        variances["score"],
        [d**4 / s**2 + 14 * d**2 + 15 * s**2, 2 * d**4 / s**2 + 60 * d**2 + 74 * s**2],
        rtol=1e-10,
    )
    np.testing.assert_allclose(variances["pathwise"], [4 * s**2, 4 * d**2 + 8 * s**2], rtol=1e-10)
    np.testing.assert_allclose(variances["measure-valued"][0], d**2 * (16 / math.pi - 4), rtol=1e-10)


def test_cosine_crosses_where_its_closed_forms_cross():
    cosine = cost_functions.COSTS["cosine"]
    k = cost_functions.crossing(cosine, "score", "pathwise", "loc", 0.3, 3.0, loc=0.7, scale=1.3)
    assert abs(k - 0.7069) < 5e-5

    def excess(k, mu=0.7, s=1.3):
        # E x² cos 2kz and E sin² kz for z = μ + s x, from the characteristic function
        decay = math.exp(-2 * k**2 * s**2) * math.cos(2 * k * mu)
        score = (1 + (1 - 4 * k**2 * s**2) * decay) / 2 / s**2
        return score - k**2 * (1 - decay) / 2

    assert abs(excess(k)) < 1e-9
    assert abs(excess(k + 1e-3)) > 1e-4
    with pytest.raises(ValueError, match="sign"):
        cost_functions.crossing(cosine, "score", "pathwise", "loc", 2.0, 3.0)


def test_the_measure_valued_quadrature_is_the_librarys_estimator():
    cost, k = cost_functions.COSTS["cosine"], 1.58
    direct = cost_functions.direct_variances(cost, k)["measure-valued"]

    def problem(params):
        return Normal(params["loc"], params["scale"]), lambda z: cost.value(z, k)

    params = {"loc": jnp.ones(()), "scale": jnp.ones(())}
    moments = replicate(jax.random.key(3), measure_valued(), problem, params, replications=20_000)
    variance = np.array([moments.variance[n] for n in ("loc", "scale")])
    error = np.array([moments.variance_standard_error[n] for n in ("loc", "scale")])
    # two normal numbers, one false alarm in a million
    assert np.all(np.abs(variance - direct) < 5 * error)
    uncoupled = cost_functions.direct_variances(cost, k)["pathwise"]
    assert np.all(np.abs(variance - uncoupled) > 5 * error)


def test_a_sweep_is_exact_moments_at_every_setting():
    settings = coins.settings([0.45], [-1.0, 2.0])
    estimator = score_function(2, baseline=leave_one_out)
    sweep = exact_sweep(estimator, coins.problem, settings)
    np.testing.assert_allclose(sweep.variance[:, 0], coins.closed_forms(0.45, [-1.0, 2.0])["RLOO"], atol=1e-15)
    assert np.abs(sweep.variance[:, 0] - coins.closed_forms(0.45, [-1.0, 2.0])["ARM"]).max() > 1e-6
    with jax.enable_x64(True):
        one = exact_moments(estimator, coins.problem, jax.tree.map(jnp.float64, settings[1]))
    np.testing.assert_allclose(sweep.mean[1], [one.mean["logit"], one.mean["target"]], rtol=1e-12)
    np.testing.assert_allclose(sweep.variance[1], np.diagonal(one.covariance), rtol=1e-9)


def test_straight_through_rests_off_the_optimum_and_reinmax_does_not():
    for power in binary_programmes.POWERS:
        rest = binary_programmes.straight_through_rest(power)
        assert abs(binary_programmes.exact_slopes(power, rest)["straight-through"]) < 1e-15
        # descent moves against the slope: towards the rest from both sides
        assert binary_programmes.exact_slopes(power, rest - 0.1)["straight-through"] < 0
        assert binary_programmes.exact_slopes(power, rest + 0.1)["straight-through"] > 0
        low, high = (float(binary_programmes.objective(x, power)) for x in (0.4 - 1e-2, 0.4 + 1e-2))
        slopes = binary_programmes.exact_slopes(power, float(special.expit(0.4)))
        assert abs((high - low) / 2e-2 / slopes["exact"] - 1) < 1e-2
        assert slopes["ReinMax"] > 0


def test_the_noise_floor_is_subtracted():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.02, 1, size=(40, 500, 200))
    mean, variance = draws.mean(1), draws.var(1, ddof=1)
    moments = tighter_bounds.GradientMoments({"b": mean}, {"b": variance}, 500)
    ratio = np.exp(2 * tighter_bounds.signal_to_noise(moments, moments, ("b",)))
    error = ratio.std(ddof=1) / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 0.02**2) < 5 * error
    floored = (mean**2).sum(1) / variance.sum(1)
    assert abs(floored.mean() - 0.02**2) > 5 * error


def test_a_slope_has_its_standard_error():
    log_samples = np.log([4.0, 16.0, 64.0])
    noise = np.random.default_rng(1).normal(size=(3, 400))
    fitted = tighter_bounds.slope(log_samples, -log_samples[:, None] / 2 + 0.1 * noise)
    expected = 0.1 / math.sqrt(((log_samples - log_samples.mean()) ** 2).sum() * 400)
    assert abs(float(fitted.standard_error) / expected - 1) < 0.2
    assert abs(float(fitted.value) + 0.5) < 5 * float(fitted.standard_error)


def test_the_exact_elbo_is_scipys_where_sixty_four_nodes_are_not():
    data = logistic_regression.breast_cancer()
    some = logistic_regression.Regression(data.features[:4], data.labels[:4])
    params = logistic_regression.start(data, scale=1.0)
    spread = np.sqrt((some.features**2).sum(1))
    signs = 2 * some.labels - 1

    def integrand(xi, s, sign):
        return -np.logaddexp(0, -sign * s * xi) * math.exp(-xi * xi / 2) / math.sqrt(2 * math.pi)

    scipy = [
        integrate.quad(integrand, -12, 12, args=(s, sign), epsabs=1e-13, limit=500, points=[0])[0]
        for s, sign in zip(spread, signs, strict=True)
    ]
    with jax.enable_x64(True):
        certified = logistic_regression.exact_elbo(some, params)
        kl = kl_divergence(Normal(jnp.zeros(31), jnp.ones(31)), Normal(jnp.zeros(31), jnp.ones(31)))
        whole = float(logistic_regression.exact_elbo(data, params).value[0])
    assert abs(float(certified.value[0]) - (sum(scipy) - float(kl))) < 1e-10
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    few = sum(
        -np.logaddexp(0, -sign * s * nodes) @ weights / weights.sum() for s, sign in zip(spread, signs, strict=True)
    )
    assert abs(few - sum(scipy)) > 1e-4
    assert abs(whole + 1226.592) < 1e-3
    with pytest.raises(ValueError, match="float64"):
        logistic_regression.exact_elbo(data, params)


def test_the_bandit_has_its_closed_form_variance(x64):
    toy = bandit.noisy_bandit()
    params = jax.tree.map(jnp.asarray, toy.params)
    for level in (0.0, 0.4):
        estimator = score_function(baseline=constant(level))
        moments = exact_moments(estimator, toy.problem, params)
        gradient, variance = bandit.closed_form_variance(level)
        np.testing.assert_allclose(moments.mean["logits"], gradient, atol=1e-12)
        np.testing.assert_allclose(moments.variance["logits"], variance, rtol=1e-10)
        wrong = bandit.closed_form_variance(level + 0.1)[1]
        assert np.abs(moments.variance["logits"] - wrong).max() > 1e-3


def test_adam_takes_the_steps_of_the_paper():
    optimizer = adam(0.1)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    first, state = optimizer.update(jnp.array([3.0, -0.5]), state, params)
    np.testing.assert_allclose(first, [-0.1, 0.1], rtol=1e-5)
    second, _ = optimizer.update(jnp.array([0.0, -0.5]), state, params)
    m, v = 0.9 * 0.1 * 3 / (1 - 0.9**2), 0.999 * 0.001 * 9 / (1 - 0.999**2)
    np.testing.assert_allclose(second, [-0.1 * m / math.sqrt(v), 0.1], rtol=1e-4)


def test_problems_and_cases_are_found_by_name():
    assert {"logistic-start", "digits-bits", "diffusion-importance", "noisy-bandit"} <= set(bundled_problems())
    for name in ("square", "coin-arm", "bandit", "diffusion-uniform", "polynomial"):
        q, f = make_problem(name).problem(jax.tree.map(jnp.asarray, make_problem(name).params))
        assert f(q.sample(jax.random.key(0))).shape == ()
    with pytest.raises(ValueError, match="coin-relax"):
        make_problem("coin-relaxed")
    with pytest.raises(ValueError, match="tighter-bounds"):
        published_cases(["tighter-bound"])
    with pytest.raises(ValueError, match="uniform, loss, gradient"):
        diffusion_times.times_law("nothing")


@pytest.mark.long
@pytest.mark.parametrize("discrete", [False, True])
def test_the_digits_gradient_is_what_an_unbiased_estimator_averages_to(discrete):
    toy = digits_gradients.digits_vae(discrete=discrete)
    estimator = score_function(2, baseline=leave_one_out) if discrete else pathwise()
    params = jax.tree.map(jnp.asarray, toy.params)
    moments = replicate(jax.random.key(0), estimator, toy.problem, params, replications=4096)
    truth = jax.tree.map(np.asarray, toy.truth(toy.params))

    def deviations(truth):
        z = jax.tree.map(
            lambda m, t, e: np.ravel((np.asarray(m) - np.asarray(t)) / np.where(e > 0, e, np.inf)),
            moments.mean,
            truth,
            moments.standard_error,
        )
        return np.abs(np.concatenate(jax.tree.leaves(z))).max()

    # 3,700 normal numbers: one false alarm in a million
    assert deviations(truth) < 6.5
    assert deviations(jax.tree.map(lambda t: 0 * t, truth)) > 6.5
    if discrete:
        with jax.enable_x64(True):
            params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), toy.params)
            library = exact_gradient(toy.problem, params).value
        np.testing.assert_allclose(library["encoder"]["out_bias"], truth["encoder"]["out_bias"], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(3, CASES))
def test_the_published_case_is_reproduced(name):
    (case,) = published_cases([name], quick=True)
    assert case.verdict, failed(case)
    assert case.name == name
    assert all(len(row) == len(case.columns) for row in case.rows)


@pytest.mark.long
def test_wrong_estimators_lose_their_cases(monkeypatch):
    monkeypatch.setattr(cost_functions, "pathwise", score_function)
    assert not cost_functions.cost_function_case("square").verdict
    monkeypatch.setattr(coins, "disarm", arm)
    coins.plain_curves.cache_clear()
    assert not coins.arm_case().verdict
    coins.plain_curves.cache_clear()
    monkeypatch.setattr(binary_programmes, "reinmax", straight_through)
    assert not binary_programmes.polynomial_case(steps=200, seeds=2).verdict
    monkeypatch.setattr(tighter_bounds, "doubly_reparameterised", lambda k: pathwise(k, bound=bounds.iwae))
    assert not tighter_bounds.tighter_bounds_case(samples=(16, 64, 256), data=8, replications=40).verdict
    laws = diffusion_times.times_law
    # a law that forgets a tenth of its mass is a biased bound
    monkeypatch.setattr(diffusion_times, "times_law", lambda kind, **kwargs: laws(kind, **kwargs) * 0.9)
    assert not diffusion_times.importance_case().verdict
    monkeypatch.setitem(logistic_regression.ESTIMATORS, "score", pathwise)
    assert not logistic_regression.logistic_regression_case(replications=256).verdict
