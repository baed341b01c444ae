"""Decoders p(x|x_1), the last step of a diffusion model: a density, or probabilities of integer pixels, exact.

A decoder maps (x_1, γ_1) to the law of x as it is stored. `discretised_decoder` is that of Ho et al. (2020), by the
network's x̂_0; `levels_decoder` that of Kingma et al. (2021), which needs none.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.diffusion.process import Denoiser, Variance, forward_variance, noise, signal
from vbjax.distributions import Categorical, DiscretisedNormal, Distribution, Normal
from vbjax.types import Scalar

Decoder = Callable[[Float[Array, "*d"], Scalar], Distribution]
"""`(x_1, γ_1) -> p(x | x_1)`."""

PixelLaw = Callable[[Float[Array, "*d"], Scalar], Categorical]
"""`(x_t, γ_t) -> p(x | x_t)`, pixel by pixel, over the integer levels of the data as stored: a decoder for any t."""


def normal_decoder(denoiser: Denoiser, variance: Variance = forward_variance) -> Decoder:
    """p(x_0|x_1) = N(x̂_0, variance): for data that are real numbers, where the embedding is the identity.

    variance: at γ_s = -∞; by default σ_1².
    """
    return lambda x_1, gamma_1: _normal_around(denoiser, variance, x_1, gamma_1)


def discretised_decoder(denoiser: Denoiser, *, levels: int, variance: Variance = forward_variance) -> Decoder:
    """The normal law around x̂_0, integrated over each grey level's bin (Ho et al. 2020, eq. 13).

    levels: pixels are 0 … levels-1, embedded in [-1, 1] by `embed_levels`. variance: at γ_s = -∞; by default σ_1².
    """

    def decode(x_1, gamma_1):
        law = _normal_around(denoiser, variance, x_1, gamma_1)
        return DiscretisedNormal(law.loc, law.scale, levels)

    return decode


def levels_decoder(*, levels: int, log_frequencies: Float[Array, "*d levels"] | None = None) -> PixelLaw:
    """p(x|x_1) ∝ N(x_1; α_1 embed(x), σ_1²) p(x), pixel by pixel and without a network: exact for independent pixels.

    log_frequencies: of p(x), by default uniform; up to a constant for each pixel, `(*d, levels)` or what broadcasts.
    Source: Kingma et al. (2021, section 3.3).
    """
    _require_levels(levels)

    def decode(x_1, gamma_1):
        grid = embed_levels(jnp.arange(levels, dtype=x_1.dtype), levels=levels)
        grid = jnp.expand_dims(grid, tuple(range(x_1.ndim)))
        # divided before it is squared: σ⁴ in the gradient would vanish long before σ
        logits = -0.5 * ((x_1[..., None] - signal(gamma_1) * grid) / noise(gamma_1)) ** 2
        return Categorical(logits if log_frequencies is None else logits + log_frequencies)

    return decode


def embed_levels(x: Array, *, levels: int) -> Float[Array, "*d"]:
    """Pixels 0 … levels-1 as the points 2x/(levels-1) - 1 of [-1, 1]; ValueError unless there are two levels."""
    _require_levels(levels)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
    return 2 * x / (levels - 1) - 1


def _normal_around(denoiser, variance, x_1, gamma_1) -> Normal:
    scale = jnp.sqrt(variance(x_1, jnp.full_like(gamma_1, -jnp.inf), gamma_1))
    return Normal(denoiser(x_1, gamma_1), jnp.broadcast_to(scale, x_1.shape))


def _require_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
