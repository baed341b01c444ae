"""Score-function family: exact means against enumerations by NumPy, variances against closed forms, mutants rejected.

The model is small and discrete: two coins z, log p(x, z) = theta z-terms, q with two logits; every mean is a finite
sum. A `LogWeight` and a plain function state the same objective.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from vbjax import bounds
from vbjax.bounds import LogWeight
from vbjax.distributions import (
    Bernoulli,
    Categorical,
    Copies,
    Distribution,
    Joint,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    Uniform,
)
from vbjax.distributions.family import family
from vbjax.estimators import (
    Baseline,
    combination,
    constant,
    cross_fitted,
    leave_one_out,
    muprop,
    nvil,
    pathwise,
    reweighted_wake_sleep,
    score_function,
    score_function_moving_average,
    score_function_optimal_baseline,
    taylor,
    tvo_covariance,
    value_and_grad,
    vimco,
)
from vbjax.estimators.baselines import MovingAverage
from vbjax.estimators.control_variates import _between_values
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.estimators.learning import Network, mlp
from vbjax.exact import exact_moments
from vbjax.moments import replicate
from vbjax.types import NotAvailable, stop_gradient


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


PARAMS = {"theta": np.array([0.8, -0.5]), "logits": np.array([0.4, -0.9])}
X = 0.7
"""The model: z_i ~ Bernoulli(1/2 logits 0.2, -0.3), x | z ~ N(theta·z + theta_0 z_0 z_1, 1)."""
PRIOR = np.array([0.2, -0.3])


def log_likelihood(theta, z):
    return -0.5 * (X - theta @ z - theta[0] * z[0] * z[1]) ** 2 + jnp.sin(2 * theta[1] * z[1])


def coins(params):
    """The ELBO of two coins, as a plain function."""
    q = Bernoulli(params["logits"])
    prior = Bernoulli(jnp.asarray(PRIOR))
    return q, lambda z: log_likelihood(params["theta"], z) + prior.log_prob(z) - q.log_prob(z)


def log_weight(params):
    """The same as a `LogWeight`."""
    q = Bernoulli(params["logits"])
    return q, LogWeight(functools.partial(log_likelihood, params["theta"]), Bernoulli(jnp.asarray(PRIOR)), q)


def jax_params(params=PARAMS):
    return jax.tree.map(jnp.asarray, params)


CORNERS = np.array(list(itertools.product((0.0, 1.0), repeat=2)))


def enumerated(theta, logits):
    """NumPy alone: probabilities of q, log-weights and scores at the four outcomes."""
    p = special.expit(logits)
    q = np.prod(np.where(CORNERS == 1, p, 1 - p), axis=1)
    prior = np.prod(np.where(CORNERS == 1, special.expit(PRIOR), special.expit(-PRIOR)), axis=1)
    mean = CORNERS @ theta + theta[0] * CORNERS[:, 0] * CORNERS[:, 1]
    likelihood = -0.5 * (X - mean) ** 2 + np.sin(2 * theta[1] * CORNERS[:, 1])
    return q, likelihood + np.log(prior) - np.log(q), CORNERS - p


def numpy_bound(bound, samples):
    """E B(l_1, …, l_K) as a function of all four numbers."""
    outcomes = np.array(list(itertools.product(range(4), repeat=samples)))

    def objective(x):
        q, log_w, _ = enumerated(x[2:], x[:2])  # the tree's order: logits, theta
        return float(q[outcomes].prod(1) @ bound(log_w[outcomes]))

    return objective


def differences(objective, x, step=1e-3):
    def at(i, shift):
        return objective(x + shift * np.eye(len(x))[i])

    return np.array(
        [(8 * (at(i, step) - at(i, -step)) - (at(i, 2 * step) - at(i, -2 * step))) / (12 * step) for i in range(len(x))]
    )


FLAT = np.concatenate([PARAMS["logits"], PARAMS["theta"]])


@functools.cache
def truth(name, samples):
    return differences(numpy_bound(NUMPY_BOUNDS[name], samples), FLAT)


def iwae(log_w):
    return special.logsumexp(log_w, axis=-1) - math.log(log_w.shape[-1])


def tvo(log_w):
    weights = special.softmax(0.3 * log_w, axis=-1)
    return 0.3 * log_w.mean(-1) + 0.7 * (weights * log_w).sum(-1)


NUMPY_BOUNDS = {
    "mean": lambda log_w: log_w.mean(-1),
    "iwae": iwae,
    "renyi": lambda log_w: iwae(0.5 * log_w) / 0.5,
    "cubo": lambda log_w: iwae(2 * log_w) / 2,
    "tvo": tvo,
}
BOUNDS = {
    "mean": bounds.mean,
    "iwae": bounds.iwae,
    "renyi": bounds.renyi(0.5),
    "cubo": bounds.cubo(2.0),
    "tvo": bounds.tvo([0.0, 0.3]),
}


def exact_means(estimators, problem, params=None, states=None):
    """Exact mean gradient of estimators that share their noise, over its enumeration, compiled at once."""
    params = jax_params() if params is None else params
    q, _ = problem(params)
    states = [e.init(q) for e in estimators] if states is None else states
    nodes = estimators[0].noise(q).nodes(8)
    assert nodes.exact

    @jax.jit
    @jax.vmap
    def gradients(noise):
        members = zip(estimators, states, strict=True)
        return [value_and_grad_at(noise, e, problem, params, state)[1] for e, state in members]

    return [jax.tree.map(lambda g: np.tensordot(nodes.weights, g, 1), gradient) for gradient in gradients(nodes.points)]


def estimates(z, estimators, problem, params, states=None):
    """Values and gradients at given draws, one pair per estimator, compiled at once."""
    states = [()] * len(estimators) if states is None else states

    @jax.jit
    def all_of_them(z, params):
        members = zip(estimators, states, strict=True)
        return [value_and_grad_at(z, e, problem, params, state) for e, state in members]

    return all_of_them(z, params)


def errors(mean, bound="mean", samples=1):
    """|exact mean - enumerated gradient| in q's parameters and in the model's, relative to the gradient's size."""
    expected = truth(bound, samples)
    error = np.abs(np.concatenate([mean["logits"], mean["theta"]]) - expected) / np.abs(expected).max()
    return error[:2].max(), error[2:].max()


