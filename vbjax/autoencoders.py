"""Auto-encoders as pairs of callables: PCA in closed form, what they minimise, and the score that denoising learns.

Start at `pca`, the best linear auto-encoder and the baseline of all others. Losses take one example and a pair
`Autoencoder`; a plain auto-encoder defines no p(x), and `vbjax.vae` is what does.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vbjax.distributions import Bernoulli, Mixture, Normal
from vbjax.divergences import kl_divergence
from vbjax.em.fitting import as_data, as_real
from vbjax.types import LogDensity, PRNGKey, Scalar

Corruption = Callable[[PRNGKey, Array], Array]
"""`corrupt(key, x) -> x̃`, a random destruction of one example."""


class Autoencoder(NamedTuple):
    """encode: one example -> its code; decode: a code -> an example."""

    encode: Callable[[Array], Any]
    decode: Callable[[Any], Array]


class PCA(NamedTuple):
    """The mean of the data, orthonormal principal directions, and all eigenvalues of the covariance, falling.

    The covariance is divided by n, so that `eigenvalues` are mean squares of the data themselves.
    """

    mean: Float[Array, " d"]
    components: Float[Array, "code d"]
    eigenvalues: Float[Array, " d"]

    @property
    def autoencoder(self) -> Autoencoder:
        """Coordinates along the directions, and back."""
        return tied_linear(self.components.T, self.mean)

    @property
    def loss(self) -> Scalar:
        """The mean squared error on the data, summed over coordinates: the sum of the discarded eigenvalues."""
        return self.eigenvalues[self.components.shape[0] :].sum()


def pca(data: ArrayLike, code_dim: int) -> PCA:
    """The auto-encoder of least squared error among all linear ones, on data `(n, d)`.

    Raises ValueError for bad data, or unless 0 <= code_dim <= d. scikit-learn divides the eigenvalues by n - 1.
    Source: Baldi & Hornik (1989), section 2.
    """
    points = as_real(as_data(data))
    count, dimension = points.shape
    if not 0 <= code_dim <= dimension:
        raise ValueError(f"code_dim must be a whole number from 0 to the data's {dimension} dimensions, got {code_dim}")
    mean = points.mean(0)
    centred = points - mean[None]
    values, vectors = jnp.linalg.eigh(centred.T @ centred / count)  # ascending
    return PCA(mean, vectors[:, ::-1][:, :code_dim].T, jnp.maximum(values[::-1], 0))


def tied_linear(weights: Float[Array, "d code"], offset: Float[Array, " d"]) -> Autoencoder:
    """The code Wᵀ (x - offset), decoded by W itself."""
    return linear(weights.T, weights, offset)


def linear(encoder: Float[Array, "code d"], decoder: Float[Array, "d code"], offset: Float[Array, " d"]) -> Autoencoder:
    """The code E (x - offset), decoded as W z + offset.

    Gradients end at PCA's loss and its subspace, in any basis; without the offset, data must be centred. Source:
    Baldi & Hornik (1989), facts 1 and 4.
    """
    return Autoencoder(lambda x: encoder @ (x - offset), lambda z: decoder @ z + offset)


def on_images(autoencoder: Autoencoder, image_shape: tuple[int, ...]) -> Autoencoder:
    """An auto-encoder of vectors, for images of this shape."""
    return Autoencoder(
        lambda image: autoencoder.encode(image.ravel()), lambda z: autoencoder.decode(z).reshape(image_shape)
    )


def largest_principal_angle(a: Float[Array, "d k"], b: Float[Array, "d k"]) -> Scalar:
    """The largest angle, in radians, between the spaces that the columns of two matrices of full rank span.

    From its sine, which keeps small angles: a cosine loses those below 1e-4 in float32. Source: Björck & Golub (1973).
    """
    basis_a, basis_b = jnp.linalg.qr(a)[0], jnp.linalg.qr(b)[0]
    outside = basis_b - basis_a @ (basis_a.T @ basis_b)
    return jnp.arcsin(jnp.minimum(jnp.linalg.norm(outside, 2), 1))


def reconstruct(autoencoder: Autoencoder, x: Array) -> Array:
    """The decoding of the code of x."""
    return autoencoder.decode(autoencoder.encode(x))


def reconstruction_error(autoencoder: Autoencoder, x: Array) -> Scalar:
    """‖decode(encode(x)) - x‖², summed over the coordinates of one example."""
    return jnp.sum(jnp.square(reconstruct(autoencoder, x) - x))


def denoising_error(key: PRNGKey, autoencoder: Autoencoder, corrupt: Corruption, x: Array) -> Scalar:
    """‖decode(encode(x̃)) - x‖² for one corruption x̃ of x: least for E[x|x̃] (Vincent et al. 2008, eq. 4)."""
    return jnp.sum(jnp.square(reconstruct(autoencoder, corrupt(key, x)) - x))


def gaussian_noise(scale: int | float) -> Corruption:
    """Add N(0, scale²) to each coordinate. Raises ValueError unless scale >= 0."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale of the noise must be zero or a positive number, got {scale}")
    return lambda key, x: x + scale * jax.random.normal(key, x.shape, x.dtype)


