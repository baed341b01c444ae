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
from vbjax.distributions import Distribution, Hierarchy, Normal
from vbjax.divergences import kl_divergence
from vbjax.hierarchical import kl_at, level_kls
from vbjax.objectives import GroupedELBO
from vbjax.types import Event, PRNGKey


class VAE(NamedTuple):
    """prior: p(z). encode: x -> q(z|x). decode: z -> p(x|z). One example at a time; z is a tuple for a hierarchy."""

    prior: Distribution
    encode: Callable[[Array], Distribution]
    decode: Callable[[Event], Distribution]


def elbo(key: PRNGKey, vae: VAE, x: Array) -> bounds.ELBO:
    """A one-draw pathwise estimate of the ELBO of x by its terms, in nats.

    The reconstruction is one draw. The KL is exact where it has a closed form; for other posteriors and priors it is
    log q(z|x) - log p(z) at the same draw, unbiased, and may be negative. Source: Kingma & Welling (2014), eqs. 6, 7.
    """
    terms = grouped_elbo(key, vae, x)
    return bounds.ELBO(terms.reconstruction, terms.kl)


def grouped_elbo(key: PRNGKey, vae: VAE, x: Array) -> GroupedELBO:
    """`elbo` with its KL split: level by level for a hierarchy, by coordinate where posterior and prior are `Normal`.

    Any other KL is one group.
    """
    q = vae.encode(x)
    z = q.transport(q.noise().sample(key))
    if isinstance(q, Hierarchy):
        kls = level_kls(q, vae.prior, z)
    elif isinstance(q, Normal) and isinstance(vae.prior, Normal) and q.event_shape:
        kls = jax.vmap(kl_divergence)(q, vae.prior)
    else:
        kls = kl_at(q, vae.prior, z)[None]
    return GroupedELBO(vae.decode(z).log_prob(x), kls)


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


def code(vae: VAE, x: Array) -> Event:
    """The point that stands for q(z|x): its mean; for a flow the image of its base's mean; level by level downwards."""
    return _centre(vae.encode(x))


def _centre(law: Distribution) -> Event:
    if isinstance(law, Hierarchy):
        above = _centre(law.first)
        return above, _centre(law.then(above))
    return law.centre()


def reconstruct(vae: VAE, x: Array) -> Array:
    """The centre of the decoder's law at the code of x: its mean, where it has one."""
    return vae.decode(code(vae, x)).centre()


def generate(key: PRNGKey, vae: VAE) -> tuple[Array, Array]:
    """Ancestral sampling of one example: a draw of z from the prior, then (x drawn from p(x|z), the centre of p(x|z)).

    The draw has the model's law; the centre, mostly a mean, is what papers show, and its law is not the model's.
    """
    key_latent, key_pixels = jax.random.split(key)
    law = vae.decode(vae.prior.sample(key_latent))
    return law.sample(key_pixels), law.centre()


def latent_traversal(vae: VAE, x: Array, *, reach: float = 2.5, steps: int = 9) -> Float[Array, "dim steps *pixels"]:
    """Decoded centres while one latent coordinate at a time goes from -reach to reach, the others at x's code."""
    centre = code(vae, x)
    values = jnp.linspace(-reach, reach, steps)

    def decoded(coordinate, value):
        return vae.decode(centre.at[coordinate].set(value)).centre()

    return jax.vmap(jax.vmap(decoded, (None, 0)), (0, None))(jnp.arange(centre.shape[0]), values)
