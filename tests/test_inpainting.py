"""Inpainting of Gaussian data, whose exact conditional law is known and so is the law of every sampler here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for, z_threshold

from vbjax.diffusion.exact import gaussian_denoiser, gaussian_error
from vbjax.diffusion.guidance import evidence_guided, gaussian_evidence
from vbjax.diffusion.inpainting import repaint_kernel, replacement_kernel, resampling
from vbjax.diffusion.process import forward_variance, optimal_variance, reverse_kernel
from vbjax.diffusion.samplers import affine_law, ancestral, descent
from vbjax.diffusion.schedules import cosine_schedule, linear_schedule
from vbjax.distributions import Normal

pytestmark = pytest.mark.usefixtures("x64")

RHO, Y = 0.8, 1.5
EXACT = RHO * Y, 1 - RHO**2
"""Mean and variance of x_1 given x_2 = 1.5, for standard normal coordinates of correlation 0.8."""


CORRELATED = np.array([[1, RHO], [RHO, 1]])


def denoiser(x_t, gamma):
    return gaussian_denoiser(jnp.zeros(2), jnp.asarray(CORRELATED))(x_t, gamma)


def inpainted(combinator, variance=forward_variance):
    """A kernel for x_1, with x_2 known; what is not known is not read."""
    return combinator(reverse_kernel(denoiser, variance), jnp.array([jnp.nan, Y]), jnp.array([False, True]))


def law(kernel, levels, mean=(0.0, 0.0), variance=(1.0, 1.0)):
    """Mean and variance of the unknown coordinate at the end, from white noise or what else is at the top."""
    mean, covariance = affine_law(kernel, levels, jnp.array(mean), jnp.diag(jnp.array(variance)))
    return mean[0], covariance[0, 0]


def divergence(mean, variance):
    """KL of a law of x_1 from the exact one, in nats."""
    return 0.5 * (variance / EXACT[1] + (mean - EXACT[0]) ** 2 / EXACT[1] - 1 - np.log(variance / EXACT[1]))


def recursion(betas):
    """Replacement by hand, in the symbols of Ho et al. (2020, eqs. 2, 7): mean and variance of x_1."""
    left = np.cumprod(1 - betas)
    mean, variance, known = 0.0, 1.0, (0.0, 1.0)
    for t in range(len(betas))[::-1]:
        gain = left[t] ** 0.5 * CORRELATED @ np.linalg.inv(left[t] * CORRELATED + (1 - left[t]) * np.eye(2))
        before = left[t - 1] if t else 1.0
        of_x0 = before**0.5 * betas[t] / (1 - left[t])
        of_x_t = (1 - betas[t]) ** 0.5 * (1 - before) / (1 - left[t])
        slope = of_x0 * gain[0] + of_x_t * np.array([1, 0])
        mean = slope @ [mean, known[0]]
        variance = slope**2 @ [variance, known[1]] + (betas[t] if t else 0.0)
        known = before**0.5 * Y, 1 - before
    return mean, variance


def test_replacement_is_biased_with_the_exact_model_and_two_hundred_steps():
    schedule = cosine_schedule(200)
    left = np.asarray(jax.nn.sigmoid(-schedule.gamma))
    by_hand = recursion(1 - left / np.append(1, left[:-1]))

    def has_the_biased_law(kernel):
        mean, variance = law(kernel, descent(schedule))
        np.testing.assert_allclose([mean, variance], by_hand, rtol=1e-8)
        np.testing.assert_allclose([mean, variance], [0.745, 0.498], atol=1e-3)  # of 2e5 draws, elsewhere

    def not_noised(kernel, x0, known):
        """x_0 itself in place of its noised value."""

        def replaced(x_t, gamma_s, gamma_t):
            drawn = kernel(x_t, gamma_s, gamma_t)
            return Normal(jnp.where(known, x0, drawn.loc), jnp.where(known, 1e-9, drawn.scale))

        return replaced

    holds_only_for(has_the_biased_law, inpainted(replacement_kernel), inpainted(not_noised), reverse_kernel(denoiser))
    assert divergence(*by_hand) > 0.3


def test_the_exact_score_of_the_conditional_law_gives_that_law():
    """With the exact variances too, and from q(x_T|x_2), nothing is left; replacement stays where it is."""
    levels = jnp.append(linear_schedule(50).gamma[::-1], -40.0)
    left = jax.nn.sigmoid(-levels[0])
    top = (left**0.5 * EXACT[0], left**0.5 * Y), (left * EXACT[1] + 1 - left, 1 - left)
    variance = optimal_variance(gaussian_error(jnp.array([EXACT[1], 0.0])))

    def guided(evidence):
        return reverse_kernel(evidence_guided(denoiser, evidence), variance)

    def is_exact(kernel):
        np.testing.assert_allclose(law(kernel, levels, *top), EXACT, rtol=1e-9)

    exact = gaussian_evidence(denoiser, lambda x0: x0[1:], jnp.array([Y]))
    holds_only_for(
        is_exact,
        guided(exact),
        guided(lambda x_t, gamma: -exact(x_t, gamma)),
        guided(lambda x_t, gamma: -0.5 * (Y - denoiser(x_t, gamma)[1]) ** 2),
        inpainted(replacement_kernel, variance),
    )


def ladders(repetitions):
    """RePaint's, each as long as the longest: steps of width zero at the top change nothing."""
    each = [resampling(descent(linear_schedule(100)), repetitions=r, jump=5) for r in repetitions]
    longest = max(levels.size for levels in each)
    return jnp.stack([jnp.pad(levels, (longest - levels.size, 0), mode="edge") for levels in each])


