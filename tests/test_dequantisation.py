"""Masses of integer pixels from densities: below the exact mass, in expectation and in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax import em
from vbjax.dequantisation import dequantise, dequantised_log_prob
from vbjax.distributions import Normal

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def model(x64):
    loc, scale = jnp.asarray([[3.0, 8.0], [10.0, 2.0]]), jnp.asarray([[0.7, 2.0], [1.5, 0.4]])
    return em.MixtureModel(jnp.log(jnp.asarray([0.6, 0.4])), Normal(loc, scale))


def cell_mass(model, x):
    """The exact mass of the cell about x, without the tails of the outer levels."""
    laws = stats.norm(np.asarray(model.components.loc), np.asarray(model.components.scale))
    return float(np.exp(np.asarray(model.logits)) @ (laws.cdf(x + 0.5) - laws.cdf(x - 0.5)).prod(1))


def test_discretised_mixture_is_the_mass_of_each_cell_and_sums_to_one(model):
    law = em.discretised(model, 17)
    x = np.array([4.0, 7.0])
    assert abs(jnp.exp(jax.jit(law.log_prob)(jnp.asarray(x))) - cell_mass(model, x)) < 1e-13
    grid = np.indices((17, 17)).reshape(2, -1).T
    assert abs(jnp.exp(jax.jit(jax.vmap(law.log_prob))(jnp.asarray(grid, float))).sum() - 1) < 1e-12
    assert abs(jnp.exp(model.log_prob(jnp.asarray(x))) - cell_mass(model, x)) > 1e-6  # the density at x is not the mass


def test_dequantised_bounds_have_their_expectations(model):
    x = np.array([4.0, 2.0])
    draws = 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    terms = jax.jit(jax.vmap(lambda key: dequantised_log_prob(key, model.log_prob, jnp.asarray(x), samples=8)))(keys)
    points, weights = np.polynomial.legendre.leggauss(40)
    u = np.stack(np.meshgrid(points / 2, points / 2), -1).reshape(-1, 1, 2)
    laws = stats.norm(np.asarray(model.components.loc), np.asarray(model.components.scale))
    log_density = np.log(laws.pdf(x + u).prod(2) @ np.exp(np.asarray(model.logits)))
    expected = np.outer(weights / 2, weights / 2).ravel() @ log_density

    def z(value):
        return float((terms.bound.mean() - value) / (terms.bound.std() / draws**0.5))

    assert abs(z(expected)) < 4.9  # 1e-6 of false alarms
    assert abs(z(np.log(cell_mass(model, x)))) > 8  # the bound is not tight here
    tighter = terms.importance_weighted
    assert (terms.closed >= -1e-12).all()
    gap = (np.log(cell_mass(model, x)) - tighter.mean()) / (tighter.std() / draws**0.5)
    assert gap > -4.9
    assert tighter.mean() > terms.bound.mean() + 8 * terms.bound.std() / draws**0.5


def test_the_mean_of_densities_under_unit_noise_is_the_mass(model):
    # exp(importance_weighted) is unbiased for P(x), and noise of another width is not
    x, draws = np.array([4.0, 2.0]), 20_000
    keys = jax.random.split(jax.random.key(2), draws)

    def estimates(key):
        def of_width(width):
            def log_prob(y):  # y - x is the noise that was added
                return model.log_prob(x + width * (y - x))

            return jnp.exp(dequantised_log_prob(key, log_prob, jnp.asarray(x), samples=8).importance_weighted)

        return jax.vmap(of_width)(jnp.asarray([1.0, 0.9, 1.1]))

    masses = np.asarray(jax.jit(jax.vmap(estimates))(keys))
    z = (masses.mean(0) - cell_mass(model, x)) / (masses.std(0) / draws**0.5)
    assert abs(z[0]) < 4.9  # 1e-6 of false alarms
    assert (abs(z[1:]) > 8).all()


def test_noise_stays_in_the_cell_and_samples_are_counted(model):
    images = jnp.arange(17).repeat(100)
    noisy = dequantise(jax.random.key(0), images)
    np.testing.assert_array_equal(jnp.round(noisy), images)
    with pytest.raises(ValueError, match="samples"):
        dequantised_log_prob(jax.random.key(0), model.log_prob, jnp.zeros(2), samples=0)
