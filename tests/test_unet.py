"""The U-Net equals stock Flax's with all gradients, and networks become denoisers: Bayes' rule pixel by pixel is exact.

Rounding is bounded by 1e-11 in float64, where results are of order one to a hundred.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import linen as nn

from benchmarks.unet import StockAttention, StockUNet
from vbjax.diffusion.process import forward_variance, posterior, posterior_variance, signal
from vbjax.networks.conditioning import sinusoids, with_fourier_features
from vbjax.networks.denoisers import mlp_denoiser, unet_denoiser
from vbjax.networks.unet import GroupNorm, ResidualBlock, SelfAttention, UNet

SMALL = {"channels": 8, "groups": 4}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def random_params(tree):
    """Parameters of order one over the square root of what they sum, so that no layer is zero."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure,
        [draw(seed, *x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1)) for seed, x in enumerate(leaves)],
    )


@functools.cache
def small(shape=(8, 8), **options):
    """A small U-Net and random float32 parameters for it."""
    unet = UNet(shape, **(SMALL | options))
    tree = jax.eval_shape(lambda key: unet.init(key, jnp.zeros(shape), jnp.zeros(())), jax.random.key(0))
    return unet, jax.tree.map(lambda x: x.astype(jnp.float32), random_params(tree))


@pytest.mark.parametrize(("shape", "outputs"), [((8, 8), 5), ((28, 28), 1), ((16, 8, 3), 2)])
def test_every_level_has_half_the_size_of_the_one_before_and_the_output_is_the_images(shape, outputs):
    unet = UNet(shape, outputs=outputs, blocks=2, attention=(1, 2), **SMALL)

    def run(key):
        return unet.init_with_output(
            key, jnp.zeros(shape), jnp.zeros(()), capture_intermediates=True, mutable=["params", "intermediates"]
        )

    result, variables = jax.eval_shape(run, jax.random.key(0))
    assert result.shape == (*shape, outputs)
    kept = variables["intermediates"]
    maps = {name: kept[name]["__call__"][0].shape for name in kept if name.startswith("ResidualBlock")}
    sizes = [tuple(n // 2**level for n in shape[:2]) for level in (0, 0, 1, 1, 2, 2, 2, 2, 1, 1, 0, 0)]
    widths = [8, 8, 16, 16, 32, 32, 32, 32, 16, 16, 8, 8]
    assert [maps[f"ResidualBlock_{i}"] for i in range(12)] == [(*s, w) for s, w in zip(sizes, widths, strict=True)]
    # level 2 is passed twice in a row, level 1 on the way down and on the way up
    assert sum(name.startswith("SelfAttention") for name in kept) == 4


@pytest.mark.parametrize(
    ("size", "levels", "padded"), [((7, 8), 2, "8x8"), ((28, 30), 3, "28x32"), ((28, 28), 4, "32x32")]
)
def test_sizes_that_the_levels_cannot_halve_are_refused_with_the_way_out(size, levels, padded):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} is not divisible by .* pad the images to {padded}"):
        UNet(size, multipliers=(1,) * levels, attention=())
    UNet(tuple(map(int, padded.split("x"))), multipliers=(1,) * levels, attention=())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"groups": 3}, "groups must divide"),
        ({"multipliers": ()}, "multipliers must be"),
        ({"attention": (3,)}, "attention must name levels in 0 … 2"),
        ({"heads": 3}, "heads must divide"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"blocks": 0}, "blocks must be at least 1"),
    ],
)
def test_bad_arguments_of_the_unet_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        UNet((8, 8), **options)


def largest_difference(a, b):
    return float(jax.tree.reduce(max, jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), a, b)))


def values_and_gradients(apply, params, *inputs):
    """What `apply` returns, and the gradients of its inner product with fixed weights."""

    def loss(params, *inputs):
        y = apply(params, *inputs)
        return jnp.sum(y * draw(99, *y.shape).astype(y.dtype)), y

    (_, y), gradients = jax.value_and_grad(loss, tuple(range(1 + len(inputs))), has_aux=True)(params, *inputs)
    return y, gradients


