"""Rényi, Jensen-Shannon and the f-divergences: closed for normal laws, exact sums on finite supports."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array

from vbjax.distributions import Distribution, MultivariateNormal, Normal
from vbjax.divergences.kullback_leibler import check_same_events, excess, kl_divergence, log_probs
from vbjax.types import NotAvailable, Scalar


def renyi_divergence(q: Distribution, p: Distribution, *, alpha: float) -> Scalar:
    """D_α(q‖p) = log E_p[(q/p)^α] / (α - 1) in nats; α = 1 is the KL divergence (van Erven & Harremoës 2014).

    Closed for two Normal or two MultivariateNormal laws (+inf where the integral diverges) and for finite laws of
    one kind. Raises ValueError unless 0 <= alpha < inf and the events have one shape, `NotAvailable` for other pairs.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be non-negative and finite, got {alpha}")
    check_same_events(q, p)
    if alpha == 1:
        return kl_divergence(q, p)
    if isinstance(q, Normal) and isinstance(p, Normal):
        return _renyi_normal(q, p, alpha)
    if isinstance(q, MultivariateNormal) and isinstance(p, MultivariateNormal):
        return _renyi_multivariate_normal(q, p, alpha)
    log_q, log_p = log_probs(q), log_probs(p)
    if log_q is None or log_p is None or log_q.shape != log_p.shape:
        pair = f"{type(q).__name__} from {type(p).__name__}"
        raise NotAvailable(f"Rényi divergence of {pair} has no closed form here; average powers of p/q over draws.")
    # q = 0 weighs nothing, whatever p is; the integral factorises over independent coordinates
    log_power = jnp.where(log_q == -jnp.inf, -jnp.inf, alpha * log_q + (1 - alpha) * log_p)
    return jnp.sum(logsumexp(log_power, axis=-1)) / (alpha - 1)


def _renyi_normal(q, p, alpha):
    # variances in units of p's: log1p of α - 1 times a difference keeps the limit α → 1 free of cancellation
    excess = (alpha - 1) * -jnp.expm1(2 * jnp.log(q.scale / p.scale))
    converges = jnp.all(excess > -1)
    excess = jnp.where(excess > -1, excess, 0)
    log_det = jnp.log(p.scale / q.scale) - 0.5 * jnp.log1p(excess) / (alpha - 1)
    distance = 0.5 * alpha * ((q.loc - p.loc) / p.scale) ** 2 / (1 + excess)
    return jnp.where(converges, jnp.sum(log_det + distance), jnp.inf)


def _renyi_multivariate_normal(q, p, alpha):
    tril = jnp.linalg.cholesky(alpha * p.covariance() + (1 - alpha) * q.covariance())
    diverges = jnp.isnan(tril).any()
    blend = MultivariateNormal(p.loc, jnp.where(diverges, p.scale_tril, tril))
    q_log_det, p_log_det, blend_log_det = (
        jnp.sum(jnp.log(jnp.diagonal(law.scale_tril, 0, -2, -1))) for law in (q, p, blend)
    )
    log_det = p_log_det - q_log_det + (p_log_det - blend_log_det) / (alpha - 1)
    return jnp.where(diverges, jnp.inf, log_det + 0.5 * alpha * jnp.sum(blend.whiten(q.loc) ** 2))


def f_divergence(q: Distribution, p: Distribution, f: Callable[[Array], Array], *, slope_at_infinity: float) -> Scalar:
    """D_f(q‖p) = E_p f(q/p) for a convex f with f(1) = 0, on a finite support (Csiszár 1967).

    f: elementwise, defined at 0. slope_at_infinity: the limit of f(t)/t, which weighs the mass of q where p has
    none (+inf for f(t) = t log t). Enumerates the events: raises `NotAvailable` where there are infinitely many.
    """
    points, p_points = q.enumerate(), p.enumerate()
    if jax.tree.map(jnp.shape, points) != jax.tree.map(jnp.shape, p_points):
        raise ValueError("f_divergence needs two laws on the same finite support")
    q_mass, p_mass = (jnp.exp(jax.vmap(law.log_prob)(points)) for law in (q, p))
    possible = p_mass > 0
    ratio = jnp.where(possible, q_mass, 1) / jnp.where(possible, p_mass, 1)
    inside = jnp.sum(jnp.where(possible, p_mass * f(ratio), 0))
    outside = jnp.sum(jnp.where(possible, 0, q_mass))
    return inside + jnp.where(outside > 0, slope_at_infinity * jnp.where(outside > 0, outside, 1), 0)


def total_variation(q: Distribution, p: Distribution) -> Scalar:
    """Half the L1 distance between two finite laws, in [0, 1]."""
    return f_divergence(q, p, lambda t: 0.5 * jnp.abs(t - 1), slope_at_infinity=0.5)


def chi_squared_divergence(q: Distribution, p: Distribution) -> Scalar:
    """χ²(q‖p) = E_p (q/p - 1)² on a finite support; +inf where q has mass outside the support of p."""
    return f_divergence(q, p, lambda t: (t - 1) ** 2, slope_at_infinity=math.inf)


def jensen_shannon_divergence(q: Distribution, p: Distribution) -> Scalar:
    """JSD = (KL(q‖m) + KL(p‖m)) / 2 with m = (q + p)/2, in nats, on a finite support; at most log 2 (Lin 1991).

    The divergence itself: SciPy's `jensenshannon` returns its square root.
    """
    points, p_points = q.enumerate(), p.enumerate()
    if jax.tree.map(jnp.shape, points) != jax.tree.map(jnp.shape, p_points):
        raise ValueError("jensen_shannon_divergence needs two laws on the same finite support")
    log_q, log_p = (jax.vmap(law.log_prob)(points) for law in (q, p))
    return 0.5 * (_distance_to_middle(log_q, log_p) + _distance_to_middle(log_p, log_q))


def _distance_to_middle(log_q: Array, log_p: Array) -> Scalar:
    """KL(q‖m) for m = (q + p)/2, a sum of q (r - 1 - log r) >= 0 for r = m/q; impossible outcomes cost m."""
    possible = log_q > -jnp.inf
    gap = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    log_ratio = jnp.logaddexp(0, gap) - math.log(2)
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    close = possible & (log_ratio < 1)
    near, far = jnp.where(close, log_ratio, 0), jnp.where(close, 0, log_ratio)
    # far out r overflows where its product with q does not
    return jnp.sum(jnp.where(close, q * excess(near), 0.5 * (p - q) - q * far))