def unbiased(mean, bound="mean", samples=1):
    return max(errors(mean, bound, samples)) < 1e-9


AVERAGE = MovingAverage(np.array(-1.3), np.array(0.8))


def linear(weights):
    """A network without hidden units, which starts at the given weights."""
    return Network(lambda key, x: jnp.asarray(weights, x.dtype), lambda params, x: params @ x)


@pytest.mark.parametrize("samples", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_score_family_is_unbiased_for_an_elbo_in_the_law_and_in_the_model(samples):
    estimators = [
        score_function_moving_average(samples),
        score_function_optimal_baseline(samples),
        nvil(samples),
        nvil(samples, network=linear([1.5, -0.7])),
        taylor(samples),
        taylor(samples, order=2),
        taylor(samples, order=2, baseline=leave_one_out),
        muprop(samples, baseline=constant(-0.4)),
        vimco(samples, bound=bounds.mean),
    ]
    q, _ = log_weight(jax_params())
    states = [AVERAGE, *(e.init(q) for e in estimators[1:])]
    for estimator, mean in zip(estimators, exact_means(estimators, log_weight, states=states), strict=True):
        assert unbiased(mean), estimator.spec.name
        assert estimator.spec.unbiased_variational
        assert estimator.spec.unbiased_model


def as_wrong(estimator, surrogate):
    return estimator._replace(surrogate=surrogate)


def test_check_refuses_wrong_control_variates_and_baselines_that_saw_their_sample():
    """No gradient of E h; E h with the model's and log q's dependence left in; baselines updated before use."""
    average, learned = score_function_moving_average(2), nvil(2, learning_rate=0.1, network=linear([1.5, -0.7]))

    def without_its_mean(state, z, f, q):
        return taylor(2).surrogate(state, z, f, q) - plain_mean(f, q)[0]

    def with_the_model_in_its_mean(state, z, f, q):
        return taylor(2).surrogate(state, z, f, q) + plain_mean(f, q)[1]

    def plain_mean(f, q):
        mean = stop_gradient(q).mean()
        g = _between_values(f)
        slope = stop_gradient(jax.grad(g)(mean))
        return slope @ (q.mean() - mean), g(mean) - stop_gradient(g(mean))

    def early(estimator):
        def surrogate(state, z, f, q):
            return estimator.surrogate(estimator.update(state, z, f, q), z, f, q)

        return as_wrong(estimator, surrogate)

    wrong = [
        as_wrong(taylor(2), without_its_mean),
        as_wrong(taylor(2), with_the_model_in_its_mean),
        early(average),
        early(learned),
        score_function(2, baseline=Baseline("own", lambda v: jnp.full_like(v, v.mean()), independent=False)),
        taylor(2, baseline=Baseline("own", lambda v: jnp.full_like(v, v.mean()), independent=False)),
    ]
    q, _ = log_weight(jax_params())
    states = [(), (), AVERAGE, learned.init(q), (), ()]
    for estimator, mean in zip(wrong, exact_means(wrong, log_weight, states=states), strict=True):
        assert max(errors(mean)) > 1e-3, estimator.spec.name
    assert not wrong[-1].spec.unbiased_variational


# Bounds of K log-weights.


def check_bounds(samples):
    kinds = [score_function, vimco] if samples > 1 else [score_function]
    cases = [(kind(samples, bound=bound), name) for name, bound in BOUNDS.items() for kind in kinds]
    means = exact_means([estimator for estimator, _ in cases], coins)
    for (estimator, name), mean in zip(cases, means, strict=True):
        in_law, in_model = errors(mean, name, samples)
        assert in_law < 1e-9, estimator.spec.name
        assert in_model < 1e-9, estimator.spec.name
        # the control: each bound's gradient against another's; with one draw all bounds are the ELBO
        other = "cubo" if name == "mean" else "mean"
        assert samples == 1 or min(errors(mean, other, samples)) > 1e-3


@pytest.mark.parametrize("samples", [1, 2])
def test_score_function_and_vimco_are_unbiased_for_every_bound_in_the_law_and_in_the_model(samples):
    check_bounds(samples)


@pytest.mark.slow
def test_score_function_and_vimco_are_unbiased_for_three_sample_bounds():
    check_bounds(3)


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["iwae", "renyi", "cubo", "tvo"])
def test_score_path_and_vimco_agree_for_bounds_of_a_normal_model(bound):
    """Two routes and vimco, integrated: z ~ N(0, 1), x | z ~ N(gain z, 1/4), q = N(loc, scale²)."""

    def problem(params):
        q = Normal(params["loc"], params["scale"])
        log_likelihood = lambda z: Normal(params["gain"] * z, 0.5).log_prob(jnp.asarray(1.2))  # noqa: E731
        return q, LogWeight(log_likelihood, Normal(0.0, 1.0), q)

    params = jax.tree.map(jnp.asarray, {"gain": 0.9, "loc": 0.8, "scale": 0.5})
    by_path, *others = [
        exact_moments(factory(2, bound=BOUNDS[bound]), problem, params, rtol=1e-8).mean
        for factory in (pathwise, score_function, vimco)
    ]
    for other in others:
        for name, expected in by_path.items():
            assert float(other[name]) == pytest.approx(float(expected), rel=1e-6), name


