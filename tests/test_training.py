"""Training: the same bits whatever the chunking, a stop at the first bad value, bad arguments refused at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from vbjax import training
from vbjax.checkpoints import tree_sha256
from vbjax.training import NonFiniteLoss, fit, init_state, make_optimizer, train_step

STEPS, DECAY, KEY = 23, 0.9, jax.random.key(3)
OPTIMIZER = make_optimizer(learning_rate=0.01, schedule="cosine", steps=STEPS, clip_norm=1.0)
PARAMS = {"w": jax.random.normal(jax.random.key(8), (5, 3))}


def examples(data, step):
    return data[(step * 8 + jnp.arange(8)) % 64]


BATCH = Partial(examples, jax.random.normal(jax.random.key(7), (64, 5)))


def regression(key, params, x):
    """A small noisy regression."""
    noise = jax.random.normal(key, (8, 3))
    residual = jnp.tanh(x @ params["w"]) + 0.1 * noise - x[:, :3]
    terms = {"fit": (residual**2).mean(), "penalty": 0.01 * (params["w"] ** 2).sum()}
    return terms["fit"] + terms["penalty"], terms


def train(steps=STEPS, state=None, loss=regression, **settings):
    state = init_state(PARAMS, OPTIMIZER, ema_decay=DECAY) if state is None else state
    return fit(KEY, loss, BATCH, OPTIMIZER, state, **({"steps": steps, "ema_decay": DECAY} | settings))


def numbered(step):
    """The batch with its step, for losses that misbehave at a chosen one."""
    return {"x": BATCH(step), "step": step}


@pytest.mark.parametrize("chunk", [1, 2, 5, STEPS])
def test_every_chunk_length_gives_the_same_bits(chunk):
    assert tree_sha256(train(chunk=chunk)) == tree_sha256(train())


@pytest.mark.parametrize("cut", [1, 10, STEPS - 1])
def test_an_interrupted_run_ends_with_the_same_bits(cut):
    assert tree_sha256(train(state=train(steps=cut), chunk=4)) == tree_sha256(train())


def test_noise_that_is_not_indexed_by_step_would_be_noticed():
    """The control of the two tests above: a step counter that starts again changes the bits."""
    half = train(steps=10)
    forgetful = train(steps=STEPS - 10, state=half._replace(step=jnp.int32(0)))
    assert tree_sha256(forgetful.params) != tree_sha256(train().params)


def test_fit_follows_adam_written_out():
    """Parameters and moving average against NumPy in float64, with autodiff's gradients at the same noise."""
    ours = train(steps=12)
    w = np.asarray(PARAMS["w"], np.float64)
    first, second, ema = np.zeros_like(w), np.zeros_like(w), w.copy()
    for t in range(12):
        key = jax.random.fold_in(KEY, t)
        gradient, _ = jax.grad(regression, argnums=1, has_aux=True)(key, {"w": jnp.float32(w)}, BATCH(t))
        gradient = np.asarray(gradient["w"], np.float64)
        gradient /= max(1.0, np.linalg.norm(gradient))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = 0.01 * 0.5 * (1 + np.cos(np.pi * t / STEPS))
        w -= rate * (first / (1 - 0.9 ** (t + 1))) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        ema += (1 - min(DECAY, (1 + t) / (10 + t))) * (w - ema)
    np.testing.assert_allclose(ours.params["w"], w, rtol=2e-5)
    np.testing.assert_allclose(ours.ema["w"], ema, rtol=2e-5)
    assert not np.allclose(ours.ema["w"], w, rtol=1e-3)


