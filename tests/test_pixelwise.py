"""Circular convolutions equal Flax's; encoder-decoders keep every size and move with the image.

Rounding is bounded by 1e-12 in float64, where results are of order one to ten.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vbjax.networks.convolution import Conv, ConvTranspose, convolve, convolve_transposed
from vbjax.networks.pixelwise import Pixelwise


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("modules", [(Conv, nn.Conv), (ConvTranspose, nn.ConvTranspose)], ids=["conv", "transposed"])
def test_circular_convolutions_and_their_gradients_equal_flax(x64, modules):
    """Kernels of even, odd and larger sizes than the image, strides that divide the image and that do not."""
    cases = [((3, 3), (1, 1), (4, 5)), ((4, 2), (2, 2), (6, 4)), ((5, 4), (2, 3), (3, 7)), ((1, 3), (3, 2), (5, 1))]

    @jax.jit
    def both(inputs):
        results = []
        for (size, strides, _), (x, kernel, y) in zip(cases, inputs, strict=True):
            ours, stock = (module(3, size, strides, "CIRCULAR", use_bias=False) for module in modules)

            def value_and_gradients(apply, x=x, kernel=kernel, y=y):
                def inner(x, kernel):
                    result = apply({"params": {"kernel": kernel}}, x)
                    return jnp.sum(result * y), result

                return jax.value_and_grad(inner, (0, 1), has_aux=True)(x, kernel)

            results.append([value_and_gradients(ours.apply), value_and_gradients(stock.apply)])
        return results

    inputs = []
    for seed, (size, strides, image) in enumerate(cases):
        if modules[0] is Conv:
            output = [-(-n // s) for n, s in zip(image, strides, strict=True)]
        else:
            output = [n * s for n, s in zip(image, strides, strict=True)]
        inputs.append((draw(seed, *image, 2), draw(seed + 9, *size, 2, 3), draw(seed + 99, *output, 3)))
    for ours, stock in both(inputs):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, stock)


def test_a_circular_convolution_is_a_product_of_fourier_transforms(x64):
    x, kernel = draw(0, 6, 5, 1), draw(1, 3, 3, 1, 1)
    ours = convolve(x, kernel, padding="CIRCULAR")[..., 0]
    spread = np.zeros((6, 5))
    spread[:3, :3] = kernel[..., 0, 0]
    spread = np.roll(spread, (-1, -1), (0, 1))  # the middle of the kernel is its origin
    oracle = np.fft.ifft2(np.fft.fft2(x[..., 0]) * np.conj(np.fft.fft2(spread))).real
    np.testing.assert_allclose(ours, oracle, atol=1e-12)
    # the control: zeros around the image
    assert jnp.abs(convolve(x, kernel)[..., 0] - oracle).max() > 0.1


def test_a_batch_may_be_empty():
    def loss(kernel, xs):
        ys = jax.vmap(lambda x: convolve_transposed(convolve(x, kernel, strides=2), kernel, strides=2))(xs)
        return ys.sum(), ys

    for count in (0, 1):
        gradients, ys = jax.grad(loss, (0, 1), has_aux=True)(jnp.ones((3, 3, 2, 2)), jnp.ones((count, 4, 6, 2)))
        assert ys.shape == gradients[1].shape == (count, 4, 6, 2)
        assert (gradients[0] == 0).all() == (count == 0)


def test_the_size_of_a_circular_transposed_convolution_is_not_asked_for():
    with pytest.raises(ValueError, match=r"output_size goes with padding=.SAME. only"):
        convolve_transposed(jnp.ones((2, 2, 1)), jnp.ones((3, 3, 1, 1)), padding="CIRCULAR", output_size=(2, 2))


def test_every_size_odd_or_even_comes_back_times_the_scale(x64):
    for strides, scale, features in ((2, 1, (4, 8)), (3, 2, (4,)), (1, 3, (2,)), (2, 1, (2, 2, 2))):
        network = Pixelwise(5, features, strides=strides, scale=scale)
        for height in (8, 9, 22, 33):
            image = jax.ShapeDtypeStruct((height, 41 - height, 3), jnp.float64)
            shape, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
            assert shape.shape == (scale * height, scale * (41 - height), 5)


def test_stages_shrink_the_map_and_the_way_back_mirrors_them():
    network = Pixelwise(2, (3, 5, 7))

    def run(key, image):
        return network.init_with_output(key, image, capture_intermediates=True, mutable=["params", "intermediates"])

    _, variables = jax.eval_shape(run, jax.random.key(0), jnp.zeros((13, 8, 1)))
    maps = {name: leaves["__call__"][0].shape for name, leaves in variables["intermediates"].items() if name[0] == "C"}
    assert maps == {
        "Conv_0": (7, 4, 3), "Conv_1": (4, 2, 5), "Conv_2": (2, 1, 7),
        "ConvTranspose_0": (4, 2, 5), "ConvTranspose_1": (7, 4, 3), "ConvTranspose_2": (13, 8, 3),
    }  # fmt: skip


@pytest.mark.parametrize(("strides", "scale", "size"), [(2, 2, (8, 12)), (3, 1, (9, 9))])
def test_a_shift_by_the_total_stride_moves_the_answer_and_a_smaller_one_does_not(x64, strides, scale, size):
    network = Pixelwise(2, (3, 4), strides=strides, scale=scale, activation="tanh", padding="CIRCULAR")
    x, whole = draw(0, *size, 1), network.total_stride
    params = jax.tree.map(lambda v: 0.5 * draw(v.size, *v.shape), jax.eval_shape(network.init, jax.random.key(0), x))
    assert whole == strides**2
    apply = jax.jit(network.apply)

    def moved(image, steps):
        return jnp.roll(image, (steps, -steps), (0, 1))

    y = apply(params, x)
    np.testing.assert_allclose(apply(params, moved(x, whole)), moved(y, scale * whole), atol=1e-12)
    for smaller in range(1, whole):
        assert jnp.abs(apply(params, moved(x, smaller)) - moved(y, scale * smaller)).max() > 1e-2


def valid():
    """A network past the check of types, which refuses this padding too."""
    network = Pixelwise(1)
    object.__setattr__(network, "padding", "VALID")
    return network


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Pixelwise(0), "outputs must be at least 1"),
        (lambda: Pixelwise(1, scale=0), "scale must be at least 1"),
        (lambda: Pixelwise(1, strides=0), "strides must be at least 1"),
        (lambda: Pixelwise(1, ()), "features must be one or more"),
        (lambda: Pixelwise(1, strides=5), "kernel_size must be at least strides 5"),
        (lambda: Pixelwise(1, activation="step"), "activation must be one of"),
        (lambda: inspect.unwrap(Pixelwise.__post_init__)(valid()), '"SAME" or "CIRCULAR", .* got .VALID.'),
        (
            lambda: inspect.unwrap(Pixelwise.__call__)(Pixelwise(1), jnp.zeros((2, 8, 6, 1))),
            r"one image \(h, w, c\), got shape \(2, 8, 6, 1\): vmap over examples",
        ),
        (
            lambda: Pixelwise(1, padding="CIRCULAR").init(jax.random.key(0), jnp.zeros((8, 6, 1))),
            "multiples of 4, got 8x6: crop it",
        ),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
