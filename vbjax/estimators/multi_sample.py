"""Estimators of K draws at once: leave-one-out signals of any bound, wake-sleep, the thermodynamic covariance.

Start at `vimco`. For these bounds by plain score or by path, pass `bound=` to `score_function` or `pathwise`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.bounds import LogWeight
from vbjax.distributions.discrete import expected_log
from vbjax.estimators.estimate import estimator_name, inject
from vbjax.estimators.score_function import draws, require_fixed_support
from vbjax.types import Bound, Event, GradientEstimator, NotAvailable, Spec, stop_gradient


def vimco(samples: int = 2, *, bound: Bound = bounds.iwae) -> GradientEstimator:
    """The score-function gradient of a bound B of K log-weights, each sample with its own learning signal.

    Σ_k (B(l) - B(l with l_k replaced by the mean of the others)) ∇log q(z_k) + ∂B(f(z_1), …, f(z_K)), l_k = f(z_k).
    The replacement never sees z_k, so it is unbiased. samples: K >= 2, else ValueError. bound: any; the mean gives
    `score_function` with `leave_one_out`. Zero where all log-weights are equal, as at the posterior. All log-weights
    must be finite. First derivatives only. *Not for reparameterised laws*, where `pathwise` varies less, and not for
    hundreds of samples: B is taken K + 1 times, and the signal of each sample fades like 1/K.
    Raises `NotAvailable` for a support that moves. Source: Mnih & Rezende (2016), eq. 10; for IWAE, eq. 8 and 9.
    """
    if samples < 2:
        raise ValueError(f"vimco needs samples >= 2, got {samples}; use score_function")

    def signals(values):
        others = (values.sum() - values) / (samples - 1)
        replaced = jnp.where(jnp.eye(samples, dtype=bool), others[:, None], values[None])
        return bound(values) - jax.vmap(bound)(replaced)

    return _by_signals(estimator_name("vimco", samples, bound=bound), samples, bound, signals, unbiased=True)


def tvo_covariance(samples: int = 2, *, betas) -> GradientEstimator:
    """The covariance gradient of the thermodynamic variational objective, by self-normalised weights.

    Σ_j Δβ_j Σ_k w̄_jk (l_k - l̄_j) ∇log q(z_k) + ∂B(l),  w̄_jk ∝ exp(β_j l_k),  l̄_j = Σ_k w̄_jk l_k,  B = `bounds.tvo`;
    that is Σ_j Δβ_j (E_π ∂ + Cov_π[∇log π̃, log w]) with π̃ ∝ q w^β. betas: as in `bounds.tvo`. *Biased in q's
    parameters for the K-sample bound and for the objective*, both like 1/K: it is consistent, the weights being
    normalised over the same draws (β = 0 alone is the ELBO's gradient times 1 - 1/K, and one sample gives nothing).
    For the K-sample bound without bias: `vimco(bound=bounds.tvo(betas))`, at a larger variance. The model's gradient
    is that of the K-sample bound. samples: K >= 2, else ValueError. First derivatives only. Raises `NotAvailable` for
    a support that moves. Source: Masrani et al. (2019), eq. 11 and appendix; eq. 8 for the objective.
    """
    if samples < 2:
        raise ValueError(f"tvo_covariance needs samples >= 2 for a covariance, got {samples}; use score_function")
    bound = bounds.tvo(betas)
    betas = np.asarray(betas, np.float64)
    widths = np.diff(betas, append=1.0)

    def signals(values):
        def covariance(beta):
            weights = bounds.shares(beta * values) if beta else jnp.full_like(values, 1 / samples)
            return weights * (values - expected_log(weights, values))

        return jnp.stack(
            [float(width) * covariance(float(beta)) for beta, width in zip(betas, widths, strict=True)]
        ).sum(0)

    return _by_signals(estimator_name("tvo_covariance", samples, bound=bound), samples, bound, signals, unbiased=False)


def reweighted_wake_sleep(samples: int = 2) -> GradientEstimator:
    """Wake-phase gradients: the model climbs the IWAE bound, q descends KL(posterior ‖ q), with the same K weights.

    model: Σ_k w̃_k ∂log w_k; q: Σ_k w̃_k ∇log q(z_k) as an *ascent* direction; w̃ = `bounds.shares` of log w; value:
    the IWAE bound. The model's gradient is unbiased for the K-sample bound. *q's is of another objective*, of
    -KL(p(z|x) ‖ q), and self-normalised: biased like 1/K for that one too. It needs no reparameterisation and its
    signal does not fade with K. f must be a `bounds.LogWeight`, whose own q is held fixed, else `NotAvailable`. First
    derivatives only. samples: at least 2 (one weight is always 1: pure score, no direction), else ValueError.
    *Not where the model is as yet wrong and q is needed for its bound alone*: that is `vimco`. The sleep phase needs
    draws of x from the model, which no f of one x holds.
    Source: Bornschein & Bengio (2015), eq. 5, 8; Le et al. (2019), section 3.2 (wake-φ).
    """
    if samples < 2:
        raise ValueError(f"reweighted_wake_sleep needs samples >= 2, got {samples}")
    name = estimator_name("reweighted_wake_sleep", samples, bound=bounds.iwae)

    def held(f):
        if not isinstance(f, LogWeight):
            raise NotAvailable(
                f"{name} treats log q apart from the model; pass f as bounds.LogWeight(log_likelihood, prior, q), or "
                "use vimco, which needs only values"
            )
        return f._replace(q=stop_gradient(f.q))

    def surrogate(state, z, f, q):
        require_fixed_support(name, q)
        log_weights = jax.vmap(held(f))(z)
        shares = bounds.shares(log_weights)
        return bounds.iwae(log_weights) + inject(q, _weighted_score(shares, z, q), estimator=name)

    return GradientEstimator(
        Spec(name, True, False, True, ("fixed_support",), samples, 1),
        functools.partial(draws, name, samples=samples),
        surrogate,
    )


def _by_signals(name, samples, bound, signals, *, unbiased: bool) -> GradientEstimator:
    """The bound, with Σ_k signals_k ∇log q(z_k) as its gradient in q and its own in what f closes over."""

    def surrogate(state, z, f, q):
        require_fixed_support(name, q)
        values = jax.vmap(f)(z)
        return bound(values) + inject(q, _weighted_score(signals(values), z, q), estimator=name)

    return GradientEstimator(
        Spec(name, True, unbiased, True, ("fixed_support",), samples, 1),
        functools.partial(draws, name, samples=samples),
        surrogate,
    )


def _weighted_score(weights: Float[Array, " k"], z: Event, q):
    """Σ_k weights_k ∇log q(z_k), a pytree like q, in one backward pass."""
    return jax.grad(lambda q: jnp.vdot(weights, jax.vmap(q.log_prob)(z)))(stop_gradient(q))
