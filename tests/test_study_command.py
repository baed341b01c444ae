"""The command `vbjax study`: a user's file from start to page, mistakes told by line, refusals that write nothing."""

import csv
import json
import re

import pytest

from vbjax import cli

GOOD = '''\
import jax
import jax.numpy as jnp
from vbjax.distributions import Bernoulli
from vbjax.estimators import score_function

params = {"logit": 0.3}


def problem(p):
    """A coin that should land on its edge."""
    return Bernoulli(p["logit"]), lambda b: (b - 0.45) ** 2


def mine(samples):
    return score_function(samples)


def wrong(samples):
    def surrogate(state, z, f, q):
        values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
        signal = jax.lax.stop_gradient(values - values.mean())
        return jnp.mean(values + signal * (log_q - jax.lax.stop_gradient(log_q)))

    return score_function(samples)._replace(surrogate=surrogate)
'''
HEAD = "import jax.numpy as jnp\nfrom vbjax.distributions import Normal\nparams = {'loc': 0.5}\n"


def run(*arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(["study", *map(str, arguments)])
    return left.value.code


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "edge.py"
    path.write_text(GOOD)
    return path


def test_a_users_file_becomes_a_table_rows_and_a_page(good, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (good, "--estimators", "mine", f"{good}:wrong", "--samples", 2, "--sweep", "logit=0,1")
    arguments = (*arguments, "--replications", "4e3", "--out", out)
    assert run(*arguments) == 1  # the wrong one contradicts what it says of itself
    shown = capsys.readouterr()
    assert "CONTRADICTS ITS SPECIFICATION wrong" in shown.out
    assert "0 exactly" in shown.out
    with (out / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["at logit"], row["estimator"], row["outcome"]) for row in rows] == [
        ("0.0", "mine", "unbiased"),
        ("0.0", "wrong", "biased"),
        ("1.0", "mine", "unbiased"),
        ("1.0", "wrong", "biased"),
    ]
    assert all(row["commit"] is not None and row["seed"] == "0" and row["versions"] for row in rows)
    page = (out / "index.html").read_text()
    assert "A coin that should land on its edge." in page
    assert len(re.findall("<svg", page)) == 2
    assert "contradicts its specification" in page

    assert run(*arguments) == 2
    assert "--resume" in capsys.readouterr().err
    before = (out / "study.csv").read_text()
    assert run(*arguments, "--resume") == 1
    numbers = re.compile(r",started.*|,\d{4}-.*", re.S)
    assert numbers.sub("", (out / "study.csv").read_text()) == numbers.sub("", before)
    good.write_text(GOOD.replace("0.45", "0.46"))
    assert run(*arguments, "--resume") == 2
    assert "another configuration" in capsys.readouterr().err


def test_json_is_valid_and_alone_on_standard_output(good, capsys):
    assert run(good, "--estimators", "mine", "--quick", "--replications", 1000, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["estimator"], row["replications"], row["exact"]) == ("mine", 1000, False)


MISTAKES = {
    "syntax": ("def problem(p)\n    pass\n", r"bad.py:1: SyntaxError: expected ':'\n    def problem\(p\)"),
    "import": (HEAD + "x = jnp.zeros(3) @ jnp.zeros(4)\n", r"bad.py:4: TypeError: .*\n    x = jnp.zeros\(3\) @"),
    "exit": (HEAD + "raise SystemExit(3)\n", r"bad.py:4: it calls sys.exit"),
    "key": (HEAD + "def problem(p):\n    return Normal(p['lok'], 1.0), abs\n", r"bad.py:5: KeyError: 'lok'"),
    "no law": (HEAD + "def problem(p):\n    return p['loc'], abs\n", r"bad.py:4: bad must return a law of"),
    "no pair": (
        HEAD + "def problem(p):\n    Normal(p['loc'], 1.0)\n",
        r"must return \(q, f\).* nothing \(is there",
    ),
    "vector": (
        HEAD + "def problem(p):\n    return Normal(p['loc'], 1.0), lambda z: jnp.stack([z, z])\n",
        r"bad.py:5: f of bad must return one number of one event z, not an array of shape \(2,\): sum",
    ),
    "integer": (
        HEAD + "def problem(p):\n    return Normal(p['loc'], 1.0), lambda z: jnp.int32(1)\n",
        r"must .* not int32",
    ),
    "nan": (HEAD + "def problem(p):\n    return Normal(p['loc'], 1.0), jnp.log\n", r"f of bad is NaN at \d+ of 16"),
    "params": ("def problem(p):\n    pass\n", r"bad.py:1: problem needs its parameters beside it: params = "),
    "text": ("params = {'loc': 'a'}\ndef problem(p):\n    pass\n", r"parameter loc of bad is 'a', not a number"),
    "surrogate": (
        "from vbjax.estimators import pathwise\n\ndef mine(samples):\n    return pathwise(samples)._replace(\n"
        "        surrogate=lambda state, z, f, q: f(z[0]) * q.lgprob(z))\n",
        r"bad.py:5: AttributeError: .*lgprob.*\n    surrogate=lambda",
    ),
    "surrogate's shape": (
        "from vbjax.estimators import pathwise\n\ndef mine(samples):\n    return pathwise(samples)._replace(\n"
        "        surrogate=lambda state, z, f, q: z)\n",
        r"bad.py:5: the surrogate of mine must return one number .* not an array of shape \(1,\)",
    ),
    "no estimator": ("def mine(samples):\n    return 3\n", r"bad.py:1: mine\(1\) returned a value of"),
    "nothing": ("x = 1\n", r"bad.py defines no problem and no estimator. A file to start from:(\n.*)+def problem"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_users_file_is_told_by_its_line(name, tmp_path, monkeypatch, capsys):
    text, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text)
    assert run("bad.py", "--replications", 1000, "--out", "out") == cli.BAD_INPUT
    shown = capsys.readouterr()
    assert re.match("error: .*?" + message, shown.err), shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sqare"], "did you mean square"),
        (["square", "--estimators", "patwise"], "did you mean pathwise"),
        (["square", "--sweep", "lok=0:1:3"], "did you mean loc"),
        (["square", "--sweep", "loc=0:1"], "NAME=lo:hi:n"),
        (["square", "--samples", "0"], "whole number from 1"),
        (["square", "--replications", "1.5"], "whole number from 1"),
        (["square", "--replications", "1"], "at least 2"),
        (["square", "--resume"], "--out"),
        (["missing.py"], "no such file"),
        (["square", "--delta", "0"], "positive number"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, capsys):
    assert run(*arguments) == cli.BAD_INPUT
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1]
    assert shown.out == ""


def test_the_list_has_every_problem_and_estimator_and_the_files_own(good, capsys):
    assert run("--list", good, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"square", "coin-rebar", "edge"} <= {entry["name"] for entry in listed["problems"]}
    assert {"score", "rloo", "pathwise", "mine"} <= {entry["name"] for entry in listed["estimators"]}
    assert run("--list") == 0
    assert "leave-one-out" in capsys.readouterr().out
