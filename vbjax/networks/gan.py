"""Generators and discriminators, plain or conditional on a class: start at `mlp_gan` and `conv_gan`.

A discriminator is conditional by projection: a linear function of its features plus their inner product with the
class's embedding. With spectral normalisation every kernel of the discriminator is divided by one power iteration's
estimate of its largest singular value, whose state, a vector for each kernel, is an entry of the parameters. A
convolution's kernel is reshaped to a matrix for it: its norm is not that of the convolution (`convolution_norm`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vbjax.estimators.estimate import inject
from vbjax.gan import penalties, values
from vbjax.gan.values import Game
from vbjax.networks.convolutional import ConvDecoderBody, ConvEncoderBody, PixelParameters
from vbjax.networks.mlp import MLP, check_mlp
from vbjax.types import Params, PRNGKey, Scalar, stop_gradient

Label = Int[Array, ""] | None
"""A class, or None; networks without classes pay it no attention."""
Loss = Callable[[PRNGKey, Params, tuple[Array, Array]], tuple[Scalar, dict[str, Scalar]]]


class Generator(nn.Module):
    """z -> one point `(*shape)`; the class, one-hot, enters beside z.

    body: called on a vector. bounded: the point lies in [-1, 1], by tanh.
    """

    body: nn.Module
    shape: tuple[int, ...]
    classes: int | None = None
    bounded: bool = False

    @nn.compact
    def __call__(self, z: Float[Array, " dim"], label: Label = None) -> Array:
        if self.classes is not None:
            z = jnp.concatenate([z, jax.nn.one_hot(label, self.classes, dtype=z.dtype)])
        x = PixelParameters(self.shape)(self.body(z))
        return jnp.tanh(x) if self.bounded else x


class Discriminator(nn.Module):
    """One point -> a logit: w·φ(x) + b, and + v_y·φ(x) for a class y (Miyato and Koyama 2018, eq. 3)."""

    body: nn.Module
    classes: int | None = None

    @nn.compact
    def __call__(self, x: Array, label: Label = None) -> Scalar:
        features = self.body(x)
        logit = nn.Dense(1, name="logit")(features)[0]
        if self.classes is None:
            return logit
        embedding = nn.Dense(features.shape[0], use_bias=False, name="embedding")
        return logit + jnp.vdot(embedding(jax.nn.one_hot(label, self.classes, dtype=x.dtype)), features)


class GANNetworks(NamedTuple):
    """A generator and a discriminator before they have parameters.

    latent_dim: z ~ N(0, I) has so many coordinates. spectral: the discriminator's kernels are normalised.
    """

    generator: Generator
    discriminator: Discriminator
    latent_dim: int
    spectral: bool

    @property
    def classes(self) -> int | None:
        """How many classes the networks are conditional on; None for none."""
        return self.generator.classes

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: `{"generator": ..., "discriminator": ...}`, and `"spectral"` if that is on."""
        key_generator, key_discriminator, key_spectral = jax.random.split(key, 3)
        label = None if self.classes is None else jnp.int32(0)
        params = {
            "generator": self.generator.init(key_generator, jnp.zeros(self.latent_dim), label),
            "discriminator": self.discriminator.init(key_discriminator, jnp.zeros(self.generator.shape), label),
        }
        if self.spectral:
            params["spectral"] = spectral_state(key_spectral, params["discriminator"])
        return params

    def generate(self, params: Params) -> Callable[..., Array]:
        """`(z, label=None) -> x` at the parameters of both."""

        def generate(z: Float[Array, " dim"], label: Label = None) -> Array:
            return cast(Array, self.generator.apply(params["generator"], z, label))

        return generate

    def discriminate(self, params: Params) -> Callable[..., Scalar]:
        """`(x, label=None) -> logit`, the kernels as they are: `normalise` the parameters first, once for a batch."""

        def discriminate(x: Array, label: Label = None) -> Scalar:
            return cast(Array, self.discriminator.apply(params["discriminator"], x, label))

        return discriminate

    def normalise(self, params: Params) -> Params:
        """The parameters with a normalised discriminator and the next spectral state; as they are if that is off."""
        if not self.spectral:
            return params
        discriminator, state = spectrally_normalised(params["discriminator"], params["spectral"])
        return {**params, "discriminator": discriminator, "spectral": state}

    def loss(
        self, game: Game, *, r1: int | float = 0.0, r2: int | float = 0.0, gradient_penalty: int | float = 0.0
    ) -> Loss:
        """What both players minimise on `(points (n, *shape), labels (n,))`, averaged and added up, with its terms.

        Each player's part is constant for the other, so one gradient is that of both: they move at once. The penalties'
        weights are the discriminator's to pay. A fake has the class of the point beside it. The spectral state's
        "gradient" is the old one minus the new (`training.CARRIED`).
        """

        def loss(key: PRNGKey, params: Params, batch: tuple[Array, Array]):
            normalised = self.normalise(params)
            fixed = stop_gradient(normalised)

            def example(key: PRNGKey, x: Array, label: Label):
                key_z, key_between = jax.random.split(key)
                z = jax.random.normal(key_z, (self.latent_dim,))
                generator, discriminator, opponent = (
                    partial(player, label=label)
                    for player in (self.generate(params), self.discriminate(normalised), self.discriminate(fixed))
                )
                fake = generator(z)
                terms = {
                    "discriminator": values.discriminator_loss(game, discriminator, x, fake),
                    "generator": values.generator_loss(game, opponent, generator, z),
                }
                if r1:
                    terms["r1"] = r1 * penalties.r1(discriminator, x)
                if r2:
                    terms["r2"] = r2 * penalties.r2(discriminator, fake)
                if gradient_penalty:
                    slope = penalties.gradient_penalty(discriminator, x, fake, jax.random.uniform(key_between))
                    terms["gradient_penalty"] = gradient_penalty * slope
                return terms

            x, labels = batch
            terms = jax.vmap(example)(jax.random.split(key, x.shape[0]), x, labels)
            terms = jax.tree.map(lambda v: v.mean(), terms)
            state, after = params.get("spectral", {}), fixed.get("spectral", {})
            step = jax.tree.map(lambda old, new: old - new, state, after)
            return sum(terms.values()) + inject(state, step, estimator="spectral norm"), terms

        return loss


