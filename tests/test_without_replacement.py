"""Sums over some outcomes: exact bias zero against NumPy's enumeration, brute-force ratios, second derivatives."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import z_threshold
from scipy import special

from vbjax.distributions import Bernoulli, Categorical, Joint, Normal
from vbjax.distributions.couplings import WithoutReplacement
from vbjax.estimators import (
    enumeration,
    sum_and_sample,
    unordered_set,
    unordered_set_with_baseline,
    value_and_grad,
)
from vbjax.estimators.without_replacement import MAX_OUTCOMES
from vbjax.exact import exact_moments
from vbjax.types import NotAvailable, stop_gradient

pytestmark = pytest.mark.usefixtures("x64")

LOGITS = np.array([0.4, -1.1, -np.inf, 1.6, 0.2])
COSTS = np.array([1.0, -2.0, 9.0, 0.3, 3.0])
POINT = np.array([0.7, *LOGITS])


def elbo(params):
    """An ELBO with a parameter θ of the model, and an outcome that cannot occur, where log q is -inf."""
    theta, logits = params[0], params[1:]
    q = Categorical(logits)
    return q, lambda z: jnp.cos(theta * jnp.asarray(COSTS)[z]) - q.log_prob(z)


def enumerated(x):
    theta, log_p = x[0], special.log_softmax(x[1:])
    occurs = np.isfinite(log_p)
    return np.exp(log_p[occurs]) @ (np.cos(theta * COSTS[occurs]) - log_p[occurs])


def differences(objective, x, step=1e-3):
    """Five-point differences; zero along a logit of -inf, which no shift moves."""
    return np.array([
        (8 * (objective(x + e) - objective(x - e)) - objective(x + 2 * e) + objective(x - 2 * e)) / (12 * step)
        for e in step * np.eye(len(x))
    ])  # fmt: skip


TRUTH = differences(enumerated, POINT)


def bias(estimator):
    moments = exact_moments(estimator, elbo, jnp.asarray(POINT))
    return max(np.max(np.abs(moments.mean - TRUTH)), abs(float(moments.value) - enumerated(POINT)))


def unordered_set_by_shares(samples):
    """The control: each of the different draws gets 1/k, as if they had been drawn with replacement."""

    def surrogate(state, drawn, f, q):
        values, log_q = jax.vmap(f)(drawn), jax.vmap(q.log_prob)(drawn)
        return jnp.mean(values * jnp.exp(log_q - stop_gradient(log_q)))

    return unordered_set(samples)._replace(surrogate=surrogate)


SHORT = [enumeration(5), sum_and_sample(2, 2), unordered_set_with_baseline(3)]
LONG = [
    sum_and_sample(1),
    sum_and_sample(4, 2),
    sum_and_sample(2, 3),
    unordered_set(2),
    unordered_set(3),
    unordered_set(5),
    unordered_set_with_baseline(2),
    unordered_set_with_baseline(4),
]


@pytest.mark.parametrize("estimator", SHORT, ids=lambda e: e.spec.name)
def test_mean_is_the_gradient_of_the_enumerated_elbo(estimator):
    assert bias(estimator) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("estimator", LONG, ids=lambda e: e.spec.name)
def test_mean_is_the_gradient_for_other_numbers_of_draws(estimator):
    assert bias(estimator) < 1e-9


def test_shares_of_one_over_k_are_biased_for_different_draws():
    costs = np.array([1.0, 4.0, -2.0])
    problem = lambda x: (Categorical(x), lambda z: jnp.asarray(costs)[z])  # noqa: E731
    logits = np.array([0.2, -0.5, 1.0])
    p = special.softmax(logits)
    moments = exact_moments(unordered_set_by_shares(2), problem, jnp.asarray(logits))
    assert np.max(np.abs(moments.mean - p * (costs - p @ costs))) > 0.1


@pytest.mark.slow
def test_all_outcomes_without_replacement_leave_no_variance():
    for estimator in (unordered_set(5), unordered_set_with_baseline(5)):
        assert np.max(np.abs(exact_moments(estimator, elbo, jnp.asarray(POINT)).covariance)) < 1e-24


def ordered_mass(p, order):
    return math.prod(p[s] / (1 - sum(p[t] for t in order[:i])) for i, s in enumerate(order))


def set_mass(p, members):
    return sum(ordered_mass(p, order) for order in itertools.permutations(members))


def without(p, s):
    """The law given that s is removed from its support."""
    rest = np.where(np.arange(len(p)) == s, 0, p)
    return rest / rest.sum()


def test_draws_without_replacement_have_the_mass_of_plackett_and_luce():
    logits = np.array([0.4, -1.1, 1.6, 0.2])
    p = special.softmax(logits)
    law = WithoutReplacement(logits, 2)
    points, weights, exact = law.nodes(8)
    points = np.asarray(points)
    orders = [tuple(int(i) for i in point) for point in points]
    mass = np.array([ordered_mass(p, order) for order in orders])
    assert exact
    assert sorted(orders) == list(itertools.permutations(range(4), 2))
    np.testing.assert_allclose(weights, mass, rtol=1e-13)
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(0)))
    seen = np.array([np.sum(np.all(draws == order, axis=1)) for order in orders])
    assert seen.sum() == 20_000

    def score(mass):
        return np.max(np.abs(seen - 20_000 * mass) / np.sqrt(20_000 * mass * (1 - mass)))

    assert score(mass) < z_threshold(12)
    # the control: with replacement, repetitions refused
    pairs = np.array([p[a] * p[b] for a, b in orders])
    assert score(pairs / pairs.sum()) > z_threshold(12)
    assert float(law.log_prob(jnp.array([1, 1]))) == float(law.log_prob(jnp.array([0, 4]))) == -math.inf


def test_weights_of_a_set_are_its_brute_force_ratios():
    """Value and gradient at every set of three, from permutations in NumPy."""
    p, costs = special.softmax([0.4, -1.1, 1.6, 0.2]), np.array([1.0, -2.0, 0.3, 3.0])

    @functools.partial(jax.jit, static_argnums=2)
    def surrogate(log_p, drawn, name):
        estimator = {"plain": unordered_set, "baseline": unordered_set_with_baseline}[name](3)
        return estimator.surrogate((), drawn, lambda z: jnp.asarray(costs)[z], Categorical(log_p))

    gradients = {name: jax.value_and_grad(functools.partial(surrogate, name=name)) for name in ("plain", "baseline")}
    for members in itertools.combinations(range(4), 3):
        ratio = {s: set_mass(without(p, s), [t for t in members if t != s]) / set_mass(p, members) for s in members}
        own, value = np.zeros(4), sum(p[s] * ratio[s] * costs[s] for s in members)
        with_baseline = np.zeros(4)
        for s in members:
            others = [t for t in members if t != s]
            inner = without(p, s)
            second = {
                t: set_mass(without(inner, t), [u for u in others if u != t]) / set_mass(inner, others) for t in others
            }
            b = p[s] * costs[s] + sum(p[t] * second[t] * costs[t] for t in others)
            slope = p[s] * (np.eye(4)[s] - p)
            own += slope * ratio[s] * costs[s]
            with_baseline += slope * ratio[s] * (costs[s] - b)
        drawn = jnp.asarray(members[::-1], jnp.int32)
        for name, expected in (("plain", own), ("baseline", with_baseline)):
            found, gradient = gradients[name](jnp.log(jnp.asarray(p)), drawn)
            assert float(found) == pytest.approx(value, rel=1e-12)
            np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-14)
            assert np.max(np.abs(gradient - {"plain": with_baseline, "baseline": own}[name])) > 1e-3


HESSIANS = [sum_and_sample(1, 2), unordered_set_with_baseline(2)]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", HESSIANS, ids=lambda e: e.spec.name)
def test_mean_of_the_second_derivatives_is_that_of_the_elbo(estimator):
    assert estimator.spec.derivative_order is None
    occurs = [0, 1, 2, 4, 5]
    params = jnp.asarray(POINT[occurs])
    costs = COSTS[[0, 1, 3, 4]]

    def problem(params):
        q = Categorical(params[1:])
        return q, lambda z: jnp.cos(params[0] * jnp.asarray(costs)[z]) - q.log_prob(z)

    def objective(x):
        log_p = special.log_softmax(x[1:])
        return np.exp(log_p) @ (np.cos(x[0] * costs) - log_p)

    nodes = estimator.noise(problem(params)[0]).nodes(8)

    def surrogate(params, noise):
        q, f = problem(params)
        return estimator.surrogate((), noise, f, q)

    found = np.tensordot(nodes.weights, jax.jit(jax.vmap(jax.hessian(surrogate), (None, 0)))(params, nodes.points), 1)
    step = 1e-3 * np.eye(5)
    x = np.asarray(params)
    truth = [(differences(objective, x + e) - differences(objective, x - e)) / 2e-3 for e in step]
    np.testing.assert_allclose(found, truth, atol=1e-5)


def test_joint_and_float32_laws_are_listed_as_one_categorical():
    """Four of four outcomes are exact, over 40 nats of probability, whatever the order of the draws."""

    def problem(logits):
        q = Joint((Bernoulli(logits), Categorical(jnp.concatenate([logits, logits]))))
        return q, lambda z: jnp.sin(3 * z[0].sum() + z[1].astype(logits.dtype)) - q.log_prob(z)

    logits = jnp.asarray([-40.0], jnp.float32)
    estimators = (enumeration(4), unordered_set_with_baseline(4), sum_and_sample(2, 2))

    @jax.jit
    def estimates(keys):
        return [
            jax.vmap(lambda key, e=e: value_and_grad(key, e, problem, logits))(k)
            for k, e in zip(keys, estimators, strict=True)
        ]

    results = estimates(jax.random.split(jax.random.key(1), (3, 8)))
    for value, gradient in results:
        assert value.dtype == gradient.dtype == jnp.float32
        np.testing.assert_allclose(value, results[0][0], rtol=2e-5)
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert float(results[0][0][0]) == pytest.approx(math.sin(1) / 2 + math.log(2), rel=1e-5)


@pytest.mark.parametrize("estimator", SHORT, ids=lambda e: e.spec.name)
def test_spec_counts_the_calls_of_the_objective(estimator):
    calls = []

    def f(z):
        jax.debug.callback(lambda _: calls.append(1), z)
        return jnp.asarray(COSTS)[z]

    q = Categorical(jnp.asarray(LOGITS))
    jax.jit(lambda key: estimator.surrogate((), estimator.noise(q).sample(key), f, q))(jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == estimator.spec.evaluations
    assert all(getattr(q.capabilities, need) for need in estimator.spec.needs)


def test_supports_that_do_not_fit_are_refused():
    many = Bernoulli(jnp.zeros(13))
    for estimator in (enumeration(2), sum_and_sample(1), unordered_set(2), unordered_set_with_baseline(2)):
        with pytest.raises(NotAvailable, match=r"needs a law that is enumerable.*use score_function"):
            estimator.noise(Normal(0.0, 1.0))
        with pytest.raises(NotAvailable, match=f"at most {MAX_OUTCOMES} outcomes, q has 8192; use score_function"):
            estimator.noise(many)
    two = Bernoulli(jnp.asarray(0.3))
    with pytest.raises(ValueError, match="needs a law of 3 outcomes, q has 2"):
        enumeration(3).noise(two)
    with pytest.raises(NotAvailable, match="leaves nothing of 2 outcomes to sample; use enumeration"):
        sum_and_sample(2).noise(two)
    with pytest.raises(ValueError, match="draws more than the 2 outcomes of q; use enumeration"):
        unordered_set(3).noise(two)
    for samples in (1, 13):
        with pytest.raises(ValueError, match="samples must lie between 2 and 12"):
            unordered_set(samples)
    with pytest.raises(ValueError, match="top must be at least 1"):
        sum_and_sample(0)
    with pytest.raises(ValueError, match="count must lie between 1 and the number of logits"):
        WithoutReplacement(jnp.zeros(2), 3)
