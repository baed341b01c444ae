"""The page of `vbjax check --report`: an index, errata with numbers, every entry with code and, for some, a picture."""

import dataclasses
import os
import re
from html import unescape
from xml.etree import ElementTree

import pytest

from vbjax.derivations import check, identities, select
from vbjax.derivations.command import run_checks
from vbjax.reports.derivation_pictures import PICTURES
from vbjax.reports.derivations import report, report_writer
from vbjax.runs import RunError


def text(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def part(document, name):
    return re.search(rf'<section id="{name}".*?</section>', document, flags=re.S)[0]


@pytest.fixture(scope="module")
def verdicts():
    names = ["dataset-elbo-bracketing", "elbo-support-condition", "reverse-kl-behaviour", "vae-diagonal-decoder"]
    return [check(identity) for identity in select(names)]


@pytest.fixture(scope="module")
def document(verdicts):
    return report(verdicts, provenance={"command": "vbjax check --report DIR"})


def test_index_lists_every_entry_under_its_lecture_and_slide(document, verdicts):
    index = part(document, "by-lecture-and-slide")
    for v in verdicts:
        assert f'href="#{v.identity.id}"' in index
        assert f"«{v.identity.slide}»" in index
    assert re.findall(r'id="(lecture-\d+)"', index) == ["lecture-000", "lecture-004"]


def test_errata_show_the_checked_number_beside_the_slides_own(document, verdicts):
    found = text(part(document, "errata-of-the-slides"))
    v = verdicts[0]
    assert v.identity.control.on_slide
    right, wrong = (f"{side.values[0]:.6g}".replace("-", "−") for side in (v.rhs, v.control))
    assert f"mean bound = {right} {wrong}" in found
    assert "leaves the direction out" in found


def test_formulas_and_pictures_are_well_formed_and_nothing_is_loaded(document):
    pieces = re.findall(r"<math.*?</math>|<svg.*?</svg>", document, flags=re.S)
    for piece in pieces:
        ElementTree.fromstring(piece)
    assert sum("<svg" in piece for piece in pieces) == 2  # all errors, and one entry's picture
    assert "<script" not in document
    assert re.findall(r'(?:src|href)="(?!data:|#)', document) == []


def test_failing_draw_is_shown_with_the_code_that_repeats_it(verdicts):
    other = dataclasses.replace(verdicts[3], instance=verdicts[3].instance._replace(x=(1.0, 2.0, 3.0, 4.0)), error=1.0)
    shown = text(part(report([*verdicts, other]), "entries"))
    assert "another instance" in shown
    assert "instance=DiagonalDecoder(x=( 1.0" in shown or "x=(1.0" in shown.replace("( ", "(")


def test_every_picture_belongs_to_an_entry():
    assert set(PICTURES) <= {identity.id for identity in identities()}


def test_every_correction_of_the_slides_own_words_exists():
    """A control that is the slide's has something to correct."""
    assert all(i.correction for i in identities() if i.control.on_slide)


def test_writer_refuses_a_folder_that_it_cannot_write_before_any_work(tmp_path, verdicts, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        report_writer(tmp_path / "file")
    report_writer(tmp_path / "page")(verdicts[:1])
    assert "Variational" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "index.html" in capsys.readouterr().err


def stopped(_):
    raise ZeroDivisionError("a <side> was divided by zero & stopped")


@pytest.mark.parametrize("name", ["vae-diagonal-decoder", "sds-gradient"])  # one exact, one sampled
def test_an_entry_whose_side_raises_has_a_card_that_says_so(name, verdicts):
    (identity,) = select([name])
    broken = check(dataclasses.replace(identity, rhs=stopped))
    document = report([verdicts[1], broken])
    ElementTree.fromstring(shown := re.search(rf'<article[^>]* id="{name}".*?</article>', document, flags=re.S)[0])
    assert "The check stopped: ZeroDivisionError: a <side> was divided by zero & stopped" in unescape(text(shown))
    assert "stopped by an error" in text(part(document, "by-lecture-and-slide"))


def test_a_picture_that_raises_leaves_the_page_standing(verdicts, monkeypatch):
    monkeypatch.setitem(PICTURES, "reverse-kl-behaviour", lambda: stopped(None))
    document = report(verdicts)
    assert "No picture, it stopped: ZeroDivisionError" in text(document)
    assert 'id="vae-diagonal-decoder"' in document


@pytest.mark.parametrize("as_json", [True, False])
def test_a_page_that_cannot_be_built_loses_no_verdict(as_json, capsys):
    def broken(_):
        raise ValueError("no page")

    with pytest.raises(ValueError, match="no page"):
        run_checks(["bits-back-compression"], as_json=as_json, publish=broken)
    assert "bits-back-compression" in capsys.readouterr().out


def test_a_page_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path, verdicts):
    for _ in range(2):
        report_writer(tmp_path)(verdicts[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_page_that_stops_half_way_leaves_the_one_before(tmp_path, verdicts, monkeypatch):
    (tmp_path / "index.html").write_text("before")
    monkeypatch.setattr(os, "fsync", lambda _: stopped(None))
    with pytest.raises(ZeroDivisionError):
        report_writer(tmp_path)(verdicts[:1])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_drawn(name):
    svg = re.search(r"<svg.*</svg>", PICTURES[name](), flags=re.S)[0]
    assert len(ElementTree.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}path")) > 5
