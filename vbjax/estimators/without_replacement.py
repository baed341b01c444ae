"""Gradients for laws with few outcomes: f summed exactly over some of them, or drawn without replacement.

The joint support of q is one categorical, at most `MAX_OUTCOMES` of them; f is called for the chosen ones alone. All
differentiate probabilities, never a sample, so every order of derivative is right. Read `enumeration` first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from vbjax import bounds
from vbjax.distributions import Categorical, Copies
from vbjax.distributions.couplings import WithoutReplacement
from vbjax.estimators.estimate import check_samples, estimator_name, require_capability
from vbjax.estimators.score_function import leave_one_out, magic_box, no_baseline
from vbjax.types import Event, GradientEstimator, NotAvailable, Objective, Spec, stop_gradient

MAX_OUTCOMES = 4096
"""Largest support whose probabilities are listed for every estimate."""

MAX_DRAWS = 12
"""Most draws without replacement: the ratios take a sum over 2^k subsets."""


def enumeration(outcomes: int) -> GradientEstimator:
    """The exact sum Σ_z q(z) f(z) as an estimator without variance; its noise is a law with a single outcome.

    outcomes: how many q has, each of which costs a call of f. The reference that others are measured by, and the best
    choice whenever f is cheap enough. Right to every order of derivative. Raises `NotAvailable` for a support that is
    infinite or larger than `MAX_OUTCOMES`; ValueError if q has another number of outcomes.
    """
    name = estimator_name("enumeration", outcomes, bound=bounds.mean)

    def noise(q):
        _joint_support(name, q, outcomes)
        return Categorical(jnp.zeros(1, q.dtype))

    def surrogate(state, noise, f, q):
        points, log_p = _joint_support(name, q, outcomes)
        return _weigh(f, points, jnp.arange(outcomes, dtype=jnp.int32), log_p)

    return GradientEstimator(Spec(name, True, True, True, ("enumerable",), outcomes, None), noise, surrogate)


def sum_and_sample(top: int, samples: int = 1) -> GradientEstimator:
    """Estimate ∇E f by an exact sum over the most probable outcomes C and the score function on what remains:
    Σ_{z∈C} q(z) f(z) + q(Cᶜ) E[f(z) | z ∉ C].

    top: |C| >= 1; samples: K draws of q restricted to the rest, with a leave-one-out baseline if K > 1; top + K calls
    of f. Worth its calls when few outcomes hold most of the mass; no better than `score_function` when q is
    spread out, where `unordered_set` is. Right to every order of derivative. Raises `NotAvailable` as `enumeration`,
    and if nothing remains; ValueError for numbers below one. Source: Liu et al. (2019), section 3.
    """
    check_samples(samples)
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}; use score_function to sum over none")
    baseline = leave_one_out if samples > 1 else no_baseline
    name = estimator_name("sum_and_sample", top, samples, bound=bounds.mean)

    def split(q):
        points, log_p = _joint_support(name, q)
        if log_p.shape[0] <= top:
            raise NotAvailable(f"{name} leaves nothing of {log_p.shape[0]} outcomes to sample; use enumeration.")
        order = jnp.argsort(-stop_gradient(log_p)).astype(jnp.int32)
        log_rest = log_p[order[top:]]
        some = log_rest.max() > -jnp.inf  # else any law will do: its weight is zero
        return points, log_p, order, jnp.where(some, log_rest, 0), some

    def noise(q):
        return Copies(Categorical(split(stop_gradient(q))[3]), samples)

    def surrogate(state, drawn, f, q):
        points, log_p, order, log_rest, some = split(q)
        mass = jnp.where(some, jnp.exp(logsumexp(log_rest)), 0)
        log_q = jax.nn.log_softmax(log_rest)[drawn]
        values = _evaluate(f, points, jnp.where(some, order[top + drawn], order[0]))
        b = stop_gradient(baseline.function(values))
        return _weigh(f, points, order[:top], log_p[order[:top]]) + mass * jnp.mean(b + (values - b) * magic_box(log_q))

    return GradientEstimator(Spec(name, True, True, True, ("enumerable",), top + samples, None), noise, surrogate)


def unordered_set(samples: int = 2) -> GradientEstimator:
    """Estimate ∇E f from k different outcomes, whatever their order: Σ_{s∈S} ∇q(s) R(S, s) f(s).

    samples: k = |S| between 2 and `MAX_DRAWS`, drawn without replacement by the Gumbel top-k. R(S, s) = P(S | s first)
    / P(S) are its leave-one-out ratios, so that R q(s) replaces the weight 1/k of a draw; f is called k times. It
    averages k draws with replacement over everything that their set does not tell, but has no baseline: prefer
    `unordered_set_with_baseline`. Right to every order of derivative; exact when k is the number of outcomes. Raises
    ValueError for a k out of range; `NotAvailable` as `enumeration`. Source: Kool et al. (2020), section 3.
    """
    name = estimator_name("unordered_set", samples, bound=bounds.mean)

    def surrogate(state, drawn, f, q):
        points, log_p = _joint_support(name, q)
        log_ratio, _ = _leave_one_out_ratios(_floored(log_p), drawn)
        return _weigh(f, points, drawn, log_p[drawn], log_ratio)

    return _of_sets(name, samples, surrogate)


def unordered_set_with_baseline(samples: int = 2) -> GradientEstimator:
    """Estimate ∇E f from k different outcomes: Σ_{s∈S} ∇q(s) R(S, s) (f(s) - Σ_{s'∈S} q(s') R^{D∖s}(S, s') f(s')).

    The baseline of s estimates E f from the other members and s itself with its own probability, R^{D∖s}(S, s) = 1: it
    is unbiased whatever s is, so it costs no bias. samples, costs, errors: as `unordered_set`, whose value this one
    shares. With k = 2 it is leave-one-out of two different draws. Source: Kool et al. (2020), section 4.
    """
    name = estimator_name("unordered_set_with_baseline", samples, bound=bounds.mean)

    def surrogate(state, drawn, f, q):
        points, log_p = _joint_support(name, q)
        log_ratio, log_second = _leave_one_out_ratios(_floored(log_p), drawn)
        log_s = log_p[drawn]
        index, possible = _possible(drawn, log_s)
        values = _evaluate(f, points, index)
        log_s = jnp.where(possible, log_s, -jnp.inf)
        shares = jnp.where(possible[None], jnp.exp(log_s[None] + log_second), 0)
        b = stop_gradient(jnp.sum(shares * values[None], axis=1))
        weights = _weights(log_s, log_ratio)
        return jnp.sum(weights * values - (weights - stop_gradient(weights)) * b)

    return _of_sets(name, samples, surrogate)


def _of_sets(name: str, samples: int, surrogate) -> GradientEstimator:
    if not 2 <= samples <= MAX_DRAWS:
        raise ValueError(f"{name}: samples must lie between 2 and {MAX_DRAWS}, got {samples}")

    def noise(q):
        log_p = _joint_support(name, stop_gradient(q))[1]
        if log_p.shape[0] < samples:
            raise ValueError(f"{name} draws more than the {log_p.shape[0]} outcomes of q; use enumeration")
        return WithoutReplacement(_floored(log_p), samples)

    return GradientEstimator(Spec(name, True, True, True, ("enumerable",), samples, None), noise, surrogate)


def _joint_support(estimator: str, q, outcomes: int | None = None) -> tuple[Event, Float[Array, " n"]]:
    """All events of q, stacked, and their log-probabilities."""
    require_capability(estimator, q, "enumerable", "use score_function")
    points = q.enumerate()
    count = jax.tree.leaves(points)[0].shape[0]
    if count > MAX_OUTCOMES:
        raise NotAvailable(f"{estimator} lists at most {MAX_OUTCOMES} outcomes, q has {count}; use score_function.")
    if outcomes is not None and count != outcomes:
        raise ValueError(f"{estimator} needs a law of {outcomes} outcomes, q has {count}")
    return points, jax.vmap(q.log_prob)(points)


def _floored(log_p: Float[Array, " n"]) -> Float[Array, " n"]:
    """Log-probabilities to draw by: an outcome that cannot occur comes last, with weight zero.

    The draws may follow any law as long as the ratios are taken from the same one.
    """
    return stop_gradient(jnp.maximum(log_p, jnp.log(jnp.finfo(log_p.dtype).tiny)))


def _possible(index: Int[Array, " k"], log_p: Float[Array, " k"]):
    """The indices with the most probable one in place of those that cannot occur, where f may be infinite."""
    possible = log_p > -jnp.inf
    return jnp.where(possible, index, index[jnp.argmax(stop_gradient(log_p))]), possible


def _evaluate(f: Objective, points: Event, index: Int[Array, " k"]) -> Float[Array, " k"]:
    return jax.vmap(lambda i: f(jax.tree.map(lambda x: x[i], points)))(index)


def _weights(log_p: Float[Array, " k"], log_ratio: Float[Array, " k"]) -> Float[Array, " k"]:
    """p R, with the derivative of p; zero, with derivative zero, where p is."""
    possible = log_p > -jnp.inf
    return jnp.where(possible, jnp.exp(jnp.where(possible, log_p, 0) + log_ratio), 0)


def _weigh(f: Objective, points: Event, index, log_p, log_ratio=None):
    """Σ p R f over the indexed points."""
    index, _ = _possible(index, log_p)
    log_ratio = jnp.zeros_like(log_p) if log_ratio is None else log_ratio
    return jnp.sum(_weights(log_p, log_ratio) * _evaluate(f, points, index))


def _leave_one_out_ratios(
    log_p: Float[Array, " n"], drawn: Int[Array, " k"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """log R(S, s) and log R^{D∖s}(S, s') of the drawn set S.

    By h(A), A ⊆ S: the probability that, A removed from the support, the next draws are S ∖ A in any order. It
    satisfies h(S) = 1, h(A) = Σ_{s∈S∖A} p(s) h(A ∪ s) / (mass outside A): 2^k terms, all positive. Then R(S, s) =
    h({s}) / h(∅) and R^{D∖s}(S, s') = h({s, s'}) / h({s}), which is 1 for s' = s.
    """
    k = drawn.shape[0]
    member = 1 << np.arange(k)
    subsets = np.arange(2**k)
    free = (subsets[:, None] & member) == 0
    joined = subsets[:, None] | member
    log_s = log_p[drawn]
    chosen = (drawn[:, None] == jnp.arange(log_p.shape[0], dtype=drawn.dtype)[None]).any(0)
    log_outside = logsumexp(jnp.where(chosen, -jnp.inf, log_p))
    log_free = jnp.where(free, log_s[None], -jnp.inf)
    log_mass = jnp.logaddexp(logsumexp(log_free, axis=1), log_outside)
    full = subsets == 2**k - 1
    log_h = jnp.where(full, 0, -jnp.inf).astype(log_p.dtype)
    for _ in range(k):  # every pass finishes the subsets that are one member smaller
        log_h = jnp.where(full, 0, logsumexp(log_free + log_h[joined], axis=1) - log_mass)
    return log_h[member] - log_h[0], log_h[member[:, None] | member] - log_h[member][:, None]
