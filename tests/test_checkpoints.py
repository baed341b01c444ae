"""Checkpoints: a kill at any moment resumes to the same bits, and what is not whole never passes for whole."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from vbjax.checkpoints import (
    CheckpointDamaged,
    CheckpointFolder,
    CheckpointMismatch,
    CheckpointNotSaved,
    NonFiniteState,
    expected_bytes,
    tree_sha256,
)
from vbjax.runs import read_metrics
from vbjax.training import init_state, make_optimizer

CONFIG = {"hidden": 6, "seed": 0}
METRICS = {10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5}


def state_at(step, hidden=6):
    """A state whose every leaf depends on the step, as a trained one does."""
    params = {"w": jax.random.normal(jax.random.key(step), (5, hidden)), "b": jnp.full(hidden, float(step))}
    optimizer = make_optimizer(learning_rate=1e-3, clip_norm=1.0)
    return init_state(params, optimizer, ema_decay=0.9)._replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    with CheckpointFolder(path, config=CONFIG, provenance={"commit": None}) as folder:
        for step, metric in METRICS.items():
            folder.save(state_at(step), metric=metric)
    return path


@pytest.fixture
def checkpoints(saved, tmp_path):
    """A fresh copy to damage: steps 20 (the best), 30 and 40."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def largest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def test_the_last_few_and_the_best_are_kept_and_come_back_to_the_bit(checkpoints):
    with CheckpointFolder(checkpoints, config=CONFIG) as folder:
        assert folder.steps == [20, 30, 40]
        latest, best = folder.restore_latest(state_at(0)), folder.restore_best(state_at(0))
        assert (latest.step, latest.metric, best.step, best.metric) == (40, 2.5, 20, 1.0)
        assert (latest.config, latest.provenance) == (CONFIG, {"commit": None})
        assert latest.sha256 == tree_sha256(latest.state) == tree_sha256(state_at(40))
        assert jax.tree.structure(latest.state) == jax.tree.structure(state_at(0))
        # A new best takes the old one's place, also in a process that did not write the old one.
        folder.save(state_at(50), metric=0.5)
        folder.save(state_at(60), metric=3.0)
        assert folder.steps == [50, 60]


def test_the_digest_changes_with_every_part_of_a_tree():
    tree = {"a": np.arange(4, dtype=np.float32), "b": {"c": np.int32(1)}}
    assert tree_sha256(tree) == tree_sha256({"b": {"c": jnp.int32(1)}, "a": jnp.arange(4.0)})
    changed = [
        tree | {"a": np.nextafter(tree["a"], np.float32(9))},
        tree | {"a": tree["a"].astype(np.float64)},
        tree | {"a": tree["a"].reshape(2, 2)},
        {"a2": tree["a"], "b": tree["b"]},
        {"a": tree["a"]},
    ]
    assert len({tree_sha256(other) for other in [tree, *changed]}) == 6
    with pytest.raises(TypeError, match="random key"):
        tree_sha256({"key": jax.random.key(0)})