def as_stock(params):
    """The parameters of `UNet` as `StockUNet` names and shapes them; linear, so it carries gradients too."""
    renamed = {}
    for name, leaves in params["params"].items():
        kind, _, number = name.partition("_")
        if kind == "Doubled":
            kernel = leaves["Dense_0"]["kernel"]
            four = jnp.transpose(kernel.reshape(kernel.shape[0], 2, 2, -1), (1, 2, 0, 3))
            renamed[f"ConvTranspose_{number}"] = {"kernel": four[::-1, ::-1]}  # Flax flips it
        elif kind == "Conditioning":
            renamed |= leaves
        elif kind == "ResidualBlock" and "shortcut" in leaves:
            kernel = leaves["shortcut"]["kernel"][None, None]
            renamed[f"StockBlock_{number}"] = leaves | {"shortcut": {"kernel": kernel}}
        else:
            stock = {"ResidualBlock": "StockBlock", "SelfAttention": "StockAttention"}.get(kind)
            renamed[name if stock is None else f"{stock}_{number}"] = leaves
    return {"params": renamed}


def test_the_unet_and_all_its_gradients_equal_stock_flax_with_the_same_parameters(monkeypatch):
    monkeypatch.setattr("benchmarks.unet.GROUPS", 4)
    unet, params = small(multipliers=(1, 2), attention=(1,))
    stock = StockUNet(channels=8, multipliers=(1, 2))

    @jax.jit
    def both(params, stock_params, x, gamma):
        each = jax.vmap(lambda params, x, gamma: unet.apply(params, x, gamma)[..., 0], (None, 0, 0))
        ours, (of_params, *of_inputs) = values_and_gradients(each, params, x, gamma)
        with jax.numpy_dtype_promotion("standard"):  # Flax's normalisation promotes
            others = values_and_gradients(stock.apply, stock_params, x, gamma)
        return (ours, (as_stock(of_params), *of_inputs)), others

    with jax.enable_x64(True):
        params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
        inputs = draw(1, 2, 8, 8), jnp.array([-3.0, 2.0])
        ours, others = both(params, as_stock(params), *inputs)
        assert largest_difference(ours, others) < 1e-11
        # every parameter of a random network has a gradient, so the comparison sees every one
        assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(others[1][0])) > 1e-3
        # the control: an upsampling that is turned by half a circle is another network
        turned = as_stock(params)
        turned["params"]["ConvTranspose_0"]["kernel"] = turned["params"]["ConvTranspose_0"]["kernel"][::-1, ::-1]
        assert largest_difference(ours[0], both(params, turned, *inputs)[1][0]) > 1e-2


def test_group_norm_and_attention_equal_stock_flax_and_a_mean_far_from_zero_costs_no_more_digits():
    norm, attention = GroupNorm(4), SelfAttention(1, 8)
    tree = jax.eval_shape(lambda key: attention.init(key, jnp.zeros((4, 6, 8))), jax.random.key(0))
    with jax.enable_x64(True):
        x, tall = draw(0, 4, 6, 8), draw(1, 4, 6, 8) + 100.0
        scale = {"params": {"scale": draw(2, 8), "bias": draw(3, 8)}}
        weights = random_params(tree)

        @jax.jit
        def results(x, tall):
            def one(module):
                return lambda params, x: module.apply(params, x[None])[0]

            ours = [values_and_gradients(norm.apply, scale, v) for v in (x, tall)]
            our_attention = values_and_gradients(attention.apply, weights, x)
            with jax.numpy_dtype_promotion("standard"):  # Flax's normalisation promotes
                stock = [values_and_gradients(one(nn.GroupNorm(4)), scale, v) for v in (x, tall)]
                stock_attention = values_and_gradients(one(StockAttention()), weights, x)
                return ours, stock, our_attention, stock_attention, one(nn.GroupNorm(2))(scale, x)

        ours, stock, our_attention, stock_attention, other_groups = results(x, tall)
        assert largest_difference(ours[0], stock[0]) < 1e-12
        assert largest_difference(ours[1], stock[1]) < 1e-9  # E x² - (E x)² loses four of sixteen digits in both
        assert largest_difference(our_attention, stock_attention) < 1e-12
        assert largest_difference(ours[0][0], other_groups) > 0.1


