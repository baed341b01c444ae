"""Signal-to-noise of importance-weighted gradients: tighter bounds help the model and starve the encoder.

z ~ N(μ, I), x | z ~ N(z, I), q(z | x) = N(Ax + b, 2/3 I) in 20 dimensions, near the optimum. Start at
`tighter_bounds_case`; `replicated_moments` draws, `signal_to_noise` corrects the noise floor.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import bounds
from vbjax.bounds import LogWeight
from vbjax.distributions import Normal
from vbjax.estimators import doubly_reparameterised, pathwise
from vbjax.estimators.estimate import value_and_grad
from vbjax.studies.published_case import Finding, PublishedCase, mean_of
from vbjax.types import Estimate, GradientEstimator

DIMENSION, OFFSET = 20, 0.01
SOURCE = "Rainforth et al. (2018), Tighter variational bounds are not necessarily better, section 4 and figures 1-3"
MODEL, ENCODER = ("mu",), ("b", "A")


def problem(x):
    """`{"mu", "A", "b"} -> (q, log-weight)` for one datum x."""

    def bind(params):
        q = Normal(params["A"] @ x + params["b"], math.sqrt(2 / 3) * jnp.ones_like(x))
        prior = Normal(params["mu"], jnp.ones_like(x))
        return q, LogWeight(lambda z: Normal(z, jnp.ones_like(x)).log_prob(x), prior, q)

    return bind


def setting(seed: int, data: int):
    """Parameters near the optimum μ* = mean of x, A = I/2, b = μ*/2, each offset by N(0, 0.01²); and the data."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=DIMENSION)
    x = mean + math.sqrt(2) * rng.normal(size=(data, DIMENSION))
    best = {"mu": x.mean(0), "A": np.eye(DIMENSION) / 2, "b": x.mean(0) / 2}
    params = {k: v + OFFSET * rng.normal(size=v.shape) for k, v in best.items()}
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), (params, x))


class GradientMoments(NamedTuple):
    """Mean and variance of a gradient over replications, flattened by group, in independent batches.

    mean, variance: for each group `(batches, d)`; count: replications in a batch.
    """

    mean: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    count: int


def replicated_moments(
    key, estimator: GradientEstimator, params, x, *, batches: int, replications: int
) -> GradientMoments:
    """Moments of the gradient of the mean bound over all data, `replications` draws in each batch."""

    def gradient(key):
        keys = jax.random.split(key, len(x))
        gradients = jax.vmap(lambda k, x: value_and_grad(k, estimator, problem(x), params)[1])(keys, x)
        return {name: g.mean(0).ravel() for name, g in gradients.items()}

    @jax.jit
    def batch(key):
        zero = jax.tree.map(lambda v: jnp.zeros(v.size), params)

        def add(sums, key):
            g = gradient(key)
            return (jax.tree.map(jnp.add, sums[0], g), jax.tree.map(lambda s, g: s + g**2, sums[1], g)), None

        (total, squares), _ = jax.lax.scan(add, (zero, zero), jax.random.split(key, replications))
        mean = jax.tree.map(lambda s: s / replications, total)
        unbiased = replications / (replications - 1)
        return mean, jax.tree.map(lambda s, m: unbiased * (s / replications - m**2), squares, mean)

    moments = [jax.tree.map(np.asarray, batch(k)) for k in jax.random.split(key, batches)]
    mean, variance = ({name: np.stack([m[i][name] for m in moments]) for name in params} for i in range(2))
    return GradientMoments(mean, variance, replications)


def signal_to_noise(signal: GradientMoments, noise: GradientMoments, names) -> np.ndarray:
    """log ‖E g‖ / sd(g) over the named groups, one number a batch: `(batches,)`.

    signal: draws of any unbiased estimator of the same gradient. The square of a mean over M draws exceeds E g squared
    by var / M, a floor of 1/√M under the ratio: it is subtracted. NaN where nothing is left.
    """
    squared = sum((signal.mean[n] ** 2 - signal.variance[n] / signal.count).sum(1) for n in names)
    with np.errstate(invalid="ignore"):
        return np.log(squared / sum(noise.variance[n].sum(1) for n in names)) / 2


