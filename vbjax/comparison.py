"""Two estimators against each other: the ratio of their variances on common noise, and what an estimate costs.

Start at `compare`. Its error bars take the pairing and the tails into account, unlike the F-test, which assumes
normal draws and rejects true nulls most of the time.
"""

import functools
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching, mlir
from scipy import stats

from vbjax.estimators.estimate import value_and_grad_at
from vbjax.moments import estimate_draws
from vbjax.random import rekey
from vbjax.replication import Replicated, blocks
from vbjax.types import GradientEstimator, Params, PRNGKey, Problem

BATCH = 32
"""Replications whose variance counts as one observation of a comparison."""


class LogRatio(NamedTuple):
    """log(first/second) with its standard error; z: of no difference; p_value: two-sided, by Student's t."""

    value: Any
    standard_error: Any
    z: Any
    p_value: Any


class Comparison(NamedTuple):
    """Variances of two gradient estimators, compared on common keys; ratios are first over second, in nats.

    variance: per coordinate, pytrees like the parameters. trace: of the summed variances. work_normalised: the trace
    times the evaluations of f per estimate. count: replications of each.
    """

    variance: LogRatio
    trace: LogRatio
    work_normalised: LogRatio
    count: int


def compare(
    key: PRNGKey,
    first: GradientEstimator,
    second: GradientEstimator,
    problem: Problem,
    params: Params,
    *,
    replications: int,
    paired: bool = True,
) -> Comparison:
    """Compare the variances of two estimators of one gradient, by default on the same keys.

    problem: `params -> (q, f)`. The mean over batches of `BATCH` replications of the variance within each is
    unbiased, and batches are independent: the delta method gives log ratios whose standard errors know how the two
    vary together and how heavy their tails are. Replications that fill no batch are not drawn. Evaluations are
    counted, not believed. A coordinate without variance in both has a NaN. Raises ValueError for fewer than 64
    replications.
    """
    params = jax.tree.map(jnp.asarray, params)
    value, error, batches = _log_ratios(key, (first, second), problem, params, replications, paired)
    work = math.log(_evaluations(first, problem, params) / _evaluations(second, problem, params))
    flat, unravel = ravel_pytree(params)

    def ratio(value, error, shape=lambda x: x):
        return LogRatio(*(shape(x) for x in _tested(value, error, batches)))

    return Comparison(
        variance=ratio(value[:-1], error[:-1], lambda x: unravel(jnp.asarray(x, flat.dtype))),
        trace=ratio(value[-1], error[-1], float),
        work_normalised=ratio(value[-1] + work, error[-1], float),
        count=batches * BATCH,
    )


def trace_ratio(
    key: PRNGKey,
    first: GradientEstimator,
    second: GradientEstimator,
    problem: Problem,
    params: Params,
    *,
    replications: int,
    paired: bool = True,
) -> LogRatio:
    """The log ratio of the summed variances alone, as `compare`, which counts evaluations as well."""
    params = jax.tree.map(jnp.asarray, params)
    value, error, batches = _log_ratios(key, (first, second), problem, params, replications, paired)
    return LogRatio(*map(float, _tested(value[-1], error[-1], batches)))


def log_ratio(a, b, aa, bb, ab, n: int) -> tuple[Any, Any]:
    """log(E a/E b) and its standard error, by the delta method, from the means of a, b, a², b², ab over n pairs."""
    with np.errstate(all="ignore"):
        relative = aa / a**2 + bb / b**2 - 2 * ab / (a * b)
        return np.log(a / b), np.sqrt(np.maximum(relative, 0) / (n - 1))


def _log_ratios(key, estimators, problem, params, replications: int, paired: bool) -> tuple[Any, Any, int]:
    """Log ratios of the coordinates' variances, the trace's last; their standard errors; the number of batches."""
    batches = replications // BATCH
    if not 2 <= batches < 2**31 // BATCH:
        raise ValueError(f"replications must be from {2 * BATCH} to below 2**31, got {replications}")
    cross = _cross_products([estimate_draws(estimator, problem, params) for estimator in estimators], paired)
    total: Any = None
    for block in blocks(rekey(key), cross, replications=batches * BATCH, batch_multiple=BATCH):
        sums = np.asarray(block.statistics, np.float64)
        total = sums if total is None else total + sums
    a, b, aa, bb, ab = total / batches
    return *log_ratio(a, b, aa, bb, ab, batches), batches


def _tested(value, error, batches: int) -> tuple[Any, Any, Any, Any]:
    with np.errstate(all="ignore"):
        z = value / error
    return value, error, z, 2 * stats.t.sf(np.abs(z), batches - 1)


def _cross_products(draws: list[Replicated], paired: bool) -> Replicated:
    """Both estimators as one; fold sums a, b, a², b², ab of the batches' variances, the trace as a last coordinate."""
    first, second = draws
    functions = _paired_functions(first.sample, second.sample, first.evaluate, second.evaluate, paired)
    start = first.start[0].mean
    return Replicated(*functions, np.zeros((5, start.size), start.dtype), (first.arguments, second.arguments))


