"""The table of planted faults fits the code, and what plants and judges them tells a proof from an accident."""

import ast
import functools

import pytest

from tests.mutants import MUTATIONS
from tests.mutants.mutation import Mutation
from tests.mutants.trial import ROOT, fault_of, is_test


@functools.cache
def text(path):
    return path.read_text()


@functools.cache
def functions(path):
    return {node.name for node in ast.parse(text(path)).body if isinstance(node, ast.FunctionDef)}


def entries():
    found = (functions(path) for path in (ROOT / "vbjax" / "derivations").glob("*.py"))
    return {name.replace("_", "-") for names in found for name in names}


def test_every_mutation_applies_exactly_once_and_parses():
    assert [(m.name, fault) for m in MUTATIONS if (fault := fault_of(m, text(ROOT / "vbjax" / m.file)))] == []


def test_every_killer_exists():
    known, missing = entries(), []
    for killer in {killer for mutation in MUTATIONS for killer in mutation.killers}:
        file, _, name = killer.partition("::")
        there = functions(ROOT / "tests" / file) if is_test(killer) else known
        if (name.partition("[")[0] if is_test(killer) else killer) not in there:
            missing.append(killer)
    assert missing == []


def test_names_are_unique_in_their_file():
    names = [(m.file, m.name) for m in MUTATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("x * 2", "x * 3", "0 times"),
    ("x", "y", "2 times"),
    ("x + 1", "x +", "does not parse"),
])  # fmt: skip
def test_a_line_of_the_table_that_does_not_fit_says_why(old, new, message):
    assert message in str(fault_of(Mutation("f.py", "n", old, new, ("k",)), "x + 1 if x else 0"))


def test_a_mutation_without_a_killer_is_refused():
    assert fault_of(Mutation("f.py", "n", "1", "2", ()), "1") == "it names no killer"
