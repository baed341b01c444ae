"""Laws with known parameters, for experiments whose answer can be checked: one draw per key.

Each sampler returns one point and is `vmap`ped over keys for a data set. The mixtures come with their modes
(`ring_modes`, `grid_modes`; equal weights), `linear_gaussian` with its exact mean and covariance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.types import PRNGKey, Scalar


def ring_modes(components: int, radius: float) -> Float[Array, "components 2"]:
    """Return the modes of `gaussian_mixture_ring`: equally spaced on a circle, the first on the x-axis."""
    angles = jnp.linspace(0, 2 * jnp.pi, components, endpoint=False)
    return radius * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def grid_modes(side: int, spacing: float) -> Float[Array, "components 2"]:
    """Return the side² modes of `gaussian_mixture_grid`: a square lattice centred on the origin."""
    line = spacing * (side - 1) / 2 * jnp.linspace(-1, 1, side)
    return jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def gaussian_mixture_ring(
    key: PRNGKey, *, components: int = 8, radius: float = 2.0, scale: float = 0.05
) -> Float[Array, " 2"]:
    """Draw one point of an equal mixture of isotropic Gaussians on a circle."""
    return _mixture_point(key, ring_modes(components, radius), scale)


def gaussian_mixture_grid(
    key: PRNGKey, *, side: int = 5, spacing: float = 1.0, scale: float = 0.05
) -> Float[Array, " 2"]:
    """Draw one point of an equal mixture of isotropic Gaussians on a square lattice."""
    return _mixture_point(key, grid_modes(side, spacing), scale)


def two_moons(key: PRNGKey, *, noise: float = 0.05) -> Float[Array, " 2"]:
    """Draw one point of two interleaved half circles of radius one, with Gaussian noise of this scale."""
    key_moon, key_angle, key_noise = jax.random.split(key, 3)
    angle = jax.random.uniform(key_angle, maxval=jnp.pi)
    upper = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    lower = jnp.stack([1 - jnp.cos(angle), 0.5 - jnp.sin(angle)])
    point = jnp.where(jax.random.bernoulli(key_moon), upper, lower)
    return point + noise * jax.random.normal(key_noise, (2,))


def swiss_roll(key: PRNGKey, *, noise: float = 0.05) -> Float[Array, " 3"]:
    """Draw one point of the roll (t cos t, h, t sin t) / 10, t in [1.5π, 4.5π], h in [0, 21], plus Gaussian noise."""
    key_angle, key_height, key_noise = jax.random.split(key, 3)
    angle = jax.random.uniform(key_angle, minval=1.5 * jnp.pi, maxval=4.5 * jnp.pi)
    height = jax.random.uniform(key_height, maxval=21.0)
    point = jnp.stack([angle * jnp.cos(angle), height, angle * jnp.sin(angle)]) / 10
    return point + noise * jax.random.normal(key_noise, (3,))


class LinearGaussian(NamedTuple):
    """Probabilistic PCA: x = W z + μ + σ ε with standard normal z and ε (Tipping and Bishop 1999, eq. 2).

    weights W: (d, k); mean μ: (d,); noise_scale σ: a positive scalar.
    """

    weights: Float[Array, "d k"]
    mean: Float[Array, " d"]
    noise_scale: Scalar

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """The exact covariance of x, W Wᵀ + σ² I."""
        return self.weights @ self.weights.T + self.noise_scale**2 * jnp.eye(self.mean.shape[0])

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        """Draw one x."""
        key_latent, key_noise = jax.random.split(key)
        dimension, rank = self.weights.shape
        latent = jax.random.normal(key_latent, (rank,))
        return self.weights @ latent + self.mean + self.noise_scale * jax.random.normal(key_noise, (dimension,))


def linear_gaussian(key: PRNGKey, *, latent: int, observed: int, noise_scale: float) -> LinearGaussian:
    """Draw a probabilistic PCA model with standard normal weights and mean."""
    key_weights, key_mean = jax.random.split(key)
    return LinearGaussian(
        weights=jax.random.normal(key_weights, (observed, latent)),
        mean=jax.random.normal(key_mean, (observed,)),
        noise_scale=jnp.asarray(noise_scale, jnp.float32),
    )


def _mixture_point(key: PRNGKey, modes: Float[Array, "components 2"], scale: float) -> Float[Array, " 2"]:
    key_mode, key_noise = jax.random.split(key)
    mode = modes[jax.random.randint(key_mode, (), 0, modes.shape[0])]
    return mode + scale * jax.random.normal(key_noise, (2,))
