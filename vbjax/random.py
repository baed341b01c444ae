"""A counter-based generator for replication: JAX's own cipher, Threefry-2x32-20, with both of its output words used.

`rekey(key)` turns any JAX key into one of this kind; then `law.sample(key)`, `split`, `fold_in` and every sampler of
`jax.random` draw from it. It is plain integer arithmetic, so XLA fuses it with what consumes the bits, and the bits
are the same on every platform. On a CPU it is nearly twice as fast as JAX's default, which throws half of its words
away so that an array can be drawn in shards; within one replication nothing is sharded.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, UInt32

from vbjax.types import PRNGKey

Words = UInt32[Array, "*shape"]
KeyWord = UInt32[Array, "*key"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# The second counter word tells apart what one key is asked for, so that no stream meets another.
_BITS, _FOLD_IN, _SPLIT = 0, 1, 2


def threefry2x32(key: tuple[KeyWord, KeyWord], counter: tuple[Words, Words]) -> tuple[Words, Words]:
    """Encipher a counter of two words under a key of two words: 20 rounds, elementwise over arrays.

    Source: Salmon et al. (2011), «Parallel random numbers: as easy as 1, 2, 3», Random123's threefry2x32_R(20, ...).
    """
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for step in range(5):
        for rotation in _ROTATIONS[step % 2]:
            x0 = x0 + x1
            x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + schedule[(step + 1) % 3]
        x1 = x1 + schedule[(step + 2) % 3] + jnp.uint32(step + 1)
    return x0, x1


def rekey(key: PRNGKey) -> PRNGKey:
    """Consume a key of any kind and return one of this generator."""
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl=_GENERATOR)


def _encipher(key, counter, purpose):
    return threefry2x32((key[0], key[1]), (counter, jnp.full_like(counter, purpose)))


def _seed(seed):
    low = seed.astype(jnp.uint32)
    high = (seed >> 32).astype(jnp.uint32) if seed.dtype.itemsize == 8 else jnp.zeros_like(low)
    return jnp.stack([high, low])


def _fold_in(key, data):
    return jnp.stack(_encipher(key, jnp.asarray(data).astype(jnp.uint32), _FOLD_IN))


def _split(key, shape):
    count = _checked(math.prod(shape))
    words = _encipher(key, jax.lax.iota(jnp.uint32, count), _SPLIT)
    return jnp.stack(words, -1).reshape(*shape, 2)


def _random_bits(key, bit_width, shape):
    size = math.prod(shape)
    dtype = jnp.dtype(f"uint{bit_width}")
    if bit_width == 64:
        high, low = _encipher(key, jax.lax.iota(jnp.uint32, _checked(size)), _BITS)
        return ((high.astype(dtype) << jnp.asarray(32, dtype)) | low.astype(dtype)).reshape(shape)
    if size == 1:
        # one word, without the axis of length one that a batch of keys could not be vectorised over
        word, _ = _encipher(key, jnp.zeros((), jnp.uint32), _BITS)
        return word.astype(dtype).reshape(shape)
    pairs = _checked(-(-size * bit_width // 64))
    words = jnp.concatenate(_encipher(key, jax.lax.iota(jnp.uint32, pairs), _BITS))
    if bit_width < 32:
        words = jax.lax.bitcast_convert_type(words, dtype).reshape(-1)
    return words[:size].reshape(shape)


def _checked(blocks: int) -> int:
    if blocks >= 2**32:
        raise ValueError(f"one key gives fewer than 2**32 blocks of two words, {blocks} were asked for; split the key")
    return blocks


_GENERATOR = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_both_words",
    tag="fry2",
)
