"""Fidelity and diversity from neighbourhoods: precision and recall, density and coverage.

A point's ball reaches to its k-th nearest neighbour in its own sample; the balls of a sample stand for its support.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vbjax.types import Scalar


class Neighbourhoods(NamedTuple):
    """What balls of k neighbours say of a model's sample, m points, against a real one, n points.

    precision: share of the model's points in a real ball. recall: share of the real points in a ball of the model's.
    Neither has a value for equal laws that holds for every law; for real data against real data both are below one.
    density: real balls around a point of the model, on average over k; exactly 1 in expectation for equal laws.
    coverage: share of the real balls with a point of the model in them; `expected_coverage` for equal laws.
    """

    precision: Scalar
    recall: Scalar
    density: Scalar
    coverage: Scalar


def neighbourhoods(real: Float[Array, "n d"], model: Float[Array, "m d"], *, k: int = 3) -> Neighbourhoods:
    """Precision, recall, density and coverage of a model's sample, by Euclidean distance.

    k: neighbours, other points of the same sample, which a ball reaches, its edge included. Memory: the distances of
    all pairs. Raises ValueError unless 1 <= k < n, m. Source: Kynkäänniemi et al. (2019), eq. 1-3; Naeem et al. (2020),
    section 3.
    """
    least = min(real.shape[0], model.shape[0])
    if not 1 <= k < least:
        raise ValueError(f"k must be from 1 to {least - 1}, one less than the smaller sample, got {k}")
    between = _squared_distances(real, model)
    in_real: Bool[Array, "n m"] = between <= _radii(real, k)[:, None]
    in_model: Bool[Array, "n m"] = between <= _radii(model, k)[None]
    return Neighbourhoods(
        precision=_share(in_real.any(0), real.dtype),
        recall=_share(in_model.any(1), real.dtype),
        density=in_real.sum(0).astype(real.dtype).mean() / k,
        coverage=_share(in_real.any(1), real.dtype),
    )


def expected_coverage(n: int, m: int, *, k: int = 3) -> float:
    """The coverage of n real points by m points of the same continuous law, in expectation.

    1 - ∏_{i=1..k} (n - i) / (n + m - i): of all the other points, the k nearest are real ones. Source: Naeem et al.
    (2020), lemma 2.
    """
    if min(n, m) < 1 or not 1 <= k < n:
        raise ValueError(f"k must be from 1 to n - 1 and m at least 1, got n = {n}, m = {m}, k = {k}")
    return 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))


def _squared_distances(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    # by differences: ‖a‖² + ‖b‖² - 2 a·b loses the small ones, which decide here
    return jax.lax.map(lambda x: jnp.sum((b - x[None]) ** 2, 1), a, batch_size=64)


def _radii(points: Float[Array, "n d"], k: int) -> Float[Array, " n"]:
    # the nearest is the point itself
    return jnp.sort(_squared_distances(points, points), 1)[:, k]


def _share(which: Bool[Array, " n"], dtype) -> Scalar:
    return which.astype(dtype).mean()
