"""experiments/ddpm.py as users meet it: losses train, runs resume to the same bits, refusals come before any work."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for
from refusals import assert_refused

from experiments import ddpm
from vbjax import cards, datasets, leaderboard, runs, training
from vbjax.diffusion import schedules, times
from vbjax.diffusion.bound import DiffusionBound
from vbjax.experiment import Run
from vbjax.recipe import log_frequencies
from vbjax.reports import diffusion_pictures

TINY = ddpm.Config(
    width=16, blocks=1, dropout=0.1, timesteps=12, sampler_steps=6, guidance=(0.0, 2.0), steps=200, batch_size=32
)


LEARNED = {"loss": "importance", "schedule": "learned", "variance": "optimal"}
HO_2020 = {"prediction": "epsilon", "variance": "posterior", "schedule": "linear", "loss": "simple"}
WITHOUT_CLASSES = {"conditional": False, "guidance": ddpm.Config.guidance}
NICHOL_2021 = {"prediction": "v", "schedule": "cosine", "loss": "hybrid", "variance": "learned"}


@pytest.fixture(autouse=True)
def _no_key_reuse_check():
    """Under vmap the checker takes the keys of a scan for used ones: their split is transposed first."""
    with jax.debug_key_reuse(False):
        yield


def run_in(folder, **options):
    return Run(out=folder, quiet=True, checkpoint_every=100, **options)


def setup_of(config):
    data = datasets.load("digits").on_device()
    log_prior = log_frequencies(data.train_images, levels=17) if config.prediction == "levels" else None
    return ddpm.Setup(config, data, ddpm.build(config, (8, 8), 17, log_prior))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timesteps": 1}, "timesteps"),
        ({"width": 0}, "width"),
        ({"batch_size": 5000}, "1347 training examples"),
        ({"validation": 1347}, "validation"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"gamma_low": 7.0}, "low"),
        ({"gamma_high": math.nan}, "high"),
        ({"gamma_low": -15.1}, "gamma_low must be at least -15"),
        ({"schedule": "linear", "gamma_high": 5.0}, "not read by schedule 'linear'"),
        ({"schedule": "learned", "loss": "simple"}, "trained by the bound"),
        ({"prediction": "v", "variance": "optimal"}, "needs prediction 'levels'"),
        ({"variance": "learned"}, "variance 'learned'"),
        ({"prediction": "v", "variance": "learned", "loss": "simple"}, "a loss that trains it"),
        ({"prediction": "v", "variance": "posterior", "loss": "hybrid"}, "there for variance 'learned'"),
        ({"dataset": "mnist"}, "784 x 256"),
        ({"null_rate": 0.0}, "null_rate"),
        ({"guidance": ()}, "guidance"),
        ({"guidance": (math.inf,)}, "guidance"),
        ({"conditional": False, "null_rate": 0.1}, "read with conditional only"),
        ({"sampler_steps": 13}, "sampler_steps"),
        ({"eval_times": 13}, "eval_times"),
        ({"eval_images": 451}, "450 test images"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_leaves_with_code_2_one_line_and_no_folder(changes, said, tmp_path, capsys):
    assert_refused(ddpm.main, dataclasses.replace(TINY, **changes), run_in(tmp_path / "run"), said, capsys)


@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist"])
def test_every_schedule_with_and_without_classes_is_accepted_as_each_data_set_starts(dataset):
    start = ddpm.DEFAULTS.get(dataset, ddpm.Config())
    for schedule in ("uniform", "linear", "cosine", "sigmoid", "learned"):
        for conditional in (True, False):
            ddpm.validate(dataclasses.replace(start, schedule=schedule, conditional=conditional), Run())
    with pytest.raises(ValueError, match="not read"):
        ddpm.validate(dataclasses.replace(start, schedule="linear", gamma_low=start.gamma_low + 1), Run())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 250),
        ({"timesteps": 200}, 200),
        ({"timesteps": 200, "sampler": "dpm_solver"}, 30),
        ({"timesteps": 20, "sampler": "dpm_solver"}, 20),
        ({"timesteps": 20, "sampler_steps": 7}, 7),
    ],
)
def test_the_sampler_takes_no_more_steps_than_the_chain_has(changes, expected):
    config = ddpm.Config(**changes)
    ddpm.validate(config, Run())
    assert ddpm.sampler_steps(config) == expected


def test_weight_decay_is_for_the_network_and_not_for_a_learned_schedule_or_a_history():
    config = dataclasses.replace(TINY, loss="importance", schedule="learned", weight_decay=0.1)
    params = {
        "network": {"w": jnp.ones(3)},
        "schedule": schedules.monotone_gamma(jax.random.key(0), low=-8.0, high=6.0),
        "history": {"squares": jnp.ones((2, 10)), "counts": jnp.ones(2)},
    }
    still = jax.tree.map(jnp.zeros_like, params)

    def largest(optimizer):
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(still, optimizer.init(params), params)
        return {
            name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) for name, tree in updates.items()
        }

    def check(moved):
        assert moved["network"] > 0
        assert moved["schedule"] == 0
        assert moved["history"] == 0

    decayed = training.make_optimizer(learning_rate=1e-3, weight_decay=0.1)
    holds_only_for(check, largest(ddpm.make_optimizer(config)), largest(decayed))


def test_the_terms_of_the_card_sum_to_its_bound():
    setup = setup_of(TINY)
    params, data = setup.init(jax.random.key(0)), setup.data
    numbers, _ = ddpm.likelihoods(jax.random.key(1), setup, params, data.test_images[:20], data.test_labels[:20])
    value = {name: number.value for name, number in numbers.items()}
    assert value["bits_per_dim"] == pytest.approx(value["prior"] + value["diffusion"] + value["reconstruction"])
    assert value["nll_bound"] == pytest.approx(value["bits_per_dim"] * 64 * math.log(2))
    # the network says nothing yet: independent pixels, which cost 2.39 bits, in a chain of 12 steps, which costs more
    assert 2.39 < value["bits_per_dim_continuous"] < value["bits_per_dim"] < 4.087
    assert value["bits_per_dim_given_class"] == pytest.approx(value["bits_per_dim"], abs=0.1)


@pytest.mark.long
def test_a_run_leaves_metrics_pictures_and_a_card(tmp_path):
    card = ddpm.main(TINY, run_in(tmp_path / "run"))
    assert cards.load_card(tmp_path / "run" / "card.json") == card
    assert [row["step"] for row in runs.read_metrics(tmp_path / "run" / "metrics.jsonl")] == [100, 200]
    names = {path.stem for path in (tmp_path / "run" / "pictures").iterdir()}
    assert names == {"samples", "both_ways", "inpainting", "guidance", "terms"}
    assert {"of_class_w0", "of_class_w2", "nearest_accuracy"} < {*card.numbers}


@pytest.mark.long
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    # the history of losses and the schedule are part of what must come back
    config = dataclasses.replace(TINY, **WITHOUT_CLASSES, **LEARNED)
    monkeypatch.setattr(ddpm, "draw_figures", lambda *arguments: {})
    whole = ddpm.main(config, run_in(tmp_path / "whole"))
    log = runs.RunFolder.log

    def interrupted(folder, row):
        if row["step"] == 200:
            raise KeyboardInterrupt
        log(folder, row)

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ddpm.main(config, run_in(tmp_path / "cut"))
    assert ddpm.main(config, run_in(tmp_path / "cut", resume=True)).numbers == whole.numbers


@pytest.mark.parametrize(
    "changes",
    [
        HO_2020 | WITHOUT_CLASSES,
        pytest.param(LEARNED, marks=pytest.mark.slow),
        pytest.param(NICHOL_2021, marks=pytest.mark.slow),
    ],
)
def test_a_step_of_each_kind_of_training_is_finite_and_moves_every_parameter_that_it_should(changes):
    config = dataclasses.replace(TINY, **changes)
    ddpm.validate(config, Run())
    setup, optimizer = setup_of(config), ddpm.make_optimizer(config)
    params = setup.init(jax.random.key(0))
    if config.loss == "importance":
        # a full one, by which times are drawn
        params["history"] = {"squares": jnp.ones((12, 10)), "counts": jnp.full(12, 10.0)}
    state = training.init_state(params, optimizer)
    examples = (setup.data.train_images[:16], setup.data.train_labels[:16])

    @jax.jit
    def step(state):
        batch = lambda step: examples  # noqa: E731
        return training.train_step(jax.random.key(1), ddpm.make_loss(setup), batch, optimizer, state)

    after, (value, _) = step(state)
    assert np.isfinite(value)
    learned = {"schedule", "history"} if config.loss == "importance" else set()
    assert set(after.params) == {"network"} | learned
    last = np.abs(after.params["network"]["params"]["outputs"]["kernel"]).reshape(config.width, 64, -1)
    assert last.shape[-1] == {"levels": 17, "v": 2}.get(config.prediction, 1)
    assert (last.max((0, 1)) > 0).all()
    if config.loss == "importance":
        assert after.params["history"]["counts"].sum() == 12 * 10 + 16
        # 16 losses took the place of old ones, and no gradient moved the others
        assert (after.params["history"]["squares"] != 1).sum() == 16
        assert np.abs(after.params["schedule"].log_heights - state.params["schedule"].log_heights).max() > 0
        # its ends are given
        schedule = setup.schedule(after.params)
        np.testing.assert_allclose(schedule.gamma[-1], config.gamma_high, rtol=1e-6)


def test_the_history_that_descent_carries_is_the_one_that_records_the_losses():
    key_t, key_loss = jax.random.split(jax.random.key(3))
    t = jax.random.randint(key_t, (40,), 1, 13)
    values = jax.random.uniform(key_loss, (40,))
    empty = times.empty_history(12)
    params = {"history": {"squares": empty.squares, "counts": empty.counts.astype(jnp.float32)}}
    zero, slope = jax.value_and_grad(ddpm.remembered)(params, t, values)
    carried = jax.tree.map(lambda old, gradient: old - gradient, params, slope)
    expected = empty.record(t, values)
    assert zero == 0
    np.testing.assert_allclose(carried["history"]["squares"], expected.squares, rtol=1e-6)
    np.testing.assert_array_equal(carried["history"]["counts"], expected.counts)


@pytest.mark.slow
def test_the_bound_at_some_times_estimates_the_bound_at_all_of_them():
    """z below 5.5 is missed with probability below 1e-6; a term too many or too few would move it by tens."""
    setup = setup_of(TINY)
    params = setup.init(jax.random.key(0))
    images = setup.data.test_images
    some = setup._replace(config=dataclasses.replace(TINY, eval_times=3))
    whole = ddpm.measure_bound(jax.random.key(1), setup, params, images)
    drawn = ddpm.measure_bound(jax.random.key(2), some, params, images)
    for both in (
        lambda b: b.diffusion.reshape(len(images), -1).sum(1),
        lambda b: b.reconstruction,
    ):
        difference = np.asarray(both(drawn) - both(whole), np.float64)
        z = difference.mean() / (difference.std(ddof=1) / math.sqrt(len(images)))
        assert abs(z) < 5.5
    np.testing.assert_allclose(drawn.prior, whole.prior, rtol=1e-5)


@pytest.mark.slow
def test_a_leaderboard_entry_states_the_variance_that_new_draws_of_the_bound_have():
    """2000 entries for one image: the ratio of two estimates of a variance, independent ones, has a standard error of
    sqrt(4/2000), and 5.5 of them are exceeded with probability below 1e-6; half or twice the variance is refused.
    So few times, and an odd number of terms, that a variance from neighbouring terms would be far off."""
    setup = setup_of(dataclasses.replace(TINY, timesteps=20))
    params = setup.init(jax.random.key(0))
    same = jnp.repeat(setup.data.test_images[:1], 2000, 0)
    data = dataclasses.replace(setup.data, test_images=same, test_labels=jnp.zeros(2000, jnp.int32))
    entry = leaderboard.by_diffusion(
        jax.random.key(4), "diffusion", setup.bind(params)[1], setup.schedule(params), data, parameters=1, seconds=0.0
    )
    assert entry.measured == "bound, T = 20"

    def check(factor):
        ratio = factor * entry.evidence.variance.mean() / entry.evidence.nats.var(ddof=1)
        assert abs(ratio - 1) < 5.5 * math.sqrt(4 / 2000)

    holds_only_for(check, 1.0, 0.5, 2.0)


def test_the_band_of_the_picture_of_the_terms_is_that_of_its_curve():
    """5 independent terms make a point of the curve: its band is that of 5 n numbers, not of n."""
    schedule = schedules.discretise(schedules.linear_gamma(-8.0, 6.0), 501)
    each = np.random.default_rng(0).normal(1.0, 0.5, (400, 500)) * 64 * math.log(2) * 14 / 501
    bound = DiffusionBound(np.zeros(400), each, np.zeros(400))
    axes = diffusion_pictures.terms(bound, schedule, 64).axes[0]
    corners = axes.collections[0].get_paths()[0].vertices
    width = np.mean([np.ptp(corners[corners[:, 0] == x, 1]) for x in axes.lines[0].get_xdata()[1:-1]])
    # the mean of 98 standard deviations, each of 400 numbers, is known to 1/280: 5.5 times that is 2%
    holds_only_for(lambda n: np.testing.assert_allclose(width, 4 * 0.5 / math.sqrt(n), rtol=0.02), 5 * 400, 400)
