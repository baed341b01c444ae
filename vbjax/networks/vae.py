"""Linen modules bound to the callables of `vbjax.vae.VAE`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vbjax import bounds
from vbjax.datasets import dynamic_binarise
from vbjax.distributions import Distribution, Normal
from vbjax.networks.heads import HEADS
from vbjax.networks.mlp import ACTIVATIONS, MLP, Decoder, GaussianEncoder
from vbjax.types import Params, PRNGKey, Scalar
from vbjax.vae import VAE, elbo, log_weights

Loss = Callable[[PRNGKey, Params, Array], tuple[Scalar, dict[str, Scalar]]]


class VAENetworks(NamedTuple):
    """An encoder and a decoder with a standard normal prior, before they have parameters.

    pixel_scale, pixel_offset: the encoder sees `x * scale + offset`, so that its input is in [-1, 1].
    """

    encoder: GaussianEncoder
    decoder: Decoder
    image_shape: tuple[int, ...]
    pixel_scale: float
    pixel_offset: float

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters: `{"encoder": ..., "decoder": ...}`."""
        key_encoder, key_decoder = jax.random.split(key)
        encoder = self.encoder.init(key_encoder, jnp.zeros(self.image_shape))
        decoder = self.decoder.init(key_decoder, jnp.zeros(self.encoder.latent_dim))
        return {"encoder": encoder, "decoder": decoder}

    def bind(self, params: Params, dropout_key: PRNGKey | None = None) -> VAE:
        """The model at these parameters; a key switches dropout on, with one mask for all that it computes."""
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        zeros = jnp.zeros(self.encoder.latent_dim)

        def encode(x: Array) -> Normal:
            pixels = x * self.pixel_scale + self.pixel_offset
            return cast(Normal, self.encoder.apply(params["encoder"], pixels, keys[0]))

        def decode(z: Array) -> Distribution:
            return cast(Distribution, self.decoder.apply(params["decoder"], z, keys[1]))

        return VAE(Normal(zeros, jnp.ones_like(zeros)), encode, decode)

    def loss(self, *, samples: int = 1, binarise_dynamically_from: int | None = None) -> Loss:
        """The negative bound in nats, averaged over a batch of images `(n, *image_shape)`, with its terms.

        images: as the likelihood reads them (`heads.HEADS`). samples: 1 for the ELBO with its exact KL, K > 1 for the
        IWAE bound. binarise_dynamically_from: grey levels of images that are turned into fresh random bits at every
        step; None takes the pixels as they are. Raises ValueError for samples below one.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")

        def one(key: PRNGKey, params: Params, image: Array):
            key_bits, key_noise, key_dropout = jax.random.split(key, 3)
            if binarise_dynamically_from is not None:
                image = dynamic_binarise(key_bits, image, binarise_dynamically_from)
            x = image.astype(jnp.float32)
            vae = self.bind(params, key_dropout if self.encoder.body.dropout else None)
            if samples > 1:
                bound = bounds.iwae(log_weights(key_noise, vae, x, samples=samples))
                return -bound, {"iwae": bound}
            terms = elbo(key_noise, vae, x)
            return -terms.total, {"reconstruction": terms.reconstruction, "kl": terms.kl}

        def batch_loss(key: PRNGKey, params: Params, images: Array):
            keys = jax.random.split(key, images.shape[0])
            return jax.tree.map(lambda v: v.mean(0), jax.vmap(one, (0, None, 0))(keys, params, images))

        return batch_loss


def mlp_vae(
    image_shape: tuple[int, ...],
    *,
    likelihood: str,
    levels: int,
    latent_dim: int,
    hidden: Sequence[int],
    activation: str = "relu",
    dropout: float = 0.0,
) -> VAENetworks:
    """A VAE with multi-layer perceptrons; the decoder mirrors the encoder.

    image_shape: of one image. likelihood: a key of `heads.HEADS`. levels: grey levels, at least 2; "bernoulli"
    reads bits, so it takes no other number. hidden: widths from the pixels inwards. Raises ValueError, naming the
    argument, for unknown names, for levels that the likelihood does not read, and for sizes below one.
    """
    if likelihood not in HEADS:
        raise ValueError(f"likelihood must be one of {sorted(HEADS)}, got {likelihood!r}")
    head = HEADS[likelihood]
    if levels < 2 or (head.reads == "bits" and levels != 2):
        least = "2" if head.reads == "bits" else "at least 2"
        raise ValueError(f"levels must be {least} for likelihood {likelihood!r}, got {levels}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    if latent_dim < 1 or not hidden or min(hidden) < 1:
        raise ValueError(f"latent_dim and hidden widths must be at least 1, got {latent_dim} and {tuple(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    hidden = tuple(hidden)
    return VAENetworks(
        encoder=GaussianEncoder(MLP(hidden, activation, dropout), latent_dim),
        decoder=Decoder(MLP(hidden[::-1], activation, dropout), head.build(image_shape, levels)),
        image_shape=image_shape,
        pixel_scale=2.0 if head.reads == "unit interval" else 2 / (levels - 1),
        pixel_offset=-1.0,
    )
