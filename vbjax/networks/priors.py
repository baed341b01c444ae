"""Priors of z with parameters of their own: `init(key)` makes them, `law(params, encode)` binds them.

Only the standard one has a closed-form KL from a normal posterior; with the others, average log-weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import logit
from jaxtyping import Array, Float

from vbjax.distributions import CouplingFlow, Distribution, Mixture, Normal
from vbjax.networks.flows import CouplingNetworks
from vbjax.networks.heads import positive
from vbjax.types import Params, PRNGKey

Encode = Callable[[Array], Distribution]
"""`x -> q(z|x)` at the encoder's parameters."""

SCALE_FLOOR = 1e-3
"""Least standard deviation of a mixture's component."""


class Prior(Protocol):
    """A family of laws of z."""

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, which train along with the networks'."""
        ...

    def law(self, params: Params, encode: Encode) -> Distribution:
        """p(z) at these parameters; encode: without dropout, for priors that share the encoder."""
        ...


@dataclasses.dataclass(frozen=True)
class StandardPrior:
    """N(0, I), without parameters."""

    dim: int

    def init(self, key: PRNGKey) -> Params:
        """No parameters."""
        return {}

    def law(self, params: Params, encode: Encode) -> Normal:
        """N(0, I)."""
        return _standard(self.dim)


@dataclasses.dataclass(frozen=True)
class MixturePrior:
    """A mixture of normal laws with independent coordinates; weights, means and scales are learned."""

    dim: int
    components: int = 16

    def __post_init__(self):
        _check_components(self.components)

    def init(self, key: PRNGKey) -> Params:
        """Equal weights; the means are draws of N(0, I), so that no two components are alike."""
        shape = (self.components, self.dim)
        return {
            "logits": jnp.zeros(self.components),
            "loc": jax.random.normal(key, shape),
            "raw_scale": jnp.zeros(shape),
        }

    def law(self, params: Params, encode: Encode) -> Mixture:
        """The mixture."""
        return Mixture(params["logits"], Normal(params["loc"], positive(params["raw_scale"], floor=SCALE_FLOOR)))


@dataclasses.dataclass(frozen=True)
class VampPrior:
    """The mixture in equal parts of the encoder's posteriors at learned pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    image_shape: of one image. largest: value of a white pixel, in the units that the encoder reads; pseudo-inputs lie
    between 0 and this. components: how many of them.
    """

    image_shape: tuple[int, ...]
    largest: int | float
    components: int = 64

    def __post_init__(self):
        _check_components(self.components)

    def init(self, key: PRNGKey) -> Params:
        """Pixels drawn uniformly."""
        return {"pixel_logits": jax.random.logistic(key, (self.components, *self.image_shape))}

    def init_from(self, images: Float[Array, "k *shape"]) -> Params:
        """Parameters whose pseudo-inputs are these images (but for pixels at the ends), as many as there are
        components: a better start. Raises ValueError for another shape.
        """
        if images.shape != (self.components, *self.image_shape):
            raise ValueError(f"images must have shape {(self.components, *self.image_shape)}, got {images.shape}")
        return {"pixel_logits": logit(jnp.clip(images / self.largest, 0.02, 0.98))}

    def pseudo_inputs(self, params: Params) -> Float[Array, "k *shape"]:
        """The images that the encoder is applied to."""
        return self.largest * jax.nn.sigmoid(params["pixel_logits"])

    def law(self, params: Params, encode: Encode) -> Mixture:
        """The mixture of the posteriors, of whatever kind the encoder's are."""
        return Mixture(jnp.zeros(self.components), jax.vmap(encode)(self.pseudo_inputs(params)))


@dataclasses.dataclass(frozen=True)
class FlowPrior:
    """A coupling flow of N(0, I), which it is at first."""

    dim: int
    layers: int = 6
    hidden: int = 64

    def __post_init__(self):
        self._flow()

    def init(self, key: PRNGKey) -> Params:
        """Parameters of the identity."""
        return self._flow().init(key)

    def law(self, params: Params, encode: Encode) -> CouplingFlow:
        """The flow."""
        return self._flow().law(params, _standard(self.dim))

    def _flow(self) -> CouplingNetworks:
        return CouplingNetworks(self.dim, self.layers, self.hidden)


PRIORS: dict[str, Callable[[int, tuple[int, ...], int | float], Prior]] = {
    "standard": lambda dim, image_shape, largest: StandardPrior(dim),
    "mixture": lambda dim, image_shape, largest: MixturePrior(dim),
    "vamp": lambda dim, image_shape, largest: VampPrior(image_shape, largest),
    "flow": lambda dim, image_shape, largest: FlowPrior(dim),
}
"""Prior by name: `(dimension of z, image shape, value of a white pixel) -> prior`."""


def _standard(dim: int) -> Normal:
    return Normal(jnp.zeros(dim), jnp.ones(dim))


def _check_components(components: int) -> None:
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
