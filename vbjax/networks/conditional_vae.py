"""Linen modules bound to `conditional.CVAE` and `conditional.M2`: the label enters both networks one-hot."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vbjax import conditional, objectives
from vbjax.conditional import CVAE, M2, Label
from vbjax.distributions import Categorical, Distribution, Normal
from vbjax.networks.mlp import MLP
from vbjax.networks.vae import VAENetworks, batch_loss, mlp_vae
from vbjax.objectives import Objective
from vbjax.types import Params, PRNGKey, Scalar

Labelled = tuple[Array, Int[Array, " n"]]
"""Images `(n, *image_shape)` and their labels."""
Terms = dict[str, Scalar]


class CVAENetworks(NamedTuple):
    """An encoder that reads pixels and label and a decoder that reads code and label, before they have parameters."""

    vae: VAENetworks
    latent_dim: int
    classes: int

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: `{"encoder": ..., "decoder": ...}`."""
        key_encoder, key_decoder = jax.random.split(key)
        label = self._one_hot(0)
        pixels = jnp.zeros(self.vae.image_shape)
        return {
            "encoder": self.vae.encoder.init(key_encoder, _beside(pixels, label)),
            "decoder": self.vae.decoder.init(key_decoder, _beside(jnp.zeros(self.latent_dim), label)),
        }

    def bind(self, params: Params, dropout_key: PRNGKey | None = None) -> CVAE:
        """The model at these parameters; a key switches dropout on, with one mask for all that it computes."""
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        zeros = jnp.zeros(self.latent_dim)

        def encode(x: Array, y: Label) -> Normal:
            seen = _beside(self.pixels(x), self._one_hot(y))
            return cast(Normal, self.vae.encoder.apply(params["encoder"], seen, keys[0]))

        def decode(z: Array, y: Label) -> Distribution:
            return cast(Distribution, self.vae.decoder.apply(params["decoder"], _beside(z, self._one_hot(y)), keys[1]))

        return CVAE(Normal(zeros, jnp.ones_like(zeros)), encode, decode)

    def pixels(self, x: Array) -> Array:
        """Pixels as the networks read them, in [-1, 1]."""
        return x * self.vae.pixel_scale + self.vae.pixel_offset

    def loss(
        self,
        *,
        samples: int = 1,
        objective: Objective = objectives.elbo,
        binarise_dynamically_from: int | None = None,
    ) -> Callable[[PRNGKey, Params, Labelled], tuple[Scalar, Terms]]:
        """The negative bound on log p(x|y) in nats, averaged over a batch of images and labels, with its terms.

        Arguments as `vae.batch_loss`, which raises ValueError at the first batch; the objective is of one example.
        """

        def one(key: PRNGKey, params: Params, image: Array, label: Int[Array, ""]):
            loss = batch_loss(
                lambda params, key: conditional.given(self.bind(params, key), label),
                samples=samples,
                objective=objective,
                binarise_dynamically_from=binarise_dynamically_from,
            )
            return loss(key, params, image[None])

        def loss(key: PRNGKey, params: Params, batch: Labelled):
            images, labels = batch
            keys = jax.random.split(key, images.shape[0])
            return _means(jax.vmap(one, (0, None, 0, 0))(keys, params, images, labels))

        return loss

    def _one_hot(self, y: Label) -> Float[Array, " classes"]:
        return jax.nn.one_hot(y, self.classes)


class Classifier(nn.Module):
    """x -> q(y|x)."""

    body: MLP
    classes: int

    @nn.compact
    def __call__(self, x: Array, key: PRNGKey | None = None) -> Categorical:
        return Categorical(nn.Dense(self.classes, name="logits")(self.body(x.ravel(), key)))


