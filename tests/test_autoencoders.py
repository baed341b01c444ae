"""Auto-encoders against scikit-learn, SciPy, quadrature and enumeration; their networks and script."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused
from scipy import integrate, linalg, optimize, special, stats
from sklearn import decomposition

from experiments import autoencoder as script
from tests.oracles import holds_only_for, z_threshold
from vbjax import autoencoders as ae
from vbjax import cards, datasets, training
from vbjax.autoencoders import Autoencoder
from vbjax.distributions import Laplace, Mixture, Normal
from vbjax.experiment import Run
from vbjax.networks import autoencoders as networks


@pytest.fixture
def float64():
    """For one test: those of the networks and the script run as they are, in float32."""
    with jax.enable_x64(True):
        yield


def scattered(count=500):
    """Four coordinates with scales 3, 2, 1 and 1/2, turned, about a mean of 5."""
    rng = np.random.default_rng(0)
    turn = linalg.qr(rng.normal(size=(4, 4)))[0]
    return rng.normal(size=(count, 4)) * [3, 2, 1, 0.5] @ turn + 5


@pytest.mark.parametrize(("count", "dimension"), [(50, 4), (3, 7)])
def test_pca_is_that_of_scikit_learn_but_for_n_minus_one(float64, count, dimension):
    data = np.random.default_rng(1).normal(size=(count, dimension)) * np.arange(1, dimension + 1) + 3
    oracle = decomposition.PCA(2).fit(data)
    restored = oracle.inverse_transform(oracle.transform(data))

    def matches(model):
        np.testing.assert_allclose(model.eigenvalues[:2] * count / (count - 1), oracle.explained_variance_, rtol=1e-10)
        ours = jax.vmap(lambda x: ae.reconstruct(model.autoencoder, x))(jnp.asarray(data))
        np.testing.assert_allclose(ours, restored, rtol=1e-9)

    right = ae.pca(data, 2)
    uncentred = ae.pca(np.concatenate([data, -data]), 2)
    holds_only_for(
        matches,
        right,
        right._replace(eigenvalues=right.eigenvalues * count / (count - 1)),
        uncentred,
    )


def test_the_loss_of_every_code_size_is_the_sum_of_discarded_eigenvalues(float64):
    data = scattered()
    losses = []
    for size in range(5):
        model = ae.pca(data, size)
        errors = jax.vmap(lambda x, model=model: ae.reconstruction_error(model.autoencoder, x))(jnp.asarray(data))
        assert float(model.loss) == pytest.approx(float(errors.mean()), rel=1e-10, abs=1e-12)
        losses.append(float(model.loss))
    assert losses[4] == 0
    assert np.all(np.diff(losses) < 0)


def descend(params, build, data):
    """The mean squared error where gradient descent (BFGS) ends, and its parameters."""
    flat, restore = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def objective(flat):
        def error(flat):
            model = build(restore(flat))
            return jax.vmap(lambda x: ae.reconstruction_error(model, x))(data).mean()

        return jax.value_and_grad(error)(flat)

    found = optimize.minimize(
        lambda flat: [np.asarray(part) for part in objective(flat)],
        np.asarray(flat),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9},
    )
    return found.fun, restore(jnp.asarray(found.x))


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_autoencoder_descends_to_the_subspace_and_loss_of_pca_if_it_may_shift(float64, tied):
    data = jnp.asarray(scattered())
    model = ae.pca(np.asarray(data), 2)
    rng = np.random.default_rng(2)
    start = {"decoder": jnp.asarray(rng.normal(size=(4, 2))), "offset": jnp.zeros(4)}
    if not tied:
        start["encoder"] = jnp.asarray(rng.normal(size=(2, 4)))

    def build(params, shift=1.0):
        if tied:
            return ae.tied_linear(params["decoder"], shift * params["offset"])
        return ae.linear(params["encoder"], params["decoder"], shift * params["offset"])

    def meets_pca(shift):
        loss, params = descend(start, lambda params: build(params, shift), data)
        assert loss == pytest.approx(float(model.loss), rel=1e-8)
        assert float(ae.largest_principal_angle(params["decoder"], model.components.T)) < 1e-5
        # a basis of its own: the weights are not the eigenvectors
        assert np.abs(np.asarray(params["decoder"] - model.components.T)).max() > 0.1

    holds_only_for(meets_pca, 1.0, 0.0)


def test_principal_angles_are_those_of_scipy_down_to_a_millionth(float64):
    a = np.random.default_rng(3).normal(size=(6, 2))
    tilted = a + 1e-6 * np.random.default_rng(4).normal(size=(6, 2))
    for b in (tilted, np.random.default_rng(5).normal(size=(6, 2)), a @ [[2.0, 1.0], [0.0, 3.0]]):
        ours = float(ae.largest_principal_angle(jnp.asarray(a), jnp.asarray(b)))
        assert ours == pytest.approx(linalg.subspace_angles(a, b).max(), rel=1e-6, abs=1e-14)


def test_stacked_linear_layers_trained_greedily_lose_no_more_than_pca_at_once(float64):
    data = scattered()
    outer = ae.pca(data, 3)
    inner = ae.pca(np.asarray(jax.vmap(outer.autoencoder.encode)(jnp.asarray(data))), 1)
    stack = Autoencoder(
        lambda x: inner.autoencoder.encode(outer.autoencoder.encode(x)),
        lambda z: outer.autoencoder.decode(inner.autoencoder.decode(z)),
    )
    loss = jax.vmap(lambda x: ae.reconstruction_error(stack, x))(jnp.asarray(data)).mean()
    assert float(loss) == pytest.approx(float(ae.pca(data, 1).loss), rel=1e-10)


def test_the_error_is_summed_over_pixels(float64):
    x = np.array([1.0, 2.0, 4.0])
    half = Autoencoder(lambda x: x / 2, lambda z: z)
    assert float(ae.reconstruction_error(half, jnp.asarray(x))) == pytest.approx(sum((v / 2) ** 2 for v in x))


COUNT = 200_000


@pytest.mark.parametrize(("name", "strength"), [("gaussian", 0.4), ("masking", 0.3), ("salt_and_pepper", 0.3)])
def test_corruptions_have_their_stated_laws(name, strength):
    """Shares of events of known probability, as z-scores."""
    x = jnp.full(COUNT, 0.5)
    events = {
        "gaussian": lambda y: {0.5: y > 0.5, stats.norm.sf(0.2 / strength): y > 0.7},
        "masking": lambda y: {strength: y == 0, 1 - strength: y == 0.5},
        "salt_and_pepper": lambda y: {strength / 2: y == 1, 1 - strength: y == 0.5},
    }[name]

    def follows(used):
        corrupted = np.asarray(ae.CORRUPTIONS[name](used)(jax.random.key(6), x))
        for probability, happened in events(corrupted).items():
            z = (happened.mean() - probability) / np.sqrt(probability * (1 - probability) / COUNT)
            assert abs(z) < z_threshold(6)

    holds_only_for(follows, strength, strength + 0.05)


CLEAN = {"weights": np.array([0.5, 0.5]), "means": np.array([-1.0, 1.0]), "scale": 0.3}
SIGMA = 0.5
POINTS = np.array([-0.5, 0.1, 2.0])


def clean_law():
    return Mixture(
        jnp.log(jnp.asarray(CLEAN["weights"])),
        Normal(jnp.asarray(CLEAN["means"])[:, None], jnp.full((2, 1), CLEAN["scale"])),
    )


def clean_density(x):
    return np.sum(CLEAN["weights"] * stats.norm.pdf(x, CLEAN["means"], CLEAN["scale"]))


def smoothed_integral(y, power=0):
    """∫ x^power p(x) N(y; x, σ²) dx."""
    return integrate.quad(
        lambda x: x**power * clean_density(x) * stats.norm.pdf(y, x, SIGMA), -4, 5, epsabs=1e-13, epsrel=1e-12
    )[0]


def test_the_optimal_denoiser_is_the_posterior_mean_and_shows_the_score_of_the_smoothed_density(float64):
    step = 1e-4
    means = [smoothed_integral(y, 1) / smoothed_integral(y) for y in POINTS]
    scores = [np.log(smoothed_integral(y + step) / smoothed_integral(y - step)) / (2 * step) for y in POINTS]

    def holds(law):
        denoise = ae.optimal_denoiser(law.log_prob, SIGMA)
        score = ae.denoiser_score(denoise, SIGMA)
        for y, mean, slope in zip(POINTS, means, scores, strict=True):
            np.testing.assert_allclose(denoise(jnp.asarray([y]))[0], mean, rtol=1e-9)
            np.testing.assert_allclose(score(jnp.asarray([y]))[0], slope, rtol=1e-7)

    # wrong: the clean density, and noise added to the variance as a deviation
    wrong = Mixture(clean_law().logits, Normal(clean_law().components.loc, clean_law().components.scale + SIGMA))
    holds_only_for(holds, ae.smoothed(clean_law(), SIGMA), clean_law(), wrong)


def test_no_change_of_the_optimal_denoiser_lowers_the_denoising_error(float64):
    """The derivative of the exact expected error along a perturbation is zero; for the identity it is not."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    x = (CLEAN["means"][:, None] + CLEAN["scale"] * nodes[None]).ravel()
    x_weights = np.outer(CLEAN["weights"], weights).ravel()

    def stationary(denoise):
        def expected(amount):
            model = Autoencoder(lambda y: y, lambda y: denoise(y) + amount * jnp.sin(2 * y))

            def error(x, noise):
                return ae.denoising_error(jax.random.key(0), model, lambda _, x: x + SIGMA * noise, x)

            errors = jax.vmap(jax.vmap(error, (None, 0)), (0, None))(jnp.asarray(x)[:, None], jnp.asarray(nodes))
            return jnp.asarray(x_weights) @ errors @ jnp.asarray(weights)

        assert abs(float(jax.grad(expected)(jnp.asarray(0.0)))) < 1e-9

    holds_only_for(stationary, ae.optimal_denoiser(ae.smoothed(clean_law(), SIGMA).log_prob, SIGMA), lambda y: y)


