"""The pathwise family: exact means against NumPy's own quadrature, closed-form variances, refusals of jumps.

Gradients of bounds are judged by differences of an objective that NumPy integrates; the slopes of implicit mixtures
by SciPy's root of the distribution function.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy import special as jsp
from oracles import EVERY_LAW, FALSE_ALARM, holds_only_for
from scipy import integrate, optimize, special, stats

from vbjax import bounds
from vbjax.bounds import LogWeight
from vbjax.distributions import (
    Beta,
    Copies,
    Gamma,
    Joint,
    Laplace,
    Logistic,
    LogNormal,
    Mixture,
    MultivariateNormal,
    Normal,
    Poisson,
    ScrambledSobol,
    StudentT,
    Uniform,
)
from vbjax.distributions.sobol import _inside, _sobol, _uniforms
from vbjax.estimators import (
    antithetic,
    continuous,
    doubly_reparameterised,
    generalised_doubly_reparameterised,
    pathwise,
    quasi_monte_carlo,
    require_continuous,
    sticking_the_landing,
    value_and_grad,
)
from vbjax.estimators.doubly_reparameterised import _bound_slopes, _inner, _weighted, _with_gradient, _with_slopes
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import exact_gradient, exact_moments, expectation
from vbjax.moments import replicate
from vbjax.types import NotAvailable, stop_gradient


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


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


# Log-weights of x = 1.2 under z ~ N(prior_loc, e^(2 prior_log)), x | z ~ N(gain z, 1/4), q = N(loc, e^(2 log_scale)).
PARAMS = (0.8, -0.5, 0.1, 0.2, 0.9)
X, NOISE = 1.2, 0.5


def normal_problem(params):
    loc, log_scale, prior_loc, prior_log, gain = params
    q = Normal(loc, jnp.exp(log_scale))
    prior = Normal(prior_loc, jnp.exp(prior_log))
    return q, LogWeight(lambda z: Normal(gain * z, NOISE).log_prob(jnp.asarray(X)), prior, q)


def numpy_log_weight(z, loc, log_scale, prior_loc, prior_log, gain):
    likelihood = stats.norm(gain * z, NOISE).logpdf(X)
    return (
        likelihood + stats.norm(prior_loc, np.exp(prior_log)).logpdf(z) - stats.norm(loc, np.exp(log_scale)).logpdf(z)
    )


def grid(samples):
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    axes = np.meshgrid(*[points] * samples, indexing="ij"), np.meshgrid(*[weights / weights.sum()] * samples)
    return np.stack(axes[0], -1), np.prod(np.stack(axes[1], -1), -1)


def normal_objective(bound, samples, *params):
    noise, mass = grid(samples)
    return float((mass * bound(numpy_log_weight(params[0] + np.exp(params[1]) * noise, *params))).sum())


def numpy_iwae(log_w):
    return special.logsumexp(log_w, axis=-1) - math.log(log_w.shape[-1])


NUMPY_BOUNDS = {
    "mean": (bounds.mean, lambda log_w: log_w.mean(-1)),
    "iwae": (bounds.iwae, numpy_iwae),
    "renyi": (bounds.renyi(0.5), lambda log_w: 2 * numpy_iwae(0.5 * log_w)),
    "cubo": (bounds.cubo(1.5), lambda log_w: numpy_iwae(1.5 * log_w) / 1.5),
}


@functools.cache
def truth(bound, samples):
    return differences(functools.partial(normal_objective, NUMPY_BOUNDS[bound][1], samples), PARAMS)


def as_arrays(params):
    return tuple(jnp.asarray(p) for p in params)


def normal_bias(estimator, bound, samples):
    moments = exact_moments(estimator, normal_problem, as_arrays(PARAMS), rtol=1e-8)
    expected = truth(bound, samples)
    return np.abs(np.array(moments.mean) - expected) / np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("factory", "bound", "samples"),
    [
        (sticking_the_landing, "mean", 2),
        (sticking_the_landing, "iwae", 1),
        (doubly_reparameterised, "mean", 1),
        (doubly_reparameterised, "iwae", 2),
        (doubly_reparameterised, "renyi", 2),
        (generalised_doubly_reparameterised, "iwae", 1),
        (generalised_doubly_reparameterised, "iwae", 2),
        (generalised_doubly_reparameterised, "cubo", 2),
    ],
)
def test_mean_is_the_gradient_of_the_bound_in_law_prior_and_likelihood(factory, bound, samples):
    estimator = factory(samples, bound=NUMPY_BOUNDS[bound][0])
    assert normal_bias(estimator, bound, samples).max() < 1e-8
    assert estimator.spec[1:4] == (True, True, True)


# What goes wrong in a doubly reparameterised gradient, each as a surrogate for the IWAE bound of two draws.


def ingredients(noise, f, q):
    z = jax.vmap(q.transport)(noise)
    values, slopes = _with_slopes(f, z)
    return z, values, slopes, *_bound_slopes(bounds.iwae, values)


def squared_weights_for_the_model(state, noise, f, q):
    """TensorFlow Probability 0.25: the model's parameters get w̃² as well."""
    z, values, slopes, first, second = ingredients(noise, f, q)
    model = jax.vmap(lambda z: f.log_likelihood(z) + f.prior.log_prob(z))(stop_gradient(z))
    return _with_gradient(bounds.iwae(values), _weighted(first - second, model) + _inner(first - second, slopes, z))


