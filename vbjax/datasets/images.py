"""Image data sets as whole uint8 arrays: small enough to live on the device and be gathered inside `jit`.

Start at `load`. Digits come embedded in scikit-learn; the others are prepared once by tensorflow-datasets
(`preparation`), decoded once, and kept decoded beside the prepared data.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int32, UInt8

from vbjax.datasets import preparation
from vbjax.datasets.batching import binarise
from vbjax.datasets.errors import DatasetUnavailable, UnknownDataset

NAMES = ("digits", *preparation.PUBLISHED)

_CLASS_NAMES = {
    "fashion_mnist": "t-shirt trousers pullover dress coat sandal shirt sneaker bag boot",
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
}

_CACHE = "vbjax_arrays.bin"
_DIGITS_TRAIN = 1347


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels of one data set, on the host (`load`) or on a device (`on_device`).

    images: (n, height, width), or (n, height, width, 3) in colour, with values 0, …, levels - 1; labels: (n,).
    """

    name: str
    levels: int
    train_images: UInt8[Array | np.ndarray, "train *shape"]
    train_labels: Int32[Array | np.ndarray, " train"]
    test_images: UInt8[Array | np.ndarray, "test *shape"]
    test_labels: Int32[Array | np.ndarray, " test"]

    @property
    def class_names(self) -> list[str]:
        """What the labels 0 to 9 stand for, in a word each; for digits the digits themselves."""
        return _CLASS_NAMES.get(self.name, "0 1 2 3 4 5 6 7 8 9").split()

    def on_device(self, device: jax.Device | jax.sharding.Sharding | None = None) -> "Dataset":
        """Return the same data as committed `jax.Array`s; no device means the default one."""
        return dataclasses.replace(self, **jax.device_put(self._arrays(), device))

    def binarised(self, threshold: int) -> "Dataset":
        """Return the data with two levels: one where the pixel exceeds the threshold."""
        return dataclasses.replace(
            self,
            levels=2,
            train_images=binarise(self.train_images, threshold),
            test_images=binarise(self.test_images, threshold),
        )

    def validation_split(self, count: int) -> "Dataset":
        """Return the training split without its last `count` images, and these in place of the test split."""
        kept = len(self.train_images) - count
        if min(count, kept) < 1:
            raise ValueError(f"validation must be from 1 to {len(self.train_images) - 1} training images, got {count}")
        return dataclasses.replace(
            self,
            train_images=self.train_images[:kept],
            train_labels=self.train_labels[:kept],
            test_images=self.train_images[kept:],
            test_labels=self.train_labels[kept:],
        )

    def _arrays(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("train_images", "train_labels", "test_images", "test_labels")}


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Dataset:
    """Return a data set by name: `digits` (17 levels), `mnist`, `fashion_mnist` or `cifar10` (256 levels).

    data_dir: where tensorflow-datasets keeps prepared data (default: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
    manual_dir: a folder that holds the published files, read only when the data are not prepared yet; files whose
    gzip header a distribution has rewritten are restored in a copy. Without it, `/usr/share/datasets/fashion-mnist`
    (Debian's package dataset-fashion-mnist) is looked at for `fashion_mnist`.
    download: fetch what is missing; nothing is downloaded otherwise. All files are verified by their SHA-256.

    Raises `UnknownDataset` for another name, and `DatasetUnavailable`, within seconds and without leaving anything
    behind, when the data are not here, cannot be reached, are damaged or are not the published files.
    """
    if name not in NAMES:
        raise UnknownDataset(_unknown(name))
    if name == "digits":
        return _digits()
    root = preparation.data_root(data_dir)
    directory = preparation.directory(name, root)
    arrays = _read_cache(directory / _CACHE)
    if arrays is None:
        if not directory.exists():
            preparation.prepare(name, root, None if manual_dir is None else Path(manual_dir).expanduser(), download)
        arrays = preparation.read(name, directory)
        _write_cache(directory / _CACHE, root, arrays)
    return Dataset(name=name, levels=256, **arrays)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8)
    labels = np.asarray(classes, np.int32)
    train, test = slice(None, _DIGITS_TRAIN), slice(_DIGITS_TRAIN, None)
    return Dataset("digits", 17, images[train], labels[train], images[test], labels[test])


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no data set {name!r}; there are {', '.join(NAMES)}.{suggestion}"


def _read_cache(path: Path) -> preparation.Arrays | None:
    """Return the decoded arrays, or None when there is no cache or a byte of it has changed.

    The file is the SHA-256 of an npz archive, then the archive: its own CRC-32 misses changes of an array's header.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    archive = memoryview(content)[32:]
    if hashlib.sha256(archive).digest() != content[:32]:
        return None
    with np.load(io.BytesIO(archive), allow_pickle=False) as file:
        return preparation.Arrays(**file)


def _write_cache(path: Path, root: Path, arrays: preparation.Arrays) -> None:
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    # A read-only or full data folder costs the next start four seconds, not this run its result.
    with contextlib.suppress(OSError, DatasetUnavailable), preparation.staging(root) as folder:
        (folder / path.name).write_bytes(hashlib.sha256(archive.getbuffer()).digest() + archive.getbuffer())
        os.replace(folder / path.name, path)
