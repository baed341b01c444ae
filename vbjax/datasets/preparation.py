"""From published files to prepared data and arrays: tensorflow-datasets without TensorFlow, network only on request.

`prepare` finds the files, lets tensorflow-datasets verify and prepare them (`builders`) in a staging folder, and
publishes the result by one rename: a run killed anywhere leaves no half-prepared data. `read` decodes prepared data.
tensorflow-datasets is imported inside the functions, because a cached data set does not need it.
"""

import contextlib
import io
import os
import queue
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

import numpy as np

from vbjax.datasets.errors import DatasetUnavailable


class Arrays(TypedDict):
    """The decoded data: uint8 images and int32 labels."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Published(NamedTuple):
    """What tensorflow-datasets calls this version, the files it is made of, and which Debian package has them.

    stripped_times: the modification times in the gzip headers of files whose package has stripped name and time.
    """

    version: str
    files: tuple[str, ...]
    package: str = ""
    packaged: Path | None = None
    stripped_times: Mapping[str, int] = MappingProxyType({})


_IDX_FILES = tuple(
    f"{split}-{content}-ubyte.gz" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)

PUBLISHED = {
    "mnist": Published("3.0.1", _IDX_FILES),
    "fashion_mnist": Published(
        "3.0.1",
        _IDX_FILES,
        package="dataset-fashion-mnist",
        packaged=Path("/usr/share/datasets/fashion-mnist"),
        stripped_times={file: 1504176606 if file.startswith("train") else 1504176627 for file in _IDX_FILES},
    ),
    "cifar10": Published("3.0.2", ("cifar-10-binary.tar.gz",)),
}

_PROBE_SECONDS = 2.0


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of prepared data, by the convention of tensorflow-datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser().absolute()


def directory(name: str, root: Path) -> Path:
    """Return where the prepared data of this name are, or will be."""
    return root / name / PUBLISHED[name].version


def prepare(name: str, root: Path, manual_dir: Path | None, download: bool) -> None:
    """Verify the published files and prepare them as array_record below root.

    Raises `DatasetUnavailable`, leaving nothing behind, when files are missing and may not or cannot be downloaded,
    when one is not the published file, or when root cannot be written.
    """
    published = PUBLISHED[name]
    folder = manual_dir or published.packaged
    local = [] if folder is None else [folder / file for file in published.files if (folder / file).is_file()]
    missing = [file for file in published.files if file not in {path.name for path in local}]
    if missing and not download:
        raise DatasetUnavailable(_how_to_get(name, root, manual_dir, missing))

    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    from vbjax.datasets.builders import BUILDERS

    with staging(root) as stage:
        builder = BUILDERS[name](data_dir=stage, file_format="array_record")
        if missing:
            _probe(name, builder.sources()[missing[0]])
        (tfds.enable_progress_bar if sys.stderr.isatty() else tfds.disable_progress_bar)()
        config = tfds.download.DownloadConfig(
            manual_dir=stage / "files", try_download_gcs=False, force_checksums_validation=True
        )
        try:
            (stage / "files").mkdir()
            for path in local:
                _supply(path, stage / "files" / path.name, published.stripped_times.get(path.name))
            # tensorflow-datasets announces itself on stdout, which belongs to the caller.
            with contextlib.redirect_stdout(io.StringIO()), _few_retries():
                builder.download_and_prepare(download_dir=stage / "downloads", download_config=config)
            _publish(stage / name / published.version, directory(name, root))
        except download_manager.NonMatchingChecksumError as error:
            origin = "the download" if missing else folder
            detail = str(error).split("\nTo debug")[0]
            raise DatasetUnavailable(
                f"{name}: a file of {origin} is not the published one. Replace it and try again.\n{detail}"
            ) from error
        # The writer of array_record reports a full disk as a RuntimeError.
        except (OSError, RuntimeError, tfds.download.DownloadError) as error:
            raise DatasetUnavailable(f"{name} could not be prepared in {root}: {error}") from error


def read(name: str, prepared: Path) -> Arrays:
    """Decode prepared data (about four seconds for 60,000 images); raises `DatasetUnavailable` if they are damaged."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(prepared)
        # Images are decoded below: the reader would first complain that OpenCV is not installed.
        decoders = {"image": tfds.decode.SkipDecoding()}
        sources = [builder.as_data_source(split, decoders=decoders) for split in ("train", "test")]
        # Both splits are read before any image is decoded, so that damage shows early.
        records = [source.__getitems__(range(len(source))) for source in sources]
        train, test = [_stack(split) for split in records]
    except NotImplementedError as error:
        raise DatasetUnavailable(
            f"{prepared} holds {name} in a format that only TensorFlow reads. Choose another folder for a second copy: "
            f'`--data-dir DIR` or load("{name}", data_dir=DIR).'
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise DatasetUnavailable(
            f"The prepared data in {prepared} are damaged ({error}). Delete that folder and try again."
        ) from error
    (train_images, train_labels), (test_images, test_labels) = train, test
    return Arrays(
        train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels
    )


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """Yield a private folder on the file system of root, and remove it, and those that killed processes left."""
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    prefix = f".vbjax@{socket.gethostname()}@"
    try:
        try:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(f"{prefix}*"):
                if not _alive(int(left.name.removeprefix(prefix).partition("@")[0])):
                    shutil.rmtree(left, ignore_errors=True)
            stage = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}@", dir=root))
        except OSError as error:
            raise DatasetUnavailable(
                f"{root} cannot be written ({error.strerror}). Choose another folder: `--data-dir DIR` or data_dir=DIR."
            ) from error
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    finally:
        for folder in created:
            with contextlib.suppress(OSError):  # not empty: something was published
                folder.rmdir()


