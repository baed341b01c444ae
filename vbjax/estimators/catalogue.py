"""Every estimator by the name that commands and tables use, with what a reader wants to know before choosing one.

`METHODS` is the list; `make("rloo", samples=4)` builds one. A method's `bound` is the bound that it estimates.
"""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from vbjax import bounds
from vbjax.estimators.pathwise import pathwise
from vbjax.estimators.score_function import leave_one_out, score_function
from vbjax.types import Bound, GradientEstimator


class Method(NamedTuple):
    """One way to estimate a gradient.

    name: as commands take it. family: the heading it is listed under. make: samples -> estimator. samples: the
    numbers of samples it takes, in words. min_samples: the fewest. bound: of the samples' values, what it estimates.
    summary: half a line. source: the paper.
    """

    name: str
    family: str
    make: Callable[[int], GradientEstimator]
    summary: str
    source: str
    min_samples: int = 1
    bound: Bound = bounds.mean


def _named(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS: dict[str, Method] = _named(
    Method("score", "score function", score_function, "the plain score function (REINFORCE)", "Williams 1992"),
    Method(
        "rloo",
        "score function",
        lambda samples: score_function(samples, baseline=leave_one_out),
        "leave-one-out baseline",
        "Kool et al. 2019",
        min_samples=2,
    ),
    Method("pathwise", "pathwise", pathwise, "through the sample", "Kingma & Welling 2014"),
)


def make(name: str, samples: int) -> GradientEstimator:
    """Build an estimator by name. Raises ValueError for an unknown name, with the nearest ones, or too few samples."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(METHODS)}"
        raise ValueError(f"there is no estimator {name!r}{hint}")
    method = METHODS[name]
    if samples < method.min_samples:
        raise ValueError(f"{name} needs samples >= {method.min_samples}, got {samples}")
    return method.make(samples)
