"""Checkpoints that say when they are not whole: atomic, digested, the last few and the best one kept.

Start at `CheckpointFolder`. Orbax writes each one under a temporary name and renames it; SHA-256 digests of
files and leaves catch what renaming cannot, such as a bit that flipped later. Configuration and provenance
lie inside. The rest of the package never imports orbax.
"""

import errno
import hashlib
import itertools
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from vbjax.runs import Plain, RunError, config_differences, write_atomically


class CheckpointMismatch(RunError):  # noqa: N818 - these read as what was found
    """The checkpoint is whole, but of another architecture; `leaf` is the first one that differs."""

    def __init__(self, message: str, leaf: str):
        self.leaf = leaf
        super().__init__(message)


class CheckpointDamaged(RunError):  # noqa: N818
    """There are checkpoints, and none of them is whole."""


class CheckpointNotSaved(RunError):  # noqa: N818
    """The disk did not take the checkpoint; the earlier ones are untouched."""


class NonFiniteState(ArithmeticError):  # noqa: N818
    """The state holds an infinity or a NaN, and was not saved."""


class Checkpoint(NamedTuple):
    """A restored state and what was stored with it.

    state: as the target's tree, on the target's devices. metric: what `save` was given. sha256: over the state.
    """

    step: int
    state: Any
    metric: float | None
    config: Plain
    provenance: Plain
    sha256: str


