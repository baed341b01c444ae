"""Noise schedules: γ_t = log((1-ᾱ_t)/ᾱ_t), the negative log signal-to-noise ratio, growing with time.

A discrete `Schedule` has times 1 … T, and 0 where nothing is lost (γ_0 = -∞). A continuous one is any growing function
γ(t) of t in [0, 1]; `discretise` turns it into the other. Start at `linear_schedule` and `linear_gamma`;
`MonotoneGamma` is the one that learns.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vbjax.types import PRNGKey, Scalar

Gamma = Callable[[Scalar], Scalar]
"""A continuous schedule: γ(t) for t in [0, 1], growing."""


class Schedule(NamedTuple):
    """gamma: γ_1 … γ_T."""

    gamma: Float[Array, " T"]

    @property
    def steps(self) -> int:
        """T."""
        return self.gamma.shape[0]

    def at(self, t: int | Int[Array, "*times"]) -> Float[Array, "*times"]:
        """γ_t for whole t from 0 to T; γ_0 is -∞."""
        start = jnp.full(1, -jnp.inf, self.gamma.dtype)
        return jnp.concatenate([start, self.gamma])[t]


def from_betas(betas: Float[Array, " T"]) -> Schedule:
    """The schedule whose step t adds noise of variance β_t in (0, 1): ᾱ_t = Π_{s=1}^t (1 - β_s).

    Raises ValueError for a β outside (0, 1), for none at all, and for one that is lost in rounding.
    """
    if betas.shape[0] == 0:
        raise ValueError("betas must hold one number a step, and at least one")
    if not isinstance(betas, jax.core.Tracer) and not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"betas must lie in (0, 1), ends excluded, got {betas.min()} to {betas.max()}")
    return _growing("betas", _log_odds(-jnp.cumsum(jnp.log1p(-betas))))


def discretise(gamma: Gamma, steps: int) -> Schedule:
    """γ_t = γ(t/T) for t = 1 … T; ValueError unless T >= 1 and γ grows from -∞ or more to what is finite."""
    _require_steps(steps)
    return _growing("gamma", jax.vmap(gamma)(jnp.arange(1, steps + 1) / steps))


def linear_schedule(steps: int, *, first: int | float = 1e-4, last: int | float = 0.02) -> Schedule:
    """A thousand β from first to last, looked at `steps` times: γ_t is theirs at time 1000 t / T.

    1000 steps are those of Ho et al. (2020, section 4). Any other number, one included, ends at the same γ_T; between
    two of the thousand, log ᾱ is interpolated. Raises ValueError unless steps >= 1 and 0 < first <= last < 1.
    """
    _require_steps(steps)
    if not 0 < first <= last < 1:
        raise ValueError(f"betas must satisfy 0 < first <= last < 1, got first={first}, last={last}")
    lost = np.cumsum([0, *-np.log1p(-np.linspace(first, last, 1000))])
    return _growing(
        "steps", _log_odds(_default_float(np.interp(np.arange(1, steps + 1) * 1000 / steps, range(1001), lost)))
    )


def cosine_schedule(steps: int, *, offset: int | float = 0.008, largest: int | float = 0.999) -> Schedule:
    """ᾱ_t = f(t/T)/f(0), f(t) = cos²(π/2 (t + s)/(1 + s)), with no β above `largest`.

    offset: s. Raises ValueError unless steps >= 1, offset >= 0 and 0 < largest < 1. Source: Nichol & Dhariwal (2021,
    eq. 17).
    """
    _require_steps(steps)
    if not (0 <= offset < math.inf and 0 < largest < 1):
        raise ValueError(f"offset must be >= 0 and largest in (0, 1), got offset={offset}, largest={largest}")
    left = np.cos(np.pi / 2 * (np.arange(steps + 1) / steps + offset) / (1 + offset)) ** 2
    betas = np.minimum(1 - left[1:] / left[:-1], largest)
    return _growing("steps", _log_odds(_default_float(np.cumsum(-np.log1p(-betas)))))


def sigmoid_schedule(
    steps: int,
    *,
    start: int | float = -3.0,
    end: int | float = 3.0,
    temperature: int | float = 1.0,
    least_left: int | float = 1e-9,
) -> Schedule:
    """ᾱ falls from 1 to 0 along the logistic function between start/temperature and end/temperature.

    least_left: ᾱ_T, which would be zero. Raises ValueError unless steps >= 1, start < end, temperature > 0 and
    0 < least_left < 1. Source: Jabri et al. (2023); Chen (2023, algorithm 1).
    """
    _require_steps(steps)
    if not 0 < least_left < 1:
        raise ValueError(f"least_left must lie in (0, 1), got {least_left}")
    gamma = sigmoid_gamma(-math.inf, math.log(1 / least_left - 1), start=start, end=end, temperature=temperature)
    return discretise(gamma, steps)


def linear_gamma(low: int | float = -13.3, high: int | float = 5.0) -> Gamma:
    """γ(t) from low to high at constant speed; the defaults are where VDM's learning starts (Kingma et al. 2021)."""
    _require_ends(low, high)
    return lambda t: low + (high - low) * t


def cosine_gamma(low: int | float = -13.3, high: int | float = 13.3) -> Gamma:
    """γ(t) = 2 log tan(a t + b), which is α = cos, σ = sin of an angle that grows at constant speed.

    Source: Nichol & Dhariwal (2021) in continuous time; with ends, Hoogeboom et al. (2023).
    """
    _require_ends(low, high)
    start, rest = math.atan(math.exp(low / 2)), math.atan(math.exp(-high / 2))
    sweep = math.pi / 2 - start - rest
    # the angle and what it lacks to a right angle, side by side: neither is found as a difference
    return lambda t: 2 * jnp.log(jnp.sin(start + sweep * t)) - 2 * jnp.log(jnp.sin(rest + sweep * (1 - t)))


