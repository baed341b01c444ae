"""Inpainting: some coordinates of x_0 are known, the others are drawn, as kernels for `samplers.ancestral`.

`replacement_kernel` overwrites the known part by its noised value at every level; even with an exact model the rest
never hears enough of it. `repaint_kernel` on a ladder of `resampling` goes up and down again, which repairs it as the
repetitions grow. Exact is only the score of the conditional law: `guidance.evidence_guided`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vbjax.diffusion.process import Reverse, noise, signal, transition
from vbjax.diffusion.samplers import Levels
from vbjax.distributions import Normal


def replacement_kernel(kernel: Reverse, x0: Float[Array, "*d"], known: Bool[Array, "*d"]) -> Reverse:
    """The kernel for the unknown coordinates, q(x_s|x_0) for the known ones, whose x_0 is given.

    x0 is not read where unknown. Biased: x_t, not x_0, is conditioned on. Source: Song et al. (2021), appendix I.2.
    """

    def replaced(x_t, gamma_s, gamma_t):
        drawn = kernel(x_t, gamma_s, gamma_t)
        loc = jnp.where(known, signal(gamma_s) * x0, drawn.loc)
        return Normal(loc, jnp.where(known, noise(gamma_s), drawn.scale))

    return replaced


def repaint_kernel(kernel: Reverse, x0: Float[Array, "*d"], known: Bool[Array, "*d"]) -> Reverse:
    """`replacement_kernel` down the ladder, the forward process up: for ladders that `resampling` made.

    Source: Lugmayr et al. (2022), algorithm 1.
    """
    down = replacement_kernel(kernel, x0, known)

    def either(x_t, gamma_s, gamma_t):
        def up(x_t):
            return transition(x_t, gamma_t, gamma_s)

        return jax.lax.cond(gamma_s < gamma_t, lambda x_t: down(x_t, gamma_s, gamma_t), up, x_t)

    return either


def resampling(levels: Levels, *, repetitions: int, jump: int = 1) -> Float[Array, " more"]:
    """A ladder that goes down each `jump` steps of another this many times, back up in one move in between.

    One repetition is the ladder itself; the steps down are `repetitions` times as many. A move to γ = -∞ draws
    nothing, so that with a jump of 1 its repetitions shrink the variance in the end; jumps of 5 and 10 do not.
    Raises ValueError for repetitions or a jump below 1.
    """
    if repetitions < 1 or jump < 1:
        raise ValueError(f"repetitions and jump must be at least 1, got {repetitions} and {jump}")
    order = [0]
    for top in range(0, levels.size - 1, jump):
        down = range(top + 1, min(top + jump, levels.size - 1) + 1)
        order += [*down, *(i for _ in range(repetitions - 1) for i in (top, *down))]
    return levels[np.array(order)]