def spectral_state(key: PRNGKey, params: Params) -> dict[str, Array]:
    """A random unit vector for each kernel among the parameters, by its path."""
    kernels = {name: leaf for name, leaf in _named(params) if _is_kernel(name)}
    keys = jax.random.split(key, len(kernels))
    vectors = (jax.random.normal(k, kernel.shape[-1:]) for k, kernel in zip(keys, kernels.values(), strict=True))
    return {name: v / jnp.linalg.norm(v) for name, v in zip(kernels, vectors, strict=True)}


def spectrally_normalised(params: Params, state: dict[str, Array]) -> tuple[Params, dict[str, Array]]:
    """Divide each kernel by its spectral norm, one power iteration on from the state, and return the next state."""
    leaves, after = [], {}
    for name, leaf in _named(params):
        if _is_kernel(name):
            leaf, after[name] = penalties.spectrally_normalised(leaf, state[name])
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), leaves), after


def mlp_gan(
    shape: tuple[int, ...],
    *,
    latent_dim: int,
    hidden: Sequence[int],
    classes: int | None = None,
    spectral: bool = False,
    bounded: bool = False,
) -> GANNetworks:
    """Two multi-layer perceptrons for points of this shape. Raises ValueError, naming the argument.

    hidden: widths of both, from the latent or the point inwards. bounded: the generator's points lie in [-1, 1].
    """
    check_mlp(hidden, "relu", 0.0)
    bodies = MLP(hidden, "relu"), Flat(MLP(hidden, "leaky_relu"))
    return _networks(bodies, shape, latent_dim, classes, spectral, bounded)


def conv_gan(
    image_shape: tuple[int, ...],
    *,
    latent_dim: int,
    features: Sequence[int],
    groups: int | None = None,
    classes: int | None = None,
    spectral: bool = False,
) -> GANNetworks:
    """Convolutions for images in [-1, 1], `(h, w)` or `(h, w, c)`, that halve at every stage.

    features: channels of the discriminator's stages, from the pixels inwards; the generator mirrors them. groups: of
    the generator's GroupNorm; None leaves it out. Raises ValueError, naming the argument. Source: Radford et al.
    (2016), section 3, whose DCGAN has batch normalisation in both players. Here the discriminator has none of any kind,
    so that a gradient penalty is one example's affair.
    """
    features = tuple(features)
    bodies = (
        ConvDecoderBody(image_shape, features[::-1], stages=len(features), hidden=(), groups=groups),
        ConvEncoderBody(image_shape, features, hidden=(), activation="leaky_relu"),
    )
    return _networks(bodies, image_shape, latent_dim, classes, spectral, True)


class Flat(nn.Module):
    """A body for points of any shape: it sees them as vectors."""

    body: nn.Module

    def __call__(self, x: Array) -> Float[Array, " h"]:
        return self.body(x.ravel())


def _networks(
    bodies: tuple[nn.Module, nn.Module],
    shape: tuple[int, ...],
    latent_dim: int,
    classes: int | None,
    spectral: bool,
    bounded: bool,
) -> GANNetworks:
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
    if classes is not None and classes < 2:
        raise ValueError(f"classes must be at least 2, or None, got {classes}")
    generator = Generator(bodies[0], shape, classes, bounded)
    return GANNetworks(generator, Discriminator(bodies[1], classes), latent_dim, spectral)


def _named(params: Params) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _is_kernel(name: str) -> bool:
    return name.endswith("/kernel")
