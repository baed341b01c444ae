"""Latent tools on data whose style and content are known, and against SciPy, closed forms and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import geometric_slerp

from tests.oracles import holds_only_for, z_threshold
from vbjax import latent_space
from vbjax.conditional import CVAE, given
from vbjax.linear_gaussian import LinearVAE, maximum_likelihood

pytestmark = pytest.mark.usefixtures("x64")

CONTENT, STYLE = np.array([3.0, 0.5, -1.0, 0.2]), np.array([0.3, 1.0, 0.8, -0.5])
"""What the class and what the style add to x."""


def two_factor_data(count=400, gap=1.0, noise=0.05):
    """x = gap · y · content + s · style + noise, with y in {0, 1}: x, y, s."""
    rng = np.random.default_rng(0)
    y, s = np.arange(count) % 2, rng.normal(size=count)
    return gap * y[:, None] * CONTENT + s[:, None] * STYLE + noise * rng.normal(size=(count, 4)), y, s


def fitted(x, means):
    """The maximum-likelihood linear model with one latent coordinate around these means."""
    residual = x - means
    model = maximum_likelihood(jnp.zeros(4), jnp.asarray(residual.T @ residual / len(x)), latent_dim=1)
    return model.weights, model.noise_variance


def linear_cvae(x, y):
    """Its maximum-likelihood fit with the exact posterior as the encoder."""
    means = np.stack([x[y == label].mean(0) for label in (0, 1)])
    weights, noise = fitted(x, means[y])

    def at(label):
        return LinearVAE(weights, jnp.asarray(means)[label], noise)

    prior = at(0).prior
    return CVAE(prior, lambda x, y: at(y).posterior(x), lambda z, y: at(y).decode(z)), means


def correlation(a, b):
    return abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.mark.parametrize("gap", [0.5, 1.0, 5.0])
def test_a_conditional_code_is_the_style_and_an_unconditional_one_is_the_class(gap):
    x, y, s = two_factor_data(gap=gap)
    cvae, _ = linear_cvae(x, y)
    codes = jax.jit(jax.vmap(lambda x, y: cvae.encode(x, y).mean()))(x, y)

    def style_without_content(code):
        assert correlation(code, y) < 1e-12
        assert correlation(code, s) > 0.99

    weights, noise = fitted(x, x.mean(0))
    unconditional = jax.jit(jax.vmap(LinearVAE(weights, jnp.asarray(x.mean(0)), noise).posterior_mean))(jnp.asarray(x))
    # swapped roles: the style given, the class inferred
    holds_only_for(style_without_content, codes, unconditional, y.astype(float))
    if gap >= 1:
        assert correlation(unconditional, y) > 0.9


def test_an_analogy_in_the_linear_model_moves_x_by_the_difference_of_the_classes():
    x, y, _ = two_factor_data()
    cvae, means = linear_cvae(x, y)
    drawn = jax.jit(jax.vmap(lambda x, y: latent_space.analogies(cvae, x, y, classes=2)))(x, y)
    step = drawn[:, 1] - drawn[:, 0]
    np.testing.assert_allclose(step, np.broadcast_to(means[1] - means[0], step.shape), atol=1e-12)
    # the source's own class gives its reconstruction, another class does not
    own = drawn[np.arange(len(x)), y]
    np.testing.assert_allclose(
        own[7], given(cvae, 1).decode(cvae.encode(jnp.asarray(x[7]), 1).mean()).mean(), atol=1e-12
    )
    assert np.abs(drawn[np.arange(len(x)), 1 - y] - own).min(0).max() > 1


def test_the_two_interpolations_leave_and_keep_the_shell_of_the_prior():
    d, count = 64, 20_000
    a, b = jax.random.normal(jax.random.key(0), (2, count, d))

    def squared_norms(interpolate):
        middle = jax.vmap(lambda a, b: interpolate(a, b, jnp.asarray(0.5)))(a, b)
        return np.asarray(jnp.sum(middle**2, 1))

    def half(squared):
        # half of a chi-square with d degrees of freedom: variance d / 2
        assert abs(squared.mean() - d / 2) < z_threshold(1) * np.sqrt(d / 2 / count)

    def on_the_shell(squared):
        norms = np.sqrt(squared / d)
        assert abs(norms.mean() - 0.998) < 0.002
        assert abs(norms.std() - 0.062) < 0.002

    linear, spherical = squared_norms(latent_space.linear), squared_norms(latent_space.spherical)
    holds_only_for(half, linear, spherical)
    holds_only_for(on_the_shell, spherical, linear)


def test_spherical_paths_are_scipys_on_the_unit_sphere_and_linear_ones_are_not():
    rng = np.random.default_rng(1)
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 5)))

    def is_geodesic(interpolate):
        path = latent_space.path(interpolate, jnp.asarray(a), jnp.asarray(b), steps=7)
        np.testing.assert_allclose(path, geometric_slerp(a, b, np.linspace(0, 1, 7)), atol=1e-14)

    holds_only_for(is_geodesic, latent_space.spherical, latent_space.linear)


@pytest.mark.parametrize("interpolate", [latent_space.linear, latent_space.spherical])
def test_paths_end_at_their_ends_even_between_equal_and_almost_equal_codes(interpolate):
    a = jnp.array([3.0, 0.0, -4.0])
    for b in (a, a * (1 + 1e-13), a + 1e-9, -0.999 * a + 1e-3, jnp.array([0.1, 2.0, 0.0])):
        path = latent_space.path(interpolate, a, b, steps=5)
        np.testing.assert_allclose(path[0], a, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(path[-1], b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(latent_space.path(interpolate, a, a, steps=3), np.tile(a, (3, 1)), rtol=1e-14)


CORNERS = {"smiling woman": (1, 0), "neutral woman": (0, 0), "neutral man": (0, 1), "smiling man": (1, 1)}


def concepts(seed, n, d=16, repeats=4000):
    """Unit-variance codes around additive attributes three standard deviations apart: `(repeats, n, d)` for each."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(repeats, n, d)) + 3 * np.asarray(corner) @ np.eye(2, d))
        for name, corner in CORNERS.items()
    }


