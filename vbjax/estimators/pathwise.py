"""The pathwise (reparameterisation) gradient: differentiate the sample itself."""

import jax

from vbjax import bounds
from vbjax.distributions import Copies
from vbjax.estimators.estimate import check_samples, estimator_name, require_capability
from vbjax.types import Bound, GradientEstimator, Spec


def pathwise(samples: int = 1, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """Estimate ∇E B(f(z_1), …, f(z_K)) through z = transport(noise): E_ξ ∇_η f(h_η(ξ)).

    samples: K draws per estimate. bound: B, of the K values of f; the mean gives E_q f. Unbiased when f is
    continuous in z and differentiable almost everywhere. *Wrong, and silently small, where f jumps*: rounding,
    comparisons, argmax; use `score_function` there. Raises `NotAvailable` for laws without a reparameterisation.
    Right to every order of derivative, but the gamma family (gamma, beta, Dirichlet, Student's t) differentiates
    implicitly, by a loop that JAX cannot reverse: there `jax.grad` of `jax.grad` raises ValueError, and second
    derivatives are `jax.hessian` or `jax.jacfwd` of the gradient. Source: Kingma & Welling (2014), eq. 5; Mohamed et
    al. (2020), section 5; lecture 000 «Basics: Reparameterization Trick».
    """
    check_samples(samples)

    def require_reparameterised(q):
        require_capability("pathwise", q, "reparameterised", "use score_function, which needs only log_prob")

    def noise(q):
        require_reparameterised(q)
        return Copies(q.noise(), samples)

    def surrogate(state, noise, f, q):
        require_reparameterised(q)
        return bound(jax.vmap(lambda xi: f(q.transport(xi)))(noise))

    return GradientEstimator(
        spec=Spec(
            estimator_name("pathwise", samples, bound=bound), True, True, True, ("reparameterised",), samples, None
        ),
        noise=noise,
        surrogate=surrogate,
    )
