"""Independent oracles shared by the tests: SciPy and NumPyro twins of every family, quadrature, high precision.

A check is a function of the thing under test, so that `holds_only_for` can apply it to wrong variants as well.
Everything here is NumPy in float64.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as npd
import pytest
from scipy import special, stats

from vbjax import distributions as vd

FALSE_ALARM = 1e-6
"""Probability that a test of the whole suite of random draws fails by chance; every test takes its share."""


def holds_only_for(check: Callable[[Any], None], right: Any, *wrong: Any) -> None:
    """The check passes for the right variant and rejects each of the wrong ones."""
    check(right)
    for variant in wrong:
        with pytest.raises(AssertionError):
            check(variant)


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of which each step-th is tested always, and the others in the long set."""
    marks = lambda i: [] if i % step == 0 else [pytest.mark.long]  # noqa: E731
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks(i))
        for i, value in enumerate(values)
    ]


def z_threshold(count: int) -> float:
    """Two-sided normal threshold for `count` scores that together exceed it with probability `FALSE_ALARM`."""
    return stats.norm.isf(FALSE_ALARM / (2 * count))


def by_numpyro(f: Callable[[], Any]) -> np.ndarray:
    """The value of f, which calls NumPyro, under the promotion rules that NumPyro needs."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return np.asarray(f())


class Twin(NamedTuple):
    """A family with univariate events at n parameter settings, and the same laws elsewhere.

    law: our family with parameters of shape (n,): one law with n independent coordinates, or n laws under vmap;
    slip: the same with a natural mistake in the parameters, which every check must reject; kink: of the density.
    """

    law: Any
    scipy: Any
    numpyro: Any
    slip: Any
    kink: np.ndarray | None = None


_LOC = np.array([0.0, 0.7, -3.0, 1.5, 20.0])
_SCALE = np.array([1.0, 0.25, 2.0, 1e-3, 30.0])
_SHAPE = np.array([1.0, 0.5, 2.5, 40.0, 700.0])
_OTHER = np.array([2.0, 1.0, 1.3, 25.0, 300.0])
_DF = np.array([5.0, 0.8, 2.5, 30.0, 1e4])
_LOGITS = np.array([0.0, -3.0, 2.0, 30.0, -30.0])

CONTINUOUS: dict[str, Callable[[], Twin]] = {
    "Normal": lambda: Twin(
        vd.Normal(_LOC, _SCALE),
        stats.norm(_LOC, _SCALE),
        npd.Normal(_LOC, _SCALE),
        vd.Normal(_LOC, 1.1 * _SCALE**2),
    ),
    "LogNormal": lambda: Twin(
        vd.LogNormal(_LOC / 10, _SHAPE[::-1] ** -0.5),
        stats.lognorm(_SHAPE[::-1] ** -0.5, scale=np.exp(_LOC / 10)),
        npd.LogNormal(_LOC / 10, _SHAPE[::-1] ** -0.5),
        vd.LogNormal(_LOC / 10 + 0.1, 1.1 / _SHAPE[::-1]),
    ),
    "Laplace": lambda: Twin(
        vd.Laplace(_LOC, _SCALE),
        stats.laplace(_LOC, _SCALE),
        npd.Laplace(_LOC, _SCALE),
        vd.Laplace(_LOC, _SCALE / 2**0.5),
        kink=_LOC,
    ),
    "Logistic": lambda: Twin(
        vd.Logistic(_LOC, _SCALE),
        stats.logistic(_LOC, _SCALE),
        npd.Logistic(_LOC, _SCALE),
        vd.Logistic(_LOC, _SCALE * 3**0.5 / np.pi),
    ),
    "StudentT": lambda: Twin(
        vd.StudentT(_DF, _LOC, _SCALE),
        stats.t(_DF, _LOC, _SCALE),
        npd.StudentT(_DF, _LOC, _SCALE),
        vd.StudentT(_DF / 2, _LOC, _SCALE * 0.9),
    ),
    "Uniform": lambda: Twin(
        vd.Uniform(_LOC, _LOC + _SCALE),
        stats.uniform(_LOC, _SCALE),
        npd.Uniform(_LOC, _LOC + _SCALE),
        vd.Uniform(_LOC - _SCALE, _LOC + _SCALE),
    ),
    "Gamma": lambda: Twin(
        vd.Gamma(_SHAPE, _OTHER),
        stats.gamma(_SHAPE, scale=1 / _OTHER),
        npd.Gamma(_SHAPE, _OTHER),
        vd.Gamma(_SHAPE, 1.1 / _OTHER),
    ),
    "LogGamma": lambda: Twin(
        vd.LogGamma(_SHAPE),
        stats.loggamma(_SHAPE),
        npd.TransformedDistribution(npd.Gamma(_SHAPE, 1.0), npd.transforms.ExpTransform().inv),
        vd.LogGamma(_SHAPE + 1),
    ),
    "Beta": lambda: Twin(
        vd.Beta(_SHAPE, _OTHER),
        stats.beta(_SHAPE, _OTHER),
        npd.Beta(_SHAPE, _OTHER),
        vd.Beta(_OTHER, _SHAPE * 1.1),
    ),
}

DISCRETE: dict[str, Callable[[], Twin]] = {
    "Bernoulli": lambda: Twin(
        vd.Bernoulli(_LOGITS),
        stats.bernoulli(special.expit(_LOGITS)),
        npd.Bernoulli(logits=_LOGITS),
        vd.Bernoulli(special.expit(_LOGITS)),
    ),
    "Poisson": lambda: Twin(
        vd.Poisson(_OTHER),
        stats.poisson(_OTHER),
        npd.Poisson(_OTHER),
        vd.Poisson(np.log1p(_OTHER)),
    ),
}


EVERY_LAW: dict[str, Callable[[], Any]] = {
    "Normal": lambda: vd.Normal([0.3, -1.0], [1.0, 0.5]),
    "MultivariateNormal": lambda: vd.MultivariateNormal([0.3, -1.0], [[1.0, 0.0], [0.4, 0.8]]),
    "LogNormal": lambda: vd.LogNormal([0.3, -1.0], [1.0, 0.5]),
    "Laplace": lambda: vd.Laplace([0.3, -1.0], [1.0, 0.5]),
    "Logistic": lambda: vd.Logistic([0.3, -1.0], [1.0, 0.5]),
    "StudentT": lambda: vd.StudentT([5.0, 3.0], [0.3, -1.0], [1.0, 0.5]),
    "Uniform": lambda: vd.Uniform([0.2, 0.1], [0.7, 0.9]),
    "Gamma": lambda: vd.Gamma([2.0, 0.7], [1.0, 0.5]),
    "LogGamma": lambda: vd.LogGamma([2.0, 0.7]),
    "Beta": lambda: vd.Beta([2.0, 0.7], [1.0, 1.5]),
    "ContinuousBernoulli": lambda: vd.ContinuousBernoulli([0.4, -2.0]),
    "Dirichlet": lambda: vd.Dirichlet([2.0, 0.7]),
    "Bernoulli": lambda: vd.Bernoulli([0.4, -2.0]),
    "Categorical": lambda: vd.Categorical([[0.4, -2.0, 1.0], [0.0, 0.0, 1.0]]),
    "OneHotCategorical": lambda: vd.OneHotCategorical([0.4, -2.0]),
    "Poisson": lambda: vd.Poisson([2.0, 0.7]),
    "DiscretisedNormal": lambda: vd.DiscretisedNormal([0.3, -1.0], [1.0, 0.5], 3),
    "DiscretisedLogistic": lambda: vd.DiscretisedLogistic([0.3, -1.0], [1.0, 0.5], 3),
    "DiscretisedLogisticMixture": lambda: vd.DiscretisedLogisticMixture(
        [[0.0, 1.0], [0.2, 0.1]], [[0.3, -1.0], [0.1, 0.0]], [[1.0, 0.5], [0.3, 0.2]], 3
    ),
    "Mixture": lambda: vd.Mixture([0.0, 1.0], vd.Normal([[0.3, -1.0], [1.0, 2.0]], [[1.0, 0.5], [0.2, 0.1]])),
    "Copies": lambda: vd.Copies(vd.Normal(0.3, 0.5), 2),
    "Joint": lambda: vd.Joint((vd.Normal([0.3, -1.0], [1.0, 0.5]), vd.Categorical([0.0, 1.0]))),
}
"""One law of every family, with events of shape (2,) where there are such; built in the precision of the test."""


def quadrature(frozen, *kinks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Composite Gauss-Legendre rule for a frozen SciPy law with (n,) parameters: points and weights `(m, n)`.

    Panels end at the law's quantiles, down to 1e-40 in both tails, so that any decay is followed; and at the kinks.
    """
    tail = np.geomspace(1e-40, 0.5, 160)[:, None]
    edges = np.sort(np.concatenate([frozen.ppf(tail), frozen.isf(tail), *(kink[None] for kink in kinks)]), axis=0)
    edges = np.where(np.isfinite(edges), edges, frozen.median())
    edges = np.clip(np.sort(edges, axis=0), *frozen.support())
    nodes, weights = np.polynomial.legendre.leggauss(10)
    half, centre = np.diff(edges, axis=0)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    points, weights = centre + half * nodes[:, None], half * weights[:, None]
    return points.reshape(-1, points.shape[-1]), weights.reshape(-1, points.shape[-1])


