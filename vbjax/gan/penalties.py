"""What bounds a discriminator's slope: gradient penalties, for one example, and normalisation by the spectral norm.

A penalty takes the discriminator as a callable and may be differentiated in what it closes over, also where the
discriminator is flat. Weights are the caller's: add `weight * penalty` to the discriminator's loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.gan.values import Discriminator
from vbjax.types import Scalar


def gradient_penalty(
    discriminator: Discriminator, x_real: Float[Array, "*d"], x_fake: Float[Array, "*d"], u: Scalar
) -> Scalar:
    """(‖∇D‖ - 1)² at u x_real + (1 - u) x_fake, for a draw u from the uniform law on [0, 1].

    Where ∇D = 0 the penalty is one, and its own gradient is taken to be zero (Gulrajani et al. 2017, eq. 3).
    """
    squared = _squared_slope(discriminator, _between(x_real, x_fake, u))
    flat = squared == 0
    # the square root has no derivative at zero
    return (jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, squared))) - 1) ** 2


def zero_centred_penalty(
    discriminator: Discriminator, x_real: Float[Array, "*d"], x_fake: Float[Array, "*d"], u: Scalar
) -> Scalar:
    """‖∇D‖² at u x_real + (1 - u) x_fake (Thanh-Tung et al. 2019, section 5)."""
    return _squared_slope(discriminator, _between(x_real, x_fake, u))


def r1(discriminator: Discriminator, x_real: Float[Array, "*d"]) -> Scalar:
    """½ ‖∇D‖² at a datum: the weight γ of Mescheder et al. (2018, eq. 9) multiplies it."""
    return 0.5 * _squared_slope(discriminator, x_real)


def r2(discriminator: Discriminator, x_fake: Float[Array, "*d"]) -> Scalar:
    """½ ‖∇D‖² at a fake, which no gradient reaches (Mescheder et al. 2018, eq. 10)."""
    return 0.5 * _squared_slope(discriminator, jax.lax.stop_gradient(x_fake))


def _between(x_real, x_fake, u):
    return u * x_real + (1 - u) * jax.lax.stop_gradient(x_fake)


def _squared_slope(discriminator: Discriminator, x: Float[Array, "*d"]) -> Scalar:
    return jnp.sum(jax.grad(discriminator)(x) ** 2)


def spectral_norm(
    kernel: Float[Array, "*inputs out"], u: Float[Array, " out"], *, iterations: int = 1
) -> tuple[Scalar, Float[Array, " out"]]:
    """An estimate of the largest singular value σ_1 of the kernel as a matrix, and the next u, by power iteration.

    kernel: all axes but the last are inputs of one matrix, as for a dense layer; for what that means for a convolution
    see `convolution_norm`. u: any non-zero vector at first, best a random one; feed what is returned into the next
    call. The estimate σ never exceeds σ_1, and after k iterations in all, counted over calls with one kernel,

        1 - (σ/σ_1)² <= tan²θ min((σ_2/σ_1)^(4k-2), 1/(4k))

    where θ is the angle between the first u and the top singular vector. Its gradient holds the singular vectors
    fixed, which is exact at convergence. Raises ValueError below one iteration. Source: Miyato et al. (2018), eq. 19
    and algorithm 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    u = _unit(jax.lax.stop_gradient(u), jnp.zeros_like(u))
    v = jnp.zeros_like(fixed[:, 0])
    for _ in range(iterations):
        v = _unit(fixed @ u, v)
        u = _unit(v @ fixed, u)
    return v @ matrix @ u, u


def _unit(vector: Float[Array, " n"], otherwise: Float[Array, " n"]) -> Float[Array, " n"]:
    # scaled first: squares of small float32 numbers are zero
    size = jnp.max(jnp.abs(vector))
    vector = vector / jnp.where(size > 0, size, 1)
    return jnp.where(size > 0, vector / jnp.sqrt(jnp.where(size > 0, jnp.sum(vector**2), 1)), otherwise)


def spectrally_normalised(
    kernel: Float[Array, "*inputs out"], u: Float[Array, " out"], *, iterations: int = 1
) -> tuple[Float[Array, "*inputs out"], Float[Array, " out"]]:
    """The kernel divided by its `spectral_norm`, and the next u; a kernel of zeros stays as it is.

    The gradient passes through the norm as well: it is that of Miyato et al. (2018), eq. 12.
    """
    norm, u = spectral_norm(kernel, u, iterations=iterations)
    return kernel / jnp.where(norm > 0, norm, 1), u


def dense_norm(kernel: Float[Array, "*inputs out"]) -> Scalar:
    """The largest singular value of the kernel as a matrix, by SVD: a dense layer's Lipschitz constant."""
    return _largest_singular_value(kernel.reshape(-1, kernel.shape[-1]))


def convolution_norm(kernel: Float[Array, "height width inputs out"], shape: tuple[int, int]) -> Scalar:
    """The Lipschitz constant of a circular convolution of stride one on images of this shape, exactly, by FFT.

    Not the norm of the reshaped kernel, which spectral normalisation divides by: on images no smaller than the kernel

        dense_norm(kernel) <= convolution_norm(kernel, shape) <= sqrt(height * width) * dense_norm(kernel)

    and a constant kernel attains the upper end. With zero padding the constant is at most that on an image larger by
    the padding. Raises ValueError where the kernel exceeds the image. Source: Sedghi et al. (2019), theorem 6; the
    upper bound: Tsuzuku et al. (2018), section 4.2.
    """
    if shape[0] < kernel.shape[0] or shape[1] < kernel.shape[1]:
        raise ValueError(f"a kernel of {kernel.shape[:2]} does not fit on images of shape {shape}: enlarge the shape")
    frequencies = jnp.fft.fft2(kernel, shape, axes=(0, 1))
    return jnp.max(jax.vmap(jax.vmap(_largest_singular_value))(frequencies))


def _largest_singular_value(matrix: Array) -> Scalar:
    return jnp.linalg.svd(matrix, compute_uv=False)[0]
