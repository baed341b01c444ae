"""A q for every datum against the linear VAE's closed forms: what SVI finds, its gradient, and the split of the gap."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for, z_threshold

from vbjax import amortisation
from vbjax.amortisation import DIAGONAL, FULL_COVARIANCE, inference_gaps, sampled_elbo, svi
from vbjax.distributions import LogNormal, Normal
from vbjax.estimators.learning import sgd
from vbjax.linear_gaussian import LinearVAE
from vbjax.training import make_optimizer
from vbjax.vae import VAE

MODEL = LinearVAE(jnp.asarray([[1.0, 0.9], [-0.5, 0.3], [0.9, 0.6]]), jnp.asarray([0.2, -0.1, 0.4]), jnp.asarray(0.36))
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32) * 1.2
BROAD = Normal(jnp.asarray([0.2, -0.3]), jnp.asarray([0.9, 0.6]))
STEPS = 300
COSINE = make_optimizer(learning_rate=0.05, schedule="cosine", steps=STEPS)


def constant_encoder():
    """One q for all data: the mean posterior mean, and the best diagonal variances."""
    mean = jax.vmap(MODEL.posterior_mean)(jnp.asarray(X)).mean(0)
    q = Normal(mean, MODEL.best_diagonal(jnp.asarray(X[0])).scale)
    return VAE(MODEL.prior, lambda x: q, MODEL.decode)


@pytest.fixture(scope="module")
def searched():
    """q* of ten data in either family."""
    x, keys = jnp.asarray(X[:10]), jax.random.split(jax.random.key(0), 10)
    vae = constant_encoder()

    def search(family):
        def one(key, x):
            return svi(key, vae, x, BROAD, COSINE, steps=STEPS, samples=64, family=family)

        return jax.jit(jax.vmap(one))(keys, x)

    return x, search(DIAGONAL), search(FULL_COVARIANCE)


@pytest.mark.slow
def test_svi_comes_within_three_thousandths_of_a_nat_of_the_best_q_of_its_family(searched):
    """Near q* the ELBO is flat: the last steps' noise, of 64 draws at a decayed rate, costs its square."""
    x, diagonal, full = searched
    elbo, evidence = jax.vmap(MODEL.elbo), jax.vmap(MODEL.marginal().log_prob)(x)
    gap = MODEL.diagonal_gap()
    assert gap > 0.1
    np.testing.assert_allclose(evidence - elbo(x, diagonal), np.full(10, gap), atol=3e-3)
    np.testing.assert_allclose(evidence - elbo(x, full), np.zeros(10), atol=3e-3)


def test_no_step_returns_the_start_in_both_families():
    for family in (DIAGONAL, FULL_COVARIANCE):
        q = svi(jax.random.key(0), constant_encoder(), jnp.asarray(X[0]), BROAD, sgd(0.1), steps=0, family=family)
        np.testing.assert_allclose(q.mean(), BROAD.loc)
        np.testing.assert_allclose(q.variance(), BROAD.variance(), rtol=1e-6)


def test_semi_amortised_inference_closes_the_gap_of_a_constant_encoder_by_the_same_search_for_all_data():
    vae, x = constant_encoder(), jnp.asarray(X[:4])
    key = jax.random.key(3)
    fixed = Momentum(0.05)

    @jax.jit
    def measured(x):
        refined = amortisation.semi_amortised(key, vae, fixed, steps=30, samples=8)
        alone = svi(key, vae, x[0], vae.encode(x[0]), fixed, steps=30, samples=8)
        searched = jax.vmap(refined.encode)(x)
        before = jax.vmap(MODEL.elbo, (0, None))(x, vae.encode(x[0]))
        return before, jax.vmap(MODEL.elbo)(x, searched), alone, jax.tree.map(lambda v: v[0], searched)

    before, after, alone, first = measured(x)
    best = jax.vmap(MODEL.marginal().log_prob)(x) - MODEL.diagonal_gap()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), alone, first)
    assert (np.asarray(best - after) < 0.2 * np.asarray(best - before)).all(), (best - before, best - after)


class Momentum(NamedTuple):
    """Heavy-ball descent with optax's interface: an optimiser with a state, written without optax."""

    rate: float

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, gradient, state, params):
        state = jax.tree.map(lambda v, g: 0.5 * v - self.rate * g, state, gradient)
        return state, state