def test_rows_hold_the_means_over_their_chunk():
    rows, values = [], []
    train(chunk=10, on_chunk=lambda state, row: rows.append(row))
    assert [row["step"] for row in rows] == [10, 20, 23]
    step = jax.jit(lambda state: train_step(KEY, regression, BATCH, OPTIMIZER, state, ema_decay=DECAY))
    state = init_state(PARAMS, OPTIMIZER, ema_decay=DECAY)
    for _ in range(STEPS):
        state, (value, terms) = step(state)
        values.append((float(value), float(terms["fit"])))
    for row, chunk in zip(rows, (values[:10], values[10:20], values[20:]), strict=True):
        np.testing.assert_allclose((row["loss"], row["fit"]), np.mean(chunk, axis=0), rtol=1e-5)
        np.testing.assert_allclose(row["fit"] + row["penalty"], row["loss"], rtol=1e-5)
        assert row["examples_per_second"] == pytest.approx(8 * row["steps_per_second"])
    assert rows[-1]["seconds_left"] == 0


def test_a_resumed_run_logs_at_the_same_steps():
    rows = []
    train(chunk=10, state=train(steps=13), on_chunk=lambda state, row: rows.append(row["step"]))
    assert rows == [20, 23]


def test_one_compilation_serves_every_chunk_length():
    traces = []

    def counted(key, params, x):
        traces.append(None)
        return regression(key, params, x)

    train(loss=lambda *arguments: counted(*arguments), chunk=STEPS)
    once = len(traces)
    traces.clear()
    train(loss=lambda *arguments: counted(*arguments), chunk=4)
    assert len(traces) == once


def test_the_initial_state_survives_and_no_moving_average_is_kept_unasked():
    state = init_state(PARAMS, OPTIMIZER)
    before = tree_sha256(state)
    after = train(state=state, ema_decay=0.0)
    assert tree_sha256(state) == before
    assert after.ema is None
    assert after.averaged is after.params
    assert tree_sha256(after.params) == tree_sha256(train().params)


def test_data_that_batch_closes_over_stay_out_of_the_program():
    data = jax.random.normal(jax.random.key(0), (1000, 100))
    state = init_state({"w": jnp.ones((100, 1))}, OPTIMIZER)

    def loss(key, params, x):
        return (x @ params["w"]).mean() + jax.random.normal(key), {}

    def batch(step):
        return data[(step + jnp.arange(4)) % 1000]

    def program_size(batch):
        lowered = training._advance_compiled.lower(KEY, Partial(loss), batch, OPTIMIZER, state, jnp.int32(1), 0.0)
        return len(lowered.as_text())

    assert program_size(training._close_over_nothing(batch, state.step)) < data.nbytes / 4
    assert program_size(Partial(batch)) > data.nbytes


@pytest.mark.parametrize(("bad", "term"), [(0, "fit"), (9, "penalty"), (10, "fit"), (17, "penalty")])
def test_training_stops_at_the_first_bad_step_and_names_the_term(bad, term):
    saved = []

    def loss(key, params, batch):
        _, terms = regression(key, params, batch["x"])
        terms[term] = jnp.where(batch["step"] == bad, jnp.nan, terms[term])
        return terms["fit"] + terms["penalty"], terms

    with pytest.raises(NonFiniteLoss, match=f"step {bad}: '{term}'") as caught:
        fit(
            KEY, loss, numbered, OPTIMIZER, init_state(PARAMS, OPTIMIZER),
            steps=STEPS, chunk=5, on_chunk=lambda state, row: saved.append(row["step"]),
        )  # fmt: skip
    assert (caught.value.step, caught.value.term) == (bad, term)
    assert saved == list(range(5, bad + 1, 5))


