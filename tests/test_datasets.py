"""Data: the published bytes or a clear refusal, every example once per epoch, laws with the moments they claim."""

import dataclasses
import gzip
import hashlib
import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax import datasets
from vbjax.datasets import preparation

FASHION_FILES = preparation.PUBLISHED["fashion_mnist"].packaged

# The probability, over the choice of key, that a statistical test below refuses correct code; keys are fixed.
FALSE_ALARM = 1e-6

SHA256 = {
    "digits": "c44ff145247426ea79edce7a1dc68b090248743e3a67d1952bd65587ce7b35b5",
    "fashion_mnist": "75ab27f0b83cfe1cad20ff708b625ddfd9b706c62a4731a003165d0591216eda",
}


def fingerprint(dataset):
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def pairs(images, labels):
    """Images with their labels in an order of their own: preparation shuffles."""
    return sorted((bytes(image), int(label)) for image, label in zip(np.ascontiguousarray(images), labels, strict=True))


def everything_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run_python(code, timeout=60, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | environment,
    )


# Published files, in small: the real formats, with their checksums registered as tensorflow-datasets registers its own.


def register_checksum(monkeypatch, name, files):
    from tensorflow_datasets.core.download import checksums

    from vbjax.datasets.builders import BUILDERS

    for file, url in BUILDERS[name]().sources().items():
        monkeypatch.setitem(checksums.get_all_url_infos(), url, checksums.compute_url_info(files / file))


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def registration(folder):
    """The same for a process of its own."""
    return f"""
from pathlib import Path
from tensorflow_datasets.core.download import checksums
from vbjax import datasets
from vbjax.datasets.builders import BUILDERS

for file, url in BUILDERS["mnist"]().sources().items():
    checksums.get_all_url_infos()[url] = checksums.compute_url_info(Path({str(folder)!r}) / file)
"""


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    content = {
        f"{split}-{kind}-ubyte.gz": random.integers(0, high, shape, np.uint8)
        for split, count in (("train", 50), ("t10k", 20))
        for kind, high, shape in (("images-idx3", 256, (count, 28, 28)), ("labels-idx1", 10, (count,)))
    }
    folder = tmp_path / "files"
    folder.mkdir()
    for name, array in content.items():
        (folder / name).write_bytes(idx(array))
    register_checksum(monkeypatch, "mnist", folder)
    return folder, content


@pytest.fixture(scope="module")
def fashion_dir(tmp_path_factory):
    if not FASHION_FILES.exists():
        pytest.skip("Fashion-MNIST is not installed: apt install dataset-fashion-mnist")
    folder = tmp_path_factory.mktemp("prepared")
    datasets.load("fashion_mnist", data_dir=folder)
    return folder


# What is loaded.


def test_digits_are_scikit_learns_first_1347_and_last_450():
    from sklearn.datasets import load_digits

    digits, source = datasets.load("digits"), load_digits()
    assert digits.levels == 17
    assert digits.train_images.shape == (1347, 8, 8)
    assert digits.test_images.shape == (450, 8, 8)
    np.testing.assert_array_equal(digits.train_images, source.images[:1347])
    np.testing.assert_array_equal(digits.test_images, source.images[-450:])
    np.testing.assert_array_equal(digits.train_labels, source.target[:1347])
    np.testing.assert_array_equal(digits.test_labels, source.target[-450:])
    assert fingerprint(digits) == SHA256["digits"]


def test_every_label_has_a_word():
    data = datasets.load("digits")
    assert data.class_names == [str(y) for y in range(10)]
    for name, boot in (("fashion_mnist", "boot"), ("cifar10", "truck")):
        names = dataclasses.replace(data, name=name).class_names
        assert len(set(names)) == 10
        assert names[9] == boot


def test_a_validation_split_is_the_end_of_the_training_split_and_sees_no_test_image():
    data = datasets.load("digits")
    split = data.validation_split(300)
    np.testing.assert_array_equal(np.concatenate([split.train_images, split.test_images]), data.train_images)
    np.testing.assert_array_equal(np.concatenate([split.train_labels, split.test_labels]), data.train_labels)
    assert len(split.test_images) == 300
    for count in (0, -1, 1347):
        with pytest.raises(ValueError, match="validation must be from 1 to 1346"):
            data.validation_split(count)


