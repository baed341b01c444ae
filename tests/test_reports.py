"""Pages are self-contained, well-formed and escaped; numbers and formulas say what they mean."""

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from vbjax import reports
from vbjax.derivations import check, identities, select
from vbjax.reports.derivations import derivations_section
from vbjax.types import Estimate

VOID = {"img", "meta", "link", "br", "hr", "wbr", "col"}


class Checker(HTMLParser):
    """Collects ids, anchors and headings, and raises on a tag that is closed out of order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.headings = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []

    def handle_startendtag(self, tag, attrs):
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(document):
    checker = Checker()
    checker.feed(document)
    checker.close()
    assert checker.open == []
    return checker


def drawing(label="loss"):
    with reports.figure_style():
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.plot([0, 1, 2], [0, 1, 4], label=label)
        axes.fill_between([0, 1, 2], [0, 1, 1], alpha=0.2)
        axes.legend()
    return figure


@pytest.fixture(scope="module")
def verdicts():
    names = ["naive-mc-marginal-likelihood", "elbo-support-condition", "gaussian-kl-full-covariance"]
    found = [check(identity) for identity in select(names)]
    return [*found[:2], dataclasses.replace(found[2], error=1.0)]


@pytest.fixture(scope="module")
def document(verdicts):
    pictures = reports.section(
        "Pictures",
        reports.figure(drawing(), name="first", alt="A curve", caption="Its *caption* with $x^2$."),
        reports.figure(drawing("a < b & c"), name="second", alt="Another <curve>"),
        reports.image_grid([(reports.png(np.eye(8)), "an identity"), (reports.png(np.zeros((4, 4, 3))), "black")]),
        reports.details("More", reports.code("def f(x):\n    return x < 1  # <b>\n")),
    )
    return reports.page(
        "Tests & <trials>",
        [derivations_section(verdicts), pictures],
        subtitle="A page with $\\log p(x)$ and `code`.",
        provenance={"command": "vbjax tour --seed 0", "note": "<unsafe>"},
    )


def test_page_is_well_formed_with_unique_ids_and_live_anchors(document):
    page = parsed(document)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.headings[0] == 1
    assert all(later - earlier <= 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))


def test_page_loads_nothing_and_runs_nothing(document):
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", document)
    assert "http:" not in without_names
    assert "https:" not in without_names
    assert "<script" not in document
    assert "@import" not in document
    assert re.findall(r'src="(?!data:)', document) == []


def test_svg_and_mathml_are_well_formed_xml(document):
    figures = re.findall(r"<svg.*?</svg>", document, flags=re.S)
    formulas = re.findall(r"<math.*?</math>", document, flags=re.S)
    assert len(figures) == 3
    assert len(formulas) >= 5
    for piece in figures + formulas:
        ElementTree.fromstring(piece)
    assert all("<title" in svg and 'role="img"' in svg for svg in figures)


def test_page_is_deterministic(verdicts):
    def build():
        return reports.page("t", [derivations_section(verdicts), reports.section("s", reports.figure(
            drawing(), name="curve", alt="c"))])  # fmt: skip

    assert build() == build()


def test_hostile_text_is_escaped_everywhere():
    hostile = '<script>alert("&")</script>'
    pieces = [
        reports.element("p", hostile, title=hostile),
        reports.prose(hostile),
        reports.prose(f"`{hostile}` *{hostile}*"),
        reports.badge(hostile),
        reports.code(hostile),
        reports.table([hostile], [[hostile]], caption=hostile),
        reports.details(hostile, hostile),
        reports.stat_tiles([(hostile, hostile)]),
        reports.image(reports.png(np.zeros((2, 2))), alt=hostile, caption=hostile),
        reports.figure(drawing(hostile), name="h", alt=hostile, caption=hostile),
    ]
    for piece in pieces:
        assert "<script" not in piece
        assert "&lt;script" in piece
    assert "<script" not in reports.page(hostile, [reports.section(hostile, hostile)], provenance={"a": hostile})


def test_markup_is_not_escaped_twice():
    assert reports.element("p", reports.element("b", "a & b")) == "<p><b>a &amp; b</b></p>"


def test_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="more than once"):
        reports.page("t", [reports.section("Same", "a"), reports.section("Same", "b")])


def test_red_verdicts_are_shown_as_such(document):
    assert document.count('class="card bad"') == 1
    assert "does not hold" in document
    assert "2 / 3" in document


def test_card_shows_both_sides_and_their_code(document):
    assert "def lhs(key, datum):" in re.sub(r"<[^>]+>", "", document)
    assert "def sides(case, q):" in re.sub(r"<[^>]+>", "", document)  # a helper that a side closes over
    assert "vbjax check elbo-support-condition" in document


@pytest.mark.parametrize("identity", identities(), ids=lambda identity: identity.id)
def test_every_formula_of_the_derivations_renders(identity):
    texts = [identity.control.claim, identity.correction or ""]
    formulas = [identity.statement, *(f for text in texts for f in re.findall(r"\$([^$]+)\$", text))]
    for latex in formulas:
        math = re.search(r"<math.*</math>", reports.formula(latex))[0]
        assert "\\" not in "".join(ElementTree.fromstring(math).itertext())


def test_unknown_latex_is_refused():
    with pytest.raises(ValueError, match="does not understand"):
        reports.formula(r"x \unknowncommand y")


@pytest.mark.parametrize(("value", "error", "expected"), [
    (-1.42122897, 0.00164, "−1.4212(16)"),
    (0.25637, 0.000371, "0.25637(37)"),
    (123.456, 5.61, "123.5(5.6)"),
    (1234.5, 56.0, "1234(56)"),
    (1.0, 0.0996, "1.00(10)"),
    (3.2e-7, 1.5e-8, "3.20(15) × 10⁻⁷"),
    (2.5, 0.0, "2.5"),
    (float("nan"), 1.0, "NaN"),
    (1.0, float("inf"), "1 ± ∞"),
])  # fmt: skip
def test_uncertain_numbers_keep_two_digits_of_their_error(value, error, expected):
    assert reports.uncertain(value, error) == expected


def test_plus_minus_form():
    assert reports.uncertain(-1.42122897, 0.00164, plus_minus=True) == "−1.4212 ± 0.0016"
    assert reports.uncertain(3.2e-7, 1.5e-8, plus_minus=True) == "(3.20 ± 0.15) × 10⁻⁷"


@pytest.mark.parametrize(("value", "expected"), [
    (0, "0"), (-2.5, "−2.5"), (1e-9, "10⁻⁹"), (2.5e-13, "2.50 × 10⁻¹³"), (1234567.0, "1.23 × 10⁶"),
    (float("-inf"), "−∞"), (3, "3"), (99999.96, "100000"),
])  # fmt: skip
def test_plain_numbers(value, expected):
    assert reports.number(value) == expected


def test_table_takes_numbers_of_every_kind():
    row = ["a", 1.5, np.float32(2.5), jnp.array(3.5), Estimate(jnp.array(4.25), jnp.array(0.25), 9), 7]
    table = reports.table(["name", "b", "c", "d", "e", "f"], [row])
    assert re.findall(r'<td class="number">([^<]*)</td>', table) == ["1.5", "2.5", "3.5", "4.25(25)", "7"]
    assert '<th scope="row">a</th>' in table
    ElementTree.fromstring(table)


def test_png_round_trip():
    from io import BytesIO

    from PIL import Image

    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(Image.open(BytesIO(reports.png(pixels)))), pixels)
