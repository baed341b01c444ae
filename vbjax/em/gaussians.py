"""Normal mixtures: full, tied, diagonal and spherical covariances, each with an exact M-step above a variance floor.

The floor is a constraint, not an added ridge: variances, or eigenvalues of a covariance, are at least `floor`, and
the M-step is the constrained maximum (clipping maximises -log λ - s/λ over λ ≥ floor), so EM stays monotone and a
collapsing component rests at the floor. `reg_covar` of scikit-learn adds instead, and may lower the likelihood.

Where coordinates mix (full, tied), a quadratic form at condition κ is off by about κ eps, so the floor is at least
`RESOLUTION` eps of the data's largest variance: 2e-13 of it in float64, 1e-4 in float32. That is a function of the
data alone, so the constraint stands still while EM climbs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import DiscretisedNormal, Mixture, MultivariateNormal, Normal
from vbjax.distributions.family import LOG_2PI
from vbjax.em.fitting import Family, as_real
from vbjax.em.mixtures import Components, MixtureModel, mixture
from vbjax.types import Scalar

FLOOR = 1e-6
"""Smallest variance in any direction, in squared units of the data."""

RESOLUTION = 2**10
"""Smallest variance in units of eps times the data's largest: a quadratic form keeps 10 bits."""

Counts = Float[Array, " components"]


@functools.cache
def diagonal_gaussians(components: int, *, floor: int | float = FLOOR) -> Family:
    """Mixture of normal laws with independent coordinates. Raises ValueError unless floor > 0."""
    return mixture(_independent(lambda variance: jnp.maximum(variance, floor), floor), components)


@functools.cache
def spherical_gaussians(components: int, *, floor: int | float = FLOOR) -> Family:
    """Mixture of normal laws with one variance each. Raises ValueError unless floor > 0."""

    def pooled(variance):
        return jnp.broadcast_to(jnp.maximum(variance.mean(1, keepdims=True), floor), variance.shape)

    return mixture(_independent(pooled, floor), components)


@functools.cache
def soft_k_means(components: int, *, variance: int | float) -> Family:
    """Equal-weight mixture of spheres of one fixed variance: as it goes to zero, EM becomes Lloyd's algorithm.

    Source: MacKay (2003), «Information Theory, Inference, and Learning Algorithms», chapter 22.
    """
    fixed = _independent(lambda estimate: jnp.full_like(estimate, variance), variance)
    return mixture(fixed, components, equal_weights=True)


@functools.cache
def full_gaussians(components: int, *, floor: int | float = FLOOR) -> Family:
    """Mixture of normal laws with a covariance each.

    floor: the smallest eigenvalue, or `RESOLUTION` eps times the largest variance of the data where that is more.
    Raises ValueError unless floor > 0.
    """
    _check_floor(floor)

    def log_probs(laws):
        # one product with all whitenings side by side: x ↦ (L_k⁻¹ x)_k
        centre = laws.loc.mean(0)
        whitening = jax.vmap(_inverse)(laws.scale_tril)
        offset = jax.vmap(jnp.matmul)(whitening, laws.loc - centre[None])
        flat = whitening.reshape(-1, centre.shape[0])
        constant = jax.vmap(_log_normaliser)(laws.scale_tril)
        return lambda x: constant - 0.5 * jnp.sum(((flat @ (x - centre)).reshape(offset.shape) - offset) ** 2, 1)

    def statistics(laws, data, shares):
        deviation = shares[:, :, None] * (data[:, None] - laws.loc[None])
        # Σ r (x-c)(x-m)ᵀ for all components in one product; `maximise` moves c to m
        cross = (data - laws.loc.mean(0)[None]).T @ deviation.reshape(data.shape[0], -1)
        return deviation.sum(0), cross.reshape(-1, *laws.loc.shape), _spread(laws, data, shares)

    def maximise(laws, sums, counts):
        first, cross, spread = sums
        shift = first / counts[:, None]
        scatter = jnp.moveaxis(cross, 1, 0) / counts[:, None, None]
        covariance = scatter - _outer(laws.loc - laws.loc.mean(0)[None], shift) - _outer(shift, shift)
        return MultivariateNormal(laws.loc + shift, _cholesky_above(covariance, _resolved(floor, spread)))

    return mixture(Components(as_real, _about(floor), log_probs, statistics, maximise, _flat), components)


@functools.cache
def tied_gaussians(components: int, *, floor: int | float = FLOOR) -> Family:
    """Mixture of normal laws that share a covariance.

    floor: the smallest eigenvalue, or `RESOLUTION` eps times the largest variance of the data where that is more.
    Raises ValueError unless floor > 0.
    """
    _check_floor(floor)

    def log_probs(laws):
        centre, tril = laws.loc.mean(0), laws.scale_tril[0]
        whitening = _inverse(tril)
        means = (laws.loc - centre[None]) @ whitening.T
        constant = _log_normaliser(tril) - 0.5 * jnp.sum(means**2, 1)

        def of(x):
            white = whitening @ (x - centre)
            return constant + means @ white - 0.5 * jnp.sum(white**2)

        return of

    def statistics(laws, data, shares):
        deviation = data - laws.loc.mean(0)[None]
        second = (shares.sum(1)[:, None] * deviation).T @ deviation
        return shares.T @ deviation, second, _spread(laws, data, shares)

    def maximise(laws, sums, counts):
        first, second, spread = sums
        shift = first / counts[:, None]
        covariance = (second - first.T @ shift) / spread.count
        tril = _cholesky_above(covariance[None], _resolved(floor, spread))
        return MultivariateNormal(laws.loc.mean(0)[None] + shift, jnp.broadcast_to(tril, laws.scale_tril.shape))

    return mixture(Components(as_real, _about(floor), log_probs, statistics, maximise, _flat), components)