def test_vimco_of_the_mean_is_leave_one_out_draw_by_draw():
    z = jnp.asarray(CORNERS[[0, 3, 1, 3, 2]])
    for one, other in (
        (vimco(5, bound=bounds.mean), score_function(5, baseline=leave_one_out)),
        (score_function_optimal_baseline(2), score_function(2, baseline=leave_one_out)),
    ):
        z_k = z[-one.spec.evaluations :]
        (value, gradient), (expected, slope) = estimates(z_k, (one, other), coins, jax_params())
        assert float(value) == pytest.approx(float(expected), rel=1e-14)
        for name in gradient:
            np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("t", [0.45, pytest.param(0.499, marks=pytest.mark.slow)])
def test_variance_of_two_draw_vimco_equals_the_closed_form_of_leave_one_out(t):
    p = special.expit(0.3)
    slope = p * (1 - p) * (1 - 2 * t)
    moments = exact_moments(
        vimco(2, bound=bounds.mean), lambda x: (Bernoulli(x), lambda b: (b - t) ** 2), jnp.asarray(0.3)
    )
    assert float(moments.mean) == pytest.approx(slope, rel=1e-9)
    assert float(moments.covariance[0, 0]) == pytest.approx(slope * (1 - 2 * t) / 2 - slope**2, rel=1e-9)


def test_leave_one_out_signals_vanish_at_the_posterior_and_the_plain_score_does_not():
    """With theta = 0 the data say nothing, the posterior is the prior, and all log-weights are log p(x)."""

    def held(params):
        q, f = log_weight(params)
        return q, f._replace(q=stop_gradient(f.q))

    params = jax_params({"theta": np.zeros(2), "logits": PRIOR})
    z = jnp.asarray(CORNERS[[0, 3, 1]])
    estimators = [score_function(3, baseline=leave_one_out), *(vimco(3, bound=bound) for bound in BOUNDS.values())]
    estimators += [score_function_optimal_baseline(3), tvo_covariance(3, betas=[0.0, 0.3])]
    *zeros, (_, plain) = estimates(z, [*estimators, score_function(3, bound=bounds.iwae)], held, params)
    for value, gradient in zeros:
        assert float(value) == pytest.approx(-0.5 * X**2, rel=1e-12)
        np.testing.assert_allclose(gradient["logits"], 0, atol=1e-15)
    assert np.abs(plain["logits"]).max() > 0.01


def test_wake_phase_gradients_are_those_of_the_enumerated_weights():
    """E Σ w̃ s by NumPy; the model's part is IWAE's; q's is not, and tends to -∇KL(posterior ‖ q) like 1/K."""
    q, log_w, score = enumerated(PARAMS["theta"], PARAMS["logits"])
    posterior = special.softmax(np.log(q) + log_w)
    limit = posterior @ score
    bias = {}
    for samples in (2, 3, 4):
        estimator = reweighted_wake_sleep(samples)
        (mean,) = exact_means([estimator], log_weight)
        outcomes = np.array(list(itertools.product(range(4), repeat=samples)))
        weights = special.softmax(log_w[outcomes], axis=1)
        direction = q[outcomes].prod(1) @ np.einsum("nk,nkd->nd", weights, score[outcomes])
        np.testing.assert_allclose(mean["logits"], direction, rtol=1e-12)
        in_law, in_model = errors(mean, "iwae", samples)
        assert in_model < 1e-9
        assert in_law > 1e-3
        bias[samples] = np.abs(mean["logits"] - limit)
    assert estimator.spec.unbiased_value
    assert estimator.spec.unbiased_model
    assert not estimator.spec.unbiased_variational
    # K times the bias has settled to a tenth, while the bias itself halves
    np.testing.assert_allclose(4 * bias[4], 3 * bias[3], rtol=0.1)
    assert (bias[4] < 0.6 * bias[2]).all()


