"""Problems and estimators out of any Python file, and its mistakes told by file, line and message.

Start at `load`. What goes wrong inside the user's code, at import or later while it is traced, becomes a `UserError`
through `blame`: no traceback of ours.
"""

import ast
import contextlib
import hashlib
import inspect
import itertools
import linecache
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vbjax.estimators.catalogue import Method
from vbjax.runs import RunError
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import GradientEstimator, NotAvailable

EXAMPLE = """\
    import jax.numpy as jnp
    from vbjax.distributions import Normal
    from vbjax.estimators import score_function
    params = {"loc": 0.5, "scale": 1.0}
    def problem(p): return Normal(p["loc"], p["scale"]), lambda z: jnp.cosh(z)
    def mine(samples): return score_function(samples)"""
"""A whole file: a problem with its parameters, and an estimator."""

_count = itertools.count()


class UserError(RunError):
    """A mistake in the user's file; the message names the file, the line and what is wrong."""


class Loaded(NamedTuple):
    """What a file defines, by name. digest: of its text, so that a study can tell whether it has changed."""

    path: Path
    problems: dict[str, ToyProblem]
    estimators: dict[str, Method | GradientEstimator]
    digest: str
    module: types.ModuleType


def load(path: str | Path) -> Loaded:
    """Execute a Python file and return the problems and estimators in it.

    A problem is a `ToyProblem` (or a list PROBLEMS of them), or a function `problem` (`NAME_problem`) from parameters
    to (q, f) beside its parameters `params` (`NAME_params`). An estimator is a `GradientEstimator`, a catalogue
    `Method`, or a function whose first argument is called `samples`; or a list ESTIMATORS of them. Raises UserError.
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    module = types.ModuleType(f"vbjax_study_{path.stem}_{next(_count)}".replace(" ", "_"))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with blame(path):
            exec(compile(ast.parse(source, str(path)), str(path), "exec"), vars(module))
    finally:
        sys.path.remove(str(path.resolve().parent))
    return Loaded(path, _problems(module, path), _estimators(module, path), hashlib.sha256(source).hexdigest(), module)


def named(loaded: Loaded, name: str) -> Method | GradientEstimator:
    """The estimator of this name, also a function that does not look like a factory. Raises UserError."""
    if name in loaded.estimators:
        return loaded.estimators[name]
    value = getattr(loaded.module, name, None)
    if not callable(value):
        known = ", ".join(loaded.estimators) or "none"
        raise UserError(f"{loaded.path} defines no estimator {name!r} (it has: {known})")
    return _method(name, value, loaded.path)


@contextlib.contextmanager
def blame(*paths: Path) -> Iterator[None]:
    """Turn an exception that passes through one of these files into a UserError that names its last line there.

    Other exceptions pass, and so does `NotAvailable`: an estimator that refuses a problem makes no mistake.
    """
    try:
        yield
    except (UserError, NotAvailable, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        if error.filename not in {str(path) for path in paths}:
            raise
        raise UserError(_located(error.filename, error.lineno or 1, f"{type(error).__name__}: {error.msg}")) from error
    except BaseException as error:
        files = {str(path) for path in paths}
        lines = [(f.f_code.co_filename, n) for f, n in _frames(error) if f.f_code.co_filename in files]
        if not lines:
            raise
        message = "it calls sys.exit" if isinstance(error, SystemExit) else f"{type(error).__name__}: {_brief(error)}"
        raise UserError(_located(*lines[-1], message)) from error


def where(function: Any) -> str:
    """`FILE.py:LINE: ` of a function, or nothing where it has none."""
    function = getattr(function, "__wrapped__", function)  # of a cache
    function = getattr(function, "func", function)  # of a partial
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""


def _frames(error: BaseException):
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _brief(error: BaseException) -> str:
    """What an exception says, without JAX's advice about where to read on."""
    text = str(error).strip().split("\n\n")[0]
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n    ".join(lines[:4]) if lines else "(no message)"


def _located(path: str, line: int, message: str) -> str:
    linecache.checkcache(path)
    source = linecache.getline(path, line).strip()
    return f"{path}:{line}: {message}" + (f"\n    {source}" if source else "")


def _problems(module: types.ModuleType, path: Path) -> dict[str, ToyProblem]:
    members, found = vars(module), {}
    listed = members.get("PROBLEMS", ())
    if isinstance(listed, Mapping):
        listed = list(listed.values())
    if not isinstance(listed, Sequence) or not all(isinstance(item, ToyProblem) for item in listed):
        raise UserError(
            f"{path}: PROBLEMS must be a list of vbjax.studies.ToyProblem(name, statement, problem, params)"
        )
    for item in (*listed, *(value for value in members.values() if isinstance(value, ToyProblem))):
        found[item.name] = item
    for name, function in members.items():
        if not callable(function) or not (name == "problem" or name.endswith("_problem")):
            continue
        if getattr(function, "__module__", None) != module.__name__:
            continue
        partner = f"{name.removesuffix('problem')}params"
        if partner not in members:
            raise UserError(f"{where(function)}{name} needs its parameters beside it: {partner} = {{...}}")
        title = path.stem if name == "problem" else name.removesuffix("_problem")
        found[title] = ToyProblem(
            title, "", function, members[partner], (inspect.getdoc(function) or "").split("\n")[0], str(path)
        )
    for problem in found.values():
        _check_params(problem, path)
    return found


def _check_params(problem: ToyProblem, path: Path) -> None:
    import jax

    for key, leaf in jax.tree_util.tree_leaves_with_path(problem.params):
        name = jax.tree_util.keystr(key, simple=True, separator=".") or "params"
        try:
            values = np.asarray(leaf, float)
        except (TypeError, ValueError):
            raise UserError(
                f"{path}: parameter {name} of {problem.name} is {leaf!r}, not a number or an array"
            ) from None
        if not np.isfinite(values).all():
            raise UserError(f"{path}: parameter {name} of {problem.name} is not finite: {leaf!r}")
    if not jax.tree.leaves(problem.params):
        raise UserError(f"{path}: {problem.name} has no parameters to differentiate by: params = {problem.params!r}")


def _estimators(module: types.ModuleType, path: Path) -> dict[str, Method | GradientEstimator]:
    members, found = vars(module), {}
    listed = members.get("ESTIMATORS", ())
    if isinstance(listed, Mapping):
        found.update({name: _method(name, value, path) for name, value in listed.items()})
        listed = ()
    for item in listed:
        name = getattr(item, "name", None) or getattr(getattr(item, "spec", None), "name", None)
        name = name or getattr(item, "__name__", None)
        found[str(name)] = _method(str(name), item, path)
    for name, value in members.items():
        if isinstance(value, (GradientEstimator, Method)):
            found[name] = _method(name, value, path)
        elif inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            first = next(iter(inspect.signature(value).parameters), None)
            if first == "samples":
                found[name] = _method(name, value, path)
    return found


def _method(name: str, value: Any, path: Path) -> Method | GradientEstimator:
    if isinstance(value, GradientEstimator):
        return value
    if isinstance(value, Method):
        return value._replace(name=name)
    if not callable(value):
        raise UserError(f"{path}: {name} is no estimator: a GradientEstimator, or a function of samples that makes one")
    summary = (inspect.getdoc(value) or "").split("\n")[0]
    return Method(name, path.name, value, summary, str(path))
