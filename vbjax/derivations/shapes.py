"""Chapters 6 and 9: what convolutional networks do to the size of an image, and what moves with it.

Left sides ask `vbjax.networks`, mostly for shapes alone, right sides arithmetic. Start with `ae_pixelwise_shape`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.networks import autoencoders
from vbjax.networks.pixelwise import Pixelwise
from vbjax.networks.unet import UNet


class Images(NamedTuple):
    """Sizes of images, the stages of the encoder, their stride, the scale of super-resolution, channels out."""

    heights: tuple
    stages: int
    stride: int
    scale: int
    outputs: int
    seed: int


class Levels(NamedTuple):
    """A U-Net's levels, the channels of its first, heights that are asked for, and the width of all images."""

    levels: int
    channels: int
    heights: tuple
    width: int
    seed: int


def random_levels(random: np.random.Generator) -> Levels:
    """Two to four levels, for one refuses nothing; the first height fits, the second does not, others may."""
    levels = int(random.integers(2, 5))
    unit = 2 ** (levels - 1)
    fits = unit * int(random.integers(2, 4))
    heights = (fits, fits + 1, *random.integers(4, 40, 3))
    channels, widths, seed = random.integers((1, 1, 0), (6, 4, 2**31)).tolist()
    return Levels(levels, channels, heights, unit * widths, seed)


def random_params(random: np.random.Generator, network: Any, *shapes: tuple[int, ...]) -> Any:
    """Parameters of a Linen module of order one over the root of what they sum: also of layers that begin at zero."""
    with jax.enable_x64(False):
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        tree = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda v: random.normal(size=v.shape) / max(np.prod(v.shape[:-1]), 1) ** 0.5, tree)


