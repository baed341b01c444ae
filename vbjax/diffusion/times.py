"""Which times to train on: draws of t for a batch, each with the weight that keeps the sum over times unbiased.

A law over the times 1 … T is an array of T probabilities; entry 0 is t = 1. Start at `stratified_times`;
`LossHistory` learns the law from the losses seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.types import PRNGKey


class Times(NamedTuple):
    """t, from 1 to T, and weight = 1 / probability of t: E weight L(t) = Σ_t L(t). Both with the shape of the draw."""

    t: Int[Array, "*draws"]
    weight: Float[Array, "*draws"]


def uniform_law(steps: int) -> Float[Array, " T"]:
    """The same probability for each of the times; ValueError unless steps >= 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return jnp.full(steps, 1 / steps)


def independent_times(key: PRNGKey, law: Float[Array, " T"], count: int) -> Times:
    """`count` independent draws."""
    return _at_quantiles(law, jax.random.uniform(key, (count,), law.dtype))


def stratified_times(key: PRNGKey, law: Float[Array, " T"], count: int) -> Times:
    """`count` draws, each of the given law, spread evenly: one uniform number moves them all.

    Source: the low-discrepancy sampler of Kingma et al. (2021, appendix), through the inverse of the law.
    """
    return _at_quantiles(law, stratified_uniforms(key, count).astype(law.dtype))


def stratified_uniforms(key: PRNGKey, count: int) -> Float[Array, " count"]:
    """Numbers of [0, 1), each of them uniform, at equal distances around the circle: continuous times for a batch."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0


class LossHistory(NamedTuple):
    """The last squared losses of each time, `(T, length)`, and how many of them there have been, `(T,)`."""

    squares: Float[Array, "T length"]
    counts: Int[Array, " T"]

    def record(self, t: Int[Array, " draws"], losses: Float[Array, " draws"]) -> "LossHistory":
        """With these losses, unweighted, in place of the oldest ones of their times; times may repeat."""

        def put(history, pair):
            t, loss = pair
            slot = history.counts[t - 1] % history.squares.shape[1]
            squares = history.squares.at[t - 1, slot].set(loss**2)
            return LossHistory(squares, history.counts.at[t - 1].add(1)), None

        return jax.lax.scan(put, self, (t, losses))[0]

    def law(self, *, uniform_part: int | float = 1e-3) -> Float[Array, " T"]:
        """Probabilities ∝ sqrt E L², mixed with a uniform part; uniform until every time has a full history.

        Source: Nichol & Dhariwal (2021, section 3.3).
        """
        steps, length = self.squares.shape
        size = jnp.sqrt(self.squares.mean(1))
        # a history of zeros tells nothing
        total = jnp.where(size.sum() > 0, size.sum(), 1)
        learnt = (1 - uniform_part) * size / total + uniform_part / steps
        ready = (self.counts >= length).all() & (size.sum() > 0)
        return jnp.where(ready, learnt, 1 / steps)


def empty_history(steps: int, *, length: int = 10) -> LossHistory:
    """No losses yet; ValueError unless steps and length are at least 1."""
    if steps < 1 or length < 1:
        raise ValueError(f"steps and length must be at least 1, got {steps} and {length}")
    return LossHistory(jnp.zeros((steps, length)), jnp.zeros(steps, jnp.int32))


def _at_quantiles(law: Float[Array, " T"], uniforms: Float[Array, " draws"]) -> Times:
    cumulative = jnp.cumsum(law)
    # rounding may leave the last sum below one
    index = jnp.searchsorted(cumulative / cumulative[-1], uniforms, side="right").clip(0, law.shape[0] - 1)
    return Times(index.astype(jnp.int32) + 1, 1 / law[index])
