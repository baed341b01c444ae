"""Gradients for Bernoulli laws from coupled draws: ARM, DisARM (U2G) and ARMS; read `disarm` first.

Each evaluates f at negatively correlated vectors of bits, and lets the disagreements of every coordinate weigh the
difference of f. The bits of one vector are independent; f is any function of the whole vector.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.distributions import Bernoulli, Copies
from vbjax.distributions.couplings import AntitheticBernoulli, PiecewiseUniform
from vbjax.estimators.estimate import check_samples, estimator_name, inject
from vbjax.estimators.score_function import leave_one_out
from vbjax.types import GradientEstimator, NotAvailable, Spec, stop_gradient


def arm(samples: int = 1) -> GradientEstimator:
    """Estimate ∇E f by augment-REINFORCE-merge: (f(1[u ≥ σ(-φ)]) - f(1[u < σ(φ)])) (u - 1/2), u uniform per bit.

    samples: K vectors u of q's shape; f is evaluated twice for each, 2K calls, whose mean is the value and carries
    the gradient of what f closes over. Kept for comparison: `disarm` averages over what u leaves free, at the same
    cost and never a higher variance; here even a bit that is certain gets noise from the others. Gives first
    derivatives only. Raises `NotAvailable` unless q is a `Bernoulli`. Source: Yin & Zhou (2019), theorem 1.
    """
    check_samples(samples)
    name = estimator_name("arm", samples, bound=bounds.mean)

    def noise(q):
        _require_bernoulli("arm", q)
        logits = stop_gradient(q.logits)
        return Copies(PiecewiseUniform(jax.nn.sigmoid(jnp.stack([-logits, logits], axis=-1))), samples)

    def surrogate(state, u, f, q):
        _require_bernoulli("arm", q)
        logits = stop_gradient(q.logits)[None]
        bits = [u >= jax.nn.sigmoid(-logits), u < jax.nn.sigmoid(logits)]
        one, other = (jax.vmap(f)(b.astype(q.dtype)) for b in bits)
        return jnp.mean(one + other) / 2 + inject(q.logits, _weighted_mean(one - other, u - 1 / 2), estimator=name)

    return GradientEstimator(Spec(name, True, True, True, ("discrete",), 2 * samples, 1), noise, surrogate)


def disarm(samples: int = 2) -> GradientEstimator:
    """Estimate ∇E f from antithetic pairs of bits: ½ (f(b) - f(b̃)) (-1)^b̃ 1[b ≠ b̃] σ(|φ|).

    samples: calls of f, an even number: independent pairs b, b̃, each of the shape of q. Their mean is the value and
    carries the gradient of what f closes over. A pair says nothing of a coordinate where it agrees, as it mostly does
    at large |φ|; nothing is lost by it, since that gradient is small. Use `arms` for pairs of more than two. Gives
    first derivatives only. Raises ValueError for an odd number; `NotAvailable` unless q is a `Bernoulli`.
    Source: Dong et al. (2020), section 3; the same as U2G of Yin et al. (2020).
    """
    if samples < 2 or samples % 2:
        raise ValueError(f"disarm takes pairs: samples must be even, got {samples}")
    name = estimator_name("disarm", samples, bound=bounds.mean)

    def noise(q):
        _require_bernoulli("disarm", q)
        return Copies(AntitheticBernoulli(stop_gradient(q.logits), 2), samples // 2)

    def surrogate(state, b, f, q):
        _require_bernoulli("disarm", q)
        values = jax.vmap(jax.vmap(f))(b)
        # b - b̃ is (-1)^b̃ where they differ, and zero where they do not
        pairs = _weighted_mean(values[:, 0] - values[:, 1], b[:, 0] - b[:, 1])
        gradient = pairs * jax.nn.sigmoid(jnp.abs(q.logits)) / 2
        return values.mean() + inject(q.logits, gradient, estimator=name)

    return GradientEstimator(Spec(name, True, True, True, ("discrete",), samples, 1), noise, surrogate)


def arms(samples: int = 2) -> GradientEstimator:
    """Estimate ∇E f from n antithetic draws: 1/n Σ_i (f_i - mean of the others) (b_i - p) / (1 - ρ).

    samples: n >= 2 vectors b_i of q's shape, of `AntitheticBernoulli`: the bits of one coordinate have pair correlation
    ρ <= 0. Division by 1 - ρ undoes the bias that the leave-one-out mean then has. The mean of the f_i is the value
    and carries the gradient of what f closes over. For n = 2 it is `disarm`; n of one coupling need not beat n/2
    independent pairs of `disarm`, and do not for a single fair bit. Gives first derivatives only.
    Raises ValueError for one sample; `NotAvailable` unless q is a `Bernoulli`. Source: Dimitriev & Zhou (2021),
    section 3.
    """
    if samples < 2:
        raise ValueError(f"arms needs samples >= 2, got {samples}")
    name = estimator_name("arms", samples, bound=bounds.mean)

    def noise(q):
        _require_bernoulli("arms", q)
        return AntitheticBernoulli(stop_gradient(q.logits), samples)

    def surrogate(state, b, f, q):
        law = noise(q)
        values = jax.vmap(f)(b)
        gradient = _weighted_mean(values - leave_one_out.function(values), law.centred(b)) / (
            1 - law.pair_correlation()
        )
        return values.mean() + inject(q.logits, gradient, estimator=name)

    return GradientEstimator(Spec(name, True, True, True, ("discrete",), samples, 1), noise, surrogate)


def _weighted_mean(weights: Float[Array, " n"], x: Float[Array, "n *event"]) -> Float[Array, "*event"]:
    return jax.vmap(jnp.multiply)(weights, x).mean(0)


def _require_bernoulli(estimator: str, q) -> None:
    if not isinstance(q, Bernoulli):
        raise NotAvailable(f"{estimator} needs a Bernoulli law, got {type(q).__name__}; use score_function, or "
                           "unordered_set for few outcomes.")  # fmt: skip
