"""Diffusion along a graph against dense matrices in NumPy, the isotropic core, and the Gaussian case."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import holds_only_for, z_threshold
from vbjax.diffusion import anisotropic as an
from vbjax.diffusion import bound, process
from vbjax.diffusion.schedules import Schedule, from_betas
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence

pytestmark = pytest.mark.usefixtures("x64")


def graph(joints, *edges, weights=None):
    A = np.zeros((joints, joints))
    for (i, j), w in zip(edges, weights or [1.0] * len(edges), strict=True):
        A[i, j] = A[j, i] = w
    return A


FORK = graph(5, (0, 1), (1, 2), (1, 3), (3, 4))
PATH = graph(5, *itertools.pairwise(range(5)))


def random_graphs(count):
    """Trees, loops, isolated joints, weights over six orders of magnitude."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        joints = rng.integers(2, 26)
        A = np.triu(rng.random((joints, joints)) < rng.uniform(0.05, 0.9), 1) * 10 ** rng.uniform(-3, 3, (joints,) * 2)
        A[0, 1] = max(A[0, 1], 1e-3)
        yield A + A.T


def dense(betas, mixing, A):
    """Σ_t for t = 1 … T and Σ̄_t for t = 0 … T, by the recursion over dense matrices."""
    identity, N = np.eye(len(A)), an.skeleton_covariance(A)
    step = [b * (m * N + (1 - m) * identity) for b, m in zip(betas, mixing, strict=True)]
    total = [np.zeros_like(identity)]
    for b, sigma in zip(betas, step, strict=True):
        total.append((1 - b) * total[-1] + sigma)
    return step, total


def dense_of(schedule, eigenvalues):
    return (np.asarray(schedule.basis) * np.asarray(eigenvalues)) @ np.asarray(schedule.basis).T


@jax.jit
def levels(noise):
    """ᾱ_t and the eigenvalues of Σ̄_t for t = 0 … T."""
    at = jax.vmap(noise.at)(jnp.arange(noise.steps + 1))
    return jax.vmap(an.signal)(at) ** 2, jax.vmap(an.mode_variance)(at)


def test_the_skeleton_covariance_has_eigenvalues_from_zero_to_one_and_the_graphs_eigenvectors():
    def holds(covariance_of):
        for A in random_graphs(30):
            N = covariance_of(A)
            ends = np.linalg.eigvalsh(N)[[0, -1]]
            np.testing.assert_allclose(ends, [0, 1], atol=1e-12)
            np.testing.assert_allclose(N @ A, A @ N, atol=1e-12 * np.abs(A).max() * len(A))

    def laplacian(A):
        return (lambda L: L / np.linalg.eigvalsh(L)[-1])(np.diag(A.sum(0)) - A)

    holds_only_for(holds, an.skeleton_covariance, laplacian)
    N = an.skeleton_covariance(FORK)
    # λ_max = 2 cos π/8 of this tree; a tree is bipartite: λ_min = -λ_max
    np.testing.assert_allclose(N[0, 1], 1 / (4 * math.cos(math.pi / 8)), rtol=1e-14)
    np.testing.assert_allclose(N.diagonal(), 0.5, rtol=1e-14)


@pytest.mark.parametrize(
    ("adjacency", "mixing", "message"),
    [
        (np.zeros((3, 3)), 0.5, "no edge"),
        (np.eye(3), 0.5, "no edge"),
        (np.triu(FORK), 0.5, "symmetric"),
        (np.where(FORK == 1, np.nan, 0), 0.5, "finite"),
        (FORK[:, :4], 0.5, "square"),
        (FORK, 1.0, "lie in"),
        (FORK, -0.1, "lie in"),
        (FORK, math.nan, "lie in"),
        (FORK, np.array([0.1, 0.2]), "one for each of 3 steps"),
    ],
)
def test_what_is_no_skeleton_or_no_mixing_is_refused(adjacency, mixing, message):
    with pytest.raises(ValueError, match=message):
        an.anisotropic(from_betas(jnp.array([0.1, 0.2, 0.3])), adjacency, mixing)