def test_covariance_gradient_of_the_tvo_is_consistent_biased_and_says_so():
    """Against Σ_j Δβ_j (E_π ∂log w + Cov_π[∇log π̃, log w]) by enumeration; β = 0 alone: short by exactly 1/K."""
    q, log_w, score = enumerated(PARAMS["theta"], PARAMS["logits"])
    limit = 0.0
    for beta, width in ((0.0, 0.3), (0.3, 0.7)):
        pi = special.softmax(np.log(q) + beta * log_w)
        covariance = pi @ ((log_w - pi @ log_w)[:, None] * (1 - beta) * score)
        limit = limit + width * (covariance - pi @ score)
    bias = {}
    for samples in (2, 3, 4):
        estimators = [tvo_covariance(samples, betas=[0.0, 0.3]), tvo_covariance(samples, betas=[0.0])]
        mean, flat = exact_means(estimators, coins)
        in_law, in_model = errors(mean, "tvo", samples)
        assert in_model < 1e-9
        assert in_law > 1e-3
        bias[samples] = np.abs(mean["logits"] - limit)
        np.testing.assert_allclose(flat["logits"], (1 - 1 / samples) * truth("mean", 1)[:2], rtol=1e-9)
        assert not any(e.spec.unbiased_variational for e in estimators)
    np.testing.assert_allclose(4 * bias[4], 3 * bias[3], rtol=0.05)
    assert (bias[4] < 0.6 * bias[2]).all()


# Baselines.


def test_moving_average_updated_before_use_shrinks_the_score_by_exactly_its_own_share():
    estimator = score_function_moving_average(4, decay=0.9)

    def early(state, z, f, q):
        return estimator.surrogate(estimator.update(state, z, f, q), z, f, q)

    def problem(x):
        return Bernoulli(x), lambda b: (b - 0.45) ** 2

    state = MovingAverage(jnp.asarray(0.2), jnp.asarray(1.0))
    slope = special.expit(0.3) * special.expit(-0.3) * 0.1
    honest, wrong = exact_means([estimator, as_wrong(estimator, early)], problem, jnp.asarray(0.3), [state, state])
    assert float(honest) == pytest.approx(slope, rel=1e-12)
    assert float(wrong) == pytest.approx(slope * (1 - (1 - 0.9) / 4), rel=1e-12)


def test_moving_average_is_corrected_for_its_start_and_averages_over_a_batch():
    estimator = score_function_moving_average(3, decay=0.8)
    q = Normal(0.0, 1.0)
    z = jnp.asarray([[1.0, 2.0, 4.0], [0.0, -1.0, 1.0]])
    state = estimator.init(q)
    assert float(state.value) == 0
    first = estimator.update(state, z[0], lambda z: z**2, q)
    assert float(first.value) == pytest.approx(7)
    second = estimator.update(first, z[1], lambda z: z**2, q)
    assert float(second.value) == pytest.approx((0.8 * 7 + 2 / 3) / 1.8)
    each = jax.vmap(lambda z: estimator.update(first, z, lambda z: z**2, q))(z)
    batch = jax.tree.map(lambda x: x.mean(0), each)
    assert float(batch.value) == pytest.approx((0.8 * 7 + (7 + 2 / 3) / 2) / 1.8)


D, S = 1.1, 1.3


def square(params):
    return Normal(*params), lambda z: (z + 0.4) ** 2


SQUARE = (0.7, 1.3)


def test_moving_average_at_the_best_constant_has_the_least_variance_of_the_closed_form():
    """b = d² + 3s² leaves 8d² + 6s² in loc; at E f = d² + s², where the average goes, 8d² + 10s² are left."""
    params = tuple(map(jnp.asarray, SQUARE))
    for level, expected in ((D**2 + 3 * S**2, 8 * D**2 + 6 * S**2), (D**2 + S**2, 8 * D**2 + 10 * S**2)):
        state = MovingAverage(jnp.asarray(level / 2), jnp.asarray(0.5))
        moments = exact_moments(score_function_moving_average(1), square, params, state=state)
        assert float(moments.variance[0]) == pytest.approx(expected, rel=1e-9)


def test_optimal_baseline_weighs_the_other_samples_by_their_squared_scores():
    params = tuple(map(jnp.asarray, SQUARE))
    z = np.array([0.3, -1.1, 2.4, 0.9])
    ((_, gradient),) = estimates(jnp.asarray(z), [score_function_optimal_baseline(4)], square, params)
    costs = (z + 0.4) ** 2
    scores = np.stack([(z - 0.7) / S**2, (z - 0.7) ** 2 / S**3 - 1 / S])
    for got, s in zip(gradient, scores, strict=True):
        others = ~np.eye(4, dtype=bool)
        b = np.array([costs[i] @ s[i] ** 2 / (s[i] @ s[i]) for i in others])
        assert float(got) == pytest.approx(np.mean((costs - b) * s), rel=1e-12)


def test_optimal_baseline_without_a_score_among_the_others_is_their_mean():
    params = tuple(map(jnp.asarray, SQUARE))
    z = jnp.asarray([0.7, 0.7, 1.7])  # two at loc, where the score in loc is zero
    ((_, gradient),) = estimates(z, [score_function_optimal_baseline(3)], square, params)
    assert float(gradient[0]) == pytest.approx((2.1**2 - 1.1**2) / S**2 / 3, rel=1e-12)


