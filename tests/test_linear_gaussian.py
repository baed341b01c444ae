"""The linear VAE's closed forms against SciPy's densities, optimisation over encoders, and sums over many data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import holds_only_for
from scipy import optimize, stats

from vbjax import linear_gaussian
from vbjax.distributions import MultivariateNormal, Normal
from vbjax.linear_gaussian import LinearVAE, maximum_likelihood, mean_log_evidence, spectrum

pytestmark = pytest.mark.usefixtures("x64")

DATA = np.random.default_rng(0).normal(size=(30, 5)) @ np.diag([2.0, 1.3, 0.8, 0.5, 0.4]) + [1.0, 0.0, -2.0, 0.5, 3.0]


def moments(ddof=0):
    return jnp.asarray(DATA.mean(0)), jnp.asarray(np.cov(DATA.T, ddof=ddof))


def rotated(angle=0.6):
    """The solution for the data with its two columns turned, so that a diagonal encoder is not exact."""
    model = maximum_likelihood(*moments(), latent_dim=2)
    c, s = np.cos(angle), np.sin(angle)
    return model._replace(weights=model.weights @ np.array([[c, -s], [s, c]]))


def scipy_evidence(model, x):
    covariance = model.weights @ model.weights.T + model.noise_variance * np.eye(5)
    return stats.multivariate_normal(model.offset, covariance).logpdf(x)


def best_elbo(model, x, law, start):
    """max over q of E log p(x|z) + E log p(z) + H(q), by BFGS on an exact rule for quadratics: no posterior in it."""
    flat, unravel = ravel_pytree(start)

    def loss(v):
        q = law(unravel(v))
        points, weights, _ = q.nodes(3)
        joint = jax.vmap(lambda z: model.decode(z).log_prob(x) + model.prior.log_prob(z))(points)
        return -(weights @ joint + q.entropy())

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    found = optimize.minimize(
        lambda v: [np.asarray(r, float) for r in value_and_grad(v)], flat, jac=True, options={"gtol": 1e-10}
    )
    return -found.fun, unravel(jnp.asarray(found.x))


def test_the_marginal_is_scipys_and_the_mean_evidence_its_average_over_the_data():
    model = rotated()
    ours = jax.jit(jax.vmap(lambda x: model.marginal().log_prob(x)))(jnp.asarray(DATA))
    np.testing.assert_allclose(ours, scipy_evidence(model, DATA))

    def is_the_average(covariance):
        mean = mean_log_evidence(shifted, moments()[0], covariance)
        np.testing.assert_allclose(mean, scipy_evidence(shifted, DATA).mean(), rtol=1e-12)

    shifted = model._replace(offset=model.offset + 0.3)
    holds_only_for(is_the_average, moments()[1], moments(ddof=1)[1])


def test_the_best_full_encoder_reaches_the_evidence_and_the_best_diagonal_one_loses_the_closed_gap():
    model, x = rotated(), jnp.asarray(DATA[0])
    full, _ = best_elbo(
        model,
        x,
        lambda p: MultivariateNormal(p["loc"], jnp.tril(p["below"], -1) + jnp.diag(jnp.exp(p["log"]))),
        {"loc": jnp.zeros(2), "below": jnp.zeros((2, 2)), "log": jnp.zeros(2)},
    )
    diagonal, at = best_elbo(
        model, x, lambda p: Normal(p["loc"], jnp.exp(p["log"])), {"loc": jnp.zeros(2), "log": jnp.zeros(2)}
    )
    gap = model.diagonal_gap()
    assert gap > 0.01
    assert abs(full - scipy_evidence(model, x)) < 1e-9
    assert abs(diagonal - (scipy_evidence(model, x) - gap)) < 1e-9
    assert abs(model.elbo(x, model.best_diagonal(x)) - diagonal) < 1e-9
    assert abs(model.elbo(x, model.posterior(x)) - full) < 1e-9
    np.testing.assert_allclose(model.best_diagonal(x).loc, at["loc"], atol=1e-5)
    np.testing.assert_allclose(model.best_diagonal(x).scale, jnp.exp(at["log"]), rtol=1e-5)
    # the posterior's own marginal variances are wider, and worse
    marginal = Normal(model.posterior(x).mean(), jnp.sqrt(model.posterior(x).variance()))
    assert model.elbo(x, marginal) < diagonal - gap**2


def test_the_gap_vanishes_where_the_columns_are_orthogonal():
    assert abs(maximum_likelihood(*moments(), latent_dim=3).diagonal_gap()) < 1e-12


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_maximum_likelihood_is_what_gradient_ascent_on_the_evidence_finds(latent_dim):
    mean, covariance = moments()
    start = {"W": jnp.asarray(np.random.default_rng(1).normal(size=(5, latent_dim))), "log": jnp.zeros(())}
    flat, unravel = ravel_pytree(start)

    def loss(v):
        p = unravel(v)
        return -mean_log_evidence(LinearVAE(p["W"], mean, jnp.exp(p["log"])), mean, covariance)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    found = optimize.minimize(lambda v: [np.asarray(r, float) for r in value_and_grad(v)], flat, jac=True, tol=1e-10)

    def is_the_optimum(model):
        assert abs(mean_log_evidence(model, mean, covariance) + found.fun) < 1e-9

    holds_only_for(
        is_the_optimum,
        maximum_likelihood(mean, covariance, latent_dim=latent_dim),
        maximum_likelihood(mean, moments(ddof=1)[1], latent_dim=latent_dim),
    )


@pytest.mark.parametrize("beta", [0.5, 1, 3])
def test_a_beta_vae_keeps_the_directions_above_beta_times_the_noise(beta):
    """The optimum over decoder, encoder gain and encoder scale of each direction, by BFGS from a generic start."""
    eigenvalues, noise = np.array([4.0, 2.0, 0.5, 0.2]), 0.6

    def terms(v):
        w, gain, log_s = v.reshape(3, -1)
        distortion = eigenvalues * (1 - w * gain) ** 2 + w**2 * jnp.exp(2 * log_s)
        rate = 0.5 * (gain**2 * eigenvalues + jnp.exp(2 * log_s) - 1) - log_s
        return distortion, rate

    def loss(v):
        distortion, rate = terms(v)
        return 0.5 * distortion.sum() / noise + beta * rate.sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    start = np.concatenate([np.full(8, 0.4), np.full(4, -0.3)])
    found = optimize.minimize(lambda v: [np.asarray(r, float) for r in value_and_grad(v)], start, jac=True, tol=1e-12)
    distortion, rate = terms(found.x)

    def is_the_optimum(law):
        np.testing.assert_allclose(law.weight, np.abs(found.x[:4]), atol=1e-5)
        np.testing.assert_allclose(law.rate, rate, atol=1e-8)
        np.testing.assert_allclose(law.distortion, distortion, atol=1e-8)
        assert law.active_units == np.sum(rate > 1e-6) == np.sum(eigenvalues > beta * noise)

    right = spectrum(jnp.asarray(eigenvalues), noise, beta=beta)
    holds_only_for(is_the_optimum, right, spectrum(jnp.asarray(eigenvalues), noise, beta=1.3 * beta))


def test_at_beta_one_the_spectrum_is_the_stated_numbers_and_the_rate_the_models_kl():
    eigenvalues = jnp.asarray([4.0, 2.0, 0.5, 0.2])
    law = spectrum(eigenvalues, 1.0)
    np.testing.assert_allclose(law.weight, [np.sqrt(3), 1, 0, 0])
    assert law.active_units == 2
    model = LinearVAE(jnp.diag(law.weight), jnp.zeros(4), jnp.asarray(1.0))
    gains, variance = jax.jit(lambda x: (jax.vmap(model.posterior_mean)(x), model.posterior(x[0]).variance()))(
        jnp.eye(4)
    )
    kl = 0.5 * (np.diagonal(gains) ** 2 * eigenvalues + variance - 1 - np.log(variance))
    np.testing.assert_allclose(law.rate, kl, atol=1e-12)


def test_equal_eigenvalues_leave_no_weights_and_no_nan():
    covariances = jnp.asarray(np.linspace(0.1, 3.0, 30)[:, None, None] * np.eye(7))
    solve = jax.vmap(lambda covariance: maximum_likelihood(jnp.zeros(7), covariance, latent_dim=2))

    def unguarded(covariances):
        values = np.linalg.eigvalsh(covariances)
        noise = values[:, :-2].mean(1)
        with np.errstate(invalid="ignore"):
            return np.sqrt(values[:, -2:] - noise[:, None]), noise

    def check(solve):
        weights, *_, noise = solve(covariances)
        np.testing.assert_allclose(weights, 0, atol=1e-7)
        np.testing.assert_allclose(noise, np.linspace(0.1, 3.0, 30), rtol=1e-14)

    holds_only_for(check, jax.jit(solve), unguarded)


def test_constant_coordinates_count_as_directions_without_variance_unless_all_noise_is_gone():
    mean, covariance = moments()
    padded = jnp.zeros((7, 7)).at[:5, :5].set(covariance)
    model = maximum_likelihood(jnp.concatenate([mean, jnp.zeros(2)]), padded, latent_dim=2)
    np.testing.assert_allclose(model.noise_variance, np.linalg.eigvalsh(covariance)[:3].sum() / 5, rtol=1e-12)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 2)))[0]
    for covariance in (padded, basis @ np.diag([2.0, 1.0]) @ basis.T, np.zeros((7, 7))):
        with pytest.raises(ValueError, match="lower latent_dim"):
            maximum_likelihood(jnp.zeros(7), jnp.asarray(covariance), latent_dim=5)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="latent_dim must be from 1 to 4"):
        linear_gaussian.maximum_likelihood(*moments(), latent_dim=5)
    with pytest.raises(ValueError, match="beta must be positive"):
        spectrum(jnp.ones(3), 1.0, beta=0)