def hessian_of_the_wrong_sign(state, noise, f, q):
    z, values, slopes, first, second = ingredients(noise, f, q)
    model = jax.vmap(lambda z: f.log_likelihood(z) + f.prior.log_prob(z))(stop_gradient(z))
    return _with_gradient(bounds.iwae(values), _weighted(first, model) + _inner(first + second, slopes, z))


def prior_without_the_likelihood(state, noise, f, q):
    """GDReG that forgets ∂_z log(q/p) of its prior."""
    z, values, slopes, first, second = ingredients(noise, f, q)
    prior_noise = stop_gradient(jax.vmap(f.prior.inverse_transport)(z))
    path = _inner(first - second, slopes, z) + _inner(second, slopes, jax.vmap(f.prior.transport)(prior_noise))
    return _with_gradient(bounds.iwae(values), _weighted(first, jax.vmap(f.log_likelihood)(stop_gradient(z))) + path)


@pytest.mark.parametrize(
    ("surrogate", "wrong"),
    [
        (squared_weights_for_the_model, slice(2, 5)),
        (hessian_of_the_wrong_sign, slice(0, 2)),
        (prior_without_the_likelihood, slice(2, 4)),
    ],
)
def test_mutants_of_the_doubly_reparameterised_gradient_are_found(surrogate, wrong):
    bias = normal_bias(doubly_reparameterised(2)._replace(surrogate=surrogate), "iwae", 2)
    right = np.ones(len(PARAMS), bool)
    right[wrong] = False
    assert np.all(bias[wrong] > 1e-2)
    assert np.all(bias[right] < 1e-9)


def test_sticking_the_landing_with_a_multi_sample_bound_is_biased_by_the_dropped_score():
    """E Σ w̃_k score_k, by NumPy: the bias that the spec admits, in q alone."""
    estimator = sticking_the_landing(2, bound=bounds.iwae)
    assert estimator.spec[1:4] == (True, False, True)
    noise, mass = grid(2)
    log_w = numpy_log_weight(PARAMS[0] + np.exp(PARAMS[1]) * noise, *PARAMS)
    shares = special.softmax(log_w, axis=-1)
    scores = noise / np.exp(PARAMS[1]), noise**2 - 1
    expected = [(mass * (shares * score).sum(-1)).sum() for score in scores] + [0, 0, 0]
    moments = exact_moments(estimator, normal_problem, as_arrays(PARAMS), rtol=1e-8)
    np.testing.assert_allclose(np.array(moments.mean) - truth("iwae", 2), expected, atol=1e-9)
    assert np.abs(expected[:2]).min() > 0.05


def conjugate(params):
    """q is the posterior of z ~ N(0, 1), x | z ~ N(z, 1): every weight is p(x)."""
    q = Normal(*params)
    return q, LogWeight(lambda z: Normal(z, 1.0).log_prob(jnp.asarray(1.2)), Normal(0.0, 1.0), q)


def test_no_variance_is_left_at_the_posterior():
    params = (jnp.asarray(0.6), jnp.asarray(math.sqrt(0.5)))
    estimators = (
        sticking_the_landing(3),
        doubly_reparameterised(3),
        generalised_doubly_reparameterised(3),
        pathwise(3),
    )
    q, _ = conjugate(params)
    gradients = [
        np.array(value_and_grad_at(e.noise(q).sample(jax.random.key(0)), e, conjugate, params, ())[1])
        for e in estimators
    ]
    holds_only_for(lambda gradient: np.testing.assert_allclose(gradient, 0, atol=1e-14), gradients[0], gradients[3])
    np.testing.assert_allclose(gradients[1:3], 0, atol=1e-14)


def replicated(key, estimator, problem, params, replications):
    """Gradients of independent draws, one row each."""

    @jax.jit
    def gradients(keys):
        return jax.vmap(lambda key: ravel_pytree(value_and_grad(key, estimator, problem, params)[1])[0])(keys)

    return np.asarray(gradients(jax.random.split(key, replications)))


@pytest.mark.slow
def test_doubly_reparameterised_signal_in_q_outgrows_that_of_pathwise():
    """Signal to noise of the encoder's mean: it shrinks like K^-1/2 by the path, and grows like K^1/2 doubly."""

    def ratio(factory, samples):
        estimator = factory(samples, bound=bounds.iwae)
        gradient = replicated(jax.random.key(samples), estimator, normal_problem, as_arrays(PARAMS), 2048)[:, 0]
        return abs(gradient.mean()) / gradient.std()

    assert ratio(doubly_reparameterised, 64) > 2 * ratio(doubly_reparameterised, 4)
    assert ratio(pathwise, 64) < ratio(pathwise, 4)