def test_group_norm_scales_and_shifts_after_normalising_per_channel():
    with jax.enable_x64(True):
        x, scale, shift = draw(0, 4, 6, 8), draw(1, 8), draw(2, 8)
        groups = np.asarray(x).reshape(4, 6, 2, 4)
        mean, std = groups.mean((0, 1, 3), keepdims=True), groups.std((0, 1, 3), keepdims=True)
        normal = ((groups - mean) / np.sqrt(std**2 + 1e-6)).reshape(4, 6, 8)
        ours = GroupNorm(2).apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x, scale, shift)
        np.testing.assert_allclose(ours, normal * (1 + scale[None, None]) + shift[None, None], atol=1e-12)
        assert np.abs(ours - (normal * scale[None, None] + shift[None, None])).max() > 0.1


def test_the_output_depends_on_noise_level_label_and_dropout_key_and_vmap_is_a_loop():
    unet, params = small(classes=3, dropout=0.5, octaves=(1, 2), multipliers=(1, 2), attention=(1,))
    x, seeds = draw(0, 8, 8).astype(jnp.float32), jnp.array([1, 1, 2])

    @jax.jit
    def run(params, gammas, labels, keys):
        each = jax.vmap(lambda gamma, label: unet.apply(params, x, gamma, label))(gammas, labels)
        alone = [unet.apply(params, x, gammas[i], labels[i]) for i in (0, 4)]
        null = unet.apply(params, x, gammas[0], None)
        dropped = jax.vmap(lambda key: unet.apply(params, x, gammas[0], 0, key))(keys)
        return each, jnp.stack(alone), null, dropped

    gammas, labels = jnp.array([-2.0, -1.9, -2.0, -2.0, -2.0]), jnp.array([0, 0, 1, 2, 3])
    each, alone, null, dropped = run(params, gammas, labels, jax.vmap(jax.random.key)(seeds))
    np.testing.assert_allclose(each[jnp.array([0, 4])], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(each[4], null, rtol=1e-4, atol=1e-5)
    for i, j in ((0, 1), (0, 2), (2, 3), (0, 4)):
        assert np.abs(each[i] - each[j]).max() > 1e-3
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 1e-3
    assert np.abs(dropped[0] - each[0]).max() > 1e-3
    # the control: without the layers that carry the conditioning, nothing of it arrives
    deaf = jax.tree_util.tree_map_with_path(lambda path, v: 0 * v if "film" in str(path) else v, params)
    each = run(deaf, gammas, labels, jax.vmap(jax.random.key)(seeds))[0]
    np.testing.assert_allclose(each, jnp.broadcast_to(each[0], each.shape), atol=1e-5)


def test_a_fresh_network_predicts_zero_and_every_prediction_becomes_its_own_denoiser():
    x, gamma = draw(0, 3).astype(jnp.float32), jnp.float32(0.7)
    alpha = float(np.sqrt(1 / (1 + np.exp(0.7))))
    expected = {"x0": 0 * x, "epsilon": x / alpha, "score": x / alpha, "v": alpha * x}
    for prediction, value in expected.items():
        networks = mlp_denoiser((3,), prediction=prediction, width=8, blocks=1)
        params = jax.jit(networks.init)(jax.random.key(0))
        np.testing.assert_allclose(jax.jit(networks.bind(params))(x, gamma), value, rtol=1e-6)


def test_a_score_and_a_noise_prediction_of_opposite_outputs_are_one_denoiser():
    x, gamma = draw(0, 3).astype(jnp.float32), jnp.float32(-1.2)
    score, epsilon = (mlp_denoiser((3,), prediction=p, width=8, blocks=1) for p in ("score", "epsilon"))
    params = jax.jit(score.init)(jax.random.key(0))
    kernel = params["params"]["outputs"]["kernel"] + 0.3
    params["params"]["outputs"]["kernel"] = kernel
    opposite = {"params": params["params"] | {"outputs": {"kernel": -kernel, "bias": jnp.zeros(3)}}}
    of_score = jax.jit(score.bind(params))(x, gamma)
    of_epsilon = jax.jit(lambda params: epsilon.bind(params)(x, gamma))
    np.testing.assert_allclose(of_score, of_epsilon(opposite), rtol=1e-5)
    assert np.abs(of_score - of_epsilon(params)).max() > 0.1


@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 3)])
def test_a_unet_of_pixel_levels_is_a_denoiser_of_images_with_or_without_channels(shape):
    networks = unet_denoiser(shape, prediction="levels", levels=17, classes=10, dropout=0.1, **SMALL)

    def run(key):
        key_params, key_dropout = jax.random.split(key)
        params, x, gamma = networks.init(key_params), jnp.zeros(shape), jnp.zeros(())
        law = networks.bind_levels(params, 3, key_dropout)(x, gamma)
        return law.logits, networks.bind(params)(x, gamma), networks.bind_variance(params, 3)(x, gamma - 1, gamma)

    shapes = [result.shape for result in jax.eval_shape(run, jax.random.key(0))]
    assert shapes == [(*shape, 17), shape, shape]


