"""A small transformer of one sequence of tokens, without dropout. Start at `TransformerEncoder`.

What attention computes is in `vbjax.attention`; examples are `jax.vmap` outside.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.attention import Mask, attention, sinusoidal_positions

Tokens = Float[Array, "n d"]


class TransformerEncoder(nn.Module):
    """Tokens `(n, any)` -> features `(n, width)`, each of which may depend on all tokens that the mask lets it see.

    A linear embedding, `layers` blocks and a last LayerNorm. heads: must divide the width. hidden: width of the blocks'
    perceptrons, None for four times the width. positions: whether the sinusoids of the tokens' places are added;
    without them, and without a mask, permuted tokens give permuted features. Raises ValueError, naming the argument.
    Source: Vaswani et al. (2017, section 3), with the normalisation first (Xiong et al. 2020, figure 1b).
    """

    width: int = 64
    heads: int = 4
    layers: int = 2
    hidden: int | None = None
    positions: bool = True

    def __post_init__(self):
        for name in ("width", "heads", "layers", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width {self.width}, got {self.heads}")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Float[Array, "n any"], mask: Mask | None = None) -> Tokens:
        """mask: `(n, n)`, True where a token may look at another; `attention.causal_mask(n)` hides the future."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be one sequence (n, d), got shape {tokens.shape}: vmap over examples")
        x = nn.Dense(self.width, name="embedding")(tokens)
        if self.positions:
            x = x + sinusoidal_positions(*x.shape).astype(x.dtype)
        for _ in range(self.layers):
            x = TransformerBlock(self.heads, self.hidden or 4 * self.width)(x, mask)
        return LayerNorm()(x)


class TransformerBlock(nn.Module):
    """Attention beside the identity, then a perceptron of one hidden layer beside the identity."""

    heads: int
    hidden_width: int

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask | None = None) -> Tokens:
        x = x + MultiHeadAttention(self.heads)(LayerNorm()(x), mask)
        h = nn.gelu(nn.Dense(self.hidden_width, name="hidden")(LayerNorm()(x)))
        return x + nn.Dense(x.shape[1], name="outputs")(h)


class MultiHeadAttention(nn.Module):
    """Every token looks at the others with several queries at once; mask: as `attention`.

    Raises ValueError unless the heads divide the width. Source: Vaswani et al. (2017, section 3.2.2).
    """

    heads: int

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask | None = None) -> Tokens:
        length, width = x.shape
        if width % self.heads:
            raise ValueError(f"heads must divide the width {width}, got {self.heads}")
        q, k, v = jnp.split(nn.Dense(3 * width)(x).reshape(length, self.heads, -1), 3, -1)
        seen = jax.vmap(attention, (1, 1, 1, None), 1)(q, k, v, mask)
        return nn.Dense(width, name="outputs")(seen.reshape(length, width))


class LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` over the last axis, by two passes, in float32 or better; the result has the type of x.

    Source: Ba et al. (2016, eq. 4).
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        gain = self.param("scale", nn.initializers.ones_init(), x.shape[1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[1:], jnp.float32)
        precise = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
        h, gain, bias = (v.astype(precise) for v in (x, gain, bias))
        centred = h - h.mean(1, keepdims=True)
        rate = jax.lax.rsqrt(jnp.square(centred).mean(1, keepdims=True) + self.epsilon)
        return (centred * rate * gain[None] + bias[None]).astype(x.dtype)
