"""Pathwise gradients of log-weights without the score's noise: sticking the landing, and doubly reparameterised.

The total derivative of log w = log p(x, z) - log q(z) along z holds the explicit part -∇_η log q(z; η), which has
mean zero under the plain mean but is noise, and drowns the signal of multi-sample bounds as K grows (Rainforth et al.
2018). Start at `doubly_reparameterised`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax import bounds
from vbjax.bounds import LogWeight
from vbjax.distributions import Copies
from vbjax.estimators.estimate import (
    check_samples,
    estimator_name,
    first_order_only,
    require_capability,
    without_derivative,
)
from vbjax.estimators.pathwise import along_the_path, require_path
from vbjax.types import (
    Bound,
    Event,
    GradientEstimator,
    LogDensity,
    NotAvailable,
    Objective,
    Scalar,
    Spec,
    stop_gradient,
)


def sticking_the_landing(samples: int = 1, *, bound: Bound = bounds.mean) -> GradientEstimator:
    """The pathwise gradient less the score that is hidden in f = log p(x, z) - log q(z).

    ∇_η B(f(z_1), …) along the path + Σ_k B_k ∇_η log q(z_k; η) at fixed z_k, B_k = ∂B/∂f_k. For a log-weight the
    score cancels, and with it all variance at q = posterior. samples: K draws per estimate. Unbiased for the mean, of
    any f, as the score has mean zero, and for one draw if B is then the identity (as all of `bounds` are). *Biased
    for q with another bound and K > 1*, where B_k and the score depend: use `doubly_reparameterised`. For f that is
    no log-weight it only adds noise. Of the mean it is right to every order of derivative of a smooth f; with other
    bounds a second derivative raises `NotAvailable`, as do laws without a reparameterisation or whose support moves,
    and a jump of f. Source: Roeder et al. (2017), eq. 8.
    """
    check_samples(samples)
    name = estimator_name("sticking_the_landing", samples, bound=bound)
    of_the_mean = bound is bounds.mean

    def surrogate(state, noise, f, q):
        _require_score(name, q)
        z = along_the_path(name, noise, f, q)
        log_q = jax.vmap(q.log_prob)(stop_gradient(z))
        values = jax.vmap(f)(z)
        # is 0; its derivatives of every order have mean zero, as those of a density's integral
        score = jnp.exp(log_q - stop_gradient(log_q)) - 1
        total = bound(values) + _weighted(stop_gradient(jax.grad(bound)(values)), score)
        return total if of_the_mean else _first_order(total, name)

    return GradientEstimator(
        spec=Spec(name, True, of_the_mean or samples == 1, True, _NEEDS, samples, None if of_the_mean else 1),
        noise=_independent_noise(name, samples),
        surrogate=surrogate,
    )


def doubly_reparameterised(samples: int = 1, *, bound: Bound = bounds.iwae) -> GradientEstimator:
    """DReG: an unbiased gradient of E B(log w_1, …, log w_K) whose signal in q does not drown as K grows.

    Σ_k (B_k - B_kk) ∂_z log w_k dz_k/dη, with B_k = ∂B/∂log w_k and B_kk its own derivative: the path gives
    B_k (∂_z log w_k dz_k/dη - score_k), and E[B_k score_k] = E[B_kk ∂_z log w_k dz_k/dη] by integration over z_k. For
    the normalised weights v_k: B_k - B_kk is v_k² for `iwae`, α v_k + (1-α) v_k² for `renyi(α)`, 1/K for the mean. The
    model's parameters get their plain gradient Σ_k B_k ∇_θ log p_θ(x, z_k): *no squared weights there*.

    samples: K. bound: B, any twice differentiable function of the K log-weights. Needs `f` to be a
    `bounds.LogWeight` of this very q. Calls f and its gradient once a draw each: 2K evaluations. First derivatives
    only. Far from the optimum its variance can exceed that of `pathwise`. Raises `NotAvailable` for another f, for a
    second derivative, for laws without a reparameterisation or whose support moves, and for a jump of f.
    Source: Tucker et al. (2019), eq. 8.
    """
    check_samples(samples)
    name = estimator_name("doubly_reparameterised", samples, bound=bound)

    def surrogate(state, noise, f, q):
        _require_score(name, q)
        f = _log_weight(name, f)
        z = along_the_path(name, noise, f, q)
        model, model_slope = _with_slopes(lambda z: f.log_likelihood(z) + f.prior.log_prob(z), z)
        log_q, log_q_slope = _with_slopes(f.q.log_prob, z)
        first, second = _bound_slopes(bound, model - log_q)
        path = _inner(first - second, _minus(model_slope, log_q_slope), z)
        return _first_order(_with_gradient(bound(model - log_q), _weighted(first, model) + path), name)

    return GradientEstimator(
        spec=Spec(name, True, True, True, _NEEDS, 2 * samples, 1),
        noise=_independent_noise(name, samples),
        surrogate=surrogate,
    )


def generalised_doubly_reparameterised(samples: int = 1, *, bound: Bound = bounds.iwae) -> GradientEstimator:
    """GDReG: `doubly_reparameterised`, which reparameterises the gradient in the prior's parameters too.

    E_q[g ∇_θ log p_θ(z)] = E_q[(∂_z g + g ∂_z log(q/p_θ)) ∂_θ T(ε; θ)] for z = T(ε; θ) the prior's transport and
    ε = T⁻¹(z; θ) held fixed; here g = B_k, so the factor is (B_kk - B_k) ∂_z log w_k + B_k ∂_z log p(x|z_k).

    samples: K. bound: B, as there. Needs a `bounds.LogWeight` whose prior inverts its transport: normal, log-normal,
    Laplace, logistic, and copies or joints of these; 2K evaluations; first derivatives only. Of no use for a prior
    without parameters. Raises `NotAvailable` as `doubly_reparameterised`, and for other priors. Source: Bauer & Mnih
    (2021), eq. 9.
    """
    check_samples(samples)
    name = estimator_name("generalised_doubly_reparameterised", samples, bound=bound)

    def surrogate(state, noise, f, q):
        _require_score(name, q)
        f = _log_weight(name, f)
        require_capability(name, f.prior, "fixed_support", "use doubly_reparameterised")
        z = along_the_path(name, noise, f, q)
        likelihood, likelihood_slope = _with_slopes(f.log_likelihood, z)
        ratio, ratio_slope = _with_slopes(lambda z: f.prior.log_prob(z) - f.q.log_prob(z), z)
        log_weight_slope = jax.tree.map(jnp.add, likelihood_slope, ratio_slope)
        first, second = _bound_slopes(bound, likelihood + ratio)
        path = _inner(first - second, log_weight_slope, z)
        prior_noise = stop_gradient(jax.vmap(stop_gradient(f.prior).inverse_transport)(z))
        prior_path = jax.vmap(f.prior.transport)(prior_noise)
        path_of_prior = _inner(second - first, log_weight_slope, prior_path)
        path_of_prior += _inner(first, likelihood_slope, prior_path)
        gradient = _weighted(first, likelihood) + path + path_of_prior
        return _first_order(_with_gradient(bound(likelihood + ratio), gradient), name)

    return GradientEstimator(
        spec=Spec(name, True, True, True, _NEEDS, 2 * samples, 1),
        noise=_independent_noise(name, samples),
        surrogate=surrogate,
    )


_NEEDS = ("reparameterised", "fixed_support")


def _require_score(estimator: str, q: Any) -> None:
    require_path(estimator, q)
    require_capability(estimator, q, "fixed_support", "use pathwise")


def _independent_noise(estimator: str, samples: int):
    def noise(q):
        _require_score(estimator, q)
        return Copies(q.noise(), samples)

    return noise


def _log_weight(estimator: str, f: Objective) -> LogWeight:
    if not isinstance(f, LogWeight):
        raise NotAvailable(f"{estimator} needs f to be a bounds.LogWeight(log_likelihood, prior, q): for another f it "
                           "would be biased and not say so; use pathwise.")  # fmt: skip
    return f


def _with_slopes(log_density: LogDensity, z: Event) -> tuple[Float[Array, " k"], Event]:
    """The values at the events held fixed, and their slopes in the events as constants."""
    values, slopes = jax.vmap(jax.value_and_grad(log_density))(stop_gradient(z))
    return values, stop_gradient(slopes)


def _bound_slopes(bound: Bound, log_weights: Float[Array, " k"]) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """∂B/∂l_k and ∂²B/∂l_k², as constants."""
    log_weights = stop_gradient(log_weights)
    return jax.grad(bound)(log_weights), jnp.diagonal(jax.hessian(bound)(log_weights))


def _minus(a: Event, b: Event) -> Event:
    return jax.tree.map(jnp.subtract, a, b)


def _weighted(weights: Float[Array, " k"], values: Float[Array, " k"]) -> Scalar:
    """Σ_k weights_k values_k; a draw without weight counts for nothing, not even an infinite one."""
    return jnp.sum(jnp.where(weights == 0, 0, weights * values))


def _inner(weights: Float[Array, " k"], slopes: Event, z: Event) -> Scalar:
    """Σ_k weights_k <slopes_k, z_k> over all coordinates, differentiable in z alone."""
    products = jax.tree.map(lambda s, z: jax.vmap(jnp.vdot)(s, z), slopes, z)
    return _weighted(weights, jax.tree.reduce(jnp.add, products))


def _with_gradient(value: Scalar, gradient: Scalar) -> Scalar:
    """The first scalar's value with the second one's gradient."""
    return stop_gradient(value) + gradient - stop_gradient(gradient)


def _first_order(x: Scalar, estimator: str) -> Scalar:
    """The same scalar; its second derivative, which would be wrong, raises `NotAvailable`."""

    @jax.custom_jvp
    def same(x):
        return x

    @same.defjvp
    def slope(primals, tangents):
        return same(*primals), (1 + without_derivative(primals[0], first_order_only(estimator))) * tangents[0]

    return same(x)
