"""Control variates with a known mean: the Taylor expansion of f, whose expectation needs only moments of q.

`taylor` is the delta method of any law with a mean; `muprop` is its first-order form under the name by which discrete
latent variables know it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import gammaln, xlogy

from vbjax import bounds
from vbjax.bounds import LogWeight
from vbjax.distributions import (
    Bernoulli,
    Beta,
    Copies,
    Gamma,
    Joint,
    Laplace,
    LogGamma,
    Logistic,
    LogNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
)
from vbjax.distributions.discrete import expected_log
from vbjax.estimators.estimate import check_samples, estimator_name, inject
from vbjax.estimators.score_function import Baseline, check_baseline, draws, no_baseline, require_fixed_support
from vbjax.types import Event, GradientEstimator, NotAvailable, Objective, Scalar, Spec, stop_gradient

_INDEPENDENT = (Bernoulli, Beta, Gamma, Laplace, LogGamma, Logistic, LogNormal, Normal, Poisson, StudentT)


def taylor(samples: int = 1, *, order: int = 1, baseline: Baseline = no_baseline) -> GradientEstimator:
    """The score-function gradient of f less its Taylor expansion h around q's mean μ, plus the gradient of E h.

    (1/K) Σ_k (f(z_k) - h(z_k) - b_k) ∇log q(z_k) + ∇E_q h + (1/K) Σ_k ∂f(z_k),
    h(z) = f(μ) + ∇f(μ)·(z - μ) + ½ (z - μ)ᵀ H (z - μ),  ∇E_q h = ∇f(μ)·∇μ + ½ Σ_i H_ii ∇var_i,
    with μ, f and its slopes held fixed in h; the model's gradient ∂f comes from f at the samples alone, and a
    quadratic f leaves q's gradient no variance. order: 1 drops H and serves every law with a mean; 2 is for laws with
    independent coordinates and a variance. baseline: of the residuals f - h, as in `score_function`. f must be
    smooth and defined at μ, for a discrete law *between* its values: for an ELBO pass `bounds.LogWeight`, whose
    log-densities are extended to the mean (a plain log q there is -inf, and the gradient NaN). Calls f K times, its
    value and gradient at μ once each, and for order 2 its Hessian (counted once; it costs as many gradients as z has
    coordinates). First derivatives only. *Not for a wide q*: beyond the reach of the expansion it adds variance.
    Raises `NotAvailable` for integer events, dependent coordinates of order 2, or no mean; ValueError for another
    order. Source: Paisley et al. (2012), section 3; Gu et al. (2016), eq. 6; Mohamed et al. (2020), section 7.3.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    arguments = (samples, *([] if order == 1 else ["order=2"]), *([] if baseline is no_baseline else [baseline.name]))
    return _expansion(estimator_name("taylor", *arguments, bound=bounds.mean), samples, order, baseline)


def muprop(samples: int = 1, *, baseline: Baseline = no_baseline) -> GradientEstimator:
    """`taylor` of first order for discrete laws: a mean-field pass at μ carries a gradient that needs no sampling.

    (1/K) Σ_k (f(z_k) - f(μ) - ∇f(μ)·(z_k - μ) - b_k) ∇log q(z_k) + ∇f(μ)·∇μ + (1/K) Σ_k ∂f(z_k). f must accept the
    relaxed mean; pass an ELBO as `bounds.LogWeight`. K + 2 calls of f. *Not where f at the mean says little of f at
    the corners*, as for a parity. First derivatives only. Raises `NotAvailable` for `Categorical`: use
    `OneHotCategorical`, whose mean is a point of the simplex. Source: Gu et al. (2016), eq. 6.
    """
    arguments = (samples,) if baseline is no_baseline else (samples, baseline.name)
    return _expansion(estimator_name("muprop", *arguments, bound=bounds.mean), samples, 1, baseline)


