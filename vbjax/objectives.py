"""What a VAE is trained for: functions of the ELBO's named terms, in nats, to be maximised.

An objective reads terms and no model, so that it serves one example, or the averages over a batch: averaging first
makes no difference to `elbo` and `beta_elbo`, and is how `capacity` and `free_bits` are defined. To warm up, build
the objective from the step: `beta_elbo(ramp(step, 1000))`. Bounds from several log-weights are in `bounds`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.types import Scalar

Weight = int | float | Scalar


class GroupedELBO(NamedTuple):
    """The ELBO by its terms, in nats, with its KL as a sum of groups: of coordinates of z, or of levels, top first."""

    reconstruction: Scalar
    kls: Float[Array, " groups"]

    @property
    def kl(self) -> Array:
        """KL of the whole z."""
        return self.kls.sum()

    @property
    def total(self) -> Array:
        """The bound itself."""
        return self.reconstruction - self.kl


Objective = Callable[[GroupedELBO], Scalar]


def elbo(terms: GroupedELBO) -> Scalar:
    """reconstruction - KL: a bound on log p(x), as the others are not."""
    return terms.total


def beta_elbo(beta: Weight) -> Objective:
    """reconstruction - β KL: β > 1 pays for every nat of the code, β < 1 is a warm-up (Higgins et al. 2017, eq. 4).

    Raises ValueError for a negative β.
    """
    _check_not_negative("beta", beta)
    return lambda terms: terms.reconstruction - beta * terms.kl


def capacity(target: Weight, *, gamma: Weight) -> Objective:
    """reconstruction - γ |KL - C|: the mean KL is held at C nats, which usually grows during training.

    Raises ValueError for a negative C or γ. Source: Burgess et al. (2018), section 5.
    """
    _check_not_negative("capacity", target)
    _check_not_negative("gamma", gamma)

    def objective(terms: GroupedELBO) -> Scalar:
        excess = terms.kl - target
        # |excess|, whose slope at zero is zero, as that of jnp.abs is not
        return terms.reconstruction - gamma * excess * jnp.sign(excess)

    return objective


def free_bits(free_nats: Weight) -> Objective:
    """reconstruction - Σ_j max(λ, KL_j): nothing is gained by squeezing a group's mean KL below λ nats.

    Raises ValueError for a negative λ. Source: Kingma et al. (2016), appendix C.8.
    """
    _check_not_negative("free_nats", free_nats)
    return lambda terms: terms.reconstruction - jnp.maximum(free_nats, terms.kls).sum()


def ramp(step: int | Int[Array, ""], steps: int) -> Scalar:
    """A line from 0 at step 0 to 1 at `steps`, and 1 from there on; 1 throughout for zero steps."""
    return jnp.minimum(jnp.asarray(step, float) / steps, 1.0) if steps else jnp.ones(())


def _check_not_negative(name: str, value: Weight) -> None:
    if not isinstance(value, jax.core.Tracer) and not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be zero or a positive number, got {value}")
