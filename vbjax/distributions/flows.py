"""Normalising flows: a simple law carried by invertible layers whose Jacobians are triangular.

`CouplingFlow` serves as posterior and as prior: what the layers are conditioned on is a matter of the callables that it
holds, which `networks.flows` makes of networks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions.family import Distribution, family, vmap_over
from vbjax.types import Nodes, Scalar

LOG_SCALE_LIMIT = 2.0
"""Largest |log-scale| of one layer: so a flow's log-density stays finite far outside of its draws, in float32."""


@family
class CouplingFlow(Distribution):
    """The law of f_n(… f_1(x)) for x of the base law; in each layer half of x says how the other half is scaled.

    base: a law on R^d, reparameterised if this one is to be. conditioners: one for each layer, a callable pytree such
    as `jax.tree_util.Partial(function, parameters)`, so that the parameters are leaves. It reads the coordinates that
    stay and returns (shift, raw log-scale) of the others: x ↦ x exp(limited(raw)) + shift. Layers 0, 2, … keep the
    first d // 2 coordinates, the others the rest.

    Both directions cost one pass, so log q of one's own draw, which every importance weight needs, costs what the draw
    did; an inverse autoregressive flow would read it coordinate by coordinate. Mean, variance and entropy have no
    closed form: `NotAvailable` (see `centre`). Raises TypeError for a conditioner that hides its parameters, ValueError
    for events that are no vectors. Source: Rezende & Mohamed (2015), eq. 6; Dinh et al. (2017), eq. 4 to 8.
    """

    base: Any
    conditioners: tuple[Any, ...]
    closed_form_entropy = False

    def __post_init__(self):
        if any(not callable(c) or any(callable(leaf) for leaf in jax.tree.leaves(c)) for c in self.conditioners):
            raise TypeError("CouplingFlow.conditioners must be callable pytrees: jax.tree_util.Partial(function, "
                            "parameters)")  # fmt: skip
        if len(self.event_shape) != 1:
            raise ValueError(f"CouplingFlow.base must have events of shape (d,), got {self.event_shape}")

    @property
    def reparameterised(self) -> bool:  # type: ignore[override]
        return self.base.reparameterised

    @property
    def event_shape(self):
        return self.base.event_shape

    def noise(self):
        return self.base.noise()

    def transport(self, noise):
        return self.forward(self.base.transport(noise))

    def inverse_transport(self, x):
        return self.base.inverse_transport(self.inverse(x)[0])

    def sample(self, key, shape=()):
        return vmap_over(shape, self.forward)(self.base.sample(key, shape))

    def log_prob(self, x):
        x, log_determinant = self.inverse(x)
        return self.base.log_prob(x) + log_determinant

    def nodes(self, order):
        points, weights, _ = self.base.nodes(order)
        return Nodes(jax.vmap(self.forward)(points), weights, exact=False)

    def centre(self) -> Float[Array, " d"]:
        """The image of the base's mean, which is not the flow's."""
        return self.forward(self.base.mean())

    def forward(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """f_n(… f_1(x))."""
        for layer, conditioner in enumerate(self.conditioners):
            kept, moved = _split(layer, x)
            shift, log_scale = _conditioned(conditioner, kept)
            x = _join(layer, kept, moved * jnp.exp(log_scale) + shift)
        return x

    def inverse(self, y: Float[Array, " d"]) -> tuple[Float[Array, " d"], Scalar]:
        """The x that `forward` carries to y, and log |∂x/∂y|."""
        log_determinant = jnp.zeros((), self.dtype)
        for layer, conditioner in reversed([*enumerate(self.conditioners)]):
            kept, moved = _split(layer, y)
            shift, log_scale = _conditioned(conditioner, kept)
            y = _join(layer, kept, (moved - shift) * jnp.exp(-log_scale))
            log_determinant -= log_scale.sum()
        return y, log_determinant


def _split(layer: int, x: Float[Array, " d"]) -> tuple[Array, Array]:
    """The coordinates that the layer keeps, and those that it moves."""
    first, rest = jnp.split(x, [x.shape[0] // 2])
    return (rest, first) if layer % 2 else (first, rest)


def _join(layer: int, kept: Array, moved: Array) -> Float[Array, " d"]:
    return jnp.concatenate([moved, kept] if layer % 2 else [kept, moved])


def _conditioned(conditioner: Any, kept: Array) -> tuple[Array, Array]:
    shift, raw = conditioner(kept)
    return shift, LOG_SCALE_LIMIT * jnp.tanh(raw / LOG_SCALE_LIMIT)
