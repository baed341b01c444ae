"""The table of planted faults fits the code, and what plants and judges them tells a proof from an accident."""

import functools
import json
import os
import re

import pytest

from tests.mutants import MUTATIONS
from tests.mutants.__main__ import main, workers
from tests.mutants.mutation import Mutation, within
from tests.mutants.trial import ROOT, Complaint, fault_of, is_test, judged, try_out
from vbjax.derivations import identities


@functools.cache
def text(path):
    return path.read_text()


def functions(path):
    return set(re.findall(r"^def (\w+)", text(path), re.MULTILINE))


def test_every_mutation_applies_exactly_once_and_parses():
    assert [(m.name, fault) for m in MUTATIONS if (fault := fault_of(m, text(ROOT / "vbjax" / m.file)))] == []


def test_every_killer_exists():
    entries = {identity.id for identity in identities()}
    missing = []
    for killer in {killer for mutation in MUTATIONS for killer in mutation.killers}:
        file, _, test = killer.partition("::")
        known = test.partition("[")[0] in functions(ROOT / "tests" / file) if is_test(killer) else killer in entries
        missing += [] if known else [killer]
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


def test_only_a_proof_or_the_expected_exception_kills():
    slip, loud = Mutation("f.py", "n", "1", "2", ("k",)), Mutation("f.py", "n", "1", "2", ("k",), "NotConverged")
    crash = Complaint("k", "vbjax.exact.NotConverged: at 64 nodes", noticed=False)
    assert judged(slip, None).fate == "survived"
    assert judged(slip, Complaint("k", "the sides differ", noticed=True)).fate == "killed"
    assert judged(slip, crash).fate == "broke"
    assert judged(loud, crash).fate == "killed"
    assert judged(loud, crash._replace(detail="ImportError: NotConverged")).fate == "broke"


def test_every_killer_can_be_asked_alone(capsys):
    assert main(["--list", "--json", "--every-killer"]) == 0
    asked = [(row["file"], row["mutation"], row["by"]) for row in json.loads(capsys.readouterr().out)]
    assert asked == [(m.file, m.name, killer) for m in MUTATIONS for killer in m.killers]


@pytest.mark.slow
def test_a_slip_is_killed_a_rewriting_survives_and_a_broken_program_is_neither():
    bounds, old = within("bounds.py"), "return self.reconstruction - self.kl"
    by_tests = "test_bounds.py::test_elbo_terms_and_log_weights_agree_on_the_linear_gaussian_instance"
    planted = [
        bounds(f"{name} by {killer}", old, new, killer)
        for killer in ("elbo-reconstruction-minus-kl", by_tests)
        for name, new in [
            ("slip", "return self.reconstruction + self.kl"),
            ("rewriting", "return -(self.kl - self.reconstruction)"),
            ("name", "return self.reconstruction - self.kll"),
        ]
    ]
    planted += [bounds("import", "import itertools\n", "import iterfools\n", by_tests)]
    before, environment = text(ROOT / "vbjax" / "bounds.py"), dict(os.environ)
    with workers(1) as pool:
        outcomes = list(pool.map(try_out, planted))
    assert os.environ == environment
    assert [outcome.fate for outcome in outcomes] == ["killed", "survived", "broke"] * 2 + ["broke"]
    assert [outcome.by for outcome in outcomes[::3]] == ["elbo-reconstruction-minus-kl", by_tests, by_tests]
    assert (ROOT / "vbjax" / "bounds.py").read_text() == before
