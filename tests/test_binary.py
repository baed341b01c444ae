"""ARM, DisARM and ARMS: exact bias zero for functions of whole vectors, published variances, the law of the bits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import z_threshold
from scipy import special, stats

from vbjax.distributions import Bernoulli, Categorical, Copies, Uniform
from vbjax.distributions.couplings import AntitheticBernoulli, PiecewiseUniform
from vbjax.estimators import arm, arms, disarm, leave_one_out, score_function, value_and_grad
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import exact_moments
from vbjax.types import NotAvailable

pytestmark = pytest.mark.usefixtures("x64")

W = np.array([[0.3, -1.2, 0.5], [1.1, 0.4, -0.7], [0.2, 0.9, 1.3]])
LOGITS = np.array([0.3, -1.7, 2.2])
EXTREME = np.array([-np.inf, -40.0, -3.0, -0.4, 0.0, 0.3, 8.0, 40.0, np.inf])


def elbo(params):
    """A model of bits that interact, its own parameter θ, and -log q."""
    theta, logits = params
    q, w = Bernoulli(logits), jnp.asarray(W[: logits.size, : logits.size])
    return q, lambda z: theta * jnp.sin(z @ w @ z) + theta**2 * jnp.prod(z + 0.5) - q.log_prob(z)


def enumerated_elbo(theta, logits):
    total, w = 0.0, W[: len(logits), : len(logits)]
    for bits in itertools.product((0.0, 1.0), repeat=len(logits)):
        z = np.array(bits)
        log_q = np.log(special.expit(np.where(z == 1, logits, -logits))).sum()
        total += np.exp(log_q) * (theta * np.sin(z @ w @ z) + theta**2 * np.prod(z + 0.5) - log_q)
    return total


def differences(objective, x, step=1e-3):
    def at(shift):
        return objective(x + shift)

    return np.array([
        (8 * (at(e) - at(-e)) - at(2 * e) + at(-2 * e)) / (12 * step) for e in step * np.eye(len(x))
    ])  # fmt: skip


def bias(estimator, size):
    """Largest error of the exact mean, of the value and of the gradient in θ and the logits."""
    theta, logits = 0.7, LOGITS[:size]
    moments = exact_moments(estimator, elbo, (jnp.asarray(theta), jnp.asarray(logits)))
    truth = differences(lambda x: enumerated_elbo(x[0], x[1:]), np.array([theta, *logits]))
    gradient = np.array([moments.mean[0], *moments.mean[1]])
    return max(np.max(np.abs(gradient - truth)), abs(float(moments.value) - enumerated_elbo(theta, logits)))


EVERY = [(arm(), 1), (arm(), 3), (disarm(), 1), (disarm(), 2), (disarm(4), 2), (arms(), 1), (arms(4), 2), (arms(3), 3)]


@pytest.mark.parametrize(("estimator", "size"), [(arm(), 2), (disarm(), 3), (arms(3), 2)])
def test_mean_is_the_gradient_for_a_function_of_the_whole_vector(estimator, size):
    assert bias(estimator, size) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "size"), EVERY)
def test_mean_is_the_gradient_for_more_bits_and_pairs(estimator, size):
    assert bias(estimator, size) < 1e-9


def test_leave_one_out_at_antithetic_draws_is_too_large_by_one_less_the_correlation():
    """What the division by 1 - ρ undoes, and what the check must find."""
    wrong = arms(3)._replace(surrogate=score_function(3, baseline=leave_one_out).surrogate)
    rho = float(AntitheticBernoulli(jnp.asarray(LOGITS[:1]), 3).pair_correlation()[0])
    slope = differences(lambda x: enumerated_elbo(0.7, x), LOGITS[:1])[0]
    assert rho < -0.3
    assert bias(wrong, 1) == pytest.approx(abs(rho * slope), rel=1e-9)


def toy(params):
    logit, t = params
    return Bernoulli(logit), lambda b: (b - t) ** 2


def toy_moments(estimator, noise=None):
    """logit, t -> mean and variance of the gradient for (b - t)², from the coarsest rule; compiled once."""

    def gradient(params, noise):
        return value_and_grad_at(noise, estimator, toy, params, ())[1][0]

    every = jax.jit(jax.vmap(gradient, (None, 0)))

    def at(logit, t):
        params = (jnp.asarray(logit), jnp.asarray(t))
        nodes = (noise or estimator.noise(Bernoulli(params[0]))).nodes(8)
        g, w = np.asarray(every(params, nodes.points)), np.asarray(nodes.weights)
        g = np.where(w > 0, g, 0)
        return w @ g, w @ g**2 - (w @ g) ** 2

    return at


def closed_form(name, logit, t):
    p, d = special.expit(logit), 1 - 2 * t
    q = min(p, special.expit(-logit))
    g = q * (1 - q) * d
    if name == "arm":
        return g, 2 * d**2 / 3 * (1 / 8 - (1 / 2 - q) ** 3) - g**2
    return g, q * d**2 * (1 - q) ** 2 / 2 - g**2


@pytest.mark.parametrize(("name", "estimator"), [("arm", arm()), ("disarm", disarm())])
def test_variance_equals_the_closed_form_at_the_lowest_order(name, estimator):
    at = toy_moments(estimator)
    for logit, t in itertools.product((-8.0, -0.9, 0.0, 0.3, 40.0), (0.45, 0.499)):
        mean, variance = closed_form(name, logit, t)
        found = at(logit, t)
        assert found[0] == pytest.approx(mean, rel=1e-9, abs=1e-17)
        assert found[1] == pytest.approx(variance, rel=1e-7, abs=1e-17)
    # the other's variance, and a rule that does not know the breaks
    other = closed_form("disarm" if name == "arm" else "arm", 0.3, 0.45)
    assert at(0.3, 0.45)[1] != pytest.approx(other[1], rel=1e-3)
    if name == "arm":
        blind = toy_moments(estimator, Copies(Uniform(0.0, 1.0), 1))(0.3, 0.45)[1]
        assert blind != pytest.approx(closed_form("arm", 0.3, 0.45)[1], rel=1e-3)


def test_arms_of_two_is_disarm_at_every_outcome():
    params = (jnp.asarray(0.7), jnp.asarray(LOGITS))
    points = AntitheticBernoulli(params[1], 2).enumerate()

    @jax.jit
    def both(b):
        one = value_and_grad_at(b, arms(2), elbo, params, ())
        return one, value_and_grad_at(b[None], disarm(2), elbo, params, ())

    one, other = jax.vmap(both)(points)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), one, other)


@pytest.mark.parametrize("count", [2, 3])
def test_antithetic_bits_have_the_marginals_and_the_correlation_of_a_law(count):
    """The mass of the patterns sums to one, to p, and to the closed correlation; draws have it too."""
    points = np.array(list(itertools.product((0.0, 1.0), repeat=count)))

    def report(logit):
        law = AntitheticBernoulli(logit, count)
        return jnp.exp(jax.vmap(law.log_prob)(jnp.asarray(points))), law.pair_correlation()

    mass, correlation = (np.asarray(v) for v in jax.jit(jax.vmap(report))(jnp.asarray(EXTREME)))
    p, q = special.expit(EXTREME), special.expit(-np.abs(EXTREME))
    np.testing.assert_allclose(mass.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(mass @ points, np.tile(p[:, None], count), atol=1e-12)
    both = mass @ (points[:, 0] * points[:, 1])
    certain = q == 0
    np.testing.assert_allclose((both - p**2)[~certain], (correlation * q * (1 - q))[~certain], atol=1e-12)
    assert np.all(correlation <= 0)
    # cutting the commoner side instead would leave them less antithetic, or as much
    side = 1 - 2 * (1 - q) + np.maximum(2 * (1 - q) ** (1 / (count - 1)) - 1, 0) ** (count - 1)
    here = np.where(EXTREME > 0, both - 2 * p + 1, both)
    assert np.all(here <= side + 1e-12)
    assert count == 2 or here[3] < side[3] - 1e-3

    finite = EXTREME[2:7]
    draws = jax.jit(lambda key: AntitheticBernoulli(finite, count).sample(key, (20_000,)))(jax.random.key(count))
    code = np.asarray(draws, int).transpose(0, 2, 1) @ (2 ** np.arange(count)[::-1])
    for i, expected in enumerate(mass[2:7]):
        seen = np.bincount(code[:, i], minlength=2**count)
        assert not np.any(seen[expected < 1e-12])
        common = expected * 20_000 > 20
        z = (seen - 20_000 * expected) / np.sqrt(20_000 * np.maximum(expected * (1 - expected), 1e-300))
        assert np.max(np.abs(z[common])) < z_threshold(5 * 2**count)
        if count == 3 and i == 2:  # the control: independent bits
            independent = np.full(8, 1 / 8)
            assert np.max(np.abs(seen / 20_000 - independent)) > 0.05


def test_piecewise_uniform_is_uniform_whatever_its_breaks():
    law = PiecewiseUniform(np.array([[0.2, 0.7], [0.0, 1.0]]))
    draws = np.asarray(law.sample(jax.random.key(0), (4000,)))
    assert law.event_shape == (2,)
    assert min(stats.kstest(draws[:, i], "uniform").pvalue for i in range(2)) > 1e-6 / 2
    points, weights = (np.asarray(v) for v in law.nodes(8)[:2])
    np.testing.assert_allclose(weights @ (points[:, 0] > 0.7), 0.3, atol=1e-15)
    np.testing.assert_allclose(weights @ points**3, [0.25, 0.25], atol=1e-15)
    assert weights @ (points[:, 0] > 0.6) != pytest.approx(0.4, abs=1e-3)
    assert float(law.log_prob(jnp.array([0.5, 1.5]))) == -math.inf
    with pytest.raises(ValueError, match=r"breaks must be in \[0, 1\]"):
        PiecewiseUniform(np.array([1.5]))


@pytest.mark.parametrize("estimator", [arm(2), disarm(4), arms(3)], ids=lambda e: e.spec.name)
def test_certain_bits_give_finite_gradients(estimator):
    """f is infinite at what cannot occur; batches of laws and keys by vmap, in float32."""
    dtype = jnp.float32

    def problem(logits):
        q = Bernoulli(logits)
        return q, lambda z: Bernoulli(jnp.zeros_like(z)).log_prob(z) - q.log_prob(z) + z.sum()

    logits = jnp.stack([jnp.asarray(EXTREME, dtype), jnp.asarray(EXTREME[::-1].copy(), dtype)])
    keys = jax.random.split(jax.random.key(3), (100, 2))
    each = jax.vmap(lambda key, logits: value_and_grad(key, estimator, problem, logits))
    values, gradients = jax.jit(jax.vmap(each, (0, None)))(keys, logits)
    assert gradients.dtype == values.dtype == dtype
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))
    if estimator.spec.name != "arm(2)":  # whose noise of the other bits reaches the certain ones
        np.testing.assert_array_equal(gradients[..., [0, -1]], 0)
    assert np.any(np.abs(gradients[..., 4]) > 0.1)


@pytest.mark.parametrize("estimator", [arm(3), disarm(4)], ids=lambda e: e.spec.name)
def test_spec_counts_the_calls_and_second_derivatives_are_refused(estimator):
    calls = []

    def problem(logits):
        def f(z):
            jax.debug.callback(lambda _: calls.append(1), z[0])
            return z.sum()

        return Bernoulli(logits), f

    q, f = problem(jnp.zeros(2))
    noise = jax.jit(lambda key: estimator.noise(q).sample(key))(jax.random.key(0))
    jax.jit(lambda noise: estimator.surrogate((), noise, f, q))(noise)
    jax.effects_barrier()
    assert len(calls) == estimator.spec.evaluations
    assert estimator.spec.derivative_order == 1
    with pytest.raises(NotAvailable, match="first derivatives only"):
        jax.hessian(lambda x: estimator.surrogate((), noise, jnp.sum, Bernoulli(x)))(jnp.zeros(2))


def test_other_laws_and_numbers_of_samples_are_refused():
    for estimator in (arm(), disarm(), arms()):
        with pytest.raises(NotAvailable, match="needs a Bernoulli law, got Categorical; use score_function"):
            estimator.noise(Categorical(jnp.zeros(3)))
    for samples in (1, 3):
        with pytest.raises(ValueError, match="samples must be even"):
            disarm(samples)
    with pytest.raises(ValueError, match="arms needs samples >= 2"):
        arms(1)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        arm(0)
    with pytest.raises(ValueError, match="count must be at least 2"):
        AntitheticBernoulli(jnp.zeros(2), 1)
