"""Linen networks: shapes, likelihood heads that are laws, dropout whose key is an argument, the batch loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vbjax.distributions import Bernoulli
from vbjax.networks.encoders import ENCODERS
from vbjax.networks.heads import HEADS
from vbjax.networks.priors import PRIORS
from vbjax.networks.vae import conv_vae, mlp_vae
from vbjax.objectives import beta_elbo, free_bits, ramp
from vbjax.vae import elbo, grouped_elbo, log_weights, reconstruct

SHAPE = (3, 2)


def networks(likelihood="discretised_logistic_mixture", levels=17, **options):
    return mlp_vae(SHAPE, likelihood=likelihood, levels=levels, latent_dim=4, hidden=(16, 8), **options)


@pytest.mark.parametrize("likelihood", sorted(name for name in HEADS if HEADS[name].reads != "unit interval"))
def test_every_head_decodes_one_code_to_the_law_of_one_image(likelihood):
    levels = 2 if HEADS[likelihood].reads == "bits" else 5
    net = networks(likelihood, levels)
    law = net.bind(jax.jit(net.init)(jax.random.key(0))).decode(jnp.ones(4))
    assert law.event_shape == SHAPE
    mass = sum(jnp.exp(law.log_prob(jnp.zeros(SHAPE).at[0, 0].set(level))) for level in range(levels))
    other = jnp.exp(law.log_prob(jnp.zeros(SHAPE)))
    # summing one pixel over its levels leaves the mass of the five others
    first = jax.vmap(lambda level: jnp.exp(law.log_prob(jnp.zeros(SHAPE).at[0, 0].set(level))))(
        jnp.arange(levels, dtype=jnp.float32)
    )
    np.testing.assert_allclose(first.sum(), mass, rtol=1e-5)
    assert 0 < other < mass < 1


def test_encoder_sees_pixels_between_minus_one_and_one():
    net = networks()
    assert 0 * net.pixel_scale + net.pixel_offset == -1
    assert 16 * net.pixel_scale + net.pixel_offset == 1


def test_without_a_key_dropout_is_off_and_with_one_it_follows_the_key():
    net = networks(dropout=0.5)
    params, x = jax.jit(net.init)(jax.random.key(0)), jnp.ones(SHAPE)
    code = net.bind(params).encode(x).mean()
    np.testing.assert_array_equal(code, net.bind(params).encode(x).mean())
    masked = [net.bind(params, jax.random.key(k)).encode(x).mean() for k in (1, 1, 2)]
    np.testing.assert_array_equal(masked[0], masked[1])
    assert np.abs(masked[0] - masked[2]).max() > 1e-3
    assert np.abs(masked[0] - code).max() > 1e-3


def test_batch_loss_is_the_mean_negative_elbo_of_its_examples():
    net = networks()
    params, images = jax.jit(net.init)(jax.random.key(0)), jnp.arange(24, dtype=jnp.uint8).reshape(4, *SHAPE) % 17
    loss, terms = net.loss()(jax.random.key(1), params, images)

    def one(key, image):
        _, key_noise, _ = jax.random.split(key, 3)
        return elbo(key_noise, net.bind(params), image.astype(jnp.float32)).total

    keys = jax.random.split(jax.random.key(1), 4)
    np.testing.assert_allclose(loss, -jax.vmap(one)(keys, images).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, terms["kl"] - terms["reconstruction"], rtol=1e-5)


def test_an_objective_is_that_of_the_mean_terms_of_the_batch_and_may_move_with_the_step():
    net = networks()
    params, images = jax.jit(net.init)(jax.random.key(0)), jnp.arange(48, dtype=jnp.uint8).reshape(8, *SHAPE) % 17
    keys = jax.random.split(jax.random.key(1), 8)

    def one(key, image):
        _, key_noise, _ = jax.random.split(key, 3)
        return grouped_elbo(key_noise, net.bind(params), image.astype(jnp.float32))

    @jax.jit
    def losses(step):
        moved = net.loss(objective=beta_elbo(ramp(step, 10)))(jax.random.key(1), params, images)[0]
        return moved, net.loss(objective=free_bits(floor))(jax.random.key(1), params, images)[0]

    terms = jax.jit(jax.vmap(one))(keys, images)
    mean = jax.tree.map(lambda v: v.mean(0), terms)
    floor = float(jnp.median(mean.kls))
    for step in (3, 10):
        warm, free = losses(jnp.int32(step))
        np.testing.assert_allclose(warm, step / 10 * mean.kl - mean.reconstruction, rtol=1e-5)
    np.testing.assert_allclose(free, jnp.maximum(floor, mean.kls).sum() - mean.reconstruction, rtol=1e-5)
    # the wrong variant: a floor under every example
    assert abs(free + jax.vmap(free_bits(floor))(terms).mean()) > 1e-3


ALL_PAIRS = [pytest.param(*pair, marks=pytest.mark.long) for pair in itertools.product(ENCODERS, PRIORS)]
SLOW_PAIRS = [pytest.param("flow", "flow", marks=pytest.mark.slow), *ALL_PAIRS]


@pytest.mark.parametrize(("encoder", "prior"), [("diagonal", "mixture"), ("full", "vamp"), *SLOW_PAIRS])
def test_every_encoder_goes_with_every_prior_on_convolutions(encoder, prior):
    net = conv_vae((4, 4), features=(3,), hidden=(8,), likelihood="normal_predicted", levels=17, latent_dim=3,
                   encoder=encoder, prior=prior)  # fmt: skip

    def numbers(key, x):
        key_init, key_elbo, key_weights = jax.random.split(key, 3)
        vae = net.bind(net.init(key_init))
        return elbo(key_elbo, vae, x), log_weights(key_weights, vae, x, samples=2), reconstruct(vae, x)

    shapes = jax.eval_shape(numbers, jax.random.key(0), jnp.zeros((4, 4)))
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(), (), (2,), (4, 4)]


@pytest.mark.slow
def test_a_flow_encoder_and_a_vamp_prior_share_what_they_should_and_all_of_it_learns():
    net = mlp_vae(SHAPE, likelihood="bernoulli", levels=2, latent_dim=3, hidden=(8,), encoder="flow", prior="vamp")
    params, images = jax.jit(net.init)(jax.random.key(0)), jnp.arange(24, dtype=jnp.uint8).reshape(4, *SHAPE) % 2
    (loss, terms), gradient = jax.jit(jax.value_and_grad(net.loss(), argnums=1, has_aux=True))(
        jax.random.key(1), params, images
    )
    np.testing.assert_allclose(loss, terms["kl"] - terms["reconstruction"], rtol=1e-5)
    assert all(float(jnp.abs(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(part)])).max()) > 0
               for part in gradient.values())  # fmt: skip
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_a_conv_decoder_makes_the_law_of_a_whole_image():
    net = conv_vae((6, 4), likelihood="bernoulli", levels=2, latent_dim=2, features=(3, 5), hidden=(8,), groups=1)

    def laws(key):
        vae = net.bind(net.init(key))
        return vae.decode(jnp.ones(2)), vae.encode(jnp.ones((6, 4)))

    law, q = jax.eval_shape(laws, jax.random.key(0))
    assert isinstance(law, Bernoulli)
    assert law.event_shape == (6, 4)
    assert q.event_shape == (2,)


def test_the_iwae_loss_is_below_the_negative_elbo():
    net = networks()
    params, images = jax.jit(net.init)(jax.random.key(0)), jnp.arange(600, dtype=jnp.uint8).reshape(100, *SHAPE) % 17
    elbo_loss, iwae_loss = jax.jit(
        lambda key: [net.loss(samples=k)(jax.random.clone(key), params, images)[0] for k in (1, 20)]
    )(jax.random.key(1))
    assert iwae_loss < elbo_loss


def test_every_parameter_gets_a_gradient():
    net = networks(dropout=0.1)
    params, images = jax.jit(net.init)(jax.random.key(0)), jnp.arange(24, dtype=jnp.uint8).reshape(4, *SHAPE) % 17
    gradient = jax.jit(jax.grad(lambda p: net.loss(samples=3)(jax.random.key(1), p, images)[0]))(params)
    assert all(bool(jnp.isfinite(leaf).all()) and float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


def test_dynamic_binarisation_draws_fresh_bits_at_every_key():
    net = networks("bernoulli", 2)
    params, images = jax.jit(net.init)(jax.random.key(0)), jnp.full((8, *SHAPE), 128, jnp.uint8)
    loss = jax.jit(net.loss(binarise_dynamically_from=256))
    values = [float(loss(jax.random.key(k), params, images)[0]) for k in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    # pixels that are not bits have probability zero under a Bernoulli law
    assert float(net.loss()(jax.random.key(1), params, images)[0]) == float("inf")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"likelihood": "gauss"}, "likelihood"),
        ({"activation": "swish"}, "activation"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"hidden": ()}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"encoder": "iaf"}, "encoder"),
        ({"prior": "normal"}, "prior"),
        ({"encoder": "flow", "latent_dim": 1}, "latent_dim must be at least 2 for encoder 'flow'"),
        ({"levels": 256}, "levels must be 2 for"),
        ({"likelihood": "categorical", "levels": 1}, "levels must be at least 2"),
    ],
)
def test_bad_arguments_are_named(options, named):
    good = {"likelihood": "bernoulli", "levels": 2, "latent_dim": 2, "hidden": (4,)}
    with pytest.raises(ValueError, match=named):
        mlp_vae(SHAPE, **(good | options))


def test_loss_refuses_zero_samples_instead_of_taking_the_elbo():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        networks().loss(samples=0)


def test_loss_refuses_an_objective_that_several_samples_would_not_read():
    with pytest.raises(ValueError, match="use bound"):
        networks().loss(samples=5, objective=beta_elbo(4.0))