def test_the_semi_amortised_gradient_is_the_difference_quotient_of_the_whole_search():
    """Through four steps, into the start's location, the decoder's weights and the step size alike."""
    with jax.enable_x64(True):
        x = jnp.asarray(X[0], float)
        model = LinearVAE(*(v.astype(float) for v in MODEL))

        def objective(params, stop):
            decoder = model._replace(weights=model.weights + params["W"])
            vae = VAE(model.prior, lambda x: None, decoder.decode)
            start = Normal(params["loc"], jnp.asarray([0.9, 0.6]))
            start = jax.lax.stop_gradient(start) if stop else start
            q = svi(jax.random.key(0), vae, x, start, Momentum(params["rate"]), steps=4, samples=2)
            return sampled_elbo(jax.random.key(1), vae, x, q, draws=2)

        params = {"loc": jnp.asarray([0.2, -0.3]), "W": jnp.zeros((3, 2)), "rate": jnp.asarray(0.05)}
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        value = jax.jit(jax.vmap(lambda v: objective(unravel(v), stop=False)))
        steps = 1e-5 * np.eye(flat.size)
        quotient = (value(flat[None] + steps) - value(flat[None] - steps)) / 2e-5

        def is_the_quotient(stop):
            gradient = jax.grad(lambda v: objective(unravel(v), stop=stop))(flat)
            np.testing.assert_allclose(gradient, quotient, rtol=1e-6, atol=1e-8)

        holds_only_for(is_the_quotient, False, True)


def test_the_gaps_of_a_constant_encoder_are_their_closed_forms():
    """Approximation: (Σ log P_ii - log det P) / 2. Amortisation: half the P-weighted spread of the posterior mean."""
    x, vae = jnp.asarray(X), constant_encoder()
    evidence = jax.vmap(MODEL.marginal().log_prob)(x)
    gaps = jax.jit(
        lambda key, log_evidence: inference_gaps(
            key, vae, x, log_evidence, COSINE, steps=STEPS, samples=64, draws=1000, batch_size=20
        )
    )(jax.random.key(1), evidence)
    moved = jax.vmap(MODEL.posterior_mean)(x) - vae.encode(x).mean()[None]
    amortisation = 0.5 * jnp.einsum("ni,ij,nj->n", moved, MODEL.posterior_precision(), moved).mean()

    def are(closed):
        errors = gaps.monte_carlo_error
        for gap, value, error in zip(gaps[:3], closed, errors, strict=True):
            # q* is found to 3e-3
            assert abs(gap.value - value) < z_threshold(3) * error + 3e-3

    gap = MODEL.diagonal_gap()
    assert gaps.monte_carlo_error.max() < 0.03
    holds_only_for(are, (gap, amortisation, gap + amortisation), (0.0, gap + amortisation, gap + amortisation))
    np.testing.assert_allclose(gaps.total.value, gaps.approximation.value + gaps.amortisation.value, rtol=1e-5)


@pytest.mark.slow
def test_a_linear_encoder_loses_what_the_posterior_mean_bends():
    """x = exp(z + s e): the posterior is normal with mean log(x) / (1 + s²), which no line in x follows."""
    s, x = 0.5, jnp.exp(jnp.linspace(-1.5, 1.5, 12))[:, None]
    variance = s**2 / (1 + s**2)

    def encode(x):
        return Normal(0.4 * x - 0.5, jnp.full(1, variance**0.5))

    vae = VAE(Normal(jnp.zeros(1), jnp.ones(1)), encode, lambda z: LogNormal(z, jnp.full(1, s)))
    evidence = jax.vmap(LogNormal(jnp.zeros(1), jnp.full(1, (1 + s**2) ** 0.5)).log_prob)(x)
    gaps = jax.jit(
        lambda key: inference_gaps(key, vae, x, evidence, COSINE, steps=STEPS, samples=64, draws=4000, batch_size=12)
    )(jax.random.key(2))
    closed = np.mean((0.4 * x - 0.5 - np.log(x) / (1 + s**2)) ** 2) / (2 * variance)
    assert closed > 0.1
    assert abs(gaps.amortisation.value - closed) < z_threshold(2) * gaps.monte_carlo_error[1] + 3e-3
    assert abs(gaps.approximation.value) < z_threshold(2) * gaps.monte_carlo_error[0] + 3e-3
    assert gaps.monte_carlo_error.max() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be at least 0"),
        ({"samples": 0}, "samples at least 1"),
        ({"draws": 1}, "draws must be at least 2"),
        ({"log_evidence": jnp.zeros(3)}, "log_evidence must hold one number for each"),
    ],
)
def test_bad_input_is_refused_by_name(options, message):
    options = {"log_evidence": jnp.zeros(4), "steps": 2, **options}
    with pytest.raises(ValueError, match=message):
        amortisation.inference_gaps(
            jax.random.key(0), constant_encoder(), jnp.asarray(X[:4]), optimizer=sgd(0.1), **options
        )