def pair_problem(params):
    """A vector and a positive coordinate at once, a full covariance in the prior of the vector."""
    loc, log_loc, prior = params
    q = Joint((Normal(loc, jnp.asarray([0.6, 0.8])), LogNormal(log_loc, 0.3)))
    law = Joint((MultivariateNormal(prior, jnp.asarray([[1.1, 0.0], [0.4, 0.9]])), LogNormal(prior[0], 0.7)))
    return q, LogWeight(lambda z: Normal(z[0][0] * z[1], 0.9).log_prob(0.7 + 0.2 * z[0][1]), law, q)


def test_events_that_are_tuples_of_vectors_have_the_same_gradient():
    params = (jnp.asarray([0.3, -0.2]), jnp.asarray(0.1), jnp.asarray([0.2, 0.5]))
    # -log w is a polynomial times exponentials of the noise: a small rule is exact to rounding error
    nodes = pair_problem(params)[0].noise().nodes(20)

    @jax.jit
    def means(params):
        def mean(estimator):
            noise = jax.tree.map(lambda x: x[:, None], nodes.points)
            gradients = jax.vmap(lambda xi: value_and_grad_at(xi, estimator, pair_problem, params, ())[1])(noise)
            return jnp.concatenate([jnp.atleast_1d(nodes.weights @ g) for g in gradients])

        estimators = (
            pathwise(),
            sticking_the_landing(),
            doubly_reparameterised(),
            generalised_doubly_reparameterised(),
        )
        return [mean(e) for e in estimators]

    expected, *others = means(params)
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=1e-9)


def test_sticking_the_landing_is_right_to_the_second_order_for_the_mean():
    """Closed form for N(m, s²) against N(0, 1): ELBO = -(m² + s²)/2 + log s + ..., so the Hessian is diagonal."""

    def problem(params):
        q = Normal(*params)
        return q, LogWeight(lambda z: jnp.zeros(()), Normal(0.0, 1.0), q)

    estimator = sticking_the_landing()
    params = (jnp.asarray(0.4), jnp.asarray(0.7))

    def hessian(noise):
        def surrogate(params):
            q, f = problem(params)
            return estimator.surrogate((), noise, f, q)

        return jax.hessian(surrogate)(params)

    value = expectation(estimator.noise(problem(params)[0]), hessian).value
    np.testing.assert_allclose(value, [[-1, 0], [0, -1 - 1 / 0.49]], atol=1e-9)


# Noise that is not independent.


def test_antithetic_variance_is_the_closed_form_of_the_square_cost():
    """(z - a)² under N(m, s²): a pair leaves nothing of the slope 2(d + s ξ) in m, and 2 s ξ² of that in s."""
    square = lambda p: (Normal(*p), lambda z: (z + 0.4) ** 2)  # noqa: E731
    d, s = 1.1, 1.3
    moments = exact_moments(antithetic(2), square, as_arrays((0.7, s)))
    np.testing.assert_allclose(moments.mean, [2 * d, 2 * s], rtol=1e-12)

    def check(variance):
        np.testing.assert_allclose(variance, [0, 8 * s**2], rtol=1e-10, atol=1e-20)

    independent = exact_moments(pathwise(2), square, as_arrays((0.7, s))).variance
    holds_only_for(check, moments.variance, independent)
    np.testing.assert_allclose(independent, [2 * s**2, 2 * d**2 + 4 * s**2], rtol=1e-10)


def test_antithetic_pairs_move_the_bound_of_several_draws_and_the_spec_says_so():
    estimator = antithetic(2, bound=bounds.iwae)
    assert estimator.spec[1:4] == (False, False, False)
    assert normal_bias(estimator, "iwae", 2).max() > 1e-2
    assert normal_bias(antithetic(2), "mean", 2).max() < 1e-9


@pytest.mark.parametrize("law", [lambda p: Laplace(*p), lambda p: Logistic(*p), lambda p: Uniform(p[0], p[0] + p[1])])
def test_reflected_noise_has_the_law_of_the_noise(law):
    """Third moments of an asymmetric function agree between the noise and its mirror image."""
    noise = law(as_arrays((0.3, 0.8))).noise()
    points, weights, _ = noise.nodes(200)
    mirrored = jax.vmap(noise.reflect)(points)
    skew = lambda x: jnp.exp(0.3 * x) + x**3  # noqa: E731
    assert float(weights @ skew(mirrored)) == pytest.approx(float(weights @ skew(points)), rel=1e-9)
    assert float(weights @ (mirrored * points)) < float(weights @ points) ** 2


@pytest.mark.parametrize(
    ("law", "twin"),
    [
        (lambda: Normal(0.3, 0.8), stats.norm(0.3, 0.8)),
        (lambda: Laplace(0.3, 0.8), stats.laplace(0.3, 0.8)),
        (lambda: Logistic(0.3, 0.8), stats.logistic(0.3, 0.8)),
        (lambda: Uniform(0.3, 1.1), stats.uniform(0.3, 0.8)),
    ],
)
def test_quantiles_and_distribution_functions_are_those_of_scipy(law, twin):
    law, u = law(), np.array([1e-10, 0.01, 0.5, 0.7, 1 - 1e-10])
    x = jax.vmap(law.quantile)(jnp.asarray(u))
    np.testing.assert_allclose(x, twin.ppf(u), rtol=1e-7)
    if law.closed_form_cdf:
        np.testing.assert_allclose(jax.vmap(law.cdf)(x), u, rtol=1e-6)


