"""Guidance against log-densities of SciPy, differentiated by differences, and against closed-form conditional laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import central_difference, holds_only_for, z_threshold
from scipy import stats

from vbjax.diffusion.exact import gaussian_denoiser, mixture_denoiser
from vbjax.diffusion.guidance import evidence_guided, gaussian_evidence, guided, score_distillation
from vbjax.diffusion.process import noise, score, signal

pytestmark = pytest.mark.usefixtures("x64")

GAMMA = 0.4
LEFT = 1 / (1 + np.exp(GAMMA))  # ᾱ
X_T = np.array([-0.7, 0.9])
WEIGHTS, MEANS, SCALE = np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.2, -0.3]]), 0.6


def normal(mean, variance):
    return gaussian_denoiser(jnp.asarray(mean), jnp.asarray(variance))


def score_at_x_t(denoiser):
    return score(denoiser)(jnp.asarray(X_T), jnp.array(GAMMA))


def test_the_guided_score_is_that_of_the_tilted_law_of_x_t():
    """At a level where p_c is N(1, 1) and p_u N(0, 2): tilted by w = 1.5 they make N(10/7, 4/7)."""
    conditional = normal(np.full(2, LEFT**-0.5), np.array(1.0))
    unconditional = normal(np.zeros(2), np.array((2 - (1 - LEFT)) / LEFT))

    def tilted(x):
        p_c, p_u = stats.norm(1, 1), stats.norm(0, 2**0.5)
        return 2.5 * p_c.logpdf(x) - 1.5 * p_u.logpdf(x)

    def is_the_tilted_score(guide):
        ours = score_at_x_t(guide(conditional, unconditional, 1.5))
        np.testing.assert_allclose(ours, central_difference(tilted, X_T), rtol=1e-8)
        np.testing.assert_allclose(ours, -(X_T - 10 / 7) / (4 / 7), rtol=1e-12)

    def weight_off_by_one(c, u, w):
        return guided(c, u, w - 1)

    def swapped(c, u, w):
        return guided(u, c, w)

    holds_only_for(is_the_tilted_score, guided, weight_off_by_one, swapped)


def test_guidance_at_weight_zero_is_the_conditional_and_at_minus_one_the_unconditional():
    conditional, unconditional = normal(np.ones(2), np.array(0.5)), normal(np.zeros(2), np.array(2.0))
    np.testing.assert_array_equal(score_at_x_t(guided(conditional, unconditional, 0)), score_at_x_t(conditional))
    np.testing.assert_allclose(
        score_at_x_t(guided(conditional, unconditional, -1)), score_at_x_t(unconditional), rtol=1e-12
    )


def gradient(f, x):
    """By central differences, one coordinate after the other."""

    def along(unit):
        return central_difference(lambda x_i: f(np.where(unit, x_i, x)), x[unit])[0]

    return np.array([along(unit) for unit in np.eye(len(x), dtype=bool)])


def log_joint_probability(x):
    """log p(x_t, component) of the mixture, for both."""
    law = stats.norm(LEFT**0.5 * MEANS, np.sqrt(LEFT * SCALE**2 + 1 - LEFT))
    return np.log(WEIGHTS) + law.logpdf(x).sum(1)


@pytest.mark.parametrize("scale", [1, 2.5])
def test_an_exact_classifier_of_noisy_data_guides_to_its_class(scale):
    """At scale 1 to the class's own denoiser; at any to the score of p(x_t) p(y|x_t)^scale."""
    mixture = mixture_denoiser(jnp.asarray(WEIGHTS), jnp.asarray(MEANS), jnp.array(SCALE))

    def classify(x_t, gamma):
        spread = signal(gamma) ** 2 * SCALE**2 + noise(gamma) ** 2
        logits = jnp.log(WEIGHTS) - ((x_t[None] - signal(gamma) * MEANS) ** 2).sum(1) / (2 * spread)
        return jax.nn.log_softmax(logits)[0]

    def tilted(x):
        log_joint = log_joint_probability(x)
        return np.logaddexp.reduce(log_joint) + scale * (log_joint[0] - np.logaddexp.reduce(log_joint))

    def is_the_tilted_score(evidence):
        ours = score_at_x_t(evidence_guided(mixture, evidence, scale))
        np.testing.assert_allclose(ours, gradient(tilted, X_T), rtol=1e-8)

    holds_only_for(
        is_the_tilted_score,
        classify,
        lambda x_t, gamma: -classify(x_t, gamma),
        lambda x_t, gamma: noise(gamma) * classify(x_t, gamma),
    )
    if scale == 1:
        of_the_class = score_at_x_t(normal(MEANS[0], np.array(SCALE**2)))
        np.testing.assert_allclose(score_at_x_t(evidence_guided(mixture, classify)), of_the_class, rtol=1e-12)


