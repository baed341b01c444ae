"""Randomised Sobol points: dependent draws of one law that fill its space evenly, each of exactly that law."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, UInt32

from vbjax.distributions.family import Distribution, family, static_field, vmap_over
from vbjax.types import PRNGKey

_WORD = 32


@family
class ScrambledSobol(Distribution):
    """`count` points of a Sobol sequence in the quantiles of `base`, stacked on a leading axis like `Copies`.

    count: a power of two. Every point alone is uniform in its quantiles, to the last bit of the type, so means are
    unbiased; together they are spread evenly, so the variance of a mean falls almost like count⁻³ if the integrand is
    smooth in the quantiles, like count⁻² if its slope there is infinite at the ends (as of a normal variable), and not
    like count⁻¹. Randomised by a lower triangular matrix over GF(2) and a digital shift for each coordinate.
    Raises ValueError for other counts, and for more coordinates than the 21201 that there are direction numbers for;
    `NotAvailable` where base has no quantile function. Source: Matoušek (1998); Owen (2003); Joe & Kuo (2008).
    """

    base: Any
    count: int = static_field()
    closed_form_entropy = False

    def __post_init__(self):
        if self.count < 1 or self.count & (self.count - 1):
            raise ValueError(f"ScrambledSobol.count must be a power of two, got {self.count}")
        jax.eval_shape(lambda: self.base.quantile(self.base.sample(jax.random.key(0))))

    @property
    def event_shape(self):
        return jax.tree.map(lambda x: (self.count, *x.shape), self._event())

    def log_prob(self, x):
        raise self._missing("density", "use Copies, whose draws are independent")

    def sample(self, key, shape=()):
        return vmap_over(shape, self._points)(jax.random.split(key, shape))

    def _event(self) -> Any:
        return jax.eval_shape(lambda: self.base.sample(jax.random.key(0)))

    def _points(self, key: PRNGKey) -> Any:
        event = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._event())
        flat, unravel = ravel_pytree(event)
        uniforms = _uniforms(key, _sobol(flat.size, self.count.bit_length() - 1), flat.dtype)
        return jax.vmap(lambda u: self.base.quantile(unravel(u)))(uniforms)


def _uniforms(key: PRNGKey, points: Int[np.ndarray, "n d"], dtype: Any) -> Float[Array, "n d"]:
    """The points, scrambled."""
    key_columns, key_shift, key_rest = jax.random.split(key, 3)
    dimension, digits = points.shape[1], points.shape[0].bit_length() - 1
    random = jax.random.bits(key_columns, (digits, dimension), jnp.uint32)
    scrambled = jnp.broadcast_to(jax.random.bits(key_shift, (dimension,), jnp.uint32)[None], points.shape)
    for j in range(digits):
        # column j of the matrix: zeros above the diagonal, a one on it, random digits below
        column = jnp.uint32(1 << (_WORD - 1 - j)) | (random[j] >> (j + 1))
        has_digit = (points >> (_WORD - 1 - j)) & 1 == 1
        scrambled ^= jnp.where(has_digit, column[None], jnp.uint32(0))
    return _inside(scrambled, jax.random.bits(key_rest, points.shape, jnp.uint32), dtype)


def _inside(digits: UInt32[Array, "..."], more: UInt32[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Binary digits and the 32 after them as mid-points of the type's finest even grid: none rounds to zero or one."""
    finest = jnp.finfo(dtype).nmant
    if finest <= _WORD:
        return ((digits >> (_WORD - finest)).astype(dtype) + 0.5) * 2.0**-finest
    fraction = ((more >> (2 * _WORD - finest)).astype(dtype) + 0.5) * 2.0 ** (_WORD - finest)
    return (digits.astype(dtype) + fraction) * 2.0**-_WORD


@functools.cache
def _sobol(dimension: int, log2_count: int) -> Int[np.ndarray, "n d"]:
    """The first points of the sequence, without any randomness, as integers of 32 binary digits."""
    from scipy.stats import qmc  # most programs need no Sobol points, and scipy.stats is slow to import

    points = qmc.Sobol(dimension, scramble=False, bits=_WORD).random_base2(log2_count)
    return (points * 2.0**_WORD).astype(np.int64)
