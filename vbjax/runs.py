"""The folder of one run: configuration, metrics row by row, checkpoints, pictures, and the result card.

Start at `RunFolder.open`, which refuses, with a `RunError` that names the way out, whatever would mix two
runs or fail after hours of work. `cards` has the result card; `progress` what is shown meanwhile. Nothing
here imports JAX.
"""

import contextlib
import dataclasses
import enum
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

Plain = dict[str, Any]
"""What JSON can hold."""

RUN_OPTIONS = ("out", "resume", "overwrite", "quiet")
"""Fields of a configuration that say where and how to run, not what: never stored, never compared."""


class RunError(Exception):
    """A run that must not start or go on; the message is one line and names the way out (exit code 2)."""


class OtherConfiguration(RunError):  # noqa: N818 - these read as what was found
    """The folder holds a run of another configuration."""


class ResultsExist(RunError):  # noqa: N818
    """The folder holds results of this configuration, and neither resume nor overwrite was asked for."""


class NothingToResume(RunError):  # noqa: N818
    """Resume was asked for, but there is no run."""


class FolderInUse(RunError):  # noqa: N818
    """Another process is writing to the folder."""


class FolderNotWritable(RunError):  # noqa: N818
    """The folder is read-only, full, or not a folder."""


def plain(config: Any) -> Any:
    """Return a configuration as JSON holds it: dataclasses as dicts, tuples as lists, paths and enums as strings.

    A dataclass inside another also records its class, so that two choices with equal fields stay different.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: _plain_field(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(name): _plain_field(value) for name, value in config.items()}
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, (list, tuple)):
        return [_plain_field(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise TypeError(f"a configuration holds numbers, strings, paths and dataclasses, not {type(config).__name__}")


def _plain_field(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | plain(value)
    return plain(value)


def config_differences(old: Mapping, new: Mapping) -> list[str]:
    """Return one `field: old -> new` for every field that differs, nested fields by dotted names."""
    missing = "(absent)"
    differences = []
    for name in sorted({*old, *new}):
        before, after = old.get(name, missing), new.get(name, missing)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            differences += [f"{name}.{line}" for line in config_differences(before, after)]
        elif before != after:
            differences.append(f"{name}: {before!r} -> {after!r}")
    return differences


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, sorted and indented, so that the file is the old or the new one, never a part.

    Raises ValueError for a NaN or an infinity, which JSON cannot hold.
    """
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary neighbour, synchronised to the disk before it takes the name."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot synchronise a folder; the rename is atomic all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunFolder:
    """One run on disk; a context manager that holds the folder against a second process.

    path: the folder, with config.json, metrics.jsonl, card.json, checkpoints/ and pictures/.
    config: the plain configuration, as stored.
    """

    def __init__(self, path: Path, config: Plain, lock: int):
        self.path, self.config, self._lock = path, config, lock
        self._metrics: TextIO | None = None
        self._last_step = -1

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Any,
        *,
        resume: bool = False,
        overwrite: bool = False,
        expected_bytes: int = 0,
        options: Sequence[str] = RUN_OPTIONS,
    ) -> "RunFolder":
        """Make or reopen the folder of a run, after every check that can be made before the work.

        resume: go on with the run that is there, which must have this configuration. overwrite: delete what an
        earlier run left there. expected_bytes: what the run will write, so that a full disk is noticed now.
        Raises a RunError, and leaves nothing behind.
        """
        path = Path(path)
        wanted = {name: value for name, value in plain(config).items() if name not in options}
        _refuse_mixture(path, wanted, resume=resume, overwrite=overwrite)
        with _created(path):
            lock = -1
            try:
                lock = _lock(path)
                _probe(path, expected_bytes)
                if overwrite:
                    _delete_results(path)
                if not (path / "config.json").exists():
                    write_json(path / "config.json", wanted)
            except BaseException as error:
                if lock >= 0:
                    os.close(lock)
                if isinstance(error, OSError):
                    raise _not_writable(path, error) from error
                raise
        return cls(path, wanted, lock)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def picture(self, name: str) -> Path:
        """Return where a picture of this name goes; its folder exists."""
        (self.path / "pictures").mkdir(exist_ok=True)
        return self.path / "pictures" / name

    def log(self, row: Mapping[str, int | float]) -> None:
        """Append one row of metrics, a whole line at once; raises ValueError for a step that has its row."""
        if self._metrics is None:
            self.rewind(None)
            self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - see close
        if row["step"] <= self._last_step:
            raise ValueError(f"step {row['step']} comes after step {self._last_step} in {self.path}: rewind first")
        self._metrics.write(json.dumps(dict(row), allow_nan=False) + "\n")
        self._metrics.flush()
        self._last_step = int(row["step"])

    def rewind(self, step: int | None) -> None:
        """Drop the rows after `step` (None: keep all) and what a kill left half-written: where to resume from."""
        self._close_metrics()
        path = self.path / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if step is None or row["step"] <= step]
        if path.exists():
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._last_step = int(rows[-1]["step"]) if rows else -1

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def close(self) -> None:
        """Let go of the folder."""
        self._close_metrics()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def writable_folder(path: str | Path) -> Path:
    """Make a folder, if need be, and return its path; raises FolderNotWritable, leaving nothing behind."""
    path = Path(path)
    with _created(path):
        try:
            _probe(path, 0)
        except OSError as error:
            raise _not_writable(path, error) from error
    return path


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """Return the whole rows of a metrics file, in order; a half-written last line is not one of them."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(row, dict) or "step" not in row:
                break
            rows.append(row)
    return rows


_RESULTS = ("metrics.jsonl", "card.json", "checkpoints", "pictures", "rows", "index.html")


def _refuse_mixture(path: Path, wanted: Plain, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other: the one keeps what the other deletes")
    if path.exists() and not path.is_dir():
        raise FolderNotWritable(f"{path} is a file: name a folder with --out")
    stored = path / "config.json"
    if not stored.exists():
        if resume:
            raise NothingToResume(f"{path} holds no run: leave out --resume, or name the run's folder with --out")
        if path.is_dir() and any(path.iterdir()):
            raise ResultsExist(f"{path} is not empty and holds no run: name a new folder with --out")
        return
    if overwrite:
        return
    try:
        found = json.loads(stored.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OtherConfiguration(f"{stored} cannot be read ({error}): name another folder with --out") from error
    differences = config_differences(found, wanted)
    if differences:
        raise OtherConfiguration(
            f"{path} holds a run of another configuration ({'; '.join(differences)}): name another folder with "
            "--out, or delete that run with --overwrite"
        )
    if not resume and any((path / name).exists() for name in _RESULTS):
        raise ResultsExist(
            f"{path} already holds this run: go on with --resume, start again with --overwrite, or name another "
            "folder with --out"
        )


@contextlib.contextmanager
def _created(path: Path) -> Iterator[None]:
    """Make a folder with its parents; remove what was made if the block fails."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(path, error) from error
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                (folder / "config.json").unlink(missing_ok=True)
                folder.rmdir()
        raise


def _lock(path: Path) -> int:
    """Lock the folder itself: nothing is left on disk, and the kernel lets go even after kill -9."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FolderInUse(f"another process is running in {path}: wait for it, or name another folder") from error
    except OSError:
        # File systems without locks exist; a run on one of them is merely unguarded.
        pass
    return descriptor


def _probe(path: Path, expected_bytes: int) -> None:
    """Write and remove 64 KiB, and compare what the run needs with what the disk has."""
    with tempfile.NamedTemporaryFile(dir=path, prefix=".probe.") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())
    free = shutil.disk_usage(path).free
    if free < expected_bytes:
        raise FolderNotWritable(
            f"{path} has {free / 1e6:.0f} MB free and this run needs {expected_bytes / 1e6:.0f} MB: make room, or "
            "name a folder on another disk with --out"
        )


def _not_writable(path: Path, error: OSError) -> FolderNotWritable:
    reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
    reason = reasons.get(error.errno or 0, (error.strerror or str(error)).lower())
    return FolderNotWritable(f"cannot write to {path} ({reason}): name another folder")


def _delete_results(path: Path) -> None:
    """Delete what a run writes, and nothing else that may lie in the folder."""
    for name in (*_RESULTS, "config.json"):
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
