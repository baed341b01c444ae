"""The leaderboard: every row on the same integers, masses and not densities, kept row by row, refused before work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for

from experiments import likelihoods
from vbjax import cards, datasets, em, leaderboard
from vbjax.evaluation import Evidence
from vbjax.leaderboard import Entry
from vbjax.reports.leaderboard import ranking, text_table

TINY = likelihoods.Config(
    rows=("counted", "categoricals", "autoregressive"),
    hidden=(8,),
    latent_dim=2,
    steps=20,
    samples=2,
    components=2,
    eval_samples=4,
    annealing_steps=0,
)


def test_independent_pixels_cost_the_empirical_cross_entropy():
    data = datasets.load("digits")
    entry = leaderboard.counted(data)
    train, test = data.train_images.reshape(-1, 64), data.test_images.reshape(-1, 64)

    def check(smoothing):
        total = 0.0
        for pixel in range(64):
            counts = np.bincount(train[:, pixel], minlength=17) + smoothing
            total -= np.log2(counts / counts.sum())[test[:, pixel]].mean()
        assert float(entry.likelihood.bits_per_dim.value) == pytest.approx(total / 64, rel=1e-5)

    holds_only_for(check, 0.1, 1.0)


@pytest.mark.parametrize("family", ["normals", "categoricals", "full"])
def test_rows_of_em_are_masses_that_sum_to_at_most_one(family):
    grid = np.indices((3, 3)).reshape(2, -1).T.astype(np.uint8)[:, None, :]
    rng = np.random.default_rng(0)
    train = grid[rng.choice(9, size=60, p=np.arange(1, 10) / 45)]
    labels = np.zeros(60, np.int32), np.zeros(9, np.int32)
    data = datasets.Dataset("toy", 3, train, labels[0], grid, labels[1])
    made = {
        "normals": (em.diagonal_gaussians(2, floor=0.05), False),
        "categoricals": (em.categorical_mixture(2, 3), True),
        "full": (em.full_gaussians(2, floor=0.05), False),
    }
    entry = leaderboard.by_em(jax.random.key(0), family, made[family][0], data, of_integers=made[family][1])
    mass = float(np.exp(np.asarray(entry.evidence.nats, np.float64)).sum())
    if entry.measured == "exact":
        assert mass == pytest.approx(1, rel=1e-5)
    else:
        # a density also gives mass to the outside of the grid
        assert 0.5 < mass < 1


def entry(name, nats):
    return Entry(name, "exact", Evidence(jnp.asarray(nats, jnp.float32), jnp.zeros(len(nats))), 4, 3, 0.1)


def test_rows_are_ranked_and_the_distance_to_the_best_is_paired():
    rng = np.random.default_rng(0)
    common = rng.normal(-10, 3, size=500)
    best, other = entry("best", common), entry("other", common - 1 + rng.normal(0, 0.1, size=500))
    assert [e.name for e in ranking([other, best])] == ["best", "other"]
    behind, unit = other.behind(best), 4 * np.log(2)
    assert float(behind.value) == pytest.approx(1 / unit, rel=0.02)
    assert float(behind.standard_error) == pytest.approx(0.1 / 500**0.5 / unit, rel=0.1)
    assert text_table([other, best]).splitlines()[1].startswith("best")


def test_the_script_keeps_its_rows_resumes_to_the_same_and_writes_a_page(tmp_path, capsys):
    folder = tmp_path / "run"
    card = likelihoods.main(TINY, likelihoods.Run(out=folder, quiet=True))
    assert cards.load_card(folder / "card.json") == card
    assert {path.stem for path in (folder / "rows").iterdir()} == set(TINY.rows)
    assert "VAE whose pixels look back" in (folder / "index.html").read_text()
    assert (folder / "pictures" / "leaderboard.png").stat().st_size > 1000
    (folder / "rows" / "categoricals.npz").unlink()
    again = likelihoods.main(TINY, likelihoods.Run(out=folder, quiet=True, resume=True))
    assert again.numbers == card.numbers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ("nonsense",)}, "rows must be among"),
        ({"rows": ("bernoullis",)}, "rows must be among"),
        ({"hidden": ()}, "hidden"),
        ({"components": 0}, "components"),
        ({"annealing_steps": -1}, "annealing_steps"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_folder(changes, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        likelihoods.main(dataclasses.replace(TINY, **changes), likelihoods.Run(out=tmp_path / "run", quiet=True))
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