@pytest.mark.parametrize("damage", [flip_bit, truncate, os.remove])
@pytest.mark.parametrize("part", ["arrays", "record/metadata", "state/manifest.ocdbt", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_noticed_and_the_last_whole_one_takes_over(checkpoints, damage, part, capfd):
    if (damage, part) == (os.remove, "SHA256SUMS"):
        pytest.skip("without its digests a checkpoint is still guarded by those of its leaves: see below")
    damage(largest_file(checkpoints / "40" / "state") if part == "arrays" else checkpoints / "40" / part)
    said = []
    with CheckpointFolder(checkpoints, config=CONFIG, warn=said.append) as folder:
        found = folder.restore_latest(state_at(0))
        assert (found.step, tree_sha256(found.state)) == (30, tree_sha256(state_at(30)))
        assert said == folder.warnings
        assert len(said) == 1
        assert said[0].startswith("checkpoint 40 is damaged (")
        assert said[0].endswith("falling back to checkpoint 30 (the damaged one is now damaged-40)")
        # Training goes on from there and writes step 40 again.
        assert folder.save(state_at(40), metric=2.5) == tree_sha256(state_at(40))
        assert folder.restore_latest(state_at(0)).step == 40
    assert (checkpoints / "damaged-40").is_dir()
    assert capfd.readouterr() == ("", "")


def test_wrong_arrays_behind_right_file_digests_are_noticed(checkpoints):
    """The digests of files vouch for files alone: here those of another whole state."""
    shutil.rmtree(checkpoints / "40" / "state")
    shutil.copytree(checkpoints / "30" / "state", checkpoints / "40" / "state")
    (checkpoints / "40" / "SHA256SUMS").unlink()
    with CheckpointFolder(checkpoints, config=CONFIG) as folder:
        assert folder.restore_latest(state_at(0)).step == 30
        assert "its arrays do not have the SHA-256" in folder.warnings[0]


def test_the_file_digests_can_be_checked_without_us(checkpoints):
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=checkpoints / "40").returncode == 0
    flip_bit(largest_file(checkpoints / "40" / "state"))
    assert subprocess.run(check, cwd=checkpoints / "40", capture_output=True).returncode == 1


def test_a_damaged_best_is_not_silently_replaced(checkpoints):
    truncate(checkpoints / "20" / "record" / "metadata")
    with CheckpointFolder(checkpoints, config=CONFIG) as folder:
        assert folder.restore_best(state_at(0)).step == 30
        assert folder.warnings[0].startswith("checkpoint 20 is damaged")


def test_when_none_is_whole_that_is_an_error_and_all_stay(checkpoints):
    for step in (20, 30, 40):
        truncate(largest_file(checkpoints / str(step) / "state"))
    for _ in range(2):
        with CheckpointFolder(checkpoints, config=CONFIG) as folder:
            with pytest.raises(CheckpointDamaged, match=r"checkpoint 40 .* checkpoint 30 .* checkpoint 20 "):
                folder.restore_latest(state_at(0))
            assert folder.steps == [20, 30, 40]


def test_a_checkpoint_of_another_architecture_is_refused_and_kept(checkpoints):
    with CheckpointFolder(checkpoints, config=CONFIG | {"hidden": 7}) as folder:
        with pytest.raises(CheckpointMismatch) as caught:
            folder.restore_latest(state_at(0, hidden=7))
        assert caught.value.leaf == "params/b"
        for part in ("params/b is float32[6] there and float32[7] here", "hidden: 6 -> 7"):
            assert part in str(caught.value)
        assert folder.warnings == []
        with pytest.raises(CheckpointMismatch, match=r"ema/b is float32.* there and absent here"):
            folder.restore_latest(state_at(0)._replace(ema=None))
        half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), state_at(0))
        with pytest.raises(CheckpointMismatch, match="bfloat16"):
            folder.restore_latest(half)
        assert folder.restore_latest(state_at(0)).step == 40


def test_a_contaminated_state_is_never_saved(checkpoints):
    with CheckpointFolder(checkpoints, config=CONFIG) as folder:
        state = state_at(50)
        for broken in (
            state._replace(params=state.params | {"b": state.params["b"].at[0].set(jnp.nan)}),
            state._replace(ema=state.ema | {"w": state.ema["w"] * jnp.inf}),
        ):
            with pytest.raises(NonFiniteState, match="at step 50"):
                folder.save(broken, metric=0.0)
        with pytest.raises(ValueError, match="metric"):
            folder.save(state, metric=float("nan"))
        assert folder.steps == [20, 30, 40]
        assert folder.restore_latest(state).step == 40


@contextmanager
def full_disk():
    """No file may grow beyond 200 bytes: what a full disk does, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_one_checkpoint_and_no_other(checkpoints, capfd):
    before = sorted(checkpoints.rglob("*"))
    with CheckpointFolder(checkpoints, config=CONFIG) as folder:
        with full_disk(), pytest.raises(CheckpointNotSaved, match="checkpoint 50"):
            folder.save(state_at(50), metric=0.0)
        assert sorted(checkpoints.rglob("*")) == before
        assert folder.restore_best(state_at(0)).step == 20
        # And once there is room again:
        folder.save(state_at(50), metric=0.0)
        assert folder.steps == [40, 50]
    assert capfd.readouterr() == ("", "")


FILLED_UP = """
import sys
import jax.numpy as jnp
import tests.test_checkpoints as here
import vbjax.checkpoints as ours

ours._reserve = lambda folder, size: None
with ours.CheckpointFolder(sys.argv[1], config=here.CONFIG) as folder:
    try:
        with here.full_disk():
            folder.save(here.state_at(50), metric=0.0)
    except ours.CheckpointNotSaved:
        print("refused", folder.steps)
    print([path.name for path in folder.path.iterdir() if path.name.startswith("50")])
    folder.save(here.state_at(50), metric=0.0)
    print(folder.steps, folder.restore_best(here.state_at(0)).step)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_leaves_no_part_behind(checkpoints):
    """The room was there when asked for, so Orbax fails in several threads at once: in a process of its own."""
    command = [sys.executable, "-c", FILLED_UP, str(checkpoints)]
    process = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert process.stdout.splitlines() == ["refused [20, 30, 40]", "[]", "[40, 50] 50"]


def test_looking_leaves_a_folder_as_it_is(checkpoints, tmp_path):
    truncate(largest_file(checkpoints / "40" / "state"))
    unfinished = checkpoints / "50.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = sorted(checkpoints.rglob("*"))
    with CheckpointFolder(checkpoints, read_only=True) as folder:
        assert folder.restore_latest(state_at(0)).step == 30
        with pytest.raises(ValueError, match="read_only"):
            folder.save(state_at(50))
    assert sorted(checkpoints.rglob("*")) == before
    with CheckpointFolder(tmp_path / "nowhere", read_only=True) as folder:
        assert folder.restore_latest(state_at(0)) is None
    assert not (tmp_path / "nowhere").exists()
    CheckpointFolder(checkpoints).close()
    assert not unfinished.exists()


