"""The games against cross-entropy, divergences and quadrature; penalties against differences; norms against SVD."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for, z_threshold
from scipy import integrate, optimize, stats
from scipy.spatial.distance import jensenshannon
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from vbjax.distributions import MultivariateNormal, Normal
from vbjax.gan import cycle, penalties, values
from vbjax.gan.optimal import (
    expected_discriminator_loss,
    kantorovich_potential,
    optimal_discriminator,
    wasserstein_1,
)
from vbjax.types import Nodes

pytestmark = pytest.mark.usefixtures("x64")
LOG_2 = math.log(2)


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def tables(rng, count, outcomes=6):
    """Pairs of laws on a few outcomes: sharp, flat, with zeros, and the last pair disjoint."""
    p, q = (rng.dirichlet(np.full(outcomes, alpha), count // 2) for alpha in (0.3, 3.0))
    p, q = np.concatenate([p, q]), np.concatenate([q, p[::-1]])
    p[::3, 0], q[::4, 1] = 0, 0
    p[-1, : outcomes // 2], q[-1, outcomes // 2 :] = 0, 0
    return p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)


def finite(weights):
    return Nodes(jnp.arange(weights.shape[-1]), jnp.asarray(weights), exact=True)


def log_mass(weights):
    return lambda x: jnp.log(jnp.asarray(weights))[x]


def loss_at_the_optimum(game):
    @jax.jit
    @jax.vmap
    def loss(p, q):
        discriminator = optimal_discriminator(game, log_mass(p), log_mass(q))
        return expected_discriminator_loss(game, discriminator, finite(p), finite(q))

    return loss


def test_minimax_loss_is_the_cross_entropy_of_a_balanced_batch():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(1, 2, 100), rng.normal(-1, 2, 100)
    labels, probabilities = np.repeat([1, 0], 100), sigmoid(np.concatenate([real, fake]))

    def check(game):
        losses = jax.vmap(lambda x, y: values.discriminator_loss(game, lambda x: x, x, y))(real, fake)
        assert_allclose(losses.mean(), log_loss(labels, probabilities), rtol=1e-12)

    swapped = values.minimax._replace(real=values.minimax.fake, fake=values.minimax.real)
    holds_only_for(check, values.minimax, values.scaled(values.minimax, 2), swapped)
    with pytest.raises(ValueError, match="factor"):
        values.scaled(values.minimax, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_loss_and_its_gradient_is_finite_at_logits_of_800(dtype):
    outputs = jnp.asarray([-800, -100, -17, 0, 17, 100, 800], dtype)
    losses = [loss for game in values.GAMES.values() for loss in (game.real, game.fake, game.generator)]
    naive = lambda logit: 0.5 * jnp.log(1 - jax.nn.sigmoid(logit))  # noqa: E731

    def check(found):
        value, slope = found
        assert np.isfinite(value).all()
        assert np.isfinite(slope).all()
        assert value.dtype == dtype

    *ours, wrong = jax.jit(lambda x: [jax.vmap(jax.value_and_grad(loss))(x) for loss in (*losses, naive)])(outputs)
    for found in ours:
        holds_only_for(check, found, wrong)
    # and not merely finite: to both sides the cross-entropy is linear
    assert_allclose(values.minimax.fake(outputs[-1]), 400)
    assert_allclose(jax.grad(values.minimax.fake)(outputs[-1]), 0.5)


@pytest.mark.parametrize("name", ["minimax", "non_saturating", "least_squares", "hinge"])
def test_optimal_output_minimises_the_loss_at_every_point(name):
    game = values.GAMES[name]
    p, q = np.random.default_rng(1).dirichlet([1, 1], 40).T
    grid = np.linspace(-6, 6, 24_001)
    mean_loss = p[:, None] * np.asarray(game.real(grid)) + q[:, None] * np.asarray(game.fake(grid))
    best = grid[mean_loss.argmin(1)]

    def check(ratio):
        assert_allclose(game.optimum(jnp.asarray(np.log(ratio))), best, atol=3e-4)

    inside = np.abs(np.log(p / q)) < 6
    p, q, best = p[inside], q[inside], best[inside]
    holds_only_for(check, p / q, q / p, p / (p + q))


def test_optimal_discriminator_between_normals_is_what_logistic_regression_finds():
    data, model = Normal(0.0, 1.0), Normal(2.0, 1.0)
    x = np.linspace(-3, 5, 9)
    logit = jax.vmap(optimal_discriminator(values.minimax, data.log_prob, model.log_prob))(x)
    assert_allclose(logit, 2 - 2 * x, atol=1e-13)

    rng, n = np.random.default_rng(2), 50_000
    samples = np.concatenate([rng.normal(0, 1, n), rng.normal(2, 1, n)])
    fit = LogisticRegression(C=np.inf, tol=1e-8).fit(samples[:, None], np.repeat([1, 0], n))
    design = np.stack([np.ones_like(samples), samples], 1)
    p = sigmoid(design @ [2, -2])
    covariance = np.linalg.inv((design * (p * (1 - p))[:, None]).T @ design)
    found = np.array([fit.intercept_[0], fit.coef_[0, 0]])

    def check(expected):
        assert np.all(np.abs(found - expected) < z_threshold(2) * np.sqrt(np.diag(covariance)))

    holds_only_for(check, np.array([2, -2]), np.array([-2, 2]))


def test_least_losses_of_finite_laws_are_their_divergences():
    p, q = tables(np.random.default_rng(3), 60)
    jsd = jensenshannon(p, q, axis=1) ** 2
    middle = (p + q) / 2
    chi_squared = np.sum(np.where(middle > 0, (p - middle) ** 2 / np.where(middle > 0, middle, 1), 0), 1)
    least = {
        "minimax": LOG_2 - jsd,
        "non_saturating": LOG_2 - jsd,
        "least_squares": 0.25 - 0.25 * chi_squared,
        "hinge": 2 - np.abs(p - q).sum(1),
    }
    for name, expected in least.items():
        assert_allclose(loss_at_the_optimum(values.GAMES[name])(p, q), expected, rtol=1e-10, atol=1e-14)
    # Goodfellow's V = -2 J^(D), whose constant is not that of J^(D)
    value = -loss_at_the_optimum(values.scaled(values.minimax, 2))(p, q)
    holds_only_for(lambda constant: assert_allclose(value, constant + 2 * jsd, atol=1e-12), -2 * LOG_2, -LOG_2)
    # laws without a common outcome are told apart without error
    disjoint = optimal_discriminator(values.minimax, log_mass(p[-1]), log_mass(q[-1]))
    assert_allclose(jax.vmap(disjoint)(jnp.arange(6)), [-np.inf] * 3 + [np.inf] * 3)
    assert_allclose(jsd[-1], LOG_2)
    # and where neither has mass, any output will do
    nowhere = optimal_discriminator(values.minimax, lambda x: -jnp.inf + x, lambda x: -jnp.inf + x)
    assert nowhere(jnp.zeros(())) == 0


def jsd_of_normals(mean, scale, other_mean, other_scale):
    """By SciPy's adaptive quadrature."""
    p, q = stats.norm(mean, scale), stats.norm(other_mean, other_scale)

    def integrand(x):
        log_p, log_q = p.logpdf(x), q.logpdf(x)
        log_m = np.logaddexp(log_p, log_q) - LOG_2
        return 0.5 * (np.exp(log_p) * (log_p - log_m) + np.exp(log_q) * (log_q - log_m))

    return integrate.quad(integrand, -30, 30, points=[mean, other_mean], epsabs=1e-13, limit=400)[0]


