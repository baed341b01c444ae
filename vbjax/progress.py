"""What a person sees while a run trains: a live bar on a terminal, a line now and then in a log file.

Start at `Progress`. It writes to stderr, so that JSON on stdout stays whole.
"""

import sys
import time
from collections.abc import Mapping
from io import TextIOBase
from typing import IO, cast

_PACE = ("step", "seconds", "seconds_left")


class Progress:
    """Shows the rows of `training.fit`: loss and terms, throughput, time left. A context manager.

    quiet: show nothing. seconds_between_lines: how often a log file, which cannot redraw a bar, gets a line.
    unit: what is counted in a second; a row has it as `examples_per_second`.
    """

    def __init__(
        self,
        steps: int,
        *,
        quiet: bool = False,
        stream: TextIOBase | None = None,
        seconds_between_lines: int | float = 10,
        unit: str = "examples",
    ):
        self.unit = unit
        self.steps, self.quiet, self.stream = steps, quiet, stream if stream is not None else sys.stderr
        self.seconds_between_lines, self._last_line = seconds_between_lines, -float("inf")
        self._bar = None
        if not quiet and self.stream.isatty():
            self._bar = self._live_bar()

    def _live_bar(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        # Redrawn by `update` alone: a refreshing thread would take its share of the training's cores.
        columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        bar = Bar(*columns, console=Console(file=cast(IO[str], self.stream)), auto_refresh=False)
        self._task = bar.add_task("", total=self.steps)
        return bar

    def update(self, row: Mapping[str, int | float]) -> None:
        """Show one row."""
        if self.quiet:
            return
        terms = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if not _is_pace(name))
        pace = row[f"{self.unit}_per_second"]
        rounded = f"{pace:,.0f}" if pace >= 10 else f"{pace:.2g}"
        speed = f"{rounded} {self.unit}/s  {duration(row['seconds_left'])} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=f"{terms}  {speed}")
            self._bar.refresh()
            return
        now = time.monotonic()
        if now - self._last_line >= self.seconds_between_lines or row["step"] >= self.steps:
            self._last_line = now
            print(f"step {row['step']}/{self.steps}  {terms}  {speed}", file=self.stream, flush=True)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _is_pace(name: str) -> bool:
    return name in _PACE or name.endswith("_per_second")


def duration(seconds: int | float) -> str:
    """Return a duration as a person reads it: 42 s, 3:05 min, 2:07 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