def test_the_contractive_penalty_is_the_closed_form_of_a_sigmoid_layer(float64):
    rng = np.random.default_rng(7)
    weights, x = rng.normal(size=(3, 5)), rng.normal(size=5)
    h = special.expit(weights @ x)
    closed = np.sum((h * (1 - h)) ** 2 * np.sum(weights**2, 1))  # Rifai et al. (2011), eq. 7

    def matches(encode):
        np.testing.assert_allclose(ae.contractive_penalty(encode, jnp.asarray(x)), closed, rtol=1e-12)

    holds_only_for(matches, lambda x: jax.nn.sigmoid(jnp.asarray(weights) @ x), lambda x: jnp.asarray(weights) @ x)


def test_bernoulli_sparsity_and_its_gradient_are_those_of_ng(float64):
    activation, target = np.array([0.05, 0.2, 0.9, 1e-6]), 0.05
    kl = np.sum(special.rel_entr(target, activation) + special.rel_entr(1 - target, 1 - activation))
    slope = -target / activation + (1 - target) / (1 - activation)

    def matches(penalty):
        value, gradient = jax.value_and_grad(penalty)(jnp.asarray(activation))
        np.testing.assert_allclose(value, kl, rtol=1e-10)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)

    def reversed_kl(activation):
        wanted, found = (ae.Bernoulli.from_probs(p) for p in (jnp.full_like(activation, target), activation))
        return ae.kl_divergence(found, wanted)

    holds_only_for(matches, lambda a: ae.bernoulli_sparsity(a, target), reversed_kl)
    assert float(ae.bernoulli_sparsity(jnp.full(3, target), target)) == pytest.approx(0, abs=1e-15)


