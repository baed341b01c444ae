"""Linen modules bound to the callables of `vbjax.vae.VAE`: start at `mlp_vae` and `conv_vae`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from vbjax import bounds, objectives
from vbjax.datasets import dynamic_binarise
from vbjax.distributions import Distribution
from vbjax.networks.convolutional import ConvDecoderBody, ConvEncoderBody
from vbjax.networks.encoders import ENCODERS, FlowEncoder, FullGaussianEncoder
from vbjax.networks.heads import HEADS
from vbjax.networks.mlp import MLP, Decoder, GaussianEncoder, check_mlp
from vbjax.networks.priors import PRIORS, Prior
from vbjax.objectives import Objective
from vbjax.types import Bound, Params, PRNGKey, Scalar
from vbjax.vae import VAE, grouped_elbo, log_weights

Loss = Callable[[PRNGKey, Params, Array], tuple[Scalar, dict[str, Scalar]]]
Encoder = GaussianEncoder | FullGaussianEncoder | FlowEncoder


class VAENetworks(NamedTuple):
    """An encoder, a decoder and a prior before they have parameters.

    pixel_scale, pixel_offset: the encoder sees `x * scale + offset`, so that its input is in [-1, 1].
    """

    encoder: Encoder
    decoder: Decoder
    image_shape: tuple[int, ...]
    pixel_scale: float
    pixel_offset: float
    prior: Prior

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: `{"encoder": ..., "decoder": ..., "prior": ...}`."""
        key_encoder, key_decoder, key_prior = jax.random.split(key, 3)
        encoder = self.encoder.init(key_encoder, jnp.zeros(self.image_shape))
        decoder = self.decoder.init(key_decoder, jnp.zeros(self.encoder.latent_dim))
        return {"encoder": encoder, "decoder": decoder, "prior": self.prior.init(key_prior)}

    def bind(self, params: Params, dropout_key: PRNGKey | None = None) -> VAE:
        """The model at these parameters; a key switches dropout on, with one mask for all that it computes."""
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))

        def encoder(key: PRNGKey | None) -> Callable[[Array], Distribution]:
            def encode(x: Array) -> Distribution:
                pixels = x * self.pixel_scale + self.pixel_offset
                return cast(Distribution, self.encoder.apply(params["encoder"], pixels, key))

            return encode

        def decode(z: Array) -> Distribution:
            return cast(Distribution, self.decoder.apply(params["decoder"], z, keys[1]))

        return VAE(self.prior.law(params["prior"], encoder(None)), encoder(keys[0]), decode)

    def loss(self, **options: Any) -> Loss:
        """`batch_loss` of these networks."""
        return batch_loss(self.bind, **options)


