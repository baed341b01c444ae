"""Annealed weights against SciPy's evidence and quadrature: unbiased both ways, and wrong samplers are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles import holds_only_for, z_threshold
from scipy import stats

from vbjax import annealing, bounds
from vbjax.annealing import Annealing, Point, hamiltonian_transition, linear_betas, log_weights, reverse_log_weights
from vbjax.distributions import Bernoulli, Hierarchy, Joint, Normal

LOADING = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.2]], np.float32)
OFFSET = np.array([0.2, -0.1, 0.4], np.float32)
NOISE_SCALE = 0.6
X = np.array([1.4, -0.9, 0.8], np.float32)
PRIOR = Normal(np.zeros(2, np.float32), np.ones(2, np.float32))
COUNT = 10_000


def log_joint(z):
    return Normal(LOADING @ z + OFFSET, NOISE_SCALE * jnp.ones(3)).log_prob(X) + PRIOR.log_prob(z)


def exact_evidence():
    covariance = LOADING @ LOADING.T + NOISE_SCALE**2 * np.eye(3)
    return stats.multivariate_normal(OFFSET, covariance).logpdf(X)


def posterior_draws(count):
    precision = np.eye(2) + LOADING.T @ LOADING / NOISE_SCALE**2
    mean = np.linalg.solve(precision, LOADING.T @ (X - OFFSET) / NOISE_SCALE**2)
    draws = np.random.default_rng(0).multivariate_normal(mean, np.linalg.inv(precision), count)
    return jnp.asarray(draws, jnp.float32)


def plan(steps, step_size=0.5, leapfrog_steps=3):
    return Annealing(linear_betas(steps), jnp.full(steps - 1, step_size), leapfrog_steps)


def many(walk, *args):
    """One chain for each of `COUNT` keys."""
    keys = jax.random.split(jax.random.key(1), COUNT)
    return np.asarray(jax.jit(jax.vmap(walk))(keys, *args)).ravel()


def z_score(log_ratios):
    """Of E exp(log_ratio) = 1."""
    ratios = np.exp(np.asarray(log_ratios, np.float64))
    return (ratios.mean() - 1) / (ratios.std(ddof=1) / ratios.size**0.5)


def unbiased(log_ratios):
    assert abs(z_score(log_ratios)) < z_threshold(20)


def upward(annealing_plan, initial=PRIOR):
    return many(lambda key: log_weights(key, log_joint, initial, annealing_plan, chains=1)) - exact_evidence()


def downward(annealing_plan):
    def walk(key, z):
        return reverse_log_weights(key, log_joint, PRIOR, annealing_plan, z, chains=1)

    return exact_evidence() - many(walk, posterior_draws(COUNT))


def by_hand(weigh_first):
    """Four steps written out: each weighs and moves, in this order or in the wrong one."""

    def at(z):
        return Point(z, *(f(g)(z) for f in (lambda g: g, jax.grad) for g in (PRIOR.log_prob, log_joint)))

    def walk(key):
        def step(carry, t):
            (point, total), key_move = carry, jax.random.fold_in(key_moves, t)
            moved, _ = hamiltonian_transition(key_move, at, point, (t + 1) / 4, 0.5 * jnp.ones(2), 3)
            return (moved, total + (point if weigh_first else moved).log_weight / 4), None

        key_draw, key_moves = jax.random.split(key)
        (_, total), _ = jax.lax.scan(step, (at(PRIOR.sample(key_draw)), jnp.float32(0)), jnp.arange(4))
        return total

    return many(walk) - exact_evidence()


def test_walks_up_average_to_the_evidence_and_walks_down_to_its_inverse():
    unbiased(upward(plan(4)))
    unbiased(downward(plan(4)))
    unbiased(upward(plan(4), Normal(np.float32([0.7, -0.6]), np.float32([0.6, 0.8]))))


@pytest.mark.slow
def test_a_move_without_its_acceptance_test_is_rejected(monkeypatch):
    def unadjusted(key, at, point, beta, step_size, leapfrog_steps):
        momentum = jax.random.normal(key, point.z.shape)
        for _ in range(3):
            momentum = momentum + 0.5 * step_size * point.slope(beta)
            point = at(point.z + step_size * momentum)
            momentum = momentum + 0.5 * step_size * point.slope(beta)
        return point, jnp.ones(())

    large = plan(4, step_size=0.9)
    unbiased(upward(large))
    monkeypatch.setattr(annealing, "hamiltonian_transition", unadjusted)
    assert abs(z_score(upward(large))) > 10


def test_betas_that_do_not_start_at_zero_are_rejected(monkeypatch):
    late = plan(4)._replace(betas=jnp.asarray([0.2, 0.4, 0.6, 0.8, 1.0]))
    with pytest.raises(ValueError, match="betas must increase from 0"):
        log_weights(jax.random.key(0), log_joint, PRIOR, late, chains=1)
    monkeypatch.setattr(annealing, "check_betas", lambda betas: None)
    assert abs(z_score(upward(late))) > 10


def test_a_weight_taken_after_its_move_is_rejected():
    holds_only_for(unbiased, by_hand(weigh_first=True), by_hand(weigh_first=False))


def test_one_step_is_importance_sampling():
    key = jax.random.key(3)
    z = PRIOR.sample(jax.random.split(key, 3)[1], (5,))
    expected = jax.vmap(log_joint)(z) - jax.vmap(PRIOR.log_prob)(z)
    weights = jax.jit(lambda key: log_weights(key, log_joint, PRIOR, plan(1), chains=5))(jax.random.clone(key))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_bracket_closes_on_the_evidence_as_the_steps_grow():
    """Sixteen times the steps: chains that keep up perfectly would lose 16 times less (Neal 2001, section 4)."""

    def bracket(steps):
        return -upward(plan(steps)).mean(), -downward(plan(steps)).mean()

    (below_4, above_4), (below_64, above_64) = bracket(4), bracket(64)
    assert 0 < below_64 < below_4 / 5
    assert 0 < above_64 < above_4 / 5


def test_events_may_be_tuples_and_depend_on_each_other():
    """p(z1) = N(0, 1), p(z2|z1) = N(tanh 2 z1, 1/4), p(x|z) = N(z1 + z2², 0.49), integrated on a grid."""
    top = Normal(np.zeros(1), np.ones(1))
    prior = Hierarchy(top, Partial(lambda z1: Normal(jnp.tanh(2 * z1), 0.5 * jnp.ones(1))))

    def joint(z):
        return Normal(z[0] + z[1] ** 2, 0.7 * jnp.ones(1)).log_prob(jnp.asarray([1.9])) + prior.log_prob(z)

    z1, z2 = np.meshgrid(*[np.linspace(-8, 8, 1601)] * 2)
    density = stats.norm.pdf(z1) * stats.norm(np.tanh(2 * z1), 0.5).pdf(z2) * stats.norm(z1 + z2**2, 0.7).pdf(1.9)
    evidence = np.log(density.sum() * 0.01**2)
    walks = many(lambda key: log_weights(key, joint, prior, plan(4, 0.3), chains=1))
    holds_only_for(unbiased, walks - evidence, walks - evidence - 0.15)


def test_tuned_steps_are_accepted_as_often_as_asked():
    def at(z):
        return Point(z, *(f(g)(z) for f in (lambda g: g, jax.grad) for g in (PRIOR.log_prob, log_joint)))

    @jax.jit
    def accepted(key, step_size, draws):
        def move(key, z):
            return hamiltonian_transition(key, at, at(z), jnp.float32(1), step_size * jnp.ones(2), 3)[1]

        return jax.vmap(move)(jax.random.split(key, 4000), draws).mean()

    tuned = annealing.tune(jax.random.key(0), log_joint, PRIOR, linear_betas(200), leapfrog_steps=3, chains=16)
    draws, step_size = posterior_draws(4000), tuned.step_sizes[-1]

    def as_asked(step_size):
        assert abs(accepted(jax.random.key(1), step_size, draws) - 0.7) < 0.1

    holds_only_for(as_asked, step_size, step_size / 2, step_size * 2)


@pytest.mark.slow
def test_float32_keeps_a_bound_of_three_hundred_nats_over_a_thousand_steps():
    """Evidence -300 at D = 200, k = 4. Rounding: 1000 increments of 0.3 into a sum of 300 move it by about 1e-3."""
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=(200, 4)), rng.normal(size=200)
    x = W @ rng.normal(size=4) + 1.05 * x
    evidence = stats.multivariate_normal(np.zeros(200), W @ W.T + np.eye(200)).logpdf(x)
    W, x, prior = jnp.asarray(W, jnp.float32), jnp.asarray(x, jnp.float32), Normal(np.zeros(4), np.ones(4))

    def joint(z):
        return Normal(W @ z, jnp.ones(200)).log_prob(x) + prior.log_prob(z)

    @jax.jit
    def measure(key):
        key_tune, key_walks = jax.random.split(key)
        betas = annealing.sigmoidal_betas(1000, steepness=8)
        tuned = annealing.tune(key_tune, joint, prior, betas, leapfrog_steps=3)
        return log_weights(key_walks, joint, prior, tuned, chains=256)

    weights = measure(jax.random.key(0))
    assert weights.dtype == jnp.float32
    assert -330 < evidence < -270
    spread = np.exp(weights - evidence).std(ddof=1) / 256**0.5
    assert abs(bounds.iwae(weights) - evidence) < z_threshold(1) * spread + 2e-3
    assert spread < 0.05


def test_betas_run_from_zero_to_one_and_the_sigmoid_is_dense_at_both_ends():
    linear, sigmoid = linear_betas(10), annealing.sigmoidal_betas(10)
    np.testing.assert_allclose(linear, np.arange(11) / 10, rtol=1e-6)
    annealing.check_betas(sigmoid)
    np.testing.assert_allclose(sigmoid + sigmoid[::-1], np.ones(11), rtol=1e-6)
    assert sigmoid[1] < linear[1] / 2 < linear[-1] - linear[-2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_betas(0), "steps must be at least 1"),
        (lambda: annealing.sigmoidal_betas(5, steepness=0), "steepness must be positive"),
        (lambda: tune(betas=jnp.asarray([0.0, 0.5])), "betas must increase from 0"),
        (lambda: tune(betas=jnp.asarray([0.0, 0.5, 0.5, 1.0])), "betas must increase from 0"),
        (lambda: tune(leapfrog_steps=0), "leapfrog_steps and chains must be at least 1"),
        (lambda: tune(acceptance=1), r"acceptance must lie in \(0, 1\)"),
        (lambda: tune(initial=Bernoulli(jnp.zeros(2))), "Bernoulli is not reparameterised"),
        (lambda: tune(initial=Joint((PRIOR, Bernoulli(jnp.zeros(2))))), "Joint is not reparameterised"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def tune(initial=PRIOR, betas=None, **options):
    betas = linear_betas(5) if betas is None else betas
    return annealing.tune(jax.random.key(0), log_joint, initial, betas, **{"leapfrog_steps": 1, **options})
