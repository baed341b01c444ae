"""Bounds on the log-evidence: the ELBO in named terms, and bounds as functions of log-weights.

A log-weight is log w = log p(x, z) - log q(z) in nats. `mean` of K of them is the ELBO; the others are drop-in
replacements wherever an estimator takes `bound`. All are *estimates of a bound* when the weights are random: a
single draw may lie above the evidence.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from vbjax.distributions import Distribution
from vbjax.distributions.discrete import expected_log
from vbjax.divergences import kl_divergence
from vbjax.types import Bound, LogDensity, Scalar

LogWeights = Float[Array, " k"]


class ELBO(NamedTuple):
    """The evidence lower bound of one example, by its terms, in nats: `total = reconstruction - kl`."""

    reconstruction: Scalar
    kl: Scalar

    @property
    def total(self) -> Array:
        """The bound itself; the loss to minimise is its negative."""
        return self.reconstruction - self.kl


def elbo(log_likelihood: LogDensity, q: Distribution, prior: Distribution, z) -> ELBO:
    """The ELBO of one example with a closed-form KL: log p(x|z) at a draw z of q, and KL(q‖prior).

    log_likelihood: `z -> log p(x|z)` for this x. z: one event of q, as an estimator supplies it
    (`q.transport(noise)` for a pathwise gradient). Raises `NotAvailable` where the KL has no closed form; average
    log-weights instead. Source: Kingma & Welling (2014), eq. 3; lecture 000 «Optimization in Variational Bayes».
    """
    return ELBO(log_likelihood(z), kl_divergence(q, prior))


class LogWeight(NamedTuple):
    """The objective log w(z) = log p(x|z) + log p(z) - log q(z) as its three parts, in nats.

    A plain function computes the same number; estimators that treat the parts differently (`doubly_reparameterised`,
    `reweighted_wake_sleep`, ...) ask for this one. log_likelihood: `z -> log p(x|z)` for one x.
    """

    log_likelihood: LogDensity
    prior: Distribution
    q: Distribution

    def __call__(self, z) -> Scalar:
        """The log-weight of one event."""
        return self.log_likelihood(z) + self.prior.log_prob(z) - self.q.log_prob(z)


def mean(log_weights: LogWeights) -> Scalar:
    """The average log-weight: the ELBO, whatever K (Jordan et al. 1999)."""
    return log_weights.mean()


def iwae(log_weights: LogWeights) -> Scalar:
    """log (1/K) Σ w_k: its expectation grows with K from the ELBO to log p(x) (Burda et al. 2016, eq. 8).

    Its gradient in the log-weights is `shares`, so it stays finite when all weights are zero.
    """
    return _log_sum_exp(log_weights) - math.log(log_weights.shape[0])


def iwae_variance(log_weights: LogWeights) -> Scalar:
    """The variance of `iwae` over its draws, by the delta method: Var(w) / (K E[w]²) = 1/ESS - 1/K."""
    effective_samples = jnp.exp(-logsumexp(2 * jax.nn.log_softmax(log_weights)))
    # equal weights have none, which rounding may put below zero
    return jnp.maximum(1 / effective_samples - 1 / log_weights.shape[0], 0)


def shares(log_weights: LogWeights) -> LogWeights:
    """Self-normalised weights w_k / Σ w: equal among the infinite ones if there are any, and if all are zero."""
    top = log_weights.max()
    infinite = jnp.where(log_weights == top, 0, -jnp.inf)
    return jax.nn.softmax(jnp.where(jnp.isfinite(top), log_weights, infinite))


def renyi(alpha: int | float) -> Bound:
    """The variational Rényi bound log (1/K) Σ w_k^(1-α) / (1-α) (Li & Turner 2016, eq. 13).

    α = 1 is the ELBO, α = 0 the IWAE bound; α < 0 aims above the evidence. Raises ValueError unless finite.
    """
    if not abs(alpha) < float("inf"):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if alpha == 1:
        return mean
    return _named(f"renyi({alpha:g})", lambda log_weights: iwae((1 - alpha) * log_weights) / (1 - alpha))


def cubo(n: int | float) -> Bound:
    """The χ upper bound log (1/K) Σ w_k^n / n for n >= 1 (Dieng et al. 2017, eq. 3): at least log p(x) as K → ∞.

    With finitely many draws the logarithm biases it *down*: it is an upper bound only in the limit. Raises
    ValueError for n < 1.
    """
    if not n >= 1:
        raise ValueError(f"n must be at least 1 for an upper bound, got {n}")
    return _named(f"cubo({n:g})", lambda log_weights: iwae(n * log_weights) / n)


def tvo(betas) -> Bound:
    """The thermodynamic variational objective: a left Riemann sum of E_{π_β} log w over the path from q to the
    posterior, π_β ∝ q w^β, by self-normalised weights (Masrani et al. 2019, eq. 8).

    betas: increasing points in [0, 1) that start at 0; `[0]` alone is the ELBO. A lower bound on log p(x) for
    exact expectations. Raises ValueError for other betas.
    """
    betas = tuple(float(beta) for beta in betas)
    widths = [high - low for low, high in itertools.pairwise((*betas, 1.0))]
    if not betas or betas[0] != 0 or not all(width > 0 for width in widths):
        raise ValueError(f"betas must increase from 0 and stay below 1, got {betas}")

    def bound(log_weights: LogWeights) -> Scalar:
        uniform = jnp.full_like(log_weights, 1 / log_weights.shape[0])  # at β = 0, where 0 · log 0 would be NaN
        weights = [shares(beta * log_weights) if beta else uniform for beta in betas]
        return jnp.stack([width * expected_log(w, log_weights) for width, w in zip(widths, weights, strict=True)]).sum()

    return _named(f"tvo({len(betas)} point{'s' if len(betas) > 1 else ''})", bound)


def _named(name: str, bound: Bound) -> Bound:
    """Estimators and tables show a bound by its `__name__`."""
    bound.__name__ = name
    return bound


@jax.custom_jvp
def _log_sum_exp(x: LogWeights) -> Scalar:
    return logsumexp(x)


@_log_sum_exp.defjvp
def _log_sum_exp_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    share = shares(x)
    # an impossible draw has no part in the slope, not even an infinite one
    return _log_sum_exp(x), jnp.sum(jnp.where(share > 0, share * x_dot, 0))
