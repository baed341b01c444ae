"""Every notebook runs from top to bottom as plain Python, its own assertions the test, and reads as py:percent."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vbjax.derivations import CHAPTERS, check, identities, select
from vbjax.reports.derivation_pictures import PICTURES, account

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
WITHOUT = {8, 10, 11}
"""Chapters that no notebook is about: codes of conditional VAEs, energy-based and directed models, attention."""
LONGEST = 6
"""Lines of a function that is glue: more would be mathematics, which belongs into the library."""

each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(text):
    """Pairs of a kind and a source, as jupytext reads the percent format; what is malformed raises ValueError."""
    markers = list(re.finditer(r"^#\s*%%.*$", text, flags=re.M))
    if not markers or text[: markers[0].start()].strip():
        raise ValueError("a notebook begins with a cell marker")
    found = []
    for marker, following in zip(markers, [*markers[1:], None], strict=True):
        kinds = {"# %%": "code", "# %% [markdown]": "markdown"}
        if marker[0] not in kinds:
            raise ValueError(f"no marker of a cell: {marker[0]!r}")
        found.append((kinds[marker[0]], text[marker.end() : following.start() if following else None].strip("\n")))
    return found


def prose(source):
    """The text of a markdown cell; ValueError for a line that is no comment or a dollar sign without its partner."""
    lines = source.splitlines()
    if not lines or any(line != "#" and not line.startswith("# ") for line in lines):
        raise ValueError(f"not a comment throughout: {source!r}")
    text = "\n".join(line[2:] for line in lines)
    if re.sub(r"\$\$[^$]+\$\$|\$[^$\n]+(\n[^$\n]+)?\$|`[^`]*`", "", text).count("$"):
        raise ValueError(f"a formula that does not end: {text!r}")
    return text


def definitions(source):
    """Names of classes, and of functions longer than glue."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST)
    ]


def named_in(source):
    """Strings that look like the id of an entry."""
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return {text for text in strings if isinstance(text, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", text)}


@pytest.mark.slow
@each
def test_notebook_runs(notebook, tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error", notebook],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert list(tmp_path.iterdir()) == []


def test_every_chapter_has_a_notebook_that_checks_its_entries_but_those_named():
    chapter_of = {identity.id: identity.chapter for identity in identities()}
    checked = {chapter_of[name] for path in NOTEBOOKS for name in named_in(path.read_text("utf-8")) & chapter_of.keys()}
    assert checked == CHAPTERS.keys() - WITHOUT


@each
def test_notebook_is_in_the_percent_format(notebook):
    found = cells(notebook.read_text("utf-8"))
    assert found[0][0] == "markdown"
    assert prose(found[0][1]).startswith("# ")
    for kind, source in found:
        if kind == "markdown":
            prose(source)
        else:
            compile(source, notebook.name, "exec")
    written = "\n".join(f"# %%{' [markdown]' if kind == 'markdown' else ''}\n{source}" for kind, source in found)
    assert written.split() == notebook.read_text("utf-8").split(), "not what it was, read and written again"


@pytest.mark.parametrize(
    "wrong",
    ["import jax\n# %%\n", "# %% [md]\n# a\n", "#%%\nx = 1\n"],
    ids=["code before the first cell", "an unknown kind", "a marker without its space"],
)
def test_what_is_no_percent_format_is_seen(wrong):
    with pytest.raises(ValueError, match="marker"):
        cells(wrong)


@pytest.mark.parametrize("wrong", ["# a\nb", "# half of $x", "#a"])
def test_what_is_no_markdown_is_seen(wrong):
    with pytest.raises(ValueError, match=r"comment|formula"):
        prose(wrong)


@each
def test_notebook_imports_and_does_not_define(notebook):
    assert definitions(notebook.read_text("utf-8")) == []


def test_definitions_are_seen():
    assert definitions("class A: ...\ndef f():\n" + "    x = 1\n" * 6 + "def g():\n" + "    x = 1\n" * 5) == ["A", "f"]


@each
def test_notebook_names_entries_and_pictures_that_there_are(notebook):
    text = notebook.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "PICTURES":
            assert node.slice.value in PICTURES
    named = named_in(text)
    assert named <= {identity.id for identity in identities()}
    assert named or notebook.stem == "variational_bound"


def test_an_account_tells_both_sides_the_control_and_the_slide():
    text = account(check(*select(["gan-gda-rotation"])), rows=2)
    for said in ("library", "= oracle", "3.38102", "1.25", "… and 1 more", "holds", "control rejected", "on the slide"):
        assert said in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_picture_shows_itself_in_a_notebook():
    drawn = PICTURES["gan-gda-rotation"]()
    assert "<svg" in drawn._repr_html_()
    assert "background: white" in drawn._repr_html_()
