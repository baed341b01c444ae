"""Annealed importance sampling: log p(x) from below and from above, by Hamiltonian chains along a path of laws.

The path π_β(z) ∝ q(z)^(1-β) p(x, z)^β leads from a law q that can be drawn from (the prior, or an encoder's q(z|x))
to the posterior. A chain that walks up it has a log-weight w with E exp(w) = p(x); one that walks down from an exact
draw of the posterior has E exp(-w) = 1 / p(x). One datum at a time: `tune` the steps, then ask for `log_weights` and
feed them to `bounds.iwae`. `evaluation.annealed_evidence` does it for a test set.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vbjax.distributions import Distribution
from vbjax.types import Event, LogDensity, NotAvailable, PRNGKey, Scalar

Betas = Float[Array, " t"]


class Annealing(NamedTuple):
    """How a path is walked. Fixed before the chains start: steps that learn from their own chain would bias the weight.

    betas: `(t,)` increasing from 0 to 1. step_sizes: `(t - 2,)`, of the leapfrog at each β between the ends, in
    standard deviations of the initial law. leapfrog_steps: gradients of log p(x, z) that a transition costs.
    """

    betas: Betas
    step_sizes: Float[Array, " interior"]
    leapfrog_steps: int | Array


class Point(NamedTuple):
    """A place on the path, flat, with the log-densities of both ends and their gradients there."""

    z: Float[Array, " d"]
    log_initial: Scalar
    log_joint: Scalar
    slope_initial: Float[Array, " d"]
    slope_joint: Float[Array, " d"]

    @property
    def log_weight(self) -> Array:
        """log p(x, z) - log q(z), the derivative of log π_β in β."""
        return self.log_joint - self.log_initial

    def log_density(self, beta: Scalar) -> Array:
        """log π_β(z) up to its constant."""
        return (1 - beta) * self.log_initial + beta * self.log_joint

    def slope(self, beta: Scalar) -> Array:
        """The gradient of `log_density`."""
        return (1 - beta) * self.slope_initial + beta * self.slope_joint


def linear_betas(steps: int) -> Betas:
    """`steps + 1` equally spaced betas; 1 step is plain importance sampling. Raises ValueError below one step."""
    return jnp.asarray(np.linspace(0, 1, _at_least_one_step(steps) + 1), jnp.result_type(float))


def sigmoidal_betas(steps: int, *, steepness: int | float = 4) -> Betas:
    """`steps + 1` betas, dense at both ends, where π_β changes fastest (Grosse et al. 2015, section 6).

    The logistic function on [-steepness, steepness], moved and scaled to [0, 1]. Raises ValueError below one step and
    unless the steepness is positive.
    """
    if not 0 < steepness < float("inf"):
        raise ValueError(f"steepness must be positive, got {steepness}; use linear_betas for equal spacing")
    s = np.tanh(steepness / 2 * np.linspace(-1, 1, _at_least_one_step(steps) + 1))
    return jnp.asarray((s - s[0]) / (s[-1] - s[0]), jnp.result_type(float))


def _at_least_one_step(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return steps


def tune(
    key: PRNGKey,
    log_joint: LogDensity,
    initial: Distribution,
    betas: Betas,
    *,
    leapfrog_steps: int,
    chains: int = 8,
    acceptance: int | float = 0.7,
    gain: int | float = 0.2,
    first: int | float = 0.3,
) -> Annealing:
    """Step sizes by a pilot walk: after each β, log ε grows by gain × (mean acceptance - `acceptance`).

    The pilot's chains are thrown away, so the frozen steps leave the weights of later chains unbiased. first: the ε
    to begin with. Raises ValueError, naming the argument, for betas that do not increase from 0 to 1, a discrete
    law, or numbers out of range.
    """
    check_betas(betas)
    check_continuous(initial)
    if leapfrog_steps < 1 or chains < 1:
        raise ValueError(f"leapfrog_steps and chains must be at least 1, got {leapfrog_steps} and {chains}")
    if not (0 < acceptance < 1 and gain > 0 and first > 0):
        raise ValueError(f"acceptance must lie in (0, 1), gain and first above 0, got {acceptance}, {gain} and {first}")
    key_scale, key_draws, key_moves = jax.random.split(key, 3)
    z = initial.sample(key_draws, (chains,))
    at, scale = _path(log_joint, initial, jax.tree.map(lambda z: z[0], z)), _scale(key_scale, initial)

    def step(carry, inputs):
        points, log_step = carry
        t, beta = inputs
        keys, step_size = jax.random.split(jax.random.fold_in(key_moves, t), chains), jnp.exp(log_step)
        points, accepted = jax.vmap(
            lambda key, point: hamiltonian_transition(key, at, point, beta, step_size * scale, leapfrog_steps)
        )(keys, points)
        return (points, log_step + gain * (accepted.mean() - acceptance)), step_size

    points = jax.vmap(lambda z: at(ravel_pytree(z)[0]))(z)
    start = (points, jnp.full((), np.log(first), points.z.dtype))
    _, step_sizes = jax.lax.scan(step, start, (jnp.arange(betas.shape[0] - 2), betas[1:-1]))
    return Annealing(betas, step_sizes, leapfrog_steps)


def log_weights(
    key: PRNGKey, log_joint: LogDensity, initial: Distribution, annealing: Annealing, *, chains: int
) -> Float[Array, " k"]:
    """Log-weights of K chains that walk from `initial` up to the posterior, in nats: E exp(w) = p(x).

    log_joint: `z -> log p(x, z)` for one x. `bounds.iwae` of them is a lower bound on log p(x) in expectation. Events
    may be tuples. Raises ValueError for betas that do not increase from 0 to 1, or a discrete law.
    Source: Neal (2001), eqs. 4 and 11.
    """
    check_betas(annealing.betas)
    check_continuous(initial)
    key_scale, key_draws, key_walks = jax.random.split(key, 3)
    z, scale = initial.sample(key_draws, (chains,)), _scale(key_scale, initial)
    keys = jax.random.split(key_walks, chains)
    return jax.vmap(lambda key, z: _walk(key, log_joint, initial, annealing, scale, z))(keys, z)


def reverse_log_weights(
    key: PRNGKey, log_joint: LogDensity, initial: Distribution, annealing: Annealing, z: Event, *, chains: int
) -> Float[Array, " k"]:
    """Log-weights of K chains that walk from z, one exact draw of the posterior, down to `initial`: E exp(-w) = 1/p(x).

    `-bounds.iwae(-w)` is an upper bound on log p(x) in expectation, in nats. An exact draw is known where x was
    simulated from the model together with its z. Raises as `log_weights`. Source: Grosse et al. (2015), section 4.
    """
    check_betas(annealing.betas)
    check_continuous(initial)
    down = annealing._replace(betas=annealing.betas[::-1], step_sizes=annealing.step_sizes[::-1])
    key_scale, key_walks = jax.random.split(key)
    scale, keys = _scale(key_scale, initial), jax.random.split(key_walks, chains)
    return -jax.vmap(lambda key: _walk(key, log_joint, initial, down, scale, z))(keys)


def both_ways(
    key: PRNGKey, log_joint: LogDensity, initial: Distribution, annealing: Annealing, z: Event, *, chains: int
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """`log_weights` and `reverse_log_weights` from z, a draw of the posterior, as one batch of 2 K chains.

    The same laws as the two apart, in half the program. Raises as they do.
    """
    check_betas(annealing.betas)
    check_continuous(initial)
    key_scale, key_draws, key_walks = jax.random.split(key, 3)
    scale = _scale(key_scale, initial)
    up = initial.sample(key_draws, (chains,))
    starts = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)]), up, z)
    schedules = [annealing.betas, annealing.step_sizes]
    betas, step_sizes = (jnp.stack([v] * chains + [v[::-1]] * chains) for v in schedules)

    def walk(key: PRNGKey, betas: Betas, step_sizes: Array, z: Event) -> Scalar:
        return _walk(key, log_joint, initial, Annealing(betas, step_sizes, annealing.leapfrog_steps), scale, z)

    totals = jax.vmap(walk)(jax.random.split(key_walks, 2 * chains), betas, step_sizes, starts)
    return totals[:chains], -totals[chains:]


def _walk(
    key: PRNGKey,
    log_joint: LogDensity,
    initial: Distribution,
    annealing: Annealing,
    scale: Float[Array, " d"],
    z: Event,
) -> Scalar:
    """One chain along the betas, in whichever direction they go: Σ_t (β_t+1 - β_t) log w(z_t), z_t moved at β_t.

    The weight of a step is taken *before* the move that it pays for.
    """
    betas, step_sizes, leapfrog_steps = annealing
    at = _path(log_joint, initial, z)

    def step(carry, inputs):
        point, total = carry
        t, width, beta, step_size = inputs
        total = total + width * point.log_weight
        key_move = jax.random.fold_in(key, t)
        point, _ = hamiltonian_transition(key_move, at, point, beta, step_size * scale, leapfrog_steps)
        return (point, total), None

    point = at(ravel_pytree(z)[0])
    widths = jnp.diff(betas)
    moves = (jnp.arange(betas.shape[0] - 2), widths[:-1], betas[1:-1], step_sizes)
    (point, total), _ = jax.lax.scan(step, (point, jnp.zeros_like(point.log_joint)), moves)
    return total + widths[-1] * point.log_weight


def hamiltonian_transition(
    key: PRNGKey,
    at: Callable[[Float[Array, " d"]], Point],
    point: Point,
    beta: Scalar,
    step_size: Float[Array, " d"],
    leapfrog_steps: int | Array,
) -> tuple[Point, Scalar]:
    """One Hamiltonian move that leaves π_β invariant and is reversible, and its probability of acceptance.

    step_size: per coordinate. A trajectory that leaves the support or overflows is refused. Neal (2011), section 3.2.
    """
    key_momentum, key_accept = jax.random.split(key)
    momentum = jax.random.normal(key_momentum, point.z.shape, point.z.dtype)

    def leap(_, carry):
        point, momentum = carry
        momentum = momentum + 0.5 * step_size * point.slope(beta)
        point = at(point.z + step_size * momentum)
        return point, momentum + 0.5 * step_size * point.slope(beta)

    proposal, final = jax.lax.fori_loop(0, leapfrog_steps, leap, (point, momentum))
    change = proposal.log_density(beta) - point.log_density(beta) - 0.5 * (final @ final - momentum @ momentum)
    change = jnp.where(jnp.isnan(change), -jnp.inf, change)
    accepted = jnp.log(jax.random.uniform(key_accept, (), change.dtype)) < change
    chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, point)
    return chosen, jnp.exp(jnp.minimum(change, 0))


def _path(log_joint: LogDensity, initial: Distribution, z: Event) -> Callable[[Float[Array, " d"]], Point]:
    """Flat z -> `Point`, for events like z."""
    _, unravel = ravel_pytree(z)

    def at(z: Float[Array, " d"]) -> Point:
        log_initial, slope_initial = jax.value_and_grad(lambda z: initial.log_prob(unravel(z)))(z)
        log_joint_z, slope_joint = jax.value_and_grad(lambda z: log_joint(unravel(z)))(z)
        return Point(z, log_initial, log_joint_z, slope_initial, slope_joint)

    return at


def _scale(key: PRNGKey, initial: Distribution) -> Float[Array, " d"]:
    """Standard deviations of the initial law, flat: known, or from draws that no chain uses (they only pace it)."""
    try:
        variance = initial.variance()
    except NotAvailable:
        variance = jax.tree.map(lambda z: z.var(0, ddof=1), initial.sample(key, (256,)))
    return jnp.sqrt(ravel_pytree(variance)[0])


def check_continuous(law: Distribution) -> None:
    """Raise ValueError for a law that is discrete, in whole or in part: its events have no gradient."""
    if not law.capabilities.reparameterised:
        raise ValueError(
            f"annealing moves along gradients in z, but {type(law).__name__} is not reparameterised; enumerate a "
            "discrete z (exact.expectation) or use evaluation.importance_weighted_nll"
        )


def check_betas(betas: Betas) -> None:
    """Raise ValueError unless the betas increase from 0 to 1; traced ones were checked outside."""
    if isinstance(betas, jax.core.Tracer):
        return
    values = np.asarray(betas)
    if values.ndim != 1 or values.size < 2 or values[0] != 0 or values[-1] != 1 or not (np.diff(values) > 0).all():
        raise ValueError(
            "betas must increase from 0, where the chains are drawn, to 1, the posterior; use linear_betas or "
            f"sigmoidal_betas, got {values}"
        )
