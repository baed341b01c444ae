"""Linen networks bound to the denoisers of `vbjax.diffusion`: start at `mlp_denoiser` and `unet_denoiser`.

What a network predicts is a choice of coordinates: ε, x_0, v, the score, or every pixel's law over its grey levels. In
each of them it becomes the one contract `(x_t, γ_t) -> x̂_0`, so samplers, bounds and losses never ask which.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from vbjax.diffusion.bound import DiffusionModel
from vbjax.diffusion.decoders import PixelLaw, embed_levels, levels_decoder
from vbjax.diffusion.process import (
    Denoiser,
    Variance,
    from_epsilon,
    from_score,
    from_v,
    interpolated_variance,
    noise,
    posterior_mean,
    posterior_variance,
    reverse_kernel,
)
from vbjax.distributions import Categorical
from vbjax.networks.conditioning import Conditioning, Label, check_label
from vbjax.networks.unet import GroupNorm, UNet
from vbjax.types import Params, PRNGKey, Scalar

Prediction = Literal["epsilon", "x0", "v", "score", "levels"]
Objective = Callable[[PRNGKey, Denoiser, Array], tuple[Scalar, Any]]
"""`(key, denoiser, x) -> (loss, terms)` of one datum, as stored."""


class DenoiserNetworks(NamedTuple):
    """A network `(x_t, γ, label, dropout key) -> (*shape, outputs)` before it has parameters, and how to read it.

    shape: of one datum. prediction: what the outputs mean. classes: number of labels, 0 for none. levels: grey levels
    of a pixel for the prediction "levels", else 0. log_prior: added to the logits of every pixel's levels, in nats.
    learned_variance: whether a second output interpolates the reverse variance.
    """

    network: nn.Module
    shape: tuple[int, ...]
    prediction: Prediction
    classes: int = 0
    levels: int = 0
    log_prior: Float[Array, "*shape levels"] | None = None
    learned_variance: bool = False

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters; the last layer is zero, so the network predicts zeros, or the pixels' prior law."""
        return self.network.init(key, jnp.zeros(self.shape), jnp.zeros(()), None, None)

    def bind(self, params: Params, label: Label = None, dropout_key: PRNGKey | None = None) -> Denoiser:
        """The denoiser at these parameters, for one class or, with None, for any.

        A key switches dropout on, with one mask for all that it computes. Raises ValueError for a label that there is
        not, and the denoiser for data of another shape.
        """
        if self.prediction == "levels":
            law, greys = self.bind_levels(params, label, dropout_key), self.greys()
            return lambda x_t, gamma: law(x_t, gamma).probs @ greys.astype(x_t.dtype)
        outputs = self._outputs(params, label, dropout_key)

        def predict(x_t: Float[Array, "*d"], gamma: Scalar) -> Float[Array, "*d"]:
            return outputs(x_t, gamma)[..., 0]

        match self.prediction:
            case "epsilon":
                return from_epsilon(predict)
            case "v":
                return from_v(predict)
            case "score":  # σ times the score is of order one
                return from_score(lambda x_t, gamma: predict(x_t, gamma) / noise(gamma))
        return predict

    def bind_levels(self, params: Params, label: Label = None, dropout_key: PRNGKey | None = None) -> PixelLaw:
        """The law of the pixels' integer levels given x_t, for the prediction "levels"; also a decoder p(x|x_1).

            p(x = l | x_t) ∝ N(x_t; α l, σ²) exp(logit_l): Bayes' rule, with the pixel's own noise exact.

        The network supplies what the other pixels say. Raises ValueError for another prediction.
        """
        if self.prediction != "levels":
            raise ValueError(f'bind_levels needs prediction="levels", this network predicts {self.prediction!r}')
        outputs = self._outputs(params, label, dropout_key)

        def law(x_t: Float[Array, "*d"], gamma: Scalar) -> Categorical:
            prior = 0 if self.log_prior is None else self.log_prior.astype(x_t.dtype)
            return levels_decoder(levels=self.levels, log_frequencies=outputs(x_t, gamma) + prior)(x_t, gamma)

        return law

    def bind_variance(self, params: Params, label: Label = None, dropout_key: PRNGKey | None = None) -> Variance:
        """A reverse variance for every coordinate.

        Of pixel laws the best one, β̃ + c² Var(x_0|x_t) with c the weight of x_0 in the posterior mean; of a network
        with learned variance a geometric mean of β̃ and β (Nichol and Dhariwal 2021, eq. 15). Raises ValueError for
        others.
        """
        if self.prediction == "levels":
            law = self.bind_levels(params, label, dropout_key)

            def of_pixels(x_t: Float[Array, "*d"], gamma_s: Scalar, gamma_t: Scalar) -> Float[Array, "*d"]:
                probs = law(x_t, gamma_t).probs
                greys = jnp.broadcast_to(self.greys().astype(x_t.dtype), probs.shape)
                mean = jnp.sum(probs * greys, -1, keepdims=True)
                spread = jnp.sum(probs * (greys - mean) ** 2, -1)
                weight = posterior_mean(jnp.zeros_like(x_t), jnp.ones_like(x_t), gamma_s, gamma_t)
                return posterior_variance(x_t, gamma_s, gamma_t) + weight**2 * spread

            return of_pixels
        if not self.learned_variance:
            raise ValueError('bind_variance needs learned_variance=True or prediction="levels"')
        outputs = self._outputs(params, label, dropout_key)
        return interpolated_variance(lambda x_t, gamma: 0.5 * (outputs(x_t, gamma)[..., 1] + 1))

    def chain(self, params: Params) -> DiffusionModel:
        """The model at these parameters with the best reverse variance, for the prediction "levels" and for any class.

        Raises ValueError for another prediction.
        """
        reverse = reverse_kernel(self.bind(params), self.bind_variance(params))
        return DiffusionModel(partial(embed_levels, levels=self.levels), reverse, self.bind_levels(params))

    def loss(
        self, objective: Objective, *, null_rate: int | float = 0.1
    ) -> Callable[[PRNGKey, Params, PyTree[Array]], tuple[Scalar, Any]]:
        """The mean of an objective and of its terms over a batch, for `vbjax.training.fit`.

        batch: data `(n, *shape)`, as stored; with them their labels, `(data, labels)`, where there are classes. Each
        datum has its own dropout mask, and loses its label with probability `null_rate` (Ho and Salimans 2021,
        algorithm 1). Raises ValueError for a rate outside [0, 1].
        """
        if not 0 <= null_rate <= 1:
            raise ValueError(f"null_rate must lie in [0, 1], got {null_rate}")

        def example(key: PRNGKey, params: Params, x: Array, label: Int[Array, ""] | None):
            key_label, key_dropout, key_objective = jax.random.split(key, 3)
            if label is not None:
                label = jnp.where(jax.random.bernoulli(key_label, null_rate), self.classes, label)
            return objective(key_objective, self.bind(params, label, key_dropout), x)

        def loss(key: PRNGKey, params: Params, batch: PyTree[Array]):
            data, labels = batch if self.classes else (batch, None)
            keys = jax.random.split(key, data.shape[0])
            values = jax.vmap(example, (0, None, 0, None if labels is None else 0))(keys, params, data, labels)
            return jax.tree.map(lambda v: v.mean(0), values)

        return loss

    def greys(self) -> Float[Array, " levels"]:
        """Where the integer levels lie as x_0: evenly from -1 to 1."""
        return embed_levels(jnp.arange(self.levels), levels=self.levels)

    def _outputs(self, params: Params, label: Label, dropout_key: PRNGKey | None) -> Callable[[Array, Scalar], Array]:
        check_label(label, self.classes)

        def outputs(x_t: Array, gamma: Scalar) -> Array:
            if x_t.shape != self.shape:
                raise ValueError(f"x_t must have the shape {self.shape} of one datum, got {x_t.shape}: use vmap")
            return cast(Array, self.network.apply(params, x_t, gamma, label, dropout_key))

        return outputs


