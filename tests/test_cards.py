"""Result cards: what is written can be read, and what is not a result is refused with the field's name."""

import json
import subprocess

import jax
import pytest

from vbjax.cards import Card, InvalidCard, git_commit, load_card, number, provenance, write_card


@pytest.fixture
def card():
    numbers = {
        "elbo": number(-95.25, 0.5, unit="nats"),
        "parameters": number(652_824, unit="count"),
    }
    return Card("digits-vae", numbers, {"learning_rate": 1e-3}, 0, 12.5, provenance())


def test_a_card_comes_back_as_it_was_written(card, tmp_path):
    write_card(tmp_path / "card.json", card)
    assert load_card(tmp_path / "card.json") == card
    low, high = card.numbers["elbo"].interval
    # A normal 95% interval; the wrong variant, one standard error, is half as wide.
    assert (low, high) == pytest.approx((-96.22998, -94.27002), abs=1e-5)
    assert card.numbers["parameters"].interval is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("numbers", "elbo", "value"), float("nan")),
        (("numbers", "elbo", "value"), "low"),
        (("numbers", "elbo", "standard_error"), -1.0),
        (("numbers", "elbo", "standard_error"), None),
        (("numbers", "elbo", "interval"), [0.0, 1.0]),
        (("numbers", "elbo", "unit"), None),
        (("seed",), "zero"),
        (("wall_seconds",), -1),
        (("name",), ""),
        (("provenance",), {}),
        (("numbers", "elbo"), 3.0),
    ],
)
def test_a_damaged_card_is_refused_by_field(card, tmp_path, path, value):
    write_card(tmp_path / "card.json", card)
    document = json.loads((tmp_path / "card.json").read_text())
    inside = document
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    (tmp_path / "card.json").write_text(json.dumps(document))
    with pytest.raises(InvalidCard, match=path[0]):
        load_card(tmp_path / "card.json")


def test_a_bad_card_is_never_written(card, tmp_path):
    with pytest.raises(InvalidCard, match="elbo"):
        write_card(tmp_path / "card.json", card._replace(numbers={"elbo": number(float("inf"), unit="nats")}))
    with pytest.raises(InvalidCard, match="not a result card"):
        load_card(tmp_path / "card.json")
    assert list(tmp_path.iterdir()) == []


def test_provenance_names_what_computed(card):
    found = card.provenance
    assert found["versions"]["jax"] == jax.__version__
    assert found["device"]["platform"] == jax.devices()[0].platform
    assert found["started"].endswith("+00:00")
    assert found["command"]


def test_the_commit_counts_only_for_tracked_code(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init")
    (tmp_path / "package").mkdir()
    code = tmp_path / "package" / "code.py"
    code.write_text("x = 1\n")
    assert git_commit(tmp_path / "package") is None
    git("add", ".")
    git("commit", "-m", "first")
    clean = git_commit(tmp_path / "package")
    assert len(clean["hash"]) == 40
    assert clean["dirty"] is False
    code.write_text("x = 2\n")
    assert git_commit(tmp_path / "package") == {"hash": clean["hash"], "dirty": True}
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "code.py").write_text("x = 3\n")
    assert git_commit(tmp_path / "site-packages") is None
