"""Quadrature rules for the standard members of the families, and their tensor products over coordinates.

Built in NumPy and float64, once, outside of any trace. SciPy is imported where a rule is built: most programs
integrate nothing.
"""

import math

import numpy as np

from vbjax.distributions.family import check_node_count


def tensor_rule(points: np.ndarray, weights: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tensor product of one-dimensional rules, one per coordinate of an event of the given shape.

    points, weights: `shape + (n,)`, one rule a coordinate. Returns points `(n**d, *shape)`, weights `(n**d,)`.
    """
    size, order = math.prod(shape), points.shape[-1]
    check_node_count(order**size)
    index = np.indices((order,) * size).reshape(size, -1)
    coordinate = np.arange(size)[:, None]
    points, weights = points.reshape(size, order), weights.reshape(size, order)
    return points[coordinate, index].T.reshape(-1, *shape), weights[coordinate, index].prod(0)


def normal_rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite rule of the standard normal law."""
    from scipy.special import roots_hermitenorm

    points, weights = roots_hermitenorm(order)
    return points, weights / weights.sum()


def uniform_rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre rule of the uniform law on [0, 1]."""
    from scipy.special import roots_legendre

    points, weights = roots_legendre(order)
    return (points + 1) / 2, weights / 2


def beta_rule(a: float, b: float, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Jacobi rule of the beta law with these concentrations of one and zero."""
    from scipy.special import roots_jacobi

    points, weights = roots_jacobi(order, b - 1, a - 1)
    return (points + 1) / 2, weights / weights.sum()


def trapezoid(log_density, low: float, high: float, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid rule against a smooth density that vanishes at both ends: geometric convergence in the order."""
    points, step = np.linspace(low, high, order, retstep=True)
    return points, step * np.exp(log_density(points))


def log_gamma_rule(concentration: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid rules for `LogGamma`, one per concentration: `(*shape, order)` each.

    Ends: the left tail falls like exp(a y), the right one like exp(-e^y); both are cut near 1e-18 of the mass.
    Below a = 1 the left tail is 1/a times longer than the right one, so the points are spread by y = sinh t.
    """
    from scipy import special

    def rule(a):
        spread = 9 * math.sqrt(special.polygamma(1, a))
        low = min(special.digamma(a) - spread, (special.gammaln(a + 1) - 42) / a)
        high = math.log(special.gammainccinv(a, 1e-300) if a < 1e6 else a) + (0 if a < 1e6 else 9 / math.sqrt(a))
        if a >= 1:
            return trapezoid(lambda y: a * y - np.exp(y) - special.gammaln(a), low, high, order)
        t, weights = trapezoid(
            lambda t: a * np.sinh(t) - np.exp(np.sinh(t)) - special.gammaln(a) + np.log(np.cosh(t)),
            math.asinh(low),
            math.asinh(high),
            order,
        )
        return np.sinh(t), weights

    rules = [rule(float(a)) for a in concentration.flat]
    shape = (*concentration.shape, order)
    return np.array([p for p, _ in rules]).reshape(shape), np.array([w for _, w in rules]).reshape(shape)
