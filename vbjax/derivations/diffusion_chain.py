"""What the entries of chapter 5 share: their instances, and the lecture's β, α and ᾱ in NumPy.

Noise levels γ are the library's, everything else is an oracle that never calls it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vbjax.derivations import families
from vbjax.diffusion.schedules import from_betas


class Chain(NamedTuple):
    """β_1 … β_T, and data of a normal law by mean and variance."""

    betas: tuple = (0.1, 0.2, 0.3, 0.4)
    mean: float = 1.5
    variance: float = 0.25


class Path(NamedTuple):
    """β_1 … β_T and a path x_0 … x_T."""

    betas: tuple
    x: tuple


class Terminal(NamedTuple):
    """The ends of a linear schedule, its length, and a datum."""

    first: float
    last: float
    steps: int
    x: float


class OneStep(NamedTuple):
    """Several β, and a mixture of two normal laws with even weights as the law before the step; x after it."""

    betas: tuple
    means: tuple
    scale: float
    x: float


class Pair(NamedTuple):
    """β_1 … β_T, a datum, a noise, and what a model says the mean of x_{t-1} is."""

    betas: tuple
    x0: float
    noise: float
    predicted: float


class Noised(NamedTuple):
    """A mixture of two normal laws as data, ᾱ_t, and points x_t."""

    weights: tuple
    means: tuple
    scales: tuple
    signal: float
    at: tuple


class Spreads(NamedTuple):
    """β_1 … β_T and several variances of the data."""

    betas: tuple
    variances: tuple


def random_betas(random: np.random.Generator) -> tuple:
    """Two to ten steps of a linear, a cosine or a random schedule that leaves some of the signal."""
    steps = int(random.integers(2, 11))
    strength = random.uniform(0.4, 1.8)  # -log ᾱ_T
    shapes = (
        np.linspace(random.uniform(0.05, 1), 1, steps),
        -np.diff(np.log(np.cos(np.linspace(0, 0.45 * np.pi, steps + 1)))),
        np.exp(random.uniform(-8, 0, steps)),
    )
    shares = shapes[random.integers(3)]
    return tuple(-np.expm1(-strength * shares / shares.sum()))


def random_chain(random: np.random.Generator) -> Chain:
    """Data off zero, of a variance on either side of one."""
    return Chain(random_betas(random), random.uniform(0.5, 2), random.uniform(0.1, 2))


def random_path(random: np.random.Generator) -> Path:
    """Any path of size one."""
    betas = random_betas(random)
    return Path(betas, families.normals(random, len(betas) + 1))


def random_pair(random: np.random.Generator) -> Pair:
    """A datum, a noise and a prediction of size one."""
    return Pair(random_betas(random), random.normal(), random.normal(), random.normal())


def levels(betas):
    """γ_0 = -∞, γ_1, …, γ_T."""
    schedule = from_betas(jnp.array(betas))
    return schedule.at(jnp.arange(schedule.steps + 1))


def alpha_bar(betas):
    """ᾱ_0 = 1, ᾱ_1, …, ᾱ_T."""
    return np.concatenate([[1.0], np.cumprod(1 - np.array(betas))])


def posterior_coefficients(betas, t):
    """Of x_0 and x_t in the mean of q(x_{t-1}|x_t, x_0), and β̃_t, by conditioning the joint law."""
    kept, alpha = alpha_bar(betas), 1 - betas[t - 1]
    before, after = 1 - kept[t - 1], 1 - kept[t]
    gain = np.sqrt(alpha) * before / after
    return np.sqrt(kept[t - 1]) - gain * np.sqrt(kept[t]), gain, before - gain * np.sqrt(alpha) * before