def test_least_loss_between_normals_is_log_2_minus_jsd_by_quadrature():
    data, model = Normal(0.0, 1.0), Normal(2.0, 1.0)
    best = optimal_discriminator(values.minimax, data.log_prob, model.log_prob)
    loss = lambda game: expected_discriminator_loss(game, best, data.nodes(200), model.nodes(200))  # noqa: E731
    jsd = jsd_of_normals(0, 1, 2, 1)

    def check(game):
        assert_allclose(loss(game), LOG_2 - jsd, atol=1e-10)

    # the value without the halves has another constant
    holds_only_for(check, values.minimax, values.scaled(values.minimax, 2))


def test_equilibrium_is_a_saddle_in_function_space_and_no_minimum():
    rng = np.random.default_rng(4)
    p, q = tables(rng, 300)
    logits = rng.normal(0, 3, p.shape)

    @jax.jit
    @jax.vmap
    def loss(p, q, logits):
        return expected_discriminator_loss(values.minimax, lambda x: logits[x], finite(p), finite(q))

    assert loss(p, p, logits).min() >= LOG_2 - 1e-12
    assert_allclose(loss(p, q, np.zeros_like(p)), LOG_2, rtol=1e-12)
    assert loss_at_the_optimum(values.minimax)(p, q).max() <= LOG_2 + 1e-12
    # a joint minimum it is not
    assert loss(p, q, logits).min() < LOG_2 - 0.1


