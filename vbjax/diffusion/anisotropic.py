"""Diffusion whose noise follows a graph: a covariance over the joints of a skeleton at every step.

    x_t = √α_t x_{t-1} + N(0, Σ_t),   Σ_t = (1 - α_t) [m_t Σ_N + (1 - m_t) I],   m_t in [0, 1)

An x is `(joints, d)` or `(frames, joints, d)`; covariances act on its joints. All of them commute: in the coordinates
y of their common eigenvectors, the *modes* of the graph, every law is a Normal with independent coordinates, and every
formula that of `process` with one γ for each mode. Denoisers see joints, laws are of modes, densities are the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from vbjax.diffusion.bound import DiffusionBound
from vbjax.diffusion.schedules import Schedule
from vbjax.distributions import Distribution, Normal
from vbjax.divergences import kl_divergence
from vbjax.types import PRNGKey, Scalar

X = Float[Array, "*frames joints d"]


class Level(NamedTuple):
    """Noise at one time. gamma: log((1-ᾱ_t)/ᾱ_t), as in `process`; modes: log(s/ᾱ_t) for the eigenvalues s of Σ̄_t."""

    gamma: Scalar
    modes: Float[Array, " joints"]


Denoiser = Callable[[X, Level], X]
"""`(x_t, level) -> x̂_0`, joints to joints; one of `process` reads `level.gamma` alone."""

Variance = Callable[[Level, Level], Float[Array, " joints"]]
"""`(level_s, level_t) ->` a variance of p(y_s|y_t) for each mode."""


class AnisotropicSchedule(NamedTuple):
    """gamma: γ_1 … γ_T; modes: the same for each mode; basis: Σ_N's eigenvectors, as columns."""

    gamma: Float[Array, " T"]
    modes: Float[Array, "T joints"]
    basis: Float[Array, "joints joints"]

    @property
    def steps(self) -> int:
        """T."""
        return self.gamma.shape[0]

    def at(self, t: int | Int[Array, ""]) -> Level:
        """The noise at time t, from 0, where there is none, to T."""
        start = jnp.full_like(self.modes[:1], -jnp.inf)
        return Level(Schedule(self.gamma).at(t), jnp.concatenate([start, self.modes])[t])

    def covariance(self, t: int | Int[Array, ""]) -> Float[Array, "joints joints"]:
        """Σ̄_t, the covariance of q(x_t|x_0) over the joints."""
        return (self.basis * mode_variance(self.at(t))[None]) @ self.basis.T

    def to_modes(self, x: X) -> X:
        """Coordinates of the eigenvectors, y = Uᵀ x on the axis of the joints."""
        return self.basis.T @ x

    def to_joints(self, y: X) -> X:
        """x = U y, back from the modes."""
        return self.basis @ y

    def prior(self, shape: tuple[int, ...]) -> Normal:
        """N(0, Σ̄_T / (1-ᾱ_T)) on the modes, which q(x_T) tends to; N(0, I) where the noise is white."""
        last = self.at(self.steps)
        variance = mode_variance(last) / jax.nn.sigmoid(last.gamma)
        return _normal(jnp.zeros(shape, self.modes.dtype), variance)


class AnisotropicModel(NamedTuple):
    """On modes: p(y_T); p(y_s|y_t) of `(y_t, level_s, level_t)`; p(y_0|y_1) of `(y_1, level_1)`."""

    prior: Normal
    reverse: Callable[[X, Level, Level], Normal]
    decode: Callable[[X, Level], Distribution]


def skeleton_covariance(adjacency: ArrayLike) -> Float[np.ndarray, "joints joints"]:
    """Σ_N = (A - λ_min I)/(λ_max - λ_min): eigenvalues from 0 to 1, correlation between neighbours.

    adjacency: symmetric, weights welcome. Raises ValueError for a graph without edges, where Σ_N is 0/0, and for what
    is not a finite symmetric matrix. Source: Curreli et al. (2025), eq. 8; lecture 001 «Isotropic vs. Anisotropic
    Diffusion».
    """
    A = np.asarray(adjacency, np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"adjacency must be a square matrix over the joints, got shape {A.shape}")
    if not np.isfinite(A).all():
        raise ValueError("adjacency must be finite, but it holds NaN or infinity")
    if not np.array_equal(A, A.T):
        raise ValueError("adjacency must be symmetric: pass A + A.T for a tree of parents")
    if not (A - np.diag(A.diagonal())).any():
        raise ValueError("adjacency has no edge between two joints: with nothing to follow, use the isotropic process")
    eigenvalues = np.linalg.eigvalsh(A)
    return (A - eigenvalues[0] * np.eye(len(A))) / (eigenvalues[-1] - eigenvalues[0])