@pytest.mark.slow
def test_fashion_mnist_from_the_debian_package_is_the_published_data(fashion_dir):
    fashion = datasets.load("fashion_mnist", data_dir=fashion_dir)
    assert fashion.levels == 256
    assert fashion.train_images.shape == (60_000, 28, 28)
    assert fashion.test_images.shape == (10_000, 28, 28)
    assert fingerprint(fashion) == SHA256["fashion_mnist"]
    for split, images, labels in (
        ("train", fashion.train_images, fashion.train_labels),
        ("t10k", fashion.test_images, fashion.test_labels),
    ):
        raw_images = gzip.decompress((FASHION_FILES / f"{split}-images-idx3-ubyte.gz").read_bytes())
        raw_labels = gzip.decompress((FASHION_FILES / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        raw_images = np.frombuffer(raw_images, np.uint8, offset=16).reshape(-1, 28, 28)
        assert pairs(images, labels) == pairs(raw_images, np.frombuffer(raw_labels, np.uint8, offset=8))


@pytest.mark.slow
def test_second_load_takes_under_a_second_and_reads_the_same_bytes(fashion_dir):
    start = time.perf_counter()
    fashion = datasets.load("fashion_mnist", data_dir=fashion_dir)
    assert time.perf_counter() - start < 1
    assert fingerprint(fashion) == SHA256["fashion_mnist"]


@pytest.mark.slow
def test_prepared_data_are_those_of_the_stock_builder(fashion_dir):
    import tensorflow_datasets as tfds

    prepared = tfds.builder_from_directory(preparation.directory("fashion_mnist", fashion_dir)).info
    stock = tfds.builder_cls("fashion_mnist")(data_dir=fashion_dir).info
    assert (prepared.full_name, repr(prepared.features)) == (stock.full_name, repr(stock.features))
    assert prepared.splits["train"].num_examples == 60_000


@pytest.mark.parametrize("name", preparation.PUBLISHED)
def test_versions_and_file_names_are_those_of_tensorflow_datasets(name):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    from vbjax.datasets.builders import BUILDERS

    published, sources = preparation.PUBLISHED[name], BUILDERS[name]().sources()
    assert published.version == str(tfds.builder_cls(name).VERSION)
    assert set(published.files) == set(sources)
    assert {url: checksums.get_all_url_infos()[url].filename for url in sources.values()} == {
        url: file for file, url in sources.items()
    }


def test_mnist_from_files_is_decoded_verified_and_silent(small_mnist, tmp_path, capfd):
    folder, content = small_mnist
    mnist = datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    for split, images, labels in (
        ("train", mnist.train_images, mnist.train_labels),
        ("t10k", mnist.test_images, mnist.test_labels),
    ):
        expected = content[f"{split}-images-idx3-ubyte.gz"], content[f"{split}-labels-idx1-ubyte.gz"]
        assert pairs(images, labels) == pairs(*expected)
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path / "data") == ["mnist"]


def test_cifar10_from_its_archive_keeps_rows_colours_and_class_names(tmp_path, monkeypatch):
    random = np.random.default_rng(2)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    expected = {"train": [], "test": []}
    with tarfile.open(archive, "w:gz") as tar:

        def add(name, content):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        add("batches.meta.txt", "\n".join(f"class {label}" for label in range(10)).encode() + b"\n\n")
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            images, labels = random.integers(0, 256, (4, 32, 32, 3), np.uint8), random.integers(0, 10, 4, np.uint8)
            add(
                name,
                b"".join(
                    bytes([label]) + image.transpose(2, 0, 1).tobytes()
                    for image, label in zip(images, labels, strict=True)
                ),
            )
            expected["test" if name.startswith("test") else "train"].extend(pairs(images, labels))
    register_checksum(monkeypatch, "cifar10", tmp_path)

    cifar = datasets.load("cifar10", data_dir=tmp_path / "data", manual_dir=tmp_path)
    assert cifar.train_images.shape == (20, 32, 32, 3)
    assert pairs(cifar.train_images, cifar.train_labels) == sorted(expected["train"])
    assert pairs(cifar.test_images, cifar.test_labels) == sorted(expected["test"])
    names = (preparation.directory("cifar10", tmp_path / "data") / "label.labels.txt").read_text().split("\n")
    assert names[:10] == [f"class {label}" for label in range(10)]


def test_on_device_moves_the_arrays_and_binarised_reduces_the_levels():
    digits = datasets.load("digits").on_device()
    assert isinstance(digits.train_images, jax.Array)
    assert (digits.train_images.dtype, digits.train_labels.dtype) == (jnp.uint8, jnp.int32)
    binary = digits.binarised(7)
    assert (binary.levels, int(binary.test_images.max())) == (2, 1)
    np.testing.assert_array_equal(np.asarray(binary.test_images), np.asarray(digits.test_images) > 7)


# What is refused.


@pytest.mark.parametrize(
    ("name", "closest"), [("Fashion-MNSIT", "fashion_mnist"), ("cifar", "cifar10"), ("digit", "digits"), ("zzz", None)]
)
def test_unknown_name_lists_the_names_and_the_closest(name, closest):
    with pytest.raises(datasets.UnknownDataset, match="digits, mnist, fashion_mnist, cifar10") as error:
        datasets.load(name)
    assert isinstance(error.value, ValueError)
    assert (f"Did you mean {closest!r}?" in str(error.value)) == (closest is not None)


def test_nothing_prepared_is_refused_at_once_with_the_way_out_and_writes_nothing(tmp_path):
    code = """
import sys, time
from vbjax import datasets
start = time.perf_counter()
try:
    datasets.load("mnist")
except datasets.DatasetUnavailable as error:
    print(error)
    sys.exit(3 if time.perf_counter() - start < 3 else 4)
"""
    result = run_python(code, TFDS_DATA_DIR=str(tmp_path / "data"))
    assert result.returncode == 3
    for way_out in ("--download", "--data-files DIR", "train-images-idx3-ubyte.gz", str(tmp_path / "data")):
        assert way_out in result.stdout
    assert everything_below(tmp_path) == []


def test_missing_files_are_named(small_mnist, tmp_path):
    folder, _ = small_mnist
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(datasets.DatasetUnavailable, match=r"and t10k-labels-idx1-ubyte\.gz not in"):
        datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    assert not (tmp_path / "data").exists()


def test_fashion_mnist_without_the_package_names_the_package(tmp_path, monkeypatch):
    absent = preparation.PUBLISHED["fashion_mnist"]._replace(packaged=tmp_path / "absent")
    monkeypatch.setitem(preparation.PUBLISHED, "fashion_mnist", absent)
    with pytest.raises(datasets.DatasetUnavailable, match="apt install dataset-fashion-mnist"):
        datasets.load("fashion_mnist", data_dir=tmp_path / "data")


@pytest.fixture(params=["refused", "silent"])
def proxy(request):
    """A proxy that refuses connections, or takes them and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "refused":
            server.close()
        yield address


def test_download_without_a_network_fails_within_three_seconds_and_writes_nothing(proxy, tmp_path, monkeypatch):
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, proxy)
    for variable in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    start = time.perf_counter()
    with pytest.raises(datasets.DatasetUnavailable, match="--data-files DIR"):
        datasets.load("mnist", data_dir=tmp_path / "deep" / "data", download=True)
    assert time.perf_counter() - start < 3
    assert everything_below(tmp_path) == []


def test_download_takes_the_same_path_as_files(small_mnist, tmp_path, monkeypatch):
    folder, content = small_mnist
    monkeypatch.setattr(preparation, "_probe", lambda name, url: None)
    from tensorflow_datasets.core.download import downloader

    def fetch(self, url, destination, verify=True):
        path = destination / url.rpartition("/")[2]
        path.write_bytes((folder / path.name).read_bytes())
        from tensorflow_datasets.core.download import checksums

        return downloader.DownloadResult(path, checksums.compute_url_info(path))

    monkeypatch.setattr(downloader._Downloader, "_sync_download", fetch)
    mnist = datasets.load("mnist", data_dir=tmp_path / "data", download=True)
    expected = content["train-images-idx3-ubyte.gz"], content["train-labels-idx1-ubyte.gz"]
    assert pairs(mnist.train_images, mnist.train_labels) == pairs(*expected)
    assert os.listdir(tmp_path / "data") == ["mnist"]


def test_a_file_that_is_not_the_published_one_is_refused_and_nothing_is_left(small_mnist, tmp_path):
    folder, _ = small_mnist
    damaged = folder / "t10k-images-idx3-ubyte.gz"
    # Still a valid gzip file with the right shape: only the checksum can tell.
    damaged.write_bytes(idx(np.zeros((20, 28, 28), np.uint8)))
    with pytest.raises(datasets.DatasetUnavailable, match=r"not the published one[\s\S]*t10k-images"):
        datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written_is_refused(small_mnist, tmp_path):
    folder, _ = small_mnist
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(datasets.DatasetUnavailable, match="--data-dir DIR"):
        datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)


def test_a_disk_that_fills_up_is_reported_and_nothing_is_left(small_mnist, tmp_path):
    folder, _ = small_mnist
    result = run_python(f"""
import resource
{registration(folder)}
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    datasets.load("mnist", data_dir={str(tmp_path / "data")!r}, manual_dir={str(folder)!r})
except datasets.DatasetUnavailable as error:
    print(error)
""")
    assert "mnist could not be prepared in" in result.stdout, result.stderr
    assert not (tmp_path / "data").exists()


def test_users_files_are_not_modified_when_a_header_is_restored(tmp_path):
    name = "t10k-labels-idx1-ubyte.gz"
    payload = gzip.compress(b"labels", mtime=0)
    stripped = payload[:4] + bytes(4) + payload[8:]
    (tmp_path / name).write_bytes(stripped)
    preparation._supply(tmp_path / name, tmp_path / "restored", 1504176627)
    restored = (tmp_path / "restored").read_bytes()
    assert (tmp_path / name).read_bytes() == stripped
    assert restored[3:8] == b"\x08" + struct.pack("<I", 1504176627)
    assert restored[10 : 10 + len(name) - 2] == name.removesuffix(".gz").encode() + b"\0"
    assert gzip.decompress(restored) == b"labels"


# What survives.


def test_any_damaged_byte_of_the_cache_is_noticed_and_the_cache_rebuilt(small_mnist, tmp_path):
    folder, _ = small_mnist
    load = lambda: datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)  # noqa: E731
    expected = fingerprint(load())
    cache = preparation.directory("mnist", tmp_path / "data") / "vbjax_arrays.bin"
    whole = cache.read_bytes()
    # The first 300 bytes hold the shape of an array, which the CRC-32 of an npz archive does not protect.
    for position in (*range(0, 300, 7), 159, 164, *np.linspace(0, len(whole) - 1, 20).astype(int)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        cache.write_bytes(bytes(damaged))
        assert fingerprint(load()) == expected
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        cache.write_bytes(whole[:length])
        assert fingerprint(load()) == expected
        assert cache.stat().st_size == len(whole)


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "record missing", "description missing", "description empty"]
)
def test_damaged_prepared_data_are_refused_at_once(damage, small_mnist, tmp_path):
    folder, _ = small_mnist
    datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    prepared = preparation.directory("mnist", tmp_path / "data")
    (prepared / "vbjax_arrays.bin").unlink()
    (records,) = prepared.glob("*test.array_record*")
    whole = bytearray(records.read_bytes())
    match damage:
        case "flipped":
            whole[5000] ^= 1  # beyond 20,000 lies padding
            records.write_bytes(bytes(whole))
        case "truncated":
            records.write_bytes(bytes(whole[: len(whole) // 2]))
        case "record missing":
            records.unlink()
        case "description missing":
            (prepared / "dataset_info.json").unlink()
        case "description empty":
            (prepared / "dataset_info.json").write_text("")
    start = time.perf_counter()
    with pytest.raises(datasets.DatasetUnavailable, match=r"damaged[\s\S]*Delete that folder"):
        datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    assert time.perf_counter() - start < 3


def test_data_prepared_for_tensorflow_only_are_refused_with_the_way_out(small_mnist, tmp_path):
    folder, _ = small_mnist
    datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    prepared = preparation.directory("mnist", tmp_path / "data")
    (prepared / "vbjax_arrays.bin").unlink()
    description = prepared / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(datasets.DatasetUnavailable, match="only TensorFlow reads"):
        datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)


def test_a_kill_while_preparing_leaves_no_prepared_data_and_the_next_call_cleans_up(small_mnist, tmp_path):
    folder, content = small_mnist
    killed = run_python(f"""
import os, signal
{registration(folder)}
from vbjax.datasets import builders
examples = builders._idx_examples

def killed_half_way(*files):
    for index, example in examples(*files):
        if index == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        yield index, example

builders._idx_examples = killed_half_way
datasets.load("mnist", data_dir={str(tmp_path / "data")!r}, manual_dir={str(folder)!r})
""")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "data" / "mnist").exists()
    assert len(os.listdir(tmp_path / "data")) == 1  # the staging folder of the dead process
    mnist = datasets.load("mnist", data_dir=tmp_path / "data", manual_dir=folder)
    assert len(mnist.train_labels) == len(content["train-labels-idx1-ubyte.gz"])
    assert os.listdir(tmp_path / "data") == ["mnist"]


def test_import_is_lazy():
    result = run_python(
        "import sys, vbjax.datasets\n"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL', 'requests') if m in sys.modules])"
    )
    assert result.stdout == "[]\n", result.stderr


# Batches.


def stream(key, size, batch_size, steps, first=0):
    """All indices of consecutive steps, from inside a scan, as training sees them."""

    def body(step, _):
        return step + 1, datasets.batch_indices(key, step, size, batch_size)

    return np.asarray(jax.jit(lambda: jax.lax.scan(body, jnp.int32(first), length=steps)[1])()).reshape(-1)


@pytest.mark.parametrize(
    ("size", "batch_size"),
    [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (5, 3), (7, 16), (8, 3), (1347, 128), (60_000, 128), (65_537, 1000)],
)
def test_every_example_appears_exactly_once_per_epoch(size, batch_size):
    epochs = 3
    indices = stream(jax.random.key(size), size, batch_size, -(-epochs * size // batch_size))[: epochs * size]
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(np.sort(indices.reshape(epochs, size)), np.tile(np.arange(size), (epochs, 1)))


def test_a_hash_reduced_modulo_the_size_would_not_visit_every_example():
    size = 1347
    hashed = jax.random.bits(jax.random.key(0), (size,), jnp.uint32) % np.uint32(size)
    assert len(np.unique(np.asarray(hashed))) < 0.7 * size


@pytest.mark.parametrize(("size", "batch_size"), [(5, 3), (1347, 128), (60_000, 128)])
def test_a_batch_is_the_positions_of_its_step(size, batch_size):
    key = jax.random.key(3)
    index = jax.jit(jax.vmap(lambda position: datasets.shuffled_index(key, position, size)))
    batch = jax.jit(lambda step: datasets.batch_indices(key, step, size, batch_size))
    for step in (0, 1, 10, size // batch_size, 5 * size // batch_size, (2**31 - 1) // batch_size - 1):
        expected = index(step * batch_size + jnp.arange(batch_size))
        np.testing.assert_array_equal(batch(step), expected)


def test_batches_are_the_same_eagerly_under_jit_vmap_and_scan_and_after_a_restart():
    key, size, batch_size = jax.random.key(4), 1347, 128
    batch = lambda step: datasets.batch_indices(key, step, size, batch_size)  # noqa: E731
    uninterrupted = stream(key, size, batch_size, 20).reshape(20, batch_size)
    np.testing.assert_array_equal(batch(7), uninterrupted[7])
    np.testing.assert_array_equal(jax.jit(batch)(jnp.int32(7)), uninterrupted[7])
    np.testing.assert_array_equal(jax.vmap(batch)(jnp.arange(20)), uninterrupted)
    np.testing.assert_array_equal(stream(key, size, batch_size, 13, first=7), uninterrupted[7:].reshape(-1))


def test_keys_and_epochs_give_different_orders():
    key, other = jax.random.split(jax.random.key(5))
    orders = [stream(key, 1347, 1347, 2)[:1347], stream(key, 1347, 1347, 2)[1347:], stream(other, 1347, 1347, 1)]
    for left, right in itertools.combinations(orders, 2):
        assert np.sum(left == right) < 12  # matches are Poisson(1): P(12 or more) < 1e-9


@pytest.mark.parametrize(("size", "batch_size"), [(5, 3), (1347, 1000), (60_000, 128)])
def test_the_last_steps_before_the_int32_limit_still_visit_every_example(size, batch_size):
    period = size // np.gcd(size, batch_size)
    first = (2**31 - 1) // period * period - period  # starts an epoch; positions are far beyond 2^31
    indices = stream(jax.random.key(6), size, batch_size, period, first=first).reshape(-1, size)
    np.testing.assert_array_equal(np.sort(indices), np.tile(np.arange(size), (len(indices), 1)))


def test_overflow_and_nonsense_are_refused_before_anything_runs():
    key = jax.random.key(7)
    datasets.batch_indices(key, 0, 60_000, 35_000)
    with pytest.raises(ValueError, match="overflows int32"):
        datasets.batch_indices(key, 0, 60_000, 60_001)
    for arguments in ((0, 1, 0), (0, 0, 1), (-1, 1, 1), (2**31, 1, 1)):
        with pytest.raises(ValueError, match=r"must be"):
            datasets.batch_indices(key, *arguments)
    for position, size in ((-1, 5), (2**31, 5), (0, 0), (0, 2**31)):
        with pytest.raises(ValueError, match=r"must be in"):
            datasets.shuffled_index(key, position, size)


def assert_uniform(counts):
    assert stats.chisquare(counts.ravel()).pvalue > FALSE_ALARM


def assert_not_uniform(counts):
    assert stats.chisquare(counts.ravel()).pvalue < FALSE_ALARM


def histogram(bins, *coordinates):
    """Joint counts of coordinates in [0, 1)."""
    return np.histogramdd(np.stack(coordinates, axis=-1), bins=bins, range=[(0, 1)] * len(coordinates))[0]


@pytest.mark.parametrize(("size", "source"), [(2, "epochs"), (3, "keys"), (4, "epochs"), (5, "keys"), (5, "epochs")])
def test_every_order_of_a_small_set_is_equally_likely(size, source):
    draws = 24_000
    if source == "epochs":
        orders = stream(jax.random.key(8), size, size, draws).reshape(draws, size)
    else:
        orders = np.asarray(
            jax.vmap(lambda key: datasets.batch_indices(key, 0, size, size))(jax.random.split(jax.random.key(8), draws))
        )
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == np.prod(np.arange(1, size + 1))
    assert_uniform(counts)


def permutations(size, epochs):
    return stream(jax.random.key(9), size, size, epochs).reshape(epochs, size)


def affine_permutations(size, epochs):
    """The wrong shuffle: (a·position + b) mod size, a bijection whose neighbours keep a constant distance."""
    a, b = 7919 + 2 * np.arange(epochs)[:, None], 104_729 * np.arange(epochs)[:, None]
    return (a * np.arange(size) + b) % size


def neighbour_counts(orders):
    positions = orders / orders.shape[1]
    return histogram(12, positions[:, :-1].ravel(), positions[:, 1:].ravel())


def epoch_counts(orders):
    positions = orders / orders.shape[1]
    return histogram(12, positions[:-1].ravel(), positions[1:].ravel())


def place_counts(orders):
    places = np.broadcast_to(np.arange(orders.shape[1]) / orders.shape[1], orders.shape)
    return histogram(12, places.ravel(), (orders / orders.shape[1]).ravel())


@pytest.mark.parametrize("size", [1347, 4096, 60_000])
def test_places_neighbours_and_epochs_are_independent_and_an_affine_shuffle_is_not(size):
    orders = permutations(size, 20)
    assert_uniform(place_counts(orders))
    assert_uniform(neighbour_counts(orders))
    assert_uniform(epoch_counts(orders))
    assert_not_uniform(neighbour_counts(affine_permutations(size, 20)))
    assert_not_uniform(epoch_counts(np.tile(orders[:1], (20, 1))))  # the same order in every epoch


# Binarisation.


def test_static_binarisation_is_one_strictly_above_the_threshold():
    image = np.array([[0, 126, 127], [128, 255, 1]], np.uint8)
    for kind in (np.asarray, jnp.asarray):
        result = datasets.binarise(kind(image), 127)
        assert isinstance(result, type(kind(image)))
        np.testing.assert_array_equal(np.asarray(result), [[0, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dynamic_binarisation_has_the_probability_of_the_pixel(levels):
    image, draws = jnp.arange(levels, dtype=jnp.uint8), 20_000
    keys = jax.random.split(jax.random.key(10), draws)
    frequency = np.asarray(
        jax.vmap(lambda key: datasets.dynamic_binarise(key, image, levels))(keys).mean(0, dtype=jnp.float32)
    )
    assert (frequency[0], frequency[-1]) == (0, 1)

    def largest_z(probability):
        inside = slice(1, levels - 1)
        deviation = np.sqrt(probability * (1 - probability) / draws)
        return np.abs((frequency - probability) / np.where(deviation > 0, deviation, 1))[inside].max(initial=0)

    limit = stats.norm.isf(FALSE_ALARM / (2 * levels))
    assert largest_z(np.arange(levels) / (levels - 1)) < limit
    if levels > 2:
        assert largest_z(np.arange(levels) / levels) > limit  # the usual mistake: value / levels


# Synthetic laws.


def draw(law, count=20_000, seed=11):
    return np.asarray(jax.vmap(law)(jax.random.split(jax.random.key(seed), count)), np.float64)


def assert_mean(samples, expected):
    """Every coordinate within what a correct law exceeds with probability FALSE_ALARM."""
    error = np.abs(samples.mean(0) - expected) / (samples.std(0) / np.sqrt(len(samples)))
    assert error.max() < stats.norm.isf(FALSE_ALARM / (2 * error.size))


@pytest.mark.parametrize(
    ("law", "modes"),
    [
        (datasets.gaussian_mixture_ring, datasets.ring_modes(8, 2.0)),
        (datasets.gaussian_mixture_grid, datasets.grid_modes(5, 1.0)),
    ],
)
def test_mixtures_visit_their_modes_equally_with_their_scale(law, modes):
    samples, modes = draw(law), np.asarray(modes)
    distances = np.linalg.norm(samples[:, None] - modes, axis=-1)
    nearest = distances.argmin(1)
    assert_uniform(np.bincount(nearest, minlength=len(modes)))
    squared = np.sum((samples - modes[nearest]) ** 2, axis=1)
    assert_mean(squared[:, None], 2 * 0.05**2)
    with pytest.raises(AssertionError):
        assert_mean(squared[:, None], 0.05**2)


def test_modes_lie_where_they_are_said_to():
    ring, grid = np.asarray(datasets.ring_modes(8, 2.0)), np.asarray(datasets.grid_modes(3, 0.5))
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), 2.0, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1), 4 * np.sin(np.pi / 8), rtol=1e-6
    )
    assert sorted(map(tuple, grid)) == sorted(itertools.product([-0.5, 0.0, 0.5], repeat=2))


def test_moons_are_two_half_circles():
    samples = draw(lambda key: datasets.two_moons(key, noise=0.0))
    upper = np.isclose(np.linalg.norm(samples, axis=1), 1, atol=1e-5) & (samples[:, 1] >= 0)
    lower = np.isclose(np.linalg.norm(samples - [1, 0.5], axis=1), 1, atol=1e-5) & (samples[:, 1] <= 0.5)
    assert (upper | lower).all()
    assert stats.binomtest(int(upper.sum()), len(samples)).pvalue > FALSE_ALARM
    assert_mean(samples, [0.5, 0.25])
    noisy = draw(lambda key: datasets.two_moons(key, noise=0.3)) - samples
    assert_mean(noisy**2, 0.3**2)


def test_roll_is_a_spiral_times_an_interval():
    x, height, z = 10 * draw(lambda key: datasets.swiss_roll(key, noise=0.0)).T
    angle = np.hypot(x, z)
    np.testing.assert_allclose(np.stack([x, z]), angle * np.stack([np.cos(angle), np.sin(angle)]), atol=1e-3)
    assert stats.kstest(angle, stats.uniform(1.5 * np.pi, 3 * np.pi).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(height, stats.uniform(0, 21).cdf).pvalue > FALSE_ALARM


def test_linear_gaussian_has_the_mean_and_covariance_it_returns():
    law = datasets.linear_gaussian(jax.random.key(12), latent=2, observed=4, noise_scale=0.5)
    samples = draw(law.sample)
    assert_mean(samples, np.asarray(law.mean))
    centred = samples - np.asarray(law.mean)
    products = np.einsum("ni,nj->nij", centred, centred).reshape(len(samples), -1)
    covariance = np.asarray(law.covariance)
    assert_mean(products, covariance.reshape(-1))
    with pytest.raises(AssertionError):
        assert_mean(products, (covariance - 0.5**2 * np.eye(4)).reshape(-1))  # without the noise
