"""Levels of latents: the KL's chain by enumeration, evidence of a two-level Gaussian model, the ladder's product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from numpy.testing import assert_allclose
from oracles import holds_only_for, z_threshold
from scipy import stats

from vbjax.distributions import Bernoulli, Categorical, Hierarchy, MultivariateNormal, Normal
from vbjax.hierarchical import level_kls, precision_weighted
from vbjax.networks.hierarchical_vae import hierarchical_vae
from vbjax.vae import VAE, code, elbo, grouped_elbo, log_weights

SHAPE = (3, 2)


def discrete(seed):
    """Four outcomes, then three bits given them, then two outcomes given the number of bits."""
    rng = np.random.default_rng(seed)
    top, middle, bottom = (rng.normal(size=size).astype(np.float32) for size in (4, (4, 3), (4, 2)))
    return Hierarchy(
        Categorical(jnp.asarray(top)),
        Partial(_after_top, jnp.asarray(middle), jnp.asarray(bottom)),
    )


def _after_top(middle, bottom, z):
    return Hierarchy(Bernoulli(middle[z.astype(int)]), Partial(_after_middle, bottom))


def _after_middle(bottom, z):
    return Categorical(bottom[z.sum().astype(int)])


def test_the_levels_kls_average_under_q_to_the_kl_of_the_whole_and_under_p_do_not():
    q, p = discrete(0), discrete(1)
    z = q.enumerate()

    @jax.jit
    def measure():
        return jax.vmap(q.log_prob)(z), jax.vmap(p.log_prob)(z), jax.vmap(lambda z: level_kls(q, p, z))(z)

    log_q, log_p, kls = (np.asarray(v, np.float64) for v in measure())
    assert kls.shape == (4 * 8 * 2, 3)
    whole = np.exp(log_q) @ (log_q - log_p)
    holds_only_for(lambda w: assert_allclose(w @ kls.sum(1), whole, rtol=1e-5), np.exp(log_q), np.exp(log_p))
    # the top level is one number, and it is that of the marginals
    marginals = [np.exp(v).reshape(4, 16).sum(1) for v in (log_q, log_p)]
    assert_allclose(kls[:, 0], stats.entropy(*marginals), rtol=1e-5)


TOP = np.array([[0.8, -0.3], [0.2, 1.1], [-0.6, 0.4]])
LOADING = np.array([[1.0, 0.2, 0.0], [-0.5, 1.0, 0.3], [0.3, -0.2, 0.9], [0.0, 0.7, -0.4]])
SCALE, NOISE = 0.7, 0.5
X = np.array([0.9, -0.4, 1.3, 0.2])


def posterior_of(loading, noise, x):
    """Of z ~ N(0, I) with x|z ~ N(loading z, noise): mean and covariance."""
    precision = np.linalg.inv(noise)
    covariance = np.linalg.inv(np.eye(loading.shape[1]) + loading.T @ precision @ loading)
    return covariance @ loading.T @ precision @ x, covariance


def gaussian_levels(shift=0.0):
    """z_top ~ N(0, I), z_bottom ~ N(TOP z_top, SCALE²), x ~ N(LOADING z_bottom, NOISE²), with its exact posterior."""
    f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    given_top = SCALE**2 * LOADING @ LOADING.T + NOISE**2 * np.eye(4)
    mean_top, cov_top = posterior_of(LOADING @ TOP, given_top, X)
    cov = np.linalg.inv(np.eye(3) / SCALE**2 + LOADING.T @ LOADING / NOISE**2)
    from_top, from_x = f32(cov @ TOP / SCALE**2), f32(cov @ LOADING.T @ X / NOISE**2 + shift)
    q = Hierarchy(
        MultivariateNormal(f32(mean_top), f32(np.linalg.cholesky(cov_top))),
        Partial(lambda a, b, tril, z: MultivariateNormal(a @ z + b, tril), from_top, from_x,
                f32(np.linalg.cholesky(cov))),
    )  # fmt: skip
    prior = Hierarchy(Normal(jnp.zeros(2), jnp.ones(2)), Partial(lambda a, z: Normal(a @ z, SCALE), f32(TOP)))
    vae = VAE(prior, lambda x: q, lambda z: Normal(f32(LOADING) @ z[1], NOISE * jnp.ones(4)))
    marginal = SCALE**2 * np.eye(3) + TOP @ TOP.T
    evidence = stats.multivariate_normal(np.zeros(4), LOADING @ marginal @ LOADING.T + NOISE**2 * np.eye(4)).logpdf(X)
    return vae, evidence


def test_under_the_exact_posterior_of_both_levels_every_weight_is_the_evidence():
    weigh = jax.jit(lambda key, shift: log_weights(key, gaussian_levels(shift)[0], jnp.asarray(X, jnp.float32),
                                                   samples=6), static_argnums=1)  # fmt: skip
    evidence = gaussian_levels()[1]

    def check(shift):
        assert_allclose(weigh(jax.random.key(0), shift), np.full(6, evidence), rtol=1e-5)

    holds_only_for(check, 0.0, 0.2)


def test_the_elbo_of_the_exact_posterior_is_the_evidence_and_its_levels_sum_to_its_kl():
    vae, evidence = gaussian_levels()
    count, x = 4000, jnp.asarray(X, jnp.float32)
    terms = jax.jit(jax.vmap(lambda key: grouped_elbo(key, vae, x)))(jax.random.split(jax.random.key(1), count))

    def check(total):
        assert abs(total.mean() - evidence) < z_threshold(2) * total.std() / count**0.5

    holds_only_for(check, np.asarray(terms.reconstruction - terms.kls.sum(1)), np.asarray(terms.reconstruction))
    first = jax.tree.map(lambda v: v[0], terms)
    whole = elbo(jax.random.split(jax.random.key(1), count)[0], vae, x)
    assert_allclose(whole.total, first.total, rtol=1e-6)
    assert_allclose(jax.tree.leaves(code(vae, x))[0], vae.encode(x).first.loc)


def test_the_precision_weighted_law_is_the_normalised_product_of_the_two_densities():
    evidence, prior = Normal(jnp.asarray([1.2, -3.0]), jnp.asarray([0.4, 2.0])), Normal(jnp.zeros(2), jnp.ones(2))
    grid = np.linspace(-12, 12, 20_001)
    product = [stats.norm.pdf(grid, m, s) * stats.norm.pdf(grid) for m, s in ((1.2, 0.4), (-3.0, 2.0))]
    expected = [p / p.sum() for p in product]
    mean = [p @ grid for p in expected]
    deviation = [np.sqrt(p @ (grid - m) ** 2) for p, m in zip(expected, mean, strict=True)]

    def check(law):
        assert_allclose([law.loc, law.scale], [mean, deviation], rtol=1e-5)

    halves = Normal(evidence.loc / 2, evidence.scale / 2)
    holds_only_for(check, precision_weighted(evidence, prior), precision_weighted(prior, prior), halves)
    extreme = precision_weighted(Normal(jnp.asarray([5.0]), jnp.asarray([1e30])), Normal(jnp.ones(1), jnp.ones(1)))
    assert_allclose([extreme.loc, extreme.scale], [[1.0], [1.0]])


def networks(inference, **options):
    return hierarchical_vae(SHAPE, likelihood="categorical", levels=5, latent_dims=(2, 3), hidden=(8,),
                            hidden_top=(8,), inference=inference, **options)  # fmt: skip


def moved(params):
    """Away from the start, where the path down does not depend on z_top."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(
        tree, [v + 0.3 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)]
    )


