"""Latent variables in levels: the KL of two hierarchies level by level, and the ladder's way to infer a level.

A model with levels is an ordinary `vae.VAE` whose prior and posteriors are `distributions.Hierarchy`s and whose z is a
tuple, top level first: bounds, importance weights and samples need to know nothing of it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import Distribution, Hierarchy, Normal
from vbjax.divergences import has_closed_form_kl, kl_divergence
from vbjax.types import Event, Scalar


def level_kls(q: Distribution, p: Distribution, z: Event) -> Float[Array, " levels"]:
    """KL(q‖p) of two hierarchies level by level, top first, in nats, at a draw z of q.

    Level 2 costs KL(q(z2)‖p(z2)), level 1 KL(q(z1|z2)‖p(z1|z2)) at the z2 drawn from *q*; the mean of their sum over q
    is the KL of the whole. Hierarchies may be nested, in the same way in both; other laws are one level. Source: the
    chain rule; Sønderby et al. (2016), section 2.
    """
    return jnp.stack(_chain(q, p, z))


def _chain(q: Distribution, p: Distribution, z: Event) -> list[Scalar]:
    if isinstance(q, Hierarchy) and isinstance(p, Hierarchy):
        above, below = z
        return _chain(q.first, p.first, above) + _chain(q.then(above), p.then(above), below)
    return [kl_at(q, p, z)]


def kl_at(q: Distribution, p: Distribution, z: Event) -> Scalar:
    """KL(q‖p) in nats, exact where it has a closed form; elsewhere log q(z) - log p(z), unbiased for a draw z of q."""
    return kl_divergence(q, p) if has_closed_form_kl(q, p) else q.log_prob(z) - p.log_prob(z)


def precision_weighted(evidence: Normal, prior: Normal) -> Normal:
    """The normal law ∝ evidence(z) prior(z): precisions add, means are weighted by them.

    So a ladder infers a level: what is seen from below meets what the generative path says from above (Sønderby et
    al. 2016, section 2.1).
    """
    # no inverse squares, which overflow
    slant = prior.scale / jnp.hypot(evidence.scale, prior.scale)
    return Normal(prior.loc + slant**2 * (evidence.loc - prior.loc), evidence.scale * slant)
