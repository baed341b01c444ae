"""KL divergence: a table of closed forms, and Monte Carlo with its standard error for every other pair.

`kl_divergence` never falls back to sampling in silence. A closed form is a function of two laws registered for the
pairs of families that it serves; start with the table in the docstring of `kl_divergence`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma, xlogy
from jaxtyping import Array

from vbjax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    Copies,
    Dirichlet,
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    DiscretisedNormal,
    Distribution,
    Gamma,
    Joint,
    Laplace,
    LogGamma,
    Logistic,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    Uniform,
)
from vbjax.distributions.continuous import solve_lower
from vbjax.distributions.continuous_bernoulli import log_sinhc
from vbjax.distributions.discrete import expected_log
from vbjax.distributions.family import LOG_2PI
from vbjax.distributions.gamma import log_beta, stirling_remainder
from vbjax.distributions.quadrature import uniform_rule
from vbjax.types import Estimate, Event, NotAvailable, PRNGKey, Scalar

ClosedForm = Callable[[Any, Any], Scalar]
"""`(q, p) -> KL(q‖p)` for one pair of families, which `_register` names."""

_CLOSED_FORMS: dict[tuple[type, type], ClosedForm] = {}
_DISCRETISED = (DiscretisedNormal, DiscretisedLogistic, DiscretisedLogisticMixture)


def kl_divergence(q: Distribution, p: Distribution) -> Scalar:
    """KL(q‖p) = E_q[log q - log p] in nats, of the whole event; +inf where q has mass outside the support of p.

    | q | p | closed form |
    |---|---|---|
    | Normal, MultivariateNormal | Normal, MultivariateNormal | Gaussian |
    | Laplace, Logistic, StudentT, Uniform, Gamma, Beta, LogNormal, LogGamma | Normal | two moments of q |
    | Normal, Laplace, Logistic, Uniform | Laplace | E_q abs(x - μ) |
    | LogNormal, Gamma, Beta, Uniform | LogNormal | two moments of log x |
    | Gamma, LogNormal, Beta, Uniform | Gamma | E_q x and E_q log x |
    | Beta, Uniform | Beta | E_q log x and E_q log(1 - x) |
    | Uniform, Beta | Uniform | width, if the support fits |
    | LogGamma; Dirichlet; ContinuousBernoulli | the same | exponential family |
    | Bernoulli, Poisson | Poisson | finite sum, rates |
    | Bernoulli; Categorical; OneHotCategorical | the same | finite sum |
    | DiscretisedNormal, DiscretisedLogistic, DiscretisedLogisticMixture | any of them, same levels | finite sum |
    | a law on R | Gamma, LogNormal, Beta, Uniform | +inf |
    | Gamma, LogNormal | Beta, Uniform | +inf |
    | Copies; Joint | the same, part by part | sum over independent parts |

    Raises `NotAvailable`, naming `monte_carlo_kl`, for every other pair, and ValueError if the events differ in
    shape. Sources: Gil, Alajaji & Linder (2013), table 2, for pairs within a family.
    """
    check_same_events(q, p)
    if isinstance(q, Copies) and isinstance(p, Copies):
        return q.count * kl_divergence(q.base, p.base)
    if isinstance(q, Joint) and isinstance(p, Joint):
        return jnp.stack([kl_divergence(q_i, p_i) for q_i, p_i in zip(q.laws, p.laws, strict=True)]).sum()
    closed_form = _CLOSED_FORMS.get((type(q), type(p)))
    if closed_form is None:
        names = f"KL({type(q).__name__} ‖ {type(p).__name__})"
        raise NotAvailable(f"{names} has no closed form here; use monte_carlo_kl(key, q, p, num_samples=...).")
    return closed_form(q, p)


def check_same_events(q: Distribution, p: Distribution) -> None:
    """Raise ValueError unless the events of both laws have one shape."""
    if q.event_shape != p.event_shape:
        raise ValueError(f"events differ in shape: {q.event_shape} under q, {p.event_shape} under p")


def has_closed_form_kl(q: Distribution, p: Distribution) -> bool:
    """Whether `kl_divergence(q, p)` is exact: False also for laws whose events or numbers of outcomes differ."""
    if q.event_shape != p.event_shape:
        return False
    if isinstance(q, Joint) and isinstance(p, Joint):
        return all(has_closed_form_kl(q_i, p_i) for q_i, p_i in zip(q.laws, p.laws, strict=True))
    if isinstance(q, Copies) and isinstance(p, Copies):
        return has_closed_form_kl(q.base, p.base)
    q_shape, p_shape = (getattr(jax.eval_shape(log_probs, law), "shape", None) for law in (q, p))
    return (type(q), type(p)) in _CLOSED_FORMS and (q_shape == p_shape or None in (q_shape, p_shape))


def monte_carlo_kl(key: PRNGKey, q: Distribution, p: Distribution, *, num_samples: int) -> Estimate:
    """KL(q‖p) by the mean of log q - log p over draws of q, with its standard error, in nats.

    A number, not a training loss: gradients of an expectation belong to `vbjax.estimators`. Raises ValueError for
    fewer than two samples, because one draw has no standard error, and if the events differ in shape.
    """
    check_same_events(q, p)
    return _sample_mean(key, q, lambda z: q.log_prob(z) - p.log_prob(z), num_samples)


def monte_carlo_entropy(key: PRNGKey, q: Distribution, *, num_samples: int) -> Estimate:
    """Entropy of q by the mean of -log q over its draws, with its standard error, in nats."""
    return _sample_mean(key, q, lambda z: -q.log_prob(z), num_samples)


def _sample_mean(key: PRNGKey, q: Distribution, f: Callable[[Event], Scalar], num_samples: int) -> Estimate:
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2 for a standard error, got {num_samples}")
    values = jax.vmap(f)(q.sample(key, (num_samples,)))
    return Estimate(values.mean(), values.std(ddof=1) / num_samples**0.5, num_samples)


def _register(q_types, p_types):
    def register(closed_form: ClosedForm) -> ClosedForm:
        _CLOSED_FORMS.update(dict.fromkeys(itertools.product(q_types, p_types), closed_form))
        return closed_form

    return register


def excess(log_ratio: Array) -> Array:
    """r - 1 - log r >= 0 for r = exp(log_ratio), to rounding error: what every scale mismatch costs."""
    small = jnp.abs(log_ratio) < 0.5
    x = jnp.where(small, log_ratio, 0)
    series = jnp.ones_like(x)
    for k in range(16, 2, -1):
        series = 1 + x / k * series
    return jnp.where(small, 0.5 * x**2 * series, jnp.expm1(log_ratio) - log_ratio)


def _gamma_cost(a: Array, b: Array, log_rates: Array, gap: Array, log_ratio: Array) -> Array:
    """KL of gamma laws of concentrations a, b = a + gap = a exp(log_ratio) and rates 1, exp(log_rates), unreduced.

    log Γ by Stirling's formula, whose Bregman divergence is a sum of excesses: nothing cancels for large a and b.
    """
    mismatch = log_rates - log_ratio
    close = mismatch < 1
    near, far = jnp.where(close, mismatch, 0), jnp.where(close, 1, mismatch)
    means = jnp.where(close, b * excess(near), a * jnp.exp(jnp.where(close, 0, log_rates)) - b - b * far)
    remainder, slope = jax.jvp(stirling_remainder, (a,), (jnp.ones_like(a),))
    return means + 0.5 * excess(log_ratio) + (stirling_remainder(b) - remainder - gap * slope)


def _log_ratio(b: Array, a: Array, gap: Array) -> Array:
    """log b/a for b = a + gap, accurate near b = a."""
    near = jnp.abs(gap) < 0.5 * a
    return jnp.where(near, jnp.log1p(jnp.where(near, gap, 0) / a), jnp.log(jnp.where(near, 1, b / a)))


@_register([Normal], [Normal])
def _normal(q, p):
    return 0.5 * jnp.sum(excess(2 * jnp.log(q.scale / p.scale)) + ((q.loc - p.loc) / p.scale) ** 2)


@_register([Normal, MultivariateNormal], [MultivariateNormal])
@_register([MultivariateNormal], [Normal])
def _multivariate_normal(q, p):
    q, p = (_as_multivariate(law) for law in (q, p))
    ratio = jax.vmap(solve_lower, (None, -1), -1)(p.factor, q.factor)
    diagonal = jnp.diagonal(q.factor, 0, -2, -1) / jnp.diagonal(p.factor, 0, -2, -1)
    return 0.5 * (
        jnp.sum(excess(2 * jnp.log(diagonal))) + jnp.sum(jnp.tril(ratio, -1) ** 2) + jnp.sum(p.whiten(q.loc) ** 2)
    )


def _as_multivariate(law) -> MultivariateNormal:
    if isinstance(law, MultivariateNormal):
        return law
    return MultivariateNormal(law.loc, _diagonal_matrix(law.scale))


def _diagonal_matrix(diagonal: Array) -> Array:
    return jnp.vectorize(jnp.diag, signature="(d)->(d,d)")(diagonal)


@_register([Laplace, Logistic, Uniform, Gamma, Beta, LogNormal, LogGamma], [Normal])
def _to_normal(q, p):
    return _cross_entropy_to_normal(q.mean(), q.variance(), p) - q.entropy()


@_register([StudentT], [Normal])
def _student_to_normal(q, p):
    has_variance = q.df > 2
    variance = jnp.where(has_variance, q.variance(), jnp.inf)
    return _cross_entropy_to_normal(q.loc, variance, p) - q.entropy()


def _cross_entropy_to_normal(mean, variance, p):
    """E_q[-log p] for a normal-shaped p = N(p.loc, p.scale²) and a law with these two moments."""
    return jnp.sum(0.5 * LOG_2PI + jnp.log(p.scale) + 0.5 * (variance + (mean - p.loc) ** 2) / p.scale**2)


@_register([Laplace], [Laplace])
def _laplace(q, p):
    distance = jnp.abs(q.loc - p.loc) / q.scale
    return jnp.sum(excess(jnp.log(q.scale / p.scale)) + q.scale / p.scale * excess(-distance))


@_register([Normal, Logistic, Uniform], [Laplace])
def _to_laplace(q, p):
    return jnp.sum(_mean_distance(q, p.loc) / p.scale + jnp.log(2 * p.scale)) - q.entropy()


def _mean_distance(q, centre: Array) -> Array:
    """E|x - centre| per coordinate."""
    if isinstance(q, Uniform):
        signed_square = [(end - centre) * jnp.abs(end - centre) for end in (q.low, q.high)]
        return (signed_square[1] - signed_square[0]) / (2 * (q.high - q.low))
    t = (q.loc - centre) / q.scale
    if isinstance(q, Logistic):
        return q.scale * (jax.nn.softplus(t) + jax.nn.softplus(-t))
    return q.scale * ((2 / jnp.pi) ** 0.5 * jnp.exp(-0.5 * t**2) + t * jax.scipy.special.erf(t / 2**0.5))


@_register([LogNormal], [LogNormal])
def _log_normal(q, p):
    return _normal(q.log(), p.log())


@_register([Gamma, Beta, Uniform], [LogNormal])
def _to_log_normal(q, p):
    mean, variance = _log_moments(q)
    # KL is invariant under x -> log x, whose entropy is that of x less E log x
    entropy_of_log = q.entropy() - mean.sum()
    return jnp.where(_is_positive(q), _cross_entropy_to_normal(mean, variance, p) - entropy_of_log, jnp.inf)


@_register([Gamma], [Gamma])
def _gamma(q, p):
    a, b = q.concentration, p.concentration
    log_rates = _log_ratio(p.rate, q.rate, p.rate - q.rate)
    return jnp.sum(_gamma_cost(a, b, log_rates, b - a, _log_ratio(b, a, b - a)))


@_register([LogGamma], [LogGamma])
def _log_gamma(q, p):
    return _gamma(*(Gamma(law.concentration, jnp.ones_like(law.concentration)) for law in (q, p)))


@_register([LogNormal, Beta, Uniform], [Gamma])
def _to_gamma(q, p):
    mean_log = q.loc if isinstance(q, LogNormal) else _log_moments(q)[0]
    a = p.concentration
    cross_entropy = gammaln(a) - xlogy(a, p.rate) - (a - 1) * mean_log + p.rate * q.mean()
    return jnp.where(_is_positive(q), cross_entropy.sum() - q.entropy(), jnp.inf)


@_register([Beta], [Beta])
def _beta(q, p):
    return _dirichlet_cost(*(jnp.stack([law.concentration1, law.concentration0], axis=-1) for law in (q, p)))


@_register([Uniform], [Beta])
def _uniform_to_beta(q, p):
    a, b = p.concentration1, p.concentration0
    mirrored = Uniform(1 - q.high, 1 - q.low)
    mean_logs = [_log_moments(law)[0] for law in (q, mirrored)]
    cross_entropy = log_beta(a, b) - (a - 1) * mean_logs[0] - (b - 1) * mean_logs[1]
    return jnp.where(_is_positive(q) & _is_positive(mirrored), cross_entropy.sum() - q.entropy(), jnp.inf)


@_register([Uniform, Beta], [Uniform])
def _to_uniform(q, p):
    low, high = jnp.broadcast_arrays(jnp.asarray(q.support.lower), jnp.asarray(q.support.upper))
    fits = jnp.all(low >= p.low) & jnp.all(high <= p.high)
    return jnp.where(fits, p.entropy() - q.entropy(), jnp.inf)


def _log_moments(q) -> tuple[Array, Array]:
    """E log x and Var log x per coordinate, for a law on the positive numbers."""
    if isinstance(q, Gamma):
        return digamma(q.concentration) - jnp.log(q.rate), polygamma(1, q.concentration)
    if isinstance(q, Beta):
        a, total = q.concentration1, q.concentration1 + q.concentration0
        return digamma(a) - digamma(total), polygamma(1, a) - polygamma(1, total)
    low, high = jnp.where(q.low >= 0, q.low, 0), jnp.where(q.high > 0, q.high, 1)
    width = high - low
    # ∫ log² = x (log²x - 2 log x + 2); at zero the logarithm is left out, and so is its derivative 0/0
    log_low = jnp.log(jnp.where(low > 0, low, 1))
    first = (xlogy(high, high) - low * log_low) / width
    second = (high * jnp.log(high) ** 2 - low * log_low**2) / width - 2 * first + 2
    return first - 1, second - (first - 1) ** 2


def _is_positive(q):
    return jnp.all(jnp.asarray(q.support.lower) >= 0)


@_register([Normal, Laplace, Logistic, StudentT, LogGamma], [Gamma, LogNormal, Beta, Uniform])
@_register([Gamma, LogNormal], [Beta, Uniform])
def _outside(q, p):
    return jnp.full((), jnp.inf, q.dtype)


@_register([ContinuousBernoulli], [ContinuousBernoulli])
def _continuous_bernoulli(q, p):
    """Near q, Taylor's remainder gap² ∫_0^1 (1 - s) Var(logits + s gap) ds by Gauss's rule: nothing cancels."""
    gap = p.logits - q.logits
    close = jnp.abs(gap) < jnp.maximum(4, 0.5 * jnp.abs(q.logits))
    nodes, weights = (jnp.asarray(values, q.dtype) for values in uniform_rule(12))
    near = jnp.where(close, gap, 0)
    variances = jax.vmap(lambda s: ContinuousBernoulli(q.logits + s * near).variance())(nodes)
    remainder = near**2 * jnp.tensordot(weights * (1 - nodes), variances, 1)
    a, b = (0.5 * jnp.where(q.logits < 0, -law.logits, law.logits) for law in (q, p))
    value, slope = jax.jvp(_tilted_log_sinhc, (a,), (jnp.ones_like(a),))
    return jnp.sum(jnp.where(close, remainder, _tilted_log_sinhc(b) - value - (b - a) * slope))


def _tilted_log_sinhc(t: Array) -> Array:
    """log(sinh t / t) - t, where both are large and positive from what is left of them."""
    large = t > 1
    far, rest = jnp.where(large, t, 1), jnp.where(large, 0, t)
    return jnp.where(large, jnp.log1p(-jnp.exp(-2 * far)) - jnp.log(2 * far), log_sinhc(rest) - rest)


@_register([Dirichlet], [Dirichlet])
def _dirichlet(q, p):
    return _dirichlet_cost(q.concentration, p.concentration)


def _dirichlet_cost(a: Array, b: Array) -> Scalar:
    """Chain rule: independent gamma variables are their sum, again gamma, and Dirichlet proportions."""
    gap = b - a
    a_total, b_total, gap_total = a.sum(-1), b.sum(-1), gap.sum(-1)
    log_rates = _log_ratio(b_total, a_total, gap_total)  # any rate will do; this one makes the sum cost least
    parts = _gamma_cost(a, b, log_rates[..., None], gap, _log_ratio(b, a, gap))
    return parts.sum() - jnp.sum(_gamma_cost(a_total, b_total, log_rates, gap_total, log_rates))


@_register([Bernoulli], [Bernoulli])
def _bernoulli(q, p):
    return _finite(log_probs(q), log_probs(p))


@_register([Categorical], [Categorical])
@_register([OneHotCategorical], [OneHotCategorical])
def _categorical(q, p):
    return _finite(log_probs(q), log_probs(p))


@_register(_DISCRETISED, _DISCRETISED)
def _discretised(q, p):
    return _finite(log_probs(q), log_probs(p))


def _finite(log_q, log_p):
    if log_q.shape != log_p.shape:
        raise ValueError(f"supports differ: {log_q.shape[-1]} outcomes under q, {log_p.shape[-1]} under p")
    q = jnp.exp(log_q)

    log_ratio = jnp.where(q > 0, log_q - log_p, 0)
    return expected_log(q, log_ratio).sum()


def log_probs(law: Distribution) -> Array | None:
    """Log-probabilities of all outcomes of each independent coordinate, `(*event, k)`; None if not of that kind."""
    if isinstance(law, Bernoulli):
        return -jax.nn.softplus(jnp.stack([law.logits, -law.logits], axis=-1))
    if isinstance(law, (Categorical, OneHotCategorical)):
        return law.log_probs
    return law.log_probs() if isinstance(law, _DISCRETISED) else None


@_register([Poisson], [Poisson])
def _poisson(q, p):
    # p - q - q log(p/q) with the logarithm of one plus the gap: equal rates cost exactly nothing, large ones too
    gap = p.rate - q.rate
    positive = q.rate > 0
    rate = jnp.where(positive, q.rate, 1)
    return jnp.sum(gap - jnp.where(positive, rate * jnp.log1p(gap / rate), 0))


@_register([Bernoulli], [Poisson])
def _bernoulli_to_poisson(q, p):
    return jnp.sum(p.rate - xlogy(q.probs, p.rate)) - q.entropy()
