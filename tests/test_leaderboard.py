"""The leaderboard: every row on the same integers, masses and not densities, kept row by row, refused before work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for, z_threshold
from scipy import stats

from experiments import likelihoods
from vbjax import cards, datasets, em, leaderboard
from vbjax.distributions import MultivariateNormal
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


GRID = np.indices((3, 3)).reshape(2, -1).T.astype(np.uint8)[:, None, :]


@pytest.mark.parametrize("family", ["normals", "categoricals"])
def test_exact_rows_of_em_sum_to_one_over_all_images(family):
    train = GRID[np.random.default_rng(0).choice(9, size=60, p=np.arange(1, 10) / 45)]
    data = datasets.Dataset("toy", 3, train, np.zeros(60, np.int32), GRID, np.zeros(9, np.int32))
    made = {
        "normals": (em.diagonal_gaussians(2, floor=0.05), False),
        "categoricals": (em.categorical_mixture(2, 3), True),
    }
    entry = leaderboard.by_em(jax.random.key(0), family, made[family][0], data, of_integers=made[family][1])
    assert entry.measured == "exact"
    assert float(np.exp(np.asarray(entry.evidence.nats, np.float64)).sum()) == pytest.approx(1, rel=1e-5)


def test_dequantised_rows_are_the_masses_of_the_cells_within_their_stated_error():
    mean, covariance = np.array([0.8, 1.3]), np.array([[0.7, 0.5], [0.5, 0.9]])
    law = MultivariateNormal(mean, np.linalg.cholesky(covariance))
    cells = GRID.reshape(9, 2)
    found = leaderboard._dequantised(jax.random.key(0), law.log_prob, jnp.asarray(cells), 2000)

    def mass(cell, half):
        return stats.multivariate_normal(mean, covariance).cdf(cell + half, lower_limit=cell - half)

    def check(half):
        masses = np.array([mass(cell, half) for cell in cells])
        z = (np.exp(found.nats) / masses - 1) / np.sqrt(found.variance)
        assert np.abs(z).max() < z_threshold(9)

    holds_only_for(check, 0.5, 0.55)


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
    assert "pixels look back" in (folder / "index.html").read_text()
    assert (folder / "pictures" / "leaderboard.png").stat().st_size > 1000
    (folder / "rows" / "categoricals.npz").unlink()
    again = likelihoods.main(TINY, likelihoods.Run(out=folder, quiet=True, resume=True))
    assert again.numbers == card.numbers
    other = dataclasses.replace(TINY, rows=("counted", "categoricals"), components=3)
    overwritten = likelihoods.main(other, likelihoods.Run(out=folder, quiet=True, overwrite=True))
    assert overwritten.numbers["categoricals"] != card.numbers["categoricals"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ("nonsense",)}, "rows must be among"),
        ({"rows": ("bernoullis",)}, "rows must be among"),
        ({"hidden": ()}, "hidden"),
        ({"components": 0}, "components"),
        ({"components": 2000}, "1347"),
        ({"annealing_steps": 5}, "eval_samples"),
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