def anisotropic(schedule: Schedule, adjacency: ArrayLike, mixing: ArrayLike) -> AnisotropicSchedule:
    """The schedule with the same ᾱ_t whose step t adds noise of covariance Σ_t.

    mixing: m_t (the lecture's γ_t), one for all steps or `(T,)`; 0 is white noise. Raises ValueError outside of [0, 1):
    at 1 the noise misses a direction, and no bound is finite; and as `skeleton_covariance`.
    """
    eigenvalues, basis = np.linalg.eigh(skeleton_covariance(adjacency))
    mixed = np.asarray(mixing, np.float64)
    if mixed.shape not in ((), schedule.gamma.shape):
        raise ValueError(f"mixing must be one number or one for each of {schedule.steps} steps, got {mixed.shape}")
    if not ((mixed >= 0) & (mixed < 1)).all():
        raise ValueError(f"mixing must lie in [0, 1), for at 1 the noise misses a direction; got {mixing}")
    dtype = schedule.gamma.dtype
    mixed = np.broadcast_to(mixed, schedule.gamma.shape)[:, None]
    # 1 - m + m λ ≥ 1 - m, also where λ = 0 is a rounding error below
    shares = jnp.asarray(np.log(1 - mixed + mixed * np.clip(eigenvalues, 0, 1)[None]), dtype)
    before = schedule.at(jnp.arange(schedule.steps))
    # s_t/ᾱ_t is the sum of what the steps add to it; white noise would add exp γ_t - exp γ_{t-1}
    added = schedule.gamma + jnp.log(-jnp.expm1(before - schedule.gamma))
    modes = jax.lax.cumlogsumexp(added[:, None] + shares, axis=0)
    return AnisotropicSchedule(schedule.gamma, modes, jnp.asarray(basis, dtype))


def signal(level: Level) -> Scalar:
    """√ᾱ_t."""
    return jnp.sqrt(jax.nn.sigmoid(-level.gamma))


def mode_variance(level: Level) -> Float[Array, " joints"]:
    """The eigenvalues of Σ̄_t."""
    return jax.nn.sigmoid(-level.gamma) * jnp.exp(level.modes)


def marginal(y0: X, level: Level) -> Normal:
    """q(y_t|y_0)."""
    return _normal(signal(level) * y0, mode_variance(level))


def transition(y_s: X, level_s: Level, level_t: Level) -> Normal:
    """q(y_t|y_s), s < t."""
    return _normal(signal(level_t) / signal(level_s) * y_s, forward_variance(level_s, level_t))


def posterior(y_t: X, y0: X, level_s: Level, level_t: Level) -> Normal:
    """q(y_s|y_t, y_0) for 0 < s < t: variance Σ_t Σ̄_s Σ̄_t⁻¹ where s = t - 1."""
    return _normal(posterior_mean(y_t, y0, level_s, level_t), posterior_variance(level_s, level_t))


def posterior_mean(y_t: X, y0: X, level_s: Level, level_t: Level) -> X:
    """Mean of q(y_s|y_t, y_0); y_0 itself at s = 0."""
    kept = jnp.exp(level_s.modes - level_t.modes) * signal(level_s) / signal(level_t)
    return _along(kept, y_t) * y_t + _along(signal(level_s) * _lost(level_s, level_t), y0) * y0


def posterior_variance(level_s: Level, level_t: Level) -> Float[Array, " joints"]:
    """The variance of q(y_s|y_t, y_0), and the best for data that are one point."""
    return mode_variance(level_s) * _lost(level_s, level_t)


def forward_variance(level_s: Level, level_t: Level) -> Float[Array, " joints"]:
    """The eigenvalues of Σ_t where s = t - 1."""
    return mode_variance(level_t) * _lost(level_s, level_t)


def measured_variance(schedule: AnisotropicSchedule, errors: Float[Array, "T joints"]) -> Variance:
    """The variance of p(y_s|y_t) that makes the bound least, among those that are one for each mode.

    errors: E (y_0 - ŷ_0)² of the denoiser at every time, as `mode_errors` measures it on data that are not the test's.
    Source: Bao et al. (2022), theorem 1 and section 3.
    """

    def variance(level_s: Level, level_t: Level) -> Float[Array, " joints"]:
        error = errors[jnp.searchsorted(schedule.gamma, level_t.gamma)]
        return posterior_variance(level_s, level_t) + (signal(level_s) * _lost(level_s, level_t)) ** 2 * error

    return variance


def mode_errors(key: PRNGKey, denoiser: Denoiser, schedule: AnisotropicSchedule, x0: X) -> Float[Array, "T joints"]:
    """(y_0 - ŷ_0)² at one draw of every x_t, averaged over all but the modes."""
    y0 = schedule.to_modes(x0)

    def at(now):
        key, t = now
        y_t = marginal(y0, schedule.at(t)).sample(key)
        error = schedule.to_modes(denoiser(schedule.to_joints(y_t), schedule.at(t))) - y0
        return (error**2).mean(-1).reshape(-1, y0.shape[-2]).mean(0)

    return jax.lax.map(at, (jax.random.split(key, schedule.steps), jnp.arange(1, schedule.steps + 1)))