@pytest.fixture(scope="module")
def independent_pixels():
    """A fresh network over three levels that knows the frequencies of two independent pixels, and what is asked."""
    frequencies = np.array([[0.2, 0.5, 0.3], [0.7, 0.05, 0.25]])
    networks = mlp_denoiser(
        (2,), prediction="levels", levels=3, width=8, blocks=1, log_prior=jnp.log(jnp.asarray(frequencies, jnp.float32))
    )
    params = jax.jit(networks.init)(jax.random.key(0))
    return frequencies, networks, jax.tree.map(lambda v: np.asarray(v, np.float64), params)


def bayes(frequencies, x_t, gamma):
    """p(level | x_t) of independent pixels, by SciPy's normal density."""
    alpha, sigma = np.sqrt(1 / (1 + np.exp(gamma))), np.sqrt(1 / (1 + np.exp(-gamma)))
    joint = frequencies * scipy.stats.norm.pdf(x_t[:, None], alpha * np.array([-1.0, 0.0, 1.0]), sigma)
    return joint / joint.sum(1, keepdims=True)


@pytest.mark.parametrize("gamma", [-4.0, 0.0, 3.0])
def test_the_pixel_law_of_independent_pixels_is_bayes_rule(independent_pixels, gamma):
    frequencies, networks, params = independent_pixels
    x_t = np.array([0.4, -0.9])
    with jax.enable_x64(True):
        networks = networks._replace(log_prior=jnp.asarray(np.log(frequencies)))
        params = jax.tree.map(jnp.asarray, params)
        law = networks.bind_levels(params)(jnp.asarray(x_t), jnp.float64(gamma))
        exact = bayes(frequencies, x_t, gamma)
        np.testing.assert_allclose(law.probs, exact, rtol=1e-12)
        x0 = networks.bind(params)(jnp.asarray(x_t), jnp.float64(gamma))
        np.testing.assert_allclose(x0, exact @ [-1, 0, 1], atol=1e-13)
        # the control: a prior that is not the pixels' own
        flat = networks._replace(log_prior=None).bind(params)(jnp.asarray(x_t), jnp.float64(gamma))
        assert np.abs(flat - x0).max() > 1e-3


@pytest.mark.parametrize("gamma", [-30.0, -80.0])
def test_without_noise_the_pixel_law_is_the_pixel_itself_with_a_finite_gradient(independent_pixels, gamma):
    _, networks, params = independent_pixels
    params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
    x0 = jnp.array([0.0, -1.0])

    @jax.jit
    def results(params, gamma):
        gradient = jax.grad(lambda gamma: networks.bind_variance(params)(x0, gamma - 1, gamma).sum())(gamma)
        return networks.bind(params)(signal(gamma) * x0, gamma), gradient

    estimate, gradient = results(params, jnp.float32(gamma))
    np.testing.assert_array_equal(estimate, x0)
    assert np.isfinite(gradient)


