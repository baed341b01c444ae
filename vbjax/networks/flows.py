"""Networks that condition coupling flows: from the coordinates that stay, and features if there are any."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float

from vbjax.distributions.flows import CouplingFlow
from vbjax.types import Params, PRNGKey


class Conditioner(nn.Module):
    """(coordinates that stay, features) -> shift and raw log-scale of the others; at first both are zero.

    tanh bounds what far coordinates do to the others.
    """

    hidden: int
    moved: int

    @nn.compact
    def __call__(
        self, kept: Float[Array, " m"], features: Float[Array, " h"] | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        h = nn.Dense(self.hidden, name="kept")(kept)
        if features is not None:
            # a layer of its own: many draws of z share it
            h = h + nn.Dense(self.hidden, use_bias=False, name="features")(features)
        h = nn.tanh(nn.Dense(self.hidden, name="hidden")(nn.tanh(h)))
        shift, raw = jnp.split(nn.Dense(2 * self.moved, kernel_init=nn.initializers.zeros, name="moments")(h), 2)
        return shift, raw


@dataclasses.dataclass(frozen=True)
class CouplingNetworks:
    """A coupling flow on R^d before it has parameters; fresh ones make it the identity.

    dim: d, at least 2. layers: at least 2 for every coordinate to be moved. hidden: width of the conditioners' two
    hidden layers. Raises ValueError, naming the argument.
    """

    dim: int
    layers: int = 4
    hidden: int = 64

    def __post_init__(self):
        for name, least in (("dim", 2), ("layers", 1), ("hidden", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least} for a coupling flow, got {getattr(self, name)}")

    def init(self, key: PRNGKey, features: int | None = None) -> Params:
        """Fresh parameters, one entry for each layer; features: how many the conditioners read, None for none."""
        sizes = [self.dim // 2, self.dim - self.dim // 2]
        seen = None if features is None else jnp.zeros(features)
        keys = jax.random.split(key, self.layers)
        return {
            f"layer_{k}": self._conditioner(sizes[k % 2]).init(keys[k], jnp.zeros(sizes[k % 2]), seen)["params"]
            for k in range(self.layers)
        }

    def law(self, params: Params, base: object, features: Float[Array, " h"] | None = None) -> CouplingFlow:
        """The flow of a base law at these parameters."""
        return CouplingFlow(base, tuple(Partial(self, params[f"layer_{k}"], features) for k in range(self.layers)))

    def __call__(self, params: Params, features: Float[Array, " h"] | None, kept: Float[Array, " m"]):
        """One layer's conditioner. An object of equal fields is the same function to JAX, which a closure is not."""
        return self._conditioner(kept.shape[0]).apply({"params": params}, kept, features)

    def _conditioner(self, kept: int) -> Conditioner:
        # parent: these parameters belong to whoever holds them, not to a module that happens to be running
        return Conditioner(self.hidden, self.dim - kept, parent=None)
