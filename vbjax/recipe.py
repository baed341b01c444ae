"""The recipe of the tour's and the leaderboard's networks: Adam, a cosine schedule, averaged parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vbjax import datasets, training
from vbjax.diffusion.losses import denoising_loss
from vbjax.diffusion.process import Denoiser
from vbjax.networks.denoisers import DenoiserNetworks
from vbjax.types import PRNGKey, Scalar


def fit_vae(
    key: PRNGKey,
    networks: Any,
    images: PyTree,
    *,
    samples: int,
    steps: int,
    batch_size: int = 128,
    ema_decay: float = 0.999,
    on_chunk: Callable[[training.TrainState, training.Row], None] | None = None,
) -> training.TrainState:
    """Train on the IWAE bound with so many samples (the ELBO for one); `state.averaged` is what to evaluate.

    networks: with `init(key)` and `loss(samples=)`, as `networks.vae` or `networks.hierarchical_vae`. images: integers
    `(n, *shape)`. A row comes every 50 steps.
    """
    loss = networks.loss(samples=samples)
    return _fit(key, networks, loss, images, steps, batch_size, ema_decay, on_chunk)


def fit_denoiser(
    key: PRNGKey,
    networks: DenoiserNetworks,
    x0: Float[Array, "n *d"],
    *,
    low: float,
    high: float,
    steps: int,
    batch_size: int = 128,
    ema_decay: float = 0.999,
    on_chunk: Callable[[training.TrainState, training.Row], None] | None = None,
) -> training.TrainState:
    """Train a denoiser without labels on the diffusion bound in continuous time, γ uniform from low to high.

    x0: embedded data. Returns and rows as `fit_vae`. Source: Kingma et al. (2021, eq. 17).
    """

    def objective(key: PRNGKey, denoiser: Denoiser, x0: Float[Array, "*d"]) -> tuple[Scalar, dict]:
        key_level, key_noise = jax.random.split(key)
        gamma = jax.random.uniform(key_level, minval=low, maxval=high)
        return (high - low) / 2 * denoising_loss(key_noise, denoiser, x0, gamma), {}

    return _fit(key, networks, networks.loss(objective), x0, steps, batch_size, ema_decay, on_chunk)


def log_frequencies(images: Array, *, levels: int) -> Float[Array, "*shape levels"]:
    """Log of how often each pixel of the images `(n, *shape)` has each level, half a count added: a prior for them."""
    counts = jnp.stack([(images == level).sum(0) for level in range(levels)], -1).astype(jnp.float32) + 0.5
    return jnp.log(counts / counts.sum(-1, keepdims=True))


def count_parameters(params: PyTree) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _fit(key, networks, loss, data, steps, batch_size, ema_decay, on_chunk) -> training.TrainState:
    optimizer = training.make_optimizer(learning_rate=1e-3, schedule="cosine", steps=steps, clip_norm=100)
    key_init, key_data, key_train = jax.random.split(key, 3)
    state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=ema_decay)
    return training.fit(
        key_train,
        loss,
        datasets.batches(key_data, data, batch_size),
        optimizer,
        state,
        steps=steps,
        chunk=50,
        ema_decay=ema_decay,
        on_chunk=on_chunk,
    )
