"""PyTorch's official basic VAE example, driven over a pipe: a number of steps in, seconds and the loss out.

Only torch, NumPy and Pillow are needed, so that it can run under another interpreter than JAX does. Model, loss,
optimiser and loop are the example's: 784-400-20, binary cross-entropy summed plus KL, Adam 1e-3, batch 128 from
a shuffling DataLoader over uint8 images in memory, each through PIL and back as torchvision's MNIST and `ToTensor`
do, `loss.item()` every step. One thing favours it: denormals are flushed.
"""

import itertools
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Images and labels one by one, as torchvision's MNIST with `ToTensor` hands them out."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        picture = Image.fromarray(self.images[index].numpy(), mode="L")
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True)).view(28, 28, 1)
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255), 0


class VAE(nn.Module):
    """The example's network: one hidden layer on either side of a 20-dimensional latent."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(784, 400)
        self.mean, self.log_variance = nn.Linear(400, 20), nn.Linear(400, 20)
        self.decode_hidden, self.decode = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x):
        hidden = functional.relu(self.encode(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        hidden = functional.relu(self.decode_hidden(z))
        return torch.sigmoid(self.decode(hidden)), mean, log_variance


def loss(x, probabilities, mean, log_variance):
    reconstruction = functional.binary_cross_entropy(probabilities, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return reconstruction + kl


def main(images_path: str, threads: int) -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = Images(torch.from_numpy(np.load(images_path).reshape(-1, 28, 28)))
    loader = DataLoader(images, batch_size=128, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        begin, total = time.perf_counter(), 0.0
        for x, _ in itertools.islice(batches, int(line)):
            optimizer.zero_grad()
            x = x.view(-1, 784)
            value = loss(x, *model(x))
            value.backward()
            total += value.item()
            optimizer.step()
        print(time.perf_counter() - begin, total / (128 * int(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
