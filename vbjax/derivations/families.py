"""Draws of what instances are made of: the random families that entries are checked on beside their own instance.

A family is a function of a NumPy generator. Its range is where both routes resolve the statement to the entry's
tolerance; it may return arrays, which `identity.draw` turns into plain tuples, so that an instance prints as code.
"""

from typing import Any

import numpy as np


def normals(random: np.random.Generator, *shape: int) -> Any:
    """Standard normal numbers."""
    return random.normal(size=shape)


def masses(random: np.random.Generator, outcomes: int, *rows: int) -> Any:
    """Probability vectors, of shape `(*rows, outcomes)`, that keep away from zero."""
    return 0.9 * random.dirichlet(np.full(outcomes, 1.5), rows or None) + 0.1 / outcomes


def likelihoods(random: np.random.Generator, outcomes: int) -> Any:
    """p(x|z) of one x for each z: they need not sum to one."""
    return random.uniform(0.05, 0.95, outcomes)


def positive(random: np.random.Generator, low: int | float, high: int | float, *shape: int) -> Any:
    """Log-uniform on [low, high]."""
    return np.exp(random.uniform(np.log(low), np.log(high), shape or None))


def covariance(random: np.random.Generator, dimension: int, *, low: int | float = 0.3, high: int | float = 3) -> Any:
    """A covariance with eigenvalues in [low, high] and axes in any direction."""
    axes, _ = np.linalg.qr(random.normal(size=(dimension, dimension)))
    rotated = axes * positive(random, low, high, dimension) @ axes.T
    return (rotated + rotated.T) / 2


def triangular_root(random: np.random.Generator, dimension: int) -> Any:
    """A lower triangular matrix with a positive diagonal."""
    below = np.tril(random.normal(size=(dimension, dimension)), -1)
    return below + np.diag(random.uniform(0.4, 1.2, dimension))