def test_a_fresh_model_is_flat_and_its_path_down_has_one_dropout_mask():
    net = networks("ladder", dropout=0.5)
    start = jax.jit(net.init)(jax.random.key(0))
    tops = 3 * jax.random.normal(jax.random.key(1), (5, 2))

    @jax.jit
    def laws(params, key):
        vae = net.bind(params, key)
        alone, twice = jax.vmap(vae.prior.then)(tops), jax.vmap(vae.prior.then)(tops)
        return alone.loc, alone.scale, twice.loc

    def flat(params):
        loc, scale, _ = laws(params, jax.random.key(2))
        assert_allclose([loc, scale], [np.zeros((5, 3)), np.ones((5, 3))], atol=1e-6)

    holds_only_for(flat, start, moved(start))
    loc, _, again = laws(moved(start), jax.random.key(2))
    holds_only_for(lambda other: assert_allclose(loc, other), again, laws(moved(start), jax.random.key(3))[0])


@pytest.mark.parametrize("inference", ["ladder", pytest.param("separate", marks=pytest.mark.slow)])
def test_the_loss_names_each_levels_kl_and_moves_every_parameter(inference):
    net = networks(inference, dropout=0.2)
    params, images = moved(jax.jit(net.init)(jax.random.key(0))), jnp.arange(24, dtype=jnp.uint8).reshape(4, *SHAPE) % 5
    gradient, terms = jax.jit(jax.grad(net.loss(), argnums=1, has_aux=True))(jax.random.key(1), params, images)
    assert_allclose(terms["kl"], terms["kl_top"] + terms["kl_bottom"], rtol=1e-5)
    assert min(terms["kl_top"], terms["kl_bottom"]) > 0
    assert all(bool(jnp.isfinite(leaf).all()) and float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


def test_a_ladder_that_sees_nothing_follows_the_generative_path():
    params = jax.jit(networks("ladder").init)(jax.random.key(0))
    params["bottom"]["params"]["moments"]["bias"] = jnp.concatenate([jnp.zeros(3), jnp.full(3, 60.0)])
    vae = networks("ladder").bind(params)
    q, z = vae.encode(jnp.ones(SHAPE)), jnp.asarray([0.4, -1.0])
    assert_allclose(q.then(z).loc, vae.prior.then(z).loc, atol=1e-6)
    assert_allclose(q.then(z).scale, vae.prior.then(z).scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"inference": "bottom_up"}, "inference"),
        ({"latent_dims": (2, 0)}, "latent_dims"),
        ({"hidden_top": ()}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"likelihood": "gauss"}, "likelihood"),
    ],
)
def test_bad_arguments_are_named(options, named):
    good = {"likelihood": "categorical", "levels": 5, "latent_dims": (2, 3), "hidden": (8,)}
    with pytest.raises(ValueError, match=named):
        hierarchical_vae(SHAPE, **(good | options))