@pytest.mark.slow
def test_optimal_baseline_beats_the_mean_with_many_samples():
    """K Var tends to 8d² + 6s² and 40d² + 24s²; the leave-one-out mean's stays at 8d² + 10s² and 40d² + 56s²."""
    result = replicate(
        jax.random.key(3),
        score_function_optimal_baseline(64),
        square,
        tuple(map(jnp.asarray, SQUARE)),
        replications=20_000,
    )
    threshold = stats.norm.isf(1e-6 / 2)
    for variance, error, mean_baseline in zip(
        result.variance, result.variance_standard_error, (8 * D**2 + 10 * S**2, 40 * D**2 + 56 * S**2), strict=True
    ):
        assert 64 * (float(variance) + threshold * float(error)) < mean_baseline


def test_nvil_takes_one_step_of_least_squares_after_use():
    """A linear baseline by hand: θ - lr · 2 mean(θ·η - f) η; over a batch, the mean of the examples' steps."""
    theta, rate = np.array([1.5, -0.7]), 0.05
    estimator = nvil(3, network=linear(theta), learning_rate=rate)
    eta = np.array([[0.4, -0.9], [1.2, 0.3]])
    draws = CORNERS[[[0, 3, 1], [2, 2, 1]]]

    def updated(eta, z):
        q = Bernoulli(eta)
        return estimator.update(estimator.init(q), z, lambda z: z @ jnp.asarray([1.0, 2.0]), q)

    states = jax.jit(jax.vmap(updated))(jnp.asarray(eta), jnp.asarray(draws))
    costs = draws @ np.array([1.0, 2.0])
    steps = np.stack([2 * np.mean(e @ theta - c) * e for e, c in zip(eta, costs, strict=True)])
    np.testing.assert_allclose(states.params, theta - rate * steps, rtol=1e-12)
    np.testing.assert_allclose(states.params.mean(0), theta - rate * steps.mean(0), rtol=1e-12)


def test_nvil_learns_with_an_optax_optimizer_whose_state_averages():
    """Adam by way of the estimator equals Adam by hand, counting its steps in floats."""
    adam = optax.adam(0.01)
    network = mlp((8, 5))
    estimator = nvil(2, network=network, optimizer=adam, seed=4)
    q = Bernoulli(jnp.asarray(PARAMS["logits"]))
    z = jnp.asarray(CORNERS[[0, 3]])
    costs = z.sum(1)

    def f(z):
        return z.sum()

    state = estimator.init(q)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(state))
    params, own = state.params, adam.init(state.params)
    assert float(network.apply(params, q.logits)) == 0

    @jax.jit
    def batch_update(state):
        each = jax.vmap(lambda z: estimator.update(state, z, f, q))(jnp.stack([z, z]))
        return jax.tree.map(lambda x: x.mean(0), each)

    @jax.jit
    def by_hand(params, own):
        slope = jax.grad(lambda p: jnp.mean((costs - network.apply(p, q.logits)) ** 2))(params)
        with jax.numpy_dtype_promotion("standard"):
            step, own = adam.update(slope, own, params)
        return optax.apply_updates(params, step), own

    for _ in range(3):
        state, (params, own) = batch_update(state), by_hand(params, own)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-15), state.params, params)
    (trained,) = exact_means([estimator], coins, states=[state])
    assert unbiased(trained)


# Taylor expansions.


def test_taylor_variance_for_the_square_cost_equals_the_closed_form():
    """Order 1 leaves f - h = (z - loc)²: 15s² in loc, 74s² in scale, whatever d. Order 2 leaves nothing."""
    params = tuple(map(jnp.asarray, SQUARE))
    moments = exact_moments(taylor(), square, params)
    np.testing.assert_allclose(moments.mean, [2 * D, 2 * S], rtol=1e-9)
    np.testing.assert_allclose(moments.variance, [15 * S**2, 74 * S**2], rtol=1e-9)
    z = jnp.asarray([3.1])
    ((value, gradient),) = estimates(z, [taylor(order=2)], square, params)
    assert float(value) == pytest.approx(D**2 + S**2, rel=1e-12)
    np.testing.assert_allclose(gradient, [2 * D, 2 * S], rtol=1e-12)


def test_second_order_taylor_leaves_a_quadratic_cost_no_variance_under_every_independent_law():
    """Gradients of E f from moments alone, at one arbitrary draw."""
    a = jnp.asarray([1.0, -2.0])
    cases = [
        (Poisson(jnp.asarray(4.0)), jnp.asarray(9.0), lambda z: (z - 3) ** 2, lambda q: q.rate + (q.rate - 3) ** 2),
        (
            LogNormal(jnp.asarray([0.2, -0.1]), jnp.asarray([0.4, 0.3])),
            jnp.asarray([2.0, 0.4]),
            lambda z: (a @ z) ** 2,
            lambda q: a**2 @ q.variance() + (a @ q.mean()) ** 2,
        ),
        (
            Joint((Normal(0.3, 0.5), Copies(Bernoulli(jnp.asarray(-0.4)), 2))),
            (jnp.asarray(1.1), jnp.asarray([1.0, 0.0])),
            lambda z: (z[0] + z[1] @ a) ** 2,
            lambda q: (
                q.laws[0].variance() + 5 * q.laws[1].base.variance() + (q.laws[0].loc - q.laws[1].base.mean()) ** 2
            ),
        ),
    ]

    @jax.jit
    def gradients(events):
        draws = jax.tree.map(lambda x: x[None], events)
        got = [
            jax.grad(lambda q, z=z, f=f: taylor(order=2).surrogate((), z, f, q))(q)
            for (q, _, f, _), z in zip(cases, draws, strict=True)
        ]
        return got, [jax.grad(expected)(q) for q, _, _, expected in cases]

    got, truth = gradients([z for _, z, _, _ in cases])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), got, truth)


