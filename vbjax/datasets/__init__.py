"""Data: image sets as device-resident uint8 arrays, synthetic laws, and batches indexed by the step.

Start reading at `images` (`load` and the `Dataset` it returns), then `batching` (`batch_indices`: which examples
a step sees, as a pure function of a key and the step). `preparation` and `builders` are what stands between
`load` and tensorflow-datasets; `synthetic` holds laws whose parameters are known exactly.
Importing this package imports neither tensorflow-datasets nor scikit-learn: `load` does, when it must.
"""

from vbjax.datasets.batching import batch_indices, batches, binarise, dynamic_binarise, numbered, shuffled_index
from vbjax.datasets.errors import DatasetUnavailable, UnknownDataset
from vbjax.datasets.images import NAMES, Dataset, load
from vbjax.datasets.synthetic import (
    LinearGaussian,
    gaussian_mixture_grid,
    gaussian_mixture_ring,
    grid_modes,
    linear_gaussian,
    ring_modes,
    swiss_roll,
    two_moons,
)

__all__ = [
    "NAMES",
    "Dataset",
    "DatasetUnavailable",
    "LinearGaussian",
    "UnknownDataset",
    "batch_indices",
    "batches",
    "binarise",
    "dynamic_binarise",
    "gaussian_mixture_grid",
    "gaussian_mixture_ring",
    "grid_modes",
    "linear_gaussian",
    "load",
    "numbered",
    "ring_modes",
    "shuffled_index",
    "swiss_roll",
    "two_moons",
]