def expectation(frozen, values: np.ndarray, rule: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """E values under the frozen law by the rule, where `values` were computed at its points."""
    points, weights = rule
    mass = weights * frozen.pdf(points)
    return np.sum(np.where(mass > 0, mass * np.where(mass > 0, values, 0), 0), axis=0)


def central_difference(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """df/dx for an f that acts elementwise, with a step relative to x."""
    h = step * np.maximum(np.abs(x), 1e-3)
    return (f(x + h) - f(x - h)) / (2 * h)


def normal_interval(centre: float, radius: float) -> float:
    """log P(|ξ - centre| < radius) to 30 digits: Φ(x) - 1/2 = φ(x) Σ x^(2k+1) / (2k+1)!!, in decimal arithmetic."""
    with localcontext() as context:
        low, high = Decimal(abs(centre)) - Decimal(radius), Decimal(abs(centre)) + Decimal(radius)
        # the difference cancels the digits of the tail
        context.prec = 60 + int(float(high) ** 2 / 2)
        low, high = Decimal(abs(centre)) - Decimal(radius), Decimal(abs(centre)) + Decimal(radius)
        root_two_pi = _two_pi().sqrt()

        def area(x):
            term = total = abs(x)
            k = 1
            while term > Decimal(10) ** -context.prec * total and term > 0:
                k += 2
                term = term * x * x / k
                total += term
            return (total * (-x * x / 2).exp() / root_two_pi).copy_sign(x)

        return float((area(high) - area(low)).ln())


def _two_pi() -> Decimal:
    """2π by Machin's formula at the precision of the current context."""
    with localcontext() as context:
        context.prec += 10

        def arctan_of_inverse(n):
            term = total = Decimal(1) / n
            k = 1
            while abs(term) > Decimal(10) ** -context.prec:
                term /= -n * n
                k += 2
                total += term / k
            return total

        return 8 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))


def spd(rng: np.random.Generator, d: int, log10_condition: float, scale: float) -> np.ndarray:
    """A symmetric positive definite matrix with the given condition number and largest eigenvalue."""
    rotation = stats.ortho_group.rvs(d, random_state=rng) if d > 1 else np.eye(1)
    eigenvalues = scale * 10.0 ** -np.linspace(0, log10_condition, d)
    covariance = (rotation * eigenvalues) @ rotation.T
    return (covariance + covariance.T) / 2