def discretised(model: MixtureModel, levels: int) -> Mixture:
    """The mass that a mixture of independent normals puts on each pixel's cell: an exact law of 0 … levels-1.

    Level k has the cell [k - 1/2, k + 1/2], the first and the last take the tails. Raises ValueError for components
    with a full covariance, whose cells have no closed form: use `dequantisation.dequantised_log_prob`.
    """
    if not isinstance(model.components, Normal):
        raise ValueError(f"components must be Normal, got {type(model.components).__name__}; use dequantised_log_prob")
    unit = 2 / (levels - 1)
    laws = model.components
    return Mixture(model.logits, DiscretisedNormal(unit * laws.loc - 1, unit * laws.scale, levels))


def _independent(constrain: Callable[[Array], Array], floor: int | float) -> Components:
    """Normal laws with independent coordinates; constrain: unconstrained variances -> those of the M-step."""
    _check_floor(floor)

    def start(centres, data):
        return Normal(centres, jnp.broadcast_to(jnp.sqrt(jnp.maximum(data.var(0), floor)), centres.shape))

    def log_probs(laws):
        # squares expanded about the centre of the components: two matrix products
        centre, precision = laws.loc.mean(0), laws.scale**-2
        moved = laws.loc - centre[None]
        linear = moved * precision
        constant = -jnp.sum(0.5 * (moved * linear + LOG_2PI) + jnp.log(laws.scale), 1)
        return lambda x: linear @ (x - centre) - 0.5 * (precision @ jnp.square(x - centre)) + constant

    def statistics(laws, data, shares):
        deviation = data - laws.loc.mean(0)[None]
        return shares.T @ deviation, shares.T @ deviation**2

    def maximise(laws, sums, counts):
        shift, second = (total / counts[:, None] for total in sums)
        return Normal(laws.loc.mean(0)[None] + shift, jnp.sqrt(constrain(second - shift**2)))

    return Components(as_real, start, log_probs, statistics, maximise, _flat)


def _about(floor: int | float) -> Callable[[Array, Array], MultivariateNormal]:
    def start(centres, data):
        tril = jnp.diag(jnp.sqrt(jnp.maximum(data.var(0), floor)))
        return MultivariateNormal(centres, jnp.broadcast_to(tril, (*centres.shape, data.shape[1])))

    return start


class Spread(NamedTuple):
    """Σ 1, Σ (x - c) and Σ (x - c)² of the data about the components' centre c: their variance, whatever the shares."""

    count: Scalar
    first: Float[Array, " d"]
    second: Float[Array, " d"]


def _spread(laws, data: Array, shares: Array) -> Spread:
    present, deviation = shares.sum(1), data - laws.loc.mean(0)[None]
    return Spread(present.sum(), present @ deviation, present @ deviation**2)


def _resolved(floor: int | float, spread: Spread) -> Scalar:
    """The floor, or the least variance that the dtype tells from rounding in data of this spread."""
    variance = spread.second / spread.count - (spread.first / spread.count) ** 2
    return jnp.maximum(RESOLUTION * float(jnp.finfo(variance.dtype).eps) * variance.max(), floor)


def _flat(laws):
    """No prior: maximum likelihood, subject to the floor."""
    return jnp.zeros((), laws.dtype)


def _cholesky_above(covariance: Float[Array, "k d d"], floor: Scalar) -> Float[Array, "k d d"]:
    """Cholesky factors of the covariances with their eigenvalues raised to the floor, which is rarely needed."""
    covariance = 0.5 * (covariance + jnp.swapaxes(covariance, 1, 2))
    identity = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)

    def raised():
        values, vectors = jnp.linalg.eigh(covariance)
        return (vectors * jnp.maximum(values, floor)[:, None]) @ jnp.swapaxes(vectors, 1, 2)

    above = jnp.isfinite(jnp.linalg.cholesky(covariance - floor * identity[None], symmetrize_input=False)).all()
    return jnp.linalg.cholesky(jax.lax.cond(above, lambda: covariance, raised))


def _inverse(tril: Float[Array, "d d"]) -> Float[Array, "d d"]:
    identity = jnp.eye(tril.shape[0], dtype=tril.dtype)
    return jax.lax.linalg.triangular_solve(tril, identity, left_side=True, lower=True)


def _log_normaliser(tril: Float[Array, "d d"]) -> Array:
    return -jnp.sum(jnp.log(jnp.diagonal(tril)) + 0.5 * LOG_2PI)


def _outer(a: Float[Array, "k d"], b: Float[Array, "k d"]) -> Float[Array, "k d d"]:
    return a[:, :, None] * b[:, None, :]


def _check_floor(floor: int | float) -> None:
    if not 0 < floor < float("inf"):
        raise ValueError(f"floor and variance must be positive and finite, got {floor}")