def _expansion(name: str, samples: int, order: int, baseline: Baseline) -> GradientEstimator:
    check_samples(samples)
    check_baseline(baseline, samples)

    def noise(q):
        _require_moments(name, q, order)
        return draws(name, q, samples)

    def surrogate(state, z, f, q):
        _require_moments(name, q, order)
        held = stop_gradient(q)
        mean, as_event = ravel_pytree(held.mean())
        extended = _between_values(f)

        def objective(x):
            return extended(as_event(x))

        level, slope = jax.value_and_grad(objective)(mean)
        curvature = jax.hessian(objective)(mean) if order == 2 else None

        def expansion(deviation):
            linear = level + slope @ deviation
            return linear if curvature is None else linear + deviation @ curvature @ deviation / 2

        def expected(q):
            linear_and_shift = expansion(ravel_pytree(q.mean())[0] - mean)
            if curvature is None:
                return linear_and_shift
            return linear_and_shift + jnp.diagonal(curvature) @ ravel_pytree(q.variance())[0] / 2

        values = jax.vmap(f)(z)
        control = jax.vmap(lambda z: expansion(ravel_pytree(z)[0] - mean))(z)
        residuals = values - control
        residuals = residuals - baseline.function(residuals)
        gradient = jax.grad(lambda q: jnp.mean(residuals * jax.vmap(q.log_prob)(z)) + expected(q))(held)
        value = values.mean() + stop_gradient(expected(held) - control.mean())
        return value + inject(q, gradient, estimator=name)

    return GradientEstimator(
        Spec(name, True, baseline.independent, True, ("fixed_support",), samples + 1 + order, 1), noise, surrogate
    )


def _require_moments(name: str, q: Any, order: int) -> None:
    require_fixed_support(name, q)
    if any(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(jax.eval_shape(q.sample, jax.random.key(0)))):
        raise NotAvailable(f"{name} expands f around a mean, and a {type(q).__name__}'s events are integers; use "
                           "OneHotCategorical.")  # fmt: skip
    try:
        jax.eval_shape(lambda: (q.mean(), q.variance() if order == 2 else ()))
    except NotAvailable as missing:
        raise NotAvailable(f"{name} needs moments: {missing} Or use score_function.") from None
    if order == 2 and not _has_independent_coordinates(q):
        raise NotAvailable(f"{name} needs a law with independent coordinates, {type(q).__name__} is not known to be "
                           "one; use order=1.")  # fmt: skip


def _has_independent_coordinates(q: Any) -> bool:
    if isinstance(q, Copies):
        return _has_independent_coordinates(q.base)
    if isinstance(q, Joint):
        return all(map(_has_independent_coordinates, q.laws))
    return isinstance(q, _INDEPENDENT) or q.event_shape == ()


def _between_values(f: Objective) -> Callable[[Event], Scalar]:
    """f where the mean of a discrete law lies; only a `LogWeight` shows the log-densities that have to be extended."""
    if not isinstance(f, LogWeight):
        return f
    return lambda z: f.log_likelihood(z) + _extended_log_prob(f.prior, z) - _extended_log_prob(f.q, z)


def _extended_log_prob(law: Any, z: Event) -> Scalar:
    """The log-density, smooth between the values of a discrete law (linear, but for the Poisson law) and equal there.

    A value without mass is skipped where z leaves it out, so that 0 · log 0 = 0.
    """
    if isinstance(law, Copies):
        return jax.vmap(lambda z: _extended_log_prob(law.base, z))(z).sum()
    if isinstance(law, Joint):
        return jnp.stack([_extended_log_prob(part, z_i) for part, z_i in zip(law.laws, z, strict=True)]).sum()
    if isinstance(law, Bernoulli):
        both = jnp.stack([jax.nn.log_sigmoid(-law.logits), jax.nn.log_sigmoid(law.logits)], -1)
        return expected_log(jnp.stack([1 - z, z], -1), both).sum()
    if isinstance(law, OneHotCategorical):
        return expected_log(z, law.log_probs).sum()
    if isinstance(law, Poisson):
        return jnp.sum(xlogy(z, law.rate) - law.rate - gammaln(z + 1))
    return law.log_prob(z)
