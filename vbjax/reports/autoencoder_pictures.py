"""Pictures of a trained auto-encoder: what it restores, what its first layer looks for, and what noise decodes to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vbjax.autoencoders import Autoencoder, Corruption, reconstruct
from vbjax.reports.pictures import latent_map, sheet
from vbjax.types import PRNGKey


def autoencoder_model(
    key: PRNGKey,
    autoencoder: Autoencoder,
    first_layer: Autoencoder,
    pca: Autoencoder,
    corrupt: Corruption,
    images: Array,
    labels: Array,
) -> dict:
    """The standard set of figures by name, for test images `(n, *shape)` in [0, 1] with labels `(n,)`.

    first_layer: the outermost layer of a stack, else the model itself. pca: the baseline. Adds `code_map` for a
    two-dimensional code.
    """
    key_corrupt, key_noise = jax.random.split(key)
    codes = jax.vmap(autoencoder.encode)(images)
    figures = {
        "reconstructions": reconstructions(key_corrupt, autoencoder, pca, corrupt, images[:12]),
        "prototypes": prototypes(first_layer, images),
        "decoded_noise": decoded_noise(key_noise, autoencoder, codes),
    }
    if codes.shape[1] == 2:
        figures["code_map"] = latent_map(codes, labels)
    return figures


def reconstructions(key: PRNGKey, autoencoder: Autoencoder, pca: Autoencoder, corrupt: Corruption, images: Array):
    """Clean and corrupted images above what the model and PCA make of each."""
    corrupted = jax.vmap(corrupt)(jax.random.split(key, images.shape[0]), images)
    rows = {"image": images, "model": restored(autoencoder, images), "PCA": restored(pca, images)}
    rows |= {"corrupted": corrupted, "model ": restored(autoencoder, corrupted), "PCA ": restored(pca, corrupted)}
    return sheet([jnp.clip(row, 0, 1) for row in rows.values()], [*rows], smooth=True)


def restored(autoencoder: Autoencoder, images: Array) -> Array:
    """The decoding of each image's code."""
    return jax.vmap(lambda x: reconstruct(autoencoder, x))(images)


def prototypes(autoencoder: Autoencoder, images: Array, *, rows: int = 4, columns: int = 10):
    """How the decoding moves with each unit of the code, at the mean code: the decoder's columns where it is linear.

    Up to rows x columns units, those first whose code varies most. Grey is no change.
    """
    codes = jax.vmap(autoencoder.encode)(images)
    order = jnp.argsort(-codes.var(0))[: rows * columns]
    moved = jnp.moveaxis(jax.jacfwd(autoencoder.decode)(codes.mean(0)), -1, 0)[order]
    largest = jnp.abs(moved).max(axis=range(1, moved.ndim), keepdims=True)
    grey = 0.5 + 0.5 * moved / jnp.where(largest > 0, largest, 1)
    lines = [grey[i : i + columns] for i in range(0, len(grey), columns)]
    return sheet(lines, ["unit"] + [""] * (len(lines) - 1))


def decoded_noise(key: PRNGKey, autoencoder: Autoencoder, codes: Array, *, count: int = 12):
    """Decodings of standard normal noise, of a normal law fitted to the codes, and of codes of images."""
    noise = jax.random.normal(key, (count, codes.shape[1]), codes.dtype)
    covariance = jnp.atleast_2d(jnp.cov(codes.T))
    values, vectors = jnp.linalg.eigh(covariance)
    fitted = codes.mean(0)[None] + (noise * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
    rows = [jnp.clip(jax.vmap(autoencoder.decode)(z), 0, 1) for z in (noise, fitted, codes[:count])]
    return sheet(rows, ["noise N(0, I)", "normal law of codes", "codes of images"], smooth=True)
