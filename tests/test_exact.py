"""Exact answers against SciPy, enumeration and closed forms; the certificate against what should fool it."""

import itertools
import math

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
    Dirichlet,
    Gamma,
    Joint,
    Laplace,
    LogGamma,
    Logistic,
    LogNormal,
    Mixture,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    Uniform,
)
from vbjax.estimators import pathwise, score_function
from vbjax.exact import NotConverged, exact_gradient, exact_moments, exact_objective, expectation
from vbjax.types import Nodes, NotAvailable


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def smooth(z):
    return jnp.cos(z) + 0.1 * z**2


def numpy_smooth(z):
    return np.cos(z) + 0.1 * z**2


CONTINUOUS = [
    (lambda: Normal(0.7, 1.3), stats.norm(0.7, 1.3)),
    (lambda: LogNormal(0.2, 0.5), stats.lognorm(0.5, scale=math.exp(0.2))),
    (lambda: Laplace(0.3, 0.8), stats.laplace(0.3, 0.8)),
    (lambda: Logistic(-0.4, 0.6), stats.logistic(-0.4, 0.6)),
    (lambda: Uniform(-1.0, 2.0), stats.uniform(-1.0, 3.0)),
    (lambda: Gamma(2.5, 1.5), stats.gamma(2.5, scale=1 / 1.5)),
    (lambda: Gamma(0.3, 1.0), stats.gamma(0.3)),
    (lambda: LogGamma(0.7), stats.loggamma(0.7)),
    (lambda: Beta(2.0, 0.6), stats.beta(2.0, 0.6)),
    (
        lambda: Mixture(jnp.log(jnp.asarray([0.3, 0.7])), Normal(jnp.asarray([-1.0, 1.0]), jnp.asarray([0.5, 1.0]))),
        stats.Mixture([stats.Normal(mu=-1.0, sigma=0.5), stats.Normal(mu=1.0, sigma=1.0)], weights=[0.3, 0.7]),
    ),
]


@pytest.mark.parametrize(("law", "reference"), CONTINUOUS, ids=lambda x: "")
def test_certified_expectation_equals_adaptive_quadrature(law, reference):
    law = law()
    low, high = (reference.icdf(p) if hasattr(reference, "icdf") else reference.ppf(p) for p in (1e-17, 0.5))
    top = reference.iccdf(1e-17) if hasattr(reference, "iccdf") else reference.isf(1e-17)

    def part(a, b):
        return integrate.quad(lambda z: numpy_smooth(z) * reference.pdf(z), a, b, epsabs=1e-13, epsrel=1e-12, limit=400)

    centre = float(law.loc) if isinstance(law, Laplace) else float(high)
    value = part(float(low), centre)[0] + part(centre, float(top))[0]
    certified = expectation(law, smooth)
    assert float(certified.value) == pytest.approx(value, abs=2e-9)
    assert certified.error <= 1e-10
    # the control: a law with its scale squared is far outside the tolerance
    assert abs(float(expectation(law, lambda z: smooth(1.01 * z)).value) - value) > 1e-6


def test_poisson_expectation_equals_the_series():
    for rate in (0.0, 0.02, 3.3, 250.0):
        counts = np.arange(2000)
        series = stats.poisson(rate).pmf(counts) @ numpy_smooth(counts)
        assert float(expectation(Poisson(rate), smooth).value) == pytest.approx(series, rel=1e-10)


def test_joint_and_matrix_laws_equal_their_closed_forms():
    law = Joint((Bernoulli(jnp.asarray(0.4)), Normal(0.5, 2.0)))
    value = expectation(law, lambda z: z[0] * z[1] ** 2).value
    assert float(value) == pytest.approx(special.expit(0.4) * 4.25, rel=1e-12)
    covariance = np.array([[0.5, 0.1], [0.1, 0.3]])
    law = MultivariateNormal.from_covariance(jnp.asarray([0.4, -0.3]), jnp.asarray(covariance))
    moments = expectation(law, lambda z: {"mean": z, "square": jnp.outer(z, z)}).value
    np.testing.assert_allclose(moments["mean"], [0.4, -0.3], rtol=1e-12)
    np.testing.assert_allclose(moments["square"], covariance + np.outer([0.4, -0.3], [0.4, -0.3]), rtol=1e-12)


def test_enumeration_is_exact_and_ignores_values_where_there_is_no_mass():
    probs = jnp.asarray([0.5, 0.0, 0.5])
    certified = expectation(Categorical.from_probs(probs), lambda z: jnp.where(z == 1, jnp.inf, z.astype(float)))
    assert float(certified.value) == 1.0
    assert certified.error == 0.0
    assert certified.nodes == 3
    sure = Bernoulli(jnp.asarray([jnp.inf, -jnp.inf]))
    assert float(expectation(sure, lambda z: jnp.log(z[0]) + 1 / (1 - z[1])).value) == 1.0
    # an infinity that has mass is told, not hidden
    assert expectation(Bernoulli(jnp.asarray(0.0)), lambda z: jnp.log(z)).value == -jnp.inf


