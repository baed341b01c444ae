"""Estimators: exact mean = exact gradient by an independent route, variances = closed forms, mutants rejected.

`bias` is the one check: the exact mean over all of an estimator's noise against differences of an objective
that NumPy or SciPy integrates. What it accepts must be unbiased, and every wrong gradient of the museum must fail it.
"""

import functools
import inspect
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vbjax import bounds
from vbjax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Copies,
    Gamma,
    Laplace,
    Logistic,
    LogNormal,
    Mixture,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    Uniform,
)
from vbjax.estimators import Baseline, constant, leave_one_out, no_baseline, pathwise, score_function, value_and_grad
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import exact_gradient, exact_moments, expectation
from vbjax.moments import replicate
from vbjax.types import NotAvailable, stop_gradient

# The probability that a statistical test below refuses correct code, shared among its comparisons; keys are fixed.
FALSE_ALARM = 1e-6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Case(NamedTuple):
    """problem: params -> (q, f) in JAX. objective: the same E B(f), of NumPy parameters, by SciPy or NumPy alone."""

    problem: object
    params: tuple
    objective: object


def differences(objective, params, step=1e-3):
    """Five-point differences of an objective of floats: an error of order step^4."""

    def at(i, shift):
        return objective(*(p + shift * (i == j) for j, p in enumerate(params)))

    return np.array(
        [
            (8 * (at(i, step) - at(i, -step)) - (at(i, 2 * step) - at(i, -2 * step))) / (12 * step)
            for i in range(len(params))
        ]
    )


def bias(estimator, case):
    """Exact mean of the estimator's gradient minus the differences of the objective, relative to their size."""
    moments = exact_moments(estimator, case.problem, tuple(jnp.asarray(p) for p in case.params))
    truth = differences(case.objective, case.params)
    return np.max(np.abs(np.array(moments.mean) - truth)) / np.max(np.abs(truth))


def unbiased(estimator, case):
    return bias(estimator, case) < 1e-7


def mean_of(law, f):
    """E f under a frozen SciPy law: the series, or adaptive quadrature between quantiles."""
    if hasattr(law.dist, "pmf"):
        return law.pmf(np.arange(200)) @ f(np.arange(200.0))
    edges = [law.ppf(0) if np.isfinite(law.ppf(0)) else law.ppf(1e-17), law.ppf(0.5), law.isf(1e-17)]
    return sum(
        integrate.quad(lambda z: f(z) * law.pdf(z), a, b, epsabs=1e-13, epsrel=1e-13, limit=200)[0]
        for a, b in itertools.pairwise(edges)
    )


def under(law, reference, *params):
    """The smooth cost cos z + z²/10 under a law of scalar parameters."""
    return Case(
        lambda p: (law(*p), lambda z: jnp.cos(z) + 0.1 * z**2),
        params,
        lambda *p: mean_of(reference(*p), lambda z: np.cos(z) + 0.1 * z**2),
    )


SMOOTH = {
    "normal": under(Normal, stats.norm, 0.7, 1.3),
    "log-normal": under(LogNormal, lambda m, s: stats.lognorm(s, scale=math.exp(m)), 0.2, 0.4),
    "logistic": under(Logistic, stats.logistic, -0.4, 0.6),
    "laplace": under(Laplace, stats.laplace, 0.3, 0.8),
    "gamma": under(Gamma, lambda a, rate: stats.gamma(a, scale=1 / rate), 2.5, 1.5),
    "poisson": under(Poisson, stats.poisson, 3.3),
}


def model(theta, z):
    """log p(x, z) of a small discrete model whose prior and likelihood share one parameter."""
    return -0.3 + theta * z - 0.5 * theta**2 * (z - 0.4) ** 2


def discrete_elbo(bound, samples):
    """log-weights of a Bernoulli q: the model's parameter in f's closure, q's own in -log q."""

    def objective(theta, phi):
        q = np.array([special.expit(-phi), special.expit(phi)])
        log_w = np.array([model(theta, 0), model(theta, 1)]) - np.log(q)
        outcomes = itertools.product((0, 1), repeat=samples)
        return sum(math.prod(q[list(z)]) * bound(log_w[list(z)]) for z in outcomes)

    def problem(params):
        theta, phi = params
        q = Bernoulli(phi)
        return q, lambda z: model(theta, z) - q.log_prob(z)

    return Case(problem, (0.8, -0.6), objective)


