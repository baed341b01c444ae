"""Three costs of a normal number whose parameter k decides which gradient estimator varies least.

(x - k)², exp(-k x²) and cos kx under N(1, 1): the library's estimators are integrated by `exact_sweep`, and an
independent quadrature (`direct_variances`, NumPy and formulas on paper) must agree. Start at `cost_function_case`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from vbjax.distributions import Normal
from vbjax.estimators import pathwise, score_function
from vbjax.studies.published_case import Finding, PublishedCase
from vbjax.studies.sweeps import exact_sweep

LOC, SCALE = 1.0, 1.0
METHODS = ("score", "score, baseline", "pathwise", "measure-valued")
SOURCE = "Mohamed et al. (2020), Monte Carlo gradient estimation in machine learning, section 3, figures 2 and 3"


class Cost(NamedTuple):
    """A cost f(x; k): its name, TeX, value, derivative in x, the swept k, and the library's f as a function of z.

    crossings: (first method, second, parameter, low, high): where their variances are equal between low and high.
    """

    name: str
    tex: str
    value: Callable[..., Any]
    slope: Callable[..., Any]
    sweep: tuple[float, ...]
    crossings: tuple[tuple[str, str, str, float, float], ...]


COSTS = {
    "square": Cost(
        "square",
        "(x - k)^2",
        lambda x, k: (x - k) ** 2,
        lambda x, k: 2 * (x - k),
        (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0),
        (("measure-valued", "pathwise", "loc", -3.0, 1.0), ("measure-valued", "pathwise", "loc", 1.0, 3.0)),
    ),
    "exponential": Cost(
        "exponential",
        r"e^{-k x^2}",
        lambda x, k: jnp.exp(-k * x**2) if not isinstance(x, np.ndarray) else np.exp(-k * x**2),
        lambda x, k: -2 * k * x * np.exp(-k * x**2),
        (0.1, 0.3, 1.0, 3.0, 10.0),
        (("score", "pathwise", "loc", 0.05, 10.0), ("score", "pathwise", "scale", 0.05, 10.0)),
    ),
    "cosine": Cost(
        "cosine",
        r"\cos k x",
        lambda x, k: jnp.cos(k * x) if not isinstance(x, np.ndarray) else np.cos(k * x),
        lambda x, k: -k * np.sin(k * x),
        (0.5, 1.0, 1.58, 3.0, 5.0),
        (("score", "pathwise", "loc", 0.3, 5.0), ("score", "pathwise", "scale", 0.3, 5.0)),
    ),
}


class _Rules(NamedTuple):
    """Points and weights of the standard laws that the estimators draw from."""

    normal: tuple[np.ndarray, np.ndarray]
    rayleigh: tuple[np.ndarray, np.ndarray]
    maxwell: tuple[np.ndarray, np.ndarray]
    uniform: tuple[np.ndarray, np.ndarray]


@functools.cache
def _rules() -> _Rules:
    x, step = np.linspace(-12, 12, 4001, retstep=True)
    normal = step * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, 12, 61)
    rho = (edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1) / 2).ravel()
    rayleigh = (np.diff(edges)[:, None] * weights / 2).ravel() * rho * np.exp(-(rho**2) / 2)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    return _Rules((x, normal), (rho, rayleigh), (x, normal * x**2), ((nodes + 1) / 2, weights / 2))


def direct_variances(cost: Cost, k: float, loc: float = LOC, scale: float = SCALE) -> dict[str, np.ndarray]:
    """Variance in (loc, scale) of one estimate by each of `METHODS`, by quadrature of the formulas on paper.

    The baseline is E f. Measure-valued: coupled draws, (f(μ + σρ) - f(μ - σρ)) / (σ√2π) with ρ Rayleigh, and
    (f(μ + σX) - f(μ + σUX)) / σ with X double-sided Maxwell, U uniform. Shapes `(2,)`.
    """
    (x, w), (rho, w_rho), (maxwell, w_maxwell), (u, w_u) = _rules()
    z = loc + scale * x
    f, slope = cost.value(z, k), cost.slope(z, k)
    score = np.stack([x, x**2 - 1]) / scale
    gradient = (f * score) @ w

    def variance(samples):
        return (samples - gradient[:, None]) ** 2 @ w

    weak = (cost.value(loc + scale * rho, k) - cost.value(loc - scale * rho, k)) / (scale * math.sqrt(2 * math.pi))
    outer, inner = cost.value(loc + scale * maxwell, k), cost.value(loc + scale * maxwell[:, None] * u, k)
    by_scale = ((outer[:, None] - inner) / scale - gradient[1]) ** 2 @ w_u @ w_maxwell
    return {
        "score": variance(f * score),
        "score, baseline": variance((f - f @ w) * score),
        "pathwise": variance(np.stack([slope, slope * x])),
        "measure-valued": np.stack([(weak - gradient[0]) ** 2 @ w_rho, by_scale]),
    }


def crossing(
    cost: Cost,
    first: str,
    second: str,
    parameter: str,
    low: float,
    high: float,
    *,
    loc: float = LOC,
    scale: float = SCALE,
) -> float:
    """The k between low and high where two methods vary alike; ValueError if their order is the same at both ends."""
    j = ("loc", "scale").index(parameter)

    def log_ratio(k):
        variances = direct_variances(cost, k, loc, scale)
        # one variance may be zero, as that of the coupled draws at the minimum of a square
        return math.log(max(variances[first][j], 1e-300) / max(variances[second][j], 1e-300))

    root: Any = brentq(log_ratio, low, high, xtol=1e-12)
    return float(root)


def library_variances(cost: Cost, ks: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Exact variances `(len(ks), 2)` of the library's score function, the same with baseline E f, and pathwise."""
    x, w = _rules().normal

    def problem(params):
        k, level = params["k"], params["level"]
        return Normal(params["loc"], params["scale"]), lambda z: cost.value(z, k) - level

    def settings(levels):
        return [{"k": k, "level": b, "loc": LOC, "scale": SCALE} for k, b in zip(ks, levels, strict=True)]

    means = [float(cost.value(LOC + SCALE * x, k) @ w) for k in ks]
    plain = settings([0.0] * len(ks))
    sweeps = {
        "score": exact_sweep(score_function(), problem, plain),
        "score, baseline": exact_sweep(score_function(), problem, settings(means)),
        "pathwise": exact_sweep(pathwise(), problem, plain),
    }
    return {name: sweep.variance[:, 2:] for name, sweep in sweeps.items()}


