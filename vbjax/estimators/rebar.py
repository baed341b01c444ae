"""Score-function gradients with a control variate by relaxation: REBAR and RELAX, unbiased for discrete laws.

E_q[c(z̃) ∇log q(b) + ∇c(z̃)] = E[∇c(z)] for any differentiable c of the relaxed z, where z̃ is z given its rounding b:
so c may be subtracted from f and its gradient given back along the two paths. Read `_estimate`, the whole estimator.
`relax` and `tuned_rebar` learn c by descent on the variance, strictly after use.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vbjax.distributions import Copies, Joint
from vbjax.estimators import learning
from vbjax.estimators.estimate import check_samples, inject
from vbjax.estimators.relaxed import check_temperature, given, held, relaxation_noise, require_relaxable, soften
from vbjax.types import GradientEstimator, Params, Scalar, Spec, stop_gradient


class ControlVariate(NamedTuple):
    """What is learned: the logarithm of the temperature, the scale of f's relaxation, the network's parameters."""

    log_temperature: Scalar
    scale: Scalar
    network: Params


def rebar(samples: int = 1, *, temperature: int | float = 0.5, scale: int | float = 1.0) -> GradientEstimator:
    """Estimate ∇E_q f by [f(b) - η f(σ_λ(z̃))] ∇log q(b) + η ∇f(σ_λ(z)) - η ∇f(σ_λ(z̃)).

    temperature: λ > 0; scale: η. z is the relaxation of the hard draw b and z̃ that of b given b: one number, by common
    random numbers, on two paths. Unbiased for every λ and η; η = 0 is the plain score function. The value and the
    gradient of the model's parameters are those of f(b). f must accept relaxed events (docstring of `relaxed`) and be
    continuous there: where it jumps the two paths miss the jump, and the gradient is biased. Not for cheap gradients:
    three calls of f a sample, one of them a gradient, where `score_function` with leave_one_out makes one. Raises
    `NotAvailable` for laws other than Bernoulli and OneHotCategorical, and for second derivatives.
    Source: Tucker et al. (2017), eq. 8.
    """
    check_samples(samples)
    check_temperature(temperature)
    name = f"rebar({samples}, temperature={temperature:g}, scale={scale:g})"

    def control(q):
        return _control_variate(q, temperature, scale, ())

    def surrogate(state, noise, f, q):
        return _surrogate(name, control(q), None, noise, f, q)

    return GradientEstimator(_spec(name, samples), lambda q: _noise(name, samples, q), surrogate)


def tuned_rebar(
    samples: int = 1,
    *,
    temperature: int | float = 0.5,
    scale: int | float = 1.0,
    optimizer: Any = None,
) -> GradientEstimator:
    """`rebar` whose λ and η descend on the variance of its gradient, one step after each estimate.

    temperature, scale: where learning starts. optimizer: init and update as optax has them, `sgd(0.01)` by default;
    the loss is ‖gradient in q‖², whose slope is the variance's since the mean does not move. Else as `rebar`.
    Source: Tucker et al. (2017), section 3.2.
    """
    return _learned("tuned_rebar", samples, None, temperature, scale, optimizer, seed=0)


def relax(
    samples: int = 1,
    *,
    network: Any = None,
    temperature: int | float = 0.5,
    scale: int | float = 1.0,
    optimizer: Any = None,
    seed: int = 0,
) -> GradientEstimator:
    """`rebar` with the control variate c(z) = η f(σ_λ(z)) + r(z), where λ, η and the network r are learned.

    network: of z on the scale of logits, a `learning.Network` or any object with its init and apply; by default an
    `mlp`. seed: of its first parameters. optimizer: init and update as optax has them, `sgd(0.01)` by default; it
    descends on ‖gradient in q‖², whose slope is the variance's since the mean does not move, strictly after use.
    Unbiased at every state. What f differentiates explicitly in q's parameters is outside that loss. Else as `rebar`;
    not worth its cost where f's own relaxation is close.
    Source: Grathwohl et al. (2018), eqs. 8-10.
    """
    return _learned(
        "relax", samples, learning.mlp((16,)) if network is None else network, temperature, scale, optimizer, seed
    )


def _learned(factory, samples, network, temperature, scale, optimizer, seed) -> GradientEstimator:
    check_samples(samples)
    check_temperature(temperature)
    optimizer = learning.sgd(0.01) if optimizer is None else optimizer
    name = f"{factory}({samples})"

    def init(q):
        relaxation_noise(name, q)
        parameters = () if network is None else network.init(jax.random.key(seed), jnp.zeros_like(q.logits))
        control = _control_variate(q, temperature, scale, parameters)
        return learning.start(optimizer, control)

    def surrogate(state, noise, f, q):
        return _surrogate(name, stop_gradient(state.params), network, noise, f, q)

    def update(state, noise, f, q):
        def size(control):
            gradient = _gradient(control, network, noise, jax.vmap(f)(noise[0]), f, stop_gradient(q))
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

        return learning.step(optimizer, jax.grad(size)(state.params), state)

    return GradientEstimator(_spec(name, samples), lambda q: _noise(name, samples, q), surrogate, init, update)


def _estimate(q, b, s, cost, c):
    """The gradient in q from one draw: cost is f(b), c the control variate, a function of the relaxed z."""
    z = stop_gradient(given(q, b, s))
    value, slope = jax.value_and_grad(c)(z)
    weight = cost - value

    def surrogate(q):
        # z and z̃ are one point, on two paths
        return weight * q.log_prob(b) + jnp.vdot(slope, held(q, z) - given(q, b, s))

    return jax.grad(surrogate)(q)


def _gradient(control: ControlVariate, network: Any, noise, costs, f, q):
    """The mean over the draws, whose f(b) are the costs, as a function of the control variate; q without gradient."""

    def c(z):
        relaxed = control.scale * f(soften(q, z, jnp.exp(control.log_temperature)))
        return relaxed if network is None else relaxed + network.apply(control.network, z)

    bits, relaxations = noise
    gradients = jax.vmap(lambda b, s, cost: _estimate(q, b, s, cost, c))(bits, relaxations, costs)
    return jax.tree.map(lambda g: g.mean(0), gradients)


def _surrogate(name: str, control: ControlVariate, network: Any, noise, f, q) -> Scalar:
    require_relaxable(name, q, f)
    b, _ = noise
    costs = jax.vmap(f)(b)
    gradient = _gradient(control, network, noise, costs, f, stop_gradient(q))
    return costs.mean() + inject(q, gradient, estimator=name)


def _noise(name: str, samples: int, q):
    return Copies(Joint((stop_gradient(q), relaxation_noise(name, q))), samples)


def _spec(name: str, samples: int) -> Spec:
    return Spec(name, True, True, True, ("discrete",), 3 * samples, 1)


def _control_variate(q, temperature, scale, parameters) -> ControlVariate:
    return ControlVariate(jnp.log(jnp.asarray(temperature, q.dtype)), jnp.asarray(scale, q.dtype), parameters)
