"""What a denoising network is told beside its input: the noise level γ, a class label, the input's fine structure."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vbjax.types import Scalar

Label = int | Int[Array, ""] | None
"""A class from 0, or the number of classes or None for the null label, which stands for any class."""

_SLOWEST, _FASTEST = 1 / 16, 4.0
"""Radians per nat: over |γ| < 25 the slowest sine is monotone; the fastest tells levels a twentieth apart."""


class Conditioning(nn.Module):
    """(γ, label) -> features: sines and cosines of γ and a table of labels, through two layers.

    classes: 0 for a network without labels. Source: the embedding of Ho et al. (2020, appendix B), at γ, not at t; the
    null label of Ho and Salimans (2021).
    """

    width: int
    classes: int = 0

    @nn.compact
    def __call__(self, gamma: Scalar, label: Label = None) -> Float[Array, " width"]:
        h = nn.silu(nn.Dense(self.width)(sinusoids(gamma, self.width)))
        h = nn.Dense(self.width)(h)
        if self.classes:
            index = jnp.asarray(self.classes if label is None else label)
            h = h + nn.Embed(self.classes + 1, self.width, name="labels")(index).astype(h.dtype)
        return nn.silu(h)


def sinusoids(gamma: Scalar, width: int) -> Float[Array, " width"]:
    """Sines and cosines of γ at frequencies in geometric progression (Vaswani et al. 2017, section 3.5)."""
    angles = gamma * jnp.geomspace(_SLOWEST, _FASTEST, -(-width // 2), dtype=gamma.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])[:width]


def with_fourier_features(x: Float[Array, "h w c"], octaves: Sequence[int]) -> Float[Array, "h w c2"]:
    """The image beside sin(2^n π x) and cos(2^n π x), n in `octaves`: its grey levels, magnified (Kingma et al. 2021,
    appendix C).
    """
    waves = [wave(2.0**n * jnp.pi * x) for n in octaves for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], -1)


def check_label(label: Label, classes: int) -> None:
    """Raise ValueError for a label that a network of so many classes has not learned."""
    if label is None or isinstance(label, jax.core.Tracer):
        return
    if not classes:
        raise ValueError(f"label must be None: the network was built with classes=0, got {label}")
    if not 0 <= int(label) <= classes:
        raise ValueError(f"label must lie in 0 … {classes - 1}, or be {classes} or None for any class, got {label}")