def batch_loss(
    bind: Callable[[Params, PRNGKey | None], VAE],
    *,
    samples: int = 1,
    bound: Bound = bounds.iwae,
    objective: Objective = objectives.elbo,
    binarise_dynamically_from: int | None = None,
    groups: Sequence[str] = (),
    refine: Callable[[PRNGKey, VAE], VAE] | None = None,
) -> Loss:
    """The negative objective in nats over a batch of images `(n, *image_shape)`, with its terms.

    images: as the likelihood reads them (`heads.HEADS`). samples: 1 for an `objective` of the ELBO's terms, averaged
    over the batch first; K > 1 for a `bound` of K log-weights of each example. binarise_dynamically_from: grey levels
    of images that are turned into fresh random bits at every step; None takes the pixels as they are. groups: names
    of the KL's groups that become terms. refine: changes the model of one example, as `amortisation.semi_amortised`
    does. An objective that moves with the step is built inside of the loss:

        lambda key, params, batch: networks.loss(objective=beta_elbo(ramp(batch[1], 1000)))(key, params, batch[0])

    Raises ValueError for samples below one, and for an objective that several samples would leave unread.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if samples > 1 and objective is not objectives.elbo:
        raise ValueError(f"samples must be 1 for an objective of the ELBO's terms, got {samples}; use bound")

    def example(key: PRNGKey, params: Params, image: Array):
        key_bits, key_noise, key_dropout = jax.random.split(key, 3)
        if binarise_dynamically_from is not None:
            image = dynamic_binarise(key_bits, image, binarise_dynamically_from)
        x, vae = image.astype(jnp.float32), bind(params, key_dropout)
        if refine is not None:
            key_refine, key_noise = jax.random.split(key_noise)
            vae = refine(key_refine, vae)
        if samples > 1:
            return bound(log_weights(key_noise, vae, x, samples=samples))
        return grouped_elbo(key_noise, vae, x)

    def loss(key: PRNGKey, params: Params, images: Array):
        keys = jax.random.split(key, images.shape[0])
        mean = jax.tree.map(lambda v: v.mean(0), jax.vmap(example, (0, None, 0))(keys, params, images))
        if samples > 1:
            return -mean, {bound.__name__: mean}
        terms = {"reconstruction": mean.reconstruction, "kl": mean.kl}
        return -objective(mean), terms | dict(zip(groups, mean.kls, strict=False))

    return loss


def mlp_vae(
    image_shape: tuple[int, ...],
    *,
    likelihood: str,
    levels: int,
    latent_dim: int,
    hidden: Sequence[int],
    activation: str = "relu",
    dropout: float = 0.0,
    encoder: str = "diagonal",
    prior: str = "standard",
) -> VAENetworks:
    """A VAE with multi-layer perceptrons; the decoder mirrors the encoder.

    image_shape: of one image. likelihood: a key of `heads.HEADS`. levels: grey levels, at least 2; "bernoulli"
    reads bits, so it takes no other number. hidden: widths from the pixels inwards. encoder, prior: keys of
    `encoders.ENCODERS` and `priors.PRIORS`. Raises ValueError, naming the argument, for unknown names, for levels
    that the likelihood does not read, and for sizes below one.
    """
    check_mlp(hidden, activation, dropout)
    hidden = tuple(hidden)
    bodies = MLP(hidden, activation, dropout), MLP(hidden[::-1], activation, dropout)
    return _networks(image_shape, bodies, likelihood, levels, latent_dim, encoder, prior)


def conv_vae(
    image_shape: tuple[int, ...],
    *,
    likelihood: str,
    levels: int,
    latent_dim: int,
    features: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (256,),
    activation: str = "relu",
    groups: int | None = None,
    dropout: float = 0.0,
    encoder: str = "diagonal",
    prior: str = "standard",
) -> VAENetworks:
    """A VAE with convolutions, each stage of which halves the image; the decoder mirrors the encoder.

    features: channels of the stages, hidden: widths after them, both from the pixels inwards. groups: of GroupNorm;
    None leaves it out. The others, and ValueError, as `mlp_vae`.
    """
    features, hidden = tuple(features), tuple(hidden)
    shared = {"activation": activation, "groups": groups, "dropout": dropout}
    bodies = (
        ConvEncoderBody(image_shape, features, hidden=hidden, **shared),
        ConvDecoderBody(image_shape, features[::-1], stages=len(features), hidden=hidden[::-1], **shared),
    )
    return _networks(image_shape, bodies, likelihood, levels, latent_dim, encoder, prior)


def likelihood_head(likelihood: str, image_shape: tuple[int, ...], levels: int) -> tuple[nn.Module, int]:
    """The head by name, and the value of a white pixel as it reads it. ValueError as `mlp_vae`."""
    if likelihood not in HEADS:
        raise ValueError(f"likelihood must be one of {sorted(HEADS)}, got {likelihood!r}")
    head = HEADS[likelihood]
    if levels < 2 or (head.reads == "bits" and levels != 2):
        least = "2" if head.reads == "bits" else "at least 2"
        raise ValueError(f"levels must be {least} for likelihood {likelihood!r}, got {levels}")
    return head.build(image_shape, levels), 1 if head.reads == "unit interval" else levels - 1


def _networks(
    image_shape: tuple[int, ...],
    bodies: tuple[nn.Module, nn.Module],
    likelihood: str,
    levels: int,
    latent_dim: int,
    encoder: str,
    prior: str,
) -> VAENetworks:
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
    for name, choice, choices in (("encoder", encoder, ENCODERS), ("prior", prior, PRIORS)):
        if choice not in choices:
            raise ValueError(f"{name} must be one of {sorted(choices)}, got {choice!r}")
        if choice == "flow" and latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2 for {name} 'flow', got {latent_dim}")
    head, white = likelihood_head(likelihood, image_shape, levels)
    return VAENetworks(
        encoder=cast(Encoder, ENCODERS[encoder](bodies[0], latent_dim)),
        decoder=Decoder(bodies[1], head),
        image_shape=image_shape,
        pixel_scale=2 / white,
        pixel_offset=-1.0,
        prior=PRIORS[prior](latent_dim, image_shape, white),
    )
