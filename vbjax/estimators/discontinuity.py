"""Where a function jumps: a static check of its program, for estimators that differentiate along the sample.

Start at `require_continuous`. The check follows the sample through the operations of f and sorts every number into
one of five kinds (`_Kind`). It refuses what it knows to jump and lets through what it cannot judge, above all a
choice between expressions in the sample: `where(z > 0, z, 0)` is continuous, `where(z > 0, z + 1, 0)` is not.
"""

import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vbjax.types import Event, NotAvailable, Objective


class _Kind(enum.IntEnum):
    """How a number depends on the sample; a constant infinity or NaN tells of itself when it is chosen."""

    INFINITE = 0
    CONSTANT = 1
    CONTINUOUS = 2
    STEPS = 3
    """Constant in pieces that comparisons or signs cut: times something continuous it is a choice like any other."""
    JUMP = 4


def require_continuous(estimator: str, f: Objective, event: Event) -> None:
    """Raise `NotAvailable`, naming the estimator, if f jumps as a function of the event.

    event: one event or its `jax.ShapeDtypeStruct`; f is traced, never run. A jump is a value that depends on the
    event by rounding, remainders, integers, comparisons turned into numbers, signs, or a choice by the event between
    constants. `stop_gradient` hides what it stops (straight-through estimates mean to); functions with a derivative
    of their own (`jax.custom_jvp`) and what `continuous` marks are believed.
    """
    program = jax.make_jaxpr(lambda event: f(event))(event)
    kinds = [_Kind.CONTINUOUS] * len(program.jaxpr.invars)
    if max(_walk(program, kinds), default=_Kind.CONSTANT) >= _Kind.STEPS:
        raise NotAvailable(
            f"{estimator} differentiates along the sample, which sees no jump, and f jumps there (it rounds, compares "
            "or takes an argmax); use score_function, or mark what is continuous all the same by "
            "estimators.continuous(f)."
        )