def test_scrambled_points_fill_every_cell_once_and_are_each_uniform():
    keys = jax.random.split(jax.random.key(0), 2000)
    u = np.asarray(jax.vmap(lambda key: _uniforms(key, _sobol(2, 4), jnp.float64))(keys))
    for a, b in ((16, 1), (8, 2), (4, 4), (2, 8), (1, 16)):
        cells = (u[..., 0] * a).astype(int) * b + (u[..., 1] * b).astype(int)
        assert np.all(np.sort(cells, -1) == np.arange(16))
    threshold = FALSE_ALARM / 32
    for coordinate in u.reshape(2000, 32).T:
        assert stats.kstest(coordinate, "uniform").pvalue > threshold
    unscrambled = np.asarray(_sobol(2, 4)) / 2.0**32
    assert unscrambled.min() == 0  # the control: whose first point is always the corner


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_uniforms_stay_inside_the_open_interval_for_extreme_digits(dtype):
    digits = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    low, high = np.asarray(_inside(digits, digits, dtype))
    assert 0 < low < 2.0**-20
    assert 1 - 2.0**-20 < high < 1
    assert low == dtype(1) - high
    assert np.isfinite(jsp.ndtri(jnp.asarray([low, high]))).all()


@pytest.mark.slow
def test_quasi_monte_carlo_is_unbiased_and_its_variance_falls_like_the_third_power():
    """Uniform law and smooth cost: slope -3 of the variance in K, against -1 of independent draws."""
    problem = lambda p: (Uniform(*p), lambda z: jnp.sin(z[0]) * jnp.exp(0.5 * z[1]))  # noqa: E731
    params = (jnp.asarray([-0.3, 0.1]), jnp.asarray([0.8, 1.1]))
    exact = np.concatenate(exact_gradient(problem, params).value)

    few, many, plain, plenty = (
        replicated(jax.random.key(7), factory(samples), problem, params, 2048)
        for factory, samples in itertools.product((quasi_monte_carlo, pathwise), (4, 32))
    )

    def z_scores(gradients):
        return (gradients.mean(0) - exact) / (gradients.std(0) / math.sqrt(len(gradients)))

    def slope(few, many):
        return np.log(many.var(0) / few.var(0)) / math.log(8)

    threshold = stats.norm.isf(FALSE_ALARM / 16)
    holds_only_for(lambda g: np.testing.assert_array_less(np.abs(z_scores(g)), threshold), many, 1.01 * many)
    np.testing.assert_array_less(np.abs(z_scores(few)), threshold)
    # the sampling error of a slope is below 0.05
    assert slope(few, many).max() < -2.4
    np.testing.assert_allclose(slope(plain, plenty), -1, atol=0.25)


@pytest.mark.slow
def test_quasi_monte_carlo_of_normal_log_weights_is_unbiased_with_variance_near_the_second_power():
    exact = truth("mean", 1)
    results = [
        replicate(jax.random.key(3), quasi_monte_carlo(k), normal_problem, as_arrays(PARAMS), replications=25_600)
        for k in (4, 64)
    ]
    for result in results:
        z = (np.array(result.mean) - exact) / np.array(result.standard_error)
        assert np.abs(z).max() < stats.norm.isf(FALSE_ALARM / 20)
    slope = np.log(np.array(results[1].variance) / np.array(results[0].variance)) / math.log(16)
    assert slope.max() < -1.7


# Mixtures, whose sample moves so that its conditional distribution functions stand still.

LOGITS, LOC, SCALE = np.array([0.3, -0.2, 0.5]), np.array([-1.0, 1.0, 0.2]), np.array([0.5, 1.2, 0.3])
TWINS = {Normal: stats.norm, Laplace: stats.laplace, Logistic: stats.logistic}


@pytest.mark.parametrize("family", TWINS)
def test_implicit_mixture_slope_is_that_of_its_quantile(family):
    def cdf(z, flat):
        logits, loc, scale = flat.reshape(3, 3)
        return special.softmax(logits) @ TWINS[family](loc, scale).cdf(z)

    flat = np.concatenate([LOGITS, LOC, SCALE])
    z = np.array([-2.5, -0.9, 0.25, 2.0])
    step = 1e-5 * np.eye(9)

    def quantile(u, flat):
        return optimize.brentq(lambda z: cdf(z, flat) - u, -60, 60, xtol=1e-14, rtol=1e-14)

    expected = [
        [(quantile(cdf(z_i, flat), flat + h) - quantile(cdf(z_i, flat), flat - h)) / 2e-5 for h in step] for z_i in z
    ]

    @jax.jit
    @jax.vmap
    def slope(z):
        q = Mixture(jnp.asarray(LOGITS), family(jnp.asarray(LOC), jnp.asarray(SCALE)))
        gradient = jax.grad(lambda q: q.transport(z))(q)
        return jnp.concatenate([gradient.logits, gradient.components.loc, gradient.components.scale])

    ours = np.asarray(slope(z))
    no_weights = ours * np.repeat([0, 1, 1], 3)  # as if the component were drawn first and then held
    holds_only_for(lambda value: np.testing.assert_allclose(value, expected, atol=2e-8), ours, no_weights, -ours)


