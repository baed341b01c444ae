"""Plant one mutation in a copy of the package, run its killers there, and say which of them noticed.

The checkout is never touched. The killers of a mutation are asked by the commands that a person would type, one process
for its entries and one for its tests; one has noticed when an identity fails, a control passes or an assertion does not
hold. Start at `Workplace`.
"""

import ast
import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.etree import ElementTree

from tests.mutants.mutation import Mutation

ROOT = Path(__file__).parents[2]
SECONDS = 300
"""Within which a killer must answer; several in one process have as much each."""

PRELOADED = ("jax", "jax.scipy.stats", "scipy.stats", "scipy.integrate", "scipy.optimize", "sklearn.mixture", "pytest",
             "sklearn.decomposition", "numpyro.distributions", "flax.linen", "optax", "rich.table")  # fmt: skip
"""What killers import, as far as it does no harm that it is there before they start."""


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


class Run(NamedTuple):
    """What a process left."""

    status: int
    stdout: str
    stderr: str


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


def judged(mutation: Mutation, complaint: Complaint | None) -> Outcome:
    """What a mutation's first complaint means; None is that nobody noticed."""
    if complaint is None:
        return Outcome(mutation, "survived")
    exception = complaint.detail.partition(":")[0].rpartition(".")[2]
    fate = "killed" if complaint.noticed or exception == mutation.raises else "broke"
    return Outcome(mutation, fate, complaint.killer, complaint.detail)


def planted(mutation: Mutation, source: str) -> str:
    """The file's text with the fault in it."""
    return source.replace(mutation.old, mutation.new)


class Workplace:
    """A copy of the package and its tests in an empty folder, for one mutation at a time."""

    def __init__(self, root: Path):
        self.root, self._count = root, 0
        for name in ("vbjax", "tests", "experiments", "benchmarks"):
            shutil.copytree(ROOT / name, root / name)
        shutil.copy2(ROOT / "pyproject.toml", root)

    def try_out(self, mutation: Mutation) -> Outcome:
        """Plant the mutation, ask its killers until one notices, and take it out again."""
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
            complaint = next(self.complaints(mutation.killers, first=True), None)
        except TimedOut as late:
            return Outcome(mutation, "timed out", detail=str(late))
        return judged(mutation, complaint)

    def complaints(self, killers: Sequence[str], *, first: bool = False) -> Iterator[Complaint]:
        """Complaints of the entries of `vbjax check`, then of the tests; first: the tests stop at theirs."""
        tests = [killer for killer in killers if is_test(killer)]
        if entries := [killer for killer in killers if killer not in tests]:
            yield from self._entries(entries)
        if tests:
            yield from self._tests(tests, first)

    def _entries(self, names: Sequence[str]) -> Iterator[Complaint]:
        run = self._python(len(names), "vbjax.cli", "check", *names, "--json")
        if run.status not in (0, 1) or not run.stdout.startswith("["):
            yield Complaint("vbjax check " + " ".join(names), last_line(run.stderr), noticed=False)
            return
        for row in json.loads(run.stdout):
            if row["failure"]:
                yield Complaint(row["id"], row["failure"], noticed=False)
            elif not row["holds"]:
                yield Complaint(row["id"], "the sides differ", noticed=True)
            elif not row["control_rejected"]:
                yield Complaint(row["id"], "the control passes", noticed=True)

    def _tests(self, names: Sequence[str], first: bool) -> Iterator[Complaint]:
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        options = (
            "-q",
            "-m",
            "not long",
            "-p",
            "no:cacheprovider",
            "--junitxml",
            str(report),
            *(["-x"] if first else []),
        )
        run = self._python(len(names), "pytest", *options, *(f"tests/{name}" for name in names))
        if run.status == 0:
            return
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        found = [(case, bad) for case in cases for bad in (*case.findall("failure"), *case.findall("error"))]
        if run.status != 1 or not found:
            yield Complaint(" ".join(names), last_line(run.stdout + run.stderr), noticed=False)
            return
        for case, bad in found:
            message = bad.get("message", "")
            noticed = bad.tag == "failure" and message.startswith(("assert", "AssertionError", "Failed:"))
            name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
            yield Complaint(name, message.strip().partition("\n")[0][:200], noticed)

    def _python(self, killers: int, *arguments: str) -> Run:
        """`python -m ...` in the copy, by a fork of this process, which has imported what takes long to import."""
        outputs = [self.root / name for name in ("stdout", "stderr")]
        child = os.fork()
        if child == 0:
            _become(self.root, arguments, outputs)
        deadline = time.monotonic() + SECONDS * killers
        try:
            while time.monotonic() < deadline:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    return Run(os.waitstatus_to_exitcode(status), *(path.read_text() for path in outputs))
                time.sleep(0.02)
            raise TimedOut(f"no answer within {SECONDS * killers} s: {' '.join(arguments)}")
        except BaseException:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise


_workplace: Workplace
"""Of this process, if it is a worker."""


def settle(folders: Any) -> None:
    """Make this process a worker, in the next of the folders; no computation may start in it, for it forks."""
    global _workplace
    _workplace = Workplace(folders.get())
    sys.dont_write_bytecode = False  # the copy is ours, and compiled once
    for name in PRELOADED:
        importlib.import_module(name)


def try_out(mutation: Mutation) -> Outcome:
    """A worker's answer to a mutation."""
    return _workplace.try_out(mutation)


def complaints(killers: Sequence[str]) -> list[Complaint]:
    """A worker's complaints without any mutation."""
    try:
        return list(_workplace.complaints(killers))
    except TimedOut as late:
        return [Complaint("a killer", str(late), noticed=False)]


def _become(root: Path, arguments: Sequence[str], outputs: Sequence[Path]) -> NoReturn:
    """Turn a forked process into `python -m ...` in the folder."""
    status: Any = 1
    try:
        os.setsid()  # one group to be killed, if it comes to that
        os.chdir(root)
        for number, path in enumerate(outputs, 1):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        # what was imported of the package is the checkout's
        for name in [name for name in sys.modules if name.partition(".")[0] in ("vbjax", "tests")]:
            del sys.modules[name]
        sys.path.insert(0, str(root))
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status) if isinstance(status, int) else 1)


def is_test(killer: str) -> bool:
    """Whether a killer is a test, and not an entry of `vbjax check`."""
    return "::" in killer


def last_line(text: str) -> str:
    """What a program said in the end."""
    return (text.strip().splitlines() or [""])[-1][:200]