@pytest.mark.slow
def test_first_order_taylor_serves_a_full_covariance():
    """E (aᵀz)² = (aᵀ loc)² + aᵀ L Lᵀ a."""
    loc, tril, a = np.array([0.4, -0.3]), np.array([[0.7, 0.0], [0.2, 0.5]]), np.array([1.5, -0.8])
    problem = lambda p: (MultivariateNormal(*p), lambda z: (z @ a) ** 2)  # noqa: E731
    moments = exact_moments(taylor(), problem, (jnp.asarray(loc), jnp.asarray(tril)))
    np.testing.assert_allclose(moments.mean[0], 2 * (a @ loc) * a, rtol=1e-9)
    np.testing.assert_allclose(np.tril(moments.mean[1]), np.tril(2 * np.outer(a, a) @ tril), rtol=1e-9)


def test_muprop_leaves_a_linear_cost_of_a_one_hot_law_no_variance():
    logits, costs = np.array([0.2, -0.5, 1.0]), np.array([1.0, 4.0, -2.0])
    expected = differences(lambda x: float(special.softmax(x) @ costs), logits)
    flat = exact_moments(muprop(), lambda x: (OneHotCategorical(x), lambda z: z @ costs), jnp.asarray(logits))
    np.testing.assert_allclose(flat.mean, expected, atol=1e-10)
    np.testing.assert_allclose(flat.covariance, 0, atol=1e-25)


def test_muprop_needs_the_parts_of_a_discrete_elbo_or_a_relaxed_one():
    """A relaxed plain function gives a log-weight's gradient; a strict one has no density at the mean."""
    z = jnp.asarray(CORNERS[[0, 3]])
    params = jax_params()

    def relaxed(params):
        q, _ = log_weight(params)
        prior = jnp.asarray(PRIOR)

        def log_prob(logits, z):
            return z @ logits - jax.nn.softplus(logits).sum()

        return q, lambda z: log_likelihood(params["theta"], z) + log_prob(prior, z) - log_prob(params["logits"], z)

    parts, plain, strict = (
        estimates(z, [muprop(2)], problem, params)[0][1] for problem in (log_weight, relaxed, coins)
    )
    for name in parts:
        np.testing.assert_allclose(parts[name], plain[name], rtol=1e-12)
    assert np.isnan(strict["logits"]).any()


# Combinations.


def spread(params):
    """A high level, which the plain score multiplies and a good constant removes."""
    return Bernoulli(params), lambda b: (b - 0.45) ** 2 + 3


def test_cross_fitted_combination_is_unbiased_and_in_sample_weights_are_not(monkeypatch):
    """Among two fair coins three draws often tie: even the rounding of an own draw must not reach its weight."""
    members = [score_function(1), score_function(1, baseline=constant(-1.0))]
    (mean,) = exact_means([cross_fitted(members, draws=3)], coins)
    assert unbiased(mean)

    def in_sample(gradients, shrinkage):
        variances = gradients.var(1, keepdims=True) + 1e-3
        return jnp.broadcast_to(1 / variances / (1 / variances).sum(0, keepdims=True), gradients.shape)

    monkeypatch.setattr(combination, "_inverse_variances", in_sample)
    (wrong,) = exact_means([cross_fitted(members, draws=3)], coins)
    in_law, in_model = errors(wrong)
    assert in_law > 1e-3
    assert in_model < 1e-9


def test_cross_fitted_combination_follows_members_that_share_out_a_log_weight_differently(monkeypatch):
    """Of the IWAE bound, one member leaves -log q to f, the other differentiates all through its own argument."""
    plain = score_function(2, bound=bounds.iwae)

    def all_in_q(state, z, f, q):
        return plain.surrogate(state, z, f._replace(q=q), q)

    members = [plain, plain._replace(surrogate=all_in_q)]
    problem = coin_log_weight
    logit, theta = 0.4, 0.8

    def objective(x):
        p = special.expit(x[0])
        log_w = np.array([x[1], x[1] ** 2]) - np.log([1 - p, p])
        mass = np.array([1 - p, p])
        return sum(mass[i] * mass[j] * iwae(log_w[[i, j]]) for i in (0, 1) for j in (0, 1))

    expected = differences(objective, np.array([logit, theta]))
    params = (jnp.asarray(logit), jnp.asarray(theta))
    (mean,) = exact_means([cross_fitted(members, draws=3)], problem, params)
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    # the control: blind to what is inside of f, it weighs parts whose expectations differ
    monkeypatch.setattr(combination, "_laws", lambda f, q: (q,))
    (blind,) = exact_means([cross_fitted(members, draws=3)], problem, params)
    assert abs(float(blind[0]) - expected[0]) > 1e-3


