"""What every experiment script shares: its command line, its run folder, training with a bar and checkpoints, its card.

A script has one frozen `Config` and a `main(config, run)` of this shape:

    with preparing() as begin:                       # refuses what cannot be done, before anything is written
        ...
        experiment = Experiment.open("vae-digits", config, run, state, begin=begin)
    with experiment.running():
        state = experiment.train(key, loss, batch, optimizer, state, steps=config.steps)
        return experiment.finish(numbers, figures)
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tyro

from vbjax import cards, checkpoints, datasets, progress, runs, training
from vbjax.cli import BAD_INPUT, exit_with
from vbjax.types import NotAvailable, PRNGKey

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and how: none of it changes a number."""

    out: Path | None = None
    """Run folder. Default: runs/NAME, after the experiment and its data set."""
    resume: bool = False
    """Go on from the last whole checkpoint of the same configuration."""
    overwrite: bool = False
    """Delete what an earlier run left in the folder."""
    download: bool = False
    """Allow downloading the data set; nothing is downloaded otherwise."""
    data_files: Path | None = None
    """Folder with the published data files, for use without a network."""
    data_dir: Path | None = None
    """Where prepared data sets live. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, at least; they are made where a row of metrics is, and at the end."""
    json: bool = False
    """Print the result card as JSON on standard output."""
    quiet: bool = False
    """No progress bar and no summary."""


def command_line(description: str, default: C, *, by_dataset: Mapping[str, C] | None = None) -> tuple[C, Run]:
    """Read a configuration and a `Run` from the command line; the fields' docstrings are its help.

    description: the script's docstring. by_dataset: what `--dataset` starts from instead of the default.
    """
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--dataset")
    start = (by_dataset or {}).get(which.parse_known_args()[0].dataset, default)
    flat: Any = tyro.conf.OmitArgPrefixes
    fields = [("config", flat[type(default)]), ("run", flat[Run])]
    both = dataclasses.make_dataclass("Arguments", fields)
    arguments = tyro.cli(both, description=description, default=both(start, Run()))
    return arguments.config, arguments.run


@contextlib.contextmanager
def preparing() -> Iterator[float]:
    """Turn refusals into one line and exit status 2, before anything is written; yields the time at the start."""
    with exit_with(BAD_INPUT, ValueError, NotAvailable, runs.RunError, datasets.DatasetUnavailable):
        yield time.perf_counter()


def check_counts(config: Any, run: Run, **least: int) -> None:
    """Raise ValueError, naming the field, for a whole number below its least value (default 1) or above 2^31 - 1."""
    for name, value in [*dataclasses.asdict(config).items(), ("checkpoint_every", run.checkpoint_every)]:
        lowest = {"seed": 0, "eval_samples": 2, **least}.get(name, 1)
        if type(value) is int and not lowest <= value < 2**31:
            raise ValueError(f"{name} must be a whole number from {lowest} to 2^31 - 1, got {value}")


def load_data(name: str, run: Run, *, batch_size: int, validation: int = 0) -> datasets.Dataset:
    """A data set by name; raises ValueError for a batch that it does not fill.

    validation: training images that are held out and take the place of the test split; 0 leaves both as they are.
    """
    data = datasets.load(name, data_dir=run.data_dir, manual_dir=run.data_files, download=run.download)
    if validation:
        data = data.validation_split(validation)
    count = data.train_images.shape[0]
    if batch_size > count:
        raise ValueError(f"batch_size {batch_size} exceeds the {count} training examples of {name}")
    return data


class Experiment(NamedTuple):
    """One run that has been found possible: its folder is open, and every name and number goes there."""

    name: str
    config: Any
    run: Run
    folder: runs.RunFolder
    provenance: runs.Plain
    begin: float

    @classmethod
    def open(
        cls, name: str, config: Any, run: Run, state: training.TrainState | None = None, *, begin: float
    ) -> "Experiment":
        """Open the run folder; raises `runs.RunError`, naming the way out, for whatever would mix two runs or fill
        the disk. state: of the first step, for the size of its checkpoints; begin: of `preparing`.
        """
        folder = runs.RunFolder.open(
            run.out or Path("runs") / name,
            config,
            resume=run.resume,
            overwrite=run.overwrite,
            expected_bytes=0 if state is None else checkpoints.expected_bytes(state, keep_last=2),
        )
        return cls(name, config, run, folder, cards.provenance(), begin)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the folder; a loss or state that is not finite, or EM that falls, ends with exit status 1, a full disk
        with 2.
        """
        with (
            exit_with(BAD_INPUT, runs.RunError, OSError),
            exit_with(1, ArithmeticError, checkpoints.NonFiniteState),
            self.folder,
        ):
            yield

    def train(
        self,
        key: PRNGKey,
        loss: training.Loss,
        batch: training.Batch,
        optimizer: Any,
        state: training.TrainState,
        *,
        steps: int,
        chunk: int = 100,
        ema_decay: int | float = 0.0,
        measure: Callable[[training.TrainState, training.Row], training.Row] | None = None,
    ) -> training.TrainState:
        """`training.fit` with a bar, a row of metrics per chunk and checkpoints, from the last whole one if asked to.

        measure: adds columns to the row of a state.
        """

        def warn(line: str) -> None:
            print(f"warning: {line}", file=sys.stderr)

        with (
            checkpoints.CheckpointFolder(
                self.folder.checkpoints, config=self.folder.config, provenance=self.provenance, warn=warn
            ) as saved,
            progress.Progress(steps, quiet=self.run.quiet) as bar,
        ):
            restored = saved.restore_latest(state) if self.run.resume else None
            state = state if restored is None else restored.state
            self.folder.rewind(int(state.step))
            last_saved = int(state.step)

            def on_chunk(state: training.TrainState, row: training.Row) -> None:
                nonlocal last_saved
                self.folder.log(row if measure is None else measure(state, row))
                bar.update(row)
                step = int(row["step"])
                if step - last_saved >= self.run.checkpoint_every or step == steps:
                    saved.save(state, metric=row["loss"])
                    last_saved = step

            return training.fit(
                key,
                loss,
                batch,
                optimizer,
                state,
                steps=steps,
                chunk=chunk,
                ema_decay=ema_decay,
                on_chunk=on_chunk,
            )

    def finish(self, numbers: dict[str, cards.Number], figures: Mapping[str, Any]) -> cards.Card:
        """Save the pictures (matplotlib figures by name) and the result card, print it, and return it."""
        for name, figure in figures.items():
            figure.savefig(self.folder.picture(f"{name}.png"), dpi=160)
        seconds = time.perf_counter() - self.begin
        card = cards.Card(self.name, numbers, self.folder.config, self.config.seed, seconds, self.provenance)
        path = self.folder.path / "card.json"
        cards.write_card(path, card)
        if self.run.json:
            print(path.read_text(), end="")
        elif not self.run.quiet:
            print(cards.summary(card))
            print(f"card, metrics, checkpoints and pictures: {self.folder.path}/")
        return card
