"""A statement of the lectures as something that can be checked, and the check.

An `Identity` holds its two sides by independent routes: `lhs` asks the library, `rhs` an oracle that never calls it
(SciPy, NumPy, enumeration, algebra of another kind). Every entry carries a control: a wrong variant of one side,
which the same test must reject, or the test itself is broken. Write an entry as a function that returns an
`Identity` and decorate it with `entry`; `lower_bound.elbo_decomposition` is a good first one to read.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from scipy.special import ndtri

from vbjax.types import Estimate

Family = Callable[[Any], Any]
"""A NumPy generator -> an instance, whose numbers may still be arrays."""

Kind = Literal["identity", "inequality", "limit", "behaviour", "claim"]
Answer = Mapping[str, Any]
"""What a side says: quantities by name, each an array, a number, or an `Estimate` with its standard error."""

Side = Callable[..., Answer]
"""`instance -> answer`; for a `Statistical` test the left side is `(key, instance) -> answer`."""


@dataclasses.dataclass(frozen=True)
class _Tolerance:
    """A comparison of exact sides: errors up to `tolerance` pass, controls must be out by ten times that."""

    tolerance: float

    @property
    def rejection(self) -> float:
        """The error from which on a control counts as rejected."""
        return 10 * self.tolerance

    def limit(self, size: int) -> float:
        """The largest error that passes, for sides of that many numbers."""
        return self.tolerance


class Agreement(_Tolerance):
    """The sides are equal: every difference is at most `tolerance` times the right side's size, or times one."""

    relation = "="

    def error(self, lhs: "Numbers", rhs: "Numbers") -> float:
        """Largest difference, relative to the right side where that is larger than one."""
        return float(np.max(np.abs(_difference(lhs, rhs)) / _size(rhs)))


class AtMost(_Tolerance):
    """The left side never exceeds the right one by more than `tolerance` times the right side's size, or one."""

    relation = "≤"

    def error(self, lhs: "Numbers", rhs: "Numbers") -> float:
        """Largest excess of the left side, zero if there is none."""
        return float(np.max(np.maximum(_difference(lhs, rhs), 0) / _size(rhs)))


class AtLeast(_Tolerance):
    """The left side never falls below the right one by more than `tolerance` times the right side's size, or one."""

    relation = "≥"

    def error(self, lhs: "Numbers", rhs: "Numbers") -> float:
        """Largest shortfall of the left side, zero if there is none."""
        return float(np.max(np.maximum(-_difference(lhs, rhs), 0) / _size(rhs)))


class Statistical(NamedTuple):
    """A sampled left side agrees with an exact right one, at a rate of false alarms that all its numbers share.

    error_rate: two-sided, for the entry as a whole (Bonferroni over its numbers). The control must be out by more
    than eight standard errors.
    """

    error_rate: float = 1e-5
    relation = "="

    @property
    def rejection(self) -> float:
        """The |z| from which on a control counts as rejected."""
        return 8.0

    def limit(self, size: int) -> float:
        """The largest |z| that passes, for sides of that many numbers."""
        return float(-ndtri(self.error_rate / (2 * size)))

    def error(self, lhs: "Numbers", rhs: "Numbers") -> float:
        """Largest |z|, the difference in standard errors."""
        standard_error = np.hypot(lhs.standard_error, rhs.standard_error)
        difference = np.abs(_difference(lhs, rhs))
        certain = np.where(difference == 0, 0, np.inf)
        return float(
            np.max(np.where(standard_error > 0, difference / np.where(standard_error > 0, standard_error, 1), certain))
        )


class Numbers(NamedTuple):
    """One side's answer, flattened: names, values and standard errors (zero where exact), all of one length."""

    names: tuple[str, ...]
    values: np.ndarray
    standard_error: np.ndarray


class Control(NamedTuple):
    """A wrong variant of one side, which must be rejected.

    claim: in words, what is wrong with it. on_slide: whether it is what the slide says, and not only a typical slip.
    """

    claim: str
    lhs: Side | None = None
    rhs: Side | None = None
    on_slide: bool = False

    @property
    def side(self) -> Side:
        """The wrong variant itself, whichever side it replaces."""
        return cast(Side, self.lhs or self.rhs)


@dataclasses.dataclass(frozen=True)
class Identity:
    """One statement of the lectures.

    title: a line of plain words. statement: LaTeX. lecture, slide: where it stands. instance: a named tuple of
    numbers, whose repr is the code that rebuilds it. family: draws other instances, on which the statement must hold
    and the control be rejected too. correction: what is wrong on the slide and how it should read, None if nothing is;
    `$…$` and backticks are allowed in it. id and chapter are set by `entry`.
    """

    title: str
    statement: str
    lecture: str
    slide: str
    kind: Kind
    instance: Any
    family: Family
    lhs: Side
    rhs: Side
    test: Agreement | AtMost | AtLeast | Statistical
    control: Control
    correction: str | None = None
    id: str = ""
    chapter: int = 0

    def __post_init__(self):
        if (self.control.lhs is None) == (self.control.rhs is None):
            raise ValueError(f"{self.title}: a control replaces one side, the left or the right")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a check found.

    lhs, rhs: the two sides. control: the side that the control replaces, as it claims it to be. error, limit: in the
    test's own unit (relative error, violation, or |z|); the statement holds if error <= limit. control_error,
    control_limit: the same for the control, which is rejected if control_error > control_limit. failure: the
    exception that stopped a side, if one did. seconds: wall time, compilation included.
    """

    identity: Identity
    instance: Any
    seed: int
    lhs: Numbers
    rhs: Numbers
    control: Numbers
    error: float
    limit: float
    control_error: float
    control_limit: float
    seconds: float
    failure: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the two sides pass the test."""
        return self.failure is None and self.error <= self.limit

    @property
    def control_rejected(self) -> bool:
        """Whether the test saw that the control is wrong."""
        return self.failure is None and self.control_error > self.control_limit

    @property
    def passed(self) -> bool:
        """Whether the statement holds and its control is rejected."""
        return self.holds and self.control_rejected