def tree_sha256(tree: PyTree) -> str:
    """Return the SHA-256 of all leaves, sorted by path: path, dtype, shape and little-endian bytes of each."""
    digest = hashlib.sha256()
    for path, leaf in sorted(_leaves(tree).items()):
        array = np.asarray(leaf)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        # reshape: a view of the bytes, which zero-dimensional arrays do not have themselves
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def expected_bytes(state: PyTree, *, keep_last: int) -> int:
    """Return what the checkpoints of this state need on disk: the last ones, the best, and one in the making."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return (keep_last + 2) * (size + (1 << 16))


class CheckpointFolder:
    """The checkpoints of one run, by step. A context manager.

    config, provenance: stored with every checkpoint. keep_last: how many of the newest to keep, besides the
    one with the lowest metric. read_only: only look, also while another process writes. warn: gets one line
    for every checkpoint that turns out to be damaged; the lines are in `warnings` too.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        keep_last: int = 2,
        read_only: bool = False,
        warn: Callable[[str], None] | None = None,
    ):
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {keep_last}")
        self.path = Path(path).absolute()
        self.config, self.provenance = dict(config or {}), dict(provenance or {})
        self.keep_last, self.read_only = keep_last, read_only
        self.warnings: list[str] = []
        self._warn = warn
        self._metrics: dict[int, float] = {}
        self._unreadable: list[int] = []
        self._open: Any = self._manager() if self.path.is_dir() or not read_only else None
        for step in self.steps:
            try:
                metric = self._record(step)["metric"]
            # Whatever the reader stumbles over is damage, which `restore_best` will report.
            except Exception:
                self._unreadable.append(step)
            else:
                if metric is not None:
                    self._metrics[step] = metric

    def _manager(self):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").addFilter(_not_of_orbax)
        if not self.read_only:
            # what a kill left; Orbax would remove it too, but in its own time
            for unfinished in self.path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        return ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self.keep_last, self._metrics),
                # Whole before `save` returns: what the caller does next may be to die.
                enable_async_checkpointing=False,
                create=not self.read_only,
                read_only=self.read_only,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or not, in order."""
        return sorted(self._open.all_steps()) if self._open else []

    def save(self, state: Any, *, metric: int | float | None = None) -> str:
        """Write a checkpoint of a `TrainState` at its `step` and return its SHA-256; lower metrics are better.

        Raises NonFiniteState for a contaminated state and CheckpointNotSaved where the disk refuses; either
        way the earlier checkpoints stay as they are.
        """
        import orbax.checkpoint as ocp

        if self.read_only:
            raise ValueError(f"{self.path} was opened with read_only=True")
        if metric is not None and not math.isfinite(metric):
            raise ValueError(f"metric must be finite, got {metric}")
        step = int(state.step)
        leaves = _leaves(state)
        for path, leaf in leaves.items():
            if not np.all(np.isfinite(np.asarray(leaf))):
                raise NonFiniteState(f"{path} is not finite at step {step}: this state was not saved")
        record = {
            "config": self.config,
            "provenance": self.provenance,
            "metric": None if metric is None else float(metric),
            "leaves": {path: _shape(leaf) for path, leaf in leaves.items()},
            "sha256": tree_sha256(state),
        }
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        if metric is not None:
            self._metrics[step] = float(metric)
        threads = set(threading.enumerate())
        try:
            _reserve(self.path, expected_bytes(state, keep_last=0) // 2)
            self._open.save(step, args=items, force=True)
            _write_sums(self.path / str(step))
        except Exception as error:
            self._metrics.pop(step, None)
            # Orbax's other threads are still writing what can no longer become a checkpoint.
            deadline = time.monotonic() + 5
            while set(threading.enumerate()) - threads and time.monotonic() < deadline:
                time.sleep(0.01)
            for unfinished in self.path.glob(f"{step}.*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointNotSaved(f"cannot write checkpoint {step} to {self.path}: {_one_line(error)}") from error
        return record["sha256"]

    def restore_latest(self, target: Any) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None where there is none at all.

        target: a state of the wanted tree, shapes and dtypes (arrays or `jax.ShapeDtypeStruct`s); the result
        has its shardings, if it has any. Damaged checkpoints on the way are set aside under another name, with
        a warning. Raises CheckpointMismatch if the checkpoint belongs to another architecture, and
        CheckpointDamaged, leaving all as it is, if none is whole.
        """
        return self._restore(self.steps[::-1], target)

    def restore_best(self, target: Any) -> Checkpoint | None:
        """Return the whole checkpoint with the lowest metric; the newest, if none was saved with a metric."""
        if not self._metrics:
            return self.restore_latest(target)
        ranked = sorted(self._metrics, key=self._metrics.__getitem__)
        return self._restore([*self._unreadable, *ranked], target)

    def _restore(self, steps: list[int], target: Any) -> Checkpoint | None:
        damaged = {}
        for step in steps:
            try:
                checkpoint = self._restore_step(step, target)
            except CheckpointMismatch:
                raise
            # Damage shows as whatever error the decoder stumbles over.
            except Exception as error:
                damaged[step] = f"checkpoint {step} is damaged ({_one_line(error)})"
            else:
                for bad, reason in damaged.items():
                    self._set_aside(bad, f"{reason}; falling back to checkpoint {step}")
                return checkpoint
        if damaged:
            raise CheckpointDamaged(
                f"no checkpoint in {self.path} is whole: {'; '.join(damaged.values())}; start again with --overwrite"
            )
        return None

    def _restore_step(self, step: int, target: Any) -> Checkpoint:
        import orbax.checkpoint as ocp

        record = self._record(step)
        self._require_same_leaves(step, record, target)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_abstract, target)))
        state = self._open.restore(step, args=items)["state"]
        if tree_sha256(state) != record["sha256"]:
            raise ValueError("its arrays do not have the SHA-256 that they were saved with")
        return Checkpoint(step, state, record["metric"], record["config"], record["provenance"], record["sha256"])

    def _record(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        _check_sums(self.path / str(step))
        return self._open.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def _require_same_leaves(self, step: int, record: dict[str, Any], target: Any) -> None:
        stored, wanted = record["leaves"], {path: _shape(leaf) for path, leaf in _leaves(target).items()}
        # The parameters first: what differs there is the reason for all else that differs.
        for path in sorted({*stored, *wanted}, key=lambda path: (not path.startswith("params/"), path)):
            if stored.get(path) != wanted.get(path):
                differences = config_differences(record["config"], self.config) if self.config else []
                because = f"; the configurations differ in {', '.join(differences)}" if differences else ""
                raise CheckpointMismatch(
                    f"checkpoint {step} in {self.path} is of another architecture: {path} is "
                    f"{stored.get(path, 'absent')} there and {wanted.get(path, 'absent')} here{because}",
                    path,
                )

    def _set_aside(self, step: int, line: str) -> None:
        """Rename a damaged checkpoint, so that training can write that step again and nothing is lost."""
        if not self.read_only:
            name = next(
                name
                for name in (f"damaged-{step}{'-again' * times}" for times in itertools.count())
                if not (self.path / name).exists()
            )
            (self.path / str(step)).rename(self.path / name)
            self._metrics.pop(step, None)
            if step in self._unreadable:
                self._unreadable.remove(step)
            self._open.reload()
            line += f" (the damaged one is now {name})"
        self.warnings.append(line)
        if self._warn is not None:
            self._warn(line)

    def close(self) -> None:
        """Finish what is being written."""
        if self._open:
            self._open.close()

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _LatestAndBest:
    """Orbax's `PreservationPolicy`: the newest few, and the one with the lowest metric."""

    def __init__(self, latest: int, metrics: dict[int, float]):
        self._latest, self._metrics = latest, metrics

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((self._metrics[step], step) for step in steps if step in self._metrics)
        kept = {*sorted(steps)[-self._latest :], *(step for _, step in ranked[:1])}
        return [step in kept for step in steps]


def _leaves(tree: PyTree) -> dict[str, Any]:
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            raise TypeError(f"{name} is a random key: keep the seed and use fold_in(key, step) instead")
        leaves[name] = leaf
    return leaves


def _shape(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _reserve(folder: Path, size: int) -> None:
    """Ask the disk for the room of a checkpoint and give it back: a plain error now, not one in every thread."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            # A file system that cannot reserve room may have it all the same.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Drop what Orbax's threads log, tracebacks and all: what matters is raised, and said once."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


_SUMS = "SHA256SUMS"


def _write_sums(folder: Path) -> None:
    """Digest the files of a checkpoint, in the format of `sha256sum --check`.

    Orbax reports a damaged file from several threads at once, on stderr, and a truncated one sometimes not at
    all: so the files are checked before it reads them. A kill just before this leaves a whole checkpoint without
    digests; the SHA-256 of its leaves still guards it.
    """
    lines = [f"{_file_sha256(file)}  {file.relative_to(folder)}\n" for file in _files(folder)]
    write_atomically(folder / _SUMS, "".join(lines))


def _check_sums(folder: Path) -> None:
    sums = folder / _SUMS
    if not sums.exists():
        return
    digests = {name: digest for digest, name in (line.split("  ") for line in sums.read_text().splitlines())}
    for name in sorted({*digests, *(str(file.relative_to(folder)) for file in _files(folder))}):
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _file_sha256(folder / name) != digests.get(name):
            raise ValueError(f"{name} does not have the SHA-256 that it was saved with")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _SUMS)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