def normal_elbo(bound, samples):
    """log-weights of z ~ N(0, 1), x | z ~ N(gain z, 1/4) under q, by NumPy's own Gauss rule over the K draws."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def log_weight(gain, loc, scale, z):
        prior, likelihood = -(z**2) / 2, -2 * (1.2 - gain * z) ** 2
        return prior + likelihood + ((z - loc) / scale) ** 2 / 2 + np.log(scale) + 0.5 * math.log(2 / math.pi)

    def objective(gain, loc, scale):
        grid = np.stack(np.meshgrid(*[loc + scale * points] * samples, indexing="ij"), -1)
        mass = np.prod(np.stack(np.meshgrid(*[weights] * samples, indexing="ij"), -1), -1)
        return float((mass * bound(log_weight(gain, loc, scale, grid))).sum())

    def problem(params):
        gain, loc, scale = params
        q = Normal(loc, scale)

        def f(z):
            return Normal(0.0, 1.0).log_prob(z) + Normal(gain * z, 0.5).log_prob(jnp.asarray(1.2)) - q.log_prob(z)

        return q, f

    return Case(problem, (0.9, 0.8, 0.6), objective)


def numpy_mean(log_w):
    return log_w.mean(-1)


def numpy_iwae(log_w):
    return special.logsumexp(log_w, axis=-1) - math.log(np.shape(log_w)[-1])


def numpy_renyi_half(log_w):
    return 2 * (special.logsumexp(0.5 * log_w, axis=-1) - math.log(np.shape(log_w)[-1]))


@pytest.mark.parametrize("name", SMOOTH)
def test_score_function_mean_is_the_gradient(name):
    assert unbiased(score_function(1, baseline=constant(0.7)), SMOOTH[name])


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "poisson"])
def test_pathwise_mean_is_the_gradient(name):
    assert unbiased(pathwise(), SMOOTH[name])


BASELINES = {"none": (1, no_baseline), "constant": (2, constant(-0.4)), "leave-one-out": (3, leave_one_out)}


@pytest.mark.parametrize("name", BASELINES)
def test_score_function_reaches_the_law_and_the_model_of_a_discrete_elbo(name):
    samples, baseline = BASELINES[name]
    assert unbiased(score_function(samples, baseline=baseline), discrete_elbo(numpy_mean, 1))


def test_pathwise_reaches_the_law_and_the_model_of_a_normal_elbo():
    assert unbiased(pathwise(), normal_elbo(numpy_mean, 1))
    assert unbiased(score_function(2, baseline=leave_one_out), normal_elbo(numpy_mean, 1))


BOUNDS = {"iwae": (bounds.iwae, numpy_iwae), "renyi(0.5)": (bounds.renyi(0.5), numpy_renyi_half)}


@pytest.mark.parametrize(("name", "samples"), [("iwae", 1), ("iwae", 2), ("iwae", 3), ("renyi(0.5)", 2)])
def test_score_function_is_unbiased_for_other_bounds_of_a_discrete_model(name, samples):
    bound, reference = BOUNDS[name]
    case = discrete_elbo(reference, samples)
    assert unbiased(score_function(samples, bound=bound), case)
    assert unbiased(score_function(samples, baseline=constant(-1.0), bound=bound), case)
    # the control: the ELBO's estimator, sold as the bound's
    assert samples == 1 or not unbiased(score_function(samples), case)


@pytest.mark.parametrize(("name", "samples"), [("iwae", 2), ("renyi(0.5)", 2)])
def test_pathwise_is_unbiased_for_other_bounds_of_a_normal_model(name, samples):
    bound, reference = BOUNDS[name]
    case = normal_elbo(reference, samples)
    assert unbiased(pathwise(samples, bound=bound), case)
    assert not unbiased(pathwise(samples), case)


def test_pathwise_is_unbiased_for_three_sample_iwae_of_a_normal_model():
    assert unbiased(pathwise(3, bound=bounds.iwae), normal_elbo(numpy_iwae, 3))


def test_estimators_of_categories_equal_the_derivative_of_the_enumerated_sum():
    logits, costs = np.array([0.2, -0.5, 1.0]), np.array([1.0, 4.0, -2.0])
    truth = differences(lambda *x: float(special.softmax(x) @ costs), logits)

    def categorical(logits):
        return Categorical(logits), lambda z: jnp.asarray(costs)[z]

    def one_hot(logits):
        return OneHotCategorical(logits), lambda z: z @ costs

    for problem, estimator in itertools.product(
        (categorical, one_hot), (score_function(), score_function(2, baseline=leave_one_out))
    ):
        moments = exact_moments(estimator, problem, jnp.asarray(logits))
        np.testing.assert_allclose(moments.mean, truth, atol=1e-9)


def test_estimators_of_a_full_covariance_equal_the_polynomial_closed_form():
    """E (aᵀz)² = (aᵀ loc)² + aᵀ L Lᵀ a."""
    loc, tril, a = np.array([0.4, -0.3]), np.array([[0.7, 0.0], [0.2, 0.5]]), np.array([1.5, -0.8])

    def problem(params):
        return MultivariateNormal(params["loc"], params["tril"]), lambda z: (z @ a) ** 2

    params = {"loc": jnp.asarray(loc), "tril": jnp.asarray(tril)}
    for estimator in (pathwise(), score_function()):
        mean = exact_moments(estimator, problem, params).mean
        np.testing.assert_allclose(mean["loc"], 2 * (a @ loc) * a, rtol=1e-9)
        np.testing.assert_allclose(np.tril(mean["tril"]), np.tril(2 * np.outer(a, a) @ tril), rtol=1e-9)


def test_implicit_pathwise_gradient_of_a_beta_law_equals_quadrature():
    case = under(Beta, stats.beta, 2.0, 1.4)
    assert unbiased(pathwise(), case)


def test_gradients_of_a_cubic_plus_exponential_cost_equal_the_closed_form():
    """E exp(0.3 z) = exp(0.3 loc + 0.045 scale²), E z³ = loc³ + 3 loc scale²."""
    problem = lambda p: (Normal(*p), lambda z: jnp.exp(0.3 * z) + z**3)  # noqa: E731
    loc, scale = 0.7, 1.3
    level = math.exp(0.3 * loc + 0.045 * scale**2)
    truth = [0.3 * level + 3 * (loc**2 + scale**2), 0.09 * scale * level + 6 * loc * scale]
    for estimator in (pathwise(), score_function()):
        moments = exact_moments(estimator, problem, (jnp.asarray(loc), jnp.asarray(scale)))
        np.testing.assert_allclose(moments.mean, truth, rtol=1e-12)


D, S = 1.1, 1.3


def square(params):
    """The square cost at distance d = 1.1 from its centre, under N(0.7, 1.3²)."""
    return Normal(*params), lambda z: (z + 0.4) ** 2


SQUARE = (0.7, 1.3)


def closed_form(k, name):
    d, s = D, S
    if name == "pathwise":
        return 4 * s**2 / k, (4 * d**2 + 8 * s**2) / k
    if name == "score":
        return (d**4 / s**2 + 14 * d**2 + 15 * s**2) / k, (2 * d**4 / s**2 + 60 * d**2 + 74 * s**2) / k
    return (
        (8 * d**2 + 10 * s**2) / k + (8 * d**2 + 2 * s**2) / (k * (k - 1)),
        (40 * d**2 + 56 * s**2) / k + (8 * d**2 + 8 * s**2) / (k * (k - 1)),
    )


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (pathwise(1), closed_form(1, "pathwise")),
        (pathwise(2), closed_form(2, "pathwise")),
        (score_function(1), closed_form(1, "score")),
        (score_function(2), closed_form(2, "score")),
        (score_function(2, baseline=leave_one_out), closed_form(2, "leave-one-out")),
        (score_function(4, baseline=leave_one_out), closed_form(4, "leave-one-out")),
    ],
    ids=lambda x: getattr(getattr(x, "spec", None), "name", ""),
)
def test_variance_for_the_square_cost_equals_the_closed_form(estimator, expected):
    params = tuple(jnp.asarray(p) for p in SQUARE)
    moments = exact_moments(estimator, square, params)
    np.testing.assert_allclose(moments.variance, expected, rtol=1e-9)
    np.testing.assert_allclose(moments.mean, [2 * D, 2 * S], rtol=1e-9)


def test_best_constant_baseline_is_the_closed_form_and_not_the_mean():
    """d² + 3s² for the mean, d² + 5s² for the deviation; E f = d² + s² leaves 2s⁴ Var more on the table."""
    params = tuple(jnp.asarray(p) for p in SQUARE)

    def variance(b):
        return np.array(exact_moments(score_function(baseline=constant(b)), square, params).variance)

    for i, (best, least) in enumerate(
        [(D**2 + 3 * S**2, 8 * D**2 + 6 * S**2), (D**2 + 5 * S**2, 40 * D**2 + 24 * S**2)]
    ):
        # the variance is a parabola in b: three points give its vertex
        at = [variance(b)[i] for b in (0.0, 5.0, 10.0)]
        vertex = 5 - 2.5 * (at[2] - at[0]) / (at[0] - 2 * at[1] + at[2])
        assert vertex == pytest.approx(best, rel=1e-9)
        assert variance(best)[i] == pytest.approx(least, rel=1e-9)
    np.testing.assert_allclose(variance(D**2 + S**2), [8 * D**2 + 10 * S**2, 40 * D**2 + 56 * S**2], rtol=1e-9)


@pytest.mark.parametrize("t", [0.45, 0.499])
@pytest.mark.parametrize("logit", [-3.0, 0.3, 8.0])
def test_bernoulli_leave_one_out_variance_equals_the_closed_form(t, logit):
    p = special.expit(logit)
    slope = p * special.expit(-logit) * (1 - 2 * t)
    moments = exact_moments(
        score_function(2, baseline=leave_one_out), lambda x: (Bernoulli(x), lambda b: (b - t) ** 2), jnp.asarray(logit)
    )
    assert float(moments.mean) == pytest.approx(slope, rel=1e-9)
    assert float(moments.covariance[0, 0]) == pytest.approx(slope * (1 - 2 * t) / 2 - slope**2, rel=1e-9)


def test_leave_one_out_has_no_variance_for_a_constant_and_none_at_the_posterior():
    params = (jnp.asarray(0.7), jnp.asarray(1.3))
    flat = exact_moments(
        score_function(3, baseline=leave_one_out), lambda p: (Normal(*p), lambda z: 0 * z + 5.0), params
    )
    np.testing.assert_array_equal(np.array(flat.covariance), 0)

    def at_posterior(params):
        q = Normal(*params)
        # z ~ N(0, 1), x = 1.2 given z ~ N(z, 1/4): posterior N(0.96, 0.2)
        return (
            q,
            lambda z: (
                Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.5).log_prob(jnp.asarray(1.2)) - stop_gradient(q).log_prob(z)
            ),
        )

    optimum = (jnp.asarray(0.96), jnp.asarray(math.sqrt(0.2)))
    moments = exact_moments(score_function(2, baseline=leave_one_out), at_posterior, optimum, rtol=math.inf)
    assert float(np.max(np.abs(moments.covariance))) < 1e-20
    assert float(moments.value) == pytest.approx(stats.norm(0, math.sqrt(1.25)).logpdf(1.2), rel=1e-12)


@pytest.mark.parametrize("baseline", [no_baseline, constant(0.3), leave_one_out], ids=["none", "constant", "loo"])
def test_score_function_surrogate_has_the_right_second_derivatives(baseline):
    """The mean of jax.hessian over all outcomes, the draws held fixed, against differences of the enumerated ELBO."""
    case = discrete_elbo(numpy_mean, 1)
    estimator = score_function(2, baseline=baseline)
    params = jnp.asarray(case.params)
    q, _ = case.problem(params)
    nodes = estimator.noise(q).nodes(8)

    def surrogate(params, noise):
        q, f = case.problem(params)
        return estimator.surrogate((), noise, f, q)

    mean = np.tensordot(nodes.weights, jax.jit(jax.vmap(jax.hessian(surrogate), (None, 0)))(params, nodes.points), 1)
    step = 1e-3
    shifts = np.eye(2) * step
    rows = [
        (differences(case.objective, case.params + e) - differences(case.objective, case.params - e)) / (2 * step)
        for e in shifts
    ]
    np.testing.assert_allclose(mean, rows, atol=1e-6)
    assert estimator.spec.derivative_order is None


@pytest.mark.parametrize("jump", [0.0, 0.9])
def test_score_function_is_unbiased_through_a_step_where_pathwise_is_not(jump):
    """∇P(z > c) = (pdf, pdf ξ): the score finds it; along the sample the derivative is zero everywhere."""

    def step(params):
        return Normal(*params), lambda z: jnp.where(z > jump, 1.0, 0.0)

    params = tuple(jnp.asarray(p) for p in SQUARE)
    standard = (jump - 0.7) / 1.3
    truth = np.array([1, standard]) * stats.norm.pdf(standard) / 1.3
    threshold = stats.norm.isf(FALSE_ALARM / 4 / 2)
    for baseline, samples in ((no_baseline, 1), (leave_one_out, 2)):
        result = replicate(
            jax.random.key(11), score_function(samples, baseline=baseline), step, params, replications=100_000
        )
        for mean, error, expected in zip(result.mean, result.standard_error, truth, strict=True):
            assert abs(float(mean) - expected) < threshold * float(error)
    with pytest.raises(NotAvailable, match=r"pathwise\(1\).*f jumps.*use score_function"):
        exact_moments(pathwise(), step, params)


# The museum: wrong gradients that are in circulation, each as a surrogate that the check must refuse.


def mutant(surrogate, samples):
    honest = score_function(samples)
    return honest._replace(surrogate=surrogate)


def with_baseline(baseline):
    def surrogate(state, z, f, q):
        values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
        weight = stop_gradient(values - baseline(values))
        return jnp.mean(values + weight * (log_q - stop_gradient(log_q)))

    return surrogate


@pytest.mark.parametrize("samples", [2, 4])
def test_baseline_that_contains_its_own_sample_shrinks_the_score_by_exactly_one_over_k(samples):
    params, logits = jnp.asarray(0.3), 0.3
    problem = lambda x: (Bernoulli(x), lambda b: (b - 0.45) ** 2)  # noqa: E731
    slope = special.expit(logits) * special.expit(-logits) * 0.1
    own = mutant(with_baseline(lambda values: jnp.full_like(values, values.mean())), samples)
    corrected = mutant(with_baseline(lambda values: (values.sum() - values) / (samples - 1)), samples)
    assert float(exact_moments(own, problem, params).mean) == pytest.approx(slope * (1 - 1 / samples), rel=1e-12)
    assert float(exact_moments(corrected, problem, params).mean) == pytest.approx(slope, rel=1e-12)


def test_population_baseline_without_its_correction_halves_the_gradient_of_two_and_kills_that_of_one():
    case = SMOOTH["normal"]
    population = with_baseline(lambda values: jnp.full_like(values, values.mean()))
    assert bias(mutant(population, 2), case) == pytest.approx(0.5, rel=1e-6)
    assert bias(mutant(population, 1), case) == pytest.approx(1.0, rel=1e-6)


def missing_inverse_scale(state, z, f, q):
    values = jax.vmap(f)(z)
    score = stop_gradient((z - q.loc) / q.scale)  # the score of loc is this over the scale once more
    return jnp.mean(values + stop_gradient(values) * score * (q.loc - stop_gradient(q.loc)))


def flipped_sign(state, z, f, q):
    values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
    return jnp.mean(values - stop_gradient(values) * (log_q - stop_gradient(log_q)))


def no_score(state, z, f, q):
    return jnp.mean(jax.vmap(f)(z))


def no_path_through_log_q(state, noise, f, q):
    return jnp.mean(jax.vmap(lambda xi: f(stop_gradient(q.transport(xi))))(noise))


def softmax_of_losses(state, z, f, q):
    """IWAE weights from positive losses: the worst draw gets the largest share."""
    values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
    shares = stop_gradient(jax.nn.softmax(-values))
    signal = stop_gradient(bounds.iwae(values)) * jnp.sum(log_q - stop_gradient(log_q))
    return jnp.sum(shares * values) + signal


def only_the_law(state, z, f, q):
    """The model's parameters are cut off: the score alone."""
    values, log_q = stop_gradient(jax.vmap(f)(z)), jax.vmap(q.log_prob)(z)
    return jnp.mean(values * jnp.exp(log_q - stop_gradient(log_q)))