def affine(theta):
    return lambda z: theta[0] + theta[1] * z


def quadratic(phi):
    return lambda x: phi[0] + phi[1] * x + phi[2] * x**2


@pytest.mark.parametrize("name", list(values.GAMES))
def test_generator_learns_through_the_slope_of_the_discriminator_alone(name):
    game, theta, phi = values.GAMES[name], jnp.array([-0.4, 0.8]), jnp.array([0.1, 0.5, -0.2])
    z = 0.7
    x, slope, h = -0.4 + 0.8 * z, 0.5 - 0.4 * (-0.4 + 0.8 * z), 1e-5
    output = float(quadratic(phi)(x))
    pays = (game.generator(jnp.asarray(output + h)) - game.generator(jnp.asarray(output - h))) / (2 * h)
    chain = pays * slope * np.array([1, z])

    def check(barrier):
        loss = lambda theta: values.generator_loss(  # noqa: E731
            game, quadratic(phi), lambda z: barrier(affine(theta)(z)), jnp.asarray(z)
        )
        assert_allclose(jax.grad(loss)(theta), chain, rtol=1e-6)

    holds_only_for(check, lambda x: x, jax.lax.stop_gradient)
    flat = jax.grad(lambda theta: values.generator_loss(game, quadratic(0 * phi), affine(theta), jnp.asarray(z)))
    assert not flat(theta).any()
    # nor does the discriminator's loss move the generator
    fake = lambda theta: values.discriminator_loss(game, quadratic(phi), jnp.ones(()), affine(theta)(z))  # noqa: E731
    assert not jax.grad(fake)(theta).any()


def test_non_saturating_gradient_is_the_minimax_one_times_exp_of_minus_the_logit():
    logits = jnp.linspace(-30, 30, 61)
    saturating, alive = (jax.vmap(jax.grad(game.generator))(logits) for game in (values.minimax, values.non_saturating))
    assert_allclose(saturating, -0.5 * sigmoid(logits), rtol=1e-12)
    holds_only_for(
        lambda ratio: assert_allclose(alive, ratio * saturating, rtol=1e-12), np.exp(-logits), np.ones_like(logits)
    )
    at = jnp.asarray(-4.0)
    assert_allclose(jax.grad(values.minimax.generator)(at), -0.008993104981, rtol=1e-9)
    assert_allclose(jax.grad(values.non_saturating.generator)(at), -0.491006895019, rtol=1e-11)


def test_generators_at_the_best_discriminator_descend_the_divergences_that_theory_names():
    """Minimax: -JSD's negative; non-saturating: half of KL(q‖p) - 2 JSD, though the discriminator is held fixed."""
    data, mean, h = Normal(2.0, 0.5), 1.2, 1e-4
    latents = Normal(0.0, 1.0).nodes(120)
    best = optimal_discriminator(values.minimax, data.log_prob, Normal(mean, 0.5).log_prob)

    def slope(game):
        def loss(mean):
            each = jax.vmap(lambda z: values.generator_loss(game, best, lambda z: mean + 0.5 * z, z))(latents.points)
            return jnp.sum(latents.weights * each)

        return jax.grad(loss)(jnp.asarray(mean))

    jsd = (jsd_of_normals(2, 0.5, mean + h, 0.5) - jsd_of_normals(2, 0.5, mean - h, 0.5)) / (2 * h)
    reverse_kl = (mean - 2) / 0.5**2
    assert_allclose(slope(values.minimax), jsd, rtol=1e-6)
    assert_allclose(slope(values.non_saturating), 0.5 * (reverse_kl - 2 * jsd), rtol=1e-6)
    # the two are not multiples of each other
    assert abs(slope(values.non_saturating) / slope(values.minimax) - 1) > 0.5


