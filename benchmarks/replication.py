"""Replicating a leave-one-out gradient (8 samples of a normal law in 1000 dimensions, square cost), as ratios.

The contestants take turns, round by round: `vbjax.moments.replicate`, a hand-written chunked and sharded loop with
the same generator and the same four power sums, JAX with its default generator, a compiled PyTorch batch and one
`vmap` over NumPyro's laws. Each is a process of its own, so that each has its own peak of memory.
`python benchmarks/replication.py --torch-python PATH`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SAMPLES, COORDINATES = 8, 1000
TARGETS = {"hand-written": 0.9, "torch": 1.3, "numpyro": 3.0}


def peak_memory() -> float:
    """The process's peak resident memory, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def with_library() -> Callable[[int], float]:
    """`replicate`, as a user calls it: compilation, tail indices and all."""
    import jax
    import jax.numpy as jnp

    from vbjax.distributions import Normal
    from vbjax.estimators import leave_one_out, score_function
    from vbjax.moments import replicate

    def problem(params):
        return Normal(params["loc"], params["scale"]), lambda z: jnp.sum((z - 0.5) ** 2)

    params = {"loc": jnp.zeros(COORDINATES), "scale": jnp.ones(COORDINATES)}
    estimator = score_function(SAMPLES, baseline=leave_one_out)

    def run(replications: int) -> float:
        moments = replicate(jax.random.key(0), estimator, problem, params, replications=replications)
        return float(moments.variance["loc"].mean())

    return run


def by_hand(default_generator: bool = False, batch: int = 8, block: int = 1024) -> Callable[[int], float]:
    """What a careful author writes for this one problem: closed form, batches in cache, a block merge, `shard_map`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vbjax.random import rekey

    size = 1 + 2 * COORDINATES

    def gradient(noise, loc, scale):
        inverse = 1 / scale
        f = jnp.sum((loc + scale * noise - 0.5) ** 2, 1)
        weight = (f - f.mean()) / (SAMPLES - 1)
        in_scale = (weight @ noise**2 - weight.sum()) * inverse
        return jnp.concatenate([f.mean()[None], weight @ noise * inverse, in_scale])

    def one_block(number, batches, key, loc, scale):
        def draw(r):
            return jax.vmap(lambda r: jax.random.normal(jax.random.fold_in(key, r), (SAMPLES, COORDINATES)))(r)

        def one_batch(j, total):
            r = number * block + j * batch + jnp.arange(batch)
            nothing = lambda r: jnp.zeros((batch, SAMPLES, COORDINATES))  # noqa: E731
            x = jax.vmap(gradient, (0, None, None))(jax.lax.cond(j < batches, draw, nothing, r), loc, scale)
            # power sums about the batch's mean, moved to the joint mean
            mean = x.mean(0)
            deviation = x - mean
            parts = [(deviation**p).sum(0) for p in (2, 3, 4)]
            count, total_mean, second, third, fourth = total
            new, delta = count + batch, (mean - total_mean) / (count + batch)
            fourth = fourth + parts[2] + 4 * delta * (count * parts[1] - batch * third)
            fourth = fourth + 6 * delta**2 * (count**2 * parts[0] + batch**2 * second)
            fourth = fourth + delta**4 * new * count * batch * (count**2 - count * batch + batch**2)
            third = third + parts[1] + 3 * delta * (count * parts[0] - batch * second)
            third = third + delta**3 * new * count * batch * (count - batch)
            second = second + parts[0] + delta**2 * new * count * batch
            return new, total_mean + delta * batch, second, third, fourth

        zero = jnp.zeros(size)
        return jax.lax.fori_loop(0, batches, one_batch, (jnp.zeros(()), zero, zero, zero, zero))

    mesh = jax.make_mesh((len(jax.devices()),), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.P("device"), jax.P()

    def some_blocks(numbers, batches, key, loc, scale):
        return jax.lax.map(lambda number: one_block(number, batches, key, loc, scale), numbers)

    draw = jax.jit(
        jax.shard_map(
            some_blocks, mesh=mesh, in_specs=(split, whole, whole, whole, whole), out_specs=split, check_vma=False
        )
    )
    key = jax.random.key(0) if default_generator else rekey(jax.random.key(0))
    loc, scale = jnp.zeros(COORDINATES), jnp.ones(COORDINATES)

    def run(replications: int) -> float:
        width, second, count = 16 * mesh.size, 0.0, 0
        means = []
        for start in range(0, -(-replications // block), width):
            numbers = np.arange(start, min(start + width, -(-replications // block)))
            if len(numbers) % mesh.size:
                numbers = np.append(numbers, numbers[-1] + 1)
            done = jax.device_get(draw(jnp.asarray(numbers), block // batch, key, loc, scale))
            second = second + done[2].astype(np.float64).sum(0)
            count += block * len(numbers)
            means.append(done[1])
        spread = np.concatenate(means).astype(np.float64).var(0) * count
        return float(((second + spread) / (count - 1))[1 : 1 + COORDINATES].mean())

    return run


def with_numpyro() -> Callable[[int], float]:
    """The same surrogate with NumPyro's normal law, one vmap over all replications."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    def surrogate(params, key):
        q = dist.Normal(params["loc"], params["scale"]).to_event(1)
        z = jax.lax.stop_gradient(q.sample(key, (SAMPLES,)))
        f = jnp.sum((z - 0.5) ** 2, -1)
        weight = jax.lax.stop_gradient(f - (f.sum() - f) / (SAMPLES - 1))
        return jnp.mean(weight * q.log_prob(z))

    params = {"loc": jnp.zeros(COORDINATES), "scale": jnp.ones(COORDINATES)}

    @jax.jit
    def variances(keys):
        draws = jax.vmap(jax.grad(surrogate), (None, 0))(params, keys)
        return jax.tree.map(lambda x: x.var(0, ddof=1), draws)

    def run(replications: int) -> float:
        return float(variances(jax.random.split(jax.random.key(0), replications))["loc"].mean())

    return run


