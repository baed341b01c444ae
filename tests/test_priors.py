"""Priors with parameters: densities against SciPy, shared encoders, and a fit that reaches a known mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for
from scipy import special, stats

from vbjax import training
from vbjax.distributions import Mixture, Normal
from vbjax.divergences import kl_divergence
from vbjax.networks.encoders import FlowEncoder, FullGaussianEncoder
from vbjax.networks.mlp import MLP, GaussianEncoder
from vbjax.networks.priors import PRIORS, FlowPrior, MixturePrior, StandardPrior, VampPrior
from vbjax.types import NotAvailable

SHAPE, DIM, WHITE = (3, 2), 2, 16
ENCODERS = {
    "diagonal": GaussianEncoder(MLP((8,)), DIM),
    "full": FullGaussianEncoder(MLP((8,)), DIM),
    "flow": FlowEncoder(MLP((8,)), DIM, layers=2, hidden=4),
}
Z = jnp.asarray(np.random.default_rng(0).normal(size=(12, DIM)).astype(np.float32))


def encoder(name="diagonal"):
    """Parameters, and the `x -> q(z|x)` for integer pixels that they make."""
    module = ENCODERS[name]
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros(SHAPE))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.5 * rng.normal(size=leaf.shape).astype(np.float32), params)
    return params, lambda params: lambda x: module.apply(params, x * (2 / WHITE) - 1)


def no_encoder(x):
    raise AssertionError("this prior knows no encoder")


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_is_a_law_on_the_latent_space_that_its_parameters_move(name):
    prior = PRIORS[name](DIM, SHAPE, WHITE)
    params, encode = encoder()

    @jax.jit
    def report(prior_params, key):
        law = prior.law(prior_params, encode(params))
        return law.sample(key), jax.value_and_grad(lambda p: prior.law(p, encode(params)).log_prob(Z[0]))(prior_params)

    fresh = jax.jit(prior.init)(jax.random.key(2))
    draw, (value, slope) = report(fresh, jax.random.key(3))
    assert draw.shape == (DIM,)
    assert jnp.isfinite(value)
    assert (jax.tree.structure(fresh).num_leaves == 0) == (name == "standard")
    sizes = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)]
    assert name == "standard" or (np.isfinite(sizes).all() and max(sizes) > 0)


def test_the_mixture_prior_matches_scipy():
    prior = MixturePrior(DIM, components=3)
    params = prior.init(jax.random.key(0)) | {"logits": jnp.asarray([0.0, 1.0, -2.0])}
    law = prior.law(params, no_encoder)
    weights, loc, scale = np.asarray(jax.nn.softmax(params["logits"])), law.components.loc, law.components.scale
    by_component = stats.norm.logpdf(np.asarray(Z)[:, None], loc, scale).sum(-1)

    def check(weights):
        expected = special.logsumexp(by_component, b=weights, axis=1)
        assert_allclose(jax.vmap(law.log_prob)(Z), expected, rtol=1e-5)

    holds_only_for(check, weights, np.full(3, 1 / 3), np.ones(3))
    assert np.unique(np.asarray(prior.init(jax.random.key(0))["loc"]), axis=0).shape == (3, DIM)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_vamp_prior_is_the_average_of_the_posteriors_at_its_pseudo_inputs(name):
    prior = VampPrior(SHAPE, WHITE, components=3)
    params, encode = encoder(name)
    pseudo = prior.init(jax.random.key(1))

    @jax.jit
    def at(x):
        q = encode(params)(x)
        return q, jax.vmap(q.log_prob)(Z)

    def density(q, log_prob):
        if name == "diagonal":
            return stats.norm.logpdf(Z, q.loc, q.scale).sum(-1)
        if name == "full":
            return stats.multivariate_normal(q.mean(), np.asarray(q.covariance(), np.float64)).logpdf(Z)
        return log_prob  # of a flow, which has tests of its own

    @jax.jit
    def prior_and_slope(params):
        log_prob, back = jax.vjp(lambda params: jax.vmap(prior.law(pseudo, encode(params)).log_prob)(Z), params)
        return log_prob, back(jnp.ones_like(log_prob))

    by_component = np.stack([density(*at(x)) for x in prior.pseudo_inputs(pseudo)], 1)
    log_prob, (slope,) = prior_and_slope(params)

    def check(components):
        assert_allclose(log_prob, special.logsumexp(by_component, axis=1) - np.log(components), rtol=2e-4, atol=1e-4)

    holds_only_for(check, 3, 1, 2)
    # the encoder is shared: the prior moves with it
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) > 1e-3


def test_pseudo_inputs_are_pixels_and_start_at_given_images():
    prior = VampPrior(SHAPE, WHITE, components=4)
    pixels = prior.pseudo_inputs(prior.init(jax.random.key(0)))
    assert pixels.shape == (4, *SHAPE)
    assert 0 < pixels.min() < 2 < 14 < pixels.max() < WHITE
    images = jnp.arange(24, dtype=jnp.float32).reshape(4, *SHAPE) % 15 + 1
    assert_allclose(prior.pseudo_inputs(prior.init_from(images)), images, rtol=1e-5)
    white = prior.pseudo_inputs(prior.init_from(jnp.full((4, *SHAPE), 16.0)))
    assert_allclose(white, 0.98 * WHITE, rtol=1e-5)
    with pytest.raises(ValueError, match=r"images must have shape \(4, 3, 2\)"):
        prior.init_from(images[:3])


def test_only_the_standard_prior_has_a_closed_form_divergence():
    params, encode = encoder()
    q = encode(params)(jnp.zeros(SHAPE))
    for name, build in PRIORS.items():
        prior = build(DIM, SHAPE, WHITE)
        p = jax.eval_shape(lambda key, prior=prior: prior.law(prior.init(key), encode(params)), jax.random.key(0))
        if name == "standard":
            exact = 0.5 * np.sum(q.scale**2 + q.loc**2 - 1 - 2 * np.log(q.scale))
            assert_allclose(kl_divergence(q, prior.law({}, no_encoder)), exact, rtol=1e-5)
        else:
            with pytest.raises(NotAvailable, match="monte_carlo_kl"):
                kl_divergence(q, p)


def test_the_flow_prior_starts_as_the_standard_one():
    z = jnp.asarray([0.3, -2.0, 5.0])

    @jax.jit
    def log_prob(key):
        return [prior.law(prior.init(key), no_encoder).log_prob(z) for prior in (FlowPrior(3, 2, 4), StandardPrior(3))]

    flow, standard = log_prob(jax.random.key(0))
    assert_allclose(flow, standard, rtol=1e-6)


def test_densities_stay_finite_a_thousand_away():
    params, encode = encoder("flow")
    far = 1e3 * jnp.asarray([[1.0, 0.0], [-1.0, 1.0]])
    for name, build in PRIORS.items():
        prior = build(DIM, SHAPE, WHITE)
        log_prob = jax.jit(lambda k, prior=prior: jax.vmap(prior.law(prior.init(k), encode(params)).log_prob)(far))
        assert np.isfinite(log_prob(jax.random.key(0))).all(), name


@pytest.mark.parametrize("build", [lambda: MixturePrior(2, 0), lambda: VampPrior(SHAPE, 1, 0), lambda: FlowPrior(1)])
def test_bad_sizes_are_named(build):
    with pytest.raises(ValueError, match=r"(components|dim) must be at least"):
        build()


@pytest.mark.slow
def test_a_mixture_prior_fitted_to_draws_of_a_known_mixture_reaches_it():
    # maximum likelihood of 14 free numbers from n draws loses 14 / (2 n) nats = 0.0007 in expectation
    truth = Mixture(
        jnp.log(jnp.asarray([0.5, 0.3, 0.2])),
        Normal([[0.0, 0.0], [3.0, 1.0], [-2.0, 2.0]], [[0.5, 1.0], [0.4, 0.4], [1.0, 0.3]]),
    )
    draws = jax.jit(lambda key: truth.sample(key, (10_000,)))(jax.random.key(0))
    prior = MixturePrior(DIM, components=3)

    def loss(key, params, batch):
        return -jax.vmap(prior.law(params, no_encoder).log_prob)(batch).mean(), {}

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    fresh = prior.init(jax.random.key(4))
    state = training.init_state(fresh, optimizer)
    state = training.fit(jax.random.key(2), loss, lambda step: draws, optimizer, state, steps=1500, chunk=500)
    z = truth.sample(jax.random.key(3), (100_000,))

    @jax.jit
    def excess_of(params):
        return jax.vmap(lambda z: truth.log_prob(z) - prior.law(params, no_encoder).log_prob(z))(z)

    def check(params):
        excess = np.asarray(excess_of(params), np.float64)
        assert excess.mean() < 0.003 + 5 * excess.std() / len(excess) ** 0.5

    holds_only_for(check, state.params, fresh)
