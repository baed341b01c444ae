"""experiments/vae.py and hierarchical_vae.py as users meet them: runs, exact resumes, refusals before any work."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import assert_refused

from experiments import hierarchical_vae, vae
from vbjax import cards, runs

TINY = vae.Config(
    likelihood="discretised_logistic_mixture",
    hidden=(16,),
    latent_dim=2,
    objective="elbo",
    samples=1,
    steps=200,
    batch_size=32,
    eval_samples=4,
)


def run_in(folder, **options):
    return vae.Run(out=folder, quiet=True, checkpoint_every=100, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, vae.main(TINY, run_in(folder))


def test_a_run_leaves_config_metrics_checkpoints_pictures_and_card(finished):
    folder, card = finished
    assert cards.load_card(folder / "card.json") == card
    assert json.loads((folder / "config.json").read_text())["likelihood"] == "discretised_logistic_mixture"
    assert [row["step"] for row in runs.read_metrics(folder / "metrics.jsonl")] == [100, 200]
    names = {path.stem for path in (folder / "pictures").iterdir()}
    assert names == {"reconstructions", "samples", "traversal", "latent_map", "latent_grid"}


def test_the_card_holds_a_likelihood_with_its_interval_in_the_stated_units(finished):
    _, card = finished
    nats, bits = card.numbers["iwae_4_nll"], card.numbers["bits_per_dim"]
    assert bits.value == pytest.approx(nats.value / (64 * np.log(2)))
    assert nats.value < card.numbers["negative_elbo"].value
    # uniform pixels cost log2(17) = 4.087 bits, independent ones 2.395; 200 steps land between
    assert 1.9 < bits.interval[0] < bits.interval[1] < 4.087


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_by_accident_and_resumes_to_the_same_numbers(finished, capsys):
    folder, card = finished
    with pytest.raises(SystemExit) as refusal:
        vae.main(TINY, run_in(folder))
    assert refusal.value.code == 2
    assert "--resume" in capsys.readouterr().err
    again = vae.main(TINY, run_in(folder, resume=True))
    assert again.numbers == card.numbers


def test_another_configuration_in_the_same_folder_is_refused_by_naming_the_field(finished, capsys):
    folder, _ = finished
    with pytest.raises(SystemExit) as refusal:
        vae.main(dataclasses.replace(TINY, learning_rate=2e-3), run_in(folder, resume=True))
    assert refusal.value.code == 2
    assert "learning_rate: 0.001 -> 0.002" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"batch_size": 5000}, "1347 training examples"),
        ({"batch_size": 0}, "batch_size"),
        ({"likelihood": "bernoulli"}, "read bits"),
        ({"dropout": 1.0}, "dropout"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"hidden": ()}, "hidden"),
        ({"eval_samples": -3}, "eval_samples"),
        ({"annealed_images": 1}, "annealed_images"),
        ({"annealed_images": 451}, "450 test images"),
        ({"validation": 1347}, "validation must be from 1 to 1346"),
        ({"svi_steps": 3, "encoder": "flow"}, "encoder 'diagonal' or 'full'"),
        ({"seed": 10**22}, "seed"),
        ({"steps": 3_000_000_000}, "steps"),
        ({"objective": "iwae"}, "samples must be at least 2 for objective 'iwae'"),
        ({"samples": 5}, "several draws are for iwae and renyi"),
        ({"beta": 2.0}, "beta is read by objective 'beta' only"),
        ({"objective": "beta", "beta": -1.0, "warmup_steps": 10}, "beta"),
        ({"objective": "free_bits", "prior": "vamp"}, "encoder 'diagonal' and prior 'standard'"),
        ({"objective": "free_bits", "warmup_steps": 10}, "warmup_steps"),
        ({"objective": "renyi", "samples": 5, "alpha": float("inf")}, "alpha"),
        ({"encoder": "flow", "latent_dim": 1}, "latent_dim"),
        ({"body": "conv", "features": (4, 4, 4, 4, 4)}, "features"),
    ],
)
def test_bad_input_leaves_with_code_2_one_line_and_no_folder(changes, said, tmp_path, capsys):
    assert_refused(vae.main, dataclasses.replace(TINY, **changes), run_in(tmp_path / "run"), said, capsys)


def test_everything_but_the_data_is_refused_before_the_data_are_looked_for(tmp_path, capsys):
    config = dataclasses.replace(TINY, dataset="mnist", learning_rate=-1.0)
    with pytest.raises(SystemExit) as refusal:
        vae.main(config, run_in(tmp_path / "run", data_dir=tmp_path / "data"))
    assert refusal.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_checkpoints_need_a_positive_distance(tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        vae.main(TINY, vae.Run(out=tmp_path / "run", quiet=True, checkpoint_every=0))
    assert refusal.value.code == 2
    assert "checkpoint_every" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup_steps": 10, "samples": 5}, "warmup_steps"),
        ({"latent_dims": (0, 4)}, "latent_dims"),
        ({"likelihood": "autoregressive_bernoulli"}, "does not go with digits"),
        ({"validation": 1347}, "validation"),
        ({"hidden_top": ()}, "hidden"),
        ({"batch_size": 5000}, "1347 training examples"),
    ],
)
def test_the_hierarchical_script_refuses_likewise(changes, said, tmp_path, capsys):
    config = dataclasses.replace(hierarchical_vae.Config(), **changes)
    assert_refused(hierarchical_vae.main, config, run_in(tmp_path / "run"), said, capsys)


@pytest.mark.long
def test_a_hierarchical_run_prices_each_level_and_resumes_to_the_same_numbers(tmp_path):
    config = hierarchical_vae.Config(
        latent_dims=(2, 4), hidden=(16,), hidden_top=(8,), samples=1, warmup_steps=50, steps=200, eval_samples=4
    )
    card = hierarchical_vae.main(config, run_in(tmp_path / "run"))
    kls = [card.numbers[name].value for name in ("kl_top", "kl_bottom")]
    assert min(kls) > 0
    total = sum(kls) - card.numbers["reconstruction"].value
    assert card.numbers["negative_elbo"].value == pytest.approx(total, rel=1e-5)
    assert hierarchical_vae.main(config, run_in(tmp_path / "run", resume=True)).numbers == card.numbers
    names = {path.stem for path in (tmp_path / "run" / "pictures").iterdir()}
    assert names == {"reconstructions", "samples", "levels", "codes_top", "codes_bottom"}


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "flow", "prior": "vamp", "body": "conv", "features": (4,)},
        {"encoder": "full", "prior": "flow", "objective": "renyi", "samples": 2, "annealed_images": 3},
        {"prior": "mixture", "objective": "capacity", "capacity": 5.0, "warmup_steps": 10},
        {"likelihood": "normal_predicted", "objective": "free_bits", "free_nats": 0.2},
        {"likelihood": "autoregressive_bernoulli", "binarise": "dynamic", "prior": "vamp"},
    ],
)
def test_every_option_trains_and_only_integers_are_priced_in_bits(changes, tmp_path):
    config = dataclasses.replace(TINY, steps=20, **changes)
    card = vae.main(config, run_in(tmp_path / "run"))
    assert ("bits_per_dim" in card.numbers) == (config.likelihood != "normal_predicted")
    assert np.isfinite(card.numbers["iwae_4_nll"].value)


@pytest.mark.long
@pytest.mark.parametrize(
    "likelihood", ["categorical", "discretised_normal", "discretised_logistic", "discretised_logistic_mixture"]
)
def test_every_likelihood_of_grey_levels_trains(likelihood, tmp_path):
    card = vae.main(dataclasses.replace(TINY, likelihood=likelihood, steps=20), run_in(tmp_path / "run"))
    # a normal law starts near 7 bits, because its tails are thin; NaN would not even make a card
    assert card.numbers["bits_per_dim"].value < 8


@pytest.mark.long
def test_the_default_digits_vae_reaches_its_likelihood(tmp_path):
    """Below the 1.95 bits per dimension that a VAE without the look back had, three standard errors included.

    Measured: 1.849 ± 0.012 at all 2500 steps and 1.868 ± 0.011 at these 1500, by IWAE-1000; 1.920 at 800 by IWAE-100.
    """
    config = dataclasses.replace(vae.Config(), steps=1500, eval_samples=200)
    bits = vae.main(config, run_in(tmp_path / "run")).numbers["bits_per_dim"]
    assert bits.value + 3 * bits.standard_error < 1.95


def test_data_that_are_not_here_are_refused_without_a_download(tmp_path, capsys):
    config = dataclasses.replace(TINY, dataset="mnist")
    with pytest.raises(SystemExit) as refusal:
        vae.main(config, run_in(tmp_path / "run", data_dir=tmp_path / "data"))
    assert refusal.value.code == 2
    assert "download" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SystemExit) as refusal:
        vae.main(TINY, run_in(tmp_path / "run"))
    assert refusal.value.code == 2
    assert (tmp_path / "run").read_text() == "mine"
    assert "error: " in capsys.readouterr().err


def test_an_unknown_data_set_on_the_command_line_leaves_with_code_2_and_lists_the_known_ones():
    script = Path(vae.__file__)
    answer = subprocess.run(
        [sys.executable, script, "--dataset", "minst"], capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 2
    assert "fashion_mnist" in answer.stdout + answer.stderr
