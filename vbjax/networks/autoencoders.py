"""Linen modules bound to the callables of `vbjax.autoencoders.Autoencoder`: start at `deep`.

Every builder returns something with `init(key)` and `bind(params)`. Decoders end in a linear layer, so that squared
errors compare with PCA's.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax import autoencoders
from vbjax.autoencoders import Autoencoder, Corruption
from vbjax.networks.convolutional import ConvDecoderBody, ConvEncoderBody, PixelParameters
from vbjax.networks.mlp import ACTIVATIONS, check_mlp
from vbjax.types import Params, PRNGKey, Scalar

Loss = Callable[[PRNGKey, Params, Array], tuple[Scalar, dict[str, Scalar]]]


class Networks(Protocol):
    """What every builder returns."""

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters."""
        ...

    def bind(self, params: Params) -> Autoencoder:
        """The auto-encoder at these parameters."""
        ...


class Pair(NamedTuple):
    """An encoder and a decoder before they have parameters."""

    encoder: nn.Module
    decoder: nn.Module
    input_shape: tuple[int, ...]
    code_dim: int

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: `{"encoder": ..., "decoder": ...}`."""
        key_encoder, key_decoder = jax.random.split(key)
        encoder = self.encoder.init(key_encoder, jnp.zeros(self.input_shape))
        return {"encoder": encoder, "decoder": self.decoder.init(key_decoder, jnp.zeros(self.code_dim))}

    def bind(self, params: Params) -> Autoencoder:
        """The auto-encoder at these parameters."""
        return Autoencoder(
            lambda x: cast(Array, self.encoder.apply(params["encoder"], x)),
            lambda z: cast(Array, self.decoder.apply(params["decoder"], z)),
        )


class Stack(NamedTuple):
    """Auto-encoders of each other's codes, from the pixels inwards: trained together, or one after another."""

    layers: tuple[Pair, ...]

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, a list with an entry for each layer."""
        return [layer.init(k) for layer, k in zip(self.layers, jax.random.split(key, len(self.layers)), strict=True)]

    def bind(self, params: Params) -> Autoencoder:
        """The whole; a list of fewer parameters binds the outermost layers."""
        bound = [layer.bind(p) for layer, p in zip(self.layers, params, strict=False)]

        def encode(x: Array) -> Array:
            for layer in bound:
                x = layer.encode(x)
            return x

        def decode(z: Array) -> Array:
            for layer in reversed(bound):
                z = layer.decode(z)
            return z

        return Autoencoder(encode, decode)


class Linear(NamedTuple):
    """A linear auto-encoder of images; tied: the encoder is the decoder's transpose."""

    image_shape: tuple[int, ...]
    code_dim: int
    tied: bool = False

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: decoder, offset and, unless tied, encoder."""
        size = math.prod(self.image_shape)
        decoder = jax.random.normal(key, (size, self.code_dim)) / size**0.5
        params = {"decoder": decoder, "offset": jnp.zeros(size)}
        return params if self.tied else params | {"encoder": decoder.T}

    def bind(self, params: Params) -> Autoencoder:
        """The auto-encoder at these parameters."""
        weights = params["decoder"]
        encoder = weights.T if self.tied else params["encoder"]
        return autoencoders.on_images(autoencoders.linear(encoder, weights, params["offset"]), self.image_shape)


class Layer(nn.Module):
    """One dense layer to an array of this shape, with an activation by name; None leaves it linear."""

    shape: tuple[int, ...]
    activation: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(math.prod(self.shape), name="dense")(x.ravel()).reshape(self.shape)
        return x if self.activation is None else ACTIVATIONS[self.activation](x)


def deep(
    image_shape: tuple[int, ...], *, code_dim: int, hidden: Sequence[int] = (256, 128), activation: str = "relu"
) -> Stack:
    """Perceptrons that narrow to the code and widen again; code and pixels are linear.

    hidden: widths from the pixels inwards. Raises ValueError, naming the argument. Source: Hinton & Salakhutdinov
    (2006), figure 1.
    """
    check_mlp(hidden, activation, 0.0)
    _check_code(code_dim)
    shapes = [image_shape, *((width,) for width in hidden), (code_dim,)]
    ends = [None, *(activation for _ in hidden), None]
    layers = [
        Pair(Layer(inner, end), Layer(outer, start), outer, math.prod(inner))
        for (outer, inner), (start, end) in zip(itertools.pairwise(shapes), itertools.pairwise(ends), strict=True)
    ]
    return Stack(tuple(layers))


class SparseEncoder(nn.Module):
    """One dense layer, whose units are sigmoids or, with `active`, the few largest of rectified ones."""

    units: int
    active: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, " units"]:
        x = nn.Dense(self.units, name="dense")(x.ravel())
        return jax.nn.sigmoid(x) if self.active is None else autoencoders.top_k(jax.nn.relu(x), self.active)


def sparse(image_shape: tuple[int, ...], *, code_dim: int, active: int | None = None) -> Pair:
    """One layer of many units, few of which speak: `sparse_loss` makes sigmoids rare, `active` keeps the largest.

    Raises ValueError, naming the argument.
    """
    _check_code(code_dim)
    if active is not None and not 1 <= active <= code_dim:
        raise ValueError(f"active must be a whole number from 1 to code_dim = {code_dim}, got {active}")
    return Pair(SparseEncoder(code_dim, active), Layer(image_shape), image_shape, code_dim)


class Sequential(nn.Module):
    """Modules one after another."""

    parts: tuple[nn.Module, ...]

    def __call__(self, x: Array) -> Array:
        for part in self.parts:
            x = part(x)
        return x


def convolutional(
    image_shape: tuple[int, ...],
    *,
    code_dim: int,
    features: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
) -> Pair:
    """Convolutions, each stage of which halves the image, and their mirror.

    features: channels of the stages, hidden: widths after them, both from the pixels inwards. Raises ValueError,
    naming the argument.
    """
    _check_code(code_dim)
    features, hidden = tuple(features), tuple(hidden)
    encoder = ConvEncoderBody(image_shape, features, hidden=hidden, activation=activation)
    decoder = ConvDecoderBody(
        image_shape, features[::-1], stages=len(features), hidden=hidden[::-1], activation=activation
    )
    return Pair(
        Sequential((encoder, Layer((code_dim,)))),
        Sequential((decoder, PixelParameters(image_shape))),
        image_shape,
        code_dim,
    )


class RowEncoder(nn.Module):
    """Read an image row by row with a gated recurrent unit; the code is linear in the last state."""

    units: int
    code_dim: int

    @nn.compact
    def __call__(self, image: Array) -> Float[Array, " code"]:
        rows = image.reshape(image.shape[0], -1)
        return nn.Dense(self.code_dim, name="code")(nn.RNN(nn.GRUCell(self.units))(rows)[-1])


class RowDecoder(nn.Module):
    """Write an image row by row: the code starts the state and is read again at every row."""

    units: int
    image_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Float[Array, " code"]) -> Array:
        height, *row = self.image_shape
        start = jnp.tanh(nn.Dense(self.units, name="start")(z))
        codes = jnp.broadcast_to(z, (height, z.shape[0]))
        states = cast(Array, nn.RNN(nn.GRUCell(self.units))(codes, initial_carry=start))
        return nn.Dense(math.prod(row), name="pixels")(states).reshape(self.image_shape)


def recurrent(image_shape: tuple[int, ...], *, code_dim: int, units: int = 128) -> Pair:
    """Gated recurrent units over the rows of an image, or the symbols of a sequence `(length, symbols)`.

    Raises ValueError, naming the argument. Source: Cho et al. (2014), section 2.
    """
    _check_code(code_dim)
    if units < 1:
        raise ValueError(f"units must be at least 1, got {units}")
    return Pair(RowEncoder(units, code_dim), RowDecoder(units, image_shape), image_shape, code_dim)


def batch_loss(bind: Callable[[Params], Autoencoder], corrupt: Corruption | None = None) -> Loss:
    """The squared error over a batch of images in [0, 1], summed over pixels; corrupt: makes it a denoising one."""

    def loss(key: PRNGKey, params: Params, images: Array):
        model = bind(params)
        if corrupt is None:
            errors = jax.vmap(lambda x: autoencoders.reconstruction_error(model, x))(images)
        else:
            keys = jax.random.split(key, images.shape[0])
            errors = jax.vmap(lambda k, x: autoencoders.denoising_error(k, model, corrupt, x))(keys, images)
        return errors.mean(), {}

    return loss


def sparse_loss(bind: Callable[[Params], Autoencoder], *, target: int | float, weight: int | float) -> Loss:
    """The squared error with `weight` times the `bernoulli_sparsity` of the batch's mean code, and both as terms.

    Raises ValueError unless 0 < target < 1 and weight >= 0.
    """
    if not 0 < target < 1:
        raise ValueError(f"target must lie in (0, 1), got {target}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be zero or a positive number, got {weight}")

    def loss(key: PRNGKey, params: Params, images: Array):
        model = bind(params)
        codes = jax.vmap(model.encode)(images)
        error = jnp.sum(jnp.square(jax.vmap(model.decode)(codes) - images)) / images.shape[0]
        activation = codes.mean(0)
        sparsity = autoencoders.bernoulli_sparsity(activation, target)
        terms: dict[str, Any] = {"error": error, "sparsity": sparsity, "activation": activation.mean()}
        return error + weight * sparsity, terms

    return loss


def _check_code(code_dim: int) -> None:
    if code_dim < 1:
        raise ValueError(f"code_dim must be at least 1, got {code_dim}")