def _normalised(h: Array) -> Array:
    """Apply a layer norm, one group of one pixel; called in a compact method, whose submodule it becomes."""
    return GroupNorm(1)(h[None, None])[0, 0]


class ResidualMLP(nn.Module):
    """(x_t, γ, label) -> `(*shape, outputs)` by residual blocks of two dense layers, the conditioning added between."""

    outputs: int
    width: int
    blocks: int
    dropout: float = 0.0
    classes: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, "*d"], gamma: Scalar, label: Label = None, key: PRNGKey | None = None
    ) -> Float[Array, "*d outputs"]:
        """key: draws the dropout masks; None switches dropout off."""
        keys = [None] * self.blocks if key is None else jax.random.split(key, self.blocks)
        told = Conditioning(self.width, self.classes)(gamma, label)
        h = nn.Dense(self.width)(x.ravel())
        for block_key in keys:
            y = nn.Dense(self.width)(nn.silu(_normalised(h))) + nn.Dense(self.width, use_bias=False)(told)
            y = nn.silu(_normalised(y))
            if self.dropout and block_key is not None:
                y = nn.Dropout(self.dropout, deterministic=False)(y, rng=block_key)
            h = h + nn.Dense(self.width)(y)
        last = nn.Dense(x.size * self.outputs, kernel_init=nn.initializers.zeros_init(), name="outputs")
        return last(nn.silu(_normalised(h))).reshape(*x.shape, self.outputs)


