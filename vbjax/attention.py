"""Scaled dot-product attention of one sequence, and why its logits are scaled. Start at `attention`.

A query looks at all keys and takes the mean of their values under a softmax: an index that has a derivative. Heads and
examples are `jax.vmap` outside; the networks are in `vbjax.networks.transformer`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vbjax.types import Scalar

Mask = Bool[Array, "n m"]
"""Whether query i may look at key j."""

_NODES, _FURTHEST = 256, 13.0
"""Of the quadrature over w: w / sinh(πw) is 1e-17 of its largest value at the last node."""


def attention(
    queries: Float[Array, "n d"], keys: Float[Array, "m d"], values: Float[Array, "m c"], mask: Mask | None = None
) -> Float[Array, "n c"]:
    """softmax(QKᵀ/√d) V: for each query, a mean of the values.

    mask: `(n, m)`, True where the query may look at the key, None for everywhere; a query that may look at no key gets
    zeros, and passes no gradient. Raises ValueError, naming the argument, where shapes do not fit. Source: Vaswani et
    al. (2017, eq. 1).
    """
    weights = attention_weights(queries, keys, mask)
    if values.ndim != 2 or values.shape[0] != keys.shape[0]:
        raise ValueError(f"values must be ({keys.shape[0]}, c), one for each key, got shape {values.shape}")
    return weights.astype(values.dtype) @ values


def attention_weights(
    queries: Float[Array, "n d"], keys: Float[Array, "m d"], mask: Mask | None = None
) -> Float[Array, "n m"]:
    """softmax(QKᵀ/√d), a law over the keys for each query, in float32 or better.

    mask, and ValueError, as `attention`; a row whose keys are all masked is zero. Finite wherever QKᵀ is, in that type.
    """
    logits = attention_logits(queries, keys)
    if mask is not None and (mask.shape != logits.shape or mask.dtype != bool):
        raise ValueError(f"mask must be Boolean, of shape {logits.shape}, got {mask.dtype} {mask.shape}")
    return jax.nn.softmax(logits, where=mask)


def attention_logits(queries: Float[Array, "n d"], keys: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """QKᵀ/√d, of unit variance if the entries of q and k are independent, of mean zero and variance one.

    Summed and returned in float32 or better, whatever the type of q and k. Raises ValueError, naming the argument,
    where shapes do not fit. Source: Vaswani et al. (2017, section 3.2.1).
    """
    if queries.ndim != 2 or queries.shape[1] < 1:
        raise ValueError(
            f"queries must be one sequence (n, d), got shape {queries.shape}: vmap over heads and examples"
        )
    if keys.ndim != 2 or keys.shape[1] != queries.shape[1]:
        raise ValueError(f"keys must be (m, {queries.shape[1]}), as wide as the queries, got shape {keys.shape}")
    precise = queries.dtype if jnp.finfo(queries.dtype).bits >= 32 else jnp.float32
    return jnp.matmul(queries, keys.T, preferred_element_type=precise) / math.sqrt(queries.shape[1])


def causal_mask(length: int) -> Bool[Array, "n n"]:
    """True where the key is the query's own or an earlier one: no position sees its future."""
    return jnp.tri(length, dtype=bool)


def sinusoidal_positions(length: int, width: int) -> Float[Array, "n d"]:
    """Row t: sin(t/λ_i) and cos(t/λ_i) by turns, λ_i in geometric progression from 1 to nearly 10,000.

    A shift by k rotates each pair, whatever t. Raises ValueError unless both arguments are at least 1. Source: Vaswani
    et al. (2017, section 3.5).
    """
    if length < 1 or width < 1:
        raise ValueError(f"length and width must be at least 1, got {length} and {width}")
    rates = jnp.exp(-math.log(10_000) * jnp.arange(0.0, width, 2) / width)
    angles = jnp.arange(length, dtype=rates.dtype)[:, None] * rates[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(length, -1)[:, :width]


def softmax_jacobian(logits: Float[Array, " n"]) -> Float[Array, "n n"]:
    """diag(p) - ppᵀ for p = softmax(logits), accurate where a p is all but 1; rows sum to zero."""
    p = jax.nn.softmax(logits)
    off = jnp.fill_diagonal(-jnp.outer(p, p), 0, inplace=False)
    return off - jnp.diag(off.sum(1))


def two_key_slope(width: int, *, divisor: int | float) -> Scalar:
    """E p(1 - p), the mean slope of a softmax over two keys whose logits are q·k / divisor.

    The `width` entries of the query and of the keys are independent and standard normal. Exact to rounding:
    ∫₀^∞ w / sinh(πw) (1 + 2w²/c²)^(-d/2) dw, from the logistic law's characteristic function. Raises ValueError unless
    width >= 1 and divisor >= 1e-15 √width, below which the nodes are too few. Vaswani et al. (2017, section 3.2.1)
    suspect in words what it says.
    """
    if width < 1 or not 1e-15 * math.sqrt(width) <= divisor < math.inf:
        raise ValueError(f"width must be at least 1 and divisor at least 1e-15 √width, got {width} and {divisor}")
    d, c = jnp.asarray(width, float), jnp.asarray(divisor, float)
    # w = s sinh u spreads the nodes over both scales, the integrand's own s and the tail's, and is even in u
    s = jnp.minimum(c / jnp.sqrt(d), 1)
    step = jnp.arcsinh(_FURTHEST / s) / _NODES
    u = jnp.arange(0.5, _NODES) * step
    w = s * jnp.sinh(u)
    integrand = w / jnp.sinh(math.pi * w) * jnp.exp(-d / 2 * jnp.log1p(2 * (w / c) ** 2))
    return jnp.sum(integrand * s * jnp.cosh(u)) * step
