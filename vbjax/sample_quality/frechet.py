"""The Fréchet distance between Gaussians fitted to two samples, and what it reads when the laws are equal.

`frechet_distance(fit_gaussian(a), fit_gaussian(b))` is the squared 2-Wasserstein distance of the two Gaussians. It is
biased upwards by O(1/n), which for features of dimension 64 and a few hundred samples is most of what is read:
`frechet_bias` is that excess, `extrapolated_frechet_distance` removes it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.types import Estimate, PRNGKey, Scalar

Features = Float[Array, "n d"]


class Gaussian(NamedTuple):
    """N(mean, covariance); the covariance may be singular."""

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]


def fit_gaussian(features: Features) -> Gaussian:
    """Return the mean and the unbiased covariance, divided by n - 1. Raises ValueError below two rows."""
    count = _at_least_two("features", features)
    mean = features.mean(0)
    centred = features - mean[None]
    return Gaussian(mean, centred.T @ centred / (count - 1))


def frechet_distance(p: Gaussian, q: Gaussian) -> Scalar:
    """‖μ_p - μ_q‖² + tr Σ_p + tr Σ_q - 2 tr (Σ_p^½ Σ_q Σ_p^½)^½, in the squared unit of the features.

    The last trace is the sum of the singular values of Σ_p^½ Σ_q^½, whose factors come from eigenvalues: no matrix
    square root, and no complex numbers where Σ is singular. Source: Dowson and Landau (1982), eq. 4; Heusel et al.
    (2017), eq. 6.
    """
    overlap = jnp.linalg.svd(_root(p.covariance).T @ _root(q.covariance), compute_uv=False).sum()
    shift = jnp.sum((p.mean - q.mean) ** 2)
    return shift + jnp.trace(p.covariance) + jnp.trace(q.covariance) - 2 * overlap


def gaussian_frechet_bias(covariance: Float[Array, "d d"], n: int, m: int) -> Scalar:
    """What the distance between samples of n and m from one *Gaussian* law reads on average, to order 1/n.

    (1/n + 1/m) tr Σ + ½ (1/(n-1) + 1/(m-1)) Σ_ij λ_i λ_j (1 + δ_ij) / (λ_i + λ_j) with the eigenvalues λ of Σ; for
    Σ = I and n = m about 2d/n + d(d+1)/(2n). Raises ValueError below two samples.

    The second term: near Σ the squared Bures distance of Σ + E and Σ + F is Σ_ij (E - F)_ij² / (2 (λ_i + λ_j)) in the
    eigenbasis, and the variance of an entry of a sample covariance is λ_i λ_j (1 + δ_ij) / (n - 1).
    """
    λ = jnp.maximum(jnp.linalg.eigvalsh(covariance), 0)
    variances = λ[:, None] * λ[None] * (1 + jnp.eye(λ.shape[0], dtype=λ.dtype))
    return _bias(λ, variances, n, m)


def frechet_bias(features: Features, n: int, m: int) -> Scalar:
    """As `gaussian_frechet_bias`, for the law of these features, Gaussian or not.

    The variances of the covariance's entries come from the fourth moments of the features. Source: derived as there.
    """
    count = _at_least_two("features", features)
    _, covariance = fit_gaussian(features)
    λ, basis = jnp.linalg.eigh(covariance)
    λ = jnp.maximum(λ, 0)
    squares = ((features - features.mean(0)[None]) @ basis) ** 2
    variances = squares.T @ squares / count - jnp.diag(λ**2)
    return _bias(λ, variances, n, m)


def extrapolated_frechet_distance(
    key: PRNGKey, a: Features, b: Features, *, sizes: Sequence[int], repeats: int = 8
) -> Estimate:
    """The distance at infinitely many samples: the intercept of a line through distances of subsets, in 1/size.

    sizes: of the subsets, drawn of both samples without replacement, `repeats` of each. The standard error is that of
    the least-squares intercept with equal weights; subsets overlap, so it is too small where the sizes come near n.
    Raises ValueError for fewer than two different sizes, or for one below two or above a sample's. Source: Chong and
    Forsyth (2020), section 4, there for one of the two samples.
    """
    least = min(a.shape[0], b.shape[0])
    if len(set(sizes)) < 2 or not 2 <= min(sizes) <= max(sizes) <= least:
        raise ValueError(f"sizes must be two or more different ones from 2 to {least}, got {tuple(sizes)}")
    if repeats < 1 or repeats * len(sizes) < 3:
        raise ValueError(f"repeats must make at least three distances, got {repeats} for {len(sizes)} sizes")

    def distances(key, size):
        def once(key):
            key_a, key_b = jax.random.split(key)
            rows_a, rows_b = (jax.random.permutation(k, x)[:size] for k, x in ((key_a, a), (key_b, b)))
            return frechet_distance(fit_gaussian(rows_a), fit_gaussian(rows_b))

        return jax.lax.map(once, jax.random.split(key, repeats))

    keys = jax.random.split(key, len(sizes))
    y = jnp.concatenate([distances(k, size) for k, size in zip(keys, sizes, strict=True)])
    x = jnp.repeat(1 / jnp.asarray(sizes, y.dtype), repeats)
    centred = x - x.mean()
    slope = (centred @ y) / (centred @ centred)
    intercept = y.mean() - slope * x.mean()
    count = y.shape[0]
    noise = jnp.sum((y - intercept - slope * x) ** 2) / (count - 2)
    error = jnp.sqrt(noise * (1 / count + x.mean() ** 2 / (centred @ centred)))
    return Estimate(intercept, error, count)


def _bias(λ: Float[Array, " d"], variances: Float[Array, "d d"], n: int, m: int) -> Scalar:
    if min(n, m) < 2:
        raise ValueError(f"n and m must be at least 2, got {n} and {m}")
    sums = λ[:, None] + λ[None]
    # a pair of directions without variance moves nothing
    curvature = jnp.where(sums > 0, variances / jnp.where(sums > 0, sums, 1), 0).sum() / 2
    return (1 / n + 1 / m) * λ.sum() + (1 / (n - 1) + 1 / (m - 1)) * curvature


def _root(covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """A matrix A with A Aᵀ = Σ."""
    λ, basis = jnp.linalg.eigh(covariance)
    return basis * jnp.sqrt(jnp.maximum(λ, 0))[None]


def _at_least_two(name: str, rows: Features) -> int:
    if rows.shape[0] < 2:
        raise ValueError(f"{name} must have at least two rows, got {rows.shape[0]}")
    return rows.shape[0]
