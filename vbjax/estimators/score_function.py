"""The score-function gradient (REINFORCE) and its baselines: differentiate the density, never the sample."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.distributions import Copies
from vbjax.estimators.estimate import check_samples, require_capability
from vbjax.types import Bound, GradientEstimator, Spec, stop_gradient

Baseline = Callable[[Float[Array, " k"]], Float[Array, " k"]]
"""The K values of f -> one baseline for each, which must not depend on that sample's own value."""


def no_baseline(values: Float[Array, " k"]) -> Float[Array, " k"]:
    """No variance reduction: the plain REINFORCE estimator (Williams 1992)."""
    return jnp.zeros_like(values)


def constant(baseline: float) -> Baseline:
    """The same number for every sample. E f is a fair choice; the best one is E[f s²]/E[s²] per parameter s."""
    return lambda values: jnp.full_like(values, baseline)


def leave_one_out(values: Float[Array, " k"]) -> Float[Array, " k"]:
    """The mean of the other samples' values (RLOO; Kool et al. 2019): it never sees its own sample."""
    return (values.sum() - values) / (values.shape[0] - 1)


def score_function(
    samples: int = 1, *, baseline: Baseline = no_baseline, bound: Bound = bounds.mean
) -> GradientEstimator:
    """Estimate ∇E_q f by the mean of (f(z_k) - b_k) ∇log q(z_k) + ∇f(z_k), z_k drawn from q and held fixed.

    samples: K draws per estimate. baseline: `no_baseline`, `constant(b)` or `leave_one_out`. bound: of the K values
    of f; other bounds than the mean take no leave-one-out baseline. Needs only log_prob, so it serves discrete laws
    and discontinuous f, at a variance that pathwise estimators usually undercut. Right to every order of
    derivative (the surrogate is the DiCE of Foerster et al. 2018). Raises `NotAvailable` for a law whose support
    moves with its parameters, where the score misses a boundary term; ValueError for leave-one-out with one sample.
    Source: Mohamed et al. (2020), eq. 12; lecture 000 «Optimization over the variational distribution».
    """
    check_samples(samples)
    if baseline is leave_one_out and samples < 2:
        raise ValueError("leave_one_out needs samples >= 2: with one sample there is no other to average")
    if baseline is leave_one_out and bound is not bounds.mean:
        raise ValueError("leave_one_out serves the mean of the samples only; use no_baseline or constant(b)")

    def noise(q):
        require_capability("score_function", q, "fixed_support", "use pathwise")
        return Copies(stop_gradient(q), samples)

    def surrogate(state, z, f, q):
        values = jax.vmap(f)(z)
        log_q = jax.vmap(q.log_prob)(z)
        if bound is not bounds.mean:
            values, log_q = bound(values)[None], log_q.sum()[None]
        magic_box = jnp.exp(log_q - stop_gradient(log_q))  # is 1; its derivative is the score
        b = stop_gradient(baseline(values))
        return jnp.mean(b + (values - b) * magic_box)

    name = getattr(baseline, "__name__", "baseline").replace("<lambda>", "constant")
    return GradientEstimator(
        spec=Spec(f"score_function({samples}, {name})", True, True, True, ("fixed_support",), samples, None),
        noise=noise,
        surrogate=surrogate,
        init=lambda q: (),
        update=lambda state, noise, f, q: state,
    )