CONTESTANTS = {
    "vbjax": with_library,
    "hand-written": by_hand,
    "hand-written, default generator": lambda: by_hand(default_generator=True),
    "numpyro": with_numpyro,
}


def work(name: str) -> None:
    """A contestant's process: a number of replications in; seconds, the variance and the memory out."""
    import jax
    import jax.numpy as jnp

    jax.block_until_ready(jnp.zeros(3) + 1)  # the runtime itself is part of the baseline
    import vbjax.moments  # noqa: F401

    baseline = peak_memory()
    run = CONTESTANTS[name]()
    print(jax.__version__, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        variance = run(int(line))
        print(time.perf_counter() - begin, variance, peak_memory(), baseline, flush=True)


class Contestant:
    """A process that is told how many replications to draw."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None):
        self.name, self.seconds = name, []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.version = self.process.stdout.readline().strip()
        self.variance, self.peak, self.baseline = float("nan"), float("nan"), float("nan")

    def run(self, replications: int) -> float:
        """Seconds for so many replications."""
        print(replications, file=self.process.stdin, flush=True)
        answer = [float(x) for x in self.process.stdout.readline().split()]
        if len(answer) < 3:
            raise MemoryError(f"{self.name} died at {replications} replications")
        seconds, self.variance, self.peak, *rest = answer
        self.baseline = rest[0] if rest else float("nan")
        return seconds

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def contestants(names: list[str], torch_python: str, devices: int) -> list[Contestant]:
    """Start the processes: one host device per core for JAX, as many threads for PyTorch."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    started = [Contestant(name, [sys.executable, __file__, "--work", name], environment) for name in names]
    if torch_python != "none":
        worker = Path(__file__).with_name("torch_replication.py")
        sizes = [str(n) for n in (COORDINATES, SAMPLES, 64, devices)]
        torch = Contestant("torch", [torch_python, str(worker), *sizes])
        if torch.version:
            started.append(torch)
        else:
            print("PyTorch is left out; --torch-python names an interpreter that has it", file=sys.stderr)
    return started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch, or none")
    parser.add_argument("--replications", type=int, nargs="+", default=[100_000])
    parser.add_argument("--numpyro-replications", type=int, default=10_000, help="all in memory at once: 160 kB each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="host devices, and PyTorch's threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    names = [name for name in CONTESTANTS if name != "numpyro"]
    result = [
        measure(contestants(names, arguments.torch_python, arguments.devices), n, arguments.rounds)
        for n in arguments.replications
    ]
    if arguments.numpyro_replications:
        peers = contestants(["vbjax", "numpyro"], "none", arguments.devices)
        result.append(measure(peers, arguments.numpyro_replications, arguments.rounds))
    if arguments.json:
        print(json.dumps(result))
        return
    for table in result:
        report(table)


def measure(started: list[Contestant], replications: int, rounds: int) -> dict:
    """Let the contestants take turns; one unmeasured run each compiles."""
    for contestant in started:
        contestant.run(replications // 10)
        contestant.run(replications)
    for turn in range(rounds):
        for contestant in started if turn % 2 == 0 else started[::-1]:
            contestant.seconds.append(contestant.run(replications))
    for contestant in started:
        contestant.close()
    rows = {
        c.name: {"seconds": c.seconds, "variance": c.variance, "peak_MB": c.peak, "baseline_MB": c.baseline}
        for c in started
    }
    return {"replications": replications, "rows": rows}


def report(table: dict) -> None:
    """Print medians, memory, and the speed of the library over each contestant's, round by round."""
    rows, replications = table["rows"], table["replications"]
    ours = rows["vbjax"]["seconds"]
    print(f"\n{replications:,} replications of {SAMPLES} x {COORDINATES} normals")
    for name, row in rows.items():
        median = statistics.median(row["seconds"])
        ratio = statistics.median(theirs / mine for theirs, mine in zip(row["seconds"], ours, strict=True))
        speed = replications * SAMPLES * COORDINATES / median / 1e6
        memory = f"peak {row['peak_MB']:,.0f} MB, {row['peak_MB'] - row['baseline_MB']:,.0f} above the imports"
        target = f"; target {TARGETS[name]}: {'met' if ratio >= TARGETS[name] else 'MISSED'}" if name in TARGETS else ""
        print(f"{name:32} {median:8.2f} s {speed:6.0f} M normals/s  {memory}; variance {row['variance']:.4g}; "
              f"vbjax is {ratio:.2f} x as fast{target}")  # fmt: skip


if __name__ == "__main__":
    main()
