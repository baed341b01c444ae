"""The conformance matrix: every estimator on every family and every kind of objective, judged exactly where it can be.

`conformance` fills the `Cell`s and leaves none silent: the estimator refuses, or its mean over all of its noise is
compared with the exact gradient, or, where no quadrature rule serves, a sequential test decides. Each objective has
parameters of q and of the model, whose gradients are judged separately, as is the value.
"""

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import bounds, testing
from vbjax.estimators import catalogue
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import NotConverged, expectation
from vbjax.studies import families, oracles
from vbjax.types import GradientEstimator, NotAvailable, PRNGKey

TOLERANCE = 1e-9
"""Largest relative bias that counts as none where the mean is exact."""

DELTA = 0.02
"""Where it is tested, largest bias that does not matter, in standard deviations of one draw."""

ERROR_RATE = 1e-6
"""Probability that one correct estimator or more fails a test, shared among all tests of a matrix."""

MOST_TESTS = 1000
"""Tests that share it; a matrix has fewer."""

SAMPLES = (1, 2, 5)
"""Numbers of samples at which the IWAE bound is judged; the other multi-sample bounds at two."""


class Cell(NamedTuple):
    """One combination and what was found.

    group: "value", "q" or "model", whose estimate is judged; "" for a refusal, which concerns all. verdict: "unbiased",
    "biased", "refused" or "not judged". how: "exact", "tested", or for a refusal the estimator's own words. bias:
    relative to the truth where exact, in standard deviations of a draw where tested. promised: what the spec says.
    variance: of one draw, summed over the group's coordinates, where exact.
    """

    method: str
    samples: int
    family: str
    objective: str
    group: str
    verdict: str
    how: str
    bias: float = math.nan
    promised: bool = True
    variance: float = math.nan

    @property
    def kept(self) -> bool:
        """Whether the promise holds: what is promised to be unbiased is not found biased."""
        return self.verdict != "biased" or not self.promised


def conformance(
    key: PRNGKey,
    *,
    methods: Sequence[str] | None = None,
    laws: Sequence[str] | None = None,
    tests: bool = True,
    threads: int = 2,
) -> Iterator[Cell]:
    """Judge methods (names of `catalogue.METHODS`) on laws (names of `families`), by default all; needs float64.

    tests: whether to judge by sampling what cannot be integrated; otherwise those cells are "not judged". Yields law
    by law, each in the order of the methods. Raises ValueError for unknown names.
    """
    chosen = [catalogue.METHODS[name] for name in _known(methods, catalogue.METHODS, "estimator")]
    found = {family.name: family for family in families.families()}
    pairs = [(method, found[name]) for name in _known(laws, found, "law") for method in chosen]

    def judged(pair):
        # a context does not reach the threads of a pool
        with jax.enable_x64(True):
            method, family = pair
            salt = zlib.crc32(f"{method.name}/{family.name}".encode())
            return list(_cells(jax.random.fold_in(key, salt), method, family, tests))

    with ThreadPoolExecutor(threads) as pool:
        for cells in pool.map(judged, pairs):
            yield from cells


def _known(names: Sequence[str] | None, table: Any, what: str) -> list[str]:
    for name in names or ():
        if name not in table:
            raise ValueError(f"there is no {what} {name!r}; known: {', '.join(table)}")
    return list(table if names is None else names)


def _cells(key: PRNGKey, method: catalogue.Method, family: families.Family, tests: bool) -> Iterator[Cell]:
    of_the_mean = method.bound is bounds.mean
    for samples in _numbers_of_samples(method, family):
        estimator = method.make(samples)
        accepted = {}
        for objective in families.OBJECTIVES if of_the_mean else ("log-weight",):
            cell = functools.partial(Cell, method.name, samples, family.name, objective)
            reason = _refusal(estimator, family, objective)
            if reason:
                yield cell("", "refused", reason)
            else:
                accepted[objective] = cell
        if accepted:
            yield from _judged(jax.random.fold_in(key, samples), estimator, method, samples, family, accepted, tests)