def test_top_k_keeps_the_largest_and_passes_gradients_to_them_alone():
    code = jnp.array([0.3, -2.0, 1.0, 0.0, 1.0, 0.5])
    np.testing.assert_array_equal(ae.top_k(code, 3), [0, 0, 1, 0, 1, 0.5])
    np.testing.assert_array_equal(jax.grad(lambda z: ae.l1_penalty(ae.top_k(z, 3)))(code), [0, 0, 1, 0, 1, 1])


def test_least_squares_with_an_l1_penalty_end_at_the_soft_threshold(float64):
    """argmin ½(z - x)² + λ|z| = sign(x) max(|x| - λ, 0), found on a grid that contains it."""
    grid = jnp.linspace(-3, 3, 6001)
    for x in (-2.0, 0.4, 1.5):
        cost = jax.vmap(lambda z, x=x: 0.5 * (z - x) ** 2 + 0.7 * ae.l1_penalty(z))(grid)
        assert float(grid[cost.argmin()]) == pytest.approx(np.sign(x) * max(abs(x) - 0.7, 0), abs=1e-9)


def test_decoded_noise_is_far_from_the_data_and_decoded_codes_are_not(float64):
    """Two narrow clusters at ±(3, 1): noise decodes to z (3, 1)/√10, at a mean distance E||z| - √10| of the centres."""
    rng, centre, spread = np.random.default_rng(8), np.array([3.0, 1.0]), 0.05
    data = rng.choice([-1, 1], size=(2000, 1)) * centre + spread * rng.normal(size=(2000, 2))
    model = ae.pca(data, 1).autoencoder
    codes = jax.vmap(model.encode)(jnp.asarray(data))

    def distance(codes):
        decoded = np.asarray(jax.vmap(model.decode)(jnp.asarray(codes)))
        return np.minimum(*(linalg.norm(decoded - side * centre, axis=1) for side in (-1, 1)))

    far = distance(rng.normal(size=(20_000, 1)))
    radius = np.sqrt(10)
    expected = integrate.quad(lambda z: 2 * stats.norm.pdf(z) * abs(z - radius), 0, 10, points=[radius])[0]
    # where the fitted axis and mean are off by spread/√n, distances are off by less than twice that
    tolerance = z_threshold(1) * far.std() / np.sqrt(far.size) + 2 * spread / np.sqrt(2000)
    assert abs(far.mean() - expected) < tolerance
    assert expected == pytest.approx(2.3652, abs=1e-4)
    assert distance(codes[rng.integers(2000, size=500)]).mean() < 2 * spread


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ae.pca(np.zeros((3, 2)), 3), "code_dim"),
        (lambda: ae.pca(np.zeros(3), 1), "data"),
        (lambda: ae.gaussian_noise(-0.1), "scale"),
        (lambda: ae.masking_noise(1.5), "probability"),
        (lambda: ae.smoothed(Mixture(jnp.zeros(2), Laplace(jnp.zeros((2, 1)), jnp.ones((2, 1)))), 1.0), "Normal"),
        (lambda: ae.bernoulli_sparsity(jnp.full(2, 0.5), 1.0), "target"),
        (lambda: ae.top_k(jnp.zeros(3), 4), "count"),
        (lambda: networks.deep((8, 8), code_dim=0), "code_dim"),
        (lambda: networks.deep((8, 8), code_dim=2, hidden=()), "hidden"),
        (lambda: networks.recurrent((8, 8), code_dim=2, units=0), "units"),
        (lambda: networks.sparse((8, 8), code_dim=4, active=5), "active"),
        (lambda: networks.convolutional((8, 8), code_dim=2, features=(4,) * 9), "features"),
        (lambda: networks.sparse_loss(lambda p: p, target=0.1, weight=-1.0), "weight"),
    ],
)
def test_bad_arguments_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


