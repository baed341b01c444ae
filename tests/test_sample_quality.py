"""Fréchet and kernel distances, neighbourhoods and modes, against closed forms, brute force and simulation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from vbjax import sample_quality as quality

pytestmark = pytest.mark.usefixtures("x64")

LIMIT = scipy.stats.norm.isf(0.5e-6)
"""Two-sided z-limit at a false-alarm rate of one in a million."""


def random_gaussian(rng, d, rank=None):
    factor = rng.normal(size=(d, rank or d))
    return quality.Gaussian(jnp.asarray(rng.normal(size=d)), jnp.asarray(factor @ factor.T))


@pytest.mark.parametrize("d", range(1, 9))
def test_frechet_distance_is_that_of_the_matrix_square_root(d):
    rng = np.random.default_rng(d)
    p, q = random_gaussian(rng, d), random_gaussian(rng, d)
    root = scipy.linalg.sqrtm(np.asarray(p.covariance) @ np.asarray(q.covariance))
    shift = np.sum((np.asarray(p.mean) - np.asarray(q.mean)) ** 2)
    traces = np.trace(p.covariance) + np.trace(q.covariance)
    found = quality.frechet_distance(p, q)
    np.testing.assert_allclose(found, shift + traces - 2 * np.trace(root).real, rtol=1e-10)
    # wrong: the trace of the root counted once
    assert abs(found - (shift + traces - np.trace(root).real)) > 0.1


def test_frechet_distance_is_symmetric_and_zero_only_for_equal_gaussians_of_any_rank():
    rng = np.random.default_rng(0)
    p, q = random_gaussian(rng, 5, rank=2), random_gaussian(rng, 5, rank=3)
    np.testing.assert_allclose(quality.frechet_distance(p, p), 0, atol=1e-12)
    np.testing.assert_allclose(quality.frechet_distance(p, q), quality.frechet_distance(q, p), rtol=1e-12)
    assert quality.frechet_distance(p, q) > 1
    # points: all that is left is the distance of the means
    origin, there = (quality.Gaussian(jnp.full(3, c), jnp.zeros((3, 3))) for c in (0.0, 2.0))
    np.testing.assert_allclose(quality.frechet_distance(origin, there), 12, rtol=1e-12)


def test_a_fitted_gaussian_has_the_unbiased_covariance():
    rows = np.random.default_rng(1).normal(size=(7, 3))
    fitted = quality.fit_gaussian(jnp.asarray(rows))
    np.testing.assert_allclose(fitted.covariance, np.cov(rows.T), rtol=1e-12)
    assert not np.allclose(fitted.covariance, np.cov(rows.T, ddof=0))
    with pytest.raises(ValueError, match="features must have at least two rows"):
        quality.fit_gaussian(jnp.zeros((1, 3)))


def distances_of_equal_laws(key, scales, n, m, draws, transform=lambda x: x):
    def once(key):
        key_a, key_b = jax.random.split(key)
        a, b = (transform(jax.random.normal(k, (s, len(scales)))) for k, s in ((key_a, n), (key_b, m)))
        a, b = a * scales[None], b * scales[None]
        return quality.frechet_distance(quality.fit_gaussian(a), quality.fit_gaussian(b))

    return np.asarray(jax.jit(lambda key: jax.lax.map(once, jax.random.split(key, draws), batch_size=50))(key))


def z_score(draws, expected):
    return (draws.mean() - expected) / (draws.std(ddof=1) / math.sqrt(len(draws)))


def test_what_gaussian_samples_of_one_law_read_is_the_predicted_bias():
    scales, n, m, draws = jnp.array([2.0, 1.0, 1.0, 0.5, 0.1]), 300, 600, 500
    read = distances_of_equal_laws(jax.random.key(3), scales, n, m, draws)
    predicted = float(quality.gaussian_frechet_bias(jnp.diag(scales**2), n, m))
    # the next order is about 1/n of the prediction, well below the standard error of 500 draws
    assert abs(z_score(read, predicted)) < LIMIT
    # wrong: without the covariances' share; with entries of the covariance as if all had one variance
    assert z_score(read, float((1 / n + 1 / m) * jnp.sum(scales**2))) > LIMIT
    assert abs(z_score(read, predicted * n / m)) > LIMIT


def test_the_bias_for_the_identity_is_2d_over_n_plus_half_d_times_d_plus_1_over_n():
    d, n = 64, 10_000
    np.testing.assert_allclose(
        quality.gaussian_frechet_bias(jnp.eye(d), n, n), 2 * d / n + d * (d + 1) / (2 * (n - 1)), rtol=1e-12
    )


@pytest.mark.slow
def test_the_bias_of_features_follows_their_fourth_moments():
    # squares of normals, centred: kurtosis 15, so the Gaussian formula is far too small
    scales, n, draws = jnp.array([1.0, 1.0, 0.3]), 1000, 400
    read = distances_of_equal_laws(jax.random.key(5), scales, n, n, draws, lambda x: x**2)
    features = jax.random.normal(jax.random.key(50), (100_000, 3)) ** 2 * scales[None]
    assert abs(z_score(read, float(quality.frechet_bias(features, n, n)))) < LIMIT
    covariance = quality.fit_gaussian(features).covariance
    assert z_score(read, float(quality.gaussian_frechet_bias(covariance, n, n))) > LIMIT


@pytest.mark.long
def test_extrapolation_takes_the_bias_away():
    key_data, key_subsets = jax.random.split(jax.random.key(6))
    a, b = jax.random.normal(key_data, (2, 2000, 16))
    shifted = b + 0.25 * jnp.eye(16)[:1]
    plain = quality.frechet_distance(quality.fit_gaussian(a), quality.fit_gaussian(shifted))
    found = jax.jit(
        lambda key, a, b: quality.extrapolated_frechet_distance(key, a, b, sizes=(200, 400, 800), repeats=12)
    )(key_subsets, a, shifted)
    bias = float(quality.gaussian_frechet_bias(jnp.eye(16), 2000, 2000))
    # measured: plain 0.172, of which 0.084 is the predicted bias; extrapolated 0.052 ± 0.030; truth 0.0625
    assert abs(found.value - 0.0625) < 0.05 < plain - 0.0625 < 1.6 * bias + 0.03
    with pytest.raises(ValueError, match="sizes must be two or more different ones from 2 to 2000"):
        quality.extrapolated_frechet_distance(jax.random.key(6), a, b, sizes=(100, 3000))


def moments(mean, covariance):
    """The first three moment tensors of a Gaussian."""
    second = covariance + np.outer(mean, mean)
    third = np.einsum("i,j,k->ijk", mean, mean, mean)
    for pattern in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"):
        third += np.einsum(pattern, covariance, mean)
    return mean, second, third


def exact_cubic_distance(p, q):
    d = len(p[0])
    gaps = [np.sum((x - y) ** 2) for x, y in zip(moments(*p), moments(*q), strict=True)]
    return sum(weight * gap / d**power for power, weight, gap in zip((1, 2, 3), (3, 3, 1), gaps, strict=True))


@pytest.mark.slow
def test_the_kernel_distance_is_unbiased_and_its_error_is_not_too_small():
    rng = np.random.default_rng(3)
    p, q = [tuple(map(np.asarray, random_gaussian(rng, 2))) for _ in range(2)]
    q = (p[0] + 0.3, 0.6 * p[1])
    roots = [jnp.asarray(np.linalg.cholesky(c)) for _, c in (p, q)]
    n, m, draws = 20, 30, 1000

    def once(key):
        key_a, key_b, key_same = jax.random.split(key, 3)
        a = jnp.asarray(p[0])[None] + jax.random.normal(key_a, (n, 2)) @ roots[0].T
        b = jnp.asarray(q[0])[None] + jax.random.normal(key_b, (m, 2)) @ roots[1].T
        same = jax.random.normal(key_same, (m, 2)) @ roots[0].T + jnp.asarray(p[0])[None]
        return quality.kernel_distance(a, b), quality.kernel_distance(a, same)

    keys = jax.random.split(jax.random.key(7), draws)
    found, null = jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(once, keys, batch_size=50))(keys))
    assert abs(z_score(found.value, exact_cubic_distance(p, q))) < LIMIT
    assert abs(z_score(null.value, 0)) < LIMIT
    # the jackknife errs upwards: measured ratios of the variances 1.98 and 2.07
    for estimates in (found, null):
        assert 0.9 < np.mean(estimates.standard_error**2) / estimates.value.var() < 2.6


def test_the_kernel_distance_is_the_u_statistic_of_all_pairs_and_not_the_v_statistic():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, 3)), 1 + rng.normal(size=(4, 3))

    def mean_kernel(left, right, distinct):
        values = [
            (x @ y / 3 + 1) ** 3 for i, x in enumerate(left) for j, y in enumerate(right) if not distinct or i != j
        ]
        return np.mean(values)

    def distance(a, b, distinct=True):
        return mean_kernel(a, a, distinct) + mean_kernel(b, b, distinct) - 2 * mean_kernel(a, b, False)

    found = quality.kernel_distance(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found.value, distance(a, b), rtol=1e-12)
    assert abs(found.value - distance(a, b, distinct=False)) > 0.1
    # the jackknife, one point left out after the other
    parts = []
    for x, y in ((a, b), (b, a)):
        without = np.array([distance(np.delete(x, i, 0), y) for i in range(len(x))])
        parts.append((len(x) - 1) * without.var())
    np.testing.assert_allclose(found.standard_error, math.sqrt(sum(parts)), rtol=1e-12)
    with pytest.raises(ValueError, match="at least three points"):
        quality.kernel_distance(jnp.zeros((2, 3)), jnp.zeros((5, 3)))


def test_neighbourhoods_of_a_set_counted_by_hand():
    # k = 1. Balls of the real ones: 0 and 1 reach 1 far, 10 and 12 reach 2, so [-1, 1], [0, 2], [8, 12], [10, 14].
    real = jnp.array([[0.0], [1.0], [10.0], [12.0]])
    # Balls of the model's: [0.5, 0.9], [0.5, 0.9] and the stray one at 20 reaches 19.1 back to 0.9.
    model = jnp.array([[0.5], [0.9], [20.0]])
    found = quality.neighbourhoods(real, model, k=1)
    np.testing.assert_allclose(found.precision, 2 / 3)
    np.testing.assert_allclose(found.recall, 3 / 4)
    np.testing.assert_allclose(found.density, 4 / 3)
    np.testing.assert_allclose(found.coverage, 1 / 2)
    with pytest.raises(ValueError, match="k must be from 1 to 2"):
        quality.neighbourhoods(real, model, k=3)


def test_for_equal_laws_density_is_one_and_coverage_as_expected_in_any_dimension():
    n, m, k, draws = 24, 16, 3, 500

    def once(key):
        key_a, key_b = jax.random.split(key)
        a, b = jax.random.normal(key_a, (n, 3)), jax.random.normal(key_b, (m, 3))
        return quality.neighbourhoods(a, b, k=k)

    keys = jax.random.split(jax.random.key(10), draws)
    read = jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(once, keys, batch_size=50))(keys))
    assert abs(z_score(read.density, 1)) < LIMIT
    assert abs(z_score(read.coverage, quality.expected_coverage(n, m, k=k))) < LIMIT
    # wrong: a ball to the k-th neighbour, the point itself counted as the first
    assert abs(z_score(read.coverage, quality.expected_coverage(n, m, k=k - 1))) > LIMIT
    assert read.precision.mean() < 0.95


def test_modes_are_counted_and_a_stray_point_covers_none():
    modes = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    points = jnp.concatenate([jnp.full((50, 2), 0.1), jnp.full((49, 2), 0.1) + modes[1][None], modes[2][None]])
    points = points.at[0].set(2.0)
    assigned, distance = jax.vmap(quality.nearest_mode, (0, None))(points, modes)
    found = quality.mode_coverage(assigned, distance < 0.3, modes=3)
    assert found.counts.tolist() == [49, 49, 1]
    assert (int(found.covered), float(found.high_quality)) == (2, 0.99)
    shares = np.array([49, 49, 1]) / 99
    np.testing.assert_allclose(found.kl, scipy.stats.entropy(shares, np.full(3, 1 / 3)), rtol=1e-12)
    assert int(quality.mode_coverage(assigned, distance < 0.3, modes=3, least_share=0.01).covered) == 3
    with pytest.raises(ValueError, match="least_share"):
        quality.mode_coverage(assigned, distance < 0.3, modes=3, least_share=0)


def test_the_share_within_three_deviations_is_the_chi_square_law():
    for d in (1, 2, 64):
        np.testing.assert_allclose(quality.high_quality_share(d), scipy.stats.chi2.cdf(9, d), rtol=1e-10)
    np.testing.assert_allclose(quality.high_quality_share(2), 1 - math.exp(-4.5), rtol=1e-12)


def test_the_bias_of_the_histograms_divergence_is_that_of_the_binomial_law():
    modes, count = 8, 500
    hits = np.arange(count + 1)
    mean = modes * np.sum(scipy.stats.binom.pmf(hits, count, 1 / modes) * -scipy.special.entr(hits / count))
    exact = math.log(modes) + mean
    assert quality.histogram_kl_bias(modes, count) == pytest.approx(exact, rel=0.02)
    assert quality.histogram_kl_bias(modes + 1, count) != pytest.approx(exact, rel=0.02)
    even = jnp.full(modes, 7, jnp.int32)
    np.testing.assert_allclose(quality.histogram_kl(even), 0, atol=1e-12)
    np.testing.assert_allclose(quality.histogram_kl(jnp.array([5, 0, 0])), math.log(3), rtol=1e-12)
