"""The variational auto-encoder as three callables, with its bounds for one example.

A `VAE` may be a trained network, a linear model with an exact answer, or a student's function: the mathematics sees
`encode`, `decode` and a prior, and no parameters. `networks.vae` binds Linen modules to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.distributions import Distribution
from vbjax.types import PRNGKey


class VAE(NamedTuple):
    """prior: p(z). encode: x -> q(z|x). decode: z -> p(x|z). One example at a time."""

    prior: Distribution
    encode: Callable[[Array], Distribution]
    decode: Callable[[Array], Distribution]


def elbo(key: PRNGKey, vae: VAE, x: Array) -> bounds.ELBO:
    """A one-draw pathwise estimate of the ELBO of x by its terms, in nats.

    The KL is exact, the reconstruction is one draw (Kingma & Welling 2014, eq. 7).
    """
    q = vae.encode(x)
    z = q.transport(q.noise().sample(key))
    return bounds.elbo(lambda z: vae.decode(z).log_prob(x), q, vae.prior, z)


def log_weights(key: PRNGKey, vae: VAE, x: Array, *, samples: int) -> Float[Array, " k"]:
    """log p(x, z_k) - log q(z_k|x) at K draws z_k of q(z|x), in nats; feed them to any of `bounds`.

    The draws carry a gradient where q is reparameterised; for other laws use `estimators`.
    """
    q = vae.encode(x)
    if q.capabilities.reparameterised:
        z = jax.vmap(q.transport)(q.noise().sample(key, (samples,)))
    else:
        z = q.sample(key, (samples,))
    return jax.vmap(bounds.LogWeight(lambda z: vae.decode(z).log_prob(x), vae.prior, q))(z)


def reconstruct(vae: VAE, x: Array) -> Array:
    """The decoder's mean at the encoder's mean."""
    return vae.decode(vae.encode(x).mean()).mean()


def generate(key: PRNGKey, vae: VAE) -> tuple[Array, Array]:
    """Ancestral sampling of one example: a draw of z from the prior, then (x drawn from p(x|z), the mean of p(x|z)).

    The draw has the model's law; the mean is what papers show, and its law is not the model's.
    """
    key_latent, key_pixels = jax.random.split(key)
    law = vae.decode(vae.prior.sample(key_latent))
    return law.sample(key_pixels), law.mean()


def latent_traversal(vae: VAE, x: Array, *, reach: float = 2.5, steps: int = 9) -> Float[Array, "dim steps *pixels"]:
    """Decoded means while one latent coordinate at a time goes from -reach to reach, the others at x's code."""
    code = vae.encode(x).mean()
    values = jnp.linspace(-reach, reach, steps)

    def decoded(coordinate, value):
        return vae.decode(code.at[coordinate].set(value)).mean()

    return jax.vmap(jax.vmap(decoded, (None, 0)), (0, None))(jnp.arange(code.shape[0]), values)