BUILDERS = {
    "linear": lambda shape: networks.Linear(shape, 5),
    "tied": lambda shape: networks.Linear(shape, 5, tied=True),
    "deep": lambda shape: networks.deep(shape, code_dim=5, hidden=(16, 8)),
    "sparse": lambda shape: networks.sparse(shape, code_dim=5),
    "top_k": lambda shape: networks.sparse(shape, code_dim=5, active=2),
    "convolutional": lambda shape: networks.convolutional(shape, code_dim=5, features=(3, 4), hidden=(8,)),
    "recurrent": lambda shape: networks.recurrent(shape, code_dim=5, units=8),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_networks_return_images_of_the_same_size_and_a_scalar_loss(name):
    for shape in [(7, 9), (5, 6, 3)]:
        model = BUILDERS[name](shape)
        params = jax.eval_shape(model.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        code = jax.eval_shape(lambda p, x, model=model: model.bind(p).encode(x), params, image)
        restored = jax.eval_shape(lambda p, x, model=model: ae.reconstruct(model.bind(p), x), params, image)
        assert (code.shape, restored.shape) == ((5,), shape)
        batch = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
        loss = networks.batch_loss(model.bind, ae.masking_noise(0.2))
        assert jax.eval_shape(loss, jax.random.key(0), params, batch)[0].shape == ()


def test_a_stack_is_its_layers_one_inside_the_other():
    stack = networks.deep((4, 4), code_dim=2, hidden=(6, 3))
    params = jax.jit(stack.init)(jax.random.key(9))
    x = jax.random.uniform(jax.random.key(10), (4, 4))
    layers = [layer.bind(p) for layer, p in zip(stack.layers, params, strict=True)]
    code = layers[2].encode(layers[1].encode(layers[0].encode(x)))
    np.testing.assert_array_equal(stack.bind(params).encode(x), code)
    np.testing.assert_array_equal(stack.bind(params[:1]).decode(layers[0].encode(x)), ae.reconstruct(layers[0], x))
    assert [layer.code_dim for layer in stack.layers] == [6, 3, 2]


def test_the_image_of_a_decoder_has_the_dimension_of_the_code_but_is_no_plane():
    """2-16-10 with tanh: the Jacobian has rank 2, the cloud rank 10; that of a linear decoder has rank 2."""

    def is_a_curved_surface(stack):
        model = stack.bind(jax.jit(stack.init)(jax.random.key(11)))
        codes = 2 * jax.random.normal(jax.random.key(12), (400, 2))
        assert np.linalg.matrix_rank(np.asarray(jax.jit(jax.jacfwd(model.decode))(codes[0])), tol=1e-4) == 2
        cloud = np.asarray(jax.jit(jax.vmap(model.decode))(codes))
        assert np.linalg.matrix_rank(cloud - cloud.mean(0), tol=1e-3) == 10

    linear = networks.Stack(
        (networks.Pair(networks.Layer((2,)), networks.Layer((10,)), (10,), 2),),
    )
    holds_only_for(is_a_curved_surface, networks.deep((10,), code_dim=2, hidden=(16,), activation="tanh"), linear)


def test_sparse_loss_is_the_error_and_the_weighted_sparsity_of_the_batch_mean():
    model = networks.sparse((2, 3), code_dim=4)
    params = jax.jit(model.init)(jax.random.key(13))
    images = jax.random.uniform(jax.random.key(14), (5, 2, 3))
    value, terms = networks.sparse_loss(model.bind, target=0.1, weight=2.0)(jax.random.key(15), params, images)
    codes = np.asarray(jax.vmap(model.bind(params).encode)(images), np.float64).mean(0)
    kl = np.sum(special.rel_entr(0.1, codes) + special.rel_entr(0.9, 1 - codes))
    error = np.mean(jax.vmap(lambda x: ae.reconstruction_error(model.bind(params), x))(images))
    np.testing.assert_allclose([terms["error"], terms["sparsity"], value], [error, kl, error + 2 * kl], rtol=1e-5)


def trained(key, loss, batch, params, *, steps, learning_rate=1e-2):
    optimizer = training.make_optimizer(learning_rate=learning_rate, schedule="cosine", steps=steps)
    state = training.init_state(params, optimizer)
    return training.fit(key, loss, batch, optimizer, state, steps=steps, chunk=steps).params


@pytest.mark.slow
def test_a_trained_denoiser_comes_near_the_score_of_the_smoothed_density_and_not_of_the_clean_one():
    """Root mean square over p_σ of the score's error: below a twentieth of the score's own; measured: .021 of 1.348."""
    law = clean_law()
    model = networks.deep((1,), code_dim=16, hidden=(32,), activation="tanh")

    def batch(step):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(16), step), 256)
        return jax.vmap(law.sample)(keys)

    key_init, key_train = jax.random.split(jax.random.key(17))
    loss = networks.batch_loss(model.bind, ae.gaussian_noise(SIGMA))
    params = trained(key_train, loss, batch, model.init(key_init), steps=2000)
    found = ae.denoiser_score(lambda x: ae.reconstruct(model.bind(params), x), SIGMA)
    points = jnp.linspace(-3, 3, 301)[:, None]
    smooth = ae.smoothed(law, SIGMA)
    weights = np.exp(np.asarray(jax.vmap(smooth.log_prob)(points), np.float64))

    def size(vector):
        return np.sqrt(np.sum(weights * np.asarray(vector, np.float64)[:, 0] ** 2) / weights.sum())

    def is_near(density):
        score = jax.vmap(jax.grad(density.log_prob))(points)
        distance = size(jax.vmap(found)(points) - score)
        assert distance < 0.05 * size(score)

    holds_only_for(is_near, smooth, law)