def cost_function_case(name: str) -> PublishedCase:
    """The table of one of `COSTS`: exact variances against k, who wins where, and the crossings."""
    cost = COSTS[name]
    crossings = [crossing(cost, *entry) for entry in cost.crossings]
    ks = tuple(sorted({*cost.sweep, *crossings}))
    library = library_variances(cost, ks)
    direct = {method: np.stack([direct_variances(cost, k)[method] for k in ks]) for method in METHODS}
    deviation = max(np.max(np.abs(library[m] / direct[m] - 1)) for m in library)
    variances = {**library, "measure-valued": direct["measure-valued"]}
    rows = []
    for j, parameter in enumerate(("loc", "scale")):
        for i, k in enumerate(ks):
            numbers = {method: float(variances[method][i, j]) for method in METHODS}
            ranked = sorted(numbers.values())
            least = "equal" if k in crossings and ranked[1] / max(ranked[0], 1e-300) < 1 + 1e-6 else min(
                numbers, key=numbers.__getitem__
            )  # fmt: skip
            rows.append((parameter, k, *numbers.values(), least))
    agree = Finding(
        f"The library's exact variances and a quadrature of the formulas differ by {deviation:.1e} at most.",
        bool(deviation < 1e-8),
    )
    return PublishedCase(
        name=f"cost-{name}",
        title=f"Which estimator varies least: {name} cost",
        claim=_CLAIMS[name],
        source=SOURCE,
        columns=("parameter", "k", *METHODS, "least"),
        rows=tuple(rows),
        findings=(agree, *_FINDINGS[name](ks, variances, crossings)),
        remark=f"$f(x) = {cost.tex}$ under $N({LOC:g}, {SCALE:g}^2)$, variance of one estimate; the baseline is "
        "$E f$. The rows at uneven $k$ are the crossings. Score function and pathwise are integrated over the "
        "library's own noise, the measure-valued gradient over the coupled draws that it is defined by.",
    )


