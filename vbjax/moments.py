"""Monte-Carlo moments of an estimator, by replication: constant memory, and the same draws whatever the batching.

Replication r uses the key `fold_in(key, r)`. Moments are taken in blocks of fixed size and merged in order, so the
result does not depend on `batch_size`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.estimators.estimate import value_and_grad_at
from vbjax.types import Estimate, GradientEstimator, Params, PRNGKey, Problem

BLOCK = 256
"""Replications whose moments are taken together; part of what the numbers are, so not an option."""


class PowerSums(NamedTuple):
    """Count, mean and central power sums Σ(x - mean)^p of draws; the arrays share one shape."""

    count: Float[Array, ""]
    mean: Array
    second: Array
    third: Array
    fourth: Array


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
    batch_size: int = 4096,
    state: Any = None,
) -> Moments:
    """Draw an estimator many times and return the moments of its value and its gradient.

    problem: `params -> (q, f)`. batch_size: replications held in memory at once (rounded to whole blocks of 256);
    it changes speed and memory, never the result. Raises ValueError for fewer than two replications, and
    `NotAvailable` if q lacks what the estimator needs.
    """
    if replications < 2:
        raise ValueError(f"replications must be at least 2 for a variance, got {replications}")
    q, _ = problem(params)
    state = estimator.init(q) if state is None else state
    sums, non_finite = _replicate(key, estimator, problem, params, state, replications, batch_size)
    value, gradient = sums
    is_sums = lambda x: isinstance(x, PowerSums)  # noqa: E731

    def over_gradient(statistic):
        return jax.tree.map(statistic, gradient, is_leaf=is_sums)

    return Moments(
        value=Estimate(value.mean, _standard_error(value), replications),
        mean=over_gradient(lambda s: s.mean),
        standard_error=over_gradient(_standard_error),
        variance=over_gradient(_variance),
        variance_standard_error=over_gradient(_variance_standard_error),
        kurtosis=over_gradient(_kurtosis),
        non_finite=non_finite,
        count=replications,
    )


def _replicate(key, estimator, problem, params, state, replications, batch_size):
    blocks = -(-replications // BLOCK)

    def one(r, key, params, state):
        q, _ = problem(params)
        noise = estimator.noise(q).sample(jax.random.fold_in(key, r))
        return value_and_grad_at(noise, estimator, problem, params, state)

    def block(b, key, params, state):
        r = b * BLOCK + jnp.arange(BLOCK)
        draws = jax.vmap(one, (0, None, None, None))(r, key, params, state)
        counted = r < replications
        finite = jnp.stack([jnp.isfinite(x).reshape(BLOCK, -1).all(1) for x in jax.tree.leaves(draws)]).all(0)
        return jax.tree.map(lambda x: _power_sums(x, counted), draws), jnp.sum(~finite & counted)

    @jax.jit
    def run(key, params, state):
        per_block, non_finite = jax.lax.map(
            lambda b: block(b, key, params, state), jnp.arange(blocks), batch_size=max(1, batch_size // BLOCK)
        )
        return jax.tree.map(_merge_all, per_block, is_leaf=lambda x: isinstance(x, PowerSums)), non_finite.sum()

    return run(key, params, state)


def _power_sums(x: Array, counted: Array) -> PowerSums:
    counted = jnp.expand_dims(counted, tuple(range(1, x.ndim)))
    count = counted.sum().astype(x.dtype)
    mean = jnp.where(counted, x, 0).sum(0) / jnp.maximum(count, 1)
    deviation = jnp.where(counted, x - mean[None], 0)
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


def _merge_all(per_block: PowerSums) -> PowerSums:
    first, rest = jax.tree.map(lambda x: x[0], per_block), jax.tree.map(lambda x: x[1:], per_block)
    return jax.lax.scan(lambda total, block: (_merge(total, block), None), first, rest)[0]


def _variance(s: PowerSums) -> Array:
    return s.second / (s.count - 1)


def _standard_error(s: PowerSums) -> Array:
    return jnp.sqrt(_variance(s) / s.count)


def _kurtosis(s: PowerSums) -> Array:
    return s.count * s.fourth / jnp.where(s.second == 0, 1, s.second**2)


def _variance_standard_error(s: PowerSums) -> Array:
    n = s.count
    return _variance(s) * jnp.sqrt(jnp.maximum(_kurtosis(s) - (n - 3) / (n - 1), 0) / n)
