"""VAE bounds and held-out likelihoods against the linear-Gaussian model, whose evidence and posterior are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import z_threshold
from scipy import stats

from vbjax import bounds, evaluation, vae
from vbjax.distributions import Mixture, MultivariateNormal, Normal

LOADING = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.2]], np.float32)
OFFSET = np.array([0.2, -0.1, 0.4], np.float32)
NOISE_SCALE = 0.6
PIXELS = np.array([[1.0, -0.5, 0.7], [0.1, 0.3, -1.2], [2.0, 0.0, 0.5], [-0.4, -0.9, 0.2]], np.float32)


def evidence(x):
    covariance = LOADING @ LOADING.T + NOISE_SCALE**2 * np.eye(3)
    return stats.multivariate_normal(OFFSET, covariance).logpdf(x)


def posterior(x):
    precision = np.eye(2) + LOADING.T @ LOADING / NOISE_SCALE**2
    covariance = np.linalg.inv(precision)
    return covariance @ LOADING.T @ (np.asarray(x) - OFFSET) / NOISE_SCALE**2, covariance


def decode(z):
    return Normal(LOADING @ z + OFFSET, NOISE_SCALE * jnp.ones(3))


def linear_vae(shift=0.0, widen=1.0):
    """The exact posterior as the encoder, moved and widened on request."""
    _, covariance = posterior(PIXELS[0])
    tril = jnp.asarray(np.linalg.cholesky(covariance) * widen, jnp.float32)
    gain = jnp.asarray(covariance @ LOADING.T / NOISE_SCALE**2, jnp.float32)
    return vae.VAE(
        prior=MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        encode=lambda x: MultivariateNormal(gain @ (x - OFFSET) + shift, tril),
        decode=decode,
    )


def closed_form_elbo(x, shift, widen):
    mean, covariance = posterior(x)
    q_mean, q_covariance = mean + shift, covariance * widen**2
    residual = np.asarray(x) - LOADING @ q_mean - OFFSET
    spread = np.trace(LOADING @ q_covariance @ LOADING.T)
    reconstruction = -0.5 * (residual @ residual + spread) / NOISE_SCALE**2 - 1.5 * np.log(2 * np.pi * NOISE_SCALE**2)
    kl = 0.5 * (np.trace(q_covariance) + q_mean @ q_mean - 2 - np.linalg.slogdet(q_covariance)[1])
    return reconstruction, kl


def test_log_weights_under_the_exact_posterior_are_the_evidence_for_every_draw():
    keys = jax.random.split(jax.random.key(0), 4)
    exact = jax.vmap(lambda key, x: vae.log_weights(key, linear_vae(), x, samples=5))(keys, jnp.asarray(PIXELS))
    np.testing.assert_allclose(exact, np.repeat(evidence(PIXELS)[:, None], 5, 1), rtol=2e-5)


def test_log_weights_under_a_moved_encoder_are_not_the_evidence():
    moved = vae.log_weights(jax.random.key(0), linear_vae(shift=0.3), jnp.asarray(PIXELS[0]), samples=5)
    assert np.abs(moved - evidence(PIXELS[0])).max() > 0.1


def test_elbo_terms_average_to_their_closed_forms_within_five_standard_errors():
    model, x, count = linear_vae(shift=0.3, widen=1.4), jnp.asarray(PIXELS[0]), 20_000
    terms = jax.vmap(lambda key: vae.elbo(key, model, x))(jax.random.split(jax.random.key(1), count))
    reconstruction, kl = closed_form_elbo(PIXELS[0], 0.3, 1.4)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-5)
    error = terms.reconstruction.std() / count**0.5
    assert abs(terms.reconstruction.mean() - reconstruction) < 5 * error
    # the wrong variant: the reconstruction without the spread of q
    assert abs(terms.reconstruction.mean() - closed_form_elbo(PIXELS[0], 0.3, 1e-6)[0]) > 10 * error
    np.testing.assert_allclose(terms.total, terms.reconstruction - terms.kl)


def test_a_kl_without_a_closed_form_is_estimated_without_bias_at_the_draw():
    prior = Mixture(jnp.asarray([0.0, 1.0]), Normal(jnp.asarray([[-2.0], [1.0]]), jnp.asarray([[0.5], [1.0]])))
    model = vae.VAE(prior, lambda x: Normal(jnp.asarray([0.4]), jnp.asarray([0.8])), lambda z: Normal(z, jnp.ones(1)))
    count = 20_000
    terms = jax.vmap(lambda key: vae.elbo(key, model, jnp.zeros(1)))(jax.random.split(jax.random.key(9), count))
    grid = np.linspace(-8, 8, 20_001)
    q = stats.norm(0.4, 0.8)
    share = 1 / (1 + np.e)
    log_p = np.log(share * stats.norm(-2, 0.5).pdf(grid) + (1 - share) * stats.norm(1, 1).pdf(grid))
    exact = np.sum(q.pdf(grid) * (q.logpdf(grid) - log_p)) * (grid[1] - grid[0])
    error = terms.kl.std() / count**0.5
    assert abs(terms.kl.mean() - exact) < z_threshold(1) * error
    # the wrong variant: the KL the other way round
    p = np.exp(log_p)
    assert abs(terms.kl.mean() - np.sum(p * (log_p - q.logpdf(grid))) * (grid[1] - grid[0])) > 10 * error


def test_the_kl_by_coordinate_is_that_of_each_coordinate():
    law, x = Normal(jnp.asarray([0.0, 1.5, -0.2]), jnp.asarray([1.0, 0.3, 2.0])), jnp.zeros(3)
    model = vae.VAE(Normal(jnp.zeros(3), jnp.ones(3)), lambda x: law, lambda z: Normal(z, jnp.ones(3)))
    kls = vae.grouped_elbo(jax.random.key(0), model, x).kls
    np.testing.assert_allclose(kls, 0.5 * (law.scale**2 + law.loc**2 - 1 - 2 * jnp.log(law.scale)), rtol=1e-5)
    # where the coordinates depend on each other the KL is one group
    assert vae.grouped_elbo(jax.random.key(0), linear_vae(), jnp.asarray(PIXELS[0])).kls.shape == (1,)


def test_importance_weighted_nll_meets_the_exact_evidence_within_its_own_error_and_the_elbo_does_not():
    model, images = linear_vae(shift=0.3, widen=1.4), jnp.asarray(PIXELS)
    measure = jax.jit(
        lambda key, samples: evaluation.importance_weighted_nll(key, model, images, samples=samples), static_argnums=1
    )
    exact = -evidence(PIXELS).mean()
    accurate = measure(jax.random.key(2), 4096)
    assert abs(accurate.nats.value - exact) < 5 * accurate.monte_carlo_error
    assert accurate.monte_carlo_error < 0.02
    keys = jax.random.split(jax.random.key(3), (2000, len(images)))
    one_draw = jax.vmap(lambda key, x: -bounds.iwae(vae.log_weights(key, model, x, samples=1)))
    one = jax.vmap(one_draw, (0, None))(keys, images).mean(1)
    assert (one.mean() - exact) / (one.std() / 2000**0.5) > 8


@pytest.mark.parametrize("samples", [2, 7, 100])
def test_equal_weights_have_no_monte_carlo_error(samples):
    """Under an encoder and a decoder that ignore each other every weight is p(x), whatever the draw."""
    law = Normal(jnp.zeros(2), jnp.ones(2))
    model = vae.VAE(prior=law, encode=lambda x: law, decode=lambda z: Normal(jnp.zeros(3), jnp.ones(3)))
    likelihood = evaluation.importance_weighted_nll(jax.random.key(0), model, jnp.asarray(PIXELS), samples=samples)
    assert 0 <= likelihood.monte_carlo_error < 1e-3


def test_importance_weighted_nll_refuses_one_sample_which_has_no_spread():
    with pytest.raises(ValueError, match="samples must be at least 2"):
        evaluation.importance_weighted_nll(jax.random.key(0), linear_vae(), jnp.asarray(PIXELS), samples=1)


def test_monte_carlo_error_is_the_spread_over_repeated_evaluations():
    model, images = linear_vae(shift=0.3, widen=1.4), jnp.asarray(PIXELS)
    runs = jax.vmap(lambda key: evaluation.importance_weighted_nll(key, model, images, samples=256))(
        jax.random.split(jax.random.key(4), 400)
    )
    # 400 runs know their spread to 3.5%; the delta method is off by O(1/K)
    ratio = runs.nats.value.std() / jnp.sqrt(jnp.mean(runs.monte_carlo_error**2))
    assert 0.82 < ratio < 1.18


def test_iwae_grows_with_k_from_the_elbo_to_the_evidence():
    model, x = linear_vae(shift=0.3, widen=1.4), jnp.asarray(PIXELS[0])
    keys = jax.random.split(jax.random.key(5), 20_000)
    log_w = jax.vmap(lambda key: vae.log_weights(key, model, x, samples=8))(keys)
    nested = [jax.vmap(bounds.iwae)(log_w[:, :k]) for k in (1, 2, 8)]
    steps = [nested[1] - nested[0], nested[2] - nested[1]]
    assert all(step.mean() / (step.std() / 20_000**0.5) > 5 for step in steps)
    assert nested[2].mean() < evidence(PIXELS[0]) + 5 * nested[2].std() / 20_000**0.5


def test_ancestral_draws_have_the_law_of_the_evidence_and_means_do_not():
    drawn, means = jax.vmap(lambda key: vae.generate(key, linear_vae()))(jax.random.split(jax.random.key(6), 20_000))
    # along the direction that the loading does not reach, only the pixel noise varies
    normal = np.linalg.svd(LOADING)[0][:, 2]
    along = (np.asarray(drawn) - OFFSET) @ normal / NOISE_SCALE
    assert stats.kstest(along, "norm").pvalue > 1e-6
    assert np.abs((np.asarray(means) - OFFSET) @ normal).max() < 1e-5


def test_latent_traversal_moves_one_coordinate_at_a_time():
    sheet = vae.latent_traversal(linear_vae(), jnp.asarray(PIXELS[0]), reach=2.0, steps=5)
    assert sheet.shape == (2, 5, 3)
    np.testing.assert_allclose(sheet[1, -1] - sheet[1, 0], LOADING[:, 1] * 4, rtol=1e-4)


def test_active_units_counts_coordinates_whose_mean_varies():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(500, 4)) * [1.0, 0.2, 0.05, 0.0]
    assert evaluation.active_units(jnp.asarray(codes, jnp.float32)) == 2


def test_bits_per_dimension_is_nats_over_size_times_log_two():
    nats = evaluation.over_examples(jnp.asarray([1.0, 2.0, 3.0]))
    likelihood = evaluation.Likelihood(nats, jnp.asarray(0.1), 8)
    assert likelihood.bits_per_dim.value == pytest.approx(2 / (8 * np.log(2)))
    assert likelihood.bits_per_dim.standard_error == pytest.approx(1 / np.sqrt(3) / (8 * np.log(2)))
