"""The score-function gradient (REINFORCE) and its baselines: differentiate the density, never the sample."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.distributions import Copies
from vbjax.estimators.estimate import check_samples, estimator_name, require_capability
from vbjax.types import Bound, GradientEstimator, Spec, stop_gradient


class Baseline(NamedTuple):
    """What is subtracted from the values of f, and what it costs.

    name: as the estimator's spec shows it. function: the K values -> one baseline for each. independent: whether no
    baseline depends on its own sample's value; if one does, the gradient in q is biased and the spec says so.
    min_samples: the fewest values that it is defined for.
    """

    name: str
    function: Callable[[Float[Array, " k"]], Float[Array, " k"]]
    independent: bool
    min_samples: int = 1


no_baseline = Baseline("no_baseline", jnp.zeros_like, independent=True)
"""No variance reduction: the plain REINFORCE estimator (Williams 1992)."""

leave_one_out = Baseline(
    "leave_one_out", lambda values: (values.sum() - values) / (values.shape[0] - 1), independent=True, min_samples=2
)
"""The mean of the other samples' values (RLOO; Kool et al. 2019): it never sees its own sample."""


def constant(b: float) -> Baseline:
    """The same number for every sample. E f is a fair choice; the best one is E[f s²]/E[s²] per parameter s."""
    return Baseline(f"constant({b:g})", lambda values: jnp.full_like(values, b), independent=True)


def score_function(
    samples: int = 1, *, baseline: Baseline = no_baseline, bound: Bound = bounds.mean
) -> GradientEstimator:
    """Estimate ∇E_q f by the mean of (f(z_k) - b_k) ∇log q(z_k) + ∇f(z_k), z_k drawn from q and held fixed.

    samples: K draws per estimate. baseline: `no_baseline`, `constant(b)`, `leave_one_out` or another `Baseline`.
    bound: of the K values of f; other bounds than the mean have one value, so they take no leave-one-out baseline.
    Needs only log_prob, so it serves discrete laws and discontinuous f, at a variance that pathwise estimators
    usually undercut. Right to every order of derivative (the surrogate is the DiCE of Foerster et al. 2018). Raises
    `NotAvailable` for a law whose support moves with its parameters, where the score misses a boundary term;
    ValueError for a baseline with too few values; TypeError for one that does not say what it sees.
    Source: Mohamed et al. (2020), eq. 12; lecture 000 «Optimization over the variational distribution».
    """
    check_samples(samples)
    if not isinstance(baseline, Baseline):
        raise TypeError(f"baseline must be a Baseline, got {baseline!r}; wrap it in "
                        "Baseline(name, function, independent=False)")  # fmt: skip
    if bound is not bounds.mean and baseline.min_samples > 1:
        raise ValueError(f"{baseline.name} serves the mean of the samples only; use no_baseline or constant(b)")
    if samples < baseline.min_samples:
        raise ValueError(f"{baseline.name} needs samples >= {baseline.min_samples}, got {samples}")

    def require_fixed_support(q):
        require_capability("score_function", q, "fixed_support", "use pathwise")

    def noise(q):
        require_fixed_support(q)
        return Copies(stop_gradient(q), samples)

    def surrogate(state, z, f, q):
        require_fixed_support(q)
        values = jax.vmap(f)(z)
        log_q = jax.vmap(q.log_prob)(z)
        if bound is not bounds.mean:
            values, log_q = bound(values)[None], log_q.sum()[None]
        magic_box = jnp.exp(log_q - stop_gradient(log_q))  # is 1; its derivative is the score
        b = stop_gradient(baseline.function(values))
        return jnp.mean(b + (values - b) * magic_box)

    name = estimator_name("score_function", samples, baseline.name, bound=bound)
    return GradientEstimator(
        spec=Spec(name, True, baseline.independent, True, ("fixed_support",), samples, None),
        noise=noise,
        surrogate=surrogate,
    )
