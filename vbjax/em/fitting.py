"""The EM loop: one pure step, repeated while it climbs, restarted, and refused when it falls.

A `Family` is what the loop needs of a model. Everything is a mean per datum in nats, so float32 keeps its digits on
large data sets. EM never lowers its objective (Dempster et al. 1977, theorem 1): a fall beyond rounding is a wrong
E-step, a wrong M-step or arithmetic that has lost the model, and `fit` raises.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int32, Shaped

from vbjax.types import PRNGKey, Scalar

Model = Any
Data = Shaped[Array, "n d"]


class NotMonotone(ArithmeticError):  # noqa: N818 - it reads as the answer that it is
    """An EM step lowered its objective by more than rounding; the message says by how much and what to try."""


class Batches(NamedTuple):
    """A data set in blocks, so that what a pass holds in memory does not grow with it; present: 0 for padding."""

    data: Shaped[Array, "blocks size d"]
    present: Float[Array, "blocks size"]

    @property
    def count(self) -> Scalar:
        """Number of data."""
        return self.present.sum()


class Step(NamedTuple):
    """One EM step: the next model, and the mean log-likelihood and log-prior per datum *of the model it started from*.

    log_prior: what smoothing adds, up to a constant; zero for maximum likelihood. The step raises their sum.
    """

    model: Model
    log_likelihood: Scalar
    log_prior: Scalar

    @property
    def objective(self) -> Scalar:
        """What EM climbs, in nats per datum."""
        return self.log_likelihood + self.log_prior


class Family(NamedTuple):
    """A model as EM sees it, by pure functions.

    prepare: data of any real dtype -> the array that the rest reads; raises ValueError for data it cannot model.
    start: (key, data) -> a first model. summarise: (data, batch size) -> what each step reads, computed once.
    step: (model, summary) -> `Step`.
    """

    prepare: Callable[[np.ndarray], Array]
    start: Callable[[PRNGKey, Data], Model]
    summarise: Callable[[Data, int], Any]
    step: Callable[[Model, Any], Step]


class Fit(NamedTuple):
    """A fitted model with its ascent.

    objective, log_likelihood: means per datum in nats after 0, 1, … updates, the last being those of `model`; they
    differ by the log-prior of smoothing. converged: whether the last update gained no more than the tolerance.
    restarts: the last objective of each restart, of which `model` is the best.
    """

    model: Model
    objective: Float[np.ndarray, " updates"]
    log_likelihood: Float[np.ndarray, " updates"]
    converged: bool
    restarts: Float[np.ndarray, " restarts"]


def fit(
    key: PRNGKey,
    family: Family,
    data: ArrayLike,
    *,
    initial: Model | None = None,
    restarts: int = 1,
    tolerance: int | float = 1e-6,
    max_iterations: int = 500,
    batch_size: int = 512,
) -> Fit:
    """Climb from each start until an update gains at most `tolerance` nats per datum; return the best end.

    data: `(n, d)`. initial: the model to start from instead of `family.start`. batch_size: data held in memory by one
    block of a pass; the answer does not depend on it but for rounding. Raises ValueError for bad data or arguments
    before any work, and `NotMonotone` if the objective of a restart falls by more than rounding (an initial model
    below the variance floor may do that too) or is not finite.
    """
    at_least_one("restarts", restarts)
    at_least_one("max_iterations", max_iterations)
    at_least_one("batch_size", batch_size)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 nats per datum, got {tolerance}")
    if initial is not None and restarts != 1:
        raise ValueError(f"restarts must be 1 with an initial model, got {restarts}: EM itself is deterministic")
    prepared = family.prepare(as_data(data))
    if initial is None:
        starts = _starts(family, jax.random.split(key, restarts), prepared)
    else:
        starts = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], initial)
    size = min(batch_size, prepared.shape[0])
    return best(_climb_all(family, starts, prepared, tolerance, max_iterations, size))


class Climb(NamedTuple):
    """One ascent inside `jit`: the traces are padded with NaN after `updates + 1` entries."""

    model: Model
    objective: Float[Array, "*restarts updates"]
    log_likelihood: Float[Array, "*restarts updates"]
    updates: Int32[Array, "*restarts"]
    converged: Bool[Array, "*restarts"]


def climb(step: Callable[[Model], Step], start: Model, tolerance: Array, max_iterations: int) -> Climb:
    """Repeat the step until it gains at most the tolerance, which a fall or a NaN does too."""

    def one(state):
        done, following = state
        taken = step(following)
        updates = done.updates + 1
        objective = done.objective.at[updates].set(taken.objective)
        log_likelihood = done.log_likelihood.at[updates].set(taken.log_likelihood)
        gained = taken.objective - done.objective[jnp.maximum(updates - 1, 0)]
        converged = (updates > 0) & ~(gained > tolerance)
        return Climb(following, objective, log_likelihood, updates, converged), taken.model

    dtype = jax.eval_shape(lambda: step(start).objective).dtype
    blank = jnp.full(max_iterations + 1, jnp.nan, dtype)
    state = Climb(start, blank, blank, jnp.int32(-1), jnp.zeros((), bool)), start
    return jax.lax.while_loop(lambda s: ~s[0].converged & (s[0].updates < max_iterations), one, state)[0]


def best(climbs: Climb) -> Fit:
    """The restart that ended highest, every one of them having been checked to climb; raises `NotMonotone`."""
    updates = np.asarray(climbs.updates)
    ends = np.asarray(climbs.objective)[np.arange(len(updates)), updates]
    for trace, last in zip(np.asarray(climbs.objective), updates, strict=True):
        _check_ascent(trace[: last + 1])
    top = int(np.argmax(ends))
    stop = updates[top] + 1
    return Fit(
        jax.tree.map(lambda leaf: leaf[top], climbs.model),
        np.asarray(climbs.objective)[top, :stop],
        np.asarray(climbs.log_likelihood)[top, :stop],
        bool(climbs.converged[top]),
        ends,
    )


def _check_ascent(objective: np.ndarray) -> None:
    way_out = "use float64 or a higher floor, or look for a wrong E- or M-step"
    if not np.isfinite(objective).all():
        raise NotMonotone(f"the objective is {objective[-1]} after {len(objective) - 1} EM updates; {way_out}")
    # 4e-10 in float64, 7e-5 in float32: expanded squares lose (distance / scale)² units in the last place
    rounding = np.finfo(objective.dtype).eps ** 0.6 * (1 + np.abs(objective[:-1]))
    fall = -np.diff(objective)
    if (fall > rounding).any():
        worst = int(np.argmax(fall - rounding))
        raise NotMonotone(f"EM update {worst + 1} lowered the objective by {fall[worst]:.3g} nats a datum; {way_out}")


@functools.partial(jax.jit, static_argnames="family")
def _starts(family, keys, data):
    return jax.lax.map(lambda key: family.start(key, data), keys)


@functools.partial(jax.jit, static_argnames=("family", "max_iterations", "batch_size"))
def _climb_all(family, starts, data, tolerance, max_iterations, batch_size):
    summary = family.summarise(data, batch_size)
    return jax.lax.map(
        lambda start: climb(lambda model: family.step(model, summary), start, tolerance, max_iterations), starts
    )


def batches(data: Data, batch_size: int, dtype: Any) -> Batches:
    """Cut the data into blocks of equal size, the last one padded with copies of the first datum."""
    n, d = data.shape
    blocks = math.ceil(n / batch_size)
    size = math.ceil(n / blocks)
    padding = blocks * size - n
    present = (jnp.arange(blocks * size) < n).astype(dtype)
    if padding:
        data = jnp.concatenate([data, jnp.broadcast_to(data[0], (padding, d))])
    return Batches(data.reshape(blocks, size, d), present.reshape(blocks, size))


def sum_over(blocks: Batches, sums: Callable[[Array, Array], Any]) -> Any:
    """Σ over the blocks of `sums(data, present)`, one block in memory at a time."""

    def add(total, block):
        return jax.tree.map(jnp.add, total, sums(*block)), None

    shapes = jax.eval_shape(lambda: sums(blocks.data[0], blocks.present[0]))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zero, blocks)[0]


def as_data(data: ArrayLike) -> np.ndarray:
    """The data as a NumPy array `(n, d)`; ValueError unless it is a finite, real, non-empty matrix."""
    values = np.asarray(data)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"data must have shape (n, d) with n and d at least 1, got {values.shape}; for d = 1 pass "
                         "data[:, None]")  # fmt: skip
    if not (
        np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer) or values.dtype == bool
    ):
        raise ValueError(f"data must be real numbers, got {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"data must be finite, got {(~np.isfinite(values)).sum()} NaN or infinite entries; drop them")
    return values


def as_real(values: np.ndarray) -> Array:
    """The data in their own floating-point type, integers in JAX's default one."""
    floating = np.issubdtype(values.dtype, np.floating)
    return jnp.asarray(values) if floating else jnp.asarray(values, jnp.result_type(float))


def check_count(name: str, count: int, values: np.ndarray) -> None:
    """ValueError, naming the argument, unless there are as many data as components."""
    if count > values.shape[0]:
        raise ValueError(f"{name} must be at most the number of data, {values.shape[0]}, got {count}")


def at_least_one(name: str, value: int) -> None:
    """ValueError, naming the argument, unless it is at least one."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
