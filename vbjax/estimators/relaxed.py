"""Relaxed discrete variables: a continuous variable z whose rounding is the sample b, and gradients through z.

A Bernoulli b is 1 where z = logits + logistic noise > 0; a one-hot b is at the largest of z = log-probabilities +
Gumbel noise. Noise is drawn as (b, s): the sample first, then standard noise s that gives z conditionally on b by a
smooth map, so that the law of the noise has exact nodes. Every estimator here is *biased*, and popular; `rebar`
uses the same relaxation without bias. Read `given` first.

The objective f must accept relaxed events, inside the cube or the simplex, and be differentiable there. `log_prob` of
a discrete law is -inf off the corners, and jumps there: write an ELBO as log p(x|b) - `kl_divergence(q, prior)`, whose
KL needs no sample, or with `relaxed_log_prob`, which agrees at the corners: log p(x|b) + relaxed_log_prob(prior, b) -
relaxed_log_prob(q, b). `require_continuous` refuses an f that jumps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vbjax import bounds
from vbjax.distributions import (
    Bernoulli,
    Categorical,
    Copies,
    Distribution,
    Joint,
    LogGamma,
    Logistic,
    OneHotCategorical,
)
from vbjax.estimators.discontinuity import require_continuous
from vbjax.estimators.estimate import check_samples, estimator_name, inject
from vbjax.types import Bound, GradientEstimator, NotAvailable, Objective, Scalar, Spec, stop_gradient


def relaxation_noise(estimator: str, q: Distribution) -> Distribution:
    """The standard noise of the relaxation of q: logistic, or minus Gumbel; `NotAvailable` for other laws."""
    if isinstance(q, Bernoulli):
        return Logistic(jnp.zeros_like(q.logits), jnp.ones_like(q.logits))
    if isinstance(q, OneHotCategorical):
        return LogGamma(jnp.ones_like(q.logits))
    if isinstance(q, Categorical):
        raise NotAvailable(f"{estimator} cannot relax the integers of a Categorical; use OneHotCategorical(logits).")
    raise NotAvailable(f"{estimator} relaxes Bernoulli and OneHotCategorical, not {type(q).__name__}; use pathwise, "
                       "score_function, or mixed with one estimator per site.")  # fmt: skip


def given(q: Bernoulli | OneHotCategorical, b: Array, s: Array) -> Array:
    """The relaxed z given its rounding b, from standard noise s, differentiable in q at fixed s.

    Bernoulli: logistic noise truncated at the threshold; one-hot: a Gumbel maximum and Gumbels truncated at it.
    Source: Tucker et al. (2017), appendix C; Maddison et al. (2014).
    """
    if isinstance(q, Bernoulli):
        up, down = jax.nn.softplus(q.logits), jax.nn.softplus(-q.logits)
        return jnp.where(b == 1, jax.nn.softplus(s + up), -jax.nn.softplus(down - s))
    top = -jnp.sum(b * s, axis=-1, keepdims=True)
    return jnp.where(b == 1, top, -jnp.logaddexp(-top, s - q.log_probs))


def held(q: Bernoulli | OneHotCategorical, z: Array) -> Array:
    """The value z as logits (or log-probabilities) plus noise that is held fixed: the unconditional path."""
    natural = _natural(q)
    return natural + jax.lax.stop_gradient(jnp.where(jnp.isfinite(natural), z - natural, 0))


def require_relaxable(estimator: str, q: Distribution, f: Objective) -> None:
    """Raise `NotAvailable` unless q has a relaxation and f is continuous on it."""
    relaxation_noise(estimator, q)
    require_continuous(estimator, f, jax.ShapeDtypeStruct(q.event_shape, q.dtype))


def soften(q: Bernoulli | OneHotCategorical, z: Array, temperature: Any) -> Array:
    """The relaxed event σ(z/λ), or softmax(z/λ) along the last axis."""
    return jax.nn.sigmoid(z / temperature) if isinstance(q, Bernoulli) else jax.nn.softmax(z / temperature)


def relaxed_log_prob(q: Any, z: Array) -> Scalar:
    """log q at the corners, in nats, and its multilinear extension inside: Σ z log p + (1-z) log(1-p), or Σ z log p.

    For objectives of relaxed events; logits must be finite. Raises `NotAvailable` for other laws.
    """
    relaxation_noise("relaxed_log_prob", q)
    if isinstance(q, Bernoulli):
        return jnp.sum(z * q.logits - jax.nn.softplus(q.logits))
    return jnp.sum(z * q.log_probs)


def gumbel_softmax(samples: int = 1, *, temperature: int | float, bound: Bound = bounds.mean) -> GradientEstimator:
    """Differentiate the relaxed problem: ∇ f(soft_λ(logits + ε)), of value f(soft_λ), not f(b).

    temperature: λ > 0; the bias vanishes and the variance explodes as λ → 0. bound: of the K relaxed values. Value
    and both gradients belong to the relaxed objective, so all are biased for a discrete q, even where f is linear.
    *Not where an unbiased answer or a bound is wanted.* f must accept relaxed events (module docstring). Derivatives
    of any order are those of the relaxed objective. Raises `NotAvailable` for laws other than Bernoulli and
    OneHotCategorical, and for an f that jumps. Source: Jang et al. (2017); Maddison et al. (2017).
    """
    check_samples(samples)
    check_temperature(temperature)
    name = estimator_name("gumbel_softmax", samples, f"temperature={temperature:g}", bound=bound)

    def noise(q):
        return Copies(relaxation_noise(name, q), samples)

    def surrogate(state, s, f, q):
        require_relaxable(name, q, f)
        sign = 1 if isinstance(q, Bernoulli) else -1
        return bound(jax.vmap(lambda s: f(soften(q, _natural(q) + sign * s, temperature)))(s))

    return GradientEstimator(Spec(name, False, False, False, ("discrete",), samples, None), noise, surrogate)


def straight_through(samples: int = 1, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """Pretend that b is its mean: ∇f(b) · ∂E b/∂η, b drawn from q.

    Exact for f linear in each coordinate of a site (and constant elsewhere), biased otherwise by the curvature of
    f; its value and the gradient of the model's parameters, at the hard b, are unbiased. Use `reinmax` for the same
    cost and one order more. f must accept a neighbourhood of the corners (module docstring). A gradient of f
    counts as a call. Raises `NotAvailable` for laws other than Bernoulli and OneHotCategorical, and for second
    derivatives. Source: Bengio et al. (2013), section 4.
    """
    name = estimator_name("straight_through", samples, bound=bound)
    return _hard(name, samples, bound, lambda q: (), lambda q, b: q.mean())


def straight_through_gumbel_softmax(
    samples: int = 1, *, temperature: int | float, bound: Bound = bounds.mean
) -> GradientEstimator:
    """Evaluate f at the hard b and differentiate the soft one: ∇f(b) · ∂soft_λ(logits + ε)/∂η.

    temperature: λ > 0. Biased in η; value and model gradient, at the hard b, are unbiased. `gumbel_rao` has the
    same mean and less variance. f must accept a neighbourhood of the corners (module docstring). A gradient of f
    counts as a call. Raises `NotAvailable` as `straight_through`. Source: Jang et al. (2017), section 2.2.
    """
    check_temperature(temperature)
    name = estimator_name("straight_through_gumbel_softmax", samples, f"temperature={temperature:g}", bound=bound)

    def soft(q, b, s):
        return soften(q, held(q, given(q, b, s)), temperature)

    return _hard(name, samples, bound, lambda q: (relaxation_noise(name, q),), soft)


def gumbel_rao(
    samples: int = 1, *, temperature: int | float, conditional_draws: int = 10, bound: Bound = bounds.mean
) -> GradientEstimator:
    """Straight-through Gumbel-softmax with its Jacobian averaged over draws of the relaxation given b.

    temperature: λ > 0. conditional_draws: relaxations per b; they cost no call of f. The mean, and so the bias, is
    that of `straight_through_gumbel_softmax`; the variance is at most its own. f must accept a neighbourhood of the
    corners (module docstring). A gradient of f counts as a call. Raises `NotAvailable` as `straight_through`,
    ValueError for fewer than one draw. Source: Paulus et al. (2021), eq. 11.
    """
    check_temperature(temperature)
    if conditional_draws < 1:
        raise ValueError(f"conditional_draws must be at least 1, got {conditional_draws}")
    name = estimator_name(
        "gumbel_rao", samples, f"temperature={temperature:g}", f"conditional_draws={conditional_draws}", bound=bound
    )

    def soft(q, b, s):
        return jax.vmap(lambda s: soften(q, held(q, given(q, b, s)), temperature))(s).mean(0)

    return _hard(name, samples, bound, lambda q: (Copies(relaxation_noise(name, q), conditional_draws),), soft)


def reinmax(samples: int = 1, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """A second-order straight-through: 2 ∇f(b) · ∂π₁ - ½ ∇f(b) · ∂π₀, with π₀ = E b and π₁ = (π₀ + b)/2.

    ∂π is the Jacobian of the probabilities in the logits, at π. Exact for f quadratic in each site (Heun's rule for
    the differences f(b) - f(b')), biased from the third order on; value and model gradient, at the hard b, are
    unbiased. f must accept a neighbourhood of the corners (module docstring). A gradient of f counts as a call.
    Raises `NotAvailable` as `straight_through`. Source: Liu et al. (2023), algorithm 2.
    """
    name = estimator_name("reinmax", samples, bound=bound)

    def soft(q, b):
        middle = (q.mean() + b) / 2
        z = jnp.log(middle) - jnp.log1p(-middle) if isinstance(q, Bernoulli) else jnp.log(middle)
        return 2 * soften(q, held(q, jax.lax.stop_gradient(z)), 1) - q.mean() / 2

    return _hard(name, samples, bound, lambda q: (), soft)


def check_temperature(temperature: int | float) -> None:
    """Raise ValueError for a temperature that is not positive and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _natural(q: Bernoulli | OneHotCategorical) -> Array:
    """What the noise is added to; log-probabilities make z the same for logits that differ by a constant."""
    return q.logits if isinstance(q, Bernoulli) else q.log_probs


def _hard(
    name: str,
    samples: int,
    bound: Bound,
    noise_given: Callable[[Any], tuple[Distribution, ...]],
    soft: Callable[..., Array],
) -> GradientEstimator:
    """f at the hard sample; the Jacobian of b is replaced by that of `soft(q, b, *noise)`."""
    check_samples(samples)

    def noise(q):
        relaxation_noise(name, q)
        return Copies(Joint((stop_gradient(q), *noise_given(q))), samples)

    def surrogate(state, noise, f, q):
        require_relaxable(name, q, f)
        b, *s = noise

        def objective(b):
            return bound(jax.vmap(f)(b))

        def along(q, slope):
            return jnp.vdot(slope, jax.vmap(lambda b, s: soft(q, b, *s))(b, s))

        value, slope = jax.value_and_grad(objective)(b)
        return value + inject(q, jax.grad(along)(stop_gradient(q), slope), estimator=name)

    return GradientEstimator(Spec(name, True, False, True, ("discrete",), 2 * samples, 1), noise, surrogate)
