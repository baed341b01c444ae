"""A VAE with two levels of latents, inferred from the top down: start at `hierarchical_vae`.

The generative path is z_top -> z_bottom -> x. A ladder shares it: the posterior of z_bottom combines the law that the
path gives it with what the image says. Otherwise a network of its own reads z_top and the image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float

from vbjax.distributions import Distribution, Hierarchy, Normal
from vbjax.hierarchical import precision_weighted
from vbjax.networks.mlp import MLP, Decoder, GaussianEncoder, check_mlp
from vbjax.networks.vae import Loss, batch_loss, likelihood_head
from vbjax.types import Params, PRNGKey
from vbjax.vae import VAE

LEVELS = ("kl_top", "kl_bottom")
"""Names of the KL's groups."""


class HierarchicalVAENetworks(NamedTuple):
    """The networks of two levels before they have parameters.

    body: image -> features. top: features -> q(z_top|x). bottom: what the image says of z_bottom, from the features,
    and from z_top too unless `ladder`. generative: z_top -> p(z_bottom|z_top), at first N(0, I) whatever z_top, so that
    the model starts as a flat one; with a random start and no dropout in this path, z_top took nearly all of the KL.
    decoder: z_bottom -> p(x|z); if it saw z_top too, training would leave z_bottom empty.
    pixel_scale: the body sees `x * pixel_scale - 1`, in [-1, 1].
    """

    body: MLP
    top: GaussianEncoder
    bottom: GaussianEncoder
    generative: GaussianEncoder
    decoder: Decoder
    ladder: bool
    image_shape: tuple[int, ...]
    pixel_scale: float

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, by the names of the networks."""
        keys = jax.random.split(key, 5)
        z_top, z_bottom = jnp.zeros(self.top.latent_dim), jnp.zeros(self.bottom.latent_dim)
        features = jnp.zeros(self.body.hidden[-1])
        return {
            "body": self.body.init(keys[0], jnp.zeros(self.image_shape).ravel()),
            "top": self.top.init(keys[1], features),
            "bottom": self.bottom.init(keys[2], features if self.ladder else _beside(features, z_top)),
            "generative": self.generative.init(keys[3], z_top),
            "decoder": self.decoder.init(keys[4], z_bottom),
        }

    def bind(self, params: Params, dropout_key: PRNGKey | None = None) -> VAE:
        """The model at these parameters, whose z is (z_top, z_bottom).

        A key switches dropout on, with one mask of each network for all that it computes.
        """
        keys = [None] * 5 if dropout_key is None else list(jax.random.split(dropout_key, 5))
        key_body, key_top, key_bottom, key_generative, key_decoder = keys
        generative = Partial(self._generative, params["generative"], key_generative)

        def encode(x: Array) -> Hierarchy:
            features = cast(Array, self.body.apply(params["body"], x.ravel() * self.pixel_scale - 1, key_body))
            top = cast(Normal, self.top.apply(params["top"], features, key_top))
            return Hierarchy(top, Partial(self._posterior, params["bottom"], key_bottom, generative, features))

        def decode(z: tuple[Array, Array]) -> Distribution:
            return cast(Distribution, self.decoder.apply(params["decoder"], z[1], key_decoder))

        zeros = jnp.zeros(self.top.latent_dim)
        return VAE(Hierarchy(Normal(zeros, jnp.ones_like(zeros)), generative), encode, decode)

    def loss(self, **options: Any) -> Loss:
        """`networks.vae.batch_loss` of these networks; of one sample the KL of each level is a term."""
        return batch_loss(self.bind, groups=LEVELS, **options)

    def _generative(self, params: Params, key: PRNGKey | None, z_top: Array) -> Normal:
        return cast(Normal, self.generative.apply(params, z_top, _again(key)))

    def _posterior(
        self, params: Params, key: PRNGKey | None, generative: Partial, features: Array, z_top: Array
    ) -> Normal:
        seen = features if self.ladder else _beside(features, z_top)
        evidence = cast(Normal, self.bottom.apply(params, seen, _again(key)))
        return precision_weighted(evidence, generative(z_top)) if self.ladder else evidence


def hierarchical_vae(
    image_shape: tuple[int, ...],
    *,
    likelihood: str,
    levels: int,
    latent_dims: tuple[int, int],
    hidden: Sequence[int],
    hidden_top: Sequence[int] = (128,),
    inference: str = "ladder",
    activation: str = "relu",
    dropout: float = 0.0,
) -> HierarchicalVAENetworks:
    """A VAE with two levels of latents and multi-layer perceptrons.

    latent_dims: of (z_top, z_bottom). hidden: widths from the pixels inwards, which the decoder mirrors. hidden_top:
    widths of the networks between the levels. inference: "ladder" or "separate". The others, and ValueError, as
    `networks.vae.mlp_vae`. Source: Sønderby et al. (2016).
    """
    check_mlp(hidden, activation, dropout)
    check_mlp(hidden_top, activation, dropout)
    if inference not in ("ladder", "separate"):
        raise ValueError(f"inference must be ladder or separate, got {inference!r}")
    if len(latent_dims) != 2 or min(latent_dims) < 1:
        raise ValueError(f"latent_dims must be two dimensions of at least 1, top first, got {latent_dims}")
    head, white = likelihood_head(likelihood, image_shape, levels)
    hidden, between, (top, bottom) = tuple(hidden), MLP(tuple(hidden_top), activation, dropout), latent_dims
    return HierarchicalVAENetworks(
        body=MLP(hidden, activation, dropout),
        top=GaussianEncoder(between, top),
        bottom=GaussianEncoder(between, bottom),
        generative=GaussianEncoder(between, bottom, nn.initializers.zeros),
        decoder=Decoder(MLP(hidden[::-1], activation, dropout), head),
        ladder=inference == "ladder",
        image_shape=image_shape,
        pixel_scale=2 / white,
    )


def _beside(first: Float[Array, " m"], second: Float[Array, " n"]) -> Float[Array, " l"]:
    return jnp.concatenate([first, second])


def _again(key: PRNGKey | None) -> PRNGKey | None:
    """The same key, on purpose: a law that is asked for twice has one mask."""
    return None if key is None else jax.random.clone(key)
