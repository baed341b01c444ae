"""Training throughput of a convolutional VAE (1.7 million parameters, 28x28, batch 128), as ratios in one run.

The contestants take turns, round by round: the library's modules inside the compiled loop of `vbjax.training.fit` and
one compiled step at a time, stock Flax modules in both ways, and eager PyTorch, which may live under another
interpreter: `python benchmarks/convolution.py --torch-python PATH`. They share architecture, loss and optimiser. The
limit is the step's multiplications at the rate of the best matrix product measured here.

The decoder is the "wide" one of Keras's convolutional VAE example, 3x3 kernels up to maps of 28x28, or the one that
mirrors the encoder, 4x4 kernels and no hidden map of the image's size.
"""

import argparse
import json
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from training_steps import Run, inside, matrix_rate, outside, with_torch

from vbjax.distributions import Bernoulli, Normal
from vbjax.networks.convolutional import ConvDecoderBody, ConvEncoderBody, PixelParameters
from vbjax.networks.mlp import GaussianEncoder
from vbjax.vae import VAE, elbo

BATCH, SHAPE, LATENT = 128, (28, 28), 20
OURS, TORCH = "vbjax in fit", "PyTorch"
TARGETS = {"PyTorch": 0.6, "stock Flax outside": 9.0, "stock Flax in fit": 9.0}


class StockVAE(nn.Module):
    """The same network of Flax's own modules, on a batch, as its examples are written."""

    wide: bool

    @nn.compact
    def __call__(self, x, key):
        h, kernel = 2 * x[..., None] - 1, (3, 3) if self.wide else (4, 4)
        for features in (32, 64):
            h = nn.relu(nn.Conv(features, kernel, (2, 2))(h))
        h = nn.relu(nn.Dense(256)(h.reshape(len(h), -1)))
        mean, log_variance = jnp.split(nn.Dense(2 * LATENT)(h), 2, -1)
        z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        h = nn.relu(nn.Dense(7 * 7 * 64)(nn.relu(nn.Dense(256)(z)))).reshape(-1, 7, 7, 64)
        for features in (64, 32) if self.wide else (32,):
            h = nn.relu(nn.ConvTranspose(features, kernel, (2, 2))(h))
        return nn.ConvTranspose(1, kernel, (1, 1) if self.wide else (2, 2))(h)[..., 0], mean, log_variance


def library(key, wide: bool):
    """Parameters and loss of the library's own modules, laws and ELBO, one example at a time."""
    kernel = 3 if wide else 4
    encoder = GaussianEncoder(ConvEncoderBody(SHAPE, (32, 64), hidden=(256,), kernel_size=kernel), LATENT)
    body = ConvDecoderBody(SHAPE, (64, 64, 32) if wide else (64, 32), hidden=(256,), kernel_size=kernel)
    pixels = PixelParameters(SHAPE)

    def logits(params, z):
        return pixels.apply(params["pixels"], body.apply(params["decoder"], z))

    def one(key, params, image):
        x = image.astype(jnp.float32)
        prior = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))
        vae = VAE(
            prior,
            lambda x: encoder.apply(params["encoder"], 2 * x - 1),
            lambda z: Bernoulli(logits(params, z)),
        )
        terms = elbo(key, vae, x)
        return -terms.total, {"reconstruction": terms.reconstruction, "kl": terms.kl}

    def loss(key, params, images):
        keys = jax.random.split(key, len(images))
        return jax.tree.map(lambda v: v.mean(0), jax.vmap(one, (0, None, 0))(keys, params, images))

    key_encoder, key_decoder, key_pixels = jax.random.split(key, 3)
    h, decoder = body.init_with_output(key_decoder, jnp.zeros(LATENT))
    params = {
        "encoder": encoder.init(key_encoder, jnp.zeros(SHAPE)),
        "decoder": decoder,
        "pixels": pixels.init(key_pixels, h),
    }
    return params, loss


