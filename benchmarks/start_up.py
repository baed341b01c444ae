"""Start-up: `vbjax --help` against bare Python, and the time to a first training step with a cold and a warm cache.

    python benchmarks/start_up.py            # about two minutes; medians over interleaved rounds
    python benchmarks/start_up.py --json     # from the root of the checkout

The first step is that of the digits VAE of `experiments/vae.py`, from process start to the updated parameters.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

FIRST_STEP = """
from vbjax.cli import start_jax
start_jax()
import jax
from experiments import vae
from vbjax import datasets, training
config = vae.Config()
data = datasets.load("digits").on_device()
networks = vae.build(config, (8, 8), data.levels)
optimizer = training.make_optimizer(learning_rate=1e-3)
key = jax.random.key(0)
state = training.init_state(jax.jit(networks.init)(key), optimizer)
batch = datasets.batches(key, data.train_images, 128)
training.fit(key, networks.loss(samples=config.samples), batch, optimizer, state, steps=1)
"""


def seconds(command: Sequence[str], **environment: str) -> float:
    """Wall time of one process."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    return time.perf_counter() - begin


def measure(rounds: int) -> dict[str, float]:
    """Medians, in seconds, over rounds in which every command runs once."""
    times: dict[str, list[float]] = {"python": [], "vbjax --help": [], "first step, cold": [], "first step, warm": []}
    for _ in range(rounds):
        times["python"].append(seconds([sys.executable, "-c", "pass"]))
        times["vbjax --help"].append(seconds([sys.executable, "-m", "vbjax.cli", "--help"]))
        with tempfile.TemporaryDirectory() as cache:
            for name in ("first step, cold", "first step, warm"):
                times[name].append(seconds([sys.executable, "-c", FIRST_STEP], VBJAX_CACHE=cache, PYTHONPATH="."))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the medians and the two figures that matter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    result = measure(options.rounds)
    result["help over python, seconds"] = result["vbjax --help"] - result["python"]
    result["warm over cold, ratio"] = result["first step, warm"] / result["first step, cold"]
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:<26} {value:7.3f}")
        for name, most in (("help over python, seconds", 0.4), ("warm over cold, ratio", 0.7)):
            print(f"{name}, target {most}: {'met' if result[name] <= most else 'MISSED'}")


if __name__ == "__main__":
    main()
