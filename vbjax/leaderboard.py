"""Held-out likelihoods of many models on the same integers: one `Entry` each, with log P(x) of every test image.

`counted`, `by_em`, `by_vae` and `by_diffusion` make entries, `reports.leaderboard` shows them.
Images are integers `(n, *shape)` below `levels`. Every entry is exact or a lower bound in expectation, so that a lower
number of bits is never an artefact of the measure, and models may be compared image by image.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vbjax import datasets, em, evaluation
from vbjax.annealing import sigmoidal_betas
from vbjax.dequantisation import dequantise, dequantised_log_prob
from vbjax.diffusion.bound import DiffusionModel, diffusion_bound
from vbjax.diffusion.schedules import Schedule
from vbjax.distributions import Normal
from vbjax.evaluation import Evidence, Likelihood
from vbjax.types import Estimate, LogDensity, PRNGKey
from vbjax.vae import VAE

_COUNT_SMOOTHING = 0.1
_LEAPFROG_STEPS = 4
_DEQUANTISED_COPIES = 4
"""Copies of the training data, each with noise of its own, that a density is fitted to."""


class Entry(NamedTuple):
    """A model and what it is worth. measured: how, such as "exact"; parameters: how many; seconds: fit and measure."""

    name: str
    measured: str
    evidence: Evidence
    dimensions: int
    parameters: int
    seconds: float

    @property
    def likelihood(self) -> Likelihood:
        """Mean over the test images, with its standard error."""
        return self.evidence.likelihood(self.dimensions)

    def behind(self, other: "Entry") -> Estimate:
        """How many bits per dimension more than another model it needs, paired image by image."""
        difference = Evidence(self.evidence.nats - other.evidence.nats, jnp.zeros_like(self.evidence.variance))
        return difference.likelihood(self.dimensions).bits_per_dim


def counted(data: datasets.Dataset) -> Entry:
    """Independent pixels: the frequency of every level of every pixel, smoothed by a tenth of a count."""
    begin = time.perf_counter()
    train, test = np.asarray(data.train_images), np.asarray(data.test_images)
    counts = np.stack([(train == level).sum(0) for level in range(data.levels)], -1) + _COUNT_SMOOTHING
    probs = counts / counts.sum(-1, keepdims=True)
    chosen = np.take_along_axis(probs[None], test[..., None].astype(int), -1)
    nats = np.log(chosen).reshape(len(test), -1).sum(1)
    parameters = counts[..., 1:].size
    return _entry("independent pixels, counted", "exact", _certain(nats), data, parameters, begin)


def by_em(
    key: PRNGKey,
    name: str,
    family: em.Family,
    data: datasets.Dataset,
    *,
    of_integers: bool = False,
    samples: int = 64,
    tolerance: int | float = 1e-4,
    restarts: int = 2,
) -> Entry:
    """A model fitted by EM, the best of some starts.

    of_integers: whether the family models the integers themselves; other densities are fitted to dequantised pixels,
    and then integrated over each pixel's cell where the pixels are independent given the component, which is exact, or
    bounded by the importance-weighted mean of `samples` draws of the noise.
    """
    begin = time.perf_counter()
    key_fit, key_noise, key_bound = jax.random.split(key, 3)
    train, test = (jnp.asarray(part).reshape(len(part), -1) for part in (data.train_images, data.test_images))
    if not of_integers:
        train = dequantise(key_noise, jnp.tile(train, (_DEQUANTISED_COPIES, 1)))
    model: Any = em.fit(
        key_fit, family, np.asarray(train), restarts=restarts, tolerance=tolerance, max_iterations=20_000
    ).model
    parameters = em.free_parameters(model)
    law = em.discretised(model, data.levels) if isinstance(getattr(model, "components", None), Normal) else model
    if of_integers or law is not model:
        measured, evidence = "exact", _certain(_over(law.log_prob, test.astype(jnp.int32)))
    else:
        measured, evidence = f"dequantised, {samples} draws", _dequantised(key_bound, law.log_prob, test, samples)
    return _entry(name, measured, evidence, data, parameters, begin)


def by_vae(
    key: PRNGKey,
    name: str,
    vae: VAE,
    data: datasets.Dataset,
    *,
    samples: int,
    annealing_steps: int = 0,
    parameters: int,
    seconds: float,
) -> Entry:
    """A trained VAE, measured by IWAE with K = samples, or by annealed importance sampling with so many temperatures.

    parameters: how many it has. seconds: that its training took.
    """
    begin, images = time.perf_counter() - seconds, jnp.asarray(data.test_images, jnp.float32)
    if annealing_steps:
        key_tune, key_chains = jax.random.split(key)
        betas = sigmoidal_betas(annealing_steps)
        plan = evaluation.tune_annealing(key_tune, vae, images[:16], betas, leapfrog_steps=_LEAPFROG_STEPS)
        evidence = evaluation.annealed_evidence(key_chains, vae, images, plan)
        return _entry(name, f"AIS, {annealing_steps} steps", evidence, data, parameters, begin)
    # memory: batch_size x samples decodings at once
    batch_size = max(1, 8000 // samples)
    measure = jax.jit(
        lambda images: evaluation.importance_weighted_evidence(key, vae, images, samples=samples, batch_size=batch_size)
    )
    return _entry(name, f"IWAE-{samples}", measure(images), data, parameters, begin)


def by_diffusion(
    key: PRNGKey,
    name: str,
    model: DiffusionModel,
    schedule: Schedule,
    data: datasets.Dataset,
    *,
    parameters: int,
    seconds: float,
) -> Entry:
    """A trained diffusion model, measured by its bound at two draws of x_t for every t; others as `by_vae`.

    The evidence of an image is the mean of both, and half their difference, squared, its Monte-Carlo variance.
    """
    begin, images = time.perf_counter() - seconds, jnp.asarray(data.test_images, jnp.float32)

    def one(example: tuple[PRNGKey, Array]) -> Array:
        key, x = example
        return -diffusion_bound(key, model, schedule, x).total()

    measure = jax.jit(lambda keys, images: jax.lax.map(one, (keys, images), batch_size=500))
    first, second = (measure(keys, images) for keys in jax.random.split(key, (2, len(images))))
    evidence = Evidence((first + second) / 2, ((first - second) / 2) ** 2)
    return _entry(name, f"bound, T = {schedule.steps}", evidence, data, parameters, begin)


def _entry(name: str, measured: str, evidence: Evidence, data: datasets.Dataset, parameters: int, begin: float):
    evidence = jax.block_until_ready(evidence)
    dimensions = int(np.prod(data.test_images.shape[1:]))
    return Entry(name, measured, evidence, dimensions, parameters, time.perf_counter() - begin)


def _certain(nats: Any) -> Evidence:
    return Evidence(jnp.asarray(nats, jnp.float32), jnp.zeros(len(nats), jnp.float32))


def _over(log_prob: LogDensity, test: Array) -> Array:
    return jax.jit(lambda test: jax.lax.map(log_prob, test, batch_size=64))(test)


def _dequantised(key: PRNGKey, log_prob: LogDensity, test: Array, samples: int) -> Evidence:
    @jax.jit
    def measure(keys: Array, test: Array) -> Evidence:
        def one(pair):
            bound = dequantised_log_prob(pair[0], log_prob, pair[1], samples=samples)
            return Evidence(bound.importance_weighted, bound.variance)

        return jax.lax.map(one, (keys, test), batch_size=64)

    return measure(jax.random.split(key, len(test)), test)