def log_weight_of(q, z):
    return -0.5 * (z - 0.5) ** 2 - 0.1 * z**4 - q


def mixture_problem(params):
    logits, loc, scale = params
    q = Mixture(logits, Normal(loc, scale))
    return q, lambda z: log_weight_of(q.log_prob(z), z)


def mixture_objective(bound, samples, *flat):
    """By the trapezoid rule on a line, or a plane, that holds the mass."""
    logits, loc, scale = np.reshape(flat, (3, 2))
    z, step = np.linspace(-9, 9, 600, retstep=True)
    log_q = special.logsumexp(np.log(special.softmax(logits)) + stats.norm(loc, scale).logpdf(z[:, None]), axis=1)
    log_w, mass = log_weight_of(log_q, z), step * np.exp(log_q)
    table = np.stack(np.meshgrid(*[log_w] * samples), -1)
    return float((np.prod(np.stack(np.meshgrid(*[mass] * samples), -1), -1) * bound(table)).sum())


MIXTURE = (0.3, -0.2, -0.3, 0.4, 0.9, 1.0)


@pytest.mark.parametrize(
    ("estimator", "bound", "samples"),
    [
        (pathwise(), "mean", 1),
        (pathwise(2, bound=bounds.iwae), "iwae", 2),
        pytest.param(sticking_the_landing(), "mean", 1, marks=pytest.mark.slow),
    ],
)
def test_mixture_is_reparameterised_in_its_weights_centres_and_scales(estimator, bound, samples):
    params = tuple(jnp.asarray(MIXTURE).reshape(3, 2))
    nodes = estimator.noise(mixture_problem(params)[0]).nodes(64 if samples > 1 else 256)

    @jax.jit
    @jax.vmap
    def gradients(noise):
        return value_and_grad_at(noise, estimator, mixture_problem, params, ())[1]

    mean = [nodes.weights @ gradient for gradient in gradients(nodes.points)]
    expected = differences(functools.partial(mixture_objective, NUMPY_BOUNDS[bound][1], samples), MIXTURE)
    holds_only_for(
        lambda mean: np.testing.assert_allclose(np.concatenate(mean), expected, atol=2e-5),
        mean,
        [0 * mean[0], *mean[1:]],
    )


def test_mixture_over_the_plane_moves_coordinate_by_coordinate():
    """E z_0 z_1 = Σ w_k a_k b_k, whose derivatives are known; a conditional that ignores z_0 would not know them."""
    logits, loc = jnp.asarray([0.3, -0.2]), jnp.asarray([[-0.5, 0.4], [0.7, -0.3]])
    scale = jnp.asarray([[0.9, 0.8], [1.0, 1.1]])
    q = Mixture(logits, Normal(loc, scale))
    points, weights, _ = q.noise().nodes(48)

    @jax.jit
    def gradients(q):
        return jax.grad(lambda q: weights @ jax.vmap(lambda z: jnp.prod(q.transport(z)))(points))(q)

    share, product = np.asarray(jax.nn.softmax(logits)), np.prod(loc, 1)

    def check(gradient):
        np.testing.assert_allclose(gradient.logits, share * (product - share @ product), atol=1e-7)
        np.testing.assert_allclose(gradient.components.loc, share[:, None] * loc[:, ::-1], atol=1e-7)
        np.testing.assert_allclose(gradient.components.scale, 0, atol=1e-7)

    ours = gradients(q)
    holds_only_for(check, ours, jax.tree.map(lambda g: g[::-1], ours))


def test_component_without_weight_takes_no_gradient_and_makes_no_nan():
    q = Mixture(jnp.asarray([0.3, -jnp.inf]), Normal(jnp.asarray([-1.0, 1.0]), jnp.asarray([0.5, 1.2])))
    gradient = jax.grad(lambda q: q.transport(jnp.asarray(0.3)))(q)
    np.testing.assert_allclose(gradient.logits, 0, atol=1e-12)
    np.testing.assert_allclose(gradient.components.loc, [1, 0], atol=1e-12)
    np.testing.assert_allclose(gradient.components.scale, [2.6, 0], atol=1e-12)