def test_marginal_and_step_covariances_are_those_of_the_dense_recursion():
    rng = np.random.default_rng(1)

    @jax.jit
    def covariances(noise):
        times = jnp.arange(1, noise.steps + 1)
        added = jax.vmap(lambda t: an.forward_variance(noise.at(t - 1), noise.at(t)))(times)
        return jax.vmap(noise.covariance)(jnp.arange(noise.steps + 1)), added

    for A in [*random_graphs(2), FORK]:
        betas, mixing = rng.uniform(0.001, 0.6, 7), rng.uniform(0, 1, 7)
        noise = an.anisotropic(from_betas(jnp.asarray(betas)), A, mixing)
        step, total = dense(betas, mixing, A)
        marginal, added = covariances(noise)
        holds_only_for(
            lambda found, total=total: np.testing.assert_allclose(found, total, rtol=1e-10, atol=1e-13),
            marginal,
            # the slide's Σ_t read as the covariance of x_t
            [total[0], *step],
        )
        np.testing.assert_allclose([dense_of(noise, v) for v in added], step, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("mixing", [[0.3, 0.1, 0.6, 0.4], [1 - 1e-9] * 4, [1 - 1e-4, 0.5, 1 - 1e-7, 0.0]])
def test_the_posterior_is_the_joint_gaussian_conditioned(mixing):
    betas = np.array([0.05, 0.2, 0.1, 0.4])
    schedule = an.anisotropic(from_betas(jnp.asarray(betas)), FORK, np.array(mixing))
    _, total = dense(betas, mixing, FORK)
    left = np.concatenate([[1], np.cumprod(1 - betas)])
    rng = np.random.default_rng(2)
    x_t, x0 = rng.normal(size=(2, 6, 5, 3))
    for s, t in [(1, 2), (3, 4), (1, 4)]:
        cross = math.sqrt(left[t] / left[s]) * total[s]
        gain = np.linalg.solve(total[t], cross).T
        mean = np.sqrt(left[s]) * x0 + gain @ (x_t - np.sqrt(left[t]) * x0)
        covariance = total[s] - gain @ cross.T
        law = an.posterior(
            schedule.to_modes(jnp.asarray(x_t)), schedule.to_modes(jnp.asarray(x0)), schedule.at(s), schedule.at(t)
        )
        # a solve loses what the condition number takes
        tolerance = 1e-15 * np.linalg.cond(total[t]) + 1e-12
        np.testing.assert_allclose(schedule.to_joints(law.loc), mean, atol=20 * tolerance)
        isotropic = process.posterior_variance(jnp.zeros(()), *(schedule.at(u).gamma for u in (s, t)))

        def agrees(variance, covariance=covariance, tolerance=tolerance):
            np.testing.assert_allclose(dense_of(schedule, variance), covariance, atol=20 * tolerance)

        holds_only_for(agrees, law.scale[0, :, 0] ** 2, jnp.full(5, isotropic))


def test_white_noise_is_the_isotropic_process():
    schedule = Schedule(jnp.linspace(-4.0, 5.0, 6))
    rng = np.random.default_rng(3)
    x_t, x0 = (jnp.asarray(v) for v in rng.normal(size=(2, 4, 5, 3)))
    mixed = jnp.asarray(rng.normal(size=(3, 3)) / 2)

    def denoiser(x, gamma):
        return jnp.tanh(x @ mixed) * process.signal(gamma)

    model = bound.DiffusionModel(lambda x: x, process.reverse_kernel(denoiser), lambda x, g: Normal(x, 0.0 * x + 1))
    gamma_s, gamma_t = schedule.at(2), schedule.at(4)
    ours = lambda mixing: an.anisotropic(schedule, FORK, mixing)  # noqa: E731

    def agrees(noise):
        along = an.denoising_model(lambda x, level: denoiser(x, level.gamma), noise, x0.shape)
        y_t, y0, levels = noise.to_modes(x_t), noise.to_modes(x0), (noise.at(2), noise.at(4))
        for law, core in [
            (an.marginal(y0, levels[1]), process.marginal(x0, gamma_t)),
            (an.transition(y_t, *levels), process.transition(x_t, gamma_s, gamma_t)),
            (an.posterior(y_t, y0, *levels), process.posterior(x_t, x0, gamma_s, gamma_t)),
            (along.reverse(y_t, *levels), model.reverse(x_t, gamma_s, gamma_t)),
        ]:
            np.testing.assert_allclose(noise.to_joints(law.loc), core.loc, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(law.scale, core.scale, rtol=1e-12)
        term = kl_divergence(an.posterior(y_t, y0, *levels), along.reverse(y_t, *levels))
        core = kl_divergence(process.posterior(x_t, x0, gamma_s, gamma_t), model.reverse(x_t, gamma_s, gamma_t))
        np.testing.assert_allclose(term, core, rtol=1e-11)
        np.testing.assert_allclose(an.prior_term(along, noise, x0), bound.prior_term(model, schedule, x0), rtol=1e-11)

    holds_only_for(agrees, ours(0.0), ours(0.05))


def test_constant_mixing_is_the_isotropic_process_in_whitened_coordinates():
    schedule, mixing = Schedule(jnp.linspace(-6.0, 6.0, 9)), 0.8
    noise = an.anisotropic(schedule, FORK, mixing)
    rng = np.random.default_rng(4)
    y_t, y0 = (jnp.asarray(v) for v in rng.normal(size=(2, 5, 3)))
    levels, gammas = (noise.at(3), noise.at(7)), (schedule.at(3), schedule.at(7))
    white = process.posterior

    def agrees(mixing):
        scale = jnp.sqrt(mixing * jnp.linalg.eigvalsh(jnp.asarray(an.skeleton_covariance(FORK))) + 1 - mixing)[:, None]
        law, core = an.posterior(y_t, y0, *levels), white(y_t / scale, y0 / scale, *gammas)
        np.testing.assert_allclose(law.loc, scale * core.loc, rtol=1e-12)
        np.testing.assert_allclose(law.scale, scale * core.scale, rtol=1e-12)
        np.testing.assert_allclose(noise.prior((5, 3)).scale, scale * jnp.ones((5, 3)), rtol=1e-12)

    holds_only_for(agrees, mixing, 0.79)


def test_the_prior_term_vanishes_for_the_right_prior_alone():
    x0 = jnp.asarray(np.random.default_rng(5).normal(size=(5, 3)))
    nothing = lambda x, level: 0 * x  # noqa: E731

    def terms(white):
        def at(last):
            noise = an.anisotropic(Schedule(jnp.linspace(-4.0, last, 20)), FORK, 0.6)
            model = an.denoising_model(nothing, noise, x0.shape)
            if white:
                model = model._replace(prior=Normal(jnp.zeros((5, 3)), jnp.ones((5, 3))))
            return an.prior_term(model, noise, x0)

        return np.asarray(jax.jit(lambda: jnp.stack([at(last) for last in (4.0, 8.0, 12.0, 16.0)]))())

    def vanishes(values):
        # four nats of γ take e⁻⁴ of it
        np.testing.assert_allclose(values[2:] / values[1:-1], math.exp(-4), rtol=0.02)
        assert values[-1] < 1e-5

    right, wrong = terms(white=False), terms(white=True)
    holds_only_for(vanishes, right, wrong)
    shares = 0.6 * np.linalg.eigvalsh(an.skeleton_covariance(FORK)) + 0.4
    np.testing.assert_allclose(wrong[-1], 1.5 * np.sum(shares - 1 - np.log(shares)), rtol=1e-5)


VARIANCE = np.array([0.3, 1.4, 0.8, 2.0, 0.05])
"""Of Gaussian data in the modes of the graph."""


def exact(noise, variance=VARIANCE):
    """E[x_0|x_t] for data N(0, U diag(variance) Uᵀ)."""

    def denoiser(x_t, level):
        gain = variance / (variance + jnp.exp(level.modes)) / an.signal(level)
        return noise.to_joints(gain.reshape(*[1] * (x_t.ndim - 2), 5, 1) * noise.to_modes(x_t))

    return denoiser


def best_variance(noise):
    """Of the exact denoiser, whose errors are the posterior variances of y_0."""
    alpha, s = (np.asarray(v)[1:] for v in levels(noise))
    return an.measured_variance(noise, jnp.asarray(VARIANCE * s / (alpha[:, None] * VARIANCE + s)))


@pytest.mark.parametrize("choice", ["posterior", "forward", "measured"])
def test_on_gaussian_data_entropy_and_gaps_are_the_bound(choice):
    choices = {"posterior": lambda _: an.posterior_variance, "forward": lambda _: an.forward_variance}
    variance_of = choices.get(choice, best_variance)
    # the terms are sums over modes of quadratic forms in (y_0, ε): four sign patterns give their means exactly
    signs = jnp.array(list(itertools.product((-1.0, 1.0), repeat=2)))

    def expected_bound(noise, variance):
        model = an.denoising_model(exact(noise), noise, (5, 3), variance=variance)

        def term(y0, eps, t):
            y_t = an.marginal(y0, noise.at(t)).transport(eps)
            levels = noise.at(t - 1), noise.at(t)
            return kl_divergence(an.posterior(y_t, y0, *levels), model.reverse(y_t, *levels))

        def total(sign):
            y0, eps = sign[0] * jnp.sqrt(jnp.asarray(VARIANCE))[:, None] * jnp.ones((5, 3)), sign[1] * jnp.ones((5, 3))
            y_1 = an.marginal(y0, noise.at(1)).transport(eps)
            decoded = -model.decode(y_1, noise.at(1)).log_prob(y0)
            terms = jax.vmap(term, (None, None, 0))(y0, eps, jnp.arange(2, 6))
            return an.prior_term(model, noise, noise.to_joints(y0)) + terms.sum() + decoded

        return jax.vmap(total)(signs).mean()

    for mixing in (np.array(0.0), np.array([0.9, 0.2, 0.5, 0.7, 0.1])):
        noise = an.anisotropic(Schedule(jnp.linspace(-3.0, 1.5, 5)), FORK, mixing)
        variance = variance_of(noise)
        entropy, gaps, reverse_gaps = entropy_and_gaps(noise, variance)
        total = jax.jit(lambda noise=noise, variance=variance: expected_bound(noise, variance))()
        wrong = [entropy + reverse_gaps, *([] if choice == "measured" else [entropy + gaps])]
        holds_only_for(
            lambda expected, total=total: np.testing.assert_allclose(total, expected, rtol=1e-11),
            entropy + gaps + reverse_gaps,
            *wrong,
        )
        assert choice != "measured" or abs(reverse_gaps) < 1e-12


def entropy_and_gaps(noise, variance):
    """Of the Gaussian data; the gaps of prior and decoder; those of the reverse variances. All in closed form."""

    def gap(best, used):
        """KL between centred normals, a mode and three axes at a time."""
        return 1.5 * np.sum(best / used - 1 - np.log(best / used))

    alpha, s = (np.asarray(v) for v in levels(noise))
    entropy = 1.5 * np.sum(np.log(2 * np.pi * np.e * VARIANCE))
    gaps = gap(alpha[5] * VARIANCE + s[5], s[5] / (1 - alpha[5]))
    gaps += gap(VARIANCE * s[1] / (alpha[1] * VARIANCE + s[1]), s[1] / alpha[1])
    used = jax.jit(jax.vmap(lambda t: variance(noise.at(t - 1), noise.at(t))))(jnp.arange(2, 6))
    reverse_gaps = 0
    for t in range(2, 6):
        ratio, before = alpha[t] / alpha[t - 1], alpha[t - 1] * VARIANCE + s[t - 1]
        best = before - ratio * before**2 / (alpha[t] * VARIANCE + s[t])
        reverse_gaps += gap(best, used[t - 2])
    return entropy, gaps, reverse_gaps


def test_bound_and_samples_follow_the_law_and_the_white_prior_is_caught():
    """The bound's mean is its closed form; samples have the chain's variance, from 4,000 draws each."""
    noise = an.anisotropic(Schedule(jnp.linspace(-3.0, 6.0, 8)), FORK, 0.95)
    denoiser = exact(noise)
    count = 4000

    @jax.jit
    def draws(white_scale):
        model = an.denoising_model(denoiser, noise, (2, 5, 3))
        model = model._replace(prior=Normal(model.prior.loc, model.prior.scale ** (1 - white_scale)))
        keys = jax.random.split(jax.random.key(0), (4, count))
        scale = jnp.sqrt(jnp.asarray(VARIANCE)).reshape(1, 1, 5, 1)
        data = scale * jax.random.normal(jax.random.key(1), (count, 2, 5, 3))
        one = lambda key, y0: an.diffusion_bound(key, model, noise, noise.to_joints(y0))  # noqa: E731
        samples = jax.vmap(lambda key: noise.to_modes(an.sample(key, model, noise)))(keys[0])
        x0 = jax.vmap(noise.to_joints)(data)
        errors = jax.vmap(lambda key, x: an.noise_error(key, denoiser, noise, x, 4))(keys[1], x0)
        squares = jax.vmap(lambda key, x: an.mode_errors(key, denoiser, noise, x))(keys[3], x0)
        return samples, jax.vmap(one)(keys[2], data), errors, squares

    # every kernel is linear: y_s = g y_t + N(0, r), mode by mode
    alpha, s = (np.asarray(v) for v in levels(noise))
    gain = lambda t: math.sqrt(alpha[t]) * VARIANCE / (alpha[t] * VARIANCE + s[t])  # noqa: E731

    def chain(variance):
        for t in range(8, 1, -1):
            kept = alpha[t] / alpha[t - 1] * s[t - 1] / s[t]
            slope = kept * math.sqrt(alpha[t - 1] / alpha[t]) + math.sqrt(alpha[t - 1]) * (1 - kept) * gain(t)
            variance = slope**2 * variance + s[t - 1] * (1 - kept)
        return gain(1) ** 2 * variance + s[1] / alpha[1]

    expected = chain(s[8] / (1 - alpha[8]))

    def follows(draws):
        samples, bounds, errors, squares = draws
        z = (np.mean(samples**2, (0, 1, 3)) / expected - 1) * math.sqrt(count * 6 / 2)
        assert np.abs(z).max() < z_threshold(60)
        # ε̂ - ε of the exact denoiser has variance ᾱ v / (ᾱ v + s)
        explained = np.mean(alpha[4] * VARIANCE / (alpha[4] * VARIANCE + s[4]))
        assert abs(errors.mean() - explained) < z_threshold(60) * errors.std() / math.sqrt(count)
        left = VARIANCE * s[1:] / (alpha[1:, None] * VARIANCE + s[1:])
        assert np.abs((squares.mean(0) - left) / squares.std(0)).max() * math.sqrt(count) < z_threshold(60)
        diffusion, prior = np.asarray(bounds.diffusion), np.asarray(bounds.prior)
        for t in range(2, 9):
            kept = alpha[t] / alpha[t - 1] * s[t - 1] / s[t]
            error = VARIANCE * s[t] / (alpha[t] * VARIANCE + s[t])
            mean = 3 * np.sum(alpha[t - 1] * (1 - kept) * error / s[t - 1])
            assert abs(diffusion[:, t - 2].mean() - mean) < z_threshold(60) * diffusion[:, t - 2].std() / count**0.5
        ratio = s[8] / (s[8] / (1 - alpha[8]))
        tail = 3 * np.sum(ratio + alpha[8] * VARIANCE / s[8] * ratio - 1 - np.log(ratio))
        assert abs(prior.mean() - tail) < z_threshold(60) * prior.std() / count**0.5

    # JAX takes the keys of a scan under vmap for consumed
    with jax.debug_key_reuse(False):
        holds_only_for(follows, draws(0.0), draws(1.0))


def test_starting_from_white_noise_multiplies_the_variance_of_a_null_direction():
    """SkeletonDiffusion's setting: T = 10, cosine, m_t = 1 - α_t, data of variance one on a path of five joints."""
    left = np.cos((np.arange(11) / 10 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - left[1:] / left[:-1], 0.999)
    noise = an.anisotropic(from_betas(jnp.asarray(betas)), PATH, betas)
    model = an.denoising_model(exact(noise, np.ones(5)), noise, (5, 1))

    def final(variance):
        for t in range(10, 1, -1):
            law = model.reverse(jnp.ones((5, 1)), noise.at(t - 1), noise.at(t))
            variance = law.loc[:, 0] ** 2 * variance + law.scale[:, 0] ** 2
        return model.decode(jnp.ones((5, 1)), noise.at(1)).mean()[:, 0] ** 2 * variance

    def near_the_data(variance):
        assert math.floor(100 * variance[0]) == 70
        assert variance.max() < 1

    holds_only_for(near_the_data, final(np.asarray(model.prior.scale[:, 0]) ** 2), final(np.ones(5)))
    assert math.floor(100 * final(np.ones(5))[0]) == 1407