def test_the_variance_of_pixel_laws_is_that_of_the_mixture_of_posteriors(independent_pixels):
    frequencies, networks, params = independent_pixels
    x_t = np.array([0.4, -0.9])
    with jax.enable_x64(True):
        networks = networks._replace(log_prior=jnp.asarray(np.log(frequencies)))
        params, gamma_s, gamma_t = jax.tree.map(jnp.asarray, params), jnp.float64(-2.0), jnp.float64(-1.0)
        ours = networks.bind_variance(params)(jnp.asarray(x_t), gamma_s, gamma_t)
        laws = [posterior(jnp.asarray(x_t), jnp.full(2, level), gamma_s, gamma_t) for level in (-1.0, 0.0, 1.0)]
        means, variances = (np.stack(v, 1) for v in ([q.loc for q in laws], [q.scale**2 for q in laws]))
        probs = bayes(frequencies, x_t, -1.0)
        mean = (probs * means).sum(1)
        mixture = (probs * (variances + means**2)).sum(1) - mean**2
        np.testing.assert_allclose(ours, mixture, rtol=1e-12)
        # the control: the variance for data that are one point
        assert (ours > 1.05 * posterior_variance(jnp.asarray(x_t), gamma_s, gamma_t)).all()


def test_a_fresh_learned_variance_is_the_geometric_mean_of_both_fixed_ones():
    networks = mlp_denoiser((4, 4), width=8, blocks=1, learned_variance=True)
    params = jax.jit(networks.init)(jax.random.key(0))
    x, gamma_s, gamma_t = draw(0, 4, 4).astype(jnp.float32), jnp.float32(-2.0), jnp.float32(1.0)
    variance = jax.jit(lambda params: networks.bind_variance(params)(x, gamma_s, gamma_t))
    ours = variance(params)
    low, high = (v(x, gamma_s, gamma_t) for v in (posterior_variance, forward_variance))
    np.testing.assert_allclose(ours, np.full((4, 4), np.sqrt(low * high)), rtol=1e-6)
    # at one it is the forward variance
    params["params"]["outputs"]["bias"] = jnp.tile(jnp.array([0.0, 1.0]), 16)
    np.testing.assert_allclose(variance(params), jnp.full((4, 4), high), rtol=1e-6)
    # in the step to the data themselves too, where β̃ is zero
    last = networks.bind_variance(params)(x, jnp.float32(-jnp.inf), gamma_t)
    np.testing.assert_allclose(last, np.full((4, 4), 1 / (1 + np.exp(-1.0))), rtol=1e-6)