MUSEUM = {
    "sign flipped": (flipped_sign, 1, lambda: SMOOTH["normal"]),
    "1/sigma missing": (missing_inverse_scale, 1, lambda: SMOOTH["normal"]),
    "score dropped for a discrete latent": (no_score, 1, lambda: discrete_elbo(numpy_mean, 1)),
    "softmax of positive losses": (softmax_of_losses, 2, lambda: discrete_elbo(numpy_iwae, 2)),
    "model cut off": (only_the_law, 1, lambda: discrete_elbo(numpy_mean, 1)),
}


@pytest.mark.parametrize("name", MUSEUM)
def test_check_refuses_a_wrong_gradient_of_the_museum(name):
    surrogate, samples, case = MUSEUM[name]
    assert bias(mutant(surrogate, samples), case()) > 1e-2


def test_check_refuses_a_dropped_path():
    wrong = pathwise()._replace(surrogate=no_path_through_log_q)
    assert bias(wrong, normal_elbo(numpy_mean, 1)) > 1e-2


# What an estimator refuses, and what it promises.


@pytest.mark.parametrize(
    "law",
    [
        lambda: Bernoulli(jnp.asarray(0.3)),
        lambda: Categorical(jnp.zeros(3)),
        lambda: Poisson(jnp.asarray(2.0)),
        lambda: Mixture(jnp.zeros(2), Gamma(jnp.ones(2), jnp.ones(2))),
        lambda: Copies(Bernoulli(jnp.asarray(0.3)), 2),
    ],
)
def test_pathwise_refuses_what_has_no_reparameterisation_and_names_the_way_out(law):
    with pytest.raises(NotAvailable, match=r"pathwise\(1\) needs a law that is reparameterised.*use score_function"):
        value_and_grad(jax.random.key(0), pathwise(), lambda q: (q, jnp.sum), law())


