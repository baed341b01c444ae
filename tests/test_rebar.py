"""REBAR and RELAX: exactly unbiased for every temperature, scale and learned state; learning lowers the variance."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from tests.oracles import z_threshold
from vbjax.distributions import Bernoulli, Categorical, Normal, OneHotCategorical
from vbjax.estimators import value_and_grad
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.estimators.learning import sgd
from vbjax.estimators.rebar import rebar, relax, tuned_rebar
from vbjax.estimators.relaxed import relaxed_log_prob
from vbjax.exact import exact_moments, expectation
from vbjax.moments import replicate
from vbjax.types import NotAvailable

LOGIT = 0.3
P = special.expit(LOGIT)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def coin(target):
    return lambda logit: (Bernoulli(logit), lambda b: (b - target) ** 2)


def moments(estimator, target, state=None):
    exact = exact_moments(estimator, coin(target), jnp.asarray(LOGIT), state=state)
    return float(exact.mean), float(exact.covariance[0, 0])


def truth(target):
    return P * (1 - P) * (1 - 2 * target)


@pytest.mark.parametrize(
    ("temperature", "scale"),
    [pytest.param(0.2, 1.0, marks=pytest.mark.slow), (0.7, -0.6), pytest.param(3.0, 2.5, marks=pytest.mark.slow)],
)
def test_rebar_is_unbiased_for_every_temperature_and_scale(temperature, scale):
    mean, _ = moments(rebar(temperature=temperature, scale=scale), 0.45)
    assert abs(mean - truth(0.45)) < 1e-10


def test_rebar_of_scale_zero_is_the_score_function_and_a_control_variate_can_beat_it():
    mean, variance = moments(rebar(scale=0), 0.45)
    score = P * (1 - P) ** 2 * 0.55**4 + (1 - P) * P**2 * 0.45**4
    assert abs(variance - (score - truth(0.45) ** 2)) < 1e-12
    assert abs(mean - truth(0.45)) < 1e-12
    assert moments(rebar(temperature=2.0), 0.0)[1] < 0.5 * moments(rebar(scale=0), 0.0)[1]


def test_several_draws_are_averaged_in_the_value_and_in_the_gradient():
    several, one = rebar(3), rebar(1)
    q, f = Bernoulli(jnp.asarray([0.4, -0.5])), lambda b: (b[0] - 0.2) ** 2 + b[0] * b[1]
    noise = several.noise(q).sample(jax.random.key(0))

    def problem(logits):
        return Bernoulli(logits), f

    value, gradient = value_and_grad_at(noise, several, problem, q.logits, ())
    single = [
        value_and_grad_at(jax.tree.map(lambda x, k=k: x[k : k + 1], noise), one, problem, q.logits, ())
        for k in range(3)
    ]
    np.testing.assert_allclose(value, np.mean([v for v, _ in single]), rtol=1e-13)
    np.testing.assert_allclose(gradient, np.mean([g for _, g in single], 0), rtol=1e-12)


def test_dropping_the_path_through_the_conditional_noise_is_biased(monkeypatch):
    module = importlib.import_module("vbjax.estimators.rebar")  # the package's attribute is the function
    given = module.given
    monkeypatch.setattr(module, "given", lambda q, b, s: jax.lax.stop_gradient(given(q, b, s)))
    assert abs(moments(rebar(), 0.2)[0] - truth(0.2)) > 1e-2


@pytest.mark.slow
def test_one_hot_rebar_and_relax_are_unbiased():
    logits, cost = np.array([0.4, -0.5]), np.array([[1.0, 0.3], [-0.6, 2.0]])
    probs = special.softmax(logits)
    exact = sum(p * cost[i, i] * (np.eye(2)[i] - probs) for i, p in enumerate(probs))

    def problem(logits):
        return OneHotCategorical(logits), lambda z: z @ jnp.asarray(cost) @ z

    for estimator, state in ((rebar(), None), (relax(), learned_state(OneHotCategorical(logits)))):
        mean = exact_moments(estimator, problem, jnp.asarray(logits), state=state, rtol=1e-8).mean
        np.testing.assert_allclose(mean, exact, atol=1e-8)


def learned_state(q):
    """A state far from the first one, with a network that is not zero."""
    state = relax().init(q)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(tree, [x + jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype) for x in leaves])


@pytest.mark.parametrize("target", [pytest.param(0.45, marks=pytest.mark.slow), 0.499])
def test_relax_is_unbiased_at_every_state(target):
    q = Bernoulli(jnp.asarray(LOGIT))
    first, far = relax().init(q), learned_state(q)
    variances = []
    for state in (first, far):
        mean, variance = moments(relax(), target, state)
        assert abs(mean - truth(target)) < 1e-10
        variances.append(variance)
    assert abs(variances[0] - moments(rebar(), target)[1]) < 1e-12  # learning begins at REBAR
    assert abs(variances[1] - variances[0]) > 1e-4


def learn(estimator, target, steps=150, copies=64):
    """The state after some steps, each the mean of the updates of a batch of draws, as in training."""
    problem = coin(target)

    def step(state, key):
        q, f = problem(jnp.asarray(LOGIT))
        noise = estimator.noise(q).sample(key, (copies,))
        states = jax.vmap(lambda noise: estimator.update(state, noise, f, q))(noise)
        return jax.tree.map(lambda x: x.mean(0), states), None

    first = estimator.init(problem(jnp.asarray(LOGIT))[0])
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        return jax.jit(lambda key: jax.lax.scan(step, first, jax.random.split(key, steps))[0])(jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "target"), [(tuned_rebar, 0.45), (relax, 0.45), (relax, 0.499)])
def test_learning_lowers_the_exact_variance_and_keeps_the_mean(factory, target):
    estimator = factory(optimizer=optax.adam(0.05))
    mean, variance = moments(estimator, target, learn(estimator, target))
    assert abs(mean - truth(target)) < 1e-10
    assert variance < 0.8 * moments(rebar(), target)[1]
    if factory is relax:
        # f's own relaxation is no help on these toys, where f(0) and f(1) are almost the same; a free function is
        assert variance < 0.5 * moments(rebar(scale=0), target)[1]


@pytest.mark.slow
def test_climbing_the_variance_raises_it():
    wrong = tuned_rebar(optimizer=sgd(-0.5))
    assert moments(wrong, 0.45, learn(wrong, 0.45, steps=20))[1] > moments(rebar(), 0.45)[1] + 1e-4


@pytest.mark.slow
def test_the_mean_update_is_the_slope_of_the_exact_variance():
    estimator = tuned_rebar(optimizer=sgd(1.0))
    q, f = coin(0.2)(jnp.asarray(LOGIT))
    state = estimator.init(q)

    def step(noise):
        moved = estimator.update(state, noise, f, q).params
        return jnp.stack([moved.log_temperature - state.params.log_temperature, moved.scale - state.params.scale])

    def variance(log_shift, shift):
        return moments(rebar(temperature=0.5 * float(np.exp(log_shift)), scale=1 + shift), 0.2)[1]

    h = 1e-4
    slope = [
        (variance(h, 0) - variance(-h, 0)) / (2 * h),
        (variance(0, h) - variance(0, -h)) / (2 * h),
    ]
    np.testing.assert_allclose(
        expectation(estimator.noise(q), lambda noise: step(noise)).value, -np.array(slope), atol=1e-6
    )
    assert min(np.abs(slope)) > 1e-3


@pytest.mark.slow
def test_states_are_floats_also_with_an_optimiser_that_counts():
    estimator = relax(optimizer=optax.adam(0.1))
    q, f = coin(0.45)(jnp.asarray(LOGIT))
    state = estimator.init(q)
    noise = estimator.noise(q).sample(jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):
        after = estimator.update(state, noise, f, q)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert x.dtype == y.dtype == jnp.float64
        assert x.shape == y.shape
    assert after.optimizer[0].count == 1


def model_problem(params):
    theta, phi = params
    q, prior = Bernoulli(phi), Bernoulli(theta)
    return q, lambda b: jnp.sin(theta * b + 0.3) + relaxed_log_prob(prior, b) - relaxed_log_prob(q, b)


def test_value_and_gradients_of_a_discrete_elbo_are_unbiased_for_the_law_and_the_model():
    def objective(theta, phi):
        p = np.array([special.expit(-phi), special.expit(phi)])
        prior = np.array([special.expit(-theta), special.expit(theta)])
        return p @ (np.sin(theta * np.arange(2) + 0.3) + np.log(prior) - np.log(p))

    at = (0.8, -0.6)
    exact = exact_moments(rebar(temperature=0.8), model_problem, tuple(map(jnp.asarray, at)))
    h = 1e-5
    slope = [
        (objective(at[0] + h, at[1]) - objective(at[0] - h, at[1])) / (2 * h),
        (objective(at[0], at[1] + h) - objective(at[0], at[1] - h)) / (2 * h),
    ]
    assert abs(exact.value - objective(*at)) < 1e-10
    np.testing.assert_allclose(exact.mean, slope, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
@pytest.mark.parametrize("estimator", [rebar(2), relax(2)], ids=["rebar", "relax"])
def test_several_coordinates_pass_a_bias_test(family, estimator):
    logits = np.array([0.5, -1.0, 0.2])
    coupling = np.array([[0.3, 1.0, -0.5], [0.2, -0.7, 0.4], [1.1, 0.6, 0.9]])
    exact = np.zeros(3)
    if family is Bernoulli:
        p = special.expit(logits)
        for bits in itertools.product((0, 1), repeat=3):
            b = np.array(bits)
            exact += np.prod(np.where(b == 1, p, 1 - p)) * np.tanh(b @ coupling @ b) * (b - p)
    else:
        p = special.softmax(logits)
        exact = sum(p[i] * np.tanh(coupling[i, i]) * (np.eye(3)[i] - p) for i in range(3))

    def problem(logits):
        return family(logits), lambda b: jnp.tanh(b @ jnp.asarray(coupling) @ b)

    drawn = replicate(jax.random.key(5), estimator, problem, jnp.asarray(logits), replications=40_000)
    scores = (np.array(drawn.mean) - exact) / np.array(drawn.standard_error)
    assert np.abs(scores).max() < z_threshold(12)
    assert np.abs((np.array(drawn.mean) - 0.8 * exact) / np.array(drawn.standard_error)).max() > z_threshold(12)


@pytest.mark.slow
def test_rebar_is_unbiased_for_two_bits_that_interact():
    logits = np.array([0.5, -1.0])
    p = special.expit(logits)
    exact = np.zeros(2)
    for bits in itertools.product((0, 1), repeat=2):
        b = np.array(bits)
        exact += np.prod(np.where(b == 1, p, 1 - p)) * (b[0] + 2 * b[0] * b[1] - b[1]) ** 2 * (b - p)

    def problem(logits):
        return Bernoulli(logits), lambda b: (b[0] + 2 * b[0] * b[1] - b[1]) ** 2

    mean = exact_moments(rebar(temperature=1.0), problem, jnp.asarray(logits), rtol=1e-8).mean
    np.testing.assert_allclose(mean, exact, atol=1e-8)


@pytest.mark.slow
def test_events_of_any_shape_under_jit_and_vmap_in_float32():
    estimators = (rebar(2), relax(2))
    with jax.enable_x64(False):
        logits = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 3)), jnp.float32)

        def gradients(key, logits):
            def problem(logits):
                return OneHotCategorical(logits), lambda z: jnp.sum(z**2) * z[0, 1]

            keys = jax.random.split(key, 2)
            return [value_and_grad(k, e, problem, logits) for k, e in zip(keys, estimators, strict=True)]

        for value, gradient in jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(0), 3), logits):
            assert (value.shape, gradient.shape) == ((3,), (3, 2, 3))
            assert value.dtype == gradient.dtype == jnp.float32
            assert jnp.isfinite(gradient).all()


def test_refusals_name_a_way_out():
    def run(q, f):
        return value_and_grad(jax.random.key(0), rebar(), lambda q: (q, f), q)

    with pytest.raises(NotAvailable, match="OneHotCategorical"):
        run(Categorical(jnp.zeros(3)), lambda z: z * 1.0)
    with pytest.raises(NotAvailable, match="pathwise"):
        run(Normal(0.0, 1.0), lambda z: z)
    with pytest.raises(NotAvailable, match="score_function"):
        run(Bernoulli(0.0), jnp.round)
    with pytest.raises(NotAvailable, match="first derivatives"):
        jax.grad(jax.grad(lambda x: rebar().surrogate((), (jnp.ones(1), jnp.ones(1)), jnp.sin, Bernoulli(x))))(0.3)
    with pytest.raises(ValueError, match="temperature"):
        relax(temperature=-1.0)
    with pytest.raises(ValueError, match="samples"):
        tuned_rebar(0)
