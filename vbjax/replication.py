"""The engine of every repetition: draw a law many times in constant memory, on all devices, in a fixed order.

Replication r has the key `replication_key(key, r)`. Replications are folded together in small batches that stay in
cache, batches in blocks of `BLOCK`, and blocks are handed to the host one after the other, in the order of their
number. Batch and block depend on the problem's size alone, so neither the number of devices, nor how many blocks a
call computes, nor an interruption changes a bit. Start at `blocks`; `moments.replicate` shows how it is used.
"""

import functools
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from vbjax.random import rekey
from vbjax.types import PRNGKey

BLOCK = 1024
"""Replications whose statistics are folded together on one device; part of what the numbers are, so not an option."""

_BATCH_NUMBERS = {"cpu": 2**16}
_BATCH_NUMBERS_ELSEWHERE = 2**24
"""Numbers that a batch of draws may hold: a CPU core's cache, or enough to keep an accelerator busy."""

_CALL_BLOCKS, _CALL_NUMBERS = 256, 2**18
"""Blocks and numbers that one call may return; they change no bit of the result."""

_CALL_SECONDS = 0.25
"""A call that takes less is followed by one of twice the size."""


class Replicated(NamedTuple):
    """What is replicated: `evaluate(arguments, noise.sample(key))` gives one draw, a pytree of arrays.

    sample: (arguments, key) -> noise. fold: (statistics, draws, counted) -> statistics, where draws are stacked on a
    leading axis and counted says which of them exist. start: the statistics of nothing. arguments: a pytree of
    arrays, so that a new value compiles nothing; nor does a call with the same three functions.
    """

    sample: Callable[[Any, PRNGKey], Any]
    evaluate: Callable[[Any, Any], Any]
    fold: Callable[[Any, Any, Bool[Array, " m"]], Any]
    start: Any
    arguments: Any


class Block(NamedTuple):
    """One block's statistics, as NumPy arrays; draws: its first draws, as many as were asked for."""

    number: int
    statistics: Any
    draws: Any


def replication_key(key: PRNGKey, replication: int | Array) -> PRNGKey:
    """The key that replication r of a study draws with."""
    return jax.random.fold_in(rekey(key), replication)


