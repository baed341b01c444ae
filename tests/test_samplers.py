"""Samplers and the probability-flow ODE: laws in closed form, orders of convergence measured, densities of SciPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for, z_threshold
from scipy import optimize, stats

from vbjax.diffusion.bound import DiffusionModel
from vbjax.diffusion.exact import gaussian_denoiser, gaussian_error, mixture_denoiser
from vbjax.diffusion.probability_flow import drift, exact_divergence, flow, hutchinson, log_density
from vbjax.diffusion.process import (
    forward_variance,
    from_score,
    marginal,
    noise,
    optimal_variance,
    reverse_kernel,
    score,
    signal,
    transition,
)
from vbjax.diffusion.samplers import (
    affine_law,
    ancestral,
    ancestral_path,
    ddim_kernel,
    descent,
    dpm_solver,
    generate,
    heun,
)
from vbjax.diffusion.schedules import Schedule, from_betas, linear_schedule
from vbjax.distributions import Normal

pytestmark = pytest.mark.usefixtures("x64")

WEIGHTS, MEANS, SCALES = np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.2, -0.3]]), np.array([[0.4, 0.6], [0.3, 0.5]])
MEAN, VARIANCE = 1.5, 0.25


def schedule():
    """The ten steps of the closed-form numbers below."""
    return from_betas(jnp.linspace(0.02, 0.4, 10))


def normal(x_t, gamma):
    """The exact denoiser of N(MEAN, VARIANCE)."""
    return gaussian_denoiser(jnp.array([MEAN]), jnp.array(VARIANCE))(x_t, gamma)


def best(x_t, gamma_s, gamma_t):
    """The exact variance of a step down, for the same data."""
    return optimal_variance(gaussian_error(jnp.array(VARIANCE)))(x_t, gamma_s, gamma_t)


def mixture(coordinates):
    return mixture_denoiser(
        jnp.asarray(WEIGHTS), jnp.asarray(MEANS[:, :coordinates]), jnp.asarray(SCALES[:, :coordinates])
    )


def diffused(gamma):
    """SciPy's laws of the mixture's components and coordinates at this noise level."""
    left = 1 / (1 + np.exp(gamma))
    return stats.norm(left**0.5 * MEANS, np.sqrt(left * SCALES**2 + 1 - left))


def quantile(gamma, probability):
    """Of the mixture's first coordinate."""
    law = diffused(gamma)
    return optimize.brentq(lambda x: WEIGHTS @ law.cdf(x)[:, 0] - probability, -20, 20, xtol=1e-14)


def transported(x, gamma_from, gamma_to):
    """The ODE in one dimension: it keeps the order of points, so it carries quantiles to quantiles."""
    return np.array([quantile(gamma_to, WEIGHTS @ diffused(gamma_from).cdf(x_i)[:, 0]) for x_i in x])


def ddim(denoiser, levels, x):
    return ancestral(jax.random.key(0), ddim_kernel(denoiser), levels, x)


def as_if_steps_were_even(denoiser, levels, x):
    """DPM-Solver++(2M) without the ratio of its two steps."""

    def step(carry, move):
        (x, before), (gamma_t, gamma_s) = carry, move
        x0 = denoiser(x, gamma_t)
        aim = x0 + 0.5 * (x0 - before)
        x = noise(gamma_s) / noise(gamma_t) * x - signal(gamma_s) * jnp.expm1((gamma_s - gamma_t) / 2) * aim
        return (x, x0), None

    return jax.lax.scan(step, (x, denoiser(x, levels[0])), (levels[:-1], levels[1:]))[0][0]


def uneven(pairs):
    """Levels from 4 down to -3 whose steps are short and long in turn."""
    widths = np.tile([1.0, 2.0], pairs)
    return jnp.asarray(4 - 7 * np.concatenate([[0], np.cumsum(widths) / widths.sum()]))


@functools.cache
def measured_order(solve):
    """log2 of what halving every step divides the error by."""
    start = np.array([-1.0, 0.3, 1.4])
    exact = transported(start, 4.0, -3.0)

    def error(pairs):
        solved = jax.jit(jax.vmap(lambda x: solve(mixture(1), uneven(pairs), x)))(start[:, None])
        return np.linalg.norm(solved[:, 0] - exact)

    return np.log2(error(16) / error(32))