@pytest.mark.parametrize(
    "components",
    [
        lambda: Gamma(jnp.ones(2), jnp.ones(2)),
        lambda: Uniform(jnp.zeros(2), jnp.ones(2)),
        lambda: Poisson(jnp.ones(2)),
        lambda: MultivariateNormal(jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
    ],
)
def test_mixture_of_other_components_is_not_reparameterised(components):
    q = Mixture(jnp.zeros(2), components())
    assert not q.capabilities.reparameterised
    with pytest.raises(NotAvailable, match="no reparameterisation"):
        q.noise()


GAMMA = (2.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [sticking_the_landing(), doubly_reparameterised()])
def test_gamma_log_weight_has_the_gradient_of_scipys_integral(estimator):
    def problem(params):
        q = Gamma(*params)
        return q, LogWeight(lambda z: Normal(z, 0.8).log_prob(jnp.asarray(1.4)), Gamma(1.5, 1.0), q)

    def objective(a, rate):
        q, prior = stats.gamma(a, scale=1 / rate), stats.gamma(1.5)

        def integrand(z):
            return q.pdf(z) * (stats.norm(z, 0.8).logpdf(1.4) + prior.logpdf(z) - q.logpdf(z))

        edges = (0, 0.5, 2, q.isf(1e-17))
        return sum(integrate.quad(integrand, *ab, epsabs=1e-12, epsrel=1e-12)[0] for ab in itertools.pairwise(edges))

    expected = differences(objective, GAMMA)
    moments = exact_moments(estimator, problem, as_arrays(GAMMA))
    holds_only_for(
        lambda mean: np.testing.assert_allclose(mean, expected, rtol=1e-7),
        np.array(moments.mean),
        np.array(moments.mean) * [1.001, 1],
    )


# Jumps: what is refused, and what must not be.

MATRIX = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 3.0]])
TABLE = np.array([0.0, 1.0, 4.0, 9.0])
JUMPS = {
    "round": jnp.round,
    "floor": lambda z: jnp.tanh(jnp.floor(z)),
    "ceil under jit": jax.jit(jnp.ceil),
    "round under vmap": jax.vmap(jnp.round),
    "round under remat": jax.checkpoint(jnp.round),
    "rounding error": lambda z: z - jnp.round(z),
    "times a rounded one": lambda z: z * jnp.round(z),
    "sawtooth": lambda z: jnp.mod(z, 1.0),
    "sign": lambda z: 100 + jnp.sign(z - 0.7),
    "heaviside": lambda z: jnp.heaviside(z, 0.5),
    "comparison": lambda z: (z > 0).astype(z.dtype),
    "share of comparisons": lambda z: jnp.mean(z > 0),
    "rounded, in a function with a derivative of its own": lambda z: jnp.logaddexp(jnp.floor(z), z),
    "rounded before what is declared": lambda z: continuous(jnp.tanh)(jnp.floor(z)),
    "step on a parabola": lambda z: z**2 + jnp.where(z > 0, 1.0, 0.0),
    "argmax": lambda z: jnp.argmax(z).astype(z.dtype),
    "accuracy": lambda z: (jnp.argmin(z) == 1).astype(z.dtype),
    "one-hot": lambda z: jax.nn.one_hot(jnp.argmax(z), 3, dtype=z.dtype) @ TABLE[:3],
    "rank": lambda z: jnp.argsort(z).astype(z.dtype) * TABLE[:3],
    "index of the top": lambda z: jax.lax.top_k(z, 2)[1].astype(z.dtype),
    "integer": lambda z: z.astype(int).astype(z.dtype),
    "table": lambda z: jnp.asarray(TABLE)[z.astype(int)],
    "bins": lambda z: jnp.digitize(z, jnp.asarray(TABLE)).astype(z.dtype),
    "branch of constants": lambda z: jax.lax.cond(z[0] > 0, lambda: 1.0, lambda: 0.0),
    "count in a scan": lambda z: jax.lax.scan(lambda n, x: (n + (x > 0).astype(x.dtype), None), 0.0, z)[0],
    "sum of rounded ones in a loop": lambda z: jax.lax.fori_loop(0, 3, lambda i, c: c + jnp.round(z[i]), 0.0),
    "steps until": lambda z: jax.lax.while_loop(lambda n: n[0] < z[0], lambda n: (n[0] + 1, n[1] + 1), (0.0, 0.0))[1],
    "Bernoulli draw": lambda z: jax.random.bernoulli(jax.random.key(0), jax.nn.sigmoid(z)).astype(z.dtype),
}
SMOOTH = {
    "relu by where": lambda z: jnp.where(z > 0, z, 0.0),
    "relu by mask": lambda z: z * (z > 0).astype(z.dtype),
    "two masks": lambda z: jnp.where(z > 0, 1.0, 0.0) * z + (1 - (z > 0).astype(z.dtype)) * z**2,
    "support": lambda z: jnp.where((z > 0).all(), -z.sum(), -jnp.inf),
    "uniform's support": lambda z: jnp.where(z > 0, 1.0, -jnp.inf),
    "clip, abs, max": lambda z: jnp.clip(z, 0.0, 1.0) + jnp.abs(z) + jnp.max(z) + jnp.maximum(z, 0.3),
    "signed root": lambda z: jnp.sign(z) * jnp.sqrt(jnp.abs(z)),
    "logsumexp": lambda z: jsp.logsumexp(z, b=jnp.ones(3)) + jnp.logaddexp(z, 1.0),
    "cholesky": lambda z: jnp.linalg.cholesky(jnp.asarray(MATRIX) * jnp.exp(z[0])),
    "triangular solve": lambda z: jax.scipy.linalg.solve_triangular(jnp.asarray(MATRIX), z, lower=True),
    "solve, inverse, determinant": lambda z: (
        jnp.linalg.solve(MATRIX + jnp.diag(z), jnp.ones(3)).sum()
        + jnp.linalg.inv(MATRIX + jnp.diag(z)).sum()
        + jnp.linalg.slogdet(MATRIX + jnp.diag(z))[1]
    ),
    "singular values, eigenvalues": lambda z: (
        jnp.linalg.svd(MATRIX + jnp.diag(z), compute_uv=False) + jnp.linalg.eigvalsh(MATRIX + jnp.diag(z))
    ),
    "matrix exponential": lambda z: jax.scipy.linalg.expm(jnp.diag(z)),
    "order statistics": lambda z: jnp.sort(z)[0] + jnp.median(z) + jnp.quantile(z, 0.3) + jax.lax.top_k(z, 2)[0].sum(),
    "largest by its index": lambda z: z[jnp.argmax(z)] + z[jnp.argsort(z)].sum(),
    "largest by one-hot": lambda z: jax.nn.one_hot(jnp.argmax(z), 3, dtype=z.dtype) @ z,
    "interpolation": lambda z: jnp.interp(z, jnp.arange(4.0), jnp.asarray(TABLE)),
    "straight through": lambda z: z + jax.lax.stop_gradient(jnp.round(z) - z),
    "custom rule": lambda z: straight_through_round(z),
    "declared": continuous(lambda z: (z - jnp.floor(z)) * (1 - (z - jnp.floor(z)))),
    "scan": lambda z: jax.lax.scan(lambda c, x: (0.5 * c + x, c), jnp.zeros(()), z)[0],
    "Newton": lambda z: jax.lax.while_loop(lambda c: jnp.abs(c * c - z[0]) > 1e-6, lambda c: (c + z[0] / c) / 2, z[0]),
    "branches": lambda z: jax.lax.cond(z[0] > 0, lambda z: z.sum(), lambda z: 0 * z.sum(), z),
    "fixed branch": lambda z: (
        jax.lax.switch(1, [jnp.sum, jnp.round], z) if False else jax.lax.cond(True, *[jnp.sum] * 2, z)
    ),
    "slope of a kink": lambda z: jax.grad(lambda z: jnp.sum(jax.nn.relu(z) ** 2))(z),
    "mask of its own": lambda z: z * jax.random.bernoulli(jax.random.key(0), 0.5, (3,)).astype(z.dtype),
    "special": lambda z: jsp.gammaln(z) + jsp.betainc(z, z, 0.3) + jsp.ndtri(z / 2),
    "Poisson likelihood": lambda z: Poisson(jnp.exp(z)).log_prob(jnp.asarray([0.0, 2.0, 3.0])),
    "constant": lambda z: jnp.asarray(3.0),
}


