"""Run folders: nothing is mixed, nothing half-written survives, a folder that will not do is refused at once."""

import dataclasses
import enum
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vbjax.runs import (
    FolderInUse,
    FolderNotWritable,
    NothingToResume,
    OtherConfiguration,
    ResultsExist,
    RunError,
    RunFolder,
    config_differences,
    plain,
    read_metrics,
    write_atomically,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    hidden: int = 8


@dataclasses.dataclass(frozen=True)
class Gaussian:
    hidden: int = 8


class Law(enum.Enum):
    NORMAL = 1


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3
    sizes: tuple[int, ...] = (4, 2)
    decoder: Bernoulli | Gaussian = Bernoulli()
    law: Law = Law.NORMAL
    data: Path = Path("digits")
    out: str = "runs/a"
    resume: bool = False


def contents(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def row(step, **more):
    return {"step": step, "loss": 1.0 / (step + 1)} | more


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 256 kB large; only root can mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_new_folder_holds_its_configuration_and_no_run_options(tmp_path):
    with RunFolder.open(tmp_path / "a" / "b", Config()) as run:
        assert contents(tmp_path / "a" / "b") == ["config.json"]
        stored = json.loads((run.path / "config.json").read_text())
    assert stored == run.config == {
        "learning_rate": 1e-3,
        "sizes": [4, 2],
        "decoder": {"class": "Bernoulli", "hidden": 8},
        "law": "NORMAL",
        "data": "digits",
    }  # fmt: skip
    assert list(stored) == sorted(stored)


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    RunFolder.open(tmp_path / "a", Config()).close()
    other = Config(learning_rate=0.1, sizes=(4, 3), decoder=Gaussian())
    for resume in (False, True):
        with pytest.raises(OtherConfiguration, match="--out") as caught:
            RunFolder.open(tmp_path / "a", other, resume=resume)
        for part in ("learning_rate: 0.001 -> 0.1", "sizes: [4, 2] -> [4, 3]", "'Bernoulli' -> 'Gaussian'"):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path / "a") == ["config.json"]
    # The control: what only says where and how to run does not count as a difference.
    RunFolder.open(tmp_path / "a", Config(out="elsewhere", resume=True)).close()


def test_results_are_neither_overwritten_nor_continued_unasked(tmp_path):
    with RunFolder.open(tmp_path / "a", Config()) as run:
        run.log(row(1))
        run.picture("samples.png").write_text("picture")
        (run.path / "notes.txt").write_text("mine")
    with pytest.raises(ResultsExist, match=r"--resume.*--overwrite"):
        RunFolder.open(tmp_path / "a", Config())
    RunFolder.open(tmp_path / "a", Config(), resume=True).close()
    assert read_metrics(tmp_path / "a" / "metrics.jsonl") == [row(1)]
    RunFolder.open(tmp_path / "a", Config(learning_rate=0.1), overwrite=True).close()
    assert contents(tmp_path / "a") == ["config.json", "notes.txt"]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["learning_rate"] == 0.1


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ResultsExist, match="holds no run"):
            RunFolder.open(tmp_path, Config(), overwrite=overwrite)
    with pytest.raises(NothingToResume, match="--resume"):
        RunFolder.open(tmp_path / "new", Config(), resume=True)
    with pytest.raises(RunError, match="exclude each other"):
        RunFolder.open(tmp_path / "new", Config(), resume=True, overwrite=True)
    assert contents(tmp_path) == ["thesis.tex"]


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path):
    with RunFolder.open(tmp_path / "a", Config()):
        with pytest.raises(FolderInUse):
            RunFolder.open(tmp_path / "a", Config())
        assert contents(tmp_path / "a") == ["config.json"]
    RunFolder.open(tmp_path / "a", Config()).close()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FolderNotWritable, match=r"name a(nother)? folder"):
            RunFolder.open(path, Config())
    assert contents(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a file system that refuses root too")
def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(FolderNotWritable, match="cannot write to /sys/kernel/run"):
        RunFolder.open("/sys/kernel/run", Config())


def test_a_read_only_folder_is_refused_and_left_as_it_was(small_disk):
    (small_disk / "a").mkdir()
    RunFolder.open(small_disk / "b", Config()).close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = contents(small_disk)
    for path in ("a", "b", "c"):
        with pytest.raises(FolderNotWritable, match="read-only"):
            RunFolder.open(small_disk / path, Config())
    assert contents(small_disk) == before == ["a", "b", "b/config.json"]


def test_a_full_disk_is_noticed_before_the_work(small_disk):
    with pytest.raises(FolderNotWritable, match="needs 1 MB"):
        RunFolder.open(small_disk / "deep" / "run", Config(), expected_bytes=1_000_000)
    assert contents(small_disk) == []
    RunFolder.open(small_disk / "fits", Config(), expected_bytes=100_000).close()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(1 << 20))
    with pytest.raises(FolderNotWritable, match="the disk is full"):
        RunFolder.open(small_disk / "run", Config())
    assert contents(small_disk) == ["filler", "fits", "fits/config.json"]


def test_a_full_disk_is_noticed_without_root_too(tmp_path, monkeypatch):
    """The small disk again for those who cannot mount one: the system call itself says no."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderNotWritable, match="the disk is full"):
        RunFolder.open(tmp_path / "deep" / "run", Config())
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(FolderNotWritable, match="name a folder on another disk"):
        RunFolder.open(tmp_path / "deep" / "run", Config(), expected_bytes=2)
    assert contents(tmp_path) == []


def test_an_atomic_write_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})

    def fails(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, "new")
    assert contents(tmp_path) == ["a.json"]
    assert json.loads(path.read_text()) == {"a": 2, "b": 1}


def test_resuming_rewinds_the_metrics_and_mends_a_half_written_line(tmp_path):
    with RunFolder.open(tmp_path / "a", Config()) as run:
        for step in (10, 20, 30, 40):
            run.log(row(step))
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')
    assert [entry["step"] for entry in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [10, 20, 30, 40]
    with RunFolder.open(tmp_path / "a", Config(), resume=True) as run:
        run.rewind(20)
        run.log(row(30))
        with pytest.raises(ValueError, match="rewind"):
            run.log(row(30))
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_rows_appended_without_a_rewind_do_not_run_into_a_half_written_line(tmp_path):
    with RunFolder.open(tmp_path / "a", Config()) as run:
        run.log(row(10))
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 20')
    with RunFolder.open(tmp_path / "a", Config(), resume=True) as run:
        run.log(row(20))
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row(10), row(20)]


def test_a_row_that_json_cannot_hold_is_refused_whole(tmp_path):
    with RunFolder.open(tmp_path / "a", Config()) as run:
        run.log(row(1))
        with pytest.raises(ValueError, match="JSON"):
            run.log(row(2, kl=float("inf")))
        run.log(row(2))
    assert read_metrics(tmp_path / "a" / "metrics.jsonl") == [row(1), row(2)]


def test_differences_of_configurations_name_nested_and_missing_fields():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}, {"a": 1, "b": {"c": 5, "d": 3}, "f": 6}
    assert config_differences(old, new) == ["b.c: 2 -> 5", "e: 4 -> '(absent)'", "f: '(absent)' -> 6"]
    assert config_differences(old, old) == []
    with pytest.raises(TypeError, match="not object"):
        plain({"a": object()})


def test_importing_run_folders_does_not_import_jax():
    code = "import sys, vbjax.runs, vbjax.cards, vbjax.progress; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
