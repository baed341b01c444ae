"""Monte-Carlo moments of an estimator, by replication: constant memory, and the same bits on any number of devices.

Replication r uses the key `fold_in(key, r)`. Moments are taken in blocks of one fixed size and merged in order, so
there is nothing to tune that would change a number.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from vbjax.estimators.estimate import value_and_grad_at
from vbjax.types import Estimate, GradientEstimator, Params, PRNGKey, Problem

BLOCK = 256
"""Replications whose moments are taken together; part of what the numbers are, so not an option."""

_MOST_BLOCKS, _MOST_NUMBERS = 16, 2**24
"""Blocks and numbers held in memory at once; they change no bit of the result."""


class PowerSums(NamedTuple):
    """Count, mean and central power sums Σ(x - mean)^p of draws: the value, then the flat gradient."""

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    second: Float[Array, " d"]
    third: Float[Array, " d"]
    fourth: Float[Array, " d"]


class Moments(NamedTuple):
    """What replication says of an estimator; every field but the last two is a pytree like the parameters.

    value: the objective's Monte-Carlo mean with its standard error. mean, standard_error: of the gradient.
    variance: of one gradient estimate, unbiased; variance_standard_error: by the fourth moment. kurtosis: the
    fourth standardised moment (3 for a normal law). non_finite: replications with a NaN or an infinity, which make
    the moments NaN. count: replications.
    """

    value: Estimate
    mean: Params
    standard_error: Params
    variance: Params
    variance_standard_error: Params
    kurtosis: Params
    non_finite: Int[Array, ""]
    count: int


def replicate(
    key: PRNGKey,
    estimator: GradientEstimator,
    problem: Problem,
    params: Params,
    *,
    replications: int,
    state: Any = None,
) -> Moments:
    """Draw an estimator many times and return the moments of its value and its gradient.

    problem: `params -> (q, f)`. All visible devices share the work; memory does not grow with the replications.
    Raises ValueError for fewer than two replications or 2³¹ and more, whose numbers no int32 holds, and
    `NotAvailable` if q lacks what the estimator needs.
    """
    if replications < 2:
        raise ValueError(f"replications must be at least 2 for a variance, got {replications}")
    if replications >= 2**31:
        raise ValueError(f"replications must be below 2**31, got {replications}; split the key and merge the studies")
    params = jax.tree.map(jnp.asarray, params)  # Python floats have no size
    q, _ = problem(params)
    state = estimator.init(q) if state is None else state
    sums, non_finite = _replicate(key, estimator, problem, params, state, replications)
    standard_error = _standard_error(sums)

    def gradient(statistic):
        return ravel_pytree(params)[1](statistic[1:])

    return Moments(
        value=Estimate(sums.mean[0], standard_error[0], replications),
        mean=gradient(sums.mean),
        standard_error=gradient(standard_error),
        variance=gradient(_variance(sums)),
        variance_standard_error=gradient(_variance_standard_error(sums)),
        kurtosis=gradient(_kurtosis(sums)),
        non_finite=non_finite,
        count=replications,
    )


def _replicate(key, estimator, problem, params, state, replications):
    """Draw a few blocks at a time on all devices, add them up on one, in the order of their number."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("device",))
    size = 1 + sum(x.size for x in jax.tree.leaves(params))
    width = max(1, min(_MOST_BLOCKS, _MOST_NUMBERS // (BLOCK * size)))
    width = mesh.size * -(-width // mesh.size)

    def one(r, key, params, state):
        q, _ = problem(params)
        noise = estimator.noise(q).sample(jax.random.fold_in(key, r))
        return ravel_pytree(value_and_grad_at(noise, estimator, problem, params, state))[0]

    def blocks(b, key, params, state):
        # always one block of one shape: XLA may round another shape in another way
        return jax.lax.map(
            lambda b: jax.vmap(one, (0, None, None, None))(
                b * BLOCK + jnp.arange(BLOCK, dtype=b.dtype), key, params, state
            ),
            b,
        )

    draw = blocks
    if mesh.size > 1:
        split, whole = jax.P("device"), jax.P()
        # check_vma would sum the gradients over the devices
        draw = jax.shard_map(blocks, mesh=mesh, in_specs=(split, whole, whole, whole), out_specs=split, check_vma=False)
        key, params, state = jax.device_put((key, params, state), jax.sharding.NamedSharding(mesh, whole))
    draw = jax.jit(draw)

    total: Any = None
    for start in range(0, -(-replications // BLOCK), width):
        b = start + np.arange(width, dtype=np.int32)
        draws = draw(b, key, params, state)
        if mesh.size > 1:
            draws = jax.device_put(draws, mesh.devices[0])
        if total is None:
            nothing = jnp.zeros(draws.shape[-1:], draws.dtype)
            total = (PowerSums(jnp.zeros((), draws.dtype), nothing, nothing, nothing, nothing), jnp.zeros((), int))
        # int64: the padding after the last replication may pass 2**31
        total = _add_blocks(total, draws, b[:, None].astype(np.int64) * BLOCK + np.arange(BLOCK) < replications)
    return total


@jax.jit
def _add_blocks(total, draws: Float[Array, "b n d"], counted: Bool[Array, "b n"]):
    """Merge each block into the total in turn; compiled once for all estimators with as many parameters."""

    def add(total, block):
        (sums, non_finite), (x, counted) = total, block
        more = jnp.sum(counted & ~jnp.isfinite(x).all(1))
        return (_merge(sums, _power_sums(x, counted)), non_finite + more), None

    return jax.lax.scan(add, total, (draws, counted))[0]


def _power_sums(x: Float[Array, "n d"], counted: Bool[Array, " n"]) -> PowerSums:
    count = counted.sum().astype(x.dtype)
    mean = jnp.where(counted[:, None], x, 0).sum(0) / jnp.maximum(count, 1)
    deviation = jnp.where(counted[:, None], x - mean[None], 0)
    return PowerSums(count, mean, *((deviation**p).sum(0) for p in (2, 3, 4)))


def _merge(a: PowerSums, b: PowerSums) -> PowerSums:
    """Power sums of the union of two sets of draws (Chan et al. 1983; Pébay 2008, eq. 2.1)."""
    count = a.count + b.count
    delta = (b.mean - a.mean) / count
    n_a, n_b = a.count, b.count
    second = a.second + b.second + count * delta**2 * n_a * n_b
    third = a.third + b.third + count * delta**3 * n_a * n_b * (n_a - n_b)
    third = third + 3 * delta * (n_a * b.second - n_b * a.second)
    fourth = a.fourth + b.fourth + count * delta**4 * n_a * n_b * (n_a**2 - n_a * n_b + n_b**2)
    fourth = fourth + 6 * delta**2 * (n_a**2 * b.second + n_b**2 * a.second)
    fourth = fourth + 4 * delta * (n_a * b.third - n_b * a.third)
    return PowerSums(count, a.mean + delta * n_b, second, third, fourth)


def _variance(s: PowerSums) -> Array:
    return s.second / (s.count - 1)


def _standard_error(s: PowerSums) -> Array:
    return jnp.sqrt(_variance(s) / s.count)


def _kurtosis(s: PowerSums) -> Array:
    return s.count * s.fourth / jnp.where(s.second == 0, 1, s.second**2)


def _variance_standard_error(s: PowerSums) -> Array:
    n = s.count
    return _variance(s) * jnp.sqrt(jnp.maximum(_kurtosis(s) - (n - 3) / (n - 1), 0) / n)