def test_repaint_comes_nearer_to_the_exact_law_with_every_doubling_of_its_repetitions():
    """From .333 nats, replacement's, to .001 with 32."""

    def at_constant_noise(kernel, x0, known):
        """Denoised again at the same level with no forward step before it."""
        down = replacement_kernel(kernel, x0, known)

        def either(x_t, gamma_s, gamma_t):
            stay = Normal(x_t, jnp.full_like(x_t, 1e-9))
            return jax.tree.map(lambda a, b: jnp.where(gamma_s < gamma_t, a, b), down(x_t, gamma_s, gamma_t), stay)

        return either

    def comes_nearer(combinator):
        laws = jax.jit(jax.vmap(lambda levels: law(inpainted(combinator), levels)))(ladders([1, 2, 4, 8, 16, 32]))
        divergences = divergence(*map(np.asarray, laws))
        np.testing.assert_allclose(divergences[0], divergence(*law(inpainted(replacement_kernel), ladders([1])[0])))
        assert (divergences[1:] < 0.5 * divergences[:-1]).all()
        assert divergences[-1] < 0.0011

    holds_only_for(comes_nearer, repaint_kernel, at_constant_noise)


def test_draws_have_the_law_of_the_affine_recursion():
    levels, count = resampling(descent(linear_schedule(20)), repetitions=3, jump=4), 10_000
    mean, variance = law(inpainted(repaint_kernel), levels)

    def have_the_law(combinator, levels):
        keys, noise = jax.random.split(jax.random.key(0), count), jax.random.normal(jax.random.key(1), (count, 2))
        draws = jax.jit(jax.vmap(lambda key, x: ancestral(key, inpainted(combinator), levels, x)))(keys, noise)
        assert (draws[:, 1] == Y).all()
        z_mean = (draws[:, 0].mean() - mean) / (variance / count) ** 0.5
        z_variance = (draws[:, 0].var() / variance - 1) / (2 / count) ** 0.5
        assert max(abs(z_mean), abs(z_variance)) < z_threshold(2)

    have_the_law(repaint_kernel, levels)
    with pytest.raises(AssertionError):
        have_the_law(replacement_kernel, descent(linear_schedule(20)))


def test_a_resampling_ladder_goes_up_in_one_move_after_every_jump():
    levels = jnp.array([3.0, 2.0, 1.0, 0.0, -jnp.inf])
    np.testing.assert_array_equal(resampling(levels, repetitions=1), levels)
    np.testing.assert_array_equal(
        resampling(levels, repetitions=2), [3, 2, 3, 2, 1, 2, 1, 0, 1, 0, -np.inf, 0, -np.inf]
    )
    np.testing.assert_array_equal(
        resampling(levels, repetitions=2, jump=3), [3, 2, 1, 0, 3, 2, 1, 0, -np.inf, 0, -np.inf]
    )
    for options in ({"repetitions": 0}, {"repetitions": 2, "jump": 0}):
        with pytest.raises(ValueError, match="repetitions and jump must be at least 1"):
            resampling(levels, **options)