def mlp_denoiser(
    shape: tuple[int, ...],
    *,
    prediction: Prediction = "v",
    width: int = 512,
    blocks: int = 3,
    dropout: int | float = 0.0,
    classes: int = 0,
    levels: int = 0,
    log_prior: Float[Array, "*shape levels"] | None = None,
    learned_variance: bool = False,
) -> DenoiserNetworks:
    """A residual perceptron for data of any shape.

    The others as `DenoiserNetworks`. Raises ValueError, naming the argument, for unknown predictions, for sizes below
    one, for dropout outside [0, 1), for levels or a log_prior without the prediction "levels", or the other way round.
    """
    _require("width", width >= 1, "at least 1", width)
    _require("blocks", blocks >= 1, "at least 1", blocks)
    _require("dropout", 0 <= dropout < 1, "in [0, 1)", dropout)
    outputs = _outputs_per_coordinate(shape, prediction, classes, levels, log_prior, learned_variance)
    network = ResidualMLP(outputs, width, blocks, float(dropout), classes)
    return DenoiserNetworks(network, shape, prediction, classes, levels, log_prior, learned_variance)


def unet_denoiser(
    image_shape: tuple[int, ...],
    *,
    prediction: Prediction = "v",
    channels: int = 32,
    multipliers: Sequence[int] = (1, 2, 4),
    blocks: int = 1,
    attention: Sequence[int] | None = None,
    heads: int = 1,
    groups: int = 8,
    dropout: int | float = 0.0,
    octaves: Sequence[int] = (),
    classes: int = 0,
    levels: int = 0,
    log_prior: Float[Array, "*shape levels"] | None = None,
    learned_variance: bool = False,
) -> DenoiserNetworks:
    """A U-Net for images `(h, w)` or `(h, w, c)`.

    channels to octaves as `UNet`; attention: None is the coarsest level alone. The others, and ValueError, as
    `mlp_denoiser`; also for an image that the levels cannot halve.
    """
    outputs = _outputs_per_coordinate(image_shape, prediction, classes, levels, log_prior, learned_variance)
    network = UNet(
        image_shape,
        outputs,
        channels,
        tuple(multipliers),
        blocks,
        (len(multipliers) - 1,) if attention is None else tuple(attention),
        heads,
        groups,
        float(dropout),
        classes,
        tuple(octaves),
    )
    return DenoiserNetworks(network, image_shape, prediction, classes, levels, log_prior, learned_variance)


def _outputs_per_coordinate(
    shape: tuple[int, ...],
    prediction: str,
    classes: int,
    levels: int,
    log_prior: Array | None,
    learned_variance: bool,
) -> int:
    _require("prediction", prediction in get_args(Prediction), f"one of {get_args(Prediction)}", prediction)
    _require("shape", all(n >= 1 for n in shape), "positive sizes", shape)
    _require("classes", classes >= 0, "at least 0", classes)
    if prediction != "levels":
        _require("levels", levels == 0, '0 unless prediction="levels"', levels)
        _require("log_prior", log_prior is None, 'None unless prediction="levels"', log_prior)
        return 2 if learned_variance else 1
    _require("learned_variance", not learned_variance, 'False for prediction="levels", which has its own', True)
    _require("levels", levels >= 2, 'at least 2 for prediction="levels"', levels)
    if log_prior is not None and log_prior.shape != (*shape, levels):
        raise ValueError(f"log_prior must have shape {(*shape, levels)}, got {log_prior.shape}")
    return levels


def _require(name: str, holds: bool, wanted: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