@pytest.mark.parametrize("bad", [9, 30])
def test_parameters_that_break_in_the_last_step_of_a_chunk_are_never_handed_out(bad):
    """The loss stays finite while its gradient is a NaN: only a look at the parameters tells."""
    saved = []

    def loss(key, params, batch):
        value, terms = regression(key, params, batch["x"])
        zero = jnp.where(batch["step"] == bad, 0.0, 1.0) * params["w"].sum()
        # The classic: the square root's infinite slope at zero, times zero.
        return value + 0.0 * jnp.sqrt(jnp.abs(zero)), terms

    def run():
        fit(
            KEY, loss, numbered, OPTIMIZER, init_state(PARAMS, OPTIMIZER),
            steps=20, chunk=10, on_chunk=lambda state, row: saved.append(row["step"]),
        )  # fmt: skip

    if bad == 30:
        run()
        assert saved == [10, 20]
    else:
        with pytest.raises(NonFiniteLoss, match="'params/w'"):
            run()
        assert saved == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-3),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", 0.0),
        ("warmup_steps", 10),
    ],
)
def test_a_bad_optimizer_setting_is_refused_by_name(name, value):
    make_optimizer(learning_rate=1e-3)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        make_optimizer(**({"learning_rate": 1e-3} | {name: value}))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"schedule": "cosine"}, "steps"),
        ({"schedule": "cosine", "steps": 10, "final_fraction": 1.5}, "final_fraction"),
        ({"schedule": "exponential", "steps": 10, "final_fraction": 0.0}, "final_fraction"),
        ({"schedule": "warmup_cosine", "steps": 10, "warmup_steps": 10}, "warmup_steps"),
        ({"schedule": "warmup_cosine", "steps": 10}, "warmup_steps"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        make_optimizer(learning_rate=1e-3, **settings)


@pytest.mark.parametrize(
    ("schedule", "more", "expected"),
    [
        ("constant", {}, [1.0, 1.0, 1.0]),
        ("cosine", {"final_fraction": 0.2}, [1.0, 0.6, 0.2]),
        ("exponential", {"final_fraction": 0.25}, [1.0, 0.5, 0.25]),
        ("warmup_cosine", {"warmup_steps": 4}, [0.0, 0.75, 0.0]),
    ],
)
def test_schedules_pass_through_their_closed_forms(schedule, more, expected):
    """Adam moves a constant gradient by exactly the learning rate: start, middle and end of an 8-step run."""
    optimizer = make_optimizer(learning_rate=1.0, schedule=schedule, steps=8, epsilon=1e-20, **more)
    params = jnp.zeros(())
    state, moves = optimizer.init(params), []
    for _ in range(9):
        with jax.numpy_dtype_promotion("standard"):
            move, state = optimizer.update(jnp.ones(()), state, params)
        moves.append(-float(move))
    if schedule == "warmup_cosine":
        # From the peak at step 4 to zero at step 8, through (1 + cos(pi/2)) / 2 at step 6.
        assert moves[4] == pytest.approx(1.0, rel=1e-4)
        assert moves[6] == pytest.approx(0.5, rel=1e-4)
        assert moves[2] == pytest.approx(0.5, rel=1e-4)
    else:
        assert moves[::4] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "^steps"),
        ({"chunk": 0}, "^chunk"),
        ({"ema_decay": 1.0}, "^ema_decay"),
        ({"ema_decay": 0.0}, "pass it to both"),
        ({"batch": lambda step: (jnp.ones(3), jnp.ones(4))}, "leading axis"),
        ({"loss": lambda key, params, x: params["w"].sum()}, "scalar, terms"),
        ({"loss": lambda key, params, x: (params["w"], {})}, "float scalar"),
        ({"loss": lambda key, params, x: (params["w"].sum(), {"fit": x})}, "'fit' has shape"),
        ({"loss": lambda key, params, x: (params["w"].sum(), {"loss": x.sum()})}, "cannot be called 'loss'"),
    ],
)
def test_bad_arguments_of_fit_are_refused_before_any_work(change, message):
    state = init_state(PARAMS, OPTIMIZER, ema_decay=DECAY)
    settings = {"steps": 2, "ema_decay": DECAY, "loss": regression, "batch": BATCH} | change
    with pytest.raises(ValueError, match=message):
        fit(KEY, settings.pop("loss"), settings.pop("batch"), OPTIMIZER, state, **settings)