@pytest.mark.slow
def test_a_one_number_code_of_a_curve_beats_every_linear_one():
    """The arc 0 … 1.7π of a circle: PCA with one number cannot get below λ₂ = .397680, a 2-32-1-32-2 network does."""
    angle = np.linspace(0, 1.7 * np.pi, 2000)
    arc = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    floor = float(ae.pca(arc, 1).loss)
    assert floor == pytest.approx(0.397680, abs=2e-3)
    batch = datasets.batches(jax.random.key(18), jnp.asarray(arc), 256)

    def beats(model):
        params = trained(
            jax.random.key(19), networks.batch_loss(model.bind), batch, model.init(jax.random.key(20)), steps=1500
        )
        errors = jax.vmap(lambda x: ae.reconstruction_error(model.bind(params), x))(jnp.asarray(arc))
        assert float(errors.mean()) < 0.1 * floor

    holds_only_for(beats, networks.deep((2,), code_dim=1, hidden=(32,), activation="tanh"), networks.Linear((2,), 1))


@pytest.mark.long
def test_a_recurrent_autoencoder_copies_sequences():
    """All 81 sequences of four out of three symbols through a code of 8 numbers; read backwards they are not copies."""
    symbols = np.array([*itertools.product(range(3), repeat=4)])
    sequences = jnp.asarray(np.eye(3, dtype=np.float32)[symbols])
    model = networks.recurrent((4, 3), code_dim=8, units=32)
    params = trained(
        jax.random.key(21),
        networks.batch_loss(model.bind),
        datasets.batches(jax.random.key(22), sequences, 81),
        model.init(jax.random.key(23)),
        steps=600,
    )
    copies = np.asarray(jax.vmap(lambda x: ae.reconstruct(model.bind(params), x))(sequences)).argmax(2)

    def are_copies(copies):
        assert (copies == symbols).all(1).mean() > 0.95

    holds_only_for(are_copies, copies, copies[:, ::-1])