def denoising_model(
    denoiser: Denoiser,
    schedule: AnisotropicSchedule,
    shape: tuple[int, ...],
    *,
    variance: Variance = posterior_variance,
) -> AnisotropicModel:
    """The model of a denoiser: q(y_s|y_t, ŷ_0) with a variance of one's choice, from the right prior.

    shape: of x. p(y_0|y_1) is N(ŷ_0, s_1/ᾱ_1), what x_1 says of x_0 where all x_0 are equally likely.
    """

    def denoise(y_t: X, level: Level) -> X:
        return schedule.to_modes(denoiser(schedule.to_joints(y_t), level))

    def reverse(y_t: X, level_s: Level, level_t: Level) -> Normal:
        return _normal(posterior_mean(y_t, denoise(y_t, level_t), level_s, level_t), variance(level_s, level_t))

    def decode(y_1: X, level: Level) -> Normal:
        return _normal(denoise(y_1, level), jnp.exp(level.modes))

    return AnisotropicModel(schedule.prior(shape), reverse, decode)


def diffusion_bound(key: PRNGKey, model: AnisotropicModel, schedule: AnisotropicSchedule, x0: X) -> DiffusionBound:
    """The terms of an upper bound on -log p(x_0), in nats, each at its own draw of x_t (Ho et al. 2020, eq. 5)."""
    key_terms, key_decode = jax.random.split(key)
    times = jnp.arange(2, schedule.steps + 1)
    keys = jax.random.split(key_terms, schedule.steps - 1)
    terms = jax.lax.map(lambda pair: diffusion_term(pair[0], model, schedule, x0, pair[1]), (keys, times))
    return DiffusionBound(prior_term(model, schedule, x0), terms, reconstruction_term(key_decode, model, schedule, x0))


def prior_term(model: AnisotropicModel, schedule: AnisotropicSchedule, x0: X) -> Scalar:
    """L_T, the KL divergence from q(x_T|x_0) to the model's prior; it tends to 0 only for the right one."""
    return kl_divergence(marginal(schedule.to_modes(x0), schedule.at(schedule.steps)), model.prior)


def diffusion_term(
    key: PRNGKey, model: AnisotropicModel, schedule: AnisotropicSchedule, x0: X, t: int | Int[Array, ""]
) -> Scalar:
    """L_{t-1} at one draw of x_t, for t from 2 to T."""
    y0, level_s, level_t = schedule.to_modes(x0), schedule.at(t - 1), schedule.at(t)
    y_t = marginal(y0, level_t).sample(key)
    return kl_divergence(posterior(y_t, y0, level_s, level_t), model.reverse(y_t, level_s, level_t))


def reconstruction_term(key: PRNGKey, model: AnisotropicModel, schedule: AnisotropicSchedule, x0: X) -> Scalar:
    """L_0 at one draw of x_1."""
    y0, level = schedule.to_modes(x0), schedule.at(1)
    return -model.decode(marginal(y0, level).sample(key), level).log_prob(y0)


def noise_error(
    key: PRNGKey, denoiser: Denoiser, schedule: AnisotropicSchedule, x0: X, t: int | Int[Array, ""]
) -> Scalar:
    """‖ε - ε̂‖² / dim x at one draw of x_t = √ᾱ_t x_0 + Σ̄_t^½ ε, where ε̂ is the white noise that x̂_0 implies.

    L_simple for the prediction of ε (Ho et al. 2020, eq. 14). For m_t constant and γ_t linear in t its mean over
    t = 2 … T is that of the bound's terms but for a factor.
    """
    level = schedule.at(t)
    x_t = schedule.to_joints(marginal(schedule.to_modes(x0), level).sample(key))
    error = schedule.to_modes(denoiser(x_t, level) - x0)
    return jnp.mean(error**2 * _along(jnp.exp(-level.modes), error))


def sample(key: PRNGKey, model: AnisotropicModel, schedule: AnisotropicSchedule) -> X:
    """One x_0 drawn from the model, from y_T down."""
    return sample_path(key, model, schedule)[0]


def sample_path(
    key: PRNGKey, model: AnisotropicModel, schedule: AnisotropicSchedule
) -> Float[Array, "times *frames joints d"]:
    """x_0, x_1, …, x_T of one draw from the model; its x_0 is that of `sample`."""
    key_prior, key_steps, key_decode = jax.random.split(key, 3)

    def step(y_t, now):
        key, t = now
        return (model.reverse(y_t, schedule.at(t - 1), schedule.at(t)).sample(key), y_t)

    times = jnp.arange(schedule.steps, 1, -1)
    keys = jax.random.split(key_steps, schedule.steps - 1)
    y_1, above = jax.lax.scan(step, model.prior.sample(key_prior), (keys, times))
    y_0 = model.decode(y_1, schedule.at(1)).sample(key_decode)
    return jax.vmap(schedule.to_joints)(jnp.concatenate([y_0[None], y_1[None], above[::-1]]))


def _lost(level_s: Level, level_t: Level) -> Float[Array, " joints"]:
    """1 - SNR_t / SNR_s of each mode, without cancellation."""
    return -jnp.expm1(level_s.modes - level_t.modes)


def _along(values: Float[Array, " joints"], y: X) -> Float[Array, "..."]:
    """One number for each joint, beside y."""
    return values.reshape(*[1] * (y.ndim - 2), -1, 1)


def _normal(mean: X, variance: Float[Array, " joints"]) -> Normal:
    return Normal(mean, jnp.broadcast_to(jnp.sqrt(_along(variance, mean)), mean.shape))
