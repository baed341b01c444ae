"""Training throughput of the classic 784-400-20 Bernoulli VAE at batch 128, as ratios measured in one run.

The contestants take turns, round by round: a hand-written `lax.scan` over an epoch of device-resident uint8 images
(the ceiling of plain JAX), `vbjax.training.fit` with the same loss, the library's own networks and laws, and
PyTorch's official example loop, which may live under another interpreter:
`python benchmarks/vae_training.py --torch-python PATH`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from vbjax.datasets.batching import batch_indices
from vbjax.networks.vae import mlp_vae
from vbjax.training import fit, init_state, make_optimizer

BATCH = 128
LAYERS = {"encode": (784, 400), "latent": (400, 40), "decode_hidden": (20, 400), "decode": (400, 784)}


def init_params(key):
    """Linear layers with PyTorch's default uniform initialisation."""
    params = {}
    for name, (rows, columns) in LAYERS.items():
        key, key_layer = jax.random.split(key)
        bound = rows**-0.5
        kernel = jax.random.uniform(key_layer, (rows, columns), minval=-bound, maxval=bound)
        params[name] = {"kernel": kernel, "bias": jnp.zeros((1, columns))}
    return params


def vae_loss(key, params, x):
    """Return the negative ELBO, averaged over the batch, and its two terms, in nats."""

    def dense(name, inputs):
        return inputs @ params[name]["kernel"] + params[name]["bias"]

    mean, log_variance = jnp.split(dense("latent", jax.nn.relu(dense("encode", x))), 2, axis=1)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    logits = dense("decode", jax.nn.relu(dense("decode_hidden", z)))
    reconstruction = (x * logits - jax.nn.softplus(logits)).sum() / BATCH
    kl = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum() / BATCH
    return kl - reconstruction, {"reconstruction": reconstruction, "kl": kl}


def pixels(images, indices):
    """Gather a batch of uint8 images and scale it to [0, 1]."""
    return images[indices].astype(jnp.float32) / 255


def hand_written(images, key, params) -> Callable[[int], float]:
    """One epoch as a single scan, Adam spelled out: what a careful author writes without any library."""

    def step(carry, inputs):
        params, first, second = carry
        t, indices = inputs
        value_and_gradient = jax.value_and_grad(vae_loss, argnums=1, has_aux=True)
        (value, _), gradient = value_and_gradient(jax.random.fold_in(key, t), params, pixels(images, indices))
        count = (t + 1).astype(jnp.float32)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        params = jax.tree.map(
            lambda p, m, v: p - 1e-3 * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8),
            params,
            first,
            second,
        )
        return (params, first, second), value

    key_order = jax.random.key(1)

    @partial(jax.jit, donate_argnums=0, static_argnums=3)
    def epoch(carry, images, begin, steps):
        order = jax.random.permutation(jax.random.fold_in(key_order, begin), len(images))
        order = order[: steps * BATCH].reshape(steps, BATCH)
        return jax.lax.scan(step, carry, (begin + jnp.arange(steps), order))

    carry, begin = (params, *(jax.tree.map(jnp.zeros_like, params) for _ in range(2))), 0

    def run(steps: int) -> float:
        nonlocal carry, begin
        carry, values = epoch(carry, images, jnp.int32(begin), steps)
        begin += steps
        return float(values.mean())

    return run


def with_fit(images, key, params) -> Callable[[int], float]:
    """The same training by `vbjax.training.fit`, its checks, metrics and per-call overhead included."""
    optimizer = make_optimizer(learning_rate=1e-3)
    state = init_state(params, optimizer)
    batch = Partial(minibatch, images, jax.random.fold_in(key, 1))
    rows = []

    def run(steps: int) -> float:
        nonlocal state
        state = fit(
            key,
            vae_loss,
            batch,
            optimizer,
            state,
            steps=int(state.step) + steps,
            chunk=steps,
            on_chunk=lambda _, row: rows.append(row),
        )
        return rows[-1]["loss"]

    return run


