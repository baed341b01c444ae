"""A VAE with discrete latents, trained with any gradient estimator: the set-up of the literature on estimators.

`DiscreteVAENetworks.loss` turns an estimator into a training loss; what the estimator learns travels with the
parameters, under "estimator" (see `training.carry`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.datasets import dynamic_binarise
from vbjax.distributions import Bernoulli, Distribution, OneHotCategorical
from vbjax.distributions.discrete import logit
from vbjax.divergences import kl_divergence
from vbjax.estimators.estimate import inject
from vbjax.networks.heads import BernoulliHead
from vbjax.networks.mlp import MLP
from vbjax.networks.vae import Loss
from vbjax.types import GradientEstimator, Params, PRNGKey, Problem, stop_gradient
from vbjax.vae import VAE

Latents = Literal["bernoulli", "categorical"]
_LAWS = {"bernoulli": Bernoulli, "categorical": OneHotCategorical}


class DiscreteEncoder(nn.Module):
    """x -> logits of the latents; no hidden layer makes it linear."""

    body: MLP
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(int(np.prod(self.shape)), name="logits")(self.body(x.ravel())).reshape(self.shape)


class DiscreteDecoder(nn.Module):
    """z -> p(x|z), independent bits; no hidden layer makes it linear."""

    body: MLP
    head: BernoulliHead

    def __call__(self, z: Array) -> Bernoulli:
        return self.head(self.body(2 * z.ravel() - 1))


class DiscreteVAENetworks(NamedTuple):
    """Encoder, decoder and a learned factorised prior; images are bits.

    latents: "bernoulli" with shape `(d,)`, or "categorical" with shape `(d, k)`, one-hot. pixel_mean: of the training
    bits; the encoder sees deviations from it, and the decoder starts at it.
    """

    encoder: DiscreteEncoder
    decoder: DiscreteDecoder
    latents: Latents
    pixel_mean: Float[np.ndarray, "*shape"]

    def init(self, key: PRNGKey, estimator: GradientEstimator | None = None) -> Params:
        """Fresh parameters: encoder, decoder, prior, and the estimator's state, which trains along."""
        key_encoder, key_decoder = jax.random.split(key)
        decoder = self.decoder.init(key_decoder, jnp.zeros(self.encoder.shape))
        mean = np.clip(self.pixel_mean, 0.001, 0.999).ravel()
        decoder["params"]["head"]["parameters"]["bias"] = jnp.asarray(logit(jnp.asarray(mean, jnp.float32)))
        params = {
            "encoder": self.encoder.init(key_encoder, jnp.zeros(self.pixel_mean.shape)),
            "decoder": decoder,
            "prior": jnp.zeros(self.encoder.shape),
        }
        q = self.bind(params).encode(jnp.zeros(self.pixel_mean.shape))
        return params | {"estimator": () if estimator is None else estimator.init(q)}

    def bind(self, params: Params) -> VAE:
        """The model at these parameters."""
        law = _LAWS[self.latents]

        def encode(x: Array) -> Distribution:
            centred = x - jnp.asarray(self.pixel_mean, x.dtype)
            return law(cast(Array, self.encoder.apply(params["encoder"], centred)))

        def decode(z: Array) -> Distribution:
            return cast(Distribution, self.decoder.apply(params["decoder"], z))

        return VAE(law(params["prior"]), encode, decode)

    def problem(self, x: Array, *, bound: bounds.Bound = bounds.mean) -> Problem:
        """The bound on log p(x) as an estimation problem: parameters -> (q(z|x), f).

        For the mean f is log p(x|z) - KL(q‖prior), whose KL is exact and which also reads relaxed z; other bounds
        need the log-weights themselves.
        """

        def problem(params: Params):
            vae = self.bind(params)
            q = vae.encode(x)

            def log_likelihood(z):
                return vae.decode(z).log_prob(x)

            if bound is not bounds.mean:
                return q, bounds.LogWeight(log_likelihood, vae.prior, q)
            kl = kl_divergence(q, vae.prior)
            return q, lambda z: log_likelihood(z) - kl

        return problem

    def loss(self, estimator: GradientEstimator, *, levels: int, bound: bounds.Bound = bounds.mean) -> Loss:
        """The negative bound in nats by a gradient estimator, averaged over a batch of images of `levels` grey levels,
        which become fresh random bits at every step.

        The estimator's state is updated after use: its "gradient" is the old state minus the new one, averaged over
        the batch, so that plain descent of rate one carries it (`training.carry`).
        """

        def one(key: PRNGKey, params: Params, image: Array):
            key_bits, key_noise = jax.random.split(key)
            x = dynamic_binarise(key_bits, image, levels).astype(jnp.float32)
            q, f = self.problem(x, bound=bound)(params)
            state = stop_gradient(params["estimator"])
            noise = estimator.noise(q).sample(key_noise)
            value = estimator.surrogate(state, noise, f, q)
            after = estimator.update(state, noise, f, q)
            step = jax.tree.map(lambda old, new: old - new, state, stop_gradient(after))
            return -value + inject(params["estimator"], step, estimator=estimator.spec.name), {"bound": value}

        def batch_loss(key: PRNGKey, params: Params, images: Array):
            keys = jax.random.split(key, images.shape[0])
            return jax.tree.map(lambda v: v.mean(0), jax.vmap(one, (0, None, 0))(keys, params, images))

        return batch_loss


def discrete_vae(
    pixel_mean: Float[np.ndarray, "*shape"],
    *,
    latents: Latents = "bernoulli",
    latent_shape: tuple[int, ...] = (200,),
    hidden: Sequence[int] = (),
) -> DiscreteVAENetworks:
    """A VAE with Bernoulli or categorical latents; `hidden=()` is the linear model of the literature.

    pixel_mean: of the training bits. latent_shape: `(d,)` for "bernoulli", `(d, k)` for "categorical". hidden: widths
    of the encoder, which the decoder mirrors. Raises ValueError, naming the argument.
    """
    if latents not in _LAWS:
        raise ValueError(f"latents must be one of {sorted(_LAWS)}, got {latents!r}")
    wanted, axes, least = {"bernoulli": ("(d,)", 1, 1), "categorical": ("(d, k) with k >= 2", 2, 2)}[latents]
    if len(latent_shape) != axes or min(latent_shape, default=0) < 1 or latent_shape[-1] < least:
        raise ValueError(f"latent_shape must be {wanted} for {latents} latents, got {latent_shape}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden widths must be at least 1, got {tuple(hidden)}")
    hidden = tuple(hidden)
    return DiscreteVAENetworks(
        encoder=DiscreteEncoder(MLP(hidden, "leaky_relu"), latent_shape),
        decoder=DiscreteDecoder(MLP(hidden[::-1], "leaky_relu"), BernoulliHead(pixel_mean.shape)),
        latents=latents,
        pixel_mean=pixel_mean,
    )
