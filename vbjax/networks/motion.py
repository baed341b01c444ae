"""A residual network that denoises a future given its past, as Linen module bound to the denoisers of diffusion."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.diffusion.anisotropic import Denoiser, Level
from vbjax.diffusion.process import from_v
from vbjax.types import Params, PRNGKey, Scalar

Past = Float[Array, "P joints 3"]
Future = Float[Array, "F joints 3"]


class ResidualNetwork(nn.Module):
    """`(past, x_t, γ) -> v`: all coordinates beside each other, blocks whose gains and shifts follow γ.

    Every coordinate of x_t has a way past the blocks, which are narrower than the data.
    """

    hidden: int
    blocks: int

    @nn.compact
    def __call__(self, past: Past, x_t: Future, gamma: Scalar) -> Future:
        angles = gamma * 0.5 ** jnp.arange(1, 9, dtype=x_t.dtype)
        time = nn.silu(nn.Dense(64)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])))
        h = nn.Dense(self.hidden)(jnp.concatenate([x_t.ravel(), past.ravel()]))
        for _ in range(self.blocks):
            gain, shift = jnp.split(nn.Dense(2 * self.hidden)(time), 2)
            h = h + nn.Dense(self.hidden)(nn.silu(h * (1 + gain) + shift))
        h = h * (1 + nn.Dense(self.hidden)(time))
        v = nn.Dense(x_t.size, kernel_init=nn.initializers.zeros)(h)
        return (v + nn.Dense(x_t.size, kernel_init=nn.initializers.zeros)(time) * x_t.ravel()).reshape(x_t.shape)


class MotionNetworks(NamedTuple):
    """The network before it has parameters. past, future: frames; joints: of the skeleton."""

    network: nn.Module
    past: int
    future: int
    joints: int

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters; the last layer is zero, so that x̂_0 = √ᾱ_t x_t at first."""
        past, future = (jnp.zeros((frames, self.joints, 3)) for frames in (self.past, self.future))
        return self.network.init(key, past, future, jnp.zeros(()))

    def bind(self, params: Params) -> Callable[[Past], Denoiser]:
        """`past -> denoiser` of futures; it raises ValueError for a past or future of another size."""

        def given(past: Past) -> Denoiser:
            self._check("past", past, self.past)

            def predict(x_t: Future, gamma: Scalar) -> Future:
                return cast(jax.Array, self.network.apply(params, past, x_t, gamma))

            def denoiser(x_t: Future, level: Level) -> Future:
                self._check("future", x_t, self.future)
                return from_v(predict)(x_t, level.gamma)

            return denoiser

        return given

    def _check(self, name: str, motion: Array, frames: int) -> None:
        wanted = (frames, self.joints, 3)
        if motion.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted} of (frames, joints, 3), got {motion.shape}")


def motion_networks(*, past: int, future: int, joints: int, hidden: int, blocks: int) -> MotionNetworks:
    """A residual network of this width and depth; raises ValueError, naming the argument, for a size below one."""
    for name, size in [("past", past), ("future", future), ("joints", joints), ("hidden", hidden), ("blocks", blocks)]:
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    return MotionNetworks(ResidualNetwork(hidden, blocks), past, future, joints)
