"""Baselines of the score-function gradient that remember, weigh or learn: moving average, per parameter, neural.

Each is an estimator of its own, since a `Baseline` sees nothing but the values of f. What is learned is updated
strictly after use: no baseline meets its own sample, so all are unbiased at every state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vbjax import bounds
from vbjax.estimators import learning
from vbjax.estimators.estimate import check_samples, estimator_name, inject, score
from vbjax.estimators.score_function import (
    check_baseline,
    dice,
    draws,
    leave_one_out,
    require_fixed_support,
    values_and_log_probs,
)
from vbjax.types import Bound, GradientEstimator, Scalar, Spec, stop_gradient


class MovingAverage(NamedTuple):
    """Σ decay^t (1 - decay) f̄_t of the past estimates, and the sum of these weights, which corrects the start."""

    total: Scalar
    weight: Scalar

    @property
    def value(self) -> Array:
        """The average; zero before the first update."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1), 0)


def score_function_moving_average(
    samples: int = 1, *, decay: int | float = 0.9, bound: Bound = bounds.mean
) -> GradientEstimator:
    """The score-function gradient with an exponential moving average of f as its baseline, (f(z_k) - b_t) ∇log q(z_k).

    b_{t+1} = decay b_t + (1 - decay) f̄_t, corrected for its start at zero. *Updated before use, as several
    libraries do, it would scale the gradient by 1 - (1 - decay)/K*: here `update` comes after, and calls f again (one
    compiled step does both at once). decay: in [0, 1). The state averages over a batch, so one number serves all
    examples. Not where f's level differs between examples: use `nvil` or `leave_one_out`. Right to every order of
    derivative. Raises as `score_function`. Source: Williams (1992); Mohamed et al. (2020), section 7.4.1.
    """
    check_samples(samples)
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    noise = functools.partial(draws, "score_function_moving_average", samples=samples)

    def init(q):
        return MovingAverage(jnp.zeros((), q.dtype), jnp.zeros((), q.dtype))

    def surrogate(state, z, f, q):
        require_fixed_support("score_function_moving_average", q)
        values, log_q = values_and_log_probs(z, f, q, bound)
        return dice(values, log_q, jnp.full_like(values, 1) * state.value)

    def update(state, z, f, q):
        values, _ = values_and_log_probs(z, f, q, bound)
        average = MovingAverage(stop_gradient(values).mean(), jnp.ones((), state.weight.dtype))
        return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state, average)

    name = estimator_name("score_function_moving_average", samples, bound=bound)
    return GradientEstimator(
        Spec(name, True, True, True, ("fixed_support",), samples, None), noise, surrogate, init, update
    )


def score_function_optimal_baseline(samples: int = 2) -> GradientEstimator:
    """The score-function gradient with the best constant baseline of each parameter, estimated from the other samples.

    g_j = (1/K) Σ_k (f_k - b_jk) s_kj,  b_jk = Σ_{l≠k} f_l s_lj² / Σ_{l≠k} s_lj²,  s = ∇_η log q(z): b* = E[f s²]/E[s²]
    has the least variance of all constants, and is not E f. Where the other scores are all zero it is the mean of the
    others' values. samples: K >= 2, else ValueError; two are `leave_one_out`. First derivatives only. *Not for few
    samples of a law with many parameters*: b* is a ratio of sample means, K² numbers per parameter; `leave_one_out`
    is often as good below ten. Raises `NotAvailable` as `score_function`.
    Source: Weaver & Tao (2001); Greensmith et al. (2004), theorem 8; Ranganath et al. (2014), section 3.2.
    """
    check_baseline(leave_one_out, samples)
    noise = functools.partial(draws, "score_function_optimal_baseline", samples=samples)
    name = estimator_name("score_function_optimal_baseline", samples, bound=bounds.mean)

    def surrogate(state, z, f, q):
        require_fixed_support("score_function_optimal_baseline", q)
        values = jax.vmap(f)(z)
        others = 1 - jnp.eye(samples, dtype=values.dtype)

        def sum_of_others(x):
            return jnp.tensordot(others, x, 1, precision="highest")

        def gradient(s):
            level = values.reshape(samples, *[1] * (s.ndim - 1))
            square = sum_of_others(s**2)
            best = sum_of_others(level * s**2) / jnp.where(square > 0, square, 1)
            b = jnp.where(square > 0, best, leave_one_out.function(level))
            return jnp.mean((level - b) * s, 0)

        scores = jax.vmap(lambda z: score(q, z))(z)
        return values.mean() + inject(q, jax.tree.map(gradient, scores), estimator=name)

    return GradientEstimator(Spec(name, True, True, True, ("fixed_support",), samples, 1), noise, surrogate)


def nvil(
    samples: int = 1,
    *,
    network: learning.Network | None = None,
    optimizer: Any = None,
    learning_rate: int | float = 0.01,
    seed: int = 0,
    bound: Bound = bounds.mean,
) -> GradientEstimator:
    """The score-function gradient with a learned baseline of q's parameters, (f(z_k) - b_φ(η)) ∇log q(z_k).

    In amortised inference η is the encoder's output, so b_φ is a baseline of x. network: by default an `mlp`, on the
    flattened leaves of q. optimizer: anything with optax's `init` and `update`; by default `sgd(learning_rate)`, both
    of `learning`.
    `update` takes one step on (1/K) Σ (f(z_k) - b_φ)², strictly after use, and calls f again (one compiled step does
    both at once). Over a batch the state is the mean of the examples' steps: with `sgd`, one step on the mean loss.
    The paper also divides by a running deviation of f - b; that rescales the gradient, so it is left out. seed: of
    the network's first parameters. Right to every order of derivative, the network held fixed. *Not for a law with
    fixed parameters*, where a network of η is a slow `score_function_moving_average`. Raises as `score_function`.
    Source: Mnih & Gregor (2014), section 2.3.
    """
    check_samples(samples)
    noise = functools.partial(draws, "nvil", samples=samples)
    network = learning.mlp() if network is None else network
    optimizer = learning.sgd(learning_rate) if optimizer is None else optimizer

    def features(q):
        return ravel_pytree(stop_gradient(q))[0]

    def init(q):
        return learning.start(optimizer, network.init(jax.random.key(seed), features(q)))

    def surrogate(state, z, f, q):
        require_fixed_support("nvil", q)
        values, log_q = values_and_log_probs(z, f, q, bound)
        return dice(values, log_q, jnp.full_like(values, 1) * network.apply(state.params, features(q)))

    def update(state, z, f, q):
        values = stop_gradient(values_and_log_probs(z, f, q, bound)[0])
        gradient = jax.grad(lambda params: jnp.mean((values - network.apply(params, features(q))) ** 2))(state.params)
        return learning.step(optimizer, gradient, state)

    name = estimator_name("nvil", samples, bound=bound)
    return GradientEstimator(
        Spec(name, True, True, True, ("fixed_support",), samples, None), noise, surrogate, init, update
    )