def output_shape(network: Any, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Of a Linen module on inputs of these shapes, without a number computed."""
    with jax.enable_x64(False):
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        output, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), *inputs)
    return output.shape


@partial(jax.jit, static_argnums=0)
def answers(network: Any, params: Any, images: Any) -> Any:
    """Of a Linen module to several images; compiled once for a side and its control."""
    return jax.vmap(network.apply, (None, 0))(params, images)


@entry(6)
def ae_pixelwise_shape():
    def lhs(case):
        network = Pixelwise(case.outputs, (3,) * case.stages, strides=case.stride, scale=case.scale)
        answer = {f"{h} x {2 * h - 1}": output_shape(network, (h, 2 * h - 1, 3)) for h in case.heights}
        height = case.heights[0]
        code = autoencoders.convolutional((height, height, 3), code_dim=2, features=(4,), hidden=(4,))
        decoded = output_shape(code.decoder, (2,))
        return answer | {"decoder of a code": decoded, "f(roll x) - roll f(x)": shifted(case, case.stride**case.stages)}

    def shifted(case, step):
        """How far the answer to an image that is shifted by `step` is from the shifted answer."""
        random = np.random.default_rng(case.seed)
        network = Pixelwise(
            case.outputs, (3,) * case.stages, strides=case.stride, scale=case.scale, activation="tanh",
            padding="CIRCULAR",
        )  # fmt: skip
        whole = network.total_stride
        x = random.normal(size=(2 * whole, 3 * whole, 1))
        params = random_params(random, network, x.shape)
        y, moved = np.asarray(answers(network, params, np.stack([x, np.roll(x, step, (0, 1))])))
        return np.abs(moved - np.roll(y, case.scale * step, (0, 1))).max()

    def rhs(case):
        r, height = case.scale, case.heights[0]
        sizes = {f"{h} x {2 * h - 1}": np.array([r * h, r * (2 * h - 1), case.outputs]) for h in case.heights}
        return sizes | {"decoder of a code": np.array([height, height, 3]), "f(roll x) - roll f(x)": 0.0}

    def by_one(case):
        return rhs(case) | {"f(roll x) - roll f(x)": shifted(case, 1)}

    return Identity(
        title="A convolutional encoder-decoder answers for every pixel, and moves with the image",
        statement=r"f: \mathbb{R}^{H \times W \times C} \to \mathbb{R}^{r H \times r W \times C'}, \qquad "
        r"f(\mathrm{roll}_s\, x) = \mathrm{roll}_{r s}\, f(x), \quad s = \text{stride}^{\text{stages}}",
        lecture="001",
        slide="Why using autoencoders?",
        kind="identity",
        instance=Images(heights=(8, 13, 33), stages=2, stride=2, scale=2, outputs=4, seed=1),
        family=lambda random: Images(
            random.integers(8, 34, 2), random.integers(1, 3), random.integers(2, 4), random.integers(1, 4),
            random.integers(1, 5), random.integers(2**31),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("The image is shifted by one pixel, less than the total stride.", lhs=by_one),
        correction="Only named on the slide. The shift must be a multiple of the total stride, and the padding "
        "circular: zeros at the border know where it is.",
    )  # fmt: skip


@entry(9)
def unet_shape():
    """That the output depends on t is asked of random parameters: the last layer of a fresh network is zero."""

    def network(case, height):
        return UNet(
            (height, case.width), channels=case.channels, multipliers=(1,) * case.levels, groups=1,
            attention=(case.levels - 1,), outputs=2,
        )  # fmt: skip

    def accepted(case, height):
        try:
            network(case, height)
        except ValueError as refusal:
            return "pad the images to" not in str(refusal)  # a refusal names the way out
        return True

    def lhs(case):
        height = case.heights[0]
        unet = network(case, height)
        random = np.random.default_rng(case.seed)
        x, noise_levels = random.normal(size=(height, case.width)), np.array([-2.0, 2.0])
        params = random_params(random, unet, x.shape, ())

        def run(gamma):
            return unet.apply(params, jnp.array(x), gamma, capture_intermediates=True, mutable=["intermediates"])

        (early, late), kept = jax.jit(jax.vmap(run))(noise_levels)
        names = [f"ResidualBlock_{i}" for i in range(2 * case.levels)]  # first on the way down, then on the way up
        blocks = np.array([kept["intermediates"][name]["__call__"][0].shape[1:] for name in names])
        return {
            "output": early.shape,
            "way down": blocks[: case.levels],
            "way up": blocks[case.levels :][::-1],
            "sizes accepted": [accepted(case, h) for h in case.heights],
            "share of pixels that depend on t": np.mean(np.asarray(early) != np.asarray(late)),
        }

    def rhs(case):
        height, unit = case.heights[0], 2 ** (case.levels - 1)
        levels = np.array([[height >> i, case.width >> i, case.channels] for i in range(case.levels)])
        return {
            "output": np.array([height, case.width, 2]),
            "way down": levels,
            "way up": levels,
            "sizes accepted": np.array([h % unit == 0 for h in case.heights]),
            "share of pixels that depend on t": 1.0,
        }

    def cropped(case):
        return rhs(case) | {"sizes accepted": np.ones(len(case.heights))}

    return Identity(
        title="A U-Net returns the image's size, or refuses it",
        statement=r"2^{L-1} \mid H, W: \qquad \varepsilon_\theta(\cdot, t): \mathbb{R}^{H \times W} \to "
        r"\mathbb{R}^{H \times W \times C'}, "
        r"\qquad \text{level } i \text{ has } H / 2^i \times W / 2^i \text{ on both ways}",
        lecture="001",
        slide="Diffusion Model Architecture",
        kind="claim",
        instance=Levels(levels=3, channels=4, heights=(8, 9, 10, 12, 14), width=12, seed=2),
        family=random_levels,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("Every size is accepted, and cropped in silence where it does not fit.", rhs=cropped),
        correction="“Highly flexible” ends at sizes that the levels cannot halve: those are refused, and padded by the "
        "caller.",
    )
