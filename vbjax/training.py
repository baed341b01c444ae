"""Training as a pure function of (key, step): the same bits for every chunk length and after every restart.

Start at `fit`. Step t draws its noise from `fold_in(key, t)` and its data from `batch(t)`, so a `TrainState`
is all that a run has to remember. One compiled loop of dynamic length serves every chunk: what a step
computes cannot depend on the chunk that it is in. The rest of the package never imports optax.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree

from vbjax.types import Params, PRNGKey, Scalar

Terms = Any
"""Named scalars: a dict or a NamedTuple, nested if need be."""

Loss = Callable[[PRNGKey, Params, PyTree], tuple[Scalar, Terms]]
"""`loss(key, params, batch) -> (scalar, terms)`, already averaged over the batch."""

Batch = Callable[[Int[Array, ""]], PyTree]
"""`batch(step) -> pytree`, pure; its arrays share a leading axis."""

Row = dict[str, int | float]
Schedule = Literal["constant", "cosine", "warmup_cosine", "exponential"]

_OWN_COLUMNS = ("step", "loss", "steps_per_second", "examples_per_second", "seconds", "seconds_left")


class TrainState(NamedTuple):
    """Everything that a run has to remember: no keys, because randomness is indexed by `step`.

    step: updates done so far, int32. ema: an exponential moving average of `params`, or None when off.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: PyTree

    @property
    def averaged(self) -> Params:
        """The parameters to evaluate with: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


class NonFiniteLoss(ArithmeticError):  # noqa: N818 - it reads as what happened
    """The loss, a term of it or a parameter is not finite: `step`, `term` (the first such), `values`."""

    def __init__(self, step: int, term: str, values: dict[str, float]):
        self.step, self.term, self.values = step, term, values
        shown = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        super().__init__(
            f"training stopped at step {step}: {term!r} is not finite ({shown}); checkpoints are as they were. "
            "Lower the learning rate, clip the gradient (clip_norm) or look at that term."
        )


def make_optimizer(
    *,
    learning_rate: int | float,
    schedule: Schedule = "constant",
    steps: int | None = None,
    warmup_steps: int = 0,
    final_fraction: int | float | None = None,
    weight_decay: int | float = 0.0,
    clip_norm: int | float | None = None,
    beta1: int | float = 0.9,
    beta2: int | float = 0.999,
    epsilon: int | float = 1e-8,
) -> optax.GradientTransformation:
    """Return Adam (AdamW if `weight_decay` > 0) with a schedule and clipping by the gradient's global norm.

    steps: the length of the run; every schedule but "constant" needs it, and ends at `final_fraction` of the
    learning rate (default 0 for the cosines, 0.01 for "exponential"). clip_norm: None leaves gradients alone.
    Raises ValueError, naming the parameter, before anything is computed.
    """
    _require("learning_rate", learning_rate, 0 < learning_rate < math.inf, "a positive number")
    _require("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "zero or a positive number")
    _require("beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
    _require("beta2", beta2, 0 <= beta2 < 1, "in [0, 1)")
    _require("epsilon", epsilon, 0 < epsilon < math.inf, "a positive number")
    if clip_norm is not None:
        _require("clip_norm", clip_norm, 0 < clip_norm < math.inf, "a positive number, or None")
    rate = _learning_rate(learning_rate, schedule, steps, warmup_steps, final_fraction)
    if weight_decay > 0:
        descent = optax.adamw(rate, beta1, beta2, epsilon, weight_decay=weight_decay)
    else:
        descent = optax.adam(rate, beta1, beta2, epsilon)
    return descent if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), descent)


CARRIED = optax.sgd(1.0)
"""For an entry of the parameters that is remembered, not optimised: see `carry`."""


def carry(optimizer: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
    """Optimise all but one entry of the parameters; that entry is carried along by plain descent of rate one.

    name: a top-level key. Its "gradient" is the old value minus the new one, so it holds what a loss wants to
    remember from step to step, such as an estimator's state, inside the same checkpoints.
    """

    def labels(params):
        return {key: "carried" if key == name else "optimised" for key in params}

    return optax.multi_transform({"optimised": optimizer, "carried": CARRIED}, labels)


def each(optimizers: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Optimise every top-level entry of the parameters by the optimizer of its name: the players of a game.

    A name that `carry` describes goes with `CARRIED`. Names that the parameters lack do nothing.
    """
    return optax.multi_transform({**optimizers}, lambda params: {key: key for key in params})