@pytest.mark.parametrize(
    ("order", "solver", "wrong"),
    [(1, ddim, heun), (2, heun, ddim), (2, dpm_solver, as_if_steps_were_even), (4, flow, heun)],
)
def test_solvers_have_their_order_on_steps_of_two_lengths(order, solver, wrong):
    def has_the_order(solve):
        assert abs(measured_order(solve) - order) < 0.08  # 1.014, 2.039, 2.037 and 3.957 were measured

    holds_only_for(has_the_order, solver, wrong)


@pytest.mark.parametrize("solver", [heun, dpm_solver])
def test_a_step_to_no_noise_at_all_is_the_denoisers_answer_where_the_last_one_ended(solver):
    levels, x = uneven(4), jnp.array([0.3])
    before_last = solver(mixture(1), levels, x)
    clean = solver(mixture(1), jnp.append(levels, -jnp.inf), x)
    np.testing.assert_allclose(clean, mixture(1)(before_last, levels[-1]), rtol=1e-12)


@pytest.mark.parametrize("gamma_s", [-4.0, 0.6])
def test_ddim_at_eta_one_is_the_reverse_kernel_and_its_scale_goes_like_eta(gamma_s):
    arguments = jnp.array([-1.3, 0.4]), jnp.array(gamma_s), jnp.array(0.7)
    posterior = reverse_kernel(mixture(2))(*arguments)
    whole, half = (ddim_kernel(mixture(2), eta=eta)(*arguments) for eta in (1, 0.5))

    def has_its_mean(law):
        np.testing.assert_allclose(law.loc, posterior.loc, rtol=1e-12)

    holds_only_for(has_its_mean, whole, half)
    np.testing.assert_allclose(whole.scale, posterior.scale, rtol=1e-12)
    np.testing.assert_allclose(half.scale, posterior.scale / 2, rtol=1e-12)


def test_ddim_keeps_the_marginals_of_the_forward_process_for_every_eta():
    x0, levels = jnp.array([0.8]), schedule().gamma[::-3]

    def wrong(eta):
        """η² β in place of η² β̃, under the right mean."""

        def kernel(x_t, gamma_s, gamma_t):
            law = ddim_kernel(lambda x_t, gamma: x0, eta=eta)(x_t, gamma_s, gamma_t)
            return Normal(law.loc, eta * jnp.sqrt(jnp.broadcast_to(forward_variance(x_t, gamma_s, gamma_t), (1,))))

        return kernel

    def keeps_the_marginal(kernel):
        start = marginal(x0, levels[0])
        mean, covariance = affine_law(kernel, levels, start.loc, jnp.diag(start.variance()))
        end = marginal(x0, levels[-1])
        np.testing.assert_allclose(mean, end.loc, rtol=1e-12)
        np.testing.assert_allclose(covariance[0], end.variance(), rtol=1e-12)

    for eta in (0, 0.4, 1):
        keeps_the_marginal(ddim_kernel(lambda x_t, gamma: x0, eta=eta))
    with pytest.raises(AssertionError):
        keeps_the_marginal(wrong(0.4))


def backwards(x_t, gamma_s, gamma_t):
    """The forward kernel of the step, run down the ladder."""
    return transition(x_t, gamma_s, gamma_t)


def law_of_the_chain(kernel, mean, variance):
    """Down to a level where what noise is left cannot be seen."""
    levels = jnp.append(schedule().gamma[::-1], -40.0)
    mean, covariance = affine_law(kernel, levels, jnp.array([mean]), jnp.array([[variance]]))
    return np.array([mean[0], covariance[0, 0]])


def test_exact_kernels_return_the_datas_law_and_from_white_noise_the_error_is_the_priors():
    left = signal(schedule().gamma[-1]) ** 2
    at_the_top = left**0.5 * MEAN, left * VARIANCE + 1 - left

    def returns_the_data(kernel):
        np.testing.assert_allclose(law_of_the_chain(kernel, *at_the_top), [MEAN, VARIANCE], rtol=1e-12)

    holds_only_for(returns_the_data, reverse_kernel(normal, best), reverse_kernel(normal), backwards)

    mean, variance = law_of_the_chain(reverse_kernel(normal, best), 0.0, 1.0)
    np.testing.assert_allclose([mean, variance], [1.466406, 0.250376], rtol=0, atol=5e-7)

    def divergence(mean_p, variance_p, mean_q, variance_q):
        return 0.5 * (
            variance_p / variance_q + (mean_p - mean_q) ** 2 / variance_q - 1 - np.log(variance_p / variance_q)
        )

    assert divergence(MEAN, VARIANCE, mean, variance) == pytest.approx(0.002254, abs=5e-7)
    assert divergence(*at_the_top, 0.0, 1.0) == pytest.approx(0.095472, abs=5e-7)


