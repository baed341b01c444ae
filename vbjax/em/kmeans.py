"""k-means by Lloyd's algorithm: hard EM, the limit σ² → 0 of a mixture of equal spheres (`soft_k_means`).

Its starts, by k-means++, are those of the mixtures too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int32

from vbjax.em.fitting import Batches, Step, as_data, as_real, at_least_one, batches, best, check_count, climb, sum_over
from vbjax.types import PRNGKey, Scalar

Centres = Float[Array, "clusters d"]


class Clusters(NamedTuple):
    """Centres, the nearest one of each datum, and the distortion after 0, 1, … updates.

    distortion: mean squared distance of a datum to its centre; times n it is the J that is usually printed.
    converged: whether the last update did not lower the distortion.
    """

    centres: Centres
    assignment: Int32[Array, " n"]
    distortion: Float[np.ndarray, " updates"]
    converged: bool


def k_means(
    key: PRNGKey,
    data: ArrayLike,
    clusters: int,
    *,
    initial: Centres | None = None,
    restarts: int = 1,
    max_iterations: int = 300,
    batch_size: int = 512,
) -> Clusters:
    """Lower the distortion of `clusters` centres until nothing moves, from k-means++ starts; return the best.

    data: `(n, d)`. initial: centres to start from instead. A datum as near to two centres goes to the first; an empty
    cluster moves to the datum farthest from its centre, which lowers the distortion. Raises ValueError for bad data,
    fewer data than clusters, or bad arguments. Source: Lloyd (1982); Arthur & Vassilvitskii (2007).
    """
    values = as_data(data)
    counts = {"clusters": clusters, "restarts": restarts, "max_iterations": max_iterations, "batch_size": batch_size}
    for name, value in counts.items():
        at_least_one(name, value)
    check_count("clusters", clusters, values)
    points = as_real(values)
    if initial is None:
        starts = _seeds(jax.random.split(key, restarts), points, clusters)
    elif initial.shape != (clusters, points.shape[1]) or restarts != 1:
        raise ValueError(f"initial must have shape {(clusters, points.shape[1])}, got {initial.shape}, and restarts 1")
    else:
        starts = jnp.asarray(initial, points.dtype)[None]
    found = best(_lloyd_all(starts, points, max_iterations, min(batch_size, points.shape[0])))
    assignment = jax.lax.map(lambda x: nearest(found.model, x), points, batch_size=batch_size)
    return Clusters(found.model, assignment, -found.objective, found.converged)


def nearest(centres: Centres, x: Float[Array, " d"]) -> Int32[Array, ""]:
    """Index of the centre nearest to one datum, the first of several."""
    about = centres.mean(0)  # distances are differences of squares: keep them small
    moved = centres - about[None]
    return jnp.argmin(0.5 * jnp.sum(moved**2, 1) - moved @ (x - about)).astype(jnp.int32)


def plus_plus(key: PRNGKey, data: Float[Array, "n d"], clusters: int) -> Centres:
    """Data drawn one after the other with probability ∝ squared distance to those drawn (Arthur & Vassilvitskii 2007).

    Where fewer data are distinct than centres are wanted, the rest repeat.
    """
    key_first, key_others = jax.random.split(key)
    first = data[jax.random.randint(key_first, (), 0, data.shape[0])]

    def draw(distance, key):
        chosen = data[jax.random.categorical(key, jnp.log(distance))]
        return jnp.minimum(distance, jnp.sum((data - chosen[None]) ** 2, 1)), chosen

    keys = jax.random.split(key_others, clusters - 1)
    _, others = jax.lax.scan(draw, jnp.sum((data - first[None]) ** 2, 1), keys)
    return jnp.concatenate([first[None], others])


def lloyd_step(centres: Centres, blocks: Batches) -> Step:
    """Assign each datum to its nearest centre, and move each centre to the mean of its data.

    The «log-likelihood» is minus the mean squared distance: 2σ² times that of equal spheres as σ² → 0.
    """
    clusters, d = centres.shape

    def one_block(data, present):
        index = jax.vmap(nearest, (None, 0))(centres, data)
        distance = present * jnp.sum((data - centres[index]) ** 2, 1)
        member = present[:, None] * jax.nn.one_hot(index, clusters, dtype=data.dtype)
        return member.sum(0), member.T @ (data - centres.mean(0)[None]), distance.sum()

    def farthest():
        data, present = blocks.data.reshape(-1, d), blocks.present.reshape(-1)

        def distance(x):
            return jnp.sum((x - centres[nearest(centres, x)]) ** 2)

        distances = jax.lax.map(distance, data, batch_size=blocks.data.shape[1])
        _, index = jax.lax.top_k(jnp.where(present > 0, distances, -1), clusters)
        return data[index]

    counts, sums, distortion = sum_over(blocks, one_block)
    empty = counts == 0
    moved = centres.mean(0)[None] + sums / jnp.maximum(counts, 1)[:, None]
    spare = jax.lax.cond(empty.any(), farthest, lambda: centres)
    # the j-th empty cluster takes the j-th farthest datum
    rank = jnp.maximum(jnp.cumsum(empty) - 1, 0)
    moved = jnp.where(empty[:, None], spare[rank], moved)
    return Step(moved, -distortion / blocks.count, jnp.zeros((), distortion.dtype))


def seeds(key: PRNGKey, data: Float[Array, "n d"], clusters: int, *, iterations: int = 10) -> Centres:
    """Where a mixture starts: k-means++ and a few Lloyd updates."""
    start = plus_plus(key, data, clusters)
    blocks = batches(data, min(512, data.shape[0]), data.dtype)
    zero: Scalar = jnp.zeros((), data.dtype)
    return climb(lambda centres: lloyd_step(centres, blocks), start, zero, iterations).model


@functools.partial(jax.jit, static_argnames="clusters")
def _seeds(keys, data, clusters):
    return jax.lax.map(lambda key: plus_plus(key, data, clusters), keys)


@functools.partial(jax.jit, static_argnames=("max_iterations", "batch_size"))
def _lloyd_all(starts, data, max_iterations, batch_size):
    blocks = batches(data, batch_size, data.dtype)
    zero = jnp.zeros((), data.dtype)
    return jax.lax.map(
        lambda start: climb(lambda centres: lloyd_step(centres, blocks), start, zero, max_iterations), starts
    )