def smiling_men(result):
    """How often the answer is nearest to the smiling man among the four concepts."""
    corners = np.stack([3 * (np.asarray(corner) @ np.eye(2, result.shape[1])) for corner in CORNERS.values()])
    return (np.linalg.norm(np.asarray(result)[:, None] - corners, axis=2).argmin(1) == 3).mean()


def test_attribute_arithmetic_finds_the_fourth_concept_and_averaging_makes_it_reliable():
    hits, wrong = {}, {}
    for n in (2, 10, 100):
        of = concepts(n, n, repeats=400)
        groups = [of[name] for name in ("smiling woman", "neutral woman", "neutral man")]
        hits[n] = smiling_men(jax.vmap(latent_space.arithmetic)(*groups).value)
        # one sign changed: the man is taken away
        wrong[n] = smiling_men(groups[0].mean(1) - groups[1].mean(1) - groups[2].mean(1))
    assert hits[2] > 0.7
    assert min(hits[10], hits[100]) > 0.99
    assert max(wrong.values()) < 0.2


def test_the_noise_of_attribute_arithmetic_is_three_over_n_and_its_standard_error_says_so():
    n, d, repeats = 10, 16, 4000
    of = concepts(0, n, d, repeats)
    estimate = jax.vmap(latent_space.arithmetic)(of["smiling woman"], of["neutral woman"], of["neutral man"])
    squares = np.sum((np.asarray(estimate.value) - 3 * np.eye(2, d).sum(0)) ** 2)
    freedom = repeats * d

    def variance_is(expected):
        z = (squares / expected - freedom) / np.sqrt(2 * freedom)
        assert abs(z) < z_threshold(1)

    holds_only_for(variance_is, 3 / n, 2 / n, 1 / n, 3 / (n - 1))
    # the mean of s² over 3 n - 3 degrees of freedom has variance 2 (3/n)² / (3 (n - 1))
    spread = 3 / n * np.sqrt(2 / (3 * (n - 1)) / freedom)
    assert abs(np.mean(np.square(estimate.standard_error)) - 3 / n) < z_threshold(1) * spread


