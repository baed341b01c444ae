"""Multi-layer perceptrons on one example, with dropout whose key is an argument."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.distributions import Normal
from vbjax.types import PRNGKey

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "leaky_relu": jax.nn.leaky_relu,
}


class MLP(nn.Module):
    """Hidden layers only: `Dense -> activation -> dropout` for each width."""

    hidden: Sequence[int]
    activation: str = "relu"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, " d"], key: PRNGKey | None = None) -> Float[Array, " h"]:
        """key: draws the dropout mask; None switches dropout off."""
        keys = [None] * len(self.hidden) if key is None else jax.random.split(key, len(self.hidden))
        for width, layer_key in zip(self.hidden, keys, strict=True):
            x = ACTIVATIONS[self.activation](nn.Dense(width)(x))
            if self.dropout and layer_key is not None:
                x = nn.Dropout(self.dropout, deterministic=False)(x, rng=layer_key)
        return x


def check_mlp(hidden: Sequence[int], activation: str, dropout: float) -> None:
    """Raise ValueError, naming the argument, for what cannot be an `MLP` of at least one layer."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must be one or more widths of at least 1, got {tuple(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


class GaussianEncoder(nn.Module):
    """x -> N(loc, diag(scale²)) on the latent space; body: called as `(x, key)`.

    kernel_init: of the last layer; with zeros a fresh one answers N(0, I) whatever x is.
    """

    body: nn.Module
    latent_dim: int
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, key: PRNGKey | None = None) -> Normal:
        h = self.body(x.ravel(), key)
        loc, log_variance = jnp.split(nn.Dense(2 * self.latent_dim, kernel_init=self.kernel_init, name="moments")(h), 2)
        return Normal(loc, jnp.exp(0.5 * log_variance))


class Decoder(nn.Module):
    """z -> p(x|z): a body and a likelihood head (`networks.heads`)."""

    body: nn.Module
    head: nn.Module

    def __call__(self, z: Float[Array, " dim"], key: PRNGKey | None = None):
        return self.head(self.body(z, key))
