"""Two generators between two domains, each to undo the other: cycle consistency, and what it leaves open.

Adversarial losses ask that each generator maps one law onto the other, the cycle loss that the two are inverse. Both
are zero for many pairs: between normal laws for one pair per rotation (`normal_pair`). The identity loss chooses among
them, for the maps that move points least.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import MultivariateNormal
from vbjax.types import Scalar

Map = Callable[[Float[Array, "*d"]], Float[Array, "*d"]]


class Pair(NamedTuple):
    """forward: from the domain of x to that of y. backward: the way back."""

    forward: Map
    backward: Map


class CycleLoss(NamedTuple):
    """Mean absolute differences over the coordinates, of one x and one y: x and y against what comes back."""

    forward: Scalar
    backward: Scalar

    def total(self) -> Array:
        """Their sum."""
        return self.forward + self.backward


def cycle_loss(pair: Pair, x: Float[Array, "*d"], y: Float[Array, "*e"]) -> CycleLoss:
    """|backward(forward(x)) - x| and |forward(backward(y)) - y|, zero for inverse maps (Zhu et al. 2017, eq. 2)."""
    there, back = pair
    return CycleLoss(_distance(back(there(x)), x), _distance(there(back(y)), y))


def identity_loss(pair: Pair, x: Float[Array, "*d"], y: Float[Array, "*d"]) -> CycleLoss:
    """|forward(y) - y| and |backward(x) - x|: a generator is to leave alone what is in its range already.

    Both domains have one shape. Source: Zhu et al. (2017), section 5.2.
    """
    return CycleLoss(_distance(pair.forward(y), y), _distance(pair.backward(x), x))


def _distance(x: Array, y: Array) -> Scalar:
    return jnp.mean(jnp.abs(x - y))


def normal_pair(x_law: MultivariateNormal, y_law: MultivariateNormal, rotation: Float[Array, "d d"]) -> Pair:
    """Affine maps between two normal laws that whiten, rotate and colour: right in law and inverse for every rotation.

    rotation: any orthogonal matrix. No loss of a discriminator, however good, nor the cycle loss tells them apart.
    """

    def mapped(source, target, rotation):
        return lambda x: target.loc + target.scale_tril @ (rotation @ source.whiten(x))

    return Pair(mapped(x_law, y_law, rotation), mapped(y_law, x_law, rotation.T))