@functools.lru_cache(maxsize=64)
def _paired_functions(sample_first, sample_second, evaluate_first, evaluate_second, paired: bool):
    """The same functions for the same estimators, so that what was compiled for them is found again."""

    def keys(key):
        # one key for both is what pairs them
        return (key, jax.random.clone(key)) if paired else jax.random.split(key)

    def sample(arguments, key):
        samples = (sample_first, sample_second)
        return tuple(draw(args, k) for draw, args, k in zip(samples, arguments, keys(key), strict=True))

    def evaluate(arguments, noise):
        evaluates = (evaluate_first, evaluate_second)
        return tuple(value(args, x)[1:] for value, args, x in zip(evaluates, arguments, noise, strict=True))

    def variances(x):
        x = x.reshape(-1, BATCH, x.shape[-1])
        squares = ((x - x.mean(1, keepdims=True)) ** 2).sum(1) / (BATCH - 1)
        return jnp.concatenate([squares, squares.sum(1, keepdims=True)], 1)

    def fold(sums, x, counted):
        whole = counted.reshape(-1, BATCH).all(1)[:, None]
        a, b = (jnp.where(whole, variances(x_i), 0) for x_i in x)
        return sums + jnp.stack([s.sum(0) for s in (a, b, a * a, b * b, a * b)])

    return sample, evaluate, fold


class Cost(NamedTuple):
    """What one estimate costs.

    evaluations: calls of f; gradients: passes back through f, each about as dear as a call or two. flops, bytes: XLA's
    own count of a vectorised batch, per estimate, NaN where the platform has none. seconds: median of repeats.
    """

    name: str
    evaluations: int
    gradients: int
    flops: float
    bytes: float
    seconds: float


def costs(
    key: PRNGKey,
    estimators: Sequence[GradientEstimator],
    problem: Problem,
    params: Params,
    *,
    batch: int = 1024,
    repeats: int = 7,
) -> list[Cost]:
    """Count the evaluations, operations, bytes and seconds of one estimate, sampling included.

    The estimators take turns, so that a machine whose speed drifts is as slow for one as for the other. batch:
    estimates computed at once. Raises `NotAvailable` if q lacks what an estimator needs.
    """
    params = jax.tree.map(jnp.asarray, params)
    keys = jax.random.split(rekey(key), batch)
    programs, seconds = [], [[] for _ in estimators]
    for estimator in estimators:
        what = estimate_draws(estimator, problem, params)

        def batch_of_draws(keys, arguments, what=what):
            return jax.vmap(lambda key: what.evaluate(arguments, what.sample(arguments, key)))(keys)

        programs.append((jax.jit(batch_of_draws).lower(keys, what.arguments).compile(), what.arguments))
    for _ in range(repeats):
        for (program, arguments), times in zip(programs, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(keys, arguments))
            times.append((time.perf_counter() - begin) / batch)
    rows = []
    for estimator, (program, _), times in zip(estimators, programs, seconds, strict=True):
        analysis = program.cost_analysis() or {}
        counts = count_evaluations(estimator, problem, params)
        flops, accessed = (analysis.get(name, math.nan) / batch for name in ("flops", "bytes accessed"))
        rows.append(Cost(estimator.spec.name, *counts, flops, accessed, statistics.median(times)))
    return rows


def count_evaluations(estimator: GradientEstimator, problem: Problem, params: Params) -> tuple[int, int]:
    """How often one estimate calls f, and how often it goes back through f, counted in the traced program.

    Calls under `vmap` and `scan` count as often as they happen; of a conditional's branches the dearest counts.
    Raises ValueError for a call inside a while loop, whose length nobody knows.
    """
    params = jax.tree.map(jnp.asarray, params)
    q, _ = problem(params)

    def marked(params):
        q, f = problem(params)
        return q, lambda z: _forward.bind(jnp.asarray(f(z)))

    noise = jax.eval_shape(estimator.noise(q).sample, rekey(jax.random.key(0)))
    state = estimator.init(q)
    program = jax.make_jaxpr(lambda noise, params: value_and_grad_at(noise, estimator, marked, params, state))
    traced = program(noise, params).jaxpr
    return _count(traced, _forward), _count(traced, _backward)


def _evaluations(estimator, problem, params) -> int:
    return max(1, sum(count_evaluations(estimator, problem, params)))


def _count(jaxpr: Jaxpr, mark: Primitive) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive is mark:
            total += math.prod(cast(Any, equation.outvars[0].aval).shape)
            continue
        inner = [_count(program, mark) for program in _programs(equation.params)]
        if equation.primitive.name == "while" and any(inner):
            raise ValueError("f is called inside a while loop, so its calls cannot be counted")
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * (max(inner, default=0) if equation.primitive.name == "cond" else sum(inner))
    return total


def _programs(parameters: dict[str, Any]) -> list[Jaxpr]:
    found = []
    for value in jax.tree.leaves(tuple(parameters.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))):
        if isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
    return found


def _mark(name: str) -> Primitive:
    """An identity that stays visible in a traced program, however it is mapped or differentiated."""
    mark = Primitive(name)
    mark.def_impl(lambda x: x)
    mark.def_abstract_eval(lambda x: x)
    batching.defvectorized(mark)
    mlir.register_lowering(mark, lambda _, x: [x])
    return mark


_forward, _backward = _mark("evaluation_of_f"), _mark("gradient_of_f")
_tangent = _mark("tangent_of_f")


def _push_forward(primals, tangents):
    (x,), (tangent,) = primals, tangents
    out = _forward.bind(x)
    return out, tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent)


ad.primitive_jvps[_forward] = _push_forward
ad.deflinear2(_tangent, lambda cotangent, _: [_backward.bind(cotangent)])
ad.deflinear2(_backward, lambda cotangent, _: [_backward.bind(cotangent)])