def test_the_batch_loss_is_a_mean_over_examples_and_withholds_labels_at_its_rate():
    networks = mlp_denoiser((2,), prediction="x0", width=8, blocks=1, classes=3)
    params = jax.tree.map(lambda v: v.astype(jnp.float32), random_params(jax.jit(networks.init)(jax.random.key(0))))

    def objective(key, denoiser, x):
        x0 = denoiser(x, jnp.float32(0.0))
        return x0.sum(), {"label": x0.sum()}

    x = jnp.broadcast_to(draw(0, 2).astype(jnp.float32), (400, 2))
    labels = jnp.zeros(400, jnp.int32)
    one = jax.jit(lambda label: networks.bind(params, label)(x[0], jnp.float32(0.0)).sum())
    known, unknown = float(one(0)), float(one(networks.classes))
    assert abs(known - unknown) > 1e-3
    key = jax.random.key(1)
    for rate in (0.0, 0.25, 1.0):
        loss, terms = jax.jit(networks.loss(objective, null_rate=rate))(jax.random.clone(key), params, (x, labels))
        assert loss == terms["label"]
        withheld = (float(loss) - known) / (unknown - known)
        # five standard errors of a share of 400; the two ends are certain
        assert abs(withheld - rate) < 5 * np.sqrt(rate * (1 - rate) / 400) + 1e-3


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: mlp_denoiser((2,), prediction="levels"), "levels must be at least 2"),
        (lambda: mlp_denoiser((2,), levels=3), 'levels must be 0 unless prediction="levels"'),
        (lambda: mlp_denoiser((2,), prediction="levels", levels=3, log_prior=jnp.zeros((2, 2))), "log_prior must have"),
        (lambda: mlp_denoiser((2,), prediction="levels", levels=3, learned_variance=True), "learned_variance must be"),
        (lambda: mlp_denoiser((2,), width=0), "width must be at least 1"),
        (lambda: mlp_denoiser((2,), dropout=1.5), "dropout must be in"),
        (lambda: unet_denoiser((9, 8)), "9x8 is not divisible by 4"),
        (lambda: mlp_denoiser((2,)).bind({}, 1), "label must be None"),
        (lambda: mlp_denoiser((2,), classes=3).bind({}, 4), "label must lie in 0 … 2"),
        (lambda: mlp_denoiser((2,)).bind({})(jnp.zeros(3), jnp.zeros(())), "x_t must have the shape"),
        (lambda: mlp_denoiser((2,)).bind_levels({}), "bind_levels needs"),
        (lambda: mlp_denoiser((2,)).bind_variance({}), "bind_variance needs"),
        (lambda: mlp_denoiser((2,), learned_variance=True).chain({}), "bind_levels needs"),
        (lambda: mlp_denoiser((2,)).loss(lambda key, denoiser, x: (x.sum(), {}), null_rate=2), "null_rate must lie"),
    ],
)
def test_bad_arguments_of_denoisers_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_sinusoids_tell_noise_levels_apart_over_the_range_of_every_schedule():
    gammas = jnp.linspace(-20.0, 20.0, 401)
    features = np.asarray(jax.vmap(lambda gamma: sinusoids(gamma, 33))(gammas))
    assert features.shape == (401, 33)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * np.eye(401)
    # a step of 0.1 in γ is seen, and no two levels anywhere look the same
    assert distances.min() > 0.1


def test_fourier_features_are_waves_of_the_grey_levels_beside_them():
    x = draw(0, 2, 3, 1).astype(jnp.float32)
    features = with_fourier_features(x, (0, 2))
    waves = [np.sin(np.pi * x), np.cos(np.pi * x), np.sin(4 * np.pi * x), np.cos(4 * np.pi * x)]
    np.testing.assert_allclose(features, np.concatenate([x, *waves], -1), atol=1e-5)


def test_attention_in_several_heads_is_several_attentions_of_fewer_channels():
    attention = SelfAttention(2, 4)
    tree = jax.eval_shape(lambda key: attention.init(key, jnp.zeros((2, 3, 8))), jax.random.key(0))
    with jax.enable_x64(True):
        x, weights = draw(0, 2, 3, 8), random_params(tree)["params"]
        norm = {"params": weights["GroupNorm_0"]}
        pixels = np.asarray(GroupNorm(4).apply(norm, x)).reshape(6, 8)
        parts = (pixels @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"][None]).reshape(6, 2, 12)
        heads = []
        for q, k, v in (np.split(np.asarray(parts[:, head]), 3, 1) for head in range(2)):
            heads.append(scipy.special.softmax(q @ k.T / np.sqrt(4), axis=1) @ v)
        out = np.concatenate(heads, 1) @ weights["outputs"]["kernel"] + weights["outputs"]["bias"][None]
        ours = attention.apply({"params": weights}, x)
        np.testing.assert_allclose(ours, x + out.reshape(2, 3, 8), atol=1e-12)
        # the control: heads in the other order meet other channels
        swapped = np.concatenate(heads[::-1], 1) @ weights["outputs"]["kernel"] + weights["outputs"]["bias"][None]
        assert np.abs(ours - (x + swapped.reshape(2, 3, 8))).max() > 1e-3


def test_a_block_that_keeps_its_channels_has_no_shortcut_and_starts_as_the_identity():
    x, told = draw(0, 4, 4, 8).astype(jnp.float32), draw(1, 5).astype(jnp.float32)
    y, params = jax.jit(ResidualBlock(8, 4).init_with_output)(jax.random.key(0), x, told)
    np.testing.assert_array_equal(y, x)
    assert "shortcut" not in params["params"]