def coin_log_weight(params):
    logit, theta = params
    q = Bernoulli(logit)
    return q, LogWeight(lambda z: theta * (1 - z) + theta**2 * z + math.log(2), Bernoulli(jnp.zeros(())), q)


def test_cross_fitted_combination_leans_to_the_better_member():
    members = [score_function(1), score_function(1, baseline=constant(3.1))]
    logit = jnp.asarray(0.3)
    worse, better = (float(exact_moments(e, spread, logit).covariance[0, 0]) for e in members)
    moments = exact_moments(cross_fitted(members, draws=5), spread, logit)
    variance = 5 * float(moments.covariance[0, 0])
    assert float(moments.mean) == pytest.approx(special.expit(0.3) * special.expit(-0.3) * 0.1, rel=1e-9)
    assert 1 / (1 / worse + 1 / better) < variance < (worse + better) / 4 / 2


def test_cross_fitted_members_learn_from_all_their_draws():
    average = score_function_moving_average(2, decay=0.5)
    estimator = cross_fitted([average, score_function(1)], draws=3)
    q = Normal(0.0, 1.0)
    z = jnp.arange(6.0).reshape(3, 2)
    state = estimator.update(estimator.init(q), (z, jnp.zeros((3, 1))), lambda z: z, q)
    assert float(state[0].value) == pytest.approx(2.5)
    assert state[1] == ()
    assert estimator.spec.evaluations == 9


# What they refuse, and what they promise.

EVERY = [
    score_function_moving_average(2),
    score_function_moving_average(2, bound=bounds.iwae),
    score_function_optimal_baseline(3),
    nvil(2),
    taylor(2),
    vimco(3),
    tvo_covariance(2, betas=[0.0, 0.5]),
    cross_fitted([score_function(1), taylor(1)], draws=3),
    reweighted_wake_sleep(2),
]


def normal_log_weight(params):
    q = Normal(*params)
    prior = Normal(jnp.zeros_like(q.loc), jnp.ones_like(q.scale))
    return q, LogWeight(lambda z: -jnp.sum((z - 1.2) ** 2), prior, q)


@pytest.mark.parametrize("run", [jax.eval_shape, pytest.param(lambda f, *args: f(*args), marks=pytest.mark.slow)])
def test_estimators_run_in_float32_under_jit_and_vmap_with_vector_events(run):
    """Traced by default: types and shapes; the numbers in the slow run."""
    with jax.enable_x64(False):
        params = (jnp.ones((5, 2)), jnp.full((5, 2), 0.5))

        @jax.jit
        @jax.vmap
        def step(key, params):
            q, f = normal_log_weight(params)
            results = []
            for estimator, own_key in zip(EVERY, jax.random.split(key, len(EVERY)), strict=True):
                noise, state = estimator.noise(q).sample(own_key), estimator.init(q)
                estimate = value_and_grad_at(noise, estimator, normal_log_weight, params, state)
                results.append((estimate, estimator.update(state, noise, f, q)))
            return results

        results = run(step, jax.random.split(jax.random.key(0), 5), params)
    for estimator, ((value, gradient), state) in zip(EVERY, results, strict=True):
        assert value.shape == (5,)
        assert [g.shape for g in gradient] == [(5, 2), (5, 2)]
        for x in jax.tree.leaves((value, gradient, state)):
            assert x.dtype == jnp.float32, estimator.spec.name
            assert run is jax.eval_shape or np.isfinite(x).all(), estimator.spec.name


@pytest.mark.parametrize("estimator", EVERY, ids=lambda e: e.spec.name)
def test_spec_knows_the_order_and_what_is_needed(estimator):
    """Traced, not run: a refusal comes before any number."""
    params = (jnp.asarray(0.7), jnp.asarray(1.3))
    moving = Uniform(0.0, 1.0)

    def first(params):
        q, _ = normal_log_weight(params)
        noise = estimator.noise(q).sample(jax.random.key(1))
        return value_and_grad_at(noise, estimator, normal_log_weight, params, estimator.init(q))[1][0]

    def surrogate_alone():
        q, f = normal_log_weight(params)
        noise = estimator.noise(q).sample(jax.random.key(1))
        return estimator.surrogate(estimator.init(q), noise, f, moving)

    if estimator.spec.derivative_order is None:
        jax.eval_shape(jax.grad(first), params)
    else:
        with pytest.raises(NotAvailable, match="gives first derivatives only"):
            jax.eval_shape(jax.grad(first), params)
    assert "fixed_support" in estimator.spec.needs
    for refused in (lambda: estimator.noise(moving), lambda: jax.eval_shape(surrogate_alone)):
        with pytest.raises(NotAvailable, match=r"needs a law that is fixed_support.*use pathwise"):
            refused()