def blocks(
    key: PRNGKey, what: Replicated, *, replications: int, first: int = 0, keep: int = 0, batch_multiple: int = 1
) -> Iterator[Block]:
    """Yield the statistics of each block of replications, from block number `first` on, in order.

    key: of `random.rekey`. keep: how many of the first replications' draws to return with their blocks.
    batch_multiple: every batch that is folded has a multiple of this many draws. All visible devices share the work.
    """
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("device",))
    platform = mesh.devices.flat[0].platform
    batch = batch_size(what, platform, multiple=batch_multiple)
    size = sum(math.prod(np.shape(x)) for x in jax.tree.leaves(what.start))
    most = max(1, min(_CALL_BLOCKS, _CALL_NUMBERS // max(size, 1)))
    kept = min(BLOCK, -(-keep // batch) * batch)
    draw = _program(what.sample, what.evaluate, what.fold, mesh, batch, most, kept)
    arguments = (key, what.arguments, what.start, np.uint32(replications))
    if mesh.size > 1:
        arguments = jax.device_put(arguments, jax.sharding.NamedSharding(mesh, jax.P()))

    count, per_device = -(-replications // BLOCK), 1
    while first < count:
        to_keep = first * BLOCK < keep
        if to_keep:
            per_device = 1  # the buffer of draws holds one block per device
        each = min(per_device, -(-(count - first) // mesh.size))
        starts = np.minimum(first + each * np.arange(mesh.size + 1), count)
        begin = time.monotonic()
        statistics, draws = draw(starts[:-1].astype(np.uint32), np.diff(starts).astype(np.uint32), *arguments)
        statistics = jax.tree.map(np.asarray, statistics)
        draws = jax.tree.map(np.asarray, draws) if to_keep else None
        for device in range(mesh.size):
            for i in range(starts[device + 1] - starts[device]):
                number = int(starts[device]) + i
                row, rows = device * most + i, max(0, min(BLOCK, keep - number * BLOCK))
                where = device * (kept + batch)
                some = jax.tree.map(lambda x, a=where, b=where + rows: x[a:b], draws) if rows else None
                yield Block(number, jax.tree.map(lambda x, row=row: x[row], statistics), some)
        draws = some = None  # before the next call allocates its own
        first = int(starts[-1])
        if time.monotonic() - begin < _CALL_SECONDS and per_device < most:
            per_device *= 2
        per_device = min(per_device, most)


def batch_size(what: Replicated, platform: str, *, multiple: int = 1) -> int:
    """How many replications are drawn at once: a power of two that depends on the problem's size and the platform."""
    noise, draw = _shapes(what)
    numbers = max(sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (noise, draw))
    room = max(4, multiple, _BATCH_NUMBERS.get(platform, _BATCH_NUMBERS_ELSEWHERE) // max(numbers, 1))
    return min(BLOCK, 2 ** int(math.log2(room)))


def _shapes(what: Replicated):
    noise = jax.eval_shape(what.sample, what.arguments, rekey(jax.random.key(0)))
    return noise, jax.eval_shape(what.evaluate, what.arguments, noise)


@functools.lru_cache(maxsize=64)
def _program(sample, evaluate, fold, mesh, batch: int, most: int, kept: int):
    """Compile what one device does with `each` blocks of its own, on all devices of the mesh."""

    def on_one_device(first, each, key, arguments, start, replications):
        noise_shape, draw_shape = _shapes(Replicated(sample, evaluate, fold, start, arguments))

        def draws(r):
            return jax.vmap(lambda r: sample(arguments, jax.random.fold_in(key, r)))(r)

        def no_draws(r):
            return jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), noise_shape)

        def one_block(i, carry):
            everything, buffer = carry
            begin = (first[0] + i) * np.uint32(BLOCK)
            batches = (jnp.minimum(replications - begin, np.uint32(BLOCK)) + np.uint32(batch - 1)) // np.uint32(batch)

            def one_batch(j, carry):
                statistics, buffer = carry
                r = begin + j * np.uint32(batch) + jnp.arange(batch, dtype=jnp.uint32)
                # a conditional that is always true keeps XLA from drawing the noise once for each of its uses
                noise = jax.lax.cond(j < batches, draws, no_draws, r)
                x = jax.vmap(evaluate, (None, 0))(arguments, noise)
                if kept:
                    # rows past the end fall on spare ones
                    row = jnp.minimum(i * np.uint32(BLOCK) + j * np.uint32(batch), np.uint32(kept)).astype(jnp.int32)
                    update = jax.lax.dynamic_update_slice_in_dim
                    buffer = jax.tree.map(lambda old, new: update(old, new, row, 0), buffer, x)
                return fold(statistics, x, r < replications), buffer

            statistics, buffer = jax.lax.fori_loop(np.uint32(0), batches, one_batch, (start, buffer))
            return jax.tree.map(lambda all_, one: all_.at[i].set(one), everything, statistics), buffer

        everything = jax.tree.map(lambda x: jnp.zeros((most, *np.shape(x)), x.dtype), start)
        rows = kept + batch if kept else 0
        buffer = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), draw_shape)
        return jax.lax.fori_loop(np.uint32(0), each[0], one_block, (everything, buffer))

    if mesh.size == 1:
        return jax.jit(on_one_device)
    split, whole = jax.P("device"), jax.P()
    in_specs = (split, split, whole, whole, whole, whole)
    # check_vma would sum the gradients over the devices
    return jax.jit(jax.shard_map(on_one_device, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False))


def identity(key: PRNGKey, what: Replicated) -> str:
    """A digest of all that the numbers depend on: the key, the program with its constants, arguments and versions."""
    device = jax.devices()[0]
    noise, _ = _shapes(what)
    programs = [
        jax.make_jaxpr(what.sample)(what.arguments, rekey(jax.random.key(0))),
        jax.make_jaxpr(what.evaluate)(what.arguments, noise),
    ]
    # addresses of functions differ from process to process
    text = [re.sub(r" at 0x[0-9a-f]+", "", str(program)) for program in programs]
    text += [jax.__version__, device.platform, device.device_kind, str(BLOCK), str(batch_size(what, device.platform))]
    digest = hashlib.sha256("\n".join(text).encode())
    for array in jax.tree.leaves((jax.random.key_data(key), what.arguments, [program.consts for program in programs])):
        array = np.asarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def save(path: Path, name: str, blocks_done: int, total: Any) -> None:
    """Write a total and the number of whole blocks behind it, so that a kill leaves the old file or the new one.

    name: of `identity`.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, identity=np.asarray(name), blocks_done=blocks_done, **_numbered(total))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def restore(path: Path, name: str, like: Any) -> tuple[int, Any]:
    """Read what `save` wrote: whole blocks done and their total, a pytree like the given one.

    Raises ValueError if the file belongs to another key, estimator, problem, parameters, version or machine.
    """
    with np.load(path) as stored:
        if str(stored["identity"]) != name:
            raise ValueError(
                f"{path} holds another replication (key, estimator, problem, parameters, JAX or device differ); "
                "delete it, or give another path"
            )
        leaves = [stored[number] for number in _numbered(like)]
        return int(stored["blocks_done"]), jax.tree.unflatten(jax.tree.structure(like), leaves)


def _numbered(tree: Any) -> dict[str, Any]:
    return {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