def every(optimizer: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """Update at the last of every so many steps only, and keep parameters and moments as they are at the others.

    Raises ValueError for steps below one.
    """
    _require("steps", steps, steps >= 1, "at least 1")
    if steps == 1:
        return optimizer

    def last(step, **unused: Any):
        return step % steps == steps - 1

    return optax.transforms.conditionally_mask(optimizer, last)


def _learning_rate(
    peak: int | float, schedule: str, steps: int | None, warmup_steps: int, final_fraction: int | float | None
) -> float | optax.Schedule:
    if schedule == "constant":
        _require("warmup_steps", warmup_steps, warmup_steps == 0, 'zero unless schedule="warmup_cosine"')
        return float(peak)
    if steps is None or steps < 1:
        raise ValueError(f"steps must be the length of the run for schedule={schedule!r}, got {steps!r}")
    if schedule == "exponential":
        fraction = 0.01 if final_fraction is None else final_fraction
        _require("final_fraction", fraction, 0 < fraction <= 1, "in (0, 1]")
        return optax.exponential_decay(peak, steps, fraction)
    fraction = 0.0 if final_fraction is None else final_fraction
    _require("final_fraction", fraction, 0 <= fraction <= 1, "in [0, 1]")
    if schedule == "cosine":
        return optax.cosine_decay_schedule(peak, steps, fraction)
    if schedule == "warmup_cosine":
        _require("warmup_steps", warmup_steps, 0 < warmup_steps < steps, f"from 1 to steps - 1 = {steps - 1}")
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, peak * fraction)
    raise ValueError(f"schedule must be constant, cosine, warmup_cosine or exponential, got {schedule!r}")


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema_decay: int | float = 0.0) -> TrainState:
    """Return the state before the first step; `ema_decay` 0 keeps no moving average, at no cost."""
    _require("ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    ema = jax.tree.map(jnp.copy, params) if ema_decay > 0 else None
    return TrainState(jnp.int32(0), params, ema, optimizer.init(params))


def train_step(
    key: PRNGKey,
    loss: Loss,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    ema_decay: int | float = 0.0,
) -> tuple[TrainState, tuple[Scalar, Terms]]:
    """Do step `state.step` and return the next state, with the loss and terms *before* the update.

    The moving average uses decay min(ema_decay, (1 + t) / (10 + t)), so that a short run does not remember
    its initialisation.
    """
    step, params = state.step, state.params
    value_and_gradient = jax.value_and_grad(loss, argnums=1, has_aux=True)
    values, gradient = value_and_gradient(jax.random.fold_in(key, step), params, batch(step))
    # optax raises its decay rates to integer step counts, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    ema = state.ema
    if ema is not None:
        t = step.astype(jnp.float32)
        rate = 1 - jnp.minimum(ema_decay, (1 + t) / (10 + t))
        ema = jax.tree.map(lambda mean, new: mean + rate.astype(mean.dtype) * (new - mean), ema, params)
    return TrainState(step + 1, params, ema, opt_state), values


def _advance(key, loss, batch, optimizer, state, stop, ema_decay):
    """Run steps `state.step`, …, `stop - 1`; leave early after the first value that is not finite.

    Returns the state, the sums of the loss and its terms over the steps done, and their last values.
    """

    def running(carry):
        state, _, last = carry
        return (state.step < stop) & jnp.isfinite(last).all()

    def body(carry):
        state, sums, _ = carry
        state, (value, terms) = train_step(key, loss, batch, optimizer, state, ema_decay=ema_decay)
        last = jnp.stack([value, *(jnp.asarray(term).astype(value.dtype) for term in jax.tree.leaves(terms))])
        return state, sums + last, last

    value, terms = jax.eval_shape(loss, key, state.params, jax.eval_shape(batch, state.step))
    nothing = jnp.zeros(1 + len(jax.tree.leaves(terms)), value.dtype)
    return jax.lax.while_loop(running, body, (state, nothing, nothing))


# The state's buffers are donated: training needs no second copy of parameters and moments.
_advance_compiled = jax.jit(_advance, static_argnames=("optimizer", "ema_decay"), donate_argnames=("state",))


def fit(
    key: PRNGKey,
    loss: Loss,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    steps: int,
    chunk: int = 100,
    ema_decay: int | float = 0.0,
    on_chunk: Callable[[TrainState, Row], None] | None = None,
) -> TrainState:
    """Train from `state` to step `steps` and return the last state; `state` itself stays valid.

    chunk: steps between two calls of `on_chunk(state, row)`, at multiples of `chunk` and at the end. The row
    holds `step` (updates done), the means of `loss` and of every term since the last row, `steps_per_second`,
    `examples_per_second`, `seconds` (since the loop was compiled) and `seconds_left`. The callback may read
    and save its state but not keep it: the next chunk reuses the buffers.

    Arrays that `batch` closes over reach the compiled loop as arguments, never as constants. A
    `jax.tree_util.Partial(function, data)` as `batch` also shares the compiled loop between calls of `fit`.

    Raises NonFiniteLoss at the first step whose loss or terms are not finite, or if a chunk ends with
    parameters that are not; `on_chunk` never sees such a state. Raises ValueError for bad arguments before
    any work.
    """
    _require("steps", steps, 0 <= steps < 2**31, "a number of steps below 2**31")
    _require("chunk", chunk, chunk >= 1, "at least 1")
    _require("ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    if (state.ema is None) != (ema_decay == 0):
        raise ValueError(f"ema_decay is {ema_decay} but the state was made with another: pass it to both")
    names, batch_size = _signature(key, loss, batch, state)

    batch = batch if isinstance(batch, Partial) else _close_over_nothing(batch, state.step)
    loss = loss if isinstance(loss, Partial) else Partial(loss)
    state = jax.tree.map(jnp.copy, state)
    done = first = int(state.step)
    # Zero steps: compiles the loop, so that the clock measures training.
    state, *_ = _advance_compiled(key, loss, batch, optimizer, state, jnp.int32(done), ema_decay)
    jax.block_until_ready(state)

    begin = time.perf_counter()
    while done < steps:
        stop = min((done // chunk + 1) * chunk, steps)
        chunk_begin = time.perf_counter()
        state, sums, last = _advance_compiled(key, loss, batch, optimizer, state, jnp.int32(stop), ema_decay)
        last = dict(zip(names, last.tolist(), strict=True))
        _check_finite(state, last)
        now = time.perf_counter()
        count = stop - done
        speed = count / (now - chunk_begin)
        row: Row = {"step": stop}
        row |= {name: total / count for name, total in zip(names, sums.tolist(), strict=True)}
        row |= {
            "steps_per_second": speed,
            "examples_per_second": speed * batch_size,
            "seconds": now - begin,
            "seconds_left": (now - begin) / (stop - first) * (steps - stop),
        }
        done = stop
        if on_chunk is not None:
            on_chunk(state, row)
    return state


def _check_finite(state: TrainState, last: dict[str, float]) -> None:
    bad = [name for name, value in last.items() if not math.isfinite(value)]
    if bad:
        # A term explains more than the loss that it makes.
        term = next((name for name in bad if name != "loss"), "loss")
        raise NonFiniteLoss(int(state.step) - 1, term, last)
    leaf = first_non_finite(state.params)
    if leaf is not None:
        raise NonFiniteLoss(int(state.step) - 1, f"params/{leaf}", last)


def first_non_finite(tree: PyTree) -> str | None:
    """Return the path of the first leaf with an infinity or a NaN in it, or None."""
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    whole = jax.device_get(_finite([leaf for _, leaf in leaves]))
    return next((_name(path) for (path, _), finite in zip(leaves, whole, strict=True) if not finite), None)


@jax.jit
def _finite(leaves):
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _signature(key: PRNGKey, loss: Loss, batch: Batch, state: TrainState) -> tuple[list[str], int]:
    """Return the names of the loss and its terms, and the batch size; refuse what the loop cannot carry."""
    example = jax.eval_shape(batch, state.step)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(example) if leaf.ndim}
    if len(sizes) != 1:
        raise ValueError(f"batch(step) must return arrays that share a leading axis, got {sizes or 'none'}")
    out = jax.eval_shape(loss, key, state.params, example)
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError("loss must return (scalar, terms)")
    value, terms = out
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"loss must return a float scalar first, got {value}")
    names = ["loss"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(terms)[0]:
        name = _name(path)
        if leaf.shape != ():
            raise ValueError(f"terms must be scalars, means over the batch: {name!r} has shape {leaf.shape}")
        if name in _OWN_COLUMNS:
            raise ValueError(f"a term cannot be called {name!r}: that is a column of every row")
        names.append(name)
    return names, sizes.pop()


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _close_over_nothing(function: Batch, step: Int[Array, ""]) -> Partial:
    """Turn the arrays that `function` closes over into leaves, lest `jit` copy a data set into a program."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(step)

    def call(constants, step):
        leaves = jax.core.eval_jaxpr(closed.jaxpr, constants, step)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return Partial(call, closed.consts)