@pytest.mark.parametrize("estimator", [e for e in EVERY if e.spec.derivative_order == 1], ids=lambda e: e.spec.name)
def test_a_second_derivative_across_q_and_the_model_is_refused_not_zero(estimator):
    """The gradient in q depends on the model; as a constant it would have slope zero there, silently."""

    def value(eta, theta, noise):
        q = Normal(eta, jnp.ones_like(eta))
        f = LogWeight(lambda z: jnp.cos(theta * z), Normal(0.0, 2.0), q)
        return estimator.surrogate(estimator.init(q), noise, f, q)

    eta, theta = jnp.asarray(0.7), jnp.asarray(1.3)
    noise = estimator.noise(Normal(eta, 1.0)).sample(jax.random.key(0))
    jax.eval_shape(jax.jacfwd(value, (0, 1)), eta, theta, noise)
    with pytest.raises(NotAvailable, match="gives first derivatives only"):
        jax.eval_shape(jax.grad(lambda theta: jax.grad(value)(eta, theta, noise)), theta)


def test_spec_counts_the_calls_of_the_objective():
    counted = [e for e in EVERY if not e.spec.name.startswith(("taylor", "cross_fitted", "reweighted"))]
    calls = dict.fromkeys(range(len(counted)), 0)
    q = Normal(0.7, 1.3)

    def count(i):
        calls[int(i)] += 1

    @jax.jit
    def run(key):
        def value(i, estimator, key):
            def f(z):
                jax.debug.callback(lambda _: count(i), z)
                return (z + 0.4) ** 2

            return estimator.surrogate(estimator.init(q), estimator.noise(q).sample(key), f, q)

        keys = jax.random.split(key, len(counted))
        return [value(i, estimator, key) for i, (estimator, key) in enumerate(zip(counted, keys, strict=True))]

    run(jax.random.key(0))
    jax.effects_barrier()
    assert list(calls.values()) == [e.spec.evaluations for e in counted]


def test_names_show_what_was_asked_for():
    assert [e.spec.name for e in EVERY] == [
        "score_function_moving_average(2)",
        "score_function_moving_average(2, iwae)",
        "score_function_optimal_baseline(3)",
        "nvil(2)",
        "taylor(2)",
        "vimco(3, iwae)",
        "tvo_covariance(2, tvo(2 points))",
        "cross_fitted(score_function(1, no_baseline), taylor(1), draws=3)",
        "reweighted_wake_sleep(2, iwae)",
    ]
    assert taylor(2, order=2, baseline=leave_one_out).spec.name == "taylor(2, order=2, leave_one_out)"
    assert (taylor(2).spec.evaluations, taylor(2, order=2).spec.evaluations, muprop(3).spec.evaluations) == (4, 5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_function(2, baseline=leave_one_out, bound=bounds.iwae), "or vimco, which leaves one out"),
        (lambda: score_function_moving_average(2, decay=1.0), "decay must be in"),
        (lambda: score_function_moving_average(0), "samples must be at least 1"),
        (lambda: score_function_optimal_baseline(1), "needs samples >= 2"),
        (lambda: nvil(0), "samples must be at least 1"),
        (lambda: taylor(1, order=3), "order must be 1 or 2"),
        (lambda: taylor(1, baseline=leave_one_out), "leave_one_out needs samples >= 2"),
        (lambda: vimco(1), "needs samples >= 2.*use score_function"),
        (lambda: tvo_covariance(1, betas=[0.0]), "needs samples >= 2"),
        (lambda: tvo_covariance(2, betas=[0.5]), "betas must increase from 0"),
        (lambda: reweighted_wake_sleep(1), "needs samples >= 2"),
        (lambda: cross_fitted([score_function(1)]), "two or more"),
        (lambda: cross_fitted([score_function(1), reweighted_wake_sleep(2)]), "is biased"),
        (lambda: cross_fitted([score_function(1), taylor(1)], draws=2), "draws must be at least 3"),
        (lambda: cross_fitted([score_function(1), taylor(1)], shrinkage=0.0), "shrinkage must be positive"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@family
class WithoutMean(Normal):
    mean = Distribution.mean


@pytest.mark.parametrize(
    ("estimator", "q", "message"),
    [
        (muprop(1), lambda: Categorical(jnp.zeros(3)), "events are integers; use OneHotCategorical"),
        (taylor(1), lambda: Joint((Normal(0.0, 1.0), Categorical(jnp.zeros(3)))), "use OneHotCategorical"),
        (taylor(1, order=2), lambda: OneHotCategorical(jnp.zeros(3)), "use order=1"),
        (taylor(1, order=2), lambda: MultivariateNormal(jnp.zeros(2), jnp.eye(2)), "use order=1"),
        (taylor(1), lambda: WithoutMean(0.0, 1.0), r"needs moments.*has no mean.*use score_function"),
    ],
)
def test_laws_without_what_is_needed_are_refused_with_a_way_out(estimator, q, message):
    with pytest.raises(NotAvailable, match=message):
        estimator.noise(q())


def test_wake_sleep_refuses_an_objective_that_hides_its_parts():
    with pytest.raises(NotAvailable, match=r"pass f as bounds\.LogWeight"):
        value_and_grad(jax.random.key(0), reweighted_wake_sleep(2), coins, jax_params())
