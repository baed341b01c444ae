"""networks/gan.py and networks/classifier.py: shapes, classes, the spectral state, and what a classifier learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vbjax.gan import penalties
from vbjax.networks import gan
from vbjax.networks.classifier import accuracy, fit_classifier

SHAPES = [(28, 28), (7, 5, 3)]


@pytest.fixture(scope="module")
def conditional():
    networks = gan.conv_gan((8, 8), latent_dim=5, features=(4, 8), classes=3, spectral=True)
    return networks, jax.jit(networks.init)(jax.random.key(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_size_are_drawn_within_bounds_and_judged_by_one_number(shape):
    networks = gan.conv_gan(shape, latent_dim=5, features=(4, 8), groups=2)

    def both(key):
        key_init, key_z = jax.random.split(key)
        params = networks.init(key_init)
        image = networks.generate(params)(100 * jax.random.normal(key_z, (5,)))
        return image, networks.discriminate(params)(image)

    image, logit = jax.eval_shape(both, jax.random.key(1))
    assert (image.shape, logit.shape) == (shape, ())


def test_a_bounded_generator_stays_within_one(conditional):
    networks, params = conditional
    image = networks.generate(params)(jnp.full(5, 1e4), jnp.int32(1))
    assert float(jnp.abs(image).max()) <= 1


def test_class_and_projection_are_those_of_the_paper(conditional):
    networks, params = conditional
    x = jax.random.normal(jax.random.key(2), (8, 8))
    logits = jnp.stack([networks.discriminate(params)(x, jnp.int32(y)) for y in range(3)])
    body, head = networks.discriminator.body, params["params"] if "params" in params else params["discriminator"]
    features = body.apply({"params": head["params"]["body"]}, x)
    embedding = head["params"]["embedding"]["kernel"]
    expected = embedding @ features + head["params"]["logit"]["kernel"][:, 0] @ features
    np.testing.assert_allclose(logits, expected + head["params"]["logit"]["bias"][0], rtol=1e-5, atol=1e-6)
    # wrong: one logit for all classes
    assert float(logits.max() - logits.min()) > 1e-3
    z = jnp.ones(5)
    drawn = [networks.generate(params)(z, jnp.int32(y)) for y in range(2)]
    assert float(jnp.abs(drawn[0] - drawn[1]).max()) > 1e-3


def test_normalised_kernels_reach_norm_one_by_the_state_alone(conditional):
    networks, params = conditional

    @jax.jit
    def many(params):
        def step(state, _):
            after = networks.normalise({**params, "spectral": state})
            return after["spectral"], None

        state, _ = jax.lax.scan(step, params["spectral"], length=100)
        return networks.normalise({**params, "spectral": state})

    after = many(params)
    kernels = [leaf for name, leaf in gan._named(after["discriminator"]) if name.endswith("/kernel")]
    assert len(kernels) == len(params["spectral"]) == 4
    norms = np.array([penalties.dense_norm(kernel) for kernel in kernels])
    np.testing.assert_allclose(norms, 1, rtol=1e-3)
    # wrong: as they come
    raw = [leaf for name, leaf in gan._named(params["discriminator"]) if name.endswith("/kernel")]
    assert max(abs(float(penalties.dense_norm(kernel)) - 1) for kernel in raw) > 0.1
    biases = [leaf for name, leaf in gan._named(after["discriminator"]) if name.endswith("/bias")]
    assert all(not np.any(np.asarray(bias)) for bias in biases)


def test_without_spectral_norm_parameters_pass_as_they_are():
    networks = gan.mlp_gan((2,), latent_dim=3, hidden=(4,))
    params = jax.jit(networks.init)(jax.random.key(0))
    assert set(params) == {"generator", "discriminator"}
    assert networks.normalise(params) is params
    assert networks.generate(params)(jnp.zeros(3)).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"features": ()}, "features"),
        ({"features": (4, 4, 4, 4, 4)}, "features"),
        ({"classes": 1}, "classes"),
        ({"groups": 3}, "groups"),
    ],
)
def test_impossible_sizes_are_refused_by_name(arguments, said):
    with pytest.raises(ValueError, match=said):
        gan.conv_gan((8, 8), **{"latent_dim": 4, "features": (4, 8), **arguments})


def test_a_classifier_learns_and_its_features_tell_the_classes_apart():
    key_images, key_fit = jax.random.split(jax.random.key(4))
    labels = jnp.arange(300) % 3
    # the class is where the bright bar is, on noise of half its height
    bars = jnp.zeros((3, 6, 6)).at[jnp.arange(3), 2 * jnp.arange(3)].set(8)
    images = (bars[labels] + jax.random.uniform(key_images, (300, 6, 6), maxval=4)).astype(jnp.uint8)
    judge = fit_classifier(key_fit, images[:200], labels[:200], classes=3, white=12, width=8, steps=40, batch_size=32)
    judged, known = judge(images[200:]), labels[200:]
    assert (judged.features.shape, judged.logits.shape) == ((100, 8), (100, 3))
    assert float(accuracy(judged, known).mean()) > 0.95
    # wrong: against labels of other images it is at chance or below
    assert float(accuracy(judged, jnp.roll(known, 1)).mean()) < 0.05
    means = jnp.stack([judged.features[known == y].mean(0) for y in range(3)])
    nearest = jnp.argmin(jnp.linalg.norm(judged.features[:, None] - means[None], axis=-1), 1)
    assert float((nearest == known).mean()) > 0.9
