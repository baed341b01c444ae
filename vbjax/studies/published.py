"""Results of the literature, reproduced: `published_cases()` computes them, each a table with a verdict that can fail.

A case is a module of its own (`cost_functions`, `coins`, `binary_programmes`, `tighter_bounds`,
`logistic_regression`, `diffusion_times`); this one knows them by name and imports them when they run.
"""

import difflib
from collections.abc import Callable, Sequence

from vbjax.studies.published_case import PublishedCase


def _cost(name: str) -> Callable[[bool], PublishedCase]:
    def case(quick: bool) -> PublishedCase:
        from vbjax.studies.cost_functions import cost_function_case

        return cost_function_case(name)

    return case


def _coin(target: float) -> Callable[[bool], PublishedCase]:
    def case(quick: bool) -> PublishedCase:
        from vbjax.studies.coins import coin_case

        return coin_case(target)

    return case


def _arm(quick: bool) -> PublishedCase:
    from vbjax.studies.coins import arm_case

    return arm_case()


def _polynomial(quick: bool) -> PublishedCase:
    from vbjax.studies.binary_programmes import polynomial_case

    return polynomial_case(seeds=3 if quick else 5)


def _bounds(quick: bool) -> PublishedCase:
    from vbjax.studies.tighter_bounds import tighter_bounds_case

    return tighter_bounds_case(data=8, replications=40) if quick else tighter_bounds_case()


def _regression(quick: bool) -> PublishedCase:
    from vbjax.studies.logistic_regression import logistic_regression_case

    return logistic_regression_case(replications=512 if quick else 2048)


def _times(quick: bool) -> PublishedCase:
    from vbjax.studies.diffusion_times import importance_case

    return importance_case()


CASES: dict[str, Callable[[bool], PublishedCase]] = {
    "cost-square": _cost("square"),
    "cost-exponential": _cost("exponential"),
    "cost-cosine": _cost("cosine"),
    "coin-arm": _arm,
    "coin-rebar": _coin(0.45),
    "coin-relax": _coin(0.499),
    "polynomial-programme": _polynomial,
    "tighter-bounds": _bounds,
    "logistic-regression": _regression,
    "diffusion-times": _times,
}
"""By name: `quick -> PublishedCase`. Quick cases draw less and judge by the same rules."""


def published_cases(names: Sequence[str] | None = None, *, quick: bool = False) -> list[PublishedCase]:
    """Compute the named cases, by default all, in the order asked for; minutes on two cores.

    Seeds are fixed: a case is the same table every time. Raises ValueError for an unknown name, before any work.
    """
    names = list(CASES) if names is None else list(names)
    for name in names:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=3, cutoff=0.4) or list(CASES)
            raise ValueError(f"there is no published case {name!r}; did you mean {', '.join(near)}?")
    return [CASES[name](quick) for name in names]
