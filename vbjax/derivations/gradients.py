"""What the entries of chapter 2 share: the problems that they differentiate, and the names of the answers."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vbjax.derivations import families
from vbjax.distributions import Normal


class Quadratic(NamedTuple):
    """f(x) = (x - target)² under N(mean, scale²)."""

    mean: float
    scale: float
    target: float


class NormalLaw(NamedTuple):
    """N(mean, scale²)."""

    mean: float
    scale: float


def random_quadratic(random: np.random.Generator) -> Quadratic:
    """Scales over a decade, means and targets within two of each other and of zero."""
    return Quadratic(random.uniform(-2, 2), families.positive(random, 0.3, 3), random.uniform(-2, 2))


def random_normal_law(random: np.random.Generator) -> NormalLaw:
    """Means and scales of size one."""
    return NormalLaw(random.uniform(-1.5, 1.5), random.uniform(0.4, 1.5))


def normal_problem(f):
    """`(mean, scale) -> (law, f)`."""
    return lambda params: (Normal(*params), f)


def normal_params(case):
    """Mean and scale as the parameters to differentiate."""
    return jnp.array(case.mean), jnp.array(case.scale)


def quadratic(case):
    """The problem and its parameters."""
    return normal_problem(lambda x: (x - case.target) ** 2), normal_params(case)


def by_parameter(values, what="∂"):
    """Name the entries of a pair `(mean, scale)`."""
    return dict(zip((f"{what}μ", f"{what}σ"), values, strict=True))