def test_the_expected_size_covers_what_is_written(checkpoints):
    size = sum(file.stat().st_size for file in checkpoints.rglob("*"))
    assert size < expected_bytes(state_at(0), keep_last=2) < 20 * size


DIGITS_RUN = """
import json, sys
import jax, jax.numpy as jnp
import numpy as np
from vbjax.checkpoints import CheckpointFolder, tree_sha256
from vbjax.runs import RunFolder
from vbjax.training import fit, init_state, make_optimizer

folder, resume, steps = sys.argv[1], "--resume" in sys.argv, 600
digits = jnp.asarray(np.load(sys.argv[2]))
sizes = {"encode": (64, 32), "latent": (32, 8), "decode": (4, 64)}
params = {name: 0.1 * jax.random.normal(key, sizes[name])
          for name, key in zip(sizes, jax.random.split(jax.random.key(0), 3))}

def batch(step):
    return digits[(step * 64 + jnp.arange(64)) % 1347].astype(jnp.float32)

def loss(key, params, x):
    mean, log_variance = jnp.split(jnp.tanh(x @ params["encode"]) @ params["latent"], 2, axis=1)
    z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    logits = z @ params["decode"]
    reconstruction = (x * logits - jax.nn.softplus(logits)).sum() / 64
    kl = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum() / 64
    return kl - reconstruction, {"reconstruction": reconstruction, "kl": kl}

optimizer = make_optimizer(learning_rate=3e-3, schedule="warmup_cosine", warmup_steps=50, steps=steps, clip_norm=9.0)
state = init_state(params, optimizer, ema_decay=0.99)
config = {"steps": steps, "seed": 0}
with RunFolder.open(folder, config, resume=resume) as run, CheckpointFolder(run.checkpoints, config=config) as kept:
    found = kept.restore_latest(state) if resume else None
    state = found.state if found else state
    run.rewind(int(state.step))

    def on_chunk(state, row):
        run.log(row)
        kept.save(state, metric=row["loss"])

    state = fit(jax.random.key(1), loss, batch, optimizer, state,
                steps=steps, chunk=20, ema_decay=0.99, on_chunk=on_chunk)
print(json.dumps({name: tree_sha256(getattr(state, name)) for name in ("params", "ema", "opt_state", "step")}))
"""


@pytest.mark.slow
def test_killed_at_three_random_moments_a_run_ends_with_the_same_bits(tmp_path):
    """Kill -9 strikes a real process while it trains, saves or logs; what is left must be enough, each time."""
    script = tmp_path / "digits_run.py"
    script.write_text(DIGITS_RUN)
    digits = tmp_path / "digits.npy"
    np.save(digits, (load_digits().data[:1347] > 7.5).astype(np.uint8))

    def start(folder, *options):
        """Run the script; its output goes to files, because nobody reads a pipe while waiting for a kill."""
        command = [sys.executable, "-W", "error", str(script), str(tmp_path / folder), str(digits), *options]
        # XLA on CPU comments on stderr whatever it loads from a compilation cache; here every byte there counts.
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        with open(tmp_path / f"{folder}.out", "w") as out, open(tmp_path / f"{folder}.err", "w") as err:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=err)

    def finish(process, folder):
        process.wait(timeout=120)
        assert (process.returncode, (tmp_path / f"{folder}.err").read_text()) == (0, "")
        return json.loads((tmp_path / f"{folder}.out").read_text())

    def rows(folder):
        return read_metrics(tmp_path / folder / "metrics.jsonl")

    undisturbed = start("whole")
    seed = random.SystemRandom().randrange(2**32)
    moments = sorted(random.Random(seed).sample(range(1, 28), 3))
    for number, moment in enumerate(moments):
        process = start("killed", *(["--resume"] if number else []))
        deadline = time.monotonic() + 120
        while len(rows("killed")) < moment:
            assert process.poll() is None, f"seed {seed}: {(tmp_path / 'killed.err').read_text()}"
            assert time.monotonic() < deadline, f"seed {seed}: no row {moment} within two minutes"
            time.sleep(0.001)
        time.sleep(random.Random(seed + number).uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}: finished before the kill"
    killed, whole = finish(start("killed", "--resume"), "killed"), finish(undisturbed, "whole")
    assert killed == whole, f"seed {seed}, kills after rows {moments}"

    assert [row["step"] for row in rows("killed")] == list(range(20, 601, 20))
    for ours, theirs in zip(rows("killed"), rows("whole"), strict=True):
        assert [ours[name] for name in ("loss", "kl", "reconstruction")] == [
            theirs[name] for name in ("loss", "kl", "reconstruction")
        ]
    assert rows("whole")[-1]["loss"] < rows("whole")[0]["loss"] - 5