def test_gaussian_evidence_makes_the_exact_conditional_denoiser_of_gaussian_data():
    rng = np.random.default_rng(0)
    factor, mean, observed = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=(2, 4))
    covariance, y, x_t = factor @ factor.T + 0.1 * np.eye(4), rng.normal(size=2), rng.normal(size=4)

    gain = covariance @ observed.T @ np.linalg.inv(observed @ covariance @ observed.T)
    given_mean = mean + gain @ (y - observed @ mean)
    given_covariance = covariance - gain @ observed @ covariance
    # Tweedie with the conditional law, whose covariance is singular
    spread = LEFT * given_covariance + (1 - LEFT) * np.eye(4)
    exact = given_mean + LEFT**0.5 * given_covariance @ np.linalg.solve(spread, x_t - LEFT**0.5 * given_mean)

    def is_the_conditional_mean(evidence):
        denoiser = normal(mean, covariance)
        ours = evidence_guided(denoiser, evidence(denoiser, lambda x0: observed @ x0, jnp.asarray(y)))
        np.testing.assert_allclose(ours(jnp.asarray(x_t), jnp.array(GAMMA)), exact, rtol=1e-8)

    def without_the_spread_of_x0(denoiser, observe, y):
        """The likelihood at the denoiser's answer, as if that were x_0."""
        return lambda x_t, gamma: -0.5 * ((y - observe(denoiser(x_t, gamma))) ** 2).sum()

    holds_only_for(is_the_conditional_mean, gaussian_evidence, without_the_spread_of_x0)


def test_score_distillation_follows_the_slope_of_the_divergence_to_the_noised_data():
    """Data N(m, s²), θ in place of the datum: E(ε̂ - ε) = α σ (θ - m) / V, and α/σ of it the slope of the KL."""
    mean, variance, theta = 1.5, 0.25, 3.0
    gamma = jnp.log(jnp.array(0.6 / 0.4))  # ᾱ = .4
    keys = jax.random.split(jax.random.key(0), 30_000)
    denoiser = normal(np.full(1, mean), np.array(variance))

    def divergence(theta):
        total = 0.4 * variance + 0.6
        return 0.5 * ((0.6 + 0.4 * (theta[0] - mean) ** 2) / total - 1 - np.log(0.6 / total))

    slope = central_difference(divergence, np.array([theta]))[0]
    draws = jax.jit(jax.vmap(lambda key: score_distillation(key, denoiser, jnp.array([theta]), gamma)))(keys)[:, 0]

    def is_the_slope(draws):
        standard_error = draws.std(ddof=1) / draws.size**0.5
        assert abs(draws.mean() - slope) < z_threshold(1) * standard_error

    scaled = np.sqrt(0.4 / 0.6) * np.asarray(draws)
    np.testing.assert_allclose(slope, 0.4 * (theta - mean) / (0.4 * variance + 0.6), rtol=1e-8)
    holds_only_for(is_the_slope, scaled, np.asarray(draws), -scaled)

    # the noise that is taken off is the noise that was added: what is left of it is its share of V
    left = 0.4 * variance / (0.4 * variance + 0.6)
    assert abs(draws.var() / left**2 - 1) < z_threshold(1) * (2 / draws.size) ** 0.5