def test_generator_with_two_latents_covers_a_surface_of_dimension_two_in_ten():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(16, 2)), rng.normal(size=(10, 16)) / 4
    generator = lambda z: second @ jnp.tanh(first @ z)  # noqa: E731
    z = rng.normal(size=(400, 2))
    jacobians = jax.jit(jax.vmap(jax.jacfwd(generator)))(z)

    def check(dimension):
        assert np.all(np.linalg.matrix_rank(jacobians) == dimension)

    holds_only_for(check, 2, 10)
    # the surface is curved: no flat space of fewer than ten dimensions holds it
    assert np.linalg.matrix_rank(np.cov(jax.vmap(generator)(z).T)) == 10


def network(params):
    return lambda x: jnp.sum(params[1] * jnp.tanh(params[0] @ x))


def slope_by_differences(params, x, h=1e-5):
    steps = h * np.eye(x.size)
    return np.array([(network(params)(x + e) - network(params)(x - e)) / (2 * h) for e in steps])


def test_penalties_are_what_differences_of_the_discriminator_give():
    rng = np.random.default_rng(6)
    params = (jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=5)))
    real, fake, u = rng.normal(size=3), rng.normal(size=3), 0.3
    slope = lambda x: np.linalg.norm(slope_by_differences(params, x))  # noqa: E731
    between = u * real + (1 - u) * fake
    expected = {
        "gradient_penalty": (slope(between) - 1) ** 2,
        "zero_centred_penalty": slope(between) ** 2,
        "r1": 0.5 * slope(real) ** 2,
        "r2": 0.5 * slope(fake) ** 2,
    }

    def ours(params, real, fake, u):
        D = network(params)
        pair = (jnp.asarray(real), jnp.asarray(fake))
        return {
            "gradient_penalty": penalties.gradient_penalty(D, *pair, jnp.asarray(u)),
            "zero_centred_penalty": penalties.zero_centred_penalty(D, *pair, jnp.asarray(u)),
            "r1": penalties.r1(D, pair[0]),
            "r2": penalties.r2(D, pair[1]),
        }

    def check(at):
        found = ours(params, *at)
        for name, value in expected.items():
            assert_allclose(found[name], value, rtol=1e-8, err_msg=name)

    holds_only_for(check, (real, fake, u), (fake, real, u), (real, fake, 1 - u))
    assert abs(expected["gradient_penalty"] - expected["zero_centred_penalty"]) > 0.1

    # the gradient of a gradient, in one direction of all parameters
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    at = lambda t: ours(jax.tree.map(lambda p, d: p + t * d, params, direction), real, fake, u)  # noqa: E731
    derivative, high, low = jax.jit(jax.jacrev(at))(0.0), at(1e-5), at(-1e-5)
    for name, value in derivative.items():
        assert_allclose(value, (high[name] - low[name]) / 2e-5, rtol=1e-6, err_msg=name)
    # no penalty moves the generator
    moves = jax.jit(jax.jacrev(lambda fake: ours(params, real, fake, u)))(fake)
    assert not any(np.any(move) for move in jax.tree.leaves(moves))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_penalties_of_a_flat_discriminator_have_finite_gradients(dtype):
    x = jnp.asarray([0.3, -0.2], dtype)

    def check(penalty):
        loss = lambda w: penalty(lambda x: jnp.sum(w * x), x, 2 * x, jnp.asarray(0.5, dtype))  # noqa: E731
        value, gradient = jax.jit(jax.vmap(jax.value_and_grad(loss)))(jnp.stack([0 * x, 1e-30 * x, 1e-3 * x]))
        assert value.dtype == dtype
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()

    def by_the_norm(D, real, fake, u):
        return (jnp.linalg.norm(jax.grad(D)(u * real + (1 - u) * fake)) - 1) ** 2

    holds_only_for(check, penalties.gradient_penalty, by_the_norm)
    check(penalties.zero_centred_penalty)
    check(lambda D, real, fake, u: penalties.r1(D, real) + penalties.r2(D, fake))