def masking_noise(probability: int | float) -> Corruption:
    """Put each coordinate to zero with this probability. Raises ValueError unless it is one."""
    _check_probability(probability)
    return lambda key, x: jnp.where(jax.random.bernoulli(key, probability, x.shape), 0, x)


def salt_and_pepper(probability: int | float) -> Corruption:
    """Replace each coordinate with this probability by 0 or 1, at even odds. Raises ValueError unless it is one.

    Source: Vincent et al. (2010), section 3.3.
    """
    _check_probability(probability)

    def corrupt(key, x):
        key_where, key_value = jax.random.split(key)
        value = jax.random.bernoulli(key_value, 0.5, x.shape).astype(x.dtype)
        return jnp.where(jax.random.bernoulli(key_where, probability, x.shape), value, x)

    return corrupt


CORRUPTIONS: dict[str, Callable[[int | float], Corruption]] = {
    "gaussian": gaussian_noise,
    "masking": masking_noise,
    "salt_and_pepper": salt_and_pepper,
}
"""Corruption laws by name; each takes its strength."""


def smoothed(law: Mixture, noise_scale: int | float) -> Mixture:
    """The density p_σ of x + N(0, σ²) for a mixture of normal laws x. Raises ValueError for other components."""
    if not isinstance(law.components, Normal):
        raise ValueError(f"components must be Normal, got {type(law.components).__name__}")
    return Mixture(law.logits, Normal(law.components.loc, jnp.hypot(law.components.scale, noise_scale)))


def optimal_denoiser(smoothed_log_prob: LogDensity, noise_scale: int | float) -> Callable[[Array], Array]:
    """E[x|x̃] = x̃ + σ² ∇ log p_σ(x̃), the minimiser of `denoising_error` under Gaussian noise.

    smoothed_log_prob: log p_σ, the density of the corrupted example. Source: Robbins (1956), who credits Tweedie.
    """
    score = jax.grad(smoothed_log_prob)
    return lambda x: x + noise_scale**2 * score(x)


def denoiser_score(denoise: Callable[[Array], Array], noise_scale: int | float) -> Callable[[Array], Array]:
    """(denoise(x̃) - x̃) / σ², which is ∇ log p_σ(x̃) of the smoothed density for the optimal denoiser.

    Source: Vincent (2011), section 4.
    """
    return lambda x: (denoise(x) - x) / noise_scale**2


def contractive_penalty(encode: Callable[[Array], Array], x: Array) -> Scalar:
    """‖∂encode/∂x‖²_F at one example, in as many backward passes as the code has entries (Rifai et al. 2011, eq. 6)."""
    return jnp.sum(jnp.square(jax.jacrev(encode)(x)))


def l1_penalty(code: Array) -> Scalar:
    """Σ |code|. Bound the decoder's columns beside it, or a small code under a large decoder escapes it."""
    return jnp.sum(jnp.abs(code))


def bernoulli_sparsity(activation: Float[Array, " units"], target: int | float) -> Scalar:
    """Σ_j KL(Bernoulli(target) ‖ Bernoulli(activation_j)) in nats: zero where every unit is as active as wanted.

    activation: of each unit, averaged over examples first, in (0, 1). Raises ValueError unless 0 < target < 1. Source:
    Ng, «Sparse autoencoder» (CS294A lecture notes), section 3.
    """
    if not 0 < target < 1:
        raise ValueError(f"target must lie in (0, 1), got {target}")
    wanted = Bernoulli.from_probs(jnp.full_like(activation, target))
    return kl_divergence(wanted, Bernoulli(jax.scipy.special.logit(activation)))


def top_k(code: Float[Array, " units"], count: int) -> Float[Array, " units"]:
    """The code with all but its `count` largest entries put to zero; equal ones go in order.

    Raises ValueError unless 1 <= count <= units. Source: Makhzani & Frey (2014), section 2.1.
    """
    if not 1 <= count <= code.shape[0]:
        raise ValueError(f"count must be a whole number from 1 to the code's {code.shape[0]} units, got {count}")
    kept = jax.lax.top_k(code, count)[1]
    return jnp.zeros_like(code).at[kept].set(code[kept])


def _check_probability(probability: int | float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability of the noise must lie in [0, 1], got {probability}")