def test_score_function_refuses_a_support_that_moves_and_names_the_way_out():
    """The gradient of E z under U(0, high) is 1/2; the score alone says -1/2, since it misses the boundary."""
    with pytest.raises(NotAvailable, match=r"score_function needs a law that is fixed_support.*use pathwise"):
        value_and_grad(jax.random.key(0), score_function(), lambda q: (q, jnp.sum), Uniform(0.0, 1.0))
    moments = exact_moments(pathwise(), lambda q: (q, jnp.sum), Uniform(0.0, 1.0))
    assert float(moments.mean.high) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("estimator", "q"), [(score_function(), Uniform(0.0, 1.0)), (pathwise(), Bernoulli(jnp.asarray(0.3)))]
)
def test_surrogate_at_supplied_noise_refuses_what_noise_refuses(estimator, q):
    with pytest.raises(NotAvailable, match=r"needs a law that is .*; use "):
        estimator.surrogate((), jnp.zeros(1), jnp.sum, q)


@pytest.mark.slow
def test_second_derivatives_along_a_gamma_draw_are_forward_over_reverse_only():
    """E z² = a (a + 1) under Gamma(a, 1), whose second derivative is 2."""
    a, estimator = jnp.asarray(2.3), pathwise()

    def surrogate(a, noise):
        return estimator.surrogate((), noise, jnp.square, Gamma(a, 1.0))

    for second in (jax.hessian(surrogate), jax.jacfwd(jax.grad(surrogate))):
        mean = expectation(estimator.noise(Gamma(a, 1.0)), lambda noise, second=second: second(a, noise), rtol=1e-6)
        assert float(mean.value) == pytest.approx(2, rel=1e-5)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(jax.grad(surrogate))(a, jnp.full(1, 0.3))