def continuous(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which `require_continuous` believes to be continuous: an interpolation in a table, say."""

    @functools.wraps(f, updated=())
    def _declared_continuous(*args, **kwargs):
        return f(*args, **kwargs)

    _declared_continuous.__name__ = _DECLARED
    return jax.jit(_declared_continuous)


_DECLARED = "declared_continuous"
_BELIEVED = {_DECLARED, "interp", "_interp", "_map_coordinates", "expm"}
"""Names of jitted functions that round inside and are continuous all the same."""

_ROUNDING = {"floor", "ceil", "round", "rem", "nextafter"}
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
_OPAQUE = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_linear_solve"}


def _walk(program: Any, kinds: Sequence[_Kind]) -> list[_Kind]:
    """The kinds of a program's results, given those of its arguments."""
    jaxpr, constants = (program.jaxpr, program.consts) if hasattr(program, "jaxpr") else (program, ())
    known = dict(zip(jaxpr.constvars, map(_constant, constants), strict=False))
    known.update(zip(jaxpr.invars, kinds, strict=True))

    def kind(atom):
        return _constant(atom.val) if isinstance(atom, core.Literal) else known.get(atom, _Kind.CONSTANT)

    for equation in jaxpr.eqns:
        results = _results(equation, [kind(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [kind(atom) for atom in jaxpr.outvars]


def _constant(value: Any) -> _Kind:
    dtype = getattr(value, "dtype", np.dtype(type(value)))
    if isinstance(value, jax.core.Tracer) or np.size(value) != 1 or not jnp.issubdtype(dtype, jnp.floating):
        return _Kind.CONSTANT
    return _Kind.CONSTANT if np.isfinite(np.asarray(value, np.float64)).all() else _Kind.INFINITE


def _results(equation: Any, kinds: list[_Kind]) -> list[_Kind]:
    """The kinds of the results of one operation."""
    name, parameters = equation.primitive.name, equation.params
    dependent = any(kind > _Kind.CONSTANT for kind in kinds)
    count = len(equation.outvars)
    if name == "stop_gradient":
        return [_Kind.CONSTANT] * count
    if not dependent:
        # only what moves a constant about, or turns its sign or type, keeps it infinite
        return [kinds[0] if len(kinds) == count == 1 else _Kind.CONSTANT] * count
    if name == "cond":
        branches = [_walk(branch, kinds[1:]) for branch in parameters["branches"]]
        return [_chosen(kinds[0], results) for results in zip(*branches, strict=True)]
    if name == "while":
        return _while(parameters, kinds)
    if name == "scan":
        fixed, carried = _scan_sizes(parameters)
        return _repeated(parameters["jaxpr"], kinds[:fixed], kinds[fixed : fixed + carried], kinds[fixed + carried :])
    if name in _OPAQUE or parameters.get("name") in _BELIEVED:
        if _Kind.CONTINUOUS not in kinds:
            return [max(kinds)] * count  # continuous in what jumps
        believed = parameters.get("name") in _BELIEVED or _Kind.JUMP not in kinds
        return [_Kind.CONTINUOUS if believed else _Kind.JUMP] * count
    inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
    if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(kinds):
        return _walk(inner, kinds)
    if name == "sort":
        moved = any(kind > _Kind.CONSTANT for kind in kinds[: parameters["num_keys"]])
        return [_Kind.JUMP if moved and kind <= _Kind.CONSTANT else kind for kind in kinds]
    if name in ("lu", "geqp3"):
        # the choice of a pivot changes no solution
        return [_joined(kinds) if _is_inexact(result) else _Kind.CONSTANT for result in equation.outvars]
    return [_typed(_value(name, kinds), result, kinds) for result in equation.outvars]


def _value(name: str, kinds: list[_Kind]) -> _Kind:
    """The kind of the value of a plain operation."""
    if name in _ROUNDING and _Kind.CONTINUOUS in kinds:
        return _Kind.JUMP
    if name == "sign":
        return max(_Kind.STEPS, _joined(kinds))
    if name in ("select_n", "gather", "dynamic_slice", "dynamic_update_slice") or name.startswith("scatter"):
        index, branches = {
            "select_n": (kinds[:1], kinds[1:]),
            "gather": (kinds[1:2], kinds[:1]),
            "dynamic_slice": (kinds[1:], kinds[:1]),
            "dynamic_update_slice": (kinds[2:], kinds[:2]),
        }.get(name, (kinds[1:2], [kinds[0], kinds[-1]]))
        return _chosen(max(index), branches)
    if name in _PRODUCTS and set(kinds) == {_Kind.STEPS, _Kind.CONTINUOUS}:
        return _Kind.CONTINUOUS
    return _joined(kinds)


def _typed(kind: _Kind, result: Any, kinds: list[_Kind]) -> _Kind:
    """What remains of a kind in a type: numbers become integers by rounding, truth values by comparison."""
    if kind <= _Kind.CONSTANT or _is_inexact(result):
        return kind
    if result.aval.dtype == np.dtype(bool):
        return _Kind.STEPS
    return _Kind.JUMP if _Kind.CONTINUOUS in kinds else kind


def _is_inexact(result: Any) -> bool:
    return jnp.issubdtype(result.aval.dtype, jnp.inexact)


def _joined(kinds: Sequence[_Kind]) -> _Kind:
    """Several numbers in one expression: something continuous with steps on it jumps."""
    worst = max(kinds, default=_Kind.CONSTANT)
    return _Kind.JUMP if worst == _Kind.STEPS and _Kind.CONTINUOUS in kinds else max(worst, _Kind.CONSTANT)


def _chosen(index: _Kind, branches: Sequence[_Kind]) -> _Kind:
    """A choice between values; by the sample and between finite constants it makes steps."""
    finite = [kind for kind in branches if kind != _Kind.INFINITE]
    value = _joined(finite)
    if index <= _Kind.CONSTANT or value > _Kind.CONSTANT:
        return value
    return _Kind.CONTINUOUS if len(finite) < len(branches) else _Kind.STEPS


def _repeated(body: Any, fixed: list[_Kind], carry: list[_Kind], each: list[_Kind]) -> list[_Kind]:
    """The results of a loop: the kinds of what is carried can only grow, so they come to rest."""
    while True:
        results = _walk(body, [*fixed, *carry, *each])
        after = [_joined([old, new]) for old, new in zip(carry, results, strict=False)]
        if after == carry:
            return [*carry, *results[len(carry) :]]
        carry = after


def _scan_sizes(parameters: Any) -> tuple[int, int]:
    """How many constants and how many carried numbers a scan has; JAX 0.12 tells by the trees of its arguments."""
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    fixed, carried, _ = parameters["ft_in"].elts
    return len(fixed), len(carried)


def _while(parameters: Any, kinds: list[_Kind]) -> list[_Kind]:
    """A loop that the sample ends (an iteration to convergence) makes steps of what counts, not of what converges."""
    test, body = parameters["cond_nconsts"], parameters["body_nconsts"]
    carry = _repeated(parameters["body_jaxpr"], kinds[test : test + body], kinds[test + body :], [])
    (ends,) = _walk(parameters["cond_jaxpr"], [*kinds[:test], *carry])
    if ends <= _Kind.CONSTANT:
        return carry
    jaxpr = parameters["body_jaxpr"].jaxpr
    kept = [old is new for old, new in zip(jaxpr.invars[body:], jaxpr.outvars, strict=True)]
    return [max(kind, _Kind.CONSTANT if same else _Kind.STEPS) if kind <= _Kind.CONSTANT else kind
            for kind, same in zip(carry, kept, strict=True)]  # fmt: skip
