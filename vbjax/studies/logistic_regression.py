"""Bayesian logistic regression with a normal q over the weights: a problem of 62 parameters with an exact gradient.

y_n | w ~ Bernoulli(σ(x_nᵀw)), w ~ N(0, I), q = N(m, diag s²). Under q every x_nᵀw is a normal number, so the ELBO is
a closed-form KL and N integrals in one dimension. Start at `breast_cancer`, then `exact_elbo`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from vbjax.bounds import LogWeight
from vbjax.distributions import Bernoulli, Normal
from vbjax.divergences import kl_divergence
from vbjax.estimators import (
    antithetic,
    leave_one_out,
    pathwise,
    quasi_monte_carlo,
    score_function,
    sticking_the_landing,
    taylor,
)
from vbjax.exact import Certified, NotConverged
from vbjax.moments import replicate
from vbjax.studies.published_case import Finding, PublishedCase
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import Problem

_REACH, _MOST_POINTS = 10.0, 2**14


class Regression(NamedTuple):
    """Binary labels and their features. features: `(n, d)`, standardised, after a column of ones; labels: `(n,)`."""

    features: Float[np.ndarray, "n d"]
    labels: Float[np.ndarray, " n"]


@functools.cache
def breast_cancer() -> Regression:
    """Diagnosis of 569 tumours (malignant 0, benign 1) by 30 standardised features and an intercept: d = 31.

    Source: Wolberg et al., Wisconsin diagnostic data, as in scikit-learn; so Mohamed et al. (2020), section 8.
    """
    from sklearn.datasets import load_breast_cancer

    features, labels = map(np.asarray, load_breast_cancer(return_X_y=True))
    features = (features - features.mean(0)) / features.std(0)
    return Regression(np.column_stack([np.ones(len(labels)), features]), labels.astype(float))


def elbo_problem(data: Regression) -> Problem:
    """`{"loc": (d,), "log_scale": (d,)} -> (q, log-weight)` on all the data."""

    def problem(params):
        q = Normal(params["loc"], jnp.exp(params["log_scale"]))
        features, labels = (jnp.asarray(x, q.dtype) for x in data)
        prior = Normal(jnp.zeros_like(q.loc), jnp.ones_like(q.loc))
        return q, LogWeight(lambda w: Bernoulli(features @ w).log_prob(labels), prior, q)

    return problem


def exact_elbo(data: Regression, params: Any, *, rtol: float = 1e-10) -> Certified:
    """The ELBO in nats, and its gradient: `Certified((value, gradient), ...)`, by n certified integrals.

    E log σ(a), a ~ N(m, s²), is analytic in a strip of half-width π/s, so the trapezoid rule in (a - m)/s converges
    geometrically at any s; a Gauss-Hermite rule of 64 points errs by 0.2 nats where s is large. The points double
    until neither value nor gradient moves by more than rtol. Float64 only: `with jax.enable_x64(True)`, else
    ValueError. Raises `NotConverged` beyond 16,384 points, as for s above 5,000.
    """
    if not jax.config.read("jax_enable_x64"):
        raise ValueError("exact_elbo needs float64: with jax.enable_x64(True)")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    count, value = 64, _elbo_and_gradient(params, data.features, data.labels, points=64)
    error = np.inf
    while not error <= rtol:
        count *= 2
        if count > _MOST_POINTS:
            raise NotConverged(f"the ELBO still changes by {error:.1e} at {count // 2} points, tolerance {rtol:.1e}")
        previous, value = value, _elbo_and_gradient(params, data.features, data.labels, points=count)
        scale = max(1.0, *(float(jnp.abs(x).max()) for x in jax.tree.leaves(value)))
        error = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), value, previous))) / scale
    return Certified(value, error, count)


@functools.partial(jax.jit, static_argnames="points")
def _elbo_and_gradient(params, features, labels, *, points):
    xi, step = np.linspace(-_REACH, _REACH, points, retstep=True)
    weights = step * np.exp(-(xi**2) / 2) / np.sqrt(2 * np.pi)
    # log σ of the signed margin: y = 1 wants it high, y = 0 low
    signed = (2 * labels - 1)[:, None] * features

    def elbo(params):
        q = Normal(params["loc"], jnp.exp(params["log_scale"]))
        margin = signed @ q.loc
        # at zero features the root of zero would have no slope
        spread = jnp.sqrt(features**2 @ q.variance())

        def example(margin_and_spread):
            m, s = margin_and_spread
            return jnp.asarray(weights) @ jax.nn.log_sigmoid(m + s * xi)

        prior = Normal(jnp.zeros_like(q.loc), jnp.ones_like(q.loc))
        return jax.lax.map(jax.checkpoint(example), (margin, spread), batch_size=64).sum() - kl_divergence(q, prior)

    return jax.value_and_grad(elbo)(params)


@functools.cache
def fitted(steps: int = 300) -> Any:
    """The parameters where the exact ELBO is largest, by SciPy's L-BFGS on the exact gradient; float64 NumPy arrays."""
    from scipy.optimize import minimize

    data = breast_cancer()
    d = data.features.shape[1]

    def loss(x):
        params = {"loc": jnp.asarray(x[:d]), "log_scale": jnp.asarray(x[d:])}
        value, gradient = _elbo_and_gradient(params, data.features, data.labels, points=256)
        return -float(value), -np.concatenate([gradient["loc"], gradient["log_scale"]])

    with jax.enable_x64(True):
        best = minimize(loss, np.zeros(2 * d), jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    return {"loc": best[:d], "log_scale": best[d:]}


def start(data: Regression, *, scale: float = 0.1) -> Any:
    """Where an optimiser would begin: weights zero, deviations `scale`."""
    d = data.features.shape[1]
    return {"loc": np.zeros(d), "log_scale": np.full(d, np.log(scale))}


def logistic_regression(*, at_optimum: bool = False) -> ToyProblem:
    """The ELBO of the breast-cancer data, at the start of a fit or at its exact optimum."""
    data = breast_cancer()
    return ToyProblem(
        "logistic regression, " + ("optimum" if at_optimum else "start"),
        r"\sum_{n=1}^{569} \log \sigma(\pm x_n^\top w) + \log p(w) - \log q(w),\quad w \sim N(m, \mathrm{diag}\, s^2)"
        r" \in \mathbb{R}^{31}",
        elbo_problem(data),
        fitted() if at_optimum else start(data),
        summary="the ELBO of a logistic regression with 31 weights on 569 tumours",
        source="Mohamed et al. (2020), section 8",
        truth=lambda params: exact_elbo(data, params).value[1],
    )


ESTIMATORS = {
    "pathwise": pathwise,
    "sticking the landing": sticking_the_landing,
    "antithetic": antithetic,
    "Sobol": quasi_monte_carlo,
    "RLOO": functools.partial(score_function, baseline=leave_one_out),
    "Taylor": functools.partial(taylor, baseline=leave_one_out),
    "score": score_function,
}
SAMPLES = 8


def logistic_regression_case(*, replications: int = 2048) -> PublishedCase:
    """Total variances at the optimum and at the start, with every mean held against the exact gradient."""
    data = breast_cancer()
    certified = {}
    with jax.enable_x64(True):
        certified = {place: exact_elbo(data, params) for place, params in _places(data).items()}
        values = {place: float(c.value[0]) for place, c in certified.items()}
        truths = {place: np.asarray(ravel_pytree(c.value[1])[0]) for place, c in certified.items()}
        known = float(exact_elbo(data, start(data, scale=1.0)).value[0])
    totals, rows, worst, count = {}, [], 0.0, 0
    for i, (place, params) in enumerate(_places(data).items()):
        truth = truths[place]
        # antithetic draws at the start leave less variance than float32 rounds off
        rounding = 16 * np.finfo(np.float32).eps * np.abs(truth).max()
        params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
        for j, (name, make) in enumerate(ESTIMATORS.items()):
            key = jax.random.fold_in(jax.random.key(0), 100 * i + j)
            estimator = make(SAMPLES)
            moments = replicate(key, estimator, elbo_problem(data), params, replications=replications)
            mean, error = (np.asarray(ravel_pytree(x)[0], float) for x in (moments.mean, moments.standard_error))
            z = (mean - truth) / np.hypot(error, rounding)
            worst, count = max(worst, float(np.abs(z).max())), count + len(z)
            totals[place, name] = {group: float(np.sum(v)) for group, v in moments.variance.items()}
            loc, scale = totals[place, name]["loc"], totals[place, name]["log_scale"]
            rows.append((place, name, estimator.spec.evaluations, loc, scale))

    def ratio(place, first, second, group="loc"):
        return totals[place, first][group] / totals[place, second][group]

    places = list(_places(data))
    score = min(ratio(place, "score", "pathwise") for place in places)
    loo = min(ratio(place, "RLOO", "pathwise") for place in places)
    landing = ratio("optimum", "pathwise", "sticking the landing")
    findings = (
        Finding(
            f"With q = N(0, I) the exact ELBO is {known:.3f}, where 64 Gauss-Hermite nodes give -1226.828.",
            abs(known + 1226.592) < 1e-3,
        ),
        Finding(
            f"All means agree with the exact gradient: largest |z| of {count} is {worst:.1f}.",
            # of 900 normal numbers one exceeds it with probability 1e-6; 2,048 draws are no normal number yet
            worst < 6.5,
        ),
        Finding(
            f"The score function has at least {score:,.0f} times the pathwise variance in loc, {loo:,.1f} times with "
            "the leave-one-out baseline.",
            score > 100 and loo > 1,
        ),
        Finding(
            f"At the optimum sticking the landing has {1 / landing:.2f} of the pathwise variance in loc.", landing > 1
        ),
    )
    return PublishedCase(
        name="logistic-regression",
        title="Bayesian logistic regression",
        claim="On this regression the pathwise gradient needs one draw where the score function needs many and a "
        "control variate; near the optimum dropping the score of q lowers the variance further.",
        source="Mohamed et al. (2020), section 8; Roeder et al. (2017)",
        columns=("parameters", "estimator", "calls of f", "variance, loc", "variance, log scale"),
        rows=tuple(rows),
        findings=findings,
        remark=f"Variances of {SAMPLES} draws' estimate, summed over 31 coordinates, from {replications:,} "
        "replications. The exact ELBO at the optimum is "
        f"{values['optimum']:.3f} nats; its certificate is {certified['optimum'].error:.0e}.",
    )


def _places(data: Regression) -> dict[str, Any]:
    return {"start": start(data), "optimum": fitted()}