def sigmoid_gamma(
    low: int | float = -13.3,
    high: int | float = 13.3,
    *,
    start: int | float = -3.0,
    end: int | float = 3.0,
    temperature: int | float = 1.0,
) -> Gamma:
    """ᾱ(t) falls along the logistic function between start/temperature and end/temperature, from low to high in γ.

    low: may be -∞. Raises ValueError unless low < high, start < end and temperature > 0. Source: Jabri et al. (2023).
    """
    if not low < high < math.inf:
        raise ValueError(f"low must be below high, and high finite, got low={low}, high={high}")
    if not (-math.inf < start < end < math.inf and temperature > 0):
        raise ValueError(f"start < end and temperature > 0 are needed, got {start}, {end} and {temperature}")
    a, b = start / temperature, end / temperature
    # 1-ᾱ and ᾱ are interpolated side by side: neither is found as one minus the other
    noise_low, noise_high = (1 / (1 + math.exp(-end)) for end in (low, high))
    left_low, left_high = (1 / (1 + math.exp(end)) for end in (low, high))

    def gamma(t):
        f_a, f_x, f_b = (jax.nn.sigmoid(x) for x in (jnp.full_like(t, a), a + (b - a) * t, jnp.full_like(t, b)))
        gone = (f_x - f_a) / (f_b - f_a)
        kept = (f_b - f_x) / (f_b - f_a)
        return jnp.log(noise_low * kept + noise_high * gone) - jnp.log(left_low * kept + left_high * gone)

    return gamma


def vp_gamma(*, first: int | float = 0.1, last: int | float = 20.0, start: int | float = 1e-5) -> Gamma:
    """The limit of many steps of `linear_schedule`: -log ᾱ = ∫ β with β from first to last, in [start, 1].

    start: the time, of [0, 1], that t = 0 stands for; at 0 itself γ = -∞. Raises ValueError unless
    0 < first <= last and 0 <= start < 1. Source: the variance-preserving SDE of Song et al. (2021, appendix C).
    """
    if not (0 < first <= last < math.inf and 0 <= start < 1):
        raise ValueError(f"0 < first <= last and 0 <= start < 1 are needed, got {first}, {last} and {start}")

    def gamma(t):
        time = start + (1 - start) * t
        return _log_odds(first * time + (last - first) / 2 * time**2)

    return gamma


class MonotoneGamma(NamedTuple):
    """A γ(t) that learns and always grows: a line plus logistic steps of positive height, between learnt ends.

    low: γ(0). log_range: of γ(1) - γ(0). log_heights, log_slopes, centres: `(features,)`. As a pytree it is its own
    parameters. Source: after the monotone network of Kingma et al. (2021, section 3.2).
    """

    low: Scalar
    log_range: Scalar
    log_heights: Float[Array, " features"]
    log_slopes: Float[Array, " features"]
    centres: Float[Array, " features"]

    def __call__(self, t: Scalar) -> Scalar:
        """γ(t) for t in [0, 1]."""
        start, here, end = (self._shape(x) for x in (jnp.zeros_like(t), t, jnp.ones_like(t)))
        return self.low + jnp.exp(self.log_range) * (here - start) / (end - start)

    def fixed_ends(self) -> "MonotoneGamma":
        """The same schedule, whose ends take no gradient."""
        return self._replace(low=jax.lax.stop_gradient(self.low), log_range=jax.lax.stop_gradient(self.log_range))

    def _shape(self, t):
        return t + jnp.exp(self.log_heights) @ jax.nn.sigmoid(jnp.exp(self.log_slopes) * (t - self.centres))


def monotone_gamma(
    key: PRNGKey, *, low: int | float = -13.3, high: int | float = 5.0, features: int = 32
) -> MonotoneGamma:
    """Parameters to start from: nearly the straight line from low to high; ValueError unless low < high."""
    _require_ends(low, high)
    if features < 1:
        raise ValueError(f"features must be at least 1, got {features}")
    return MonotoneGamma(
        low=_default_float(low),
        log_range=_default_float(math.log(high - low)),
        log_heights=jnp.full(features, -math.log(10 * features)),
        log_slopes=jnp.full(features, math.log(10)),
        centres=jax.random.uniform(key, (features,)),
    )


def _log_odds(lost: Float[Array, "*times"]) -> Float[Array, "*times"]:
    """log((1-ᾱ)/ᾱ) of -log ᾱ, for large ones too."""
    return jnp.log(-jnp.expm1(-lost)) + lost


def _default_float(x) -> Array:
    return jnp.asarray(x, jnp.result_type(float))


def _growing(name: str, gamma: Float[Array, " T"]) -> Schedule:
    if not isinstance(gamma, jax.core.Tracer):
        values = np.asarray(gamma)
        if not (np.isfinite(values).all() and (np.diff(values) > 0).all()):
            raise ValueError(
                f"{name} must make a finite γ that grows at every step, in {gamma.dtype}; take fewer steps, "
                f"or larger ones (γ goes from {values[0]:g} to {values[-1]:g})"
            )
    return Schedule(gamma)


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def _require_ends(low: int | float, high: int | float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low must be below high, and both finite, got low={low}, high={high}")
