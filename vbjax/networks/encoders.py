"""Encoders beyond the diagonal one of `mlp`: full covariance, and a normalising flow.

Each holds a body and the dimension of z, and starts as a law with independent coordinates.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from vbjax.distributions import CouplingFlow, MultivariateNormal, Normal
from vbjax.networks.flows import CouplingNetworks
from vbjax.networks.heads import positive
from vbjax.networks.mlp import GaussianEncoder
from vbjax.types import PRNGKey

SCALE_FLOOR = 1e-4
"""Least standard deviation of a coordinate given those before it."""


class FullGaussianEncoder(nn.Module):
    """x -> N(loc, L Lᵀ), L = diag(scale) (I + strictly lower triangle)."""

    body: nn.Module
    latent_dim: int

    @nn.compact
    def __call__(self, x: Array, key: PRNGKey | None = None) -> MultivariateNormal:
        h = self.body(x.ravel(), key)
        d = self.latent_dim
        loc, raw_scale = jnp.split(nn.Dense(2 * d, name="moments")(h), 2)
        below = nn.Dense(d * (d - 1) // 2, kernel_init=nn.initializers.zeros, name="below_diagonal")(h)
        unit = jnp.eye(d, dtype=h.dtype).at[jnp.tril_indices(d, -1)].set(below)
        return MultivariateNormal(loc, positive(raw_scale, floor=SCALE_FLOOR)[:, None] * unit)


class FlowEncoder(nn.Module):
    """x -> a coupling flow of N(loc, diag(scale²)) whose layers read the features of x as well."""

    body: nn.Module
    latent_dim: int
    layers: int = 4
    hidden: int = 64

    @nn.compact
    def __call__(self, x: Array, key: PRNGKey | None = None) -> CouplingFlow:
        h = self.body(x.ravel(), key)
        loc, raw_scale = jnp.split(nn.Dense(2 * self.latent_dim, name="moments")(h), 2)
        flow = CouplingNetworks(self.latent_dim, self.layers, self.hidden)
        params = self.param("flow", flow.init, h.shape[0])
        return flow.law(params, Normal(loc, positive(raw_scale, floor=SCALE_FLOOR)), h)


ENCODERS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "diagonal": GaussianEncoder,
    "full": FullGaussianEncoder,
    "flow": FlowEncoder,
}
"""Posterior by name: `(body, dimension of z) -> encoder`, called as `(x, key)`."""
