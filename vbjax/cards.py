"""The result card of a run: numbers with their uncertainty, and everything that a rerun needs, as checked JSON.

Start at `Card`; `write_card` refuses what `load_card` would not read. `provenance` says what produced the numbers
of this process: command, commit, device, versions.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

from vbjax.runs import Plain, RunError, write_json


class InvalidCard(RunError):  # noqa: N818 - it reads as what was found
    """A result card does not hold what a result card holds."""


class Number(NamedTuple):
    """A result with its uncertainty; an exact one has none. interval: 95%, in the same unit."""

    value: int | float
    standard_error: int | float | None
    interval: tuple[int | float, int | float] | None
    unit: str


def number(value: SupportsFloat, standard_error: SupportsFloat | None = None, *, unit: str) -> Number:
    """Return a result with its normal 95% interval."""
    if standard_error is None:
        return Number(float(value), None, None, unit)
    half = 1.959963984540054 * float(standard_error)
    return Number(float(value), float(standard_error), (float(value) - half, float(value) + half), unit)


class Card(NamedTuple):
    """The result of one run: everything that a table, a reviewer or a rerun needs."""

    name: str
    numbers: dict[str, Number]
    config: Plain
    seed: int
    wall_seconds: int | float
    provenance: Plain


def write_card(path: Path, card: Card) -> None:
    """Write a result card; raises InvalidCard rather than writing one that `load_card` would refuse."""
    document = card._asdict() | {"numbers": {name: entry._asdict() for name, entry in card.numbers.items()}}
    _validate_card(document, path)
    write_json(path, document)


def summary(card: Card) -> str:
    """Return the numbers of a card as aligned lines, each with its 95% interval where it has one."""

    def line(name: str, entry: Number) -> str:
        shown = f"{name:<{width}}  {entry.value:.5g} {entry.unit}"
        return shown if entry.interval is None else f"{shown}  [{entry.interval[0]:.5g}, {entry.interval[1]:.5g}]"

    width = max(map(len, card.numbers), default=0)
    return "\n".join(line(name, entry) for name, entry in card.numbers.items())


def load_card(path: str | Path) -> Card:
    """Read and check a result card; raises InvalidCard, naming the field."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidCard(f"{path} is not a result card: {error}") from error
    return _validate_card(document, path)


def _validate_card(document: Any, path: Path) -> Card:
    def require(field: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise InvalidCard(f"{path}: {field} must be {wanted}")

    def finite(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    require("the card", isinstance(document, dict) and {*document} == {*Card._fields}, f"fields {Card._fields}")
    require("name", isinstance(document["name"], str) and document["name"] != "", "a string")
    require("seed", isinstance(document["seed"], int), "an integer")
    require("wall_seconds", finite(document["wall_seconds"]) and document["wall_seconds"] >= 0, "a duration")
    for field in ("numbers", "config", "provenance"):
        require(field, isinstance(document[field], dict), "an object")
    for field in _PROVENANCE:
        require(f"provenance.{field}", field in document["provenance"], "there")
    numbers = {}
    for name, entry in document["numbers"].items():
        field = f"numbers.{name}"
        require(field, isinstance(entry, dict) and {*entry} == {*Number._fields}, f"fields {Number._fields}")
        require(f"{field}.value", finite(entry["value"]), "a finite number")
        require(f"{field}.unit", isinstance(entry["unit"], str), "a string")
        error, interval = entry["standard_error"], entry["interval"]
        require(field, (error is None) == (interval is None), "given a standard error and an interval, or neither")
        if error is not None:
            require(f"{field}.standard_error", finite(error) and error >= 0, "zero or a positive number")
            ordered = len(interval) == 2 and all(map(finite, interval))
            ordered = ordered and interval[0] <= entry["value"] <= interval[1]
            require(f"{field}.interval", ordered, "two numbers around the value")
            interval = (interval[0], interval[1])
        numbers[name] = Number(entry["value"], error, interval, entry["unit"])
    return Card(**(document | {"numbers": numbers}))


_PROVENANCE = ("command", "commit", "device", "started", "versions")
_DISTRIBUTIONS = ("variational-bayes-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def provenance() -> Plain:
    """Return what produces the numbers of this process: command, commit, device, versions and the time (UTC)."""
    return {
        "command": shlex.join(sys.argv),
        "commit": git_commit(Path(__file__).parent),
        "device": device(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
    }


def git_commit(folder: Path) -> dict[str, str | bool] | None:
    """Return the commit of the checkout that tracks `folder`, and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An installed package may lie inside a stranger's checkout: only one that tracks this code counts.
        if not git("ls-files", "--", "."):
            return None
        return {"hash": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def device() -> Plain:
    """Return the devices that JAX computes on."""
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
        "host": f"{platform.machine()}, {os.cpu_count()} cores",
    }
