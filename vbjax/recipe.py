"""The recipe of the tour's and the leaderboard's VAEs: Adam, a cosine schedule, averaged parameters."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from vbjax import datasets, training
from vbjax.types import PRNGKey


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
    optimizer = training.make_optimizer(learning_rate=1e-3, schedule="cosine", steps=steps, clip_norm=100)
    key_init, key_data, key_train = jax.random.split(key, 3)
    state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=ema_decay)
    return training.fit(
        key_train,
        networks.loss(samples=samples),
        datasets.batches(key_data, images, batch_size),
        optimizer,
        state,
        steps=steps,
        chunk=50,
        ema_decay=ema_decay,
        on_chunk=on_chunk,
    )


def count_parameters(params: PyTree) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
