"""How many numbers a fitted model was free to choose: what AIC and BIC charge for."""

import jax.numpy as jnp

from vbjax.distributions import Bernoulli, Categorical, MultivariateNormal, Normal
from vbjax.em.factor_models import FactorModel
from vbjax.em.mixtures import MixtureModel


def free_parameters(model: MixtureModel | FactorModel) -> int:
    """The number of free numbers of a fitted model, its directions without effect (rotations of z) left out.

    The leaves' shapes do not tell a tied covariance from several, a sphere from a diagonal, or PPCA from factor
    analysis; their values do: scales equal in every component, in every coordinate, or a noise equal in every
    coordinate count once. Weights always count k - 1, and the fixed scale of `soft_k_means` as free. Raises ValueError
    for components of other laws. Source: Bishop (2006), sections 9.2 and 12.2.
    """
    if isinstance(model, FactorModel):
        d, q = model.loadings.shape
        return d + d * q - q * (q - 1) // 2 + (1 if _equal(model.noise, 0) else d)
    return model.logits.shape[0] - 1 + _of_components(model.components)


def _of_components(laws: object) -> int:
    if isinstance(laws, MultivariateNormal):
        k, d = laws.loc.shape
        return k * d + (1 if _equal(laws.scale_tril, 0) else k) * d * (d + 1) // 2
    if isinstance(laws, Normal):
        k, d = laws.loc.shape
        return k * d + k * (1 if _equal(laws.scale, 1) else d)
    if isinstance(laws, Bernoulli):
        return laws.logits.size
    if isinstance(laws, Categorical):
        return laws.logits.size // laws.logits.shape[-1] * (laws.logits.shape[-1] - 1)
    raise ValueError(f"components must be normal, Bernoulli or Categorical, got {type(laws).__name__}; count your own")


def _equal(values, axis: int) -> bool:
    return bool(jnp.all(values == jnp.take(values, jnp.asarray([0]), axis)))
