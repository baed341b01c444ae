"""Training throughput of a U-Net denoiser (1.2 million parameters, 28x28, batch 64), as ratios in one run.

The contestants take turns, round by round: the library's U-Net inside the compiled loop of `vbjax.training.fit` and one
compiled step at a time, stock Flax modules on a batch in both ways, and eager PyTorch, which may live under another
interpreter: `python benchmarks/unet.py --torch-python PATH`. They share architecture, loss and optimiser. The limit is
the step's multiplications at the rate of the best matrix product measured here.

The ratios compare the fastest rounds: a busy machine makes every round slower, but not the fastest by much. Processor
seconds are counted too; PyTorch's include what its threads spend waiting for one another.
"""

import argparse
import json
import math
import os
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from training_steps import Run, inside, matrix_rate, outside, with_torch

from vbjax.diffusion.process import noise, signal
from vbjax.networks.conditioning import sinusoids
from vbjax.networks.unet import UNet

BATCH, SHAPE = 64, (28, 28)
CHANNELS, MULTIPLIERS, GROUPS = 32, (1, 2, 4), 8
OURS, TORCH, STOCK = "vbjax in fit", "PyTorch", "stock Flax outside"
TARGETS = {TORCH: 0.65, STOCK: 1.6}


class StockBlock(nn.Module):
    """The residual block of Flax's own modules, on a batch."""

    features: int

    @nn.compact
    def __call__(self, x, told):
        h = nn.Conv(self.features, (3, 3))(nn.silu(nn.GroupNorm(GROUPS)(x)))
        scale, shift = jnp.split(nn.Dense(2 * self.features, name="film")(told)[:, None, None], 2, -1)
        h = nn.silu(nn.GroupNorm(GROUPS)(h) * (1 + scale) + shift)
        h = nn.Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros_init())(h)
        if x.shape != h.shape:
            x = nn.Conv(self.features, (1, 1), use_bias=False, name="shortcut")(x)
        return h + x


class StockAttention(nn.Module):
    """Self-attention of Flax's own modules, on a batch."""

    @nn.compact
    def __call__(self, x):
        count, height, width, channels = x.shape
        pixels = nn.GroupNorm(GROUPS)(x).reshape(count, height * width, channels)
        q, k, v = jnp.split(nn.Dense(3 * channels)(pixels), 3, -1)
        seen = nn.softmax(q @ jnp.swapaxes(k, 1, 2) / math.sqrt(channels)) @ v
        return x + nn.Dense(channels, kernel_init=nn.initializers.zeros_init(), name="outputs")(seen).reshape(x.shape)


class StockUNet(nn.Module):
    """The same network of Flax's own modules, on a batch, as its examples are written."""

    channels: int = CHANNELS
    multipliers: tuple[int, ...] = MULTIPLIERS

    @nn.compact
    def __call__(self, x, gamma):
        width = 4 * self.channels
        told = nn.Dense(width)(jax.vmap(partial(sinusoids, width=width))(gamma))
        told = nn.silu(nn.Dense(width)(nn.silu(told)))
        widths = [self.channels * m for m in self.multipliers]
        coarsest, skips = len(widths) - 1, []
        h = nn.Conv(widths[0], (3, 3))(x[..., None])
        for level, features in enumerate(widths):
            if level:
                h = nn.Conv(features, (3, 3), (2, 2))(h)
            h = StockBlock(features)(h, told)
            if level == coarsest:
                h = StockAttention()(h)
            skips.append(h)
        for level, features in reversed(list(enumerate(widths))):
            if level < coarsest:
                h = nn.ConvTranspose(features, (2, 2), (2, 2), use_bias=False)(h)
                h = jnp.concatenate([h, skips[level]], -1)
            h = StockBlock(features)(h, told)
            if level == coarsest:
                h = StockAttention()(h)
        h = nn.silu(nn.GroupNorm(GROUPS)(h))
        return nn.Conv(1, (3, 3), kernel_init=nn.initializers.zeros_init(), name="outputs")(h)[..., 0]


def noised(key, images):
    """x_t, γ and ε for a batch: γ uniform in [-12, 8]."""
    key_gamma, key_noise = jax.random.split(key)
    gamma = jax.random.uniform(key_gamma, len(images), minval=-12.0, maxval=8.0)
    epsilon = jax.random.normal(key_noise, images.shape)
    x0 = images.astype(jnp.float32) / 127.5 - 1
    return jax.vmap(lambda x0, gamma, e: signal(gamma) * x0 + noise(gamma) * e)(x0, gamma, epsilon), gamma, epsilon


