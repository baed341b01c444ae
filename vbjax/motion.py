"""Futures of a motion: the exact conditional law of `datasets.motion`, and how good and how diverse a set of K is.

A past is `(P, joints, 3)`, a future `(F, joints, 3)`, K futures `(K, F, joints, 3)`; distances are those of the data.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vbjax.datasets.motion import MotionLaw
from vbjax.distributions import Mixture, MultivariateNormal
from vbjax.types import Scalar

Future = Float[Array, "_ _ 3"]
Futures = Float[Array, "K _ _ 3"]


class Conditional(NamedTuple):
    """p(future|past) of a law, a mixture over gaits; made by `conditional`.

    past: p(past), a component a gait. p(future|past, gait) is N(gain past, L Lᵀ) for L = scale_tril), all flattened.
    """

    past: Mixture
    gain: Float[Array, "G f p"]
    scale_tril: Float[Array, "G f f"]

    def gait(self, past: Float[Array, "P joints 3"]) -> Float[Array, " G"]:
        """log p(gait|past), up to a constant."""
        return self.past.component_log_probs(self._flat(past))

    def law(self, past: Float[Array, "P joints 3"]) -> Mixture:
        """p(future|past) over futures flattened to f = F x joints x 3; raises ValueError for a past of other size."""
        flat = self._flat(past)
        return Mixture(self.gait(past), MultivariateNormal(self.gain @ flat, self.scale_tril))

    def _flat(self, past: Float[Array, "P joints 3"]) -> Float[Array, " p"]:
        flat = past.ravel()
        if flat.shape != self.past.components.loc.shape[1:]:
            frames = self.past.components.loc.shape[1] // (past.shape[1] * past.shape[2])
            raise ValueError(f"the past has {frames} frames, got {past.shape[0]}: past and future swapped?")
        return flat


def conditional(law: MotionLaw, *, past: int, future: int, scale: int | float = 1.0) -> Conditional:
    """The exact law of `future` frames given `past` frames before them, of (x - pose) / scale.

    Computed in float64 by the joint Gaussian of each gait, returned in the default precision.
    """
    covariances = law.covariances(past + future) / scale**2
    cut = past * law.pose.size
    seen, cross, ahead = covariances[:, :cut, :cut], covariances[:, cut:, :cut], covariances[:, cut:, cut:]
    gain = np.linalg.solve(seen, cross.swapaxes(1, 2)).swapaxes(1, 2)
    tril = np.linalg.cholesky(ahead - gain @ cross.swapaxes(1, 2))
    given = MultivariateNormal(jnp.zeros(seen.shape[:2]), jnp.asarray(np.linalg.cholesky(seen), float))
    known = Mixture(jnp.log(jnp.asarray(law.weights, float)), given)
    return Conditional(known, jnp.asarray(gain, float), jnp.asarray(tril, float))


class Errors(NamedTuple):
    """Of the best of K futures. average: over frames (ADE); final: in the last frame (FDE)."""

    average: Scalar
    final: Scalar


def best_of(futures: Futures, truth: Future) -> Errors:
    """Smallest distance of a future to the truth, ‖·‖ over all joints of a frame (Yuan and Kitani 2020, section 5).

    Each of the two is the best of its own. Raises ValueError where futures and truth differ in shape.
    """
    if futures.shape[1:] != truth.shape:
        raise ValueError(f"futures of shape {futures.shape[1:]} cannot be compared with a truth of {truth.shape}")
    distances = jnp.sqrt(jnp.sum((futures - truth[None]) ** 2, axis=(2, 3)))
    return Errors(distances.mean(1).min(), distances[:, -1].min())


def diversity(futures: Futures) -> Scalar:
    """Average distance of two different futures of the K, as whole sequences (APD; Yuan and Kitani 2020, section 5).

    Raises ValueError below two futures.
    """
    return _pairwise(_two(futures))


def energy_score(futures: Futures, truth: Future) -> Scalar:
    """Mean distance to the truth less half the mean distance of two futures: smallest, in mean, for the exact law.

    Its excess over that of exact futures is half the squared energy distance to the exact law, and unbiased for any K.
    Raises ValueError below two futures. Source: Gneiting and Raftery (2007), eq. 22; Székely and Rizzo (2013).
    """
    distance = jnp.sqrt(jnp.sum((_two(futures) - truth[None]) ** 2, axis=(1, 2, 3))).mean()
    return distance - 0.5 * _pairwise(futures)


def _two(futures: Futures) -> Futures:
    if futures.shape[0] < 2:
        raise ValueError("one future has no distance to others: pass at least two")
    return futures


def _pairwise(futures: Futures) -> Scalar:
    count = futures.shape[0]
    square = jnp.sum((futures[:, None] - futures[None]) ** 2, axis=(2, 3, 4))
    other = ~jnp.eye(count, dtype=bool)
    # the root of the diagonal's zeros has no gradient
    distances = jnp.where(other, jnp.sqrt(jnp.where(other, square, 1)), 0)
    return distances.sum() / (count * (count - 1))