@jax.custom_jvp
def straight_through_round(z):
    return jnp.round(z)


straight_through_round.defjvps(lambda z_dot, out, z: z_dot)


@pytest.mark.parametrize("name", JUMPS)
def test_jump_is_refused(name):
    z = jnp.asarray([0.3, 0.7, 1.2])
    with pytest.raises(NotAvailable, match=r"this estimator differentiates.*f jumps.*use score_function"):
        require_continuous("this estimator", lambda z: jnp.sum(JUMPS[name](z)), z)


@pytest.mark.parametrize("name", SMOOTH)
def test_continuous_function_is_accepted(name):
    require_continuous("this estimator", lambda z: jnp.sum(SMOOTH[name](z)), jnp.asarray([0.3, 0.7, 1.2]))


def test_activations_and_densities_are_accepted():
    z = jnp.asarray([0.3, 0.7])
    activations = (
        "relu relu6 sigmoid softplus sparse_plus soft_sign silu log_sigmoid leaky_relu hard_sigmoid hard_silu "
        "hard_tanh elu celu selu gelu glu squareplus mish log_softmax softmax standardize sparse_sigmoid"
    )
    for name in activations.split():
        require_continuous(name, lambda z, name=name: jnp.sum(getattr(jax.nn, name)(z)), z)
    for name, law in EVERY_LAW.items():
        q = law()
        event = jax.eval_shape(lambda q=q: q.sample(jax.random.key(0)))
        if not q.capabilities.discrete and name not in ("Joint", "ScrambledSobol"):
            require_continuous(name, q.log_prob, event)


FAMILY = [
    pathwise(),
    antithetic(),
    quasi_monte_carlo(2),
    sticking_the_landing(),
    doubly_reparameterised(),
    generalised_doubly_reparameterised(),
]