def test_power_iteration_is_within_its_bound_of_the_largest_singular_value():
    rng, counts = np.random.default_rng(7), (1, 2, 5, 20)
    kernels = rng.normal(size=(40, 3, 2, 5)) * 10.0 ** rng.uniform(-6, 6, (40, 1, 1, 1))
    starts = rng.normal(size=(40, 5))
    _, singular, right = np.linalg.svd(kernels.reshape(40, 6, 5))
    cosine = np.abs(np.sum(right[:, 0] * starts, 1)) / np.linalg.norm(starts, axis=1)

    @jax.jit
    @jax.vmap
    def estimates(kernel, u):
        return [penalties.spectral_norm(kernel, u, iterations=n)[0] for n in counts]

    found = estimates(kernels, starts)
    ratio = singular[:, 1] / singular[:, 0]
    for n, sigma in zip(counts, found, strict=True):
        loss = 1 - (np.asarray(sigma) / singular[:, 0]) ** 2
        bound = (1 / cosine**2 - 1) * np.minimum(ratio ** (4 * n - 2), 1 / (4 * n))
        assert np.all(loss > -1e-12)
        assert np.all(loss < bound + 1e-12)
    # the bound says something: one iteration is far outside of the bound of five
    assert np.any(1 - (np.asarray(found[0]) / singular[:, 0]) ** 2 > (1 / cosine**2 - 1) * ratio**18)
    with pytest.raises(ValueError, match="iterations"):
        penalties.spectral_norm(jnp.ones((2, 2)), jnp.ones(2), iterations=0)


def test_spectral_norm_carried_from_call_to_call_is_that_of_as_many_iterations_at_once():
    rng = np.random.default_rng(8)
    kernel, u = jnp.asarray(rng.normal(size=(6, 5))), jnp.asarray(rng.normal(size=5))
    at_once, state = penalties.spectral_norm(kernel, u, iterations=3)
    for _ in range(3):
        sigma, u = penalties.spectral_norm(kernel, u)
    assert_allclose(sigma, at_once, rtol=1e-14)
    assert_allclose(u, state, rtol=1e-13)
    assert_allclose(jnp.linalg.norm(u), 1)


def test_normalised_kernel_has_norm_one_and_the_gradient_of_division_by_svd():
    rng = np.random.default_rng(9)
    kernel, weights = jnp.asarray(rng.normal(size=(4, 3))), rng.normal(size=(4, 3))
    u = jnp.asarray(np.linalg.svd(kernel)[2][0])
    normalised, following = penalties.spectrally_normalised(kernel, u)
    assert_allclose(penalties.dense_norm(normalised), 1, rtol=1e-12)
    assert_allclose(following, u, atol=1e-12)
    direction, h = rng.normal(size=(4, 3)), 1e-6
    by_svd = lambda k: np.sum(weights * k) / np.linalg.norm(k, 2)  # noqa: E731
    slope = (by_svd(kernel + h * direction) - by_svd(kernel - h * direction)) / (2 * h)

    def check(normalise):
        gradient = jax.grad(lambda k: jnp.sum(weights * normalise(k)))(kernel)
        assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6)

    def detached(kernel):
        return kernel / jax.lax.stop_gradient(penalties.spectral_norm(kernel, u)[0])

    holds_only_for(check, lambda k: penalties.spectrally_normalised(k, u)[0], detached)


def test_spectral_normalisation_survives_kernels_of_zeros_and_of_extreme_scale_in_float32():
    kernel, u = jnp.asarray([[3.0, 0.0], [0.0, 1.0]], np.float32), jnp.ones(2, np.float32)
    normalise = jax.jit(lambda kernel, u: penalties.spectrally_normalised(kernel, u, iterations=20))
    for scale in (1e-30, 1.0, 1e30):
        normalised, following = normalise(scale * kernel, u)
        assert_allclose(normalised, kernel / 3, rtol=1e-5)
        assert normalised.dtype == following.dtype == np.float32
    zeros, following = normalise(0 * kernel, u)
    assert not zeros.any()
    # the state is not lost: it works again once the kernel has grown
    assert_allclose(normalise(kernel, following)[0], kernel / 3, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda k: penalties.spectrally_normalised(k, u)[0].sum()))(0 * kernel)
    assert np.isfinite(gradient).all()