own_mean = Baseline("own mean", lambda values: jnp.full_like(values, values.mean()), independent=False)


def test_baseline_that_sees_its_own_sample_is_biased_and_its_spec_says_so():
    case = discrete_elbo(numpy_mean, 1)
    for baseline in (no_baseline, constant(0.3), leave_one_out, own_mean):
        estimator = score_function(3, baseline=baseline)
        assert estimator.spec.unbiased_variational == unbiased(estimator, case) == (baseline is not own_mean)
        assert estimator.spec.unbiased_value
        assert estimator.spec.unbiased_model


@pytest.mark.parametrize("bare", [jnp.zeros_like, functools.partial(leave_one_out.function)])
def test_bare_callable_does_not_say_what_it_sees_and_is_refused_as_a_baseline(bare):
    with pytest.raises(TypeError, match=r"wrap it in Baseline\(name, function, independent=False\)"):
        inspect.unwrap(score_function)(1, baseline=bare)  # as outside of the tests, which check types at every call


def test_names_tell_baselines_and_bounds_apart():
    assert pathwise(5).spec.name == pathwise(5, bound=bounds.renyi(1.0)).spec.name == "pathwise(5)"
    named = (bounds.iwae, bounds.renyi(0.5), bounds.cubo(2.0), bounds.tvo([0, 0.1, 0.5]), bounds.tvo([0]))
    assert [pathwise(5, bound=bound).spec.name for bound in named] == [
        "pathwise(5, iwae)",
        "pathwise(5, renyi(0.5))",
        "pathwise(5, cubo(2))",
        "pathwise(5, tvo(3 points))",
        "pathwise(5, tvo(1 point))",
    ]
    assert score_function(2, baseline=own_mean).spec.name == "score_function(2, own mean)"
    assert score_function(2, baseline=leave_one_out).spec.name == "score_function(2, leave_one_out)"
    both = score_function(2, baseline=constant(-0.25), bound=bounds.iwae)
    assert both.spec.name == "score_function(2, constant(-0.25), iwae)"


