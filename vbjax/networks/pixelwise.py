"""Convolutional encoder-decoders from an image to numbers for every pixel: segmentation, depth, super-resolution."""

import math
from collections.abc import Sequence
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from vbjax.networks.convolution import Conv, ConvTranspose
from vbjax.networks.mlp import ACTIVATIONS


class Pixelwise(nn.Module):
    """An image `(h, w, c)` -> `(scale h, scale w, outputs)`, for any size; the last layer is linear.

    features: channels of the stages, from the pixels inwards, each of which shrinks the map by `strides`, rounding up;
    the way back goes through the same sizes. scale: of super-resolution. padding: "CIRCULAR" takes the image for
    periodic; a shift by `total_stride` pixels then shifts the answer by `scale * total_stride`, and sizes must be
    multiples of it. Raises ValueError, naming the argument, for a batch too. Source: Long et al. (2015, section 3)
    without its skips.
    """

    outputs: int
    features: Sequence[int] = (16, 32)
    kernel_size: int = 4
    strides: int = 2
    scale: int = 1
    activation: str = "relu"
    padding: Literal["SAME", "CIRCULAR"] = "SAME"

    def __post_init__(self):
        for name in ("outputs", "strides", "scale"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.features or min(self.features) < 1:
            raise ValueError(f"features must be one or more channel counts of at least 1, got {tuple(self.features)}")
        if self.kernel_size < self.strides:
            raise ValueError(f"kernel_size must be at least strides {self.strides}, got {self.kernel_size}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {self.activation!r}")
        if self.padding not in ("SAME", "CIRCULAR"):
            raise ValueError(f'padding must be "SAME" or "CIRCULAR", which keep the size, got {self.padding!r}')
        super().__post_init__()

    @property
    def total_stride(self) -> int:
        """How many pixels of the image stand behind one of the innermost map, along each axis."""
        return self.strides ** len(self.features)

    @nn.compact
    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "h2 w2 outputs"]:
        if image.ndim != 3:
            raise ValueError(f"image must be one image (h, w, c), got shape {image.shape}: vmap over examples")
        height, width, _ = image.shape
        if self.padding == "CIRCULAR" and math.gcd(height, width) % self.total_stride:
            raise ValueError(
                f'padding="CIRCULAR" needs an image of multiples of {self.total_stride}, got {height}x{width}: crop it'
            )
        activation = ACTIVATIONS[self.activation]
        h, sizes = image, []
        for channels in self.features:
            sizes.append((h.shape[0], h.shape[1]))
            h = activation(Conv(channels, self.kernel_size, self.strides, self.padding)(h))
        for channels, size in zip((*self.features[-2::-1], self.features[0]), reversed(sizes), strict=True):
            back = size if self.padding == "SAME" else None
            h = activation(ConvTranspose(channels, self.kernel_size, self.strides, self.padding, back)(h))
        # kernels of twice the scale overlap by half
        return ConvTranspose(self.outputs, max(2 * self.scale, 3), self.scale, self.padding, name="outputs")(h)