def with_library(images, key) -> Callable[[int], float]:
    """The same architecture from `networks.vae`: Linen modules, laws and `vae.elbo` one example at a time, on bits."""
    networks = mlp_vae((28, 28), likelihood="bernoulli", levels=2, latent_dim=20, hidden=(400,))
    optimizer = make_optimizer(learning_rate=1e-3)
    state = init_state(networks.init(key), optimizer)
    bits = (images > 127).astype(jnp.uint8).reshape(-1, 28, 28)
    batch, loss = Partial(gather, bits, jax.random.fold_in(key, 1)), networks.loss()
    rows = []

    def run(steps: int) -> float:
        nonlocal state
        until = int(state.step) + steps
        state = fit(
            key, loss, batch, optimizer, state, steps=until, chunk=steps, on_chunk=lambda _, row: rows.append(row)
        )
        return rows[-1]["loss"]

    return run


def gather(images, key, step):
    """Return the raw images of one step."""
    return images[batch_indices(key, step, len(images), BATCH)]


def minibatch(images, key, step):
    """Return the batch of one step: every image once per epoch."""
    return pixels(images, batch_indices(key, step, len(images), BATCH))


@contextmanager
def with_torch(python: str, images: np.ndarray, threads: int) -> Iterator[tuple[str, Callable[[int], float] | None]]:
    """The official example in a child process; yields its version and a function that runs some steps."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        worker = Path(__file__).with_name("torch_vae.py")
        command = [python, str(worker), str(Path(folder) / "images.npy"), str(threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            version = child.stdout.readline().strip()
            if not version:
                print("PyTorch is left out; --torch-python names an interpreter that has it", file=sys.stderr)
                yield "", None
                return

            def run(steps: int) -> float:
                print(steps, file=child.stdin, flush=True)
                _, loss = child.stdout.readline().split()
                return float(loss)

            try:
                yield version, run
            finally:
                child.stdin.close()


def synthetic_images(size: int = 60_000) -> np.ndarray:
    """Images with MNIST's shape and sparsity; throughput does not depend on what they show."""
    rng = np.random.default_rng(0)
    ink = rng.random((size, 784), dtype=np.float32) < 0.19
    return np.where(ink, rng.integers(1, 256, (size, 784)), 0).astype(np.uint8)


def measure(contestants: dict[str, Callable[[int], float]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Let the contestants take turns; return examples per second, one number a round."""
    for run in contestants.values():
        run(steps)  # compiles
    speeds = {name: [] for name in contestants}
    for turn in range(rounds):
        order = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
        for name in order:
            begin = time.perf_counter()
            contestants[name](steps)
            speeds[name].append(steps * BATCH / (time.perf_counter() - begin))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch, or none")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=468, help="steps a round; 468 is an epoch of 60,000")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()

    images = synthetic_images()
    on_device, key = jnp.asarray(images), jax.random.key(0)
    contestants = {
        "lax.scan by hand": hand_written(on_device, key, init_params(key)),
        "vbjax.training.fit": with_fit(on_device, key, init_params(key)),
        "vbjax networks and laws": with_library(on_device, key),
    }
    if arguments.torch_python == "none":
        speeds = measure(contestants, arguments.steps, arguments.rounds)
    else:
        with with_torch(arguments.torch_python, images, arguments.threads) as (version, run):
            if run is not None:
                contestants[f"PyTorch {version} example"] = run
            speeds = measure(contestants, arguments.steps, arguments.rounds)
    report(speeds, as_json=arguments.json)


def report(speeds: dict[str, list[float]], *, as_json: bool) -> None:
    """Print the medians, their ratios to the hand-written loop, and the spread over the rounds."""
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    # round by round, because the machine's speed drifts between rounds
    ratios = {name: _paired_ratio(values, speeds["lax.scan by hand"]) for name, values in speeds.items()}
    if as_json:
        print(json.dumps({"jax": jax.__version__, "ratios": ratios, "examples_per_second": speeds}))
        return
    table = Table(title=f"784-400-20 VAE, batch {BATCH}, jax {jax.__version__} on {jax.devices()[0].device_kind}")
    for column in ("", "examples/s", "lowest", "highest", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, values in speeds.items():
        numbers = (f"{medians[name]:,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}")
        table.add_row(name, *numbers, f"{ratios[name]:.3f}")
    Console().print(table)
    for other, least in (("lax.scan by hand", 0.97), ("PyTorch", 3.0)):
        for name in speeds:
            if name.startswith(other):
                ratio = _paired_ratio(speeds["vbjax.training.fit"], speeds[name])
                verdict = "met" if ratio >= least else "MISSED"
                print(f"vbjax.training.fit / {name}: {ratio:.3f}, target {least}: {verdict}")


def _paired_ratio(values: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


if __name__ == "__main__":
    main()
