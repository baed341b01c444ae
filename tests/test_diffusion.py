"""Diffusion's schedules, process, bound, decoders, times and losses against NumPy, SciPy and exact quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for, z_threshold
from scipy import stats

from vbjax.diffusion import bound, decoders, losses, process, schedules, times
from vbjax.diffusion.bound import DiffusionModel
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence

pytestmark = pytest.mark.usefixtures("x64")

DF10 = np.linspace(0.02, 0.4, 10)
"""The β of a short chain."""


def left(betas):
    """ᾱ_0 … ᾱ_T, by a loop."""
    values = [1.0]
    for beta in betas:
        values.append(values[-1] * (1 - beta))
    return np.array(values)


def signal_left(schedule):
    return 1 / (1 + np.exp(np.asarray(schedule.gamma)))


def ho(steps):
    return left(np.linspace(1e-4, 0.02, 1000))[np.arange(1, steps + 1) * (1000 // steps)]


def nichol(steps):
    f = lambda t: np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    return left([min(1 - f(t) / f(t - 1), 0.999) for t in range(1, steps + 1)])[1:]


def jabri(steps):
    t = np.arange(1, steps + 1) / steps
    first, x, last = (1 / (1 + np.exp(-v)) for v in (-3, 6 * t - 3, 3))
    return 1e-9 + (1 - 1e-9) * (last - x) / (last - first)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_schedules_are_the_papers_for_any_number_of_steps(steps):
    published = [
        (schedules.linear_schedule, ho),
        (schedules.cosine_schedule, nichol),
        (schedules.sigmoid_schedule, jabri),
    ]
    for ours, theirs in published:
        schedule = ours(steps)
        assert schedule.steps == steps
        assert np.all(np.diff(schedule.gamma) > 0)
        assert_allclose(signal_left(schedule), theirs(steps), rtol=1e-9)


def test_coarser_linear_chains_end_where_the_thousand_steps_end():
    ends = [schedules.linear_schedule(steps).gamma[-1] for steps in (1, 7, 333, 1000)]
    assert_allclose(ends, ends[0], rtol=1e-13)
    # 4.0358e-5 of the signal is left, and half of that is the KL of a datum at one
    assert_allclose(signal_left(schedules.linear_schedule(1000))[-1], 4.0358297e-5, rtol=1e-7)
    assert_allclose(bound.prior_kl(jnp.ones(1), ends[-1]), 2.0180e-5, rtol=1e-4)


def test_noise_vanishes_only_if_the_betas_sum_to_infinity():
    t = np.arange(1, 10_001)
    summable = schedules.from_betas(jnp.asarray(1 / (t + 1.0) ** 2))
    assert_allclose(signal_left(summable)[-1], 0.5 * (1 + 1 / 10_001), rtol=1e-9)


def test_alpha_bar_is_the_product_of_the_first_t_factors():
    def check(betas):
        assert_allclose(signal_left(schedules.from_betas(jnp.asarray(betas))), left(DF10)[1:], rtol=1e-13)

    holds_only_for(check, DF10, np.concatenate([DF10[:1], DF10[:-1]]))
    assert_allclose(left(DF10)[-1], 0.0839443, rtol=1e-6)
    schedule = schedules.from_betas(jnp.asarray(DF10))
    assert schedule.at(0) == -np.inf
    assert_allclose(schedule.at(jnp.arange(1, 11)), schedule.gamma)


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (schedules.linear_gamma, (-13.3, 5.0)),
        (lambda: schedules.cosine_gamma(-20, 20), (-20, 20)),
        (lambda: schedules.sigmoid_gamma(-20, 20), (-20, 20)),
        (schedules.vp_gamma, (np.log(np.expm1(1e-6 + 9.95e-10)), np.log(np.expm1(10.05)))),
        (lambda: schedules.monotone_gamma(jax.random.key(0), low=-20, high=20), (-20, 20)),
    ],
)
def test_continuous_schedules_grow_from_end_to_end(make, ends):
    gamma = jax.vmap(make())(jnp.linspace(0, 1, 101))
    assert_allclose(gamma[jnp.array([0, -1])], ends, rtol=1e-12)
    assert np.all(np.diff(gamma) > 0)
    assert_allclose(schedules.discretise(make(), 100).gamma, gamma[1:], rtol=1e-13)


def test_the_continuous_limits_are_those_of_the_discrete_schedules():
    fine, limit = schedules.linear_schedule(1000), schedules.discretise(schedules.vp_gamma(start=0), 1000)
    # log(1 - β) = -β - β²/2 - …: the chain of a thousand steps is short of its limit by Σβ²/2 in log ᾱ
    betas = np.linspace(1e-4, 0.02, 1000)
    difference = np.log(signal_left(fine))[-1] - np.log(signal_left(limit))[-1]
    assert_allclose(difference, -np.sum(betas**2 / 2 + betas**3 / 3), rtol=1e-2)
    angle = schedules.discretise(schedules.cosine_gamma(-30, 30), 10)
    assert_allclose(signal_left(angle)[:-1], np.cos(np.pi / 2 * np.arange(1, 10) / 10) ** 2, rtol=1e-5)


def test_a_monotone_gamma_grows_for_any_parameters_and_its_ends_can_be_held():
    start = schedules.monotone_gamma(jax.random.key(1))
    rng = np.random.default_rng(0)
    wild = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape)), start)
    t = jnp.linspace(0, 1, 101)
    measure = jax.jit(lambda g: (jax.vmap(g)(t), jax.grad(lambda g: jax.vmap(g.fixed_ends())(t) @ t)(g)))
    gamma, gradient = measure(wild)
    assert np.all(np.diff(gamma) > 0)
    assert gradient.low == 0
    assert gradient.log_range == 0
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in gradient[2:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.from_betas(jnp.array([0.1, 1.0])), "betas"),
        (lambda: schedules.from_betas(jnp.array([0.1, 0.0])), "betas"),
        (lambda: schedules.from_betas(jnp.zeros(0)), "betas"),
        (lambda: schedules.from_betas(jnp.array([0.1, 1e-12], jnp.float32)), "grows"),
        (lambda: schedules.linear_schedule(0), "steps"),
        (lambda: schedules.linear_schedule(10, first=0.1, last=0.01), "first"),
        (lambda: schedules.cosine_schedule(0), "steps"),
        (lambda: schedules.cosine_schedule(10, largest=1), "largest"),
        (lambda: schedules.sigmoid_schedule(10, start=3, end=-3), "start"),
        (lambda: schedules.sigmoid_schedule(10, least_left=0), "least_left"),
        (lambda: schedules.discretise(lambda t: -t, 10), "grows"),
        (lambda: schedules.linear_gamma(5, 5), "low"),
        (lambda: schedules.monotone_gamma(jax.random.key(0), features=0), "features"),
        (lambda: schedules.vp_gamma(first=0), "first"),
        (lambda: times.uniform_law(0), "steps"),
        (lambda: times.empty_history(0), "steps"),
        (lambda: times.stratified_uniforms(jax.random.key(0), 0), "count"),
        (lambda: losses.min_snr_weight(0), "limit"),
        (lambda: decoders.levels_decoder(levels=1), "levels"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def chain_precision(betas):
    """Of (x_1, …, x_T) given x_0 = 0, from x_t = √(1-β_t) x_{t-1} + √β_t ε_t."""
    steps = len(betas)
    system = np.eye(steps) - np.diag(np.sqrt(1 - betas[1:]), -1)
    return system.T @ np.diag(1 / betas) @ system


def test_steps_of_the_process_multiply_to_the_joint_law_of_the_chain():
    rng = np.random.default_rng(3)
    path, x0 = rng.normal(size=10), 0.7
    schedule = schedules.from_betas(jnp.asarray(DF10))
    whole = stats.multivariate_normal(
        np.sqrt(left(DF10)[1:]) * x0, np.linalg.inv(chain_precision(DF10)), allow_singular=False
    ).logpdf(path)

    def check(root):
        before = jnp.asarray(np.concatenate([[x0], path[:-1]]))

        def step(x_s, x_t, t):
            law = process.transition(x_s[None], schedule.at(t - 1), schedule.at(t))
            return Normal(law.loc, root(law.scale)).log_prob(x_t[None])

        assert_allclose(jax.vmap(step)(before, jnp.asarray(path), jnp.arange(1, 11)).sum(), whole, rtol=1e-12)

    holds_only_for(check, lambda scale: scale, jnp.square)


def test_two_steps_merge_to_one_with_new_noise_and_not_with_the_old():
    schedule = schedules.from_betas(jnp.asarray(DF10))
    first, second, both = (
        process.transition(jnp.ones(1), *schedule.at(jnp.array(pair))) for pair in ((1, 2), (2, 3), (1, 3))
    )
    coefficients = np.array([second.loc[0] * first.scale[0], second.scale[0]])
    assert_allclose(first.loc * second.loc, both.loc, rtol=1e-13)

    def check(variance):
        assert_allclose(variance, both.scale[0] ** 2, rtol=1e-12)

    holds_only_for(check, np.sum(coefficients**2), np.sum(coefficients) ** 2)
    assert_allclose([both.scale[0] ** 2, np.sum(coefficients) ** 2], [0.1602, 0.3127], atol=5e-5)


def test_the_posterior_conditions_the_joint_law_and_at_time_one_is_the_datum():
    covariance = np.linalg.inv(chain_precision(DF10))
    schedule = schedules.from_betas(jnp.asarray(DF10))
    x0, x_t = 0.7, -0.4

    def check(wrong):
        for t in range(2, 11):
            pair = covariance[np.ix_([t - 2, t - 1], [t - 2, t - 1])]
            mean = np.sqrt(left(DF10)[[t - 1, t]]) * x0
            expected = mean[0] + pair[0, 1] / pair[1, 1] * (x_t - mean[1])
            law = wrong(jnp.full(1, x_t), jnp.full(1, x0), t)
            assert_allclose(law.loc[0], expected, rtol=1e-11)
            assert_allclose(law.scale[0] ** 2, pair[0, 0] - pair[0, 1] ** 2 / pair[1, 1], rtol=1e-11)

    right = lambda a, b, t: process.posterior(a, b, schedule.at(t - 1), schedule.at(t))  # noqa: E731
    swapped = lambda a, b, t: right(b, a, t)  # noqa: E731
    padded = schedules.from_betas(jnp.asarray([DF10[0], *DF10[:-1]]))
    late = lambda a, b, t: process.posterior(a, b, padded.at(t - 1), padded.at(t))  # noqa: E731
    holds_only_for(check, right, swapped, late)
    assert_allclose(process.posterior_mean(jnp.full(1, x_t), jnp.full(1, x0), schedule.at(0), schedule.at(1)), x0)
    assert process.posterior_variance(jnp.ones(1), schedule.at(0), schedule.at(1)) == 0
    four = schedules.from_betas(jnp.array([0.1, 0.2, 0.3, 0.4]))
    assert_allclose(process.posterior_variance(jnp.ones(1), four.at(2), four.at(3)), 0.169354838710, rtol=1e-11)


def test_every_prediction_is_the_datum_in_other_coordinates():
    rng = np.random.default_rng(5)
    x0, noise = jnp.asarray(rng.normal(size=(2, 1000)))
    levels = schedules.from_betas(jnp.asarray(DF10)).gamma
    to = {"x0": lambda d: d, "epsilon": process.epsilon, "v": process.velocity, "score": process.score}
    back = {"x0": lambda d: d, "epsilon": process.from_epsilon, "v": process.from_v, "score": process.from_score}
    for t, gamma in enumerate(levels, start=1):
        alpha, sigma = np.sqrt(left(DF10)[t]), np.sqrt(1 - left(DF10)[t])
        x_t = alpha * x0 + sigma * noise
        target = {"x0": x0, "epsilon": noise, "v": alpha * noise - sigma * x0, "score": -noise / sigma}
        exact = lambda x_t, gamma: x0  # noqa: E731
        for name, value in target.items():
            assert_allclose(to[name](exact)(x_t, gamma), value, atol=1e-12)
            assert_allclose(back[name](lambda *_, value=value: value)(x_t, gamma), x0, atol=1e-13)
            for other in back:
                around = to[other](back[name](lambda *_, value=value: value))
                assert_allclose(around(x_t, gamma), target[other], atol=1e-12)
        with pytest.raises(AssertionError):
            assert_allclose(back["score"](lambda *_: -noise)(x_t, gamma), x0, atol=1e-13)
        # the reverse mean by the noise and by the score (Ho et al. 2020, eq. 11)
        if t > 1:
            beta = DF10[t - 1]
            mean = process.posterior_mean(x_t, x0, levels[t - 2], gamma)
            assert_allclose(mean, (x_t - beta * noise / sigma) / np.sqrt(1 - beta), atol=1e-12)
            assert_allclose(mean, (x_t + beta * target["score"]) / np.sqrt(1 - beta), atol=1e-12)


def test_a_term_of_the_bound_is_a_squared_error_only_for_the_posterior_variance():
    schedule = schedules.from_betas(jnp.asarray(DF10))
    errors = jnp.array([0.5, 1.0, 2.0])

    def ratios(variance):
        def term(error):
            x_t, x0 = jnp.full(1, 0.3), jnp.full(1, -0.6)
            levels = schedule.at(4), schedule.at(5)
            reverse = process.reverse_kernel(lambda *_: x0 + error, variance)
            exact = process.posterior(x_t, x0, *levels)
            off = process.posterior_mean(x_t, x0 + error, *levels) - exact.loc
            return kl_divergence(exact, reverse(x_t, *levels)) / off[0] ** 2

        return np.asarray([term(error) for error in errors])

    constant = lambda values: assert_allclose(values, 1 / (2 * 0.130659684), rtol=1e-7)  # noqa: E731
    holds_only_for(constant, ratios(process.posterior_variance), ratios(process.forward_variance))


def test_the_best_reverse_variance_lies_where_the_data_put_it():
    schedule = schedules.from_betas(jnp.asarray(DF10))
    x_t, levels = jnp.ones(1), (schedule.at(4), schedule.at(5))
    least, most = (v(x_t, *levels) for v in (process.posterior_variance, process.forward_variance))
    after, before = left(DF10)[5], left(DF10)[4]

    def best(s2):
        error = lambda gamma: s2 * (1 - after) / (after * s2 + 1 - after)  # noqa: E731 - Var(x_0|x_5)
        return process.optimal_variance(error)(x_t, *levels)

    for s2, expected in ((0, least), (0.25, 0.156076), (1, most), (4, 0.216640)):
        law = (before * s2 + 1 - before) * DF10[4] / (after * s2 + 1 - after)
        assert_allclose(best(s2), law, rtol=1e-12)
        assert_allclose(best(s2), expected, rtol=1e-5)
    assert_allclose([least, most], [0.130660, 0.188889], atol=5e-7)
    assert best(4.0) > most
    table = process.measured_error(schedule.gamma, jnp.arange(1.0, 11.0))
    assert_allclose(table(schedule.at(5)), 5, rtol=1e-13)


def test_an_interpolated_variance_runs_between_the_two_and_is_finite_at_time_one():
    schedule = schedules.from_betas(jnp.asarray(DF10))

    def variance(v, s, t):
        make = process.interpolated_variance(lambda *_: jnp.atleast_1d(v), smallest=1e-6)
        return make(jnp.ones(1), schedule.at(s), schedule.at(t))[0]

    least, most = (v(jnp.ones(1), schedule.at(4), schedule.at(5)) for v in (process.posterior_variance,
                                                                          process.forward_variance))  # fmt: skip
    assert_allclose([variance(v, 4, 5) for v in (0.0, 0.5, 1.0)], [least, np.sqrt(least * most), most], rtol=1e-12)
    value, slope = jax.value_and_grad(variance)(0.5, 0, 1)
    assert_allclose([value, slope], np.sqrt(0.02e-6) * np.array([1, np.log(0.02 / 1e-6)]), rtol=1e-9)


LEVELS = 5


def pixel_model(variance=process.posterior_variance, decode=None):
    """A small affine denoiser of three pixels."""
    gain = jnp.array([0.6, 0.8, 0.4])
    denoiser = lambda x_t, gamma: gain * process.signal(gamma) * x_t  # noqa: E731
    decode = decode or decoders.discretised_decoder(denoiser, levels=LEVELS)
    reverse = process.reverse_kernel(denoiser, variance)
    return DiffusionModel(lambda x: decoders.embed_levels(x, levels=LEVELS), reverse, decode)


X = jnp.array([0, 3, 4], jnp.uint8)


def test_decoders_are_normalised_laws_of_the_pixels():
    x_1, gamma_1 = jnp.array([-0.9, 0.1, 0.8]), jnp.asarray(-2.0)
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-2)), np.sqrt(1 / (1 + np.exp(2)))
    grid = np.linspace(-1, 1, LEVELS)

    edges = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    centre = np.array([0.6, 0.8, 0.4]) * alpha * x_1
    bins = np.diff(stats.norm.cdf((edges[None] - centre[:, None]) / sigma), axis=1)
    frequencies = np.random.default_rng(0).dirichlet(np.ones(LEVELS), size=3)
    bayes = frequencies * stats.norm.pdf(x_1[:, None], alpha * grid[None], sigma)
    bayes /= bayes.sum(1, keepdims=True)

    @jax.jit
    def measure(gamma):
        law = pixel_model().decode(x_1, gamma_1)
        flat = decoders.levels_decoder(levels=LEVELS)(x_1, gamma_1)
        informed = decoders.levels_decoder(levels=LEVELS, log_frequencies=jnp.log(jnp.asarray(frequencies)))
        return jnp.exp(law.log_probs()), law.log_prob(X), flat.probs.sum(1), informed(x_1, gamma).probs

    discretised, log_prob, ones, informed = measure(gamma_1)
    assert_allclose(discretised, bins, rtol=1e-12)
    assert_allclose(log_prob, np.log(bins[np.arange(3), X]).sum(), rtol=1e-12)
    assert_allclose(ones, 1, rtol=1e-13)
    check = lambda probs: assert_allclose(probs, bayes, rtol=1e-10)  # noqa: E731
    holds_only_for(check, informed, measure(gamma_1 / 2)[-1])


def test_where_the_model_knows_the_datum_every_term_of_the_bound_is_a_ratio_of_variances():
    betas, x = np.array([0.1, 0.2, 0.35, 0.5]), np.array([0.3, -0.8])
    schedule = schedules.from_betas(jnp.asarray(betas))
    knows = lambda x_t, gamma: jnp.asarray(x)  # noqa: E731
    kernel = process.reverse_kernel(knows, process.forward_variance)
    model = DiffusionModel(lambda x: x, kernel, decoders.normal_decoder(knows))

    @jax.jit
    def measure(key):
        found = bound.diffusion_bound(key, model, schedule, jnp.asarray(x))
        return found, found.total()

    # no draw matters: the means agree, the variances are 1 - ᾱ_{t-1} to 1 - ᾱ_t, in two coordinates
    gone = 1 - np.cumprod(1 - betas)
    ratio = gone[:-1] / gone[1:]
    terms = ratio - 1 - np.log(ratio)
    prior = 0.5 * np.sum((1 - gone[-1]) * x**2 + gone[-1] - 1 - np.log(gone[-1]))
    reconstruction = np.log(2 * np.pi * gone[0])
    found, total = measure(jax.random.key(0))
    check = lambda terms: assert_allclose(found.diffusion, terms, rtol=1e-12)  # noqa: E731
    holds_only_for(check, terms, 1 / ratio - 1 + np.log(ratio), terms[::-1])
    assert_allclose([found.prior, found.reconstruction], [prior, reconstruction], rtol=1e-12)
    assert_allclose(total, prior + terms.sum() + reconstruction, rtol=1e-12)


def test_one_sampled_time_estimates_the_whole_bound_without_bias():
    schedule = schedules.cosine_schedule(6)
    model = pixel_model(process.forward_variance)  # with the posterior's own, a KL would be symmetric
    law = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(6)))
    t = jnp.arange(1, 7)

    @jax.jit
    def measure(seed):
        # every estimate sees the same noise as the term that it stands for
        one = jax.vmap(lambda t, w: bound.sampled_bound(jax.random.key(seed), model, schedule, X, times.Times(t, w)))
        terms = jax.vmap(lambda t: bound.diffusion_term(jax.random.key(seed), model, schedule, X, t))(t[1:])
        last = bound.reconstruction_term(jax.random.key(seed), model, schedule, X)
        return one(t, 1 / law), bound.DiffusionBound(bound.prior_term(model, schedule, X), terms, last)

    sampled, whole = measure(0)
    expected = jax.tree.map(lambda estimates: law @ estimates, sampled)
    check = lambda b: assert_allclose(  # noqa: E731
        [expected.prior, expected.diffusion, expected.reconstruction],
        [b.prior, b.diffusion.sum(), b.reconstruction],
        rtol=1e-12,
    )
    holds_only_for(check, whole, whole._replace(reconstruction=-whole.reconstruction), whole._replace(prior=0.0))


def test_a_chain_of_one_step_has_a_prior_and_a_reconstruction():
    schedule, model = schedules.linear_schedule(1), pixel_model()

    @jax.jit
    def measure(key_whole, key_times, key_sampled):
        time = times.stratified_times(key_times, times.uniform_law(1), 1)
        one = times.Times(time.t[0], time.weight[0])
        sampled = bound.sampled_bound(key_sampled, model, schedule, X, one)
        return bound.diffusion_bound(key_whole, model, schedule, X), one, sampled

    whole, time, sampled = measure(*jax.random.split(jax.random.key(0), 3))
    assert whole.diffusion.shape == (0,)
    assert time == (1, 1)
    assert sampled.diffusion == 0
    assert_allclose(sampled.prior, whole.prior)

    @jax.jit
    @jax.grad
    def slope(gamma):
        learnt = schedules.discretise(gamma, 1)
        return bound.sampled_bound(jax.random.key(0), model, learnt, X, time).total()

    # the term that is not there at t = 1 leaves no NaN behind
    assert all(np.all(np.isfinite(leaf)) for leaf in slope(schedules.monotone_gamma(jax.random.key(1))))


def test_stratified_times_fall_within_one_of_their_expected_number():
    law = jnp.asarray(np.random.default_rng(2).dirichlet(np.full(8, 0.5)))
    keys = jax.random.split(jax.random.key(3), (2, 500))
    even, loose = (
        jax.jit(jax.vmap(lambda key, draw=draw: draw(key, law, 64)))(keys[i])
        for i, draw in enumerate((times.stratified_times, times.independent_times))
    )
    counts = lambda draws: (np.asarray(draws.t)[..., None] == np.arange(1, 9)).sum(1)  # noqa: E731

    def check(draws):
        assert np.all(np.abs(counts(draws) - 64 * np.asarray(law)) <= 1)

    holds_only_for(check, even, loose)
    assert_allclose(even.weight, 1 / law[even.t - 1], rtol=1e-12)
    for draws in (even, loose):
        mean = counts(draws).mean(0)
        error = counts(draws).std(0) / np.sqrt(500)
        assert np.all(np.abs(mean - 64 * np.asarray(law)) <= z_threshold(8 * 2) * error)


def test_times_learn_the_root_of_the_mean_squared_loss():
    t = jnp.array([1, 2, 3, 1, 2, 3, 1])
    history = times.empty_history(3, length=2)
    part = history.record(t[:5], jnp.ones(5))
    assert_allclose(part.law(), 1 / 3)
    full = history.record(t, jnp.array([9.0, 2, 5, 3, 4, 12, 4]))
    # the first loss of t = 1 has been pushed out by the third
    size = np.sqrt([(3**2 + 4**2) / 2, (2**2 + 4**2) / 2, (5**2 + 12**2) / 2])
    assert_allclose(full.law(uniform_part=0), size / size.sum(), rtol=1e-12)
    assert_allclose(full.law(uniform_part=0.1), 0.9 * size / size.sum() + 0.1 / 3, rtol=1e-12)
    assert_allclose(history.record(t, jnp.zeros(7)).law(), 1 / 3)


def test_weights_turn_the_error_of_the_datum_into_that_of_the_prediction():
    x0 = jnp.array([0.3, -0.8])
    gamma = jnp.asarray(-0.7)
    denoiser = lambda x_t, gamma: 0.4 * x_t + 0.1  # noqa: E731

    def predicted(prediction, target):
        x_t = process.marginal(x0, gamma).sample(jax.random.key(4))
        drawn = (x_t - process.signal(gamma) * x0) / process.noise(gamma)
        return jnp.sum((target(drawn) - prediction(denoiser)(x_t, gamma)) ** 2)

    v = lambda drawn: process.signal(gamma) * drawn - process.noise(gamma) * x0  # noqa: E731
    loss = lambda weight: losses.denoising_loss(jax.random.key(4), denoiser, x0, gamma, weight=weight)  # noqa: E731
    check = lambda weight: assert_allclose(loss(weight), predicted(process.epsilon, lambda e: e), rtol=1e-12)  # noqa: E731
    holds_only_for(check, losses.epsilon_weight, losses.v_weight, losses.x0_weight)
    assert_allclose(loss(losses.v_weight), predicted(process.velocity, v), rtol=1e-12)
    assert_allclose(loss(losses.min_snr_weight(1.5)) / loss(losses.x0_weight), 1.5, rtol=1e-12)
    assert_allclose(loss(losses.min_snr_weight(5)), loss(losses.epsilon_weight), rtol=1e-12)


def test_the_hybrid_loss_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    schedule = schedules.cosine_schedule(4)

    def parts(params, share):
        denoiser = lambda x_t, gamma: params["gain"] * x_t  # noqa: E731
        fraction = lambda x_t, gamma: jax.nn.sigmoid(params["logit"] + share * x_t)  # noqa: E731
        variance = process.interpolated_variance(fraction, smallest=1e-6)
        decode = decoders.discretised_decoder(denoiser, levels=LEVELS, variance=variance)
        return denoiser, pixel_model(variance, decode)._replace(reverse=process.reverse_kernel(denoiser, variance))

    def hybrid(params, t):
        return losses.hybrid_loss(jax.random.key(5), *parts(params, 0.1), schedule, X, t, bound_weight=0.01)

    def simple(params, t):
        x0 = decoders.embed_levels(X, levels=LEVELS)
        return losses.denoising_loss(jax.random.key(5), parts(params, 0.1)[0], x0, schedule.at(t))

    def whole(params, t):
        x_t = process.marginal(decoders.embed_levels(X, levels=LEVELS), schedule.at(t)).sample(jax.random.key(5))
        return 0.04 * bound.bound_term(parts(params, 0.1)[1], schedule, X, x_t, t)

    params = {"gain": jnp.asarray(0.5), "logit": jnp.asarray(0.2)}
    measure = jax.jit(jax.vmap(lambda t: [jax.value_and_grad(f)(params, t) for f in (hybrid, simple, whole)]))
    (value, gradient), (value_simple, by_simple), (value_whole, by_whole) = measure(jnp.arange(1, 5))
    assert_allclose(value, value_simple + value_whole, rtol=1e-12)
    assert_allclose(gradient["logit"], by_whole["logit"], rtol=1e-12)
    check = lambda expected: assert_allclose(gradient["gain"], expected, rtol=1e-12)  # noqa: E731
    holds_only_for(check, by_simple["gain"], by_simple["gain"] + by_whole["gain"])
    assert np.all(np.isfinite(gradient["logit"]))
    assert np.all(gradient["logit"] != 0)


def test_float32_stays_finite_from_gamma_minus_thirty_to_thirty():
    f32 = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731
    x0, levels = f32(jnp.array([0.3, -1.0])), f32(jnp.linspace(-30, 30, 61))
    learnt = f32(schedules.monotone_gamma(jax.random.key(6), low=-30, high=30))
    predict = lambda x_t, gamma: jnp.tanh(x_t)  # noqa: E731

    def terms(gamma_t, gamma_s):
        noised = process.marginal(x0, gamma_t).sample(jax.random.key(7))
        made = [make(predict) for make in (lambda d: d, process.from_epsilon, process.from_v, process.from_score)]
        reverse = [process.reverse_kernel(denoiser)(noised, gamma_s, gamma_t) for denoiser in made]
        errors = [losses.denoising_loss(jax.random.key(8), denoiser, x0, gamma_t) for denoiser in made]
        kl = [kl_divergence(process.posterior(noised, x0, gamma_s, gamma_t), law) for law in reverse]
        return sum(jnp.log1p(term) for term in (*errors, *kl))

    def along(schedule):
        return jax.vmap(lambda t: terms(schedule(t), schedule(t - 1 / 64)))(jnp.linspace(1 / 32, 1, 32, dtype=x0.dtype))

    value, gradient = jax.jit(jax.value_and_grad(lambda schedule: along(schedule).sum()))(learnt)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)
    start = jnp.float32(-jnp.inf)
    means = jax.vmap(lambda gamma: process.posterior_mean(x0, 2 * x0, start, gamma))(levels)
    assert_allclose(means, np.broadcast_to(2 * x0, means.shape))
    for variance in (process.posterior_variance, process.forward_variance, process.optimal_variance(jnp.exp)):
        assert np.all(np.isfinite(jax.vmap(lambda gamma, f=variance: f(x0, start, gamma))(levels)))