def entry(chapter: int) -> Callable[[Callable[[], Identity]], Identity]:
    """Decorator: turn a function that returns an Identity into that Identity, its id being the function's name."""

    def build(declare: Callable[[], Identity]) -> Identity:
        return dataclasses.replace(declare(), id=declare.__name__.replace("_", "-"), chapter=chapter)

    return build


def draw(identity: Identity, *, seed: int, index: int) -> Any:
    """The instance of that index in the entry's family, made of plain Python numbers; the same for the same seed."""
    return _plain(identity.family(np.random.default_rng((zlib.crc32(identity.id.encode()), seed, index))))


def check(identity: Identity, *, seed: int = 0, instance: Any = None) -> Verdict:
    """Evaluate both sides and the control in float64 and judge them.

    seed: of the sampled sides, with no effect on the others. instance: None for the entry's own. An exception in a
    side does not propagate: it is a verdict, with `failure`, that does not hold.
    """
    instance = identity.instance if instance is None else instance
    start = time.perf_counter()
    sides = dict.fromkeys(("lhs", "rhs", "control"), _NOTHING)
    error = control_error = float("nan")
    failure = None
    try:
        with jax.enable_x64(True):
            sides = _evaluate(identity, seed, instance)
        wrong = (sides["control"], sides["rhs"]) if identity.control.lhs else (sides["lhs"], sides["control"])
        error = identity.test.error(sides["lhs"], sides["rhs"])
        control_error = identity.test.error(*wrong)
    except Exception as exception:
        failure = f"{type(exception).__name__}: {exception}"
    return Verdict(
        identity=identity,
        instance=instance,
        seed=seed,
        **sides,
        error=error,
        limit=identity.test.limit(max(sides["lhs"].values.size, 1)),
        control_error=control_error,
        control_limit=identity.test.rejection,
        seconds=time.perf_counter() - start,
        failure=failure,
    )


def _plain(value: Any) -> Any:
    """Arrays as nested tuples, their numbers as Python's; named tuples keep their type."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def mean_estimate(draws: np.ndarray) -> Estimate:
    """The mean of independent draws along the leading axis, with its standard error."""
    draws = np.asarray(draws)
    return Estimate(draws.mean(0), draws.std(0, ddof=1) / len(draws) ** 0.5, len(draws))


def _evaluate(identity: Identity, seed: int, instance: Any) -> dict[str, Numbers]:
    key_lhs, key_control = jax.random.split(jax.random.key(seed))
    sampled = isinstance(identity.test, Statistical)

    def left(side: Side, key):
        return side(key, instance) if sampled else side(instance)

    control = identity.control
    rhs = identity.rhs(instance)
    return {
        "lhs": _numbers(left(identity.lhs, key_lhs), rhs),
        "rhs": _numbers(rhs, rhs),
        "control": _numbers(left(control.side, key_control) if control.lhs else control.side(instance), rhs),
    }


def _numbers(answer: Answer, order: Answer) -> Numbers:
    """Flatten an answer, in the order of another one: `jax.jit` returns dictionaries sorted."""
    if set(answer) != set(order):
        raise ValueError(f"the sides answer different questions: {sorted(answer)} and {sorted(order)}")
    names, values, errors = [], [], []
    for name in order:
        quantity = answer[name]
        value, error = (quantity.value, quantity.standard_error) if isinstance(quantity, Estimate) else (quantity, 0)
        value = np.asarray(value, np.float64)
        names += [name] if value.ndim == 0 else [f"{name} [{', '.join(map(str, i))}]" for i in np.ndindex(value.shape)]
        values.append(value.ravel())
        errors.append(np.broadcast_to(np.asarray(error, np.float64), value.shape).ravel())
    return Numbers(tuple(names), np.concatenate(values), np.concatenate(errors))


_NOTHING = Numbers((), np.zeros(0), np.zeros(0))


def _difference(lhs: Numbers, rhs: Numbers) -> np.ndarray:
    if lhs.names != rhs.names:
        raise ValueError(f"the sides have different shapes: {lhs.names} and {rhs.names}")
    same = lhs.values == rhs.values  # equal infinities differ by nothing
    return np.where(same, 0, np.where(same, 0, lhs.values) - np.where(same, 0, rhs.values))


def _size(rhs: Numbers) -> np.ndarray:
    return np.where(np.isfinite(rhs.values), np.maximum(np.abs(rhs.values), 1), 1)
