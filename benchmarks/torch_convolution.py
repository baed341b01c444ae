"""The convolutional VAE of `convolution.py` in eager PyTorch, driven over a pipe: steps in, seconds and the loss out.

Only torch and NumPy are needed, so that it can run under another interpreter than JAX does. Denormals are flushed,
and the batch is gathered from bits in memory, without a DataLoader.
"""

import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class VAE(nn.Module):
    """28x28 -> 32 maps of 14x14 -> 64 of 7x7 -> 256 -> 20 latents, and back through the same sizes.

    wide: the decoder of 3x3 kernels that also has maps of 28x28, else the one that mirrors the encoder, of 4x4.
    """

    def __init__(self, wide: bool):
        super().__init__()
        k = 3 if wide else 4

        def up(channels, features):
            return nn.ConvTranspose2d(channels, features, k, stride=2, padding=1, output_padding=k % 2)

        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, k, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, k, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(7 * 7 * 64, 256), nn.ReLU(), nn.Linear(256, 40),
        )  # fmt: skip
        dense = nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 7 * 7 * 64), nn.ReLU(), nn.Unflatten(1, (64, 7, 7))
        if wide:
            last = up(64, 64), nn.ReLU(), up(64, 32), nn.ReLU(), nn.ConvTranspose2d(32, 1, 3, padding=1)
        else:
            last = up(64, 32), nn.ReLU(), up(32, 1)
        self.decoder = nn.Sequential(*dense, *last)

    def forward(self, x):
        mean, log_variance = self.encoder(2 * x - 1).chunk(2, 1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decoder(z), mean, log_variance


def loss(x, logits, mean, log_variance):
    reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return (reconstruction + kl) / len(x)


def main(images_path: str, decoder: str, batch: int, threads: int) -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.from_numpy(np.load(images_path)[:, None])
    model = VAE(decoder == "wide")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    print(torch.__version__, sum(p.numel() for p in model.parameters()), flush=True)
    for line in sys.stdin:
        begin, busy, total = time.perf_counter(), time.process_time(), 0.0
        for _ in range(int(line)):
            x = images[torch.randint(len(images), (batch,))].to(torch.float32)
            optimizer.zero_grad()
            value = loss(x, *model(x))
            value.backward()
            optimizer.step()
            total += value.item()
        print(time.perf_counter() - begin, time.process_time() - busy, total / int(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