def test_too_many_outcomes_are_refused_with_the_way_out():
    with pytest.raises(NotAvailable, match=r"Monte Carlo"):
        expectation(Bernoulli(jnp.zeros(23)), jnp.sum)
    with pytest.raises(NotAvailable, match=r"Monte Carlo"):
        expectation(Normal(jnp.zeros(9), 1.0), jnp.sum)
    with pytest.raises(NotAvailable):
        expectation(StudentT(3.0, 0.0, 1.0), jnp.cos)


UNSAFE = {
    "kink": lambda z: jnp.abs(z - 0.3),
    "jump": lambda z: jnp.where(z > 0.3, 1.0, 0.0),
    "jump at the centre": lambda z: jnp.where(z > 0.7, 1.0, 0.0),
    "heavy tail": lambda z: jnp.exp((z - 0.7) ** 2 / (2 * 1.3**2)),
    "infinite variance of the tail": lambda z: jnp.exp(0.499 * ((z - 0.7) / 1.3) ** 2),
    "not a number": lambda z: jnp.log(z),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_certificate_is_refused_where_a_rule_cannot_settle(name):
    with pytest.raises(NotConverged, match="Monte Carlo"):
        expectation(Normal(0.7, 1.3), UNSAFE[name])


def test_certificate_is_refused_when_a_gamma_moment_hangs_on_its_cut_tail():
    for power in (-1.4, -1.5, -2.0):  # of Gamma(1.5, 1): finite but slow, infinite, infinite
        with pytest.raises(NotConverged):
            expectation(Gamma(1.5, 1.0), lambda z, power=power: z**power)
    assert float(expectation(Gamma(4.0, 1.0), lambda z: z**-1.5).value) == pytest.approx(
        special.gamma(2.5) / special.gamma(4.0), rel=1e-10
    )


def test_sharp_likelihood_that_defeats_64_hermite_points_is_certified_or_refused():
    """A Bernoulli likelihood with large weights: 64 points are wrong in the sixth digit, and nothing says so."""
    weights, offsets = np.array([40.0, -25.0, 60.0]), np.array([-13.0, 2.0, 30.0])

    def log_likelihood(z):
        return -jnp.sum(jax.nn.softplus(weights * z + offsets))

    density = stats.norm(0.1, 0.9)
    kinks = sorted(-offsets / weights)
    edges = [-12.0, *(k + d for k in kinks for d in (-1, 0, 1)), 12.0]
    reference = sum(
        integrate.quad(lambda z: -np.logaddexp(0, weights * z + offsets).sum() * density.pdf(z), a, b, epsabs=1e-12)[0]
        for a, b in itertools.pairwise(sorted(edges))
    )
    points, hermite = special.roots_hermitenorm(64)
    naive = -np.logaddexp(0, weights[:, None] * (0.1 + 0.9 * points) + offsets[:, None]).sum(0) @ hermite
    naive /= math.sqrt(2 * math.pi)
    assert abs(naive / reference - 1) > 1e-4
    with pytest.raises(NotConverged, match="looser rtol"):
        expectation(Normal(0.1, 0.9), log_likelihood)
    certified = expectation(Normal(0.1, 0.9), log_likelihood, rtol=1e-7)
    assert float(certified.value) == pytest.approx(reference, rel=1e-7)


class Reporting(Normal):
    """A law that tells which orders it was asked for, and lets a test choose what each rule returns."""

    answers = ()

    def nodes(self, order):
        return Nodes(jnp.full(2, float(order)), jnp.full(2, 0.5), exact=False)


def test_two_rules_that_agree_by_accident_are_caught_by_the_odd_order():
    def aliased(z):  # what a function of period two in the order would do: every even rule sees the same
        return jnp.where(z % 2 == 0, 1.0, 2.0)

    law = object.__new__(Reporting)
    with pytest.raises(NotConverged):
        expectation(law, aliased)
    # the odd order has the casting vote only: a rule that has settled for all orders passes
    assert float(expectation(law, lambda z: 1.0 + jnp.exp(-z)).value) == pytest.approx(1.0, abs=1e-10)


class Leaking(Normal):
    """A law whose rules agree with each other, and all miss a tenth of the mass."""

    def nodes(self, order):
        return Nodes(jnp.zeros(2), jnp.full(2, 0.45), exact=False)


def test_rules_that_agree_but_miss_mass_are_refused():
    with pytest.raises(NotConverged):
        expectation(object.__new__(Leaking), lambda z: 1.0 + z)


def test_what_a_certificate_cannot_see_is_a_spike_between_all_points():
    """Documented, not mended: the spike holds a quarter of the expectation and no rule has a point on it."""
    width = 1e-6
    value = float(expectation(Normal(0.0, 1.0), lambda z: 1 + jnp.exp(-(((z - 0.31) / width) ** 2)) / width).value)
    assert value == pytest.approx(1.0)
    truth = 1 + math.sqrt(math.pi) * stats.norm.pdf(0.31)
    assert truth > 1.6
    # at the spacing that the module states, it is refused or right
    wide = 0.2
    value = expectation(Normal(0.0, 1.0), lambda z: 1 + jnp.exp(-(((z - 0.31) / wide) ** 2)) / wide).value
    exact_value = 1 + math.sqrt(math.pi) * stats.norm.pdf(0.31, scale=math.sqrt(1 + wide**2 / 2))
    assert float(value) == pytest.approx(exact_value, rel=1e-9)


def test_float32_is_held_to_its_own_tolerance():
    with jax.enable_x64(False):
        certified = expectation(Normal(0.7, 1.3), lambda z: (z + 0.4) ** 2)
        assert certified.value.dtype == jnp.float32
        assert float(certified.value) == pytest.approx(1.1**2 + 1.3**2, rel=1e-5)
        assert certified.error <= 1e-5


GRADIENTS = [
    (lambda: Normal(0.7, 1.3), lambda loc, scale: stats.norm(loc, scale)),
    (lambda: LogNormal(0.2, 0.5), lambda loc, scale: stats.lognorm(scale, scale=math.exp(loc))),
    (lambda: Logistic(-0.4, 0.6), lambda loc, scale: stats.logistic(loc, scale)),
    (lambda: Uniform(-1.0, 2.0), lambda low, high: stats.uniform(low, high - low)),
    (lambda: Gamma(2.5, 1.5), lambda a, rate: stats.gamma(a, scale=1 / rate)),
    (lambda: Poisson(3.3), lambda rate: stats.poisson(rate)),
]


def slope(f, x, step=1e-3):
    """Five-point difference: an error of order step^4."""
    return (8 * (f(x + step) - f(x - step)) - (f(x + 2 * step) - f(x - 2 * step))) / (12 * step)


def scipy_mean(law):
    if hasattr(law.dist, "pmf"):
        return law.pmf(np.arange(400)) @ numpy_smooth(np.arange(400))
    low, middle, high = law.ppf(1e-17), law.ppf(0.5), law.isf(1e-17)
    low = law.ppf(0) if np.isfinite(law.ppf(0)) else low
    options = {"epsabs": 1e-13, "epsrel": 1e-13, "limit": 200}
    return sum(
        integrate.quad(lambda z: numpy_smooth(z) * law.pdf(z), a, b, **options)[0]
        for a, b in ((low, middle), (middle, high))
    )


@pytest.mark.parametrize(("q", "reference"), GRADIENTS, ids=lambda x: "")
def test_exact_gradient_equals_differences_of_adaptive_quadrature(q, reference):
    q = q()
    gradient = jax.tree.leaves(exact_gradient(lambda q: (q, smooth), q).value)
    parameters = [float(leaf) for leaf in jax.tree.leaves(q)]
    for i, component in enumerate(gradient):
        expected = slope(lambda v, i=i: scipy_mean(reference(*parameters[:i], v, *parameters[i + 1 :])), parameters[i])
        assert float(component) == pytest.approx(expected, abs=1e-8)


def test_exact_gradient_of_a_continuous_mixture_equals_the_closed_form():
    """E z² of a mixture: its derivative in the logits, the centres and the scales."""
    logits, loc, scale = jnp.asarray([0.3, -0.2]), jnp.asarray([-1.0, 1.0]), jnp.asarray([0.5, 1.2])
    q = Mixture(logits, Normal(loc, scale))
    gradient = exact_gradient(lambda q: (q, lambda z: z**2), q).value
    share = jax.nn.softmax(logits)
    second = loc**2 + scale**2
    np.testing.assert_allclose(gradient.logits, share * (second - share @ second), rtol=1e-9)
    np.testing.assert_allclose(gradient.components.loc, 2 * share * loc, rtol=1e-9)
    np.testing.assert_allclose(gradient.components.scale, 2 * share * scale, rtol=1e-9)


def test_exact_gradient_reaches_the_model_and_the_law_of_several_draws():
    """IWAE of two Bernoulli latents with a model parameter, against NumPy enumeration and differences."""

    def numpy_bound(theta, phi):
        q = np.array([1 - special.expit(phi), special.expit(phi)])
        log_w = np.array([-0.3 + theta**2, 1.2 * theta]) - np.log(q)
        return sum(q[i] * q[j] * np.logaddexp(log_w[i], log_w[j]) for i in (0, 1) for j in (0, 1)) - math.log(2)

    def problem(params):
        theta, phi = params
        q = Bernoulli(phi)
        return q, lambda z: jnp.where(z == 1, 1.2 * theta, theta**2 - 0.3) - q.log_prob(z)

    params = (jnp.asarray(0.4), jnp.asarray(-0.7))
    gradient = exact_gradient(problem, params, samples=2, bound=bounds.iwae).value
    assert float(gradient[0]) == pytest.approx(slope(lambda t: numpy_bound(t, -0.7), 0.4), abs=1e-9)
    assert float(gradient[1]) == pytest.approx(slope(lambda p: numpy_bound(0.4, p), -0.7), abs=1e-9)
    value = exact_objective(problem, params, samples=2, bound=bounds.iwae).value
    assert float(value) == pytest.approx(numpy_bound(0.4, -0.7), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_exact_gradient_refuses_a_jump_even_at_the_centre_of_symmetry(threshold, offset):
    """Every rule integrates sign(z - loc) to zero, its slope along the sample is zero: wrong."""
    with pytest.raises(NotConverged):
        exact_gradient(lambda q: (q, lambda z: offset + jnp.sign(z - threshold)), Normal(0.7, 1.3))


def test_exact_gradient_refuses_a_law_with_neither_route():
    mixture = Mixture(jnp.zeros(2), Uniform(jnp.asarray([0.0, 1.0]), jnp.asarray([1.0, 2.0])))
    with pytest.raises(NotAvailable, match="exact_objective"):
        exact_gradient(lambda q: (q, jnp.cos), mixture)


def test_exact_moments_equal_numpy_over_the_enumerated_draws():
    """Mean and covariance of a two-sample estimator on two coins, by looping over all sixteen outcomes."""
    logits = np.array([0.4, -1.1])
    p = special.expit(logits)

    def cost(b):
        return (b[0] - 0.3) ** 2 + b[0] * b[1]

    coins = list(itertools.product((0.0, 1.0), repeat=2))
    mass = {b: np.prod([p[i] if b[i] else 1 - p[i] for i in (0, 1)]) for b in coins}
    draws, weights = [], []
    for b, c in itertools.product(coins, repeat=2):
        draws.append((cost(b) * (np.array(b) - p) + cost(c) * (np.array(c) - p)) / 2)
        weights.append(mass[b] * mass[c])
    draws, weights = np.array(draws), np.array(weights)
    mean = weights @ draws
    covariance = (draws - mean).T @ (weights[:, None] * (draws - mean))
    moments = exact_moments(score_function(2), lambda logits: (Bernoulli(logits), cost), jnp.asarray(logits))
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-13)
    np.testing.assert_allclose(moments.variance, np.diag(covariance), rtol=1e-13)
    assert float(moments.value) == pytest.approx(sum(mass[b] * cost(b) for b in coins), rel=1e-13)
    assert (moments.error, moments.nodes) == (0.0, 16)


def test_exact_moments_refuse_a_variance_that_no_rule_settles():
    with pytest.raises(NotConverged):
        exact_moments(score_function(), lambda q: (q, lambda z: jnp.where(z > 1.0, 1.0, 0.0)), Normal(0.7, 1.3))
    with pytest.raises(NotConverged):  # E f is finite, its second moment is not
        exact_moments(pathwise(), lambda q: (q, lambda z: jnp.exp(0.3 * ((z - 0.7) / 1.3) ** 2)), Normal(0.7, 1.3))


def test_copies_of_a_dirichlet_integrate_their_first_moment():
    concentration = jnp.asarray([0.8, 2.0])
    value = exact_gradient(lambda q: (q, lambda z: z[0] ** 2), Dirichlet(concentration)).value.concentration
    a, b = 0.8, 2.0

    def second(a, b):
        return a * (a + 1) / ((a + b) * (a + b + 1))

    np.testing.assert_allclose(value, [slope(lambda a: second(a, b), a), slope(lambda b: second(a, b), b)], rtol=1e-8)


def test_a_gradient_of_zero_variance_is_certified_as_zero():
    """Sticking the landing at the exact posterior of z ~ N(0, 1), x | z ~ N(z, 1/4), x = 1.2."""
    posterior = {"loc": jnp.asarray(0.96), "scale": jnp.asarray(0.2**0.5)}

    def problem(params):
        held = Normal(*jax.lax.stop_gradient((params["loc"], params["scale"])))
        q = Normal(params["loc"], params["scale"])
        return q, lambda z: -0.5 * z**2 - 2 * (1.2 - z) ** 2 - held.log_prob(z)

    moments = exact_moments(pathwise(), problem, posterior)
    assert np.abs(moments.covariance).max() < 1e-25
    away = exact_moments(pathwise(), problem, posterior | {"loc": jnp.asarray(1.2)})
    assert np.diagonal(away.covariance).max() > 1e-3