class M2Networks(NamedTuple):
    """The networks of the semi-supervised model: a CVAE and a classifier. class_prior: p(y)."""

    cvae: CVAENetworks
    classifier: Classifier
    class_prior: Categorical

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: those of the CVAE and `"classifier"`."""
        key_cvae, key_classifier = jax.random.split(key)
        classifier = self.classifier.init(key_classifier, jnp.zeros(self.cvae.vae.image_shape))
        return {**self.cvae.init(key_cvae), "classifier": classifier}

    def bind(self, params: Params, dropout_key: PRNGKey | None = None) -> M2:
        """The model at these parameters; a key switches dropout on."""
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))

        def classify(x: Array) -> Categorical:
            return cast(Categorical, self.classifier.apply(params["classifier"], self.cvae.pixels(x), keys[1]))

        return M2(self.cvae.bind(params, keys[0]), self.class_prior, classify)

    def loss(
        self, *, labelled_share: int | float, alpha: int | float
    ) -> Callable[[PRNGKey, Params, tuple[Labelled, Array]], tuple[Scalar, Terms]]:
        """The negative semi-supervised objective per example, in nats, on a batch ((images, labels), images).

        labelled_share: the fraction ρ of the training examples that have a label. The objective is the mean over the
        training set of the labelled or unlabelled bound, plus α times the mean of log q(y|x) over the labelled ones:
        ρ E_l ℒ(x, y) + (1 - ρ) E_u 𝒰(x) + α E_l log q(y|x) (Kingma et al. 2014, eq. 9, divided by N; their α is
        0.1 N). α is not part of any bound. Raises ValueError unless 0 < ρ <= 1 and 0 <= α < ∞.
        """
        if not (0 < labelled_share <= 1 and 0 <= alpha < float("inf")):
            got = f"got {labelled_share} and {alpha}"
            raise ValueError(f"labelled_share must lie in (0, 1] and alpha be >= 0 and finite, {got}")

        def one(key: PRNGKey, params: Params, image: Array, label: Int[Array, ""], unlabelled: Array):
            key_dropout, key_labelled, key_unlabelled = jax.random.split(key, 3)
            known, summed, classifier = (self.bind(params, key) for key in jax.random.split(key_dropout, 3))
            x, u = image.astype(jnp.float32), unlabelled.astype(jnp.float32)
            terms = {
                "labelled": conditional.labelled_bound(key_labelled, known, x, label).total,
                "unlabelled": conditional.unlabelled_bound(key_unlabelled, summed, u).total,
                "log_q": classifier.classify(x).log_probs[label],
            }
            share = labelled_share
            objective = share * terms["labelled"] + (1 - share) * terms["unlabelled"] + alpha * terms["log_q"]
            return -objective, terms

        def batch_loss(key: PRNGKey, params: Params, batch: tuple[Labelled, Array]):
            (images, labels), unlabelled = batch
            keys = jax.random.split(key, images.shape[0])
            return _means(jax.vmap(one, (0, None, 0, 0, 0))(keys, params, images, labels, unlabelled))

        return batch_loss

    def supervised_loss(self) -> Callable[[PRNGKey, Params, Labelled], tuple[Scalar, Terms]]:
        """-log q(y|x) in nats, averaged over a labelled batch: the classifier on its own."""

        def one(key: PRNGKey, params: Params, image: Array, label: Int[Array, ""]):
            log_q = self.bind(params, key).classify(image.astype(jnp.float32)).log_probs[label]
            return -log_q, {"log_q": log_q}

        def batch_loss(key: PRNGKey, params: Params, batch: Labelled):
            images, labels = batch
            keys = jax.random.split(key, images.shape[0])
            return _means(jax.vmap(one, (0, None, 0, 0))(keys, params, images, labels))

        return batch_loss


def mlp_cvae(
    image_shape: tuple[int, ...],
    *,
    classes: int,
    likelihood: str,
    levels: int,
    latent_dim: int,
    hidden: Sequence[int],
    activation: str = "relu",
    dropout: float = 0.0,
) -> CVAENetworks:
    """A class-conditional VAE with multi-layer perceptrons; arguments and ValueError as `mlp_vae`, and classes >= 2."""
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    vae = mlp_vae(
        image_shape,
        likelihood=likelihood,
        levels=levels,
        latent_dim=latent_dim,
        hidden=hidden,
        activation=activation,
        dropout=dropout,
    )
    return CVAENetworks(vae, latent_dim, classes)


def mlp_m2(cvae: CVAENetworks, class_prior: Categorical, *, hidden: Sequence[int], dropout: float = 0.0) -> M2Networks:
    """The CVAE with a classifier of these hidden widths beside it."""
    return M2Networks(cvae, Classifier(MLP(tuple(hidden), "relu", dropout), cvae.classes), class_prior)


def _beside(x: Array, label: Float[Array, " classes"]) -> Array:
    return jnp.concatenate([x.ravel(), label.astype(x.dtype)])


def _means(values):
    return jax.tree.map(lambda v: v.mean(0), values)