def slope(log_samples: np.ndarray, log_ratio: np.ndarray) -> Estimate:
    """Least-squares slope over log K, from one line for each batch: `log_ratio` is `(K's, batches)`."""
    centred = log_samples - log_samples.mean()
    slopes = centred @ (log_ratio - log_ratio.mean(0)) / (centred @ centred)
    return mean_of(slopes)


def tighter_bounds_case(
    *, samples: tuple[int, ...] = (16, 64, 256, 1024), data: int = 16, batches: int = 5, replications: int = 80
) -> PublishedCase:
    """SNR against K for model and encoder, pathwise and doubly reparameterised, and the slopes in log-log.

    The encoder's mean is taken from the doubly reparameterised draws for both estimators, since the plain ones drown
    in noise; the first finding checks that the two means agree. Slopes leave out the smallest K.
    """
    params, x = setting(0, data)
    keys = jax.random.split(jax.random.key(0), 2 * len(samples)).reshape(-1, 2)
    draw = functools.partial(replicated_moments, params=params, x=x, batches=batches, replications=replications)
    plain = [draw(k[0], pathwise(n, bound=bounds.iwae)) for k, n in zip(keys, samples, strict=True)]
    doubly = [draw(k[1], doubly_reparameterised(n)) for k, n in zip(keys, samples, strict=True)]
    curves = {
        "model, pathwise": (0.5, [signal_to_noise(d, p, MODEL) for p, d in zip(plain, doubly, strict=True)]),
        "encoder, pathwise": (-0.5, [signal_to_noise(d, p, ENCODER) for p, d in zip(plain, doubly, strict=True)]),
        "encoder, doubly": (0.5, [signal_to_noise(d, d, ENCODER) for d in doubly]),
    }
    worst, count = _largest_z(plain, doubly)
    threshold = 6.5  # of about 2,000 normal numbers one exceeds it with probability 2e-7
    findings = [
        Finding(
            f"Pathwise and doubly reparameterised gradients have the same mean: largest |z| of {count} is {worst:.1f}.",
            worst < threshold,
        )
    ]
    log_samples = np.log(np.array(samples[1:], float))
    slopes = {}
    for name, (expected, values) in curves.items():
        fitted = slopes[name] = slope(log_samples, np.stack(values[1:]))
        value, error = float(fitted.value), float(fitted.standard_error)
        findings.append(
            Finding(
                f"{name}: slope {value:.3f} ± {error:.3f} of log SNR in log K, {expected:+.1f} in the limit.",
                # the corrections to the limit are of order 1/K, 0.03 in the slope between K = 64 and 1024
                abs(value - expected) < 0.06 + 5 * error,
            )
        )
    rows = [(n, *(mean_of(np.exp(values[i])) for _, values in curves.values())) for i, n in enumerate(samples)]
    return PublishedCase(
        name="tighter-bounds",
        title="Tighter bounds are not necessarily better",
        claim="As K grows the signal-to-noise ratio of importance-weighted gradients grows like √K for the model and "
        "falls like 1/√K for the encoder; the doubly reparameterised gradient restores √K.",
        source=SOURCE + "; Tucker et al. (2019), section 6.1",
        columns=("K", *curves),
        rows=(*rows, ("slope", *slopes.values())),
        findings=tuple(findings),
        remark=f"Linear-Gaussian model in {DIMENSION} dimensions, {data} data points in every gradient, parameters "
        f"offset by N(0, {OFFSET}²) from the optimum; $\\mathrm{{SNR}} = \\|E g\\| / \\mathrm{{sd}}(g)$ over all "
        f"coordinates of a group, from {batches} × {replications} draws with the noise floor subtracted.",
    )


def _largest_z(first: list[GradientMoments], second: list[GradientMoments]) -> tuple[float, int]:
    """Largest deviation of two sets of means, over all batches pooled, in standard errors; and how many there are."""
    deviations = []
    for a, b in zip(first, second, strict=True):
        for name in a.mean:
            draws = a.count * len(a.mean[name])
            error = np.sqrt((a.variance[name].mean(0) + b.variance[name].mean(0)) / draws)
            deviations.append(np.abs(a.mean[name].mean(0) - b.mean[name].mean(0)) / error)
    z = np.concatenate(deviations)
    return float(z.max()), len(z)