def z_scores(draws, mean, variance):
    """Of the mean and the variance of draws of a normal law."""
    n = draws.size
    return (draws.mean() - mean) / (variance / n) ** 0.5, (draws.var() / variance - 1) / (2 / n) ** 0.5


def test_draws_have_the_law_of_the_affine_recursion():
    levels = descent(schedule())

    def have_the_law(kernel):
        keys, start = jax.random.split(jax.random.key(1), 10_000), jax.random.normal(jax.random.key(2), (10_000, 1))
        draws = jax.jit(jax.vmap(lambda key, x: ancestral(key, kernel, levels, x)))(keys, start)
        mean, covariance = affine_law(ddim_kernel(normal, eta=0.5), levels, jnp.zeros(1), jnp.eye(1))
        assert np.abs(z_scores(draws[:, 0], mean[0], covariance[0, 0])).max() < z_threshold(2)

    holds_only_for(have_the_law, ddim_kernel(normal, eta=0.5), ddim_kernel(normal, eta=0.6))


def test_the_path_ends_where_the_sampler_does_and_starts_at_its_noise():
    levels, kernel, x = descent(schedule(), 4), reverse_kernel(mixture(2)), jnp.array([0.2, -1.0])
    path = ancestral_path(jax.random.key(3), kernel, levels, x)
    assert path.shape == (5, 2)
    assert (path[0] == x).all()
    assert (path[-1] == ancestral(jax.random.key(3), kernel, levels, x)).all()
    np.testing.assert_allclose(path[-1], mixture(2)(path[-2], levels[-2]), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 10])
def test_generated_data_have_the_models_law(steps):
    """The last draw is the decoder's: with the exact p(x_0|x_1) the chain has the law of its affine steps."""
    noised = Schedule(schedule().gamma[-steps:])

    def decode(x_1, gamma):
        return Normal(normal(x_1, gamma), jnp.sqrt(best(x_1, jnp.array(-jnp.inf), gamma))[None])

    def have_the_law(model):
        keys = jax.random.split(jax.random.key(4), 10_000)
        draws = jax.jit(jax.vmap(lambda key: generate(key, model, noised, (1,))))(keys)
        mean, covariance = affine_law(
            reverse_kernel(normal, best), jnp.append(noised.gamma[::-1], -40.0), jnp.zeros(1), jnp.eye(1)
        )
        assert np.abs(z_scores(draws[:, 0], mean[0], covariance[0, 0])).max() < z_threshold(4)

    right = DiffusionModel(lambda x: x, reverse_kernel(normal, best), decode)
    without_noise = right._replace(decode=lambda x_1, gamma: Normal(normal(x_1, gamma), jnp.full(1, 1e-9)))
    holds_only_for(have_the_law, right, without_noise)


def test_a_descent_takes_whole_times_evenly_and_ends_without_noise():
    gamma = np.asarray(schedule().gamma)
    np.testing.assert_array_equal(descent(schedule()), np.append(gamma[::-1], -np.inf))
    np.testing.assert_array_equal(descent(schedule(), 4), np.append(gamma[[9, 7, 4, 1]], -np.inf))
    np.testing.assert_array_equal(descent(schedule(), 1), [gamma[9], -np.inf])


def test_the_drift_is_the_limit_of_ddims_step():
    x, gamma = jnp.array([-0.4, 1.1]), jnp.array(0.7)
    kernel = ddim_kernel(mixture(2))
    limit = jax.jacfwd(lambda gamma_s: kernel(x, gamma_s, gamma).loc)(gamma)

    def is_the_limit(drift):
        np.testing.assert_allclose(drift(mixture(2))(x, gamma), limit, rtol=1e-12)

    def as_a_score_ode(denoiser):  # the diffusion's drift, whose noise is left out
        return lambda x, gamma: signal(gamma) * (signal(gamma) * x - denoiser(x, gamma))

    def turned_round(denoiser):
        return lambda x, gamma: -drift(denoiser)(x, gamma)

    holds_only_for(is_the_limit, drift, as_a_score_ode, turned_round)


POINT = np.array([0.9, 0.2])


def scipy_density(gamma):
    return np.log(WEIGHTS @ np.exp(diffused(gamma).logpdf(POINT).sum(1)))


def densities(divergence, options, steps):
    """With each option, from a level with hardly any noise up to one with nothing else."""
    levels = jnp.linspace(-5.0, 40.0, steps + 1)
    return jax.jit(jax.vmap(lambda option: log_density(mixture(2), levels, jnp.asarray(POINT), divergence(option))))(
        options
    )


