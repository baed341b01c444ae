"""The pathwise (reparameterisation) gradient: differentiate the sample itself."""

import jax

from vbjax import bounds
from vbjax.distributions import Copies
from vbjax.estimators.estimate import check_samples, require_capability
from vbjax.types import Bound, GradientEstimator, Spec


def pathwise(samples: int = 1, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """Estimate ∇E B(f(z_1), …, f(z_K)) through z = transport(noise): E_ξ ∇_η f(h_η(ξ)).

    samples: K draws per estimate. bound: B, of the K values of f; the mean gives E_q f. Unbiased when f is
    continuous in z and differentiable almost everywhere. *Wrong, and silently small, where f jumps*: rounding,
    comparisons, argmax; use `score_function` there. Raises `NotAvailable` for laws without a reparameterisation.
    Gamma-type laws differentiate implicitly, to second order by `jax.hessian`. Source: Kingma & Welling (2014),
    eq. 5; Mohamed et al. (2020), section 5; lecture 000 «Basics: Reparameterization Trick».
    """
    check_samples(samples)

    def noise(q):
        require_capability("pathwise", q, "reparameterised", "use score_function, which needs only log_prob")
        return Copies(q.noise(), samples)

    def surrogate(state, noise, f, q):
        return bound(jax.vmap(lambda xi: f(q.transport(xi)))(noise))

    return GradientEstimator(
        spec=Spec(f"pathwise({samples})", True, True, True, ("reparameterised",), samples, None),
        noise=noise,
        surrogate=surrogate,
        init=lambda q: (),
        update=lambda state, noise, f, q: state,
    )