def stock(key, wide: bool):
    """Parameters and loss of Flax's modules."""
    network = StockVAE(wide)

    def loss(key, params, images):
        x = images.astype(jnp.float32)
        logits, mean, log_variance = network.apply(params, x, key)
        reconstruction = (x * logits - jax.nn.softplus(logits)).sum() / len(x)
        kl = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum() / len(x)
        return kl - reconstruction, {"reconstruction": reconstruction, "kl": kl}

    key_params, key_noise = jax.random.split(key)
    return network.init(key_params, jnp.zeros((1, *SHAPE)), key_noise), loss


def multiplications(wide: bool) -> float:
    """Floating-point operations of all matrix products and convolutions of a step: forward, and twice that backward."""
    dense = 2 * (7 * 7 * 64 * 256) + 3 * 256 * LATENT
    taps = 9 if wide else 16
    first, second = 14 * 14 * taps * 32, 7 * 7 * taps * 32 * 64
    decoder = taps * (7 * 7 * 64 * 64 + 14 * 14 * 64 * 32 + 28 * 28 * 32) if wide else first + second
    # the pixels need no gradient
    return 2.0 * BATCH * (3 * (dense + first + second + decoder) - first)


def measure(contestants: dict[str, Run], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Let the contestants take turns of about so many seconds; return steps per second, one number a round."""
    steps = {}
    for name, run in contestants.items():
        run(1)  # compiles
        begin = time.perf_counter()
        run(2)
        steps[name] = max(1, round(seconds / (time.perf_counter() - begin) * 2))
    speeds = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.perf_counter()
            _, loss = contestants[name](steps[name])
            speeds[name].append(steps[name] / (time.perf_counter() - begin))
            if not np.isfinite(loss):
                raise ArithmeticError(f"{name}: the loss is {loss}")
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch, or none")
    parser.add_argument("--decoder", choices=("wide", "mirrored"), default="wide")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant's turn; at least one step")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()

    wide = arguments.decoder == "wide"
    bits = (np.random.default_rng(0).random((10_000, *SHAPE)) < 0.3).astype(np.uint8)
    images, key = jnp.asarray(bits), jax.random.key(0)
    contestants = {
        f"{name} {where}": build(BATCH, images, key, *model(key, wide))
        for name, model in (("vbjax", library), ("stock Flax", stock))
        for where, build in (("in fit", inside), ("outside", outside))
    }
    with with_torch(
        arguments.torch_python, "torch_convolution.py", bits, arguments.decoder, BATCH, arguments.threads
    ) as (version, run):
        if run is not None:
            contestants[TORCH] = run
        rate = matrix_rate()
        speeds = measure(contestants, arguments.seconds, arguments.rounds)
        rate = max(rate, matrix_rate())
    report(speeds, rate, multiplications(wide), version, as_json=arguments.json)


def report(speeds: dict[str, list[float]], rate: float, work: float, version: str, *, as_json: bool) -> None:
    """Print the medians, their fraction of the limit, and the ratios to ours by medians."""
    limit = rate / work
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    if as_json:
        print(json.dumps({"jax": jax.__version__, "torch": version, "limit": limit, "steps_per_second": speeds}))
        return
    print(f"a step is {work / 1e9:.2f} GFLOP; matrix products reach {rate / 1e9:.0f} GFLOP/s, so the limit is "
          f"{limit:.1f} steps/s; jax {jax.__version__}, torch {version or 'left out'}")  # fmt: skip
    for name, values in speeds.items():
        ratio = medians[OURS] / medians[name]
        target = f"; target {TARGETS[name]}: {'met' if ratio >= TARGETS[name] else 'MISSED'}" if name in TARGETS else ""
        print(f"{name:20} {medians[name]:8.3f} steps/s ({min(values):.3f} to {max(values):.3f}), "
              f"{medians[name] / limit:5.1%} of the limit; {OURS} is {ratio:.2f} x as fast{target}")  # fmt: skip


if __name__ == "__main__":
    main()