def test_an_attribute_is_the_difference_of_the_mean_codes_and_not_of_unrelated_halves():
    rng = np.random.default_rng(2)
    values, other = rng.normal(size=(2, 501))
    codes = rng.normal(size=(501, 3)) * 0.3 + values[:, None] * np.array([1.0, -2.0, 0.5])
    has = values > np.median(values)
    expected = codes[has].mean(0) - codes[~has].mean(0)

    def direction(values):
        found = latent_space.attribute(jnp.asarray(codes, float), jnp.asarray(values, float))
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    holds_only_for(direction, values, -values, other)


def test_an_attribute_that_most_have_is_that_of_the_others_reversed():
    rng = np.random.default_rng(4)
    has = np.arange(50) < 35
    codes = rng.normal(size=(50, 3))
    expected = codes[has].mean(0) - codes[~has].mean(0)

    def strictly_above(codes, values):
        above = values > np.median(values)
        return codes[above].sum(0) / max(above.sum(), 1) - codes[~above].mean(0)

    def check(attribute):
        np.testing.assert_allclose(attribute(jnp.asarray(codes), jnp.asarray(has, float)), expected, rtol=1e-12)
        np.testing.assert_allclose(attribute(jnp.asarray(codes), jnp.asarray(~has, float)), -expected, rtol=1e-12)

    holds_only_for(check, jax.jit(latent_space.attribute), strictly_above)
    with pytest.raises(ValueError, match="values must differ"):
        latent_space.attribute(jnp.asarray(codes), jnp.ones(50))


def blob(slant=0.0, width=1.5, height=3.0, ink=2.0, side=40):
    """A normal density with this standard deviation of rows and, around a line of this slant, of columns."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    density = stats.norm.pdf(rows, scale=height) * stats.norm.pdf(columns, loc=-slant * rows, scale=width)
    return jnp.asarray(ink * side**2 * density)


def test_style_measures_the_moments_of_a_sheared_normal_density():
    def agrees(image):
        found = latent_space.style(image)
        expected = (2.0, 0.4, np.hypot(1.5, 0.4 * 3), 3.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    holds_only_for(agrees, blob(0.4), blob(0.4)[:, ::-1], blob(0.4).T, blob(0.4, height=3.1), blob(0.4, ink=2.1))


def test_a_blank_image_and_a_dash_have_finite_styles():
    assert latent_space.style(jnp.zeros((4, 4))) == (0, 0, 0, 0)
    assert latent_space.style(jnp.zeros((4, 4)).at[1].set(1.0)) == (0.25, 0, 1.25**0.5, 0)


def test_style_kept_is_one_for_copies_that_share_it_and_nothing_for_the_class_or_for_chance():
    rng = np.random.default_rng(3)
    count, classes = 300, 3
    labels, slants = np.arange(count) % classes, rng.normal(size=count) * 0.2
    draw = jax.jit(jax.vmap(lambda slant: sheared(slant)))

    def kept(copy_slants, source_slants=slants):
        images = draw(jnp.asarray(source_slants, float))
        drawn = draw(jnp.asarray(copy_slants, float).ravel()).reshape(count, classes, 12, 12)
        return latent_space.style_kept(drawn, images, jnp.asarray(labels))["slant"]

    def sheared(slant):
        rows, columns = jnp.meshgrid(*(jnp.arange(12.0) - 5.5,) * 2, indexing="ij")
        return jnp.exp(-(rows**2) / 12 - (columns + slant * rows) ** 2 / 3)

    leaning = 0.1 * np.arange(classes)
    same = kept(slants[:, None] + leaning, slants + leaning[labels])
    assert same.value > 0.99
    assert 0 <= same.standard_error < 1e-3
    chance = kept(rng.permutation(slants)[:, None] + leaning)
    assert abs(chance.value) < z_threshold(2) / count**0.5
    # sources differ by class alone, and each copy knows the class of its source
    noise = rng.normal(size=(2, count)) * 0.02
    class_only = kept((leaning[labels] + noise[0])[:, None] + np.zeros(classes), leaning[labels] + noise[1])
    assert abs(class_only.value) < z_threshold(2) / count**0.5


def test_within_classes_takes_the_class_means_off():
    values = jnp.array([1.0, 2.0, 5.0, 7.0])
    styles = latent_space.Style(values, values, values, values)
    centred = latent_space.within_classes(styles, jnp.array([0, 0, 2, 2]), classes=4)
    np.testing.assert_allclose(centred.slant, [-0.5, 0.5, -1.0, 1.0])