def circular_convolution_matrix(kernel, shape):
    """The operator itself, entry by entry: (x, y, out) from (x + i, y + j, in) modulo the image."""
    height, width, inputs, outputs = kernel.shape
    matrix = np.zeros((*shape, outputs, *shape, inputs))
    for x, y, i, j in np.ndindex(*shape, height, width):
        matrix[x, y, :, (x + i) % shape[0], (y + j) % shape[1]] += kernel[i, j].T
    return matrix.reshape(shape[0] * shape[1] * outputs, -1)


def test_lipschitz_constant_of_a_convolution_is_that_of_its_operator_and_not_of_its_reshaped_kernel():
    rng, shape = np.random.default_rng(10), (6, 5)
    for kernel in (rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(3, 2, 3, 1)), np.ones((3, 3, 1, 1))):
        exact = np.linalg.norm(circular_convolution_matrix(kernel, shape), 2)
        reshaped = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)

        def check(norm, kernel=kernel, exact=exact):
            assert_allclose(norm(jnp.asarray(kernel)), exact, rtol=1e-12)

        holds_only_for(check, lambda k: penalties.convolution_norm(k, shape), penalties.dense_norm)
        assert_allclose(penalties.dense_norm(jnp.asarray(kernel)), reshaped, rtol=1e-12)
        assert reshaped <= exact <= np.sqrt(kernel.shape[0] * kernel.shape[1]) * reshaped * (1 + 1e-12)
    # the upper end is attained: dividing 3x3 kernels by the reshaped norm may leave a Lipschitz constant of three
    assert_allclose(exact, 3 * reshaped)
    with pytest.raises(ValueError, match="does not fit"):
        penalties.convolution_norm(jnp.ones((3, 3, 1, 1)), (2, 5))


def test_wasserstein_distance_is_the_value_of_the_lipschitz_game():
    rng, n = np.random.default_rng(11), 7
    points, other = rng.normal(size=n), np.append(rng.normal(1, 2, n), 0.3)
    other[0] = points[0]
    p, q = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n + 1))
    data, model = Nodes(jnp.asarray(points), jnp.asarray(p), True), Nodes(jnp.asarray(other), jnp.asarray(q), True)
    expected = stats.wasserstein_distance(points, other, p, q)
    assert_allclose(wasserstein_1(data, model), expected, rtol=1e-12)
    assert_allclose(wasserstein_1(model, data), expected, rtol=1e-12)

    def check(pair):
        loss = expected_discriminator_loss(values.wasserstein, kantorovich_potential(*pair), data, model)
        assert_allclose(loss, -expected, rtol=1e-12)

    holds_only_for(check, (data, model), (model, data))
    # it is Lipschitz, and by linear programming no Lipschitz function does better
    where = np.concatenate([points, other])
    height = np.asarray(jax.vmap(kantorovich_potential(data, model))(jnp.asarray(where)))
    gaps = np.abs(where[:, None] - where)
    assert np.all(np.abs(height[:, None] - height) <= gaps + 1e-12)
    first, second = np.nonzero(~np.eye(where.size, dtype=bool))
    differences = np.eye(where.size)[first] - np.eye(where.size)[second]
    programme = optimize.linprog(
        np.concatenate([-p, q]), differences, gaps[first, second], bounds=[(0, 0), *[(None, None)] * (where.size - 1)]
    )
    assert_allclose(-programme.fun, expected, rtol=1e-9)


def test_wasserstein_distance_between_quantiles_of_normals_is_the_mean_of_a_folded_normal():
    n = 4000
    u, weights = (np.arange(n) + 0.5) / n, jnp.full(n, 1 / n)
    data, model = (Nodes(law.quantile(jnp.asarray(u)), weights, False) for law in (Normal(0.0, 1.0), Normal(0.4, 1.7)))
    folded = stats.foldnorm(0.4 / 0.7, scale=0.7).mean()
    holds_only_for(lambda x: assert_allclose(wasserstein_1(data, model), x, rtol=1e-3), folded, 0.4, folded + 0.02)


