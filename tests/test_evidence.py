"""The commands `vbjax conformance` and `vbjax published`: their exit statuses, refusals and JSON."""

import json

import pytest

from vbjax import cli
from vbjax.studies import conformance, published


def no_number(name):
    raise AssertionError(f"{name} is not JSON")


def status(*arguments):
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    return leaving.value.code


def test_conformance_prints_strict_json_and_leaves_with_one_for_a_broken_promise(capsys, monkeypatch):
    assert status("conformance", "--methods", "arm", "--laws", "Normal", "--json") == 0
    cells = json.loads(capsys.readouterr().out, parse_constant=no_number)
    assert {cell["verdict"] for cell in cells} == {"refused"}
    assert all(cell["bias"] is None and "Bernoulli" in cell["how"] for cell in cells)

    broken = conformance.Cell("arm", 1, "Normal", "smooth", "q", "biased", "tested", float("inf"), True)
    monkeypatch.setattr(conformance, "conformance", lambda *args, **kwargs: iter([broken]))
    assert status("conformance", "--json") == 1
    assert json.loads(capsys.readouterr().out, parse_constant=no_number)[0]["bias"] is None


@pytest.mark.parametrize("command", [("conformance", "--methods", "arm"), ("published", "coin-arm")])
def test_unknown_names_are_refused_before_any_work(command, capsys, monkeypatch):
    def work(quick):
        raise AssertionError("a case was computed")

    monkeypatch.setitem(published.CASES, "coin-arm", work)
    assert status(*command, "coin-amr") == cli.BAD_INPUT
    assert "coin-amr" in capsys.readouterr().err


def test_a_document_of_an_interrupted_run_says_that_it_is_incomplete(tmp_path, capsys, monkeypatch):
    cells = [conformance.Cell("arm", 1, law, "smooth", "q", "unbiased", "exact") for law in ("Normal", "Bernoulli")]

    def judged(*arguments, **options):
        yield from cells
        if stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(conformance, "conformance", judged)
    document = tmp_path / "conformance.md"
    asked = ("conformance", "--laws", "Normal", "Bernoulli", "--no-tests", "--seed", "3", "--markdown", str(document))
    for stop in (True, False):
        if stop:
            with pytest.raises(KeyboardInterrupt):
                cli.main([*asked, "--json"])
        else:
            assert status(*asked, "--json") == 0
        text = document.read_text()
        assert "`vbjax conformance --laws 'Normal' 'Bernoulli' --no-tests --seed 3 --markdown FILE`" in text
        assert ("**Incomplete**: 1 of 2 laws are done, still missing: Bernoulli." in text) == stop
        assert ("| Bernoulli" in text.replace("still missing: Bernoulli", "")) == (not stop)
