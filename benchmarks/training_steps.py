"""What the training benchmarks share: steps of JAX networks in a loop or alone, PyTorch's in a child, and the limit."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial

from vbjax.datasets.batching import batch_indices
from vbjax.training import fit, init_state, make_optimizer, train_step

Run = Callable[[int], tuple[float, float]]
"""Number of steps -> processor seconds, and the mean loss."""


def gather(size, images, key, step):
    """Return the images of one step."""
    return images[batch_indices(key, step, len(images), size)]


def inside(size: int, images, key, params, loss) -> Run:
    """Steps in the compiled loop of `fit`, on batches of this size."""
    optimizer, batch = make_optimizer(learning_rate=1e-3), Partial(partial(gather, size), images, key)
    state, loss, rows = init_state(params, optimizer), Partial(loss), []

    def run(steps: int) -> tuple[float, float]:
        nonlocal state
        begin, until = time.process_time(), int(state.step) + steps
        state = fit(
            key, loss, batch, optimizer, state, steps=until, chunk=steps, on_chunk=lambda _, row: rows.append(row)
        )
        return time.process_time() - begin, rows[-1]["loss"]

    return run


def outside(size: int, images, key, params, loss) -> Run:
    """The same step, compiled alone and called from Python."""
    optimizer = make_optimizer(learning_rate=1e-3)
    state = init_state(params, optimizer)

    @partial(jax.jit, donate_argnums=0)
    def one(state, images):
        return train_step(key, loss, Partial(partial(gather, size), images, key), optimizer, state)

    def run(steps: int) -> tuple[float, float]:
        nonlocal state
        begin, losses = time.process_time(), []
        for _ in range(steps):
            state, (value, _) = one(state, images)
            losses.append(value)
        loss = float(np.mean(jax.device_get(losses)))
        return time.process_time() - begin, loss

    return run


@contextmanager
def with_torch(python: str, worker: str, images: np.ndarray, *arguments: object) -> Iterator[tuple[str, Run | None]]:
    """PyTorch in a child process, a script beside this one; yields its version and a function that runs some steps."""
    if python == "none":
        yield "", None
        return
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        script, data = Path(__file__).with_name(worker), Path(folder) / "images.npy"
        command = [python, str(script), str(data), *map(str, arguments)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            version = child.stdout.readline().split()
            if not version:
                print("PyTorch is left out; --torch-python names an interpreter that has it", file=sys.stderr)
                yield "", None
                return

            def run(steps: int) -> tuple[float, float]:
                print(steps, file=child.stdin, flush=True)
                _, busy, loss = map(float, child.stdout.readline().split())
                return busy, loss

            try:
                yield version[0], run
            finally:
                child.stdin.close()


def matrix_rate(repeats: int = 20) -> float:
    """The highest rate of a 1024-cubed matrix product, in floating-point operations per second."""
    a = jax.random.normal(jax.random.key(0), (1024, 1024))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - begin)
    return 2 * 1024**3 / min(times)
