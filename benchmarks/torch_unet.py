"""The U-Net of `unet.py` in eager PyTorch, driven over a pipe: steps in; seconds, processor seconds and the loss out.

Only torch and NumPy are needed, so that it can run under another interpreter than JAX does. Denormals are flushed,
and the batch is gathered from bytes in memory, without a DataLoader.
"""

import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CHANNELS, MULTIPLIERS, GROUPS = 32, (1, 2, 4), 8


class Block(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.film = nn.Linear(4 * CHANNELS, 2 * after)
        self.norm = nn.GroupNorm(GROUPS, after)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x, told):
        scale, shift = self.film(told)[:, :, None, None].chunk(2, 1)
        h = functional.silu(self.norm(self.first(x)) * (1 + scale) + shift)
        return self.shortcut(x) + self.second(h)


class Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).chunk(3, -1)
        seen = self.out(functional.scaled_dot_product_attention(q, k, v))
        return x + seen.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """28x28 -> 14x14 -> 7x7 and back, one residual block a level each way, attention after both of the coarsest."""

    def __init__(self):
        super().__init__()
        one, two, three = (CHANNELS * m for m in MULTIPLIERS)
        width = 4 * CHANNELS
        self.told = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.register_buffer("frequencies", torch.from_numpy(np.geomspace(1 / 16, 4, width // 2).astype(np.float32)))
        self.first = nn.Conv2d(1, one, 3, padding=1)
        self.down = nn.ModuleList([Block(one, one), Block(two, two), Block(three, three)])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in ((one, two), (two, three))])
        self.up = nn.ModuleList([Block(2 * one, one), Block(2 * two, two), Block(three, three)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in ((one, two), (two, three))])
        self.attention = nn.ModuleList([Attention(three), Attention(three)])
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, one), nn.SiLU(), nn.Conv2d(one, 1, 3, padding=1))

    def forward(self, x, gamma):
        angles = gamma[:, None] * self.frequencies
        told = self.told(torch.cat([angles.sin(), angles.cos()], 1))
        fine = self.down[0](self.first(x), told)
        middle = self.down[1](self.shrink[0](fine), told)
        h = self.attention[0](self.down[2](self.shrink[1](middle), told))
        h = self.attention[1](self.up[2](h, told))
        h = self.up[1](torch.cat([self.grow[1](h), middle], 1), told)
        h = self.up[0](torch.cat([self.grow[0](h), fine], 1), told)
        return self.last(h)


def loss(model, x):
    """Mean squared error of the predicted noise at a uniform γ."""
    gamma = 20 * torch.rand(len(x)) - 12
    noise = torch.randn_like(x)
    signal, sigma = (torch.sigmoid(g).sqrt()[:, None, None, None] for g in (-gamma, gamma))
    return functional.mse_loss(model(signal * x + sigma * noise, gamma), noise)


def main(images_path: str, batch: int, threads: int) -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.from_numpy(np.load(images_path)[:, None])
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    print(torch.__version__, sum(p.numel() for p in model.parameters()), flush=True)
    for line in sys.stdin:
        begin, busy, total = time.perf_counter(), time.process_time(), 0.0
        for _ in range(int(line)):
            x = images[torch.randint(len(images), (batch,))].to(torch.float32) / 127.5 - 1
            optimizer.zero_grad()
            value = loss(model, x)
            value.backward()
            optimizer.step()
            total += value.item()
        print(time.perf_counter() - begin, time.process_time() - busy, total / int(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
