"""What one estimate costs: calls of `f`, counted in the traced program; XLA's FLOPs; and seconds, measured.

Start at `measure`. A call of f is counted where the surrogate is traced, once for each sample, and a derivative of f
that the estimator takes itself counts as one more; the derivative of the surrogate, which every estimator needs, does
not. Branches count at their most, loops of unknown length once.
"""

import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching

from vbjax.estimators.estimate import value_and_grad_at
from vbjax.types import GradientEstimator, Params, Problem

_BATCH, _BATCH_NUMBERS, _ROUNDS = 256, 2**20, 7
_quiet = threading.Lock()

_mark = Primitive("evaluation")
_mark.def_abstract_eval(lambda x: x)
_slope = Primitive("evaluation_slope")
_slope.def_abstract_eval(lambda slope, value: slope)


def _jvp(primals, tangents):
    (value,), (slope,) = primals, tangents
    return _mark.bind(value), slope if type(slope) is ad.Zero else _slope.bind(slope, value)


def _slope_jvp(primals, tangents):
    (slope, value), (change, _) = primals, tangents
    return _slope.bind(slope, value), change if type(change) is ad.Zero else _slope.bind(change, value)


def _batch(values, axes):
    # the value rides along because one slope may stand for all draws, whose derivatives are many
    size = next(x.shape[axis] for x, axis in zip(values, axes, strict=True) if axis is not None)
    stacked = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(values, axes, strict=True)
    ]
    return _slope.bind(*stacked), 0


batching.defvectorized(_mark)
batching.primitive_batchers[_slope] = _batch
ad.primitive_jvps[_mark], ad.primitive_jvps[_slope] = _jvp, _slope_jvp
ad.primitive_transposes[_slope] = lambda cotangent, slope, value: [_slope.bind(cotangent, value), None]


class Cost(NamedTuple):
    """Of one estimate of value and gradient: calls of f; FLOPs, by XLA; microseconds, on this machine."""

    evaluations: float
    flops: float
    microseconds: float


def measure(estimator: GradientEstimator, problem: Problem, params: Params) -> Cost:
    """Count and time one estimate; the time is the best of several batches, noise included.

    Raises `NotAvailable` if q lacks what the estimator needs.
    """
    q, _ = problem(params)
    state = estimator.init(q)

    def one(key, params, state):
        noise = estimator.noise(problem(params)[0]).sample(key)
        return ravel_pytree(value_and_grad_at(noise, estimator, problem, params, state))[0]

    size = sum(np.size(x) for x in jax.tree.leaves(params))
    batch = int(min(_BATCH, max(1, _BATCH_NUMBERS // max(size, 1))))
    keys = jax.random.split(jax.random.key(0), batch)
    program = jax.jit(jax.vmap(one, (0, None, None))).lower(keys, params, state).compile()
    analysis = program.cost_analysis() or {}
    seconds = []
    with _quiet:  # one clock at a time; a compilation beside it is what the best of several rounds is for
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            jax.block_until_ready(program(keys, params, state))
            seconds.append(time.perf_counter() - begin)
    flops = float(analysis.get("flops", np.nan)) / batch
    return Cost(float(evaluations(estimator, problem, params, state)), flops, 1e6 * min(seconds) / batch)


def evaluations(estimator: GradientEstimator, problem: Problem, params: Params, state: Any = None) -> int:
    """How often one estimate calls f."""
    q, f = problem(params)
    state = estimator.init(q) if state is None else state
    noise = jax.eval_shape(estimator.noise(q).sample, jax.random.key(0))

    def surrogate(noise):
        return estimator.surrogate(state, noise, lambda z: _mark.bind(jnp.asarray(f(z))), q)

    return _count(jax.make_jaxpr(surrogate)(noise).jaxpr)


def _count(jaxpr: Any) -> int:
    # by identity: literals have no hash
    used = {id(x) for x in (*jaxpr.outvars, *(x for equation in jaxpr.eqns for x in equation.invars))}
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive in (_mark, _slope):
            total += equation.invars[0].aval.size if id(equation.outvars[0]) in used else 0
            continue
        inner = [_count(sub) for sub in _programs(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _programs(parameters: dict[str, Any]):
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