TINY = script.Config(model="pca", code_dim=2)


def run_in(folder, **options):
    return Run(out=folder, quiet=True, checkpoint_every=100, **options)


@pytest.mark.long
def test_the_script_leaves_a_card_and_pictures_and_pca_meets_itself(tmp_path, capsys):
    card = script.main(TINY, run_in(tmp_path / "run", json=True))
    assert json.loads(capsys.readouterr().out)["numbers"]["mse"]["value"] == card.numbers["mse"].value
    assert cards.load_card(tmp_path / "run" / "card.json") == card
    data = datasets.load("digits")
    train, test = (np.asarray(x, np.float64).reshape(len(x), -1) / 16 for x in (data.train_images, data.test_images))
    oracle = decomposition.PCA(2).fit(train)
    mse = np.mean((oracle.inverse_transform(oracle.transform(test)) - test) ** 2)
    assert card.numbers["mse"].value == pytest.approx(mse, rel=1e-4)
    assert card.numbers["mse_minus_pca"].value == 0
    assert card.numbers["decoded_noise_distance"].value > card.numbers["reconstruction_distance"].value
    names = {path.stem for path in (tmp_path / "run" / "pictures").iterdir()}
    assert names == {"reconstructions", "prototypes", "decoded_noise", "code_map"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "deep", "learning_rate": -1e-3}, "learning_rate"),
        ({"batch_size": 5000}, "1347 training examples"),
        ({"code_dim": 65}, "code_dim"),
        ({"code_dim": -1}, "code_dim"),
        ({"hidden": (3,)}, "hidden is read by"),
        ({"noise": -0.5}, "noise"),
        ({"corruption": "masking", "noise": 1.5}, "noise"),
        ({"model": "sparse", "target": 1.5}, "target"),
        ({"model": "sparse", "target": 0.0}, "target"),
        ({"model": "sparse", "sparsity": "top_k", "target": 2.0}, "target"),
        ({"model": "deep", "hidden": ()}, "hidden"),
        ({"model": "conv", "features": (4,) * 9}, "features"),
        ({"model": "sparse", "sparsity": "top_k", "weight": 2.0}, "weight"),
        ({"model": "stacked", "pretrain_steps": 0}, "pretrain_steps"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_leaves_with_code_2_one_line_and_no_folder(changes, said, tmp_path, capsys):
    assert_refused(script.main, dataclasses.replace(TINY, **changes), run_in(tmp_path / "run"), said, capsys)


@functools.cache
def digits():
    """Training and test images in [0, 1], and the batches of a run."""
    data = datasets.load("digits").on_device()
    train, test = script.pixels(data, data.train_images), script.pixels(data, data.test_images)
    return train, test, datasets.batches(jax.random.key(24), train, 64)


def error_on_test_images(model, params):
    """Squared error per pixel on the test split."""
    test = digits()[1]
    return float(jax.jit(jax.vmap(lambda x: ae.reconstruction_error(model.bind(params), x)))(test).mean()) / 64


@pytest.mark.slow
def test_a_tied_linear_autoencoder_finds_the_subspace_of_pca_by_stochastic_gradients():
    """Adam in float32 on the digits: within 1% of PCA's test error and a twentieth of a radian; the start is not."""
    train, _, batch = digits()
    principal = ae.pca(np.asarray(train).reshape(len(train), -1), 8)
    pca = {"decoder": principal.components.T, "offset": principal.mean}
    model = networks.Linear((8, 8), 8, tied=True)
    start = model.init(jax.random.key(25))

    def is_pca(params):
        assert error_on_test_images(model, params) == pytest.approx(error_on_test_images(model, pca), rel=0.01)
        assert float(ae.largest_principal_angle(params["decoder"], pca["decoder"])) < 0.05

    loss = networks.batch_loss(model.bind)
    holds_only_for(is_pca, trained(jax.random.key(26), loss, batch, start, steps=4000), start)


@pytest.mark.slow
def test_measured_activation_meets_the_target_of_the_sparsity_penalty():
    """Within a fifth of the target on the test split; a penalty of no weight is far from it."""
    _, test, batch = digits()
    model = networks.sparse((8, 8), code_dim=128)
    start = jax.jit(model.init)(jax.random.key(27))

    def is_met(weight):
        loss = networks.sparse_loss(model.bind, target=0.05, weight=weight)
        params = trained(jax.random.key(28), loss, batch, start, steps=1000, learning_rate=2e-3)
        assert float(jax.vmap(model.bind(params).encode)(test).mean()) == pytest.approx(0.05, rel=0.2)

    holds_only_for(is_met, 2.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        networks.convolutional((8, 8), code_dim=8, features=(4, 8), hidden=(32,)),
        networks.recurrent((8, 8), code_dim=8, units=32),
    ],
    ids=["convolutional", "recurrent"],
)
def test_short_training_gets_well_below_the_mean_image(model):
    train, test, batch = digits()
    mean_image = float(jnp.square(test - train.mean(0)[None]).mean())

    def has_learned(params):
        assert error_on_test_images(model, params) < 0.7 * mean_image

    start = jax.jit(model.init)(jax.random.key(29))
    loss = networks.batch_loss(model.bind)
    holds_only_for(has_learned, trained(jax.random.key(30), loss, batch, start, steps=200, learning_rate=1e-2), start)


@pytest.mark.long
def test_a_finished_stacked_run_resumes_to_the_same_numbers(tmp_path):
    config = script.Config(model="stacked", hidden=(16,), steps=100, pretrain_steps=50, code_dim=2)
    card = script.main(config, run_in(tmp_path / "run"))
    assert card.numbers["pretrained_mse"].value > card.numbers["mse"].value
    assert script.main(config, run_in(tmp_path / "run", resume=True)).numbers == card.numbers
