"""Relaxed estimators: their noise has the right joint law, and their bias is what theory says."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vbjax import bounds
from vbjax.distributions import Bernoulli, Categorical, Joint, Normal, OneHotCategorical
from vbjax.estimators import relaxed, value_and_grad
from vbjax.estimators.relaxed import (
    gumbel_rao,
    gumbel_softmax,
    reinmax,
    relaxed_log_prob,
    straight_through,
    straight_through_gumbel_softmax,
)
from vbjax.exact import exact_moments, expectation
from vbjax.types import NotAvailable

LOGIT, TEMPERATURE = 0.3, 0.7
P = special.expit(LOGIT)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def coin(f):
    return lambda logit: (Bernoulli(logit), f)


def mean(estimator, problem, params=LOGIT):
    return np.array(exact_moments(estimator, problem, jnp.asarray(params)).mean)


def integral(f, low=-40.0, high=40.0):
    """∫ f over the line, cut at zero where the sample jumps."""
    return sum(integrate.quad(f, a, b, epsabs=1e-13, epsrel=1e-12, limit=400)[0] for a, b in ((low, 0.0), (0.0, high)))


def test_a_bernoulli_and_its_relaxation_have_the_joint_law():
    q = Bernoulli(jnp.asarray(LOGIT))
    law = Joint((q, relaxed.relaxation_noise("test", q)))

    def average(z_of):
        return expectation(law, lambda noise: jnp.cos(z_of(*noise)) * (1 + 2 * noise[0])).value

    truth = integral(lambda z: np.cos(z) * (1 + 2 * (z > 0)) * stats.logistic.pdf(z - LOGIT))
    assert abs(average(lambda b, s: relaxed.given(q, b, s)) - truth) < 1e-10
    # untruncated noise has the law of z, but not jointly with b
    assert abs(average(lambda b, s: q.logits + s) - truth) > 1e-2


@pytest.mark.slow
def test_a_one_hot_draw_and_its_relaxation_have_the_joint_law():
    logits = np.array([0.4, -0.5])
    q = OneHotCategorical(logits)
    law = Joint((q, relaxed.relaxation_noise("test", q)))

    def averages(noise):
        b, s = noise
        z = relaxed.given(q, b, s)
        return jnp.stack(
            [
                jnp.cos(z[0]),
                jnp.cos(z[1]),
                (1 + 2 * b[0]) * jnp.cos(z[0] - z[1]),
                (z.argmax() == b.argmax()).astype(z.dtype),
            ]
        )

    shift = logits[0] - logits[1]
    log_probs = special.log_softmax(logits)
    truth = [integral(lambda z, m=m: np.cos(z) * stats.gumbel_r.pdf(z - m), -12.0, 60.0) for m in log_probs]
    truth += [integral(lambda z: (1 + 2 * (z > 0)) * np.cos(z) * stats.logistic.pdf(z - shift)), 1.0]
    np.testing.assert_allclose(expectation(law, averages).value, truth, atol=1e-9)


def test_the_conditional_path_is_the_derivative_of_the_conditional_mean():
    def conditional(logit, b):
        part = (0.0, 60.0) if b else (-60.0, 0.0)
        density = lambda z: stats.logistic.pdf(z - logit)  # noqa: E731
        mass = special.expit(logit if b else -logit)
        return integrate.quad(lambda z: np.cos(z) * density(z), *part, epsabs=1e-13, limit=400)[0] / mass

    q = Bernoulli(jnp.asarray(LOGIT))

    def slope(b, s):
        return jax.grad(lambda q: jnp.cos(relaxed.given(q, jnp.asarray(b), s)))(q).logits

    for b in (0.0, 1.0):
        truth = (conditional(LOGIT + 1e-4, b) - conditional(LOGIT - 1e-4, b)) / 2e-4
        assert abs(expectation(relaxed.relaxation_noise("test", q), functools.partial(slope, b)).value - truth) < 1e-7
        assert abs(truth) > 1e-2  # what is lost without that path


def test_gumbel_softmax_is_the_gradient_of_the_relaxed_objective_and_biased_for_the_discrete_one():
    def objective(logit):
        return integral(lambda s: special.expit((logit + s) / TEMPERATURE) ** 3 * stats.logistic.pdf(s), -60.0, 60.0)

    moments = exact_moments(gumbel_softmax(temperature=TEMPERATURE), coin(lambda b: b**3), jnp.asarray(LOGIT))
    assert abs(moments.value - objective(LOGIT)) < 1e-9
    assert abs(moments.mean - (objective(LOGIT + 1e-4) - objective(LOGIT - 1e-4)) / 2e-4) < 1e-7
    assert abs(moments.mean - P * (1 - P)) > 1e-2
    assert abs(moments.value - P) > 1e-2


def test_one_hot_gumbel_softmax_adds_gumbel_noise_and_not_its_mirror_image():
    logits, cost = np.array([0.4, -0.5, 1.1]), np.array([0.3, 2.0, -0.7])
    estimator = gumbel_softmax(temperature=TEMPERATURE)
    q = OneHotCategorical(logits)
    # the noise is minus Gumbel, whose mean is Euler's constant
    np.testing.assert_allclose(estimator.noise(q).mean(), -np.euler_gamma, rtol=1e-12)
    gumbel = np.random.default_rng(0).gumbel(size=3)
    value = estimator.surrogate((), -jnp.asarray(gumbel)[None], lambda b: jnp.asarray(cost) @ b, q)

    def relaxed_cost(noise):
        return cost @ special.softmax((special.log_softmax(logits) + noise) / TEMPERATURE)

    np.testing.assert_allclose(value, relaxed_cost(gumbel), rtol=1e-12)
    assert abs(value - relaxed_cost(-gumbel)) > 1e-2


@pytest.mark.slow
def test_gumbel_softmax_follows_its_iwae_bound():
    estimator = gumbel_softmax(2, temperature=TEMPERATURE, bound=bounds.iwae)
    problem = coin(lambda b: -(b**2))
    step = [exact_moments(estimator, problem, jnp.asarray(LOGIT + h)).value for h in (1e-4, -1e-4)]
    assert abs(mean(estimator, problem) - (step[0] - step[1]) / 2e-4) < 1e-7


def bias_of(estimator, power):
    """For f = b^power the truth is p(1-p), whatever the power."""
    return mean(estimator, coin(lambda b: b**power)) / (P * (1 - P)) - 1


def test_straight_through_is_exact_for_linear_costs_and_reinmax_for_quadratic_ones():
    assert abs(bias_of(straight_through(), 1)) < 1e-12
    assert abs(bias_of(straight_through(), 2) - (2 * P - 1)) < 1e-12  # E f'(b) = 2p
    assert abs(bias_of(reinmax(), 1)) < 1e-12
    assert abs(bias_of(reinmax(), 2)) < 1e-12
    assert abs(bias_of(reinmax(), 3) - 1 / 2) < 1e-12  # (f'(0) + f'(1))/2 = 3/2 against f(1) - f(0) = 1


def test_reinmax_is_exact_for_a_quadratic_of_several_one_hot_sites():
    rng = np.random.default_rng(0)
    logits, a, c = rng.normal(size=(2, 3)), rng.normal(size=(6, 6)), rng.normal(size=6)
    probs = special.softmax(logits, -1)
    truth = np.zeros((2, 3))
    for i, j in itertools.product(range(3), repeat=2):
        z = np.eye(3)[[i, j]]
        truth += probs[0, i] * probs[1, j] * (z.ravel() @ a @ z.ravel() + c @ z.ravel()) * (z - probs)

    def problem(logits):
        return OneHotCategorical(logits), lambda z: z.ravel() @ jnp.asarray(a) @ z.ravel() + z.ravel() @ jnp.asarray(c)

    np.testing.assert_allclose(mean(reinmax(), problem, logits), truth, atol=1e-12)
    assert np.abs(mean(straight_through(), problem, logits) - truth).max() > 1e-2


def jacobian(z):
    s = special.expit(z / TEMPERATURE)
    return s * (1 - s) / TEMPERATURE


@pytest.mark.slow
def test_gumbel_rao_has_the_mean_of_straight_through_gumbel_softmax_and_a_smaller_variance():
    # f(b) = b³, so that only b = 1 has a slope, 3: mean and variance by SciPy
    first = integrate.quad(lambda z: 3 * jacobian(z) * stats.logistic.pdf(z - LOGIT), 0, 60, epsabs=1e-13)[0]
    second = integrate.quad(lambda z: 9 * jacobian(z) ** 2 * stats.logistic.pdf(z - LOGIT), 0, 60, epsabs=1e-13)[0]
    explained = first**2 / P - first**2
    problem = coin(lambda b: b**3)
    plain = exact_moments(straight_through_gumbel_softmax(temperature=TEMPERATURE), problem, jnp.asarray(LOGIT))
    rao = exact_moments(
        gumbel_rao(temperature=TEMPERATURE, conditional_draws=2), problem, jnp.asarray(LOGIT), rtol=1e-7
    )
    assert abs(plain.mean - first) < 1e-9
    assert abs(rao.mean - first) < 1e-9
    assert abs(first - P * (1 - P)) > 1e-2
    assert abs(plain.covariance[0, 0] - (second - first**2)) < 1e-9
    assert abs(rao.covariance[0, 0] - (explained + (second - first**2 - explained) / 2)) < 1e-8
    assert rao.covariance[0, 0] < plain.covariance[0, 0] - 1e-2


HARD = (straight_through(2), straight_through_gumbel_softmax(2, temperature=0.5), reinmax(2))


@pytest.mark.parametrize(
    "estimator",
    [pytest.param(HARD[0], marks=pytest.mark.slow), pytest.param(HARD[1], marks=pytest.mark.slow), HARD[2]],
    ids=("st", "st-gs", "reinmax"),
)
def test_the_value_and_the_model_gradient_at_the_hard_sample_are_unbiased(estimator):
    def problem(params):
        theta, phi = params
        q, prior = Bernoulli(phi), Bernoulli(theta)
        return q, lambda b: jnp.sin(theta * b + 0.3) + relaxed_log_prob(prior, b) - relaxed_log_prob(q, b)

    def objective(theta, phi):
        p = np.array([special.expit(-phi), special.expit(phi)])
        prior = np.array([special.expit(-theta), special.expit(theta)])
        return p @ (np.sin(theta * np.arange(2) + 0.3) + np.log(prior) - np.log(p))

    params = (jnp.asarray(0.8), jnp.asarray(-0.6))
    rtol = 1e-7 if estimator.spec.name.startswith("straight_through_gumbel") else None
    moments = exact_moments(estimator, problem, params, rtol=rtol)
    slope = [(objective(0.8 + h, -0.6 + k) - objective(0.8 - h, -0.6 - k)) / 2e-4 for h, k in ((1e-4, 0), (0, 1e-4))]
    assert abs(moments.value - objective(0.8, -0.6)) < 1e-9
    assert abs(moments.mean[0] - slope[0]) < 1e-7
    assert abs(moments.mean[1] - slope[1]) > 1e-3
    spec = estimator.spec
    assert (spec.unbiased_value, spec.unbiased_variational, spec.unbiased_model) == (True, False, True)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_relaxed_log_prob_agrees_at_the_corners(family):
    q = family(np.random.default_rng(1).normal(size=(2, 3)))
    corners = q.enumerate()
    np.testing.assert_allclose(
        jax.vmap(lambda b: relaxed_log_prob(q, b))(corners), jax.vmap(q.log_prob)(corners), rtol=1e-12
    )
    assert jnp.isfinite(relaxed_log_prob(q, jnp.full((2, 3), 1 / 3)))


ALL = (*HARD, gumbel_softmax(2, temperature=0.5), gumbel_rao(2, temperature=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_events_of_any_shape_under_jit_and_vmap_in_float32(family):
    with jax.enable_x64(False):
        logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 3)), jnp.float32)
        logits = logits.at[0, 0, 0].set(-jnp.inf)

        def gradients(key, logits):
            def problem(logits):
                return family(logits), lambda z: jnp.sum(z**2) * z[0, 1]

            keys = jax.random.split(key, len(ALL))
            return [value_and_grad(k, e, problem, logits) for k, e in zip(keys, ALL, strict=True)]

        for value, gradient in jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(0), 4), logits):
            assert value.shape == (4,)
            assert gradient.shape == (4, 2, 3)
            assert value.dtype == gradient.dtype == jnp.float32
            assert jnp.isfinite(gradient).all()
            assert jnp.abs(gradient[1:]).max() > 0


def test_refusals_name_a_way_out():
    def run(q, f, estimator=ALL[0]):
        return value_and_grad(jax.random.key(0), estimator, lambda q: (q, f), q)

    for estimator in ALL:
        with pytest.raises(NotAvailable, match="OneHotCategorical"):
            run(Categorical(jnp.zeros(3)), lambda z: z.sum() * 1.0, estimator)
        with pytest.raises(NotAvailable, match="pathwise"):
            run(Normal(0.0, 1.0), lambda z: z, estimator)
        with pytest.raises(NotAvailable, match="score_function"):
            run(Bernoulli(0.0), jnp.round, estimator)
    with pytest.raises(NotAvailable, match="jumps"):
        run(Bernoulli(0.0), Bernoulli(0.5).log_prob)
    with pytest.raises(NotAvailable, match="Normal"):
        relaxed_log_prob(Normal(0.0, 1.0), jnp.zeros(()))
    with pytest.raises(NotAvailable, match="first derivatives"):
        jax.grad(
            lambda x: jax.grad(lambda x: straight_through().surrogate((), (jnp.ones((1,)),), jnp.sin, Bernoulli(x)))(x)
        )(0.3)
    with pytest.raises(ValueError, match="temperature"):
        gumbel_softmax(temperature=0.0)
    with pytest.raises(ValueError, match="conditional_draws"):
        gumbel_rao(temperature=1.0, conditional_draws=0)
    with pytest.raises(ValueError, match="samples"):
        reinmax(0)