def test_leave_one_out_refuses_one_sample_and_other_bounds():
    with pytest.raises(ValueError, match="leave_one_out needs samples >= 2"):
        score_function(1, baseline=leave_one_out)
    with pytest.raises(ValueError, match="use no_baseline or constant"):
        score_function(2, baseline=leave_one_out, bound=bounds.iwae)
    for factory in (pathwise, score_function):
        with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
            factory(0)


EVERY = [
    pathwise(1),
    pathwise(3, bound=bounds.iwae),
    score_function(1),
    score_function(2, baseline=constant(1.0)),
    score_function(3, baseline=leave_one_out),
    score_function(2, bound=bounds.renyi(0.5)),
]


@pytest.mark.parametrize("estimator", EVERY, ids=lambda e: e.spec.name)
def test_spec_counts_the_calls_of_the_objective(estimator):
    """A host callback counts every event that f is really called with."""
    calls = []

    def problem(params):
        def f(z):
            jax.debug.callback(lambda _: calls.append(1), z)
            return (z + 0.4) ** 2

        return Normal(*params), f

    q, f = problem(tuple(jnp.asarray(p) for p in SQUARE))
    estimator.surrogate((), estimator.noise(q).sample(jax.random.key(0)), f, q)
    jax.effects_barrier()
    assert len(calls) == estimator.spec.evaluations