def _numbers_of_samples(method: catalogue.Method, family: families.Family) -> list[int]:
    law = family.law(families.arrays(family)["q"])
    if method.name == "enumeration" and law.enumerable:
        return [law.nodes(1).weights.shape[0]]
    if method.bound is bounds.mean:
        return [method.min_samples]
    if method.bound is not bounds.iwae:
        return [2]
    return [samples for samples in SAMPLES if samples >= method.min_samples]


def _refusal(estimator: GradientEstimator, family: families.Family, objective: str) -> str:
    """The estimator's own words, or nothing."""
    params, problem = families.arrays(family), families.problem(family, objective)

    def once(key):
        q, _ = problem(params)
        return value_and_grad_at(estimator.noise(q).sample(key), estimator, problem, params, estimator.init(q))

    try:
        jax.eval_shape(once, jax.random.key(0))
    except NotAvailable as refusal:
        return str(refusal)
    return ""


def _estimates(
    estimator: GradientEstimator, family: families.Family, objectives: Sequence[str]
) -> Callable[[Any], Any]:
    """noise -> {objective: {"value", "q", "model"}}, each a flat vector."""
    params = families.arrays(family)
    q, _ = families.problem(family, objectives[0])(params)
    state = estimator.init(q)

    def estimate(noise):
        return {
            name: families.by_group(*value_and_grad_at(noise, estimator, families.problem(family, name), params, state))
            for name in objectives
        }

    return estimate


def _judged(key, estimator, method, samples, family, accepted, tests) -> Iterator[Cell]:
    """Cells of one estimator: one integration for all objectives whose truth and mean are integrals, one test for the
    others.
    """
    jumps = not family.law(families.arrays(family)["q"]).enumerable
    smooth = [name for name in accepted if not (jumps and name == "discontinuous")]
    exact = _exact_means(estimator, family, smooth) if smooth else {}
    left = [name for name in accepted if name not in exact]
    for name in accepted:
        truth = oracles.truth(family, name, samples, method.bound)
        if truth is None:
            left.remove(name)
            yield accepted[name]("", "not judged", f"no oracle for {samples} samples")
        elif name in exact:
            mean, square = exact[name]
            yield from _exact_cells(estimator, accepted[name], truth, mean, square)
    if left and not tests:
        for name in left:
            yield accepted[name]("", "not judged", "not integrable, and tests are off")
    elif left:
        truths = {name: oracles.truth(family, name, samples, method.bound) for name in left}
        yield from _tested_cells(key, estimator, family, accepted, truths)


def _exact_means(estimator, family, objectives) -> dict[str, Any]:
    """{objective: (mean, mean square)} over all of the noise; empty where no rule serves."""
    estimate = _estimates(estimator, family, objectives)

    def moments(noise):
        found = estimate(noise)
        return found, jax.tree.map(lambda x: x**2, found)

    q = family.law(families.arrays(family)["q"])
    try:
        mean, square = expectation(estimator.noise(q), moments, rtol=TOLERANCE / 10).value
    except (NotAvailable, NotConverged):
        return {}
    return {name: (mean[name], square[name]) for name in objectives}


def _exact_cells(estimator, cell, truth, mean, square) -> Iterator[Cell]:
    for group, promised in _promises(estimator).items():
        right, found = np.asarray(truth[group]), np.asarray(mean[group])
        size = max(np.abs(right).max(), 1e-3 * np.sqrt(np.asarray(square[group])).max())
        bias = float(np.abs(found - right).max() / size) if size else 0.0
        variance = float(np.sum(np.asarray(square[group]) - found**2))
        yield cell(group, "unbiased" if bias < TOLERANCE else "biased", "exact", bias, promised, max(variance, 0.0))


