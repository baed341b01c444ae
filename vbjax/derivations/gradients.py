"""What the entries of chapter 2 share: the problems that they differentiate, and the names of the answers."""

from typing import NamedTuple

import jax.numpy as jnp

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
