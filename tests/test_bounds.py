"""Bounds: each equals its definition in extended precision, an enumeration or an integral, and orders as it must."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from vbjax import bounds
from vbjax.distributions import Mixture, MultivariateNormal, Normal
from vbjax.exact import exact_objective, expectation
from vbjax.types import NotAvailable


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# a latent with four values and a q whose probabilities are eighths, so that eight draws can represent it exactly
PRIOR = np.array([0.1, 0.2, 0.3, 0.4])
LIKELIHOOD = np.array([0.5, 0.05, 0.2, 0.01])
EIGHTHS = np.array([1, 2, 2, 3])
Q = EIGHTHS / 8
LOG_W = np.log(PRIOR * LIKELIHOOD / Q)
EVIDENCE = math.log((PRIOR * LIKELIHOOD).sum())
ELBO = float(Q @ LOG_W)
POPULATION = np.repeat(LOG_W, EIGHTHS)

EVERY_BOUND = {
    "mean": bounds.mean,
    "iwae": bounds.iwae,
    "renyi(0.5)": bounds.renyi(0.5),
    "renyi(2)": bounds.renyi(2.0),
    "renyi(-1)": bounds.renyi(-1.0),
    "cubo(2)": bounds.cubo(2.0),
    "tvo": bounds.tvo([0.0, 0.3, 0.8]),
}


def defined(name, log_w):
    """The definitions, term by term in extended precision, with no care for overflow."""
    log_w = np.asarray(log_w, np.longdouble)
    w = np.exp(log_w)
    if name == "tvo":
        edges = [0.0, 0.3, 0.8, 1.0]
        return sum((b - a) * np.sum(w**a * log_w) / np.sum(w**a) for a, b in itertools.pairwise(edges))
    power = {"iwae": 1, "renyi(0.5)": 0.5, "renyi(2)": -1, "renyi(-1)": 2, "cubo(2)": 2}.get(name)
    return log_w.mean() if power is None else np.log(np.mean(w**power)) / power


def enumerated(bound, samples):
    """E bound over all K-tuples of the latent."""
    tuples = np.array(list(itertools.product(range(4), repeat=samples)))
    return float(Q[tuples].prod(1) @ np.asarray(jax.vmap(bound)(jnp.asarray(LOG_W[tuples]))))


def iw1(q=(0.8, 0.6), x=1.2):
    """z ~ N(0, 1), x | z ~ N(z, 1/4): q and log w."""

    def log_weight(z):
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.5).log_prob(jnp.asarray(x)) - Normal(*q).log_prob(z)

    return Normal(*q), log_weight


@pytest.mark.parametrize("name", EVERY_BOUND)
def test_bound_equals_its_definition_in_extended_precision(name):
    for log_w in np.random.default_rng(0).normal(-3, 4, (5, 6)):
        assert float(EVERY_BOUND[name](jnp.asarray(log_w))) == pytest.approx(float(defined(name, log_w)), rel=1e-12)


@pytest.mark.parametrize("name", EVERY_BOUND)
def test_gradient_and_hessian_equal_differences_of_the_definition(name):
    log_w, step = np.array([-1.0, 0.5, 2.0]), 1e-4
    shifts = np.eye(3) * step

    def at(*directions):
        return float(defined(name, log_w + sum(directions)))

    gradient = [(at(e) - at(-e)) / (2 * step) for e in shifts]
    hessian = [[(at(d, e) - at(d, -e) - at(-d, e) + at(-d, -e)) / (4 * step**2) for d in shifts] for e in shifts]
    x = jnp.asarray(log_w)
    np.testing.assert_allclose(jax.grad(EVERY_BOUND[name])(x), gradient, atol=1e-7)
    np.testing.assert_allclose(jax.hessian(EVERY_BOUND[name])(x), hessian, atol=1e-6)


def test_iwae_grows_with_samples_from_the_elbo_towards_the_evidence():
    values = [enumerated(bounds.iwae, samples) for samples in (1, 2, 3, 4, 5, 6)]
    assert values[0] == pytest.approx(ELBO, rel=1e-12)
    assert all(low < high for low, high in itertools.pairwise([*values, EVIDENCE]))
    # the control: the mean of the logs, sold as IWAE, never moves
    assert enumerated(bounds.mean, 5) == pytest.approx(ELBO, rel=1e-12)


def test_iwae_gap_closes_like_the_relative_variance_of_the_weights_over_2k():
    relative_variance = float(Q @ np.exp(2 * LOG_W)) / math.exp(EVIDENCE) ** 2 - 1
    gaps = {samples: EVIDENCE - enumerated(bounds.iwae, samples) for samples in (4, 8)}
    leading = relative_variance / 2
    # Richardson extrapolation of K · gap removes the next order, which alone is still visible at K = 8
    assert 2 * 8 * gaps[8] - 4 * gaps[4] == pytest.approx(leading, rel=0.1)


def test_iwae_of_two_normal_draws_equals_the_laplace_transform_integral():
    """E log Σ w = ∫ (e^-t - φ(t)^K) dt/t with φ(t) = E e^(-tw), integrated over log t."""
    q, log_weight = iw1()
    law, joint = stats.norm(0.8, 0.6), stats.norm(0, math.sqrt(1.25))

    def weight(z):
        return np.exp(stats.norm.logpdf(z) + stats.norm.logpdf(1.2, z, 0.5) - law.logpdf(z))

    z = np.linspace(0.8 - 12 * 0.6, 0.8 + 12 * 0.6, 4001)
    density = law.pdf(z) * (z[1] - z[0])
    log_t = np.linspace(-40, 100, 4001)
    transform = np.array([density @ np.exp(-math.exp(s) * weight(z)) for s in log_t])
    for samples in (1, 2):
        integrand = np.exp(-np.exp(log_t)) - transform**samples
        reference = integrate.trapezoid(integrand, log_t) - math.log(samples)
        value = exact_objective(lambda _: (q, log_weight), (), samples=samples, bound=bounds.iwae)
        assert float(value.value) == pytest.approx(reference, abs=1e-9)
        assert reference < joint.logpdf(1.2)


def test_elbo_terms_and_log_weights_agree_on_the_linear_gaussian_instance():
    loading = jnp.asarray([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.2]])
    offset, x = jnp.asarray([0.2, -0.1, 0.4]), jnp.asarray([1.0, -0.5, 0.7])
    q = MultivariateNormal.from_covariance(jnp.asarray([0.4, -0.3]), jnp.asarray([[0.5, 0.1], [0.1, 0.3]]))
    prior = MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    scale = jnp.full(3, math.sqrt(0.3))

    def log_likelihood(z):
        return Normal(loading @ z + offset, scale).log_prob(x)

    terms = expectation(q, lambda z: tuple(bounds.elbo(log_likelihood, q, prior, z))).value
    by_terms = bounds.ELBO(*terms)
    by_weights = expectation(q, lambda z: log_likelihood(z) + prior.log_prob(z) - q.log_prob(z)).value
    assert float(by_terms.total) == pytest.approx(-3.745412821312, abs=1e-11)
    assert float(by_weights) == pytest.approx(-3.745412821312, abs=1e-11)
    evidence = stats.multivariate_normal(offset, loading @ loading.T + 0.3 * np.eye(3)).logpdf(x)
    assert evidence - float(by_terms.total) == pytest.approx(0.836569630351, abs=1e-11)
    # the control: a KL of the wrong sign would stand above the evidence
    assert float(by_terms.reconstruction + by_terms.kl) > evidence


def test_elbo_refuses_a_kl_without_closed_form():
    mixture = Mixture(jnp.zeros(2), Normal(jnp.asarray([0.0, 1.0]), jnp.asarray([1.0, 1.0])))
    with pytest.raises(NotAvailable):
        bounds.elbo(lambda z: z, mixture, Normal(0.0, 1.0), jnp.asarray(0.5))


def test_renyi_falls_in_alpha_through_iwae_and_elbo():
    alphas = (-2.0, -1.0, 0.0, 0.5, 0.999, 1.0, 1.001, 2.0, 5.0)
    values = [float(bounds.renyi(alpha)(jnp.asarray(POPULATION))) for alpha in alphas]
    assert all(high > low for high, low in itertools.pairwise(values))
    assert values[2] == pytest.approx(EVIDENCE, rel=1e-12)
    assert values[5] == pytest.approx(ELBO, rel=1e-12)


def test_renyi_tends_to_the_elbo_at_the_rate_of_half_the_variance():
    variance = float(Q @ (LOG_W - ELBO) ** 2)
    for gap in (1e-3, 1e-4):
        slope = (float(bounds.renyi(1 - gap)(jnp.asarray(POPULATION))) - ELBO) / gap
        assert slope == pytest.approx(variance / 2, rel=10 * gap)


def test_cubo_is_above_the_evidence_and_biased_down_by_few_samples():
    log_w = jnp.asarray(POPULATION)
    assert float(bounds.cubo(1.0)(log_w)) == pytest.approx(float(bounds.iwae(log_w)), rel=1e-14)
    exact = [float(bounds.cubo(n)(log_w)) for n in (1.0, 1.5, 2.0, 4.0)]
    assert exact[0] == pytest.approx(EVIDENCE, rel=1e-12)
    assert all(low < high for low, high in itertools.pairwise(exact))
    few = [enumerated(bounds.cubo(2.0), samples) for samples in (1, 2, 4)]
    assert few[0] == pytest.approx(ELBO, rel=1e-12)
    assert all(low < high for low, high in itertools.pairwise([*few, exact[2]]))


def test_tvo_starts_at_the_elbo_and_approaches_the_evidence_from_below_at_first_order():
    log_w = jnp.asarray(POPULATION)
    assert float(bounds.tvo([0])(log_w)) == pytest.approx(ELBO, rel=1e-12)
    gaps = [EVIDENCE - float(bounds.tvo(np.arange(n) / n)(log_w)) for n in (1, 2, 4, 8, 16, 32, 64)]
    assert all(fine > 0 for fine in gaps)
    assert all(coarse > fine for coarse, fine in itertools.pairwise(gaps))
    assert gaps[-2] / gaps[-1] == pytest.approx(2, rel=0.02)  # a left Riemann sum is of first order
    # the control: a right sum is an upper bound
    right = sum(np.sum(np.exp(b * POPULATION) * POPULATION) / np.sum(np.exp(b * POPULATION)) for b in (0.5, 1.0)) / 2
    assert right > EVIDENCE


@pytest.mark.parametrize("name", EVERY_BOUND)
@pytest.mark.parametrize(
    "log_w", [[-jnp.inf, 0.3, -1.0], [-jnp.inf, -jnp.inf, 1.0], [-jnp.inf] * 3, [-1e300, 0.0, 1.0]]
)
def test_impossible_draws_never_make_a_nan(name, log_w):
    x = jnp.asarray(log_w)
    value, gradient = jax.value_and_grad(EVERY_BOUND[name])(x)
    assert not jnp.isnan(value)
    assert jnp.isfinite(gradient).all()
    # also not through a model whose own slope is infinite there
    tangent = jnp.where(jnp.isinf(x), jnp.inf, 1.0)
    if name in ("iwae", "cubo(2)", "renyi(0.5)") and jnp.isfinite(value):
        assert jnp.isfinite(jax.jvp(EVERY_BOUND[name], (x,), (tangent,))[1])


def test_an_impossible_draw_counts_as_a_zero_weight():
    rest = jnp.asarray([0.3, -1.0])
    value, gradient = jax.value_and_grad(bounds.iwae)(jnp.asarray([-jnp.inf, 0.3, -1.0]))
    assert float(value) == pytest.approx(float(bounds.iwae(rest)) + math.log(2 / 3), rel=1e-14)
    np.testing.assert_allclose(gradient, [0, *jax.nn.softmax(rest)], rtol=1e-14)
    # α > 1 averages w^(1-α): one impossible draw makes the bound -inf, and takes the whole slope, as in the limit
    value, gradient = jax.value_and_grad(bounds.renyi(2.0))(jnp.asarray([-jnp.inf, 0.3, -1.0]))
    assert value == -jnp.inf
    np.testing.assert_array_equal(gradient, [1, 0, 0])


@pytest.mark.parametrize("name", EVERY_BOUND)
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_bound_moves_with_its_log_weights_without_overflow(name, shift):
    log_w = jnp.asarray([-1.0, 0.5, 2.0])
    assert float(EVERY_BOUND[name](log_w + shift) - shift) == pytest.approx(float(EVERY_BOUND[name](log_w)), abs=1e-10)


def test_bounds_refuse_parameters_outside_their_range_and_say_which():
    with pytest.raises(ValueError, match="alpha must be finite, got inf"):
        bounds.renyi(math.inf)
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        bounds.renyi(math.nan)
    with pytest.raises(ValueError, match=r"n must be at least 1 .* got 0.5"):
        bounds.cubo(0.5)
    for betas in ([], [0.1, 0.5], [0.0, 0.5, 0.5], [0.0, 1.0], [0.0, math.nan]):
        with pytest.raises(ValueError, match="betas must increase from 0 and stay below 1"):
            bounds.tvo(betas)