def _tested_cells(key, estimator, family, accepted, truths) -> Iterator[Cell]:
    """One sequential test for each group; a batch of draws serves all objectives."""
    estimate = _estimates(estimator, family, list(truths))
    law = estimator.noise(family.law(families.arrays(family)["q"]))

    @jax.jit
    def draw(start):
        keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(start + jnp.arange(testing.CHUNK, dtype=jnp.uint32))
        return jax.vmap(lambda key: estimate(law.sample(key)))(keys)

    drawn: list[Any] = []

    def draws(name, group):
        for i in range(10**6):
            if i == len(drawn):
                drawn.append(jax.tree.map(np.asarray, draw(jnp.uint32(i * testing.CHUNK))))
            yield drawn[i][name][group]

    for name, truth in truths.items():
        for group, promised in _promises(estimator).items():
            right = np.asarray(truth[group])
            first = next(draws(name, group))
            deviation = first.std(0)
            if not deviation.any():
                bias = float(np.abs(first[0] - right).max())
                verdict = "unbiased" if bias <= TOLERANCE * max(1.0, np.abs(right).max()) else "biased"
                yield accepted[name](group, verdict, "exact", bias, promised, 0.0)
                continue
            still = deviation <= 1e-6 * deviation.max()
            moving = ~still
            missed = np.abs(first.mean(0) - right)[still].max(initial=0)
            if missed > TOLERANCE * max(1.0, np.abs(right).max()) + 1e-6 * deviation.max():
                yield accepted[name](group, "biased", "exact", float(missed), promised)
                continue
            found = testing.sequential_test(
                (x[:, moving] for x in draws(name, group)),
                right[moving],
                delta=DELTA * deviation[moving],
                error_rate=ERROR_RATE / MOST_TESTS,
            )
            verdict = {"certify": "unbiased", "reject": "biased"}.get(found.outcome, "not judged")
            direction = int(found.direction.removeprefix("coordinate "))
            bias = abs(found.deviation) / deviation[moving][direction]
            yield accepted[name](group, verdict, "tested" if verdict != "not judged" else found.outcome, bias, promised)


def _promises(estimator: GradientEstimator) -> dict[str, bool]:
    spec = estimator.spec
    return {"value": spec.unbiased_value, "q": spec.unbiased_variational, "model": spec.unbiased_model}


EXACT, TESTED, BIASED, BROKEN, OPEN, REFUSED = "exact", "tested", "biased", "BROKEN", "open", "–"


class Mark(NamedTuple):
    """What a method's cells on a law come to. text: for a table; refused: the objectives that it refuses there."""

    text: str
    refused: tuple[str, ...]

    def __str__(self) -> str:
        """The text, with the refused objectives by their initials."""
        if self.text == REFUSED or not self.refused:
            return self.text
        return f"{self.text} (not {', '.join(self.refused)})"


def marks(cells: Sequence[Cell]) -> dict[tuple[str, str], Mark]:
    """(method, law) -> the mark: "exact" if every cell is unbiased by integration, "tested" if some are so by a test,
    "biased" if one is found biased as its spec says, "BROKEN" if one is that promises not to be, "open" if something
    could not be judged, "–" if all is refused.
    """
    table: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        table.setdefault((cell.method, cell.family), []).append(cell)

    def mark(group):
        judged = [cell for cell in group if cell.verdict != "refused"]
        refused = tuple(dict.fromkeys(cell.objective for cell in group if cell.verdict == "refused"))
        if not judged:
            return Mark(REFUSED, refused)
        if not all(cell.kept for cell in judged):
            return Mark(BROKEN, refused)
        if any(cell.verdict == "biased" for cell in judged):
            return Mark(BIASED, refused)
        if any(cell.verdict == "not judged" for cell in judged):
            return Mark(OPEN, refused)
        return Mark(TESTED if any(cell.how == "tested" for cell in judged) else EXACT, refused)

    return {place: mark(group) for place, group in table.items()}


def rows(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """The matrix as a header of laws and a row for each method."""
    found = marks(cells)
    methods = list(dict.fromkeys(cell.method for cell in cells))
    laws = list(dict.fromkeys(cell.family for cell in cells))
    return laws, [[method, *(str(found[method, law]) for law in laws)] for method in methods]
