"""What a training step sees: which examples, and how their pixels are binarised.

Start at `batch_indices`. An epoch is a keyed pseudo-random permutation evaluated one position at a time (a Feistel
network; Luby and Rackoff 1988), so a batch costs the same whatever the size of the data, needs no state, and is the
same after a restart. Cycle walking (Black and Rogaway 2002) carries the network from the next power of two to any
size: a value outside is permuted again until it falls inside, which keeps the map a bijection.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int, Int32, Integer, PyTree, UInt8, UInt32

from vbjax.types import PRNGKey

LIMIT = 2**31
"""Positions are int32: they stay below this."""

_ROUNDS = 24
"""Few rounds suffice for thousands of examples; below ten, some orders come up too often with fewer than about 20."""

_SHUFFLE = 0x73687566
"""Folded into the caller's key, so that `fold_in(key, step)` can serve other purposes beside the shuffle."""
_GOLDEN = np.uint32(0x9E3779B9)


def shuffled_index(key: PRNGKey, position: int | Integer[Array, ""], size: int) -> Int32[Array, ""]:
    """Return the example at one position of an endless stream of shuffled epochs.

    Positions `e·size, …, (e+1)·size - 1` visit each of `0, …, size - 1` exactly once, in an order that depends on the
    key and on the epoch `e`. The key is folded, not consumed: pass the same one at every position.

    Raises `ValueError` when size is not in [1, 2³¹) or a Python position is not in [0, 2³¹); a traced position must
    be in that range (`batch_indices` has no such limit in practice).
    """
    _require(1 <= size < LIMIT, f"size must be in [1, 2**31), got {size}")
    if isinstance(position, int):
        _require(0 <= position < LIMIT, f"position must be in [0, 2**31), got {position}")
    position = jnp.asarray(position, jnp.int32)
    return _permute(_round_words(key), _unsigned(position // size), position % size, size)


def batch_indices(
    key: PRNGKey, step: int | Integer[Array, ""], size: int, batch_size: int
) -> Int32[Array, " {batch_size}"]:
    """Return the examples of one batch: `shuffled_index` at positions `step·batch_size + j`.

    A pure function of key and step, in time and memory that do not grow with size. Epochs follow each other without a
    gap, so every example appears exactly once per epoch even where batch_size does not divide size (a batch may then
    span two epochs). The key is folded, not consumed.

    The position itself is never formed, so that step may be any int32: it is only reduced modulo the number of steps
    after which a batch starts an epoch again. Raises `ValueError` when lcm(size, batch_size) + batch_size exceeds 2³¹
    (with 60,000 examples: a batch_size beyond 35,000 that shares no factor with 60,000), when size or batch_size is
    below one, or when a Python step is not in [0, 2³¹).
    """
    _require(1 <= size < LIMIT, f"size must be in [1, 2**31), got {size}")
    _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    if isinstance(step, int):
        _require(0 <= step < LIMIT, f"step must be in [0, 2**31), got {step}")
    period_steps = size // math.gcd(size, batch_size)
    period_epochs = period_steps * batch_size // size
    _require(
        period_steps * batch_size + batch_size <= LIMIT,
        f"batch_size {batch_size} over {size} examples overflows int32 positions: "
        "choose a batch_size that shares more factors with the number of examples",
    )
    step = jnp.asarray(step, jnp.int32)
    positions = step % period_steps * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    epochs = _unsigned(step // period_steps) * np.uint32(period_epochs) + _unsigned(positions // size)
    words = _round_words(key)
    return jax.vmap(lambda epoch, offset: _permute(words, epoch, offset, size))(epochs, positions % size)


def batches(key: PRNGKey, arrays: PyTree, batch_size: int) -> Partial:
    """`step -> batch` for `training.fit`: those rows of all the arrays, which share their leading axis.

    Raises what `batch_indices` raises, at the first step.
    """

    def batch(arrays, step):
        indices = batch_indices(key, step, jax.tree.leaves(arrays)[0].shape[0], batch_size)
        return jax.tree.map(lambda x: x[indices], arrays)

    return Partial(batch, arrays)


def numbered(batch: Partial) -> Partial:
    """`step -> (batch(step), step)`, for losses that change as the training goes on."""
    return Partial(lambda batch, step: (batch(step), step), batch)


def binarise(images: Integer[Array | np.ndarray, "*shape"], threshold: int) -> UInt8[Array | np.ndarray, "*shape"]:
    """Return one where the pixel exceeds the threshold (static binarisation; 127 is usual for 256 levels)."""
    return (images > threshold).astype(np.uint8)


def dynamic_binarise(key: PRNGKey, image: Integer[Array | np.ndarray, "*shape"], levels: int) -> UInt8[Array, "*shape"]:
    """Draw each pixel of one image as a Bernoulli with probability value / (levels - 1).

    A fresh key at every step gives the dynamic binarisation of Salakhutdinov and Murray (2008) and Burda et al. (2016).
    """
    probability = jnp.asarray(image, jnp.float32) / (levels - 1)
    return jax.random.bernoulli(key, probability).astype(jnp.uint8)


def _permute(
    words: UInt32[Array, " rounds"], epoch: UInt32[Array, ""], offset: Int32[Array, ""], size: int
) -> Int32[Array, ""]:
    bits = (size - 1).bit_length()
    round_keys = _mix(words + epoch * _GOLDEN)
    value = _feistel(round_keys, _unsigned(offset), bits)
    if size < 1 << bits:
        value = jax.lax.while_loop(lambda v: v >= size, lambda v: _feistel(round_keys, v, bits), value)
    return value.astype(jnp.int32)


def _feistel(round_keys: UInt32[Array, " rounds"], value: UInt32[Array, ""], bits: int) -> UInt32[Array, ""]:
    """Permute `[0, 2**bits)`: each round adds to one half a keyed function of the other, and so can be undone."""
    high_bits, low_bits = bits // 2, bits - bits // 2
    high, low = value >> low_bits, value & ((1 << low_bits) - 1)
    for index in range(0, _ROUNDS, 2):
        low = low ^ (_mix(high ^ round_keys[index]) & ((1 << low_bits) - 1))
        high = high ^ (_mix(low ^ round_keys[index + 1]) & ((1 << high_bits) - 1))
    return (high << low_bits) | low


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Spread every input bit over all output bits (the finaliser `lowbias32` of Wellons' hash prospector)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _round_words(key: PRNGKey) -> UInt32[Array, " rounds"]:
    return jax.random.bits(jax.random.fold_in(key, _SHUFFLE), (_ROUNDS,), jnp.uint32)


def _unsigned(x: Int[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    return x.astype(jnp.uint32)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