@pytest.mark.parametrize("estimator", FAMILY, ids=lambda e: e.spec.name)
def test_every_estimator_of_the_family_refuses_a_jump_under_jit_and_vmap(estimator):
    def problem(loc):
        q = Normal(loc, 1.0)
        return q, LogWeight(lambda z: jnp.where(z > loc, 0.5, -0.5), Normal(0.0, 1.0), q)

    draw = jax.jit(jax.vmap(lambda key, loc: value_and_grad(key, estimator, problem, loc)))
    with pytest.raises(NotAvailable, match=rf"{estimator.spec.name[:8]}.*f jumps"):
        draw(jax.random.split(jax.random.key(0), 2), jnp.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", FAMILY, ids=lambda e: e.spec.name)
def test_spec_counts_calls_and_gradients_of_the_objective(estimator):
    calls = []

    def likelihood(z):
        jax.debug.callback(lambda _: calls.append(1), z)
        return -(z**2)

    q = Normal(0.3, 0.8)
    noise = estimator.noise(q).sample(jax.random.key(0))
    estimator.surrogate((), noise, LogWeight(likelihood, Normal(0.0, 1.0), q), q)
    jax.effects_barrier()
    # a gradient of f counts as one more call of it
    gradients = len(calls) if estimator.spec.derivative_order == 1 else 0
    assert len(calls) + gradients == estimator.spec.evaluations
    assert all(getattr(q.capabilities, need) for need in estimator.spec.needs)


@pytest.mark.slow
def test_family_works_in_float32_under_jit_and_vmap():
    with jax.enable_x64(False):

        def problem(loc):
            q = Normal(loc, 0.7)
            return q, LogWeight(lambda z: -jnp.sum(jax.nn.relu(z)), Normal(jnp.zeros(3), 1.0), q)

        @jax.jit
        def draw(keys, loc):
            return [jax.vmap(lambda k, x, e=e: value_and_grad(k, e, problem, x))(k, loc) for e, k in zip(FAMILY, keys)]  # noqa: B905

        for value, gradient in draw(jax.random.split(jax.random.key(0), (6, 4)), jnp.ones((4, 3))):
            assert value.shape == (4,)
            assert gradient.shape == (4, 3)
            assert value.dtype == gradient.dtype == jnp.float32
            assert jnp.isfinite(gradient).all()


# Refusals.


def draw(estimator, q, f=jnp.sum):
    return value_and_grad(jax.random.key(0), estimator, lambda q: (q, f), q)


@pytest.mark.parametrize("factory", [doubly_reparameterised, generalised_doubly_reparameterised])
def test_doubly_reparameterised_needs_a_log_weight_and_gives_first_derivatives_only(factory):
    with pytest.raises(
        NotAvailable, match=r"reparameterised\(1, iwae\) needs f to be a bounds.LogWeight.*use pathwise"
    ):
        draw(factory(), Normal(0.0, 1.0))
    estimator = factory(2)

    def surrogate(gain, loc):
        q, f = normal_problem((loc, *as_arrays(PARAMS[1:4]), gain))
        return estimator.surrogate((), jnp.asarray([0.1, 0.4]), f, q)

    for argument in (0, 1):
        with pytest.raises(NotAvailable, match="first derivatives only"):
            jax.grad(jax.grad(surrogate, argument), argument)(jnp.asarray(0.9), jnp.asarray(0.8))


def test_sticking_the_landing_of_another_bound_gives_first_derivatives_only():
    estimator = sticking_the_landing(2, bound=bounds.iwae)
    with pytest.raises(NotAvailable, match="first derivatives only"):
        jax.hessian(lambda x: estimator.surrogate((), jnp.asarray([0.1, 0.4]), jnp.cos, Normal(x, 1.0)))(0.3)


@pytest.mark.parametrize("factory", [sticking_the_landing, doubly_reparameterised])
def test_score_is_not_dropped_for_a_support_that_moves(factory):
    with pytest.raises(NotAvailable, match=r"fixed_support.*use pathwise"):
        draw(factory(), Uniform(0.0, 1.0))


def test_generalised_doubly_reparameterised_refuses_a_prior_that_it_cannot_invert():
    q = Gamma(2.0, 1.0)
    f = LogWeight(lambda z: -z, Gamma(1.0, 1.0), q)
    with pytest.raises(NotAvailable, match=r"Gamma has no inverse of its transport; use doubly_reparameterised"):
        draw(generalised_doubly_reparameterised(), q, f)


@pytest.mark.parametrize("law", [lambda: Gamma(2.0, 1.0), lambda: Beta(2.0, 1.0), lambda: StudentT(5.0, 0.0, 1.0)])
@pytest.mark.parametrize("estimator", [antithetic(2), quasi_monte_carlo(2)], ids=lambda e: e.spec.name)
def test_noise_without_symmetry_or_quantiles_is_refused(estimator, law):
    with pytest.raises(NotAvailable, match=r"LogGamma has no (symmetry|quantile function); use pathwise"):
        estimator.noise(law())


def test_arguments_are_checked_before_any_work():
    with pytest.raises(ValueError, match="samples must be even"):
        antithetic(3)
    with pytest.raises(ValueError, match="power of two"):
        quasi_monte_carlo(6)
    with pytest.raises(ValueError, match="power of two"):
        ScrambledSobol(Normal(0.0, 1.0), 6)
    with pytest.raises(NotAvailable, match="reparameterised"):
        draw(antithetic(), Poisson(2.0))


@pytest.mark.slow
def test_sobol_noise_has_the_shape_of_copies_and_no_nodes_or_density():
    base = Joint((Normal(jnp.zeros(2), 1.0), Uniform(0.0, 1.0)))
    law = ScrambledSobol(base, 4)
    assert law.event_shape == Copies(base, 4).event_shape == ((4, 2), (4,))
    shapes = jax.tree.map(jnp.shape, law.sample(jax.random.key(0), (3,)))
    assert shapes == ((3, 4, 2), (3, 4))
    with pytest.raises(NotAvailable, match=r"moments.replicate"):
        law.nodes(8)
    with pytest.raises(NotAvailable, match="use Copies"):
        law.log_prob(law.sample(jax.random.key(0)))
