"""The score-function gradient (REINFORCE) and its baselines: differentiate the density, never the sample.

Baselines that remember or learn are in `baselines`, expansions of f in `control_variates`, and the leave-one-out
signal of bounds other than the mean in `multi_sample`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.distributions import Copies
from vbjax.estimators.estimate import check_samples, estimator_name, require_capability
from vbjax.types import Bound, Event, GradientEstimator, Objective, Scalar, Spec, stop_gradient


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
    bound: of the K values of f; other bounds than the mean have one value, so they take no leave-one-out baseline:
    `vimco` is theirs.
    Needs only log_prob, so it serves discrete laws and discontinuous f, at a variance that pathwise estimators
    usually undercut. Right to every order of derivative (the surrogate is the DiCE of Foerster et al. 2018). Raises
    `NotAvailable` for a law whose support moves with its parameters, where the score misses a boundary term;
    ValueError for a baseline with too few values; TypeError for one that does not say what it sees.
    Source: Mohamed et al. (2020), eq. 12; lecture 000 «Optimization over the variational distribution».
    """
    check_samples(samples)
    check_baseline(baseline, samples)
    if bound is not bounds.mean and baseline.min_samples > 1:
        raise ValueError(
            f"{baseline.name} serves the mean of the samples only; use no_baseline or constant(b), or vimco, which "
            "leaves one out of any bound"
        )

    def noise(q):
        return draws("score_function", q, samples)

    def surrogate(state, z, f, q):
        require_fixed_support("score_function", q)
        values, log_q = values_and_log_probs(z, f, q, bound)
        return dice(values, log_q, baseline.function(values))

    name = estimator_name("score_function", samples, baseline.name, bound=bound)
    return GradientEstimator(
        spec=Spec(name, True, baseline.independent, True, ("fixed_support",), samples, None),
        noise=noise,
        surrogate=surrogate,
    )


def require_fixed_support(estimator: str, q: Any) -> None:
    """Raise `NotAvailable` for a law whose support moves with its parameters: the score misses a boundary term."""
    require_capability(estimator, q, "fixed_support", "use pathwise")


def draws(estimator: str, q: Any, samples: int) -> Copies:
    """The noise of every estimator by the score: K draws of q, held fixed."""
    require_fixed_support(estimator, q)
    return Copies(stop_gradient(q), samples)


def values_and_log_probs(z: Event, f: Objective, q: Any, bound: Bound) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """What the score multiplies, and the log-densities whose gradient it is.

    For the mean these are f(z_k) and log q(z_k), n = K; any other bound is one value of all the draws, n = 1.
    """
    values, log_q = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
    return (values, log_q) if bound is bounds.mean else (bound(values)[None], log_q.sum()[None])


def dice(values: Float[Array, " n"], log_q: Float[Array, " n"], baseline: Float[Array, " n"]) -> Scalar:
    """The mean of the values, whose derivatives of every order are score-function estimates (Foerster et al. 2018)."""
    b = stop_gradient(baseline)
    return jnp.mean(b + (values - b) * magic_box(log_q))


@jax.custom_jvp
def magic_box(log_q: Array) -> Array:
    """One, whose derivative is the score, to every order: exp(log q - stop(log q)) without its arithmetic."""
    return jnp.ones_like(log_q)


@magic_box.defjvp
def _magic_box_jvp(primals, tangents):
    one = magic_box(*primals)
    return one, one * tangents[0]


def check_baseline(baseline: Any, samples: int) -> None:
    """TypeError for a baseline that does not say what it sees, ValueError for too few samples."""
    if not isinstance(baseline, Baseline):
        raise TypeError(f"baseline must be a Baseline, got {baseline!r}; wrap it in "
                        "Baseline(name, function, independent=False)")  # fmt: skip
    if samples < baseline.min_samples:
        raise ValueError(f"{baseline.name} needs samples >= {baseline.min_samples}, got {samples}")