@pytest.mark.parametrize("estimator", EVERY, ids=lambda e: e.spec.name)
def test_spec_needs_are_capabilities_and_the_state_is_untouched(estimator):
    q = Normal(0.7, 1.3)
    assert all(getattr(q.capabilities, need) for need in estimator.spec.needs)
    assert estimator.init(q) == ()
    assert estimator.update((), None, None, q) == ()


def test_value_and_grad_is_the_estimate_at_the_drawn_noise():
    params = tuple(jnp.asarray(p) for p in SQUARE)
    estimator = score_function(2, baseline=leave_one_out)
    q, _ = square(params)
    noise = estimator.noise(q).sample(jax.random.key(4))
    value, gradient = value_and_grad(jax.random.key(4), estimator, square, params)
    again, same = value_and_grad_at(noise, estimator, square, params, ())
    assert value == again == jnp.mean((noise + 0.4) ** 2)
    assert gradient == same
    score = (noise - 0.7) / 1.3**2
    costs = (noise + 0.4) ** 2
    # with two samples each is the other's baseline
    assert float(gradient[0]) == pytest.approx(float((costs[0] - costs[1]) * (score[0] - score[1]) / 2), rel=1e-12)


@pytest.mark.slow
def test_heavy_tailed_law_is_estimated_by_both_routes_alike():
    """Student's law has no certified rule in its score; replication of both routes must agree with E z² in loc."""
    params = (jnp.asarray(9.0), jnp.asarray(0.5), jnp.asarray(1.2))
    problem = lambda p: (StudentT(*p), lambda z: jnp.tanh(z))  # noqa: E731
    path = replicate(jax.random.key(0), pathwise(), problem, params, replications=50_000)
    score = replicate(
        jax.random.key(1), score_function(2, baseline=leave_one_out), problem, params, replications=50_000
    )
    threshold = stats.norm.isf(FALSE_ALARM / 3 / 2)
    for a, b, error_a, error_b in zip(path.mean, score.mean, path.standard_error, score.standard_error, strict=True):
        assert abs(float(a - b)) < threshold * math.hypot(float(error_a), float(error_b))


def test_exact_gradient_agrees_with_the_mean_of_every_estimator_of_the_mean():
    params = tuple(jnp.asarray(p) for p in SQUARE)
    truth = exact_gradient(square, params).value
    np.testing.assert_allclose(truth, [2 * D, 2 * S], rtol=1e-12)
