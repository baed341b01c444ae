"""The 2ⁿ states of n binary units, in the order of binary numbers whose first digit is the first unit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from vbjax.types import Scalar

MAX_UNITS = 20
"""Most binary units whose states are summed over: about a million."""

MAX_KERNEL_UNITS = 10
"""Most binary units whose transition matrix is built: a million entries."""

_BLOCK = 2**12


def states(units: int, dtype: Any = float) -> Float[Array, "states units"]:
    """All states, one a row; raises ValueError for more than `MAX_UNITS` units."""
    check_units("states", units, MAX_UNITS, "draw some of them")
    return _digits(jnp.arange(2**units)[:, None], units, dtype)


def position(x: Float[Array, " units"]) -> Array:
    """The row of `states` that holds x."""
    return x.astype(int) @ 2 ** jnp.arange(x.shape[0])[::-1]


def at_states(f: Callable[[Float[Array, " units"]], Any], units: int, dtype: Any) -> Any:
    """f(x) at all states x, in the order of `states`, a block at a time: memory does not grow with what f computes."""
    count = 2**units
    # a gradient recomputes f, where it would else keep what every state left behind
    one = jax.checkpoint(lambda index: f(_digits(index[None], units, dtype)))
    return jax.lax.map(one, jnp.arange(count), batch_size=min(count, _BLOCK))


def log_sum_exp(f: Callable[[Float[Array, " units"]], Scalar], units: int, dtype: Any) -> Scalar:
    """log Σ exp f(x) over all states x, in nats."""
    return logsumexp(at_states(f, units, dtype))


def check_units(name: str, units: int, limit: int, way_out: str) -> None:
    """Raise ValueError for so many units that their states cannot be enumerated."""
    if units > limit:
        raise ValueError(f"{name} enumerates the states of at most {limit} binary units, got {units}; {way_out}")


def _digits(index: Array, units: int, dtype: Any) -> Array:
    shifts = jnp.arange(units)[::-1].reshape(*[1] * (index.ndim - 1), units)
    return ((index >> shifts) & 1).astype(dtype)