def test_the_log_density_is_that_of_the_mixture_and_its_error_is_the_one_it_states():
    def scaled(factor):
        return lambda drift, x, gamma: factor * exact_divergence(drift, x, gamma)

    ours = densities(scaled, jnp.array([1.0, -1.0, 0.5]), 200)
    misses = np.abs(ours.log_prob - scipy_density(-5.0))

    def is_small(miss):
        assert miss < 1e-6  # 2.5e-7 was measured

    holds_only_for(is_small, *misses)
    assert 0.3 < misses[0] / ours.error[0] < 3


def test_a_probe_estimates_the_density_without_bias():
    """The mean over all four probes of two coordinates, and no single one of them, is the exact density."""
    probes = jnp.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    by_probe = densities(hutchinson, probes, 40).log_prob
    exact = log_density(mixture(2), jnp.linspace(-5.0, 40.0, 41), jnp.asarray(POINT)).log_prob
    np.testing.assert_allclose(by_probe.mean(), exact, rtol=1e-12)
    assert np.abs(by_probe - exact).min() > 0.1


def test_the_flow_encodes_into_quantiles_of_the_noise_and_decodes_back():
    levels, x = jnp.linspace(-3.0, 25.0, 281), np.array([-1.0, 0.3, 1.4])
    there = jax.jit(jax.vmap(lambda x: flow(mixture(1), levels, x)))(x[:, None])[:, 0]
    back = jax.jit(jax.vmap(lambda x: flow(mixture(1), levels[::-1], x)))(there[:, None])[:, 0]

    def encodes(latent):
        np.testing.assert_allclose(
            latent, stats.norm.ppf([WEIGHTS @ diffused(-3.0).cdf(x_i)[:, 0] for x_i in x]), rtol=1e-5
        )

    holds_only_for(encodes, there, -there)
    np.testing.assert_allclose(back, x, rtol=1e-5)


@pytest.mark.slow
def test_samplers_draw_from_a_mixture():
    """Kolmogorov-Smirnov against SciPy's mixture; of ten thousand draws at 200 steps for the chain, 50 for the ODE."""
    noised, count = linear_schedule(1000), 10_000

    def sampled(walk, denoiser):
        keys, start = jax.random.split(jax.random.key(5), count), jax.random.normal(jax.random.key(6), (count, 1))
        return np.asarray(jax.jit(jax.vmap(lambda key, x: walk(key, denoiser, x)))(keys, start))[:, 0]

    def draws_the_mixture(walk, denoiser):
        law = stats.norm(MEANS[:, 0], SCALES[:, 0])
        assert stats.kstest(sampled(walk, denoiser), lambda x: law.cdf(x[:, None]) @ WEIGHTS).pvalue > 1e-6

    def chain(kernel, steps=200):
        return lambda key, denoiser, x: ancestral(key, kernel(denoiser), descent(noised, steps), x)

    walks = [
        chain(reverse_kernel),
        chain(lambda denoiser: ddim_kernel(denoiser, eta=0.5)),
        lambda key, denoiser, x: heun(denoiser, descent(noised, 50), x),
        lambda key, denoiser, x: dpm_solver(denoiser, descent(noised, 50), x),
    ]

    def of_the_wrong_sign(x, gamma):
        return from_score(lambda x, gamma: -score(mixture(1))(x, gamma))(x, gamma)

    for walk in walks:
        draws_the_mixture(walk, mixture(1))
    for walk, denoiser in [
        (walks[0], of_the_wrong_sign),
        (chain(lambda denoiser: backwards), mixture(1)),
        (chain(reverse_kernel, 5), mixture(1)),
    ]:
        with pytest.raises(AssertionError):
            draws_the_mixture(walk, denoiser)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: descent(schedule(), 11), "steps must lie between 1 and the schedule's 10, got 11"),
        (lambda: descent(schedule(), 0), "steps"),
        (lambda: ddim_kernel(normal, eta=1.1), "eta must lie between 0"),
        (
            lambda: ancestral(jax.random.key(0), reverse_kernel(normal, best), jnp.zeros(1), jnp.zeros(1)),
            "levels must hold",
        ),
        (lambda: heun(normal, schedule().gamma, jnp.zeros(1)), "levels must decrease"),
        (lambda: dpm_solver(normal, schedule().gamma, jnp.zeros(1)), "levels must decrease"),
        (lambda: log_density(normal, jnp.linspace(-1.0, 1.0, 4), jnp.zeros(1)), "levels must be odd in number"),
    ],
)
def test_bad_input_is_refused_by_name(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
