"""The variance study: rows agree with closed forms, refusals stay in the table, the picture shows every row."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vbjax.distributions import Bernoulli, Normal
from vbjax.estimators import leave_one_out, pathwise, score_function
from vbjax.exact import exact_gradient
from vbjax.studies import ToyProblem, toy_problems, variance_figure, variance_study
from vbjax.studies.toy_problems import coin, cosine, linear_gaussian_elbo, square

# The probability that a statistical test below refuses correct code, shared among its comparisons; keys are fixed.
FALSE_ALARM = 1e-6
ESTIMATORS = (pathwise(1), score_function(2, baseline=leave_one_out))


@pytest.fixture(scope="module")
def rows():
    return variance_study(jax.random.key(0), (square(), coin(0.45)), ESTIMATORS, replications=50_000)


def test_rows_come_in_order_of_problem_estimator_and_parameter(rows):
    names = [estimator.spec.name for estimator in ESTIMATORS]
    assert [(row.problem, row.estimator, row.parameter) for row in rows] == [
        ("square", names[0], "loc"),
        ("square", names[0], "scale"),
        ("square", names[1], "loc"),
        ("square", names[1], "scale"),
        ("coin t=0.45", names[0], "logit"),
        ("coin t=0.45", names[1], "logit"),
    ]


def test_exact_columns_equal_the_closed_forms(rows):
    d, s, p = 1.1, 1.3, special.expit(0.3)
    slope = p * (1 - p) * 0.1
    variances = [4 * s**2, 4 * d**2 + 8 * s**2, 8 * d**2 + 6 * s**2, 24 * d**2 + 32 * s**2]
    np.testing.assert_allclose([row.exact_variance for row in rows[:4]], variances, rtol=1e-9)
    np.testing.assert_allclose([row.gradient for row in rows], [2 * d, 2 * s, 2 * d, 2 * s, slope, slope], rtol=1e-9)
    assert rows[5].exact_variance == pytest.approx(slope * 0.1 / 2 - slope**2, rel=1e-9)
    for row in rows:
        assert math.isnan(row.exact_mean) or row.exact_mean == pytest.approx(row.gradient, rel=1e-9)


def test_monte_carlo_columns_agree_with_the_exact_ones(rows):
    served = [row for row in rows if not row.refusal]
    threshold = stats.norm.isf(FALSE_ALARM / (2 * len(served)) / 2)
    for row in served:
        assert abs(row.z_mean) < threshold
        assert abs(row.z_variance) < threshold
        assert row.z_mean == pytest.approx((row.mean - row.gradient) / row.standard_error, rel=1e-3)
        assert row.z_variance == pytest.approx(
            (row.variance - row.exact_variance) / row.variance_standard_error, rel=1e-3
        )
        assert row.work_normalised_variance == pytest.approx(row.exact_variance * row.evaluations)


def test_refusal_is_a_row_that_says_why(rows):
    (refused,) = [row for row in rows if row.refusal]
    assert (refused.problem, refused.estimator) == ("coin t=0.45", "pathwise(1)")
    assert "use score_function" in refused.refusal
    assert math.isnan(refused.mean)
    assert math.isnan(refused.work_normalised_variance)
    assert refused.gradient == rows[5].gradient


def test_row_does_not_depend_on_its_neighbours(rows):
    alone = variance_study(jax.random.key(0), (square(),), ESTIMATORS[:1], replications=50_000, threads=1)
    assert alone == rows[:2]


def test_wrong_estimator_stands_out_in_the_row():
    """A baseline that contains its own sample: half of the gradient is missing, and the variance looks better."""

    def surrogate(state, z, f, q):
        values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
        signal = jax.lax.stop_gradient(values - values.mean())
        return jnp.mean(values + signal * (log_q - jax.lax.stop_gradient(log_q)))

    own_sample = score_function(2)._replace(surrogate=surrogate)
    (row,) = variance_study(jax.random.key(0), (coin(0.45),), (own_sample,), replications=2_000)
    assert row.exact_mean == pytest.approx(row.gradient / 2, rel=1e-9)
    assert row.z_mean < -8


def test_what_has_no_exact_answer_says_so_and_keeps_its_monte_carlo():
    step = ToyProblem(
        "step", r"1[z > 0]", lambda p: (Normal(p["loc"], 1.0), lambda z: jnp.where(z > 0.3, 1.0, 0.0)), {"loc": 0.7}
    )
    (row,) = variance_study(jax.random.key(1), (step,), (score_function(1),), replications=20_000)
    assert math.isnan(row.exact_variance)
    assert "Monte Carlo" in row.no_exact
    assert row.refusal == ""
    threshold = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(row.mean - stats.norm.pdf(0.4)) < threshold * row.standard_error
    assert row.work_normalised_variance == row.variance


def test_vector_parameters_are_named_by_coordinate():
    pair = ToyProblem(
        "pair", "b", lambda p: (Bernoulli(p["logits"]), lambda b: b[0] * b[1]), {"logits": np.array([0.1, -0.4])}
    )
    rows = variance_study(jax.random.key(0), (pair,), (score_function(1),), replications=500)
    assert [row.parameter for row in rows] == ["logits[0]", "logits[1]"]


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


def test_figure_shows_every_served_row_and_its_error_bar(rows):
    figure = variance_figure(rows, error_bars=2.0)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["square: loc", "square: scale", "coin t=0.45: logit"]
    shown = np.concatenate([container[0].get_xdata() for container in axes.containers])
    np.testing.assert_allclose(sorted(shown), sorted(row.variance for row in rows if not row.refusal))
    bar = axes.containers[0][2][0].get_segments()[0]
    assert bar[1, 0] - rows[0].variance == pytest.approx(2 * rows[0].variance_standard_error, rel=1e-6)
    assert axes.get_xscale() == "log"
    figure.canvas.draw()


def test_figure_refuses_an_empty_study():
    with pytest.raises(ValueError, match="at least one row"):
        variance_figure([])
