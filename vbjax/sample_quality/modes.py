"""Which of the known modes, or classes, a sample covers, and how evenly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vbjax.types import Scalar


class ModeCoverage(NamedTuple):
    """How a sample falls on k known modes.

    counts: points near each mode, `(k,)`. high_quality: share of all points that are near one; `high_quality_share` for
    the law itself. covered: modes with enough points. kl: nats, of the histogram of the near points to the uniform one.
    """

    counts: Int[Array, " k"]
    high_quality: Scalar
    covered: Int[Array, ""]
    kl: Scalar


def nearest_mode(point: Float[Array, " d"], modes: Float[Array, "k d"]) -> tuple[Int[Array, ""], Scalar]:
    """Return the index of the nearest mode and the distance to it."""
    distances = jnp.linalg.norm(modes - point[None], axis=1)
    return distances.argmin(), distances.min()


def mode_coverage(
    assigned: Int[Array, " n"],
    near: Bool[Array, " n"],
    *,
    modes: int,
    least_share: int | float = 0.1,
) -> ModeCoverage:
    """Count points by mode, those that are near one; the others belong to none.

    A mode is covered if it draws at least `least_share` of the n / modes points that an even sample would give it: one
    stray point is no cover. For points of the plane and an equal mixture with standard deviation σ:

        assigned, distance = jax.vmap(nearest_mode, (0, None))(points, modes)
        mode_coverage(assigned, distance < 3 * σ, modes=8)

    Raises ValueError for least_share outside (0, 1]. Source: after Srivastava et al. (2017), section 4.1.
    """
    if not 0 < least_share <= 1:
        raise ValueError(f"least_share must lie in (0, 1], got {least_share}")
    counts = jnp.zeros(modes, jnp.int32).at[assigned].add(near.astype(jnp.int32))
    covered = (jnp.asarray(counts, float) >= least_share * near.shape[0] / modes).sum()
    return ModeCoverage(counts, jnp.asarray(near, float).mean(), covered, histogram_kl(counts))


def high_quality_share(dimensions: int, *, deviations: int | float = 3) -> Scalar:
    """The share of N(0, I_d) within so many standard deviations: in the plane 1 - exp(-r²/2), 0.98889 for three."""
    return jax.scipy.special.gammainc(jnp.asarray(dimensions / 2), jnp.asarray(deviations**2 / 2))


def histogram_kl(counts: Int[Array, " k"]) -> Scalar:
    """KL(histogram ‖ uniform) = log k - entropy, in nats; log k where nothing was counted."""
    shares = jnp.asarray(counts, float) / jnp.asarray(jnp.maximum(counts.sum(), 1), float)
    negative_entropy = jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1)))
    return jnp.log(jnp.asarray(counts.shape[0], shares.dtype)) + negative_entropy


def histogram_kl_bias(modes: int, count: int) -> float:
    """What `histogram_kl` reads on average for `count` points that fall evenly: (modes - 1) / (2 count) to first order.

    Raises ValueError for counts below one. Source: Miller (1955).
    """
    if min(modes, count) < 1:
        raise ValueError(f"modes and count must be at least 1, got {modes} and {count}")
    return (modes - 1) / (2 * count)