def library(key):
    """Parameters and loss of the library's network, one image at a time."""
    network = UNet(SHAPE, channels=CHANNELS, multipliers=MULTIPLIERS, groups=GROUPS)

    def loss(key, params, images):
        x_t, gamma, epsilon = noised(key, images)
        predicted = jax.vmap(network.apply, (None, 0, 0))(params, x_t, gamma)[..., 0]
        return jnp.mean((predicted - epsilon) ** 2), {}

    return jax.jit(network.init)(key, jnp.zeros(SHAPE), jnp.zeros(())), loss


def stock(key):
    """Parameters and loss of Flax's modules."""
    network = StockUNet()

    def loss(key, params, images):
        x_t, gamma, epsilon = noised(key, images)
        return jnp.mean((network.apply(params, x_t, gamma) - epsilon) ** 2), {}

    return jax.jit(network.init)(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1)), loss


def multiplications() -> float:
    """Floating-point operations of all matrix products and convolutions of a step: forward, and twice that backward."""
    widths, pixels = [CHANNELS * m for m in MULTIPLIERS], [math.prod(SHAPE) // 4**i for i in range(len(MULTIPLIERS))]
    total = 2 * pixels[0] * 9 * CHANNELS  # the first layer and the last
    for level, (c, n) in enumerate(zip(widths, pixels, strict=True)):
        total += n * 2 * 9 * c * c  # a block on the way down
        if level < len(widths) - 1:
            after, fewer = widths[level + 1], pixels[level + 1]
            total += fewer * (9 * c * after + 4 * after * c)  # to the next level and back
            total += n * (3 * 9 * c * c + 2 * c * c)  # a block that reads two maps, with its shortcut
        else:
            total += n * (2 * 9 * c * c + 2 * (4 * c * c + 2 * n * c))  # another block, attention twice
    return 6.0 * BATCH * total


def measure(contestants: dict[str, Run], steps: int, rounds: int):
    """Let the contestants take turns of so many steps; return seconds and processor seconds per step, by round."""
    for run in contestants.values():
        run(1)  # compiles
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.perf_counter()
            busy, loss = contestants[name](steps)
            seconds[name].append(((time.perf_counter() - begin) / steps, busy / steps))
            if not np.isfinite(loss):
                raise ArithmeticError(f"{name}: the loss is {loss}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch, or none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of each contestant's turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's threads")
    parser.add_argument("--without", nargs="*", default=[], help="contestants to leave out, by the table's names")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()

    pixels = np.random.default_rng(0).integers(0, 256, (10_000, *SHAPE), np.uint8)
    images, key = jnp.asarray(pixels), jax.random.key(0)
    contestants = {
        f"{name} {where}": build(BATCH, images, key, *model(key))
        for name, model in (("vbjax", library), ("stock Flax", stock))
        for where, build in (("in fit", inside), ("outside", outside))
        if f"{name} {where}" not in arguments.without
    }
    with with_torch(arguments.torch_python, "torch_unet.py", pixels, BATCH, arguments.threads) as (version, run):
        if run is not None:
            contestants[TORCH] = run
        rate = matrix_rate()
        seconds = measure(contestants, arguments.steps, arguments.rounds)
        rate = max(rate, matrix_rate())
    if arguments.json:
        limit = multiplications() / rate
        print(json.dumps({"jax": jax.__version__, "torch": version, "limit": limit, "seconds_per_step": seconds}))
        return
    report(seconds, rate, version)


def report(seconds: dict[str, list[tuple[float, float]]], rate: float, version: str) -> None:
    """Print every contestant's fastest round, its fraction of the limit, and the ratio to ours."""
    work = multiplications()
    print(f"a step is {work / 1e9:.1f} GFLOP; matrix products reach {rate / 1e9:.0f} GFLOP/s, so the limit is "
          f"{1e3 * work / rate:.0f} ms; jax {jax.__version__}, torch {version or 'left out'}")  # fmt: skip
    walls, busies = ({name: min(pair[i] for pair in pairs) for name, pairs in seconds.items()} for i in (0, 1))
    for name in seconds:
        ratio = walls[name] / walls[OURS]
        target = f"; target {TARGETS[name]}: {'met' if ratio >= TARGETS[name] else 'MISSED'}" if name in TARGETS else ""
        print(f"{name:20} {1e3 * walls[name]:7.0f} ms a step, {work / rate / walls[name]:5.1%} of the limit, "
              f"{busies[name]:.2f} processor seconds; {OURS} is {ratio:.2f} x as fast{target}")  # fmt: skip


if __name__ == "__main__":
    main()
