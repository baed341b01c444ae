"""Plant one mutation in a copy of the package, run its killers there, and say which of them noticed.

The checkout is never touched. A killer is a process of its own, the command that a person would type; it counts as
having noticed when an identity fails, a control passes or an assertion does not hold. Start at `Workplace`.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.mutants.mutation import Mutation

ROOT = Path(__file__).parents[2]
SECONDS = 300
"""Within which a killer must answer."""


class Outcome(NamedTuple):
    """What became of a mutation: "killed", "survived", or what kept the question open ("broke", "timed out").

    by: the killer that noticed or broke. detail: its words.
    """

    mutation: Mutation
    fate: str
    by: str = ""
    detail: str = ""
    seconds: float = 0


class Complaint(NamedTuple):
    """The first killer that is not content. noticed: whether by a proof, and not by an accident."""

    killer: str
    detail: str
    noticed: bool


class TimedOut(Exception):  # noqa: N818 - it reads as the answer that it is
    """A killer did not answer in time."""


def fault_of(mutation: Mutation, source: str) -> str | None:
    """What is wrong with a line of the table, given the file's text; None if it can be planted."""
    count = source.count(mutation.old)
    if count != 1:
        return f"the old text occurs {count} times in vbjax/{mutation.file}, not once"
    try:
        ast.parse(planted(mutation, source))
    except SyntaxError as error:
        return f"the mutated vbjax/{mutation.file} does not parse: {error}"
    return None if mutation.killers else "it names no killer"


def planted(mutation: Mutation, source: str) -> str:
    """The file's text with the fault in it."""
    return source.replace(mutation.old, mutation.new)


class Workplace:
    """A copy of the package and its tests in a temporary folder, for one mutation at a time. A context manager."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-")
        self.root = Path(self._folder.name)
        self._count = 0

    def __enter__(self) -> "Workplace":
        for name in ("vbjax", "tests", "experiments", "benchmarks", "notebooks"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy2(ROOT / "pyproject.toml", self.root)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def try_out(self, mutation: Mutation) -> Outcome:
        """Plant the mutation, ask its killers, and take it out again."""
        path = self.root / "vbjax" / mutation.file
        source, stamp = path.read_text(), path.stat()
        if fault := fault_of(mutation, source):
            return Outcome(mutation, "broke", detail=fault)
        begin = time.monotonic()
        path.write_text(planted(mutation, source))
        # Python finds compiled files by size and whole second: no two mutations may share them
        self._count += 1
        os.utime(path, (self._count, self._count))
        try:
            outcome = self._ask(mutation)
        finally:
            path.write_text(source)
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        return outcome._replace(seconds=time.monotonic() - begin)

    def _ask(self, mutation: Mutation) -> Outcome:
        try:
            complaint = self.first_complaint(mutation.killers)
        except TimedOut as late:
            return Outcome(mutation, "timed out", detail=str(late))
        if complaint is None:
            return Outcome(mutation, "survived")
        expected = mutation.raises is not None and complaint.detail.split(":")[0].endswith(mutation.raises)
        fate = "killed" if complaint.noticed or expected else "broke"
        return Outcome(mutation, fate, complaint.killer, complaint.detail)

    def first_complaint(self, killers: Sequence[str]) -> Complaint | None:
        """The first of the killers that is red: the entries of `vbjax check` in one process, then the tests."""
        entries, tests = [k for k in killers if not is_test(k)], [k for k in killers if is_test(k)]
        return next(iter(self.complaints(entries, tests, first=True)), None)

    def complaints(self, entries: Sequence[str], tests: Sequence[str], *, first: bool = False) -> Iterable[Complaint]:
        """Complaints of entries and tests; first: the tests stop at theirs."""
        if entries:
            yield from self._entries(entries)
        if tests:
            yield from self._tests(tests, first)

    def _entries(self, names: Sequence[str]) -> Iterable[Complaint]:
        run = self._python("-m", "vbjax.cli", "check", *names, "--json")
        if run.returncode not in (0, 1) or not run.stdout.startswith("["):
            yield Complaint("vbjax check " + " ".join(names), last_line(run.stderr), noticed=False)
            return
        for row in json.loads(run.stdout):
            if row["failure"]:
                yield Complaint(row["id"], row["failure"], noticed=False)
            elif not row["holds"]:
                yield Complaint(row["id"], "the sides differ", noticed=True)
            elif not row["control_rejected"]:
                yield Complaint(row["id"], "the control passes", noticed=True)

    def _tests(self, names: Sequence[str], first: bool) -> Iterable[Complaint]:
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        options = ("-q", "-p", "no:cacheprovider", "--junitxml", str(report), *(["-x"] if first else []))
        run = self._python("-m", "pytest", *options, *(f"tests/{name}" for name in names))
        if run.returncode == 0:
            return
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        found = [(case, bad) for case in cases for bad in (*case.findall("failure"), *case.findall("error"))]
        if run.returncode != 1 or not found:
            yield Complaint(" ".join(names), last_line(run.stdout + run.stderr), noticed=False)
            return
        for case, bad in found:
            message = bad.get("message", "")
            noticed = bad.tag == "failure" and message.startswith(("assert", "AssertionError", "Failed:"))
            name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
            yield Complaint(name, message.strip().partition("\n")[0][:200], noticed)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(self.root),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # what a mutation does not touch was compiled by the tests before
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        }
        command = [sys.executable, *arguments]
        try:
            return subprocess.run(
                command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise TimedOut(f"no answer within {SECONDS} s: {' '.join(arguments)}") from None


def is_test(killer: str) -> bool:
    """Whether a killer is a test, and not an entry of `vbjax check`."""
    return "::" in killer


def last_line(text: str) -> str:
    """What a program said in the end."""
    return (text.strip().splitlines() or [""])[-1][:200]
