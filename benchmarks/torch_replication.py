"""Leave-one-out gradients in PyTorch, compiled, a batch at a time, driven over a pipe: replications in, seconds out.

The closed form of the gradient, so that autograd costs nothing, and no more than sums and sums of squares, half of
what the library computes. Denormals are flushed. Only torch is needed, so that it can run under another interpreter.
"""

import resource
import sys
import time

import torch


def gradients(noise, loc, scale):
    """Value and gradient in loc and scale of every replication: noise (replications, samples, coordinates)."""
    f = ((loc + scale * noise - 0.5) ** 2).sum(-1)
    weight = ((f - f.mean(1, keepdim=True)) / (noise.shape[1] - 1))[..., None]
    in_loc, in_scale = (weight * noise / scale).sum(1), (weight * (noise * noise - 1) / scale).sum(1)
    return torch.cat([f.mean(1, keepdim=True), in_loc, in_scale], 1)


def sums(noise, loc, scale):
    """Sum and sum of squares over the replications."""
    x = gradients(noise, loc, scale)
    return x.sum(0), (x * x).sum(0)


def main(coordinates: int, samples: int, batch: int, threads: int) -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loc, scale = torch.zeros(coordinates), torch.ones(coordinates)
    noise, compiled = torch.empty(batch, samples, coordinates), torch.compile(sums)
    compiled(noise.normal_(), loc, scale)
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        replications, begin = int(line), time.perf_counter()
        total = [torch.zeros(1 + 2 * coordinates, dtype=torch.float64) for _ in range(2)]
        for _ in range(-(-replications // batch)):
            for part, more in zip(total, compiled(noise.normal_(), loc, scale), strict=True):
                part += more
        count = batch * -(-replications // batch)
        variance = ((total[1] - total[0] ** 2 / count) / (count - 1))[1 : 1 + coordinates].mean()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(time.perf_counter() - begin, float(variance), peak, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
