"""The command line: help without JAX, exit statuses, refusals in one line."""

import subprocess
import sys

import pytest

from vbjax import canary, cli


def test_help_and_the_package_import_no_jax():
    help_then_look = "import sys, vbjax.cli\ntry: vbjax.cli.main(['--help'])\nexcept SystemExit: pass\n"
    code = help_then_look + "assert 'jax' not in sys.modules"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "tour" in answer.stdout


def test_an_unknown_command_leaves_with_code_2(capsys):
    with pytest.raises(SystemExit) as refusal:
        cli.main(["tuor"])
    assert refusal.value.code == cli.BAD_INPUT
    assert "tour" in capsys.readouterr().err


def test_exit_with_turns_the_named_errors_alone_into_one_line(capsys):
    with pytest.raises(SystemExit) as refusal, cli.exit_with(3, KeyError, ValueError):
        raise ValueError("said once")
    assert refusal.value.code == 3
    assert capsys.readouterr().err == "error: said once\n"
    with pytest.raises(RuntimeError), cli.exit_with(3, KeyError):
        raise RuntimeError


@pytest.mark.parametrize("command", ["check", "study", "conformance", "published", "tour"])
def test_nothing_is_done_by_a_jax_that_computes_wrong_numbers(command, monkeypatch, capsys):
    monkeypatch.setattr(canary, "refusal", lambda: "jax 9.9 computes wrong numbers")
    with pytest.raises(SystemExit) as refusal:
        cli.main([command])
    assert refusal.value.code == cli.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: nothing was done, for jax 9.9 computes wrong numbers\n"


@pytest.mark.parametrize("command", ["check", "study", "published"])
def test_a_list_is_not_worth_the_question(command, monkeypatch, capsys):
    monkeypatch.setattr(canary, "refusal", None)
    with pytest.raises(SystemExit) as leaving:
        cli.main([command, "--list"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out
