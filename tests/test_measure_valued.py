"""Measure-valued gradients: exact bias zero against characteristic functions and enumeration, published variances.

The costs are cosines, so every truth is a characteristic function in NumPy; f with jumps is judged by statistics.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import z_threshold
from scipy import special, stats

from vbjax.distributions import Bernoulli, Categorical, Copies, Gamma, Laplace, Normal, OneHotCategorical, Poisson
from vbjax.estimators import measure_valued, measure_valued_independent, value_and_grad
from vbjax.estimators import measure_valued as factory
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import exact_moments
from vbjax.moments import replicate
from vbjax.types import NotAvailable

pytestmark = pytest.mark.usefixtures("x64")

D, S = 1.1, 1.3


def differences(objective, x, step=1e-3):
    return np.array([
        (8 * (objective(x + e) - objective(x - e)) - objective(x + 2 * e) + objective(x - 2 * e)) / (12 * step)
        for e in step * np.eye(len(x))
    ])  # fmt: skip


def cosines(law):
    """θ, η -> the law, and Σ cos(θ z) + 2 Π cos(θ z) over its coordinates."""

    def problem(params):
        theta, q = params[0], law(params[1:])
        return q, lambda z: jnp.sum(jnp.cos(theta * z)) + 2 * jnp.prod(jnp.cos(theta * z))

    return problem


def expected_cosines(characteristic):
    def objective(x):
        cosine = np.real(characteristic(x[0], x[1:]))
        return np.sum(cosine) + 2 * np.prod(cosine)

    return objective


CASES = {
    "normal": (
        lambda eta: Normal(eta[0], eta[1]),
        lambda t, eta: np.exp(1j * t * eta[0] - (t * eta[1]) ** 2 / 2),
        [0.8, 0.7, 1.3],
    ),
    "poisson": (Poisson, lambda t, rate: np.exp(rate * np.expm1(1j * t)), [0.8, 3.3, 1.2]),
    "gamma": (lambda eta: Gamma(2.5, eta[0]), lambda t, eta: (1 - 1j * t / eta[0]) ** -2.5, [0.8, 1.5]),
}


def bias(name):
    law, characteristic, x = CASES[name]
    moments = exact_moments(measure_valued(), cosines(law), jnp.asarray(x))
    objective = expected_cosines(characteristic)
    error = np.max(np.abs(moments.mean - differences(objective, np.array(x))))
    return max(error, abs(float(moments.value) - objective(np.array(x))))


@pytest.mark.parametrize("name", [pytest.param("normal", marks=pytest.mark.slow), "poisson", "gamma"])
def test_mean_is_the_derivative_of_the_characteristic_function(name):
    assert bias(name) < 1e-9


MODULE = __import__(factory.__module__, fromlist=["_FAMILIES"])


def rayleigh_for_maxwell(q, z, first, last):
    right = MODULE._normal().replacements(q, z, first, last)
    return right.at[2].set(right[0])


WRONG = {
    "normal": (Normal, lambda family: family._replace(replacements=rayleigh_for_maxwell)),
    "poisson": (Poisson, lambda family: family._replace(replacements=lambda q, z, first, last: last[None] + 2)),
    "gamma": (Gamma, lambda family: family._replace(replacements=lambda q, z, first, last: z[None] + 1 / q.rate)),
}


@pytest.mark.parametrize("name", ["poisson", pytest.param("normal", marks=pytest.mark.slow),
                                  pytest.param("gamma", marks=pytest.mark.slow)])  # fmt: skip
def test_wrong_positive_part_is_found(name, monkeypatch):
    law, mutate = WRONG[name]
    monkeypatch.setitem(MODULE._FAMILIES, law, mutate(MODULE._FAMILIES[law]))
    assert bias(name) > 1e-3


def square(params):
    return Normal(params[0], params[1]), lambda z: (z + 0.4) ** 2


SQUARE = jnp.array([0.7, 1.3], jnp.float32)


def test_variance_of_the_coupled_normal_parts_equals_the_closed_form():
    """d² (16/π - 4) for the mean; for the deviation σX - σUX has 2d X(1-U) + σ ρ², of variance 4d² + 4σ²."""
    moments = exact_moments(measure_valued(), square, SQUARE.astype(jnp.float64).at[:].set([0.7, 1.3]))
    np.testing.assert_allclose(moments.mean, [2 * D, 2 * S], rtol=1e-12)
    np.testing.assert_allclose(moments.variance, [D**2 * (16 / math.pi - 4), 4 * D**2 + 4 * S**2], rtol=1e-10)


def test_independent_normal_parts_have_the_mean_and_their_own_variance():
    """One coordinate's estimate is a sum of a function of either copy of the noise: two small integrals do."""
    estimator, params = measure_valued_independent(), jnp.array([0.7, 1.3])
    once = estimator.noise(Normal(*params)).base.base
    points, weights = (lambda nodes: (nodes.points, np.asarray(nodes.weights)))(once.nodes(128))
    origin = jax.tree.map(lambda x: x[weights.size // 3], points)

    def gradient(first, last):
        noise = jax.tree.map(lambda a, b: jnp.stack([a, b])[None], first, last)
        return value_and_grad_at(noise, estimator, square, params, ())[1]

    @jax.jit
    def parts(points):
        a = jax.vmap(gradient, (0, None))(points, origin)
        return a, jax.vmap(gradient, (None, 0))(origin, points), gradient(origin, origin)

    a, b, start = (np.asarray(v) for v in parts(points))
    np.testing.assert_allclose(weights @ a + weights @ b - start, [2 * D, 2 * S], rtol=1e-7)
    variance = weights @ a**2 - (weights @ a) ** 2 + weights @ b**2 - (weights @ b) ** 2
    expected = [D**2 * (8 / math.pi - 2) + 4 * S**2 / math.pi, 16 * D**2 + 8 * S**2]
    np.testing.assert_allclose(variance, expected, rtol=1e-7)


@pytest.mark.slow
def test_independent_parts_are_unbiased_for_counts_and_vary_more():
    law, characteristic, x = CASES["poisson"]
    x = x[:2]
    moments = exact_moments(measure_valued_independent(), cosines(lambda eta: law(eta[0])), jnp.asarray(x))
    truth = differences(expected_cosines(lambda t, eta: characteristic(t, eta[0])), np.array(x))
    np.testing.assert_allclose(moments.mean, truth, atol=1e-9)
    coupled = exact_moments(measure_valued(), cosines(lambda eta: law(eta[0])), jnp.asarray(x))
    assert float(moments.variance[1]) > float(coupled.variance[1])


COSTS = np.array([[1.0, 4.0, -2.0], [0.5, 0.2, 1.0]])
LOGITS = np.array([[0.2, -0.5, 1.0], [-1.0, 0.3, -np.inf]])


def categories(params):
    q = Categorical(params)
    return (
        q,
        lambda z: jnp.sin(jnp.sum(jnp.asarray(COSTS)[jnp.arange(2), z])) + (z[0] * z[1]).astype(float) - q.log_prob(z),
    )


def one_hot(params):
    _, f = categories(params)
    return OneHotCategorical(params), lambda z: f(jnp.argmax(z, -1).astype(jnp.int32))


def enumerated_categories(logits):
    log_p, total = special.log_softmax(logits, axis=-1), 0.0
    for z in itertools.product(range(3), repeat=2):
        log_q = log_p[0, z[0]] + log_p[1, z[1]]
        if log_q > -np.inf:
            total += np.exp(log_q) * (np.sin(COSTS[0, z[0]] + COSTS[1, z[1]]) + z[0] * z[1] - log_q)
    return total


@pytest.mark.parametrize("problem", [categories, pytest.param(one_hot, marks=pytest.mark.slow)])
def test_mean_is_the_gradient_of_an_enumerated_elbo_with_an_impossible_category(problem):
    moments = exact_moments(measure_valued(), problem, jnp.asarray(LOGITS))
    truth = differences(lambda x: enumerated_categories(x.reshape(2, 3)), LOGITS.ravel())
    np.testing.assert_allclose(np.ravel(moments.mean), truth, atol=1e-9)
    assert float(moments.value) == pytest.approx(enumerated_categories(LOGITS), rel=1e-12)


def test_single_bit_has_no_variance_and_a_certain_one_no_gradient():
    """f is infinite at what cannot occur."""
    logits = jnp.array([0.3, -40.0, 40.0, jnp.inf, -jnp.inf])

    def problem(x):
        q = Bernoulli(x)
        return q, lambda b: (b - 0.45) ** 2 - jnp.where(jnp.abs(x) > 1, q.log_prob(b), 0)

    noise = jax.vmap(lambda x: measure_valued().noise(Bernoulli(x)).sample(jax.random.key(0)))(logits)
    at = jax.jit(jax.vmap(lambda x, n: value_and_grad_at(n, measure_valued(), problem, x, ()), (0, 0)))
    value, gradient = at(logits, noise)
    assert np.all(np.isfinite(value))
    p = special.expit(0.3)
    assert float(gradient[0]) == pytest.approx(p * (1 - p) * 0.1, rel=1e-12)
    np.testing.assert_allclose(gradient[1:], 0, atol=1e-14)
    flipped = at(logits, noise.at[:, 0, 0].set(jnp.where(logits == 0.3, 1 - noise[:, 0, 0], noise[:, 0, 0])))[1]
    assert float(flipped[0]) == pytest.approx(float(gradient[0]), rel=1e-12)


def test_single_category_has_no_variance():
    logits, cost = np.array([0.4, -0.5, 1.1]), np.array([0.3, 2.0, -0.7])
    p = special.softmax(logits)

    def problem(logits):
        return Categorical(logits), lambda z: jnp.asarray(cost)[z]

    def gradient(base):
        return value_and_grad_at(base.reshape(1, 1), measure_valued(), problem, jnp.asarray(logits), ())[1]

    # whatever category was drawn
    found = jax.jit(jax.vmap(gradient))(jnp.arange(3, dtype=jnp.int32))
    np.testing.assert_allclose(found, np.tile(p * (cost - p @ cost), (3, 1)), rtol=1e-12)


def test_jumps_of_a_normal_vector_are_seen_where_the_path_sees_none():
    """f = 1[z₁ > 1, z₂ > -0.2] + 2·1[z₁ > 0]: float32, two coordinates, against normal distribution functions."""

    def steps(params):
        return Normal(*params), lambda z: jnp.array([(z[0] > 1) & (z[1] > -0.2), z[0] > 0, z[0] > 0], z.dtype).sum()

    def smooth(x):
        upper = stats.norm.sf((np.array([1, -0.2]) - x[:2]) / x[2:])
        return upper.prod() + 2 * stats.norm.sf(-x[0] / x[2])

    x = np.array([0.5, 0.1, 0.8, 1.2])
    truth = differences(smooth, x)
    params = (jnp.asarray(x[:2], jnp.float32), jnp.asarray(x[2:], jnp.float32))

    result = replicate(jax.random.key(5), measure_valued(), steps, params, replications=20_000)
    assert result.mean[0].dtype == jnp.float32

    def score(truth):
        mean, error = (np.concatenate([np.asarray(v, np.float64) for v in field]) for field in
                       (result.mean, result.standard_error))  # fmt: skip
        return np.abs(mean - truth) / np.maximum(error, 1e-6)

    assert np.max(score(truth)) < z_threshold(4)
    assert np.max(score(np.zeros(4))) > z_threshold(4)  # as along the path


def test_concentration_is_refused_only_where_it_is_differentiated():
    both = lambda p: (Gamma(p[0], p[1]), jnp.sin)  # noqa: E731
    fixed = lambda p: (Gamma(jax.lax.stop_gradient(p[0]), p[1]), jnp.sin)  # noqa: E731
    params = (jnp.asarray(2.5), jnp.asarray(1.5))
    with pytest.raises(NotAvailable, match="not its concentration; use pathwise"):
        value_and_grad(jax.random.key(0), measure_valued(), both, params)
    _, gradient = jax.jit(lambda p: value_and_grad(jax.random.key(0), measure_valued(), fixed, p))(params)
    assert gradient[0] == 0
    assert gradient[1] != 0


@pytest.mark.parametrize(
    "q", [Normal(jnp.zeros(2), 1.0), Poisson(jnp.ones(3)), OneHotCategorical(jnp.zeros((2, 4)))], ids=lambda q: type(q)
)
@pytest.mark.slow
def test_spec_counts_the_calls_for_a_law_like_q(q):
    calls = []

    def f(z):
        jax.debug.callback(lambda _: calls.append(1), z.ravel()[0])
        return z.sum()

    estimator = measure_valued(2, like=q)
    jax.jit(lambda key: estimator.surrogate((), estimator.noise(q).sample(key), f, q))(jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == estimator.spec.evaluations
    assert measure_valued(2).spec.evaluations == 8


def test_other_laws_and_second_derivatives_are_refused():
    for law in (Laplace(0.0, 1.0), Copies(Normal(0.0, 1.0), 2)):
        with pytest.raises(NotAvailable, match=f"not {type(law).__name__}; use pathwise or score_function"):
            measure_valued().noise(law)
    with pytest.raises(NotAvailable, match=r"draws nothing for Bernoulli.*use measure_valued"):
        measure_valued_independent().noise(Bernoulli(0.3))
    with pytest.raises(ValueError, match="samples must be at least 1"):
        measure_valued(0)
    q = Bernoulli(jnp.asarray(0.3))
    noise = measure_valued().noise(q).sample(jax.random.key(0))
    with pytest.raises(NotAvailable, match=r"measure_valued\(1\) gives first derivatives only"):
        jax.hessian(lambda x: measure_valued().surrogate((), noise, jnp.sin, Bernoulli(x)))(q.logits)
