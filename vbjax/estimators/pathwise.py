"""The pathwise (reparameterisation) gradient and its noises: independent, antithetic, quasi-Monte Carlo."""

import jax
import jax.numpy as jnp

from vbjax import bounds
from vbjax.distributions import Copies, ScrambledSobol
from vbjax.estimators.discontinuity import require_continuous
from vbjax.estimators.estimate import check_samples, estimator_name, require_capability
from vbjax.types import Bound, Event, GradientEstimator, Objective, Spec


def pathwise(samples: int = 1, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """Estimate ∇E B(f(z_1), …, f(z_K)) through z = transport(noise): E_ξ ∇_η f(h_η(ξ)).

    samples: K draws per estimate. bound: B, of the K values of f; the mean gives E_q f. Unbiased when f is
    continuous in z and differentiable almost everywhere. Raises `NotAvailable` for laws without a reparameterisation
    and where f is seen to jump (`require_continuous`: rounding, comparisons as numbers, argmax). *Wrong, and silently
    small, for a jump that this check cannot see*: `where(z > 0, z + 1, 0)`; use `score_function` there.
    Right to every order of derivative of a smooth f; *a kink (relu, abs) is a jump of the slope, which the second
    derivative misses*. The gamma family (gamma, beta, Dirichlet, Student's t) differentiates implicitly, by a loop that
    JAX cannot reverse: there `jax.grad` of `jax.grad` raises ValueError, and second derivatives are `jax.hessian` or
    `jax.jacfwd` of the gradient. Source: Kingma & Welling (2014), eq. 5; Mohamed et
    al. (2020), section 5; lecture 000 «Basics: Reparameterization Trick».
    """
    check_samples(samples)
    name = estimator_name("pathwise", samples, bound=bound)

    def noise(q):
        require_path(name, q)
        return Copies(q.noise(), samples)

    def surrogate(state, noise, f, q):
        return bound(jax.vmap(f)(along_the_path(name, noise, f, q)))

    return GradientEstimator(
        spec=Spec(name, True, True, True, ("reparameterised",), samples, None),
        noise=noise,
        surrogate=surrogate,
    )


def antithetic(samples: int = 2, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """The pathwise gradient from K/2 pairs of noise ξ and its mirror image, which cancel what is odd in ξ.

    samples: K, even. Unbiased for the mean; the variance falls where f ∘ transport is near linear (to zero if it is
    linear) and at worst doubles against `pathwise(K)`, where it is even. For another bound the K values are
    dependent, so it estimates E B over pairs, which is not that over K independent draws: the spec calls it biased.
    Not for laws with skew noise (the gamma family, mixtures): raises `NotAvailable`, as for a jump of f. Raises
    ValueError for an odd K. Source: Hammersley & Morton (1956); Mohamed et al. (2020), section 7.
    """
    check_samples(samples)
    if samples % 2:
        raise ValueError(f"samples must be even, as each draw comes with its mirror image, got {samples}")
    name = estimator_name("antithetic", samples, bound=bound)

    def noise(q):
        require_path(name, q)
        law = q.noise()
        jax.eval_shape(lambda: law.reflect(law.sample(jax.random.key(0))))
        return Copies(law, samples // 2)

    def surrogate(state, noise, f, q):
        require_path(name, q)
        mirrored = jax.vmap(q.noise().reflect)(noise)
        pairs = jax.tree.map(lambda xi, image: jnp.concatenate([xi, image]), noise, mirrored)
        return bound(jax.vmap(f)(along_the_path(name, pairs, f, q)))

    unbiased = bound is bounds.mean
    return GradientEstimator(
        spec=Spec(name, unbiased, unbiased, unbiased, ("reparameterised",), samples, None),
        noise=noise,
        surrogate=surrogate,
    )


def quasi_monte_carlo(samples: int = 16, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """The pathwise gradient with K randomised Sobol points in place of K independent draws of the noise.

    samples: K, a power of two. Unbiased for the mean, as every point alone is of the noise's law; the variance falls
    like K⁻² for a smooth f of few normal coordinates (K⁻³ of uniform ones), and like K⁻¹ at worst. For another bound
    the K values are dependent: E B over them lies nearer to its limit than over independent draws, and the spec calls
    that biased. The noise has no nodes, so `exact_moments` raises `NotAvailable`; so do laws whose noise has no
    quantile function (the gamma family, mixtures) and a jump of f. Not for one draw at a time: with K = 1 it is
    `pathwise`. Raises ValueError unless K is a power of two. Source: Buchholz et al. (2018), eq. 6; see
    `ScrambledSobol`.
    """
    check_samples(samples)
    if samples & (samples - 1):
        raise ValueError(f"samples must be a power of two for Sobol points, got {samples}")
    name = estimator_name("quasi_monte_carlo", samples, bound=bound)

    def noise(q):
        require_path(name, q)
        return ScrambledSobol(q.noise(), samples)

    def surrogate(state, noise, f, q):
        return bound(jax.vmap(f)(along_the_path(name, noise, f, q)))

    unbiased = bound is bounds.mean or samples == 1
    return GradientEstimator(
        spec=Spec(name, unbiased, unbiased, unbiased, ("reparameterised",), samples, None),
        noise=noise,
        surrogate=surrogate,
    )


def require_path(estimator: str, q) -> None:
    """Raise `NotAvailable` unless q has a reparameterisation."""
    require_capability(estimator, q, "reparameterised", "use score_function, which needs only log_prob")


def along_the_path(estimator: str, noise: Event, f: Objective, q) -> Event:
    """The events that q makes of the noise, stacked; raises `NotAvailable` if it makes none, or if f jumps in them."""
    require_path(estimator, q)
    z = jax.vmap(q.transport)(noise)
    require_continuous(estimator, f, jax.eval_shape(lambda z: jax.tree.map(lambda z: z[0], z), z))
    return z
