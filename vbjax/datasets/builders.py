"""The stock MNIST, Fashion-MNIST and CIFAR-10 builders of tensorflow-datasets, able to prepare without TensorFlow.

Name, version, features, example keys and download sources are inherited, so what these prepare and what
`tfds.load` prepares are interchangeable. Two things change: the files are fetched by `download` and opened here
(the stock `download_and_extract` goes through TensorFlow's file system), and images are handed over as PNG bytes
(the stock encoder runs a TensorFlow graph). Importing this module imports tensorflow-datasets.
"""

import gzip
import io
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import cifar, mnist

Examples = Iterator[tuple[int, dict[str, Any]]]


class _IdxFiles:
    """Preparation from the four gzipped idx files that MNIST and Fashion-MNIST are published as."""

    URL: str

    def sources(self) -> dict[str, str]:
        """Return the download address of each file, by file name."""
        return {
            f"{split}-{content}-ubyte.gz": f"{self.URL}{split}-{content}-ubyte.gz"
            for split in ("train", "t10k")
            for content in ("images-idx3", "labels-idx1")
        }

    def _split_generators(self, dl_manager: Any) -> Any:
        files = {name: Path(path) for name, path in dl_manager.download(self.sources()).items()}
        return {
            split: _idx_examples(files[f"{prefix}-images-idx3-ubyte.gz"], files[f"{prefix}-labels-idx1-ubyte.gz"])
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }


# The stock classes already hold these names in the registry of tensorflow-datasets.
with registered.skip_registration():

    class MNIST(_IdxFiles, mnist.MNIST):
        """MNIST."""

    class FashionMNIST(_IdxFiles, mnist.FashionMNIST):
        """Fashion-MNIST."""

    class Cifar10(cifar.Cifar10):
        """CIFAR-10, from its tar archive of binary batches."""

        def sources(self) -> dict[str, str]:
            """Return the download address of the archive, by file name."""
            url = self._cifar_info.url
            return {url.rpartition("/")[2]: url}

        def _split_generators(self, dl_manager: Any) -> Any:
            info = self._cifar_info
            (archive,) = (Path(path) for path in dl_manager.download(self.sources()).values())
            with tarfile.open(archive) as tar:
                names = _member(tar, info.prefix + "batches.meta.txt").decode().split("\n")
            self.info.features["label"].names = [name for name in names if name]
            return {
                split: _cifar_examples(archive, f"{split}_", [info.prefix + name for name in members])
                for split, members in (("train", info.train_files), ("test", info.test_files))
            }


BUILDERS = {builder.name: builder for builder in (MNIST, FashionMNIST, Cifar10)}


def _idx_examples(images: Path, labels: Path) -> Examples:
    for index, (image, label) in enumerate(zip(_read_idx(images), _read_idx(labels), strict=True)):
        yield index, {"image": _png(image), "label": int(label)}


def _cifar_examples(archive: Path, prefix: str, members: list[str]) -> Examples:
    index = 0
    with tarfile.open(archive) as tar:
        for member in members:
            # A record is one label byte, then three colour planes of 32 rows.
            for record in np.frombuffer(_member(tar, member), np.uint8).reshape(-1, 1 + 3 * 32 * 32):
                image = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                yield index, {"id": f"{prefix}{index:05d}", "image": _png(image), "label": int(record[0])}
                index += 1


def _read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read a gzipped idx file of bytes: two zeros, the type 8, the number of axes, their big-endian lengths, data."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, axes = struct.unpack_from(">HBB", content)
    if (zeros, kind) != (0, 8):
        raise ValueError(f"{path.name} is not an idx file of bytes")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a regular file of the archive")
    return file.read()


def _png(image: UInt8[np.ndarray, "..."]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "png")
    return stream.getvalue()