_CLAIMS = {
    "square": "For a quadratic cost the score function varies most, and ever more as k moves away; the pathwise "
    "variance in the mean is constant in k.",
    "exponential": "No estimator is best for every k: the pathwise gradient, best for a flat cost, varies more than "
    "the score function where the cost is steep.",
    "cosine": "For an oscillating cost the pathwise variance grows with the frequency without bound; the score "
    "function's stays bounded, and beyond a crossing it is the better one.",
}


def _square_findings(ks, variances, crossings):
    d = LOC - np.array(ks)
    closed = {
        "score": np.stack([d**4 + 14 * d**2 + 15, 2 * d**4 + 60 * d**2 + 74], 1),
        "pathwise": np.stack([np.full_like(d, 4), 4 * d**2 + 8], 1),
    }
    deviation = max(np.max(np.abs(variances[m] / closed[m] - 1)) for m in closed)
    reach = 2 / math.sqrt(16 / math.pi - 4)
    off = max(abs(abs(k - LOC) - reach) for k in crossings)
    return (
        Finding(
            "Closed forms: score d⁴ + 14d² + 15 and 2d⁴ + 60d² + 74, pathwise 4 and 4d² + 8 with d = 1 - k; largest "
            f"relative deviation {deviation:.1e}.",
            bool(deviation < 1e-8),
        ),
        Finding(
            "The score function varies more than the pathwise gradient at every k, with and without a baseline.",
            bool(np.all(np.minimum(variances["score"], variances["score, baseline"]) > variances["pathwise"])),
        ),
        Finding(
            f"In loc the coupled measure-valued gradient varies less than the pathwise one for |k - 1| < {reach:.4f} = "
            f"2 (16/π - 4)^-1/2; the crossings found differ from it by {off:.1e}.",
            off < 1e-6,
        ),
    )


def _turning_findings(cost_name, ks, variances, crossings):
    findings = []
    for j, parameter in enumerate(("loc", "scale")):
        k = crossings[j]
        ratio = variances["score"][:, j] / variances["pathwise"][:, j]
        below, above, at = np.array(ks) < k - 1e-9, np.array(ks) > k + 1e-9, ks.index(k)
        findings.append(
            Finding(
                f"In {parameter} the pathwise gradient wins below k = {k:.4f} and the score function above it, where "
                f"the library's variances are equal to {abs(ratio[at] - 1):.1e}.",
                bool(np.all(ratio[below] > 1) and np.all(ratio[above] < 1) and abs(ratio[at] - 1) < 1e-8),
            )
        )
    if cost_name == "cosine":
        elsewhere = crossing(COSTS["cosine"], "score", "pathwise", "loc", 0.3, 3.0, loc=0.7, scale=1.3)
        findings.append(
            Finding(
                f"Under N(0.7, 1.3²) the crossing in loc is at k = {elsewhere:.4f}, 0.7069 by an earlier computation.",
                abs(elsewhere - 0.7069) < 1e-4,
            )
        )
        largest = float(variances["score"].max(0)[0])
        findings.append(
            Finding(f"The score function's variance in loc stays below E s² = 1: at most {largest:.3f}.", largest < 1)
        )
    return tuple(findings)


_FINDINGS = {
    "square": _square_findings,
    "exponential": functools.partial(_turning_findings, "exponential"),
    "cosine": functools.partial(_turning_findings, "cosine"),
}