def _publish(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        source.rename(target)
    except OSError:
        # Another process may have published the same data in the meantime.
        if not target.exists():
            raise


def _supply(source: Path, target: Path, published_time: int | None) -> None:
    """Link a published file, or copy it with the name and time put back into a stripped gzip header."""
    with source.open("rb") as file:
        header = file.read(10)
        if published_time is None or header[:4] != b"\x1f\x8b\x08\x00":
            target.symlink_to(source.resolve())
            return
        time, name = struct.pack("<I", published_time), source.name.removesuffix(".gz").encode()
        target.write_bytes(header[:3] + b"\x08" + time + header[8:10] + name + b"\0" + file.read())


def _probe(name: str, url: str) -> None:
    """Fail within two seconds where there is no network: name resolution alone can hang for longer."""
    import requests

    answers: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            requests.head(url, timeout=_PROBE_SECONDS, allow_redirects=True).raise_for_status()
            answers.put(None)
        except OSError as error:  # every exception of requests is one
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        failure = answers.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        failure = TimeoutError(f"no answer within {_PROBE_SECONDS:g} s")
    if failure is not None:
        raise DatasetUnavailable(
            f"{name} cannot be downloaded: {url} does not answer ({type(failure).__name__}). "
            f"Without a network, bring the files and point at them: "
            f'`--data-files DIR` or load("{name}", manual_dir=DIR), with {_listed(PUBLISHED[name].files)}.'
        ) from failure


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Let a connection that breaks give up in seconds: ten retries take more than three minutes."""
    from tensorflow_datasets.core.download import downloader

    settings: Any = downloader
    retries, settings.MAX_RETRIES = settings.MAX_RETRIES, 2
    try:
        yield
    finally:
        settings.MAX_RETRIES = retries


def _how_to_get(name: str, root: Path, manual_dir: Path | None, missing: list[str]) -> str:
    published = PUBLISHED[name]
    where = "" if manual_dir is None else f" and {_listed(missing)} not in {manual_dir}"
    package = f"\n  with Debian's package: apt install {published.package}" if published.package else ""
    return (
        f"{name} is not prepared in {root}{where}. Nothing is downloaded unless asked:\n"
        f'  with a network:        `--download` or load("{name}", download=True)\n'
        f'  with files:            `--data-files DIR` or load("{name}", manual_dir=DIR), '
        f"where DIR holds {_listed(published.files)}{package}"
    )


def _listed(files: list[str] | tuple[str, ...]) -> str:
    return ", ".join(files)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stack(records: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    images = np.stack([np.asarray(Image.open(io.BytesIO(record["image"]))) for record in records])
    return images, np.array([record["label"] for record in records], np.int32)
