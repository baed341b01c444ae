"""The GAN scripts as users meet them: two players in one loss, runs, exact resumes, refusals before any work."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused

from experiments import cycle_gan, gan
from vbjax import cards, runs, training
from vbjax.gan import penalties, values

TINY = gan.Config(hidden=(8,), batch_size=16, steps=20, eval_samples=60)
TINY_DIGITS = dataclasses.replace(
    gan.DEFAULTS["digits"],
    features=(4, 8),
    latent_dim=4,
    batch_size=16,
    steps=10,
    classifier_steps=40,
    eval_samples=60,
    conditional=True,
    spectral_norm=True,
)


def run_in(folder, **options):
    return gan.Run(out=folder, quiet=True, checkpoint_every=10, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ring"
    return folder, gan.main(TINY, run_in(folder))


def test_a_run_leaves_config_metrics_checkpoints_a_picture_and_a_card(finished):
    folder, card = finished
    assert cards.load_card(folder / "card.json") == card
    assert json.loads((folder / "config.json").read_text())["game"] == "non_saturating"
    (row,) = runs.read_metrics(folder / "metrics.jsonl")
    assert row["loss"] == pytest.approx(row["discriminator"] + row["generator"] + row["r1"], rel=1e-5)
    assert [path.stem for path in (folder / "pictures").iterdir()] == ["plane"]


def test_every_measure_stands_beside_that_of_real_points(finished):
    _, card = finished
    names = {name for name in card.numbers if name + "_real" in card.numbers}
    assert names == {"modes_kl", "frechet", "frechet_excess", "kernel", "precision", "recall", "density", "coverage"}
    real, model, bias = (card.numbers[name].value for name in ("frechet_real", "frechet", "frechet_bias"))
    assert card.numbers["frechet_ratio"].value == pytest.approx(model / real)
    assert card.numbers["frechet_bias_ratio"].value == pytest.approx(model / bias)
    assert card.numbers["frechet_excess"].value == pytest.approx(model - bias)
    assert card.numbers["frechet_excess_real"].value == pytest.approx(real - bias)
    assert card.numbers["frechet_real"].standard_error > 0
    # 20 steps teach nothing: the samples are a blob in the middle, the real ones are real
    assert card.numbers["modes_covered"].value < 8
    assert card.numbers["frechet_ratio"].value > 10
    assert card.numbers["high_quality"].value < 0.5 < card.numbers["high_quality_exact"].value


def test_a_finished_run_is_not_repeated_by_accident(finished, capsys):
    folder, _ = finished
    with pytest.raises(SystemExit) as refusal:
        gan.main(TINY, run_in(folder))
    assert refusal.value.code == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bits_in_the_middle_of_the_generators_wait(tmp_path, monkeypatch):
    """Step 100 is the first of three: optimizer, spectral state and the count of the wait all have to come back."""
    config = dataclasses.replace(TINY, steps=200, r1=0.0, spectral_norm=True, discriminator_steps=3)
    states = []

    def evaluate(key, config, networks, state):
        states.append(state)
        return {"step": cards.number(state.step, unit="steps")}, {}

    monkeypatch.setattr(gan, "evaluate_law", evaluate)
    log = runs.RunFolder.log

    def interrupted(folder, row):
        if row["step"] == 200:
            raise KeyboardInterrupt
        log(folder, row)

    gan.main(config, run_in(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gan.main(config, run_in(tmp_path / "cut"))
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir() if path.name.isdigit()] == ["100"]
    gan.main(config, run_in(tmp_path / "cut", resume=True))
    whole, resumed = states
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_the_real_distance_is_the_mean_over_draws_with_its_standard_error():
    key_real, key_model, key_others = jax.random.split(jax.random.key(5), 3)
    real, model = (np.asarray(jax.random.normal(k, (40, 3))) for k in (key_real, key_model))
    others = np.asarray(jax.random.normal(key_others, (4, 40, 3)))
    numbers = gan.comparison(real, model, others)

    def distance(a, b):
        product = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real
        shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
        return shift + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.sqrt(product).sum()

    real, model, others = (x.astype(np.float64) for x in (real, model, others))
    each = np.array([distance(real, other) for other in others])
    assert numbers["frechet"].value == pytest.approx(distance(real, model), rel=1e-6)
    assert numbers["frechet_real"].value == pytest.approx(each.mean(), rel=1e-6)
    assert numbers["frechet_real"].standard_error == pytest.approx(each.std(ddof=1) / 2, rel=1e-6)
    # wrong: the first draw alone
    assert numbers["frechet_real"].value != pytest.approx(each[0], rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r1": -1.0}, "r1"),
        ({"gradient_penalty": float("inf")}, "gradient_penalty"),
        ({"conditional": True}, "conditional"),
        ({"hidden": ()}, "hidden"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"discriminator_steps": 0}, "discriminator_steps"),
        ({"discriminator_steps": 21}, "discriminator_steps"),
        ({"features": (4, 8)}, "features is not read"),
        ({"classifier_steps": 10}, "classifier_steps is not read"),
        ({"validation": 100}, "validation is not read"),
        ({"dataset": "digits"}, "hidden is not read"),
        ({"dataset": "digits", "hidden": (128, 128), "validation": 9}, "validation"),
        ({"dataset": "digits", "hidden": (128, 128), "validation": 1340, "batch_size": 4}, "validation"),
        ({"generator_rate": -1e-3}, "learning_rate"),
        ({"beta1": 1.0}, "beta1"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"eval_samples": 5}, "eval_samples"),
        ({"dataset": "digits", "hidden": (128, 128), "batch_size": 5000}, "1347 training examples"),
        ({"dataset": "digits", "hidden": (128, 128), "features": (4, 4, 4, 4, 4)}, "features"),
    ],
)
def test_bad_input_leaves_with_code_2_one_line_and_no_folder(changes, said, tmp_path, capsys):
    assert_refused(gan.main, dataclasses.replace(TINY, **changes), run_in(tmp_path / "run"), said, capsys)


@pytest.fixture(scope="module")
def players():
    config = dataclasses.replace(TINY, spectral_norm=True, game="minimax", discriminator_steps=2)
    networks = gan.build(config, (2,))
    key_init, key_x = jax.random.split(jax.random.key(0))
    return config, networks, jax.jit(networks.init)(key_init), jax.random.normal(key_x, (6, 2))


def test_each_players_gradient_is_that_of_its_own_loss_alone(players):
    config, networks, params, x = players
    labels = jnp.zeros(6, jnp.int32)
    loss = gan.make_loss(config, networks)

    def fakes(params):
        keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(1), 6))[:, 0]
        return jax.vmap(lambda key: networks.generate(params)(jax.random.normal(key, (2,))))(keys)

    def alone(player, params):
        discriminate = networks.discriminate(networks.normalise(params))
        game, fake = values.minimax, fakes(params)
        if player == "generator":
            return game.generator(jax.vmap(discriminate)(fake)).mean()
        slopes = jax.vmap(functools.partial(penalties.r1, discriminate))(x).mean()
        return (game.real(jax.vmap(discriminate)(x)) + game.fake(jax.vmap(discriminate)(fake))).mean() + 0.02 * slopes

    @jax.jit
    def gradients(params):
        both = jax.grad(lambda params: loss(jax.random.key(1), params, (x, labels))[0])(params)
        own = {player: jax.grad(alone, 1)(player, params)[player] for player in ("generator", "discriminator")}
        # wrong: the gradient of the sum, in which the zero-sum players undo each other
        mixed = jax.grad(lambda params: alone("generator", params) + alone("discriminator", params))(params)
        return both, own, mixed

    both, own, mixed = gradients(params)
    for player in own:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), both[player], own[player])
    kernels = [tree["generator"]["params"]["body"]["Dense_0"]["kernel"] for tree in (both, mixed)]
    assert not np.allclose(*kernels, rtol=1e-2)


def test_one_step_carries_the_spectral_state_and_the_generator_waits_for_its_turn(players):
    config, networks, params, x = players
    optimizer = gan.make_optimizer(config)
    batch = (x, jnp.zeros(6, jnp.int32))

    @jax.jit
    def two_steps(params):
        first = training.init_state(params, optimizer)
        states = [first]
        for _ in range(2):
            step = training.train_step(
                jax.random.key(2), gan.make_loss(config, networks), lambda _: batch, optimizer, states[-1]
            )
            states.append(step[0])
        return [state.params for state in states]

    before, between, after = two_steps(params)
    expected = networks.normalise(before)["spectral"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), between["spectral"], expected)
    same = [
        jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), old["generator"], new["generator"]))
        for old, new in ((before, between), (between, after))
    ]
    assert same == [True, False]


@pytest.mark.slow
def test_a_conditional_run_on_digits_is_judged_and_drawn(tmp_path):
    card = gan.main(TINY_DIGITS, run_in(tmp_path / "run"))
    assert 0.3 < card.numbers["classifier_accuracy"].value < 1
    assert {"class_as_asked", "classes_covered", "classes_kl_real", "frechet_ratio", "recall"} <= set(card.numbers)
    names = {path.stem for path in (tmp_path / "run" / "pictures").iterdir()}
    assert {"samples", "interpolation", "classes"} <= names <= {"samples", "interpolation", "classes", "arithmetic"}
    (row,) = runs.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"discriminator", "generator", "r1"} <= set(row)


@pytest.mark.parametrize(("turn", "nearest"), [(15.0, 15.0), (40.0, -5.0), (-170.0, 10.0)])
def test_the_least_move_between_rings_is_by_the_nearest_turn_that_matches_them(turn, nearest):
    modes = cycle_gan.datasets.ring_modes(8, 2.0)
    found = cycle_gan.least_move(modes, cycle_gan.second_ring(cycle_gan.Config(turn=turn), modes))
    assert float(found) == pytest.approx(abs(1.5 * np.exp(1j * np.deg2rad(nearest)) - 2), rel=1e-5)