def test_wasserstein_game_has_no_best_output():
    law = Normal(0.0, 1.0)
    with pytest.raises(ValueError, match="kantorovich_potential"):
        optimal_discriminator(values.wasserstein, law.log_prob, law.log_prob)


def orthogonal(angle, reflect=False):
    c, s = np.cos(angle), np.sin(angle)
    return jnp.array([[c, -s], [s, c]]) @ jnp.diag(jnp.array([1.0, -1.0 if reflect else 1.0]))


def test_every_rotation_gives_a_cycle_consistent_pair_between_normals_that_is_right_in_law():
    x_law = MultivariateNormal(jnp.array([0.3, -1.0]), jnp.array([[1.0, 0.0], [0.4, 0.8]]))
    y_law = MultivariateNormal(jnp.array([-2.0, 0.5]), jnp.array([[0.5, 0.0], [-0.3, 1.5]]))
    points = jnp.asarray(np.random.default_rng(12).normal(size=(2, 20, 2)))

    @jax.jit
    def facts(rotation):
        pair = cycle.normal_pair(x_law, y_law, rotation)
        slope = jax.jacfwd(pair.forward)(x_law.loc)
        losses = jax.vmap(lambda x, y: cycle.cycle_loss(pair, x, y))(*points)
        return pair.forward(x_law.loc), slope @ x_law.covariance() @ slope.T, losses, pair.forward(points[0, 0])

    def check(rotation):
        mean, covariance, losses, _ = facts(rotation)
        assert_allclose(mean, y_law.loc, rtol=1e-12)
        assert_allclose(covariance, y_law.covariance(), rtol=1e-12)
        assert np.max(losses.forward) < 1e-12
        assert np.max(losses.backward) < 1e-12

    holds_only_for(check, orthogonal(0.0), jnp.array([[1.0, 0.4], [0.0, 1.0]]), 2 * orthogonal(0.0))
    check(orthogonal(1.1))
    check(orthogonal(-2.0, reflect=True))
    # and they are different maps
    assert np.abs(facts(orthogonal(1.1))[3] - facts(orthogonal(0.0))[3]).max() > 0.5


def test_cycle_loss_sees_maps_that_do_not_undo_each_other_one_direction_at_a_time():
    pair = cycle.Pair(lambda x: 2 * x + 1, lambda y: y / 2)
    loss = cycle.cycle_loss(pair, jnp.array([0.2, -3.0]), jnp.array([1.0, 5.0]))
    assert_allclose(loss, (0.5, 1.0))
    assert_allclose(loss.total(), 1.5)


def test_identity_loss_chooses_between_the_two_affine_pairs_that_the_cycle_loss_leaves():
    """N(0, 1) and N(2, 1/4): slopes ½ and -½ are both perfect; mean distances by SciPy's folded normals."""
    x_law, y_law = (MultivariateNormal(jnp.array([m]), jnp.array([[s]])) for m, s in ((0.0, 1.0), (2.0, 0.5)))
    z = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None]
    folded = lambda mean, scale: stats.foldnorm(abs(mean) / scale, scale=scale).mean()  # noqa: E731

    @jax.jit
    def losses(sign):
        pair = cycle.normal_pair(x_law, y_law, jnp.array([[sign]]))
        cycles, identities = (jax.vmap(lambda x, y, loss=loss: loss(pair, x, y))(z, 2 + 0.5 * z) for loss in
                              (cycle.cycle_loss, cycle.identity_loss))  # fmt: skip
        return cycles.total().max(), identities.forward.mean(), identities.backward.mean()

    found = {sign: losses(float(sign)) for sign in (1, -1)}
    assert max(found[1][0], found[-1][0]) < 1e-13
    # y -> 2 + s y/2 and x -> 2 s (x - 2), each minus its argument
    expected = {s: (folded(1 if s > 0 else -1, 0.5 * abs(s / 2 - 1)), folded(-4, abs(2 * s - 1))) for s in (1, -1)}
    for sign in (1, -1):
        holds_only_for(
            lambda e, sign=sign: assert_allclose(found[sign][1:], e, rtol=1e-3), expected[sign], expected[-sign]
        )
    assert sum(found[1][1:]) < sum(found[-1][1:])
