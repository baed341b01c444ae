"""The tour: an exit status that tells, and refusals before work; `.ci/run` makes the page and looks for its parts."""

import dataclasses

import pytest

from vbjax import cli, datasets, leaderboard, runs
from vbjax import tour as tour_module
from vbjax.derivations import command
from vbjax.reports import section
from vbjax.tour import tour, vae

SMALL = {
    "ids": ["elbo-decomposition", "rloo-variance"],
    "methods": ["rloo", "straight_through"],
    "replications": 1000,
    "steps": 20,
}


@pytest.mark.slow
def test_a_check_that_fails_makes_the_exit_status_one_and_still_leaves_a_page(tmp_path, monkeypatch):
    right = command.verdicts_of

    def with_a_fault(chosen, *, seed):
        for verdict in right(chosen, seed=seed):
            yield dataclasses.replace(verdict, error=1.0)

    monkeypatch.setattr(command, "verdicts_of", with_a_fault)
    data = datasets.load("digits")
    trained = vae.Trained(*[None] * 6)._replace(data=data)
    monkeypatch.setattr(vae, "train", lambda key, *, steps: trained)
    monkeypatch.setattr(vae, "describe", lambda trained: (section("VAE", id="vae"), leaderboard.counted(data)))
    monkeypatch.setattr(tour_module, "conditional_section", lambda key, *, steps: section("Left out", id="conditional"))
    diffusion = section("Left out", id="diffusion"), leaderboard.counted(data)
    monkeypatch.setattr(tour_module, "diffusion_section", lambda key, *, steps: diffusion)
    monkeypatch.setattr(tour_module, "games_section", lambda: section("Left out", id="games"))
    monkeypatch.setattr(vae, "quick_rows", lambda key, data: [])
    monkeypatch.setattr(tour_module, "ESTIMATORS", tour_module.ESTIMATORS[:1])
    assert tour(tmp_path / "page", **SMALL) == 1
    assert "fails" in (tmp_path / "page" / "index.html").read_text()


def test_an_output_that_is_a_file_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "page").write_text("mine")
    with pytest.raises(SystemExit) as refusal:
        cli.main(["tour", "--out", str(tmp_path / "page")])
    assert refusal.value.code == cli.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "page").read_text() == "mine"


def test_a_seed_that_is_no_seed_is_refused(capsys):
    with pytest.raises(SystemExit) as refusal:
        cli.main(["tour", "--seed", "-1"])
    assert refusal.value.code == cli.BAD_INPUT
    assert "seed" in capsys.readouterr().err


def test_a_folder_that_is_made_for_the_page_does_not_survive_a_refusal(tmp_path, monkeypatch):
    def full(path, expected_bytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "_probe", full)
    with pytest.raises(runs.FolderNotWritable):
        runs.writable_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
