"""Posteriors beyond independent coordinates: the full covariance is SciPy's, the flow reads the features of x."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for
from scipy import stats

from vbjax.distributions import CouplingFlow, MultivariateNormal, Normal
from vbjax.networks.encoders import ENCODERS, FlowEncoder, FullGaussianEncoder
from vbjax.networks.mlp import MLP

SHAPE, DIM = (3, 2), 4
X = jnp.linspace(-1.0, 1.0, 6).reshape(SHAPE)


def build(name, scale=0.0):
    """An encoder, compiled, with its parameters, all moved by a random step of the given size."""
    encoder = ENCODERS[name](MLP((8,)), DIM)
    rng = np.random.default_rng(0)
    params = jax.jit(encoder.init)(jax.random.key(0), X)
    params = jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(np.float32), params)
    return jax.jit(encoder.apply), params


@pytest.mark.parametrize(("name", "law"), [("diagonal", Normal), ("full", MultivariateNormal), ("flow", CouplingFlow)])
def test_each_encoder_makes_its_law_and_starts_with_independent_coordinates(name, law):
    encode, params = build(name)
    q = encode(params, X)
    assert type(q) is law
    assert q.event_shape == (DIM,)
    assert q.capabilities.reparameterised
    jacobian = jax.jit(jax.jacfwd(q.transport))(jnp.ones(DIM))
    assert_allclose(jacobian, np.diag(np.diagonal(jacobian)), atol=1e-7)
    assert 0.05 < np.diagonal(jacobian).min() < np.diagonal(jacobian).max() < 10


def test_the_full_encoder_is_the_multivariate_normal_law_of_its_cholesky_factor():
    encode, params = build("full", scale=0.7)
    q = encode(params, X)
    covariance = np.asarray(q.covariance(), np.float64)
    correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs(correlation - np.eye(DIM)).max() > 0.3
    z = np.random.default_rng(1).normal(size=(20, DIM)).astype(np.float32)
    expected = stats.multivariate_normal(np.asarray(q.mean()), covariance).logpdf(z)
    independent = Normal(q.loc, jnp.diagonal(q.scale_tril))
    holds_only_for(lambda law: assert_allclose(jax.vmap(law.log_prob)(z), expected, rtol=1e-4), q, independent)


def test_the_scale_stays_positive_however_far_the_network_goes():
    encode, params = build("full")
    params["params"]["moments"]["bias"] = jnp.full(2 * DIM, -1e4)
    assert jnp.diagonal(encode(params, X).scale_tril).min() > 0


def test_the_flow_encoder_differs_from_input_to_input_by_more_than_its_base():
    encode, params = build("flow", scale=0.5)
    first, second = (encode(params, x) for x in (X, -X))
    on_one_base = CouplingFlow(first.base, second.conditioners)
    log_prob = jax.jit(lambda law: law.log_prob(jnp.full(DIM, 0.3)))
    assert abs(float(log_prob(first) - log_prob(on_one_base))) > 1e-2


def test_the_dropout_mask_follows_the_key():
    encoder = FlowEncoder(MLP((8,), dropout=0.5), DIM, layers=1, hidden=4)
    params = jax.jit(encoder.init)(jax.random.key(0), X)

    @jax.jit
    def log_prob(x, key):
        return encoder.apply(params, x, key).log_prob(jnp.zeros(DIM))

    first, same, other_key, other_x = (log_prob(x, jax.random.key(k)) for x, k in ((X, 1), (X, 1), (X, 2), (-X, 1)))
    assert first == same
    assert first not in (other_key, other_x)


def test_a_full_encoder_of_one_coordinate_has_nothing_below_its_diagonal():
    encoder = FullGaussianEncoder(MLP((4,)), 1)
    q = jax.eval_shape(lambda key: encoder.apply(encoder.init(key, X), X), jax.random.key(0))
    assert q.scale_tril.shape == (1, 1)


def test_a_flow_of_one_coordinate_is_refused_by_name():
    encoder = FlowEncoder(MLP((4,)), 1)
    with pytest.raises(ValueError, match="dim must be at least 2 for a coupling flow, got 1"):
        encoder.init(jax.random.key(0), X)
