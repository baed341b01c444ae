"""The laws and the objectives of the conformance matrix, each with parameters of q and of the model."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vbjax import bounds
from vbjax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Joint,
    Laplace,
    Logistic,
    LogNormal,
    Mixture,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    Uniform,
)
from vbjax.types import Problem


class Family(NamedTuple):
    """A law to test estimators on.

    name. law: parameters -> law. q, prior: its parameters as q and as the model's prior. statistic: event -> the
    scalar that objectives are functions of. line: parameters -> the law of a number x, with statistic = scale x +
    shift; by default the law itself.
    """

    name: str
    law: Callable[[Any], Any]
    q: Any
    prior: Any
    statistic: Callable[[Any], Array]
    line: Callable[[Any], Any] | None = None
    scale: float = 1.0
    shift: float = 0.0


def _normal(p):
    return Normal(p["loc"], p["scale"])


def _mixture_of_bit_and_normal(p):
    """The law of b - 0.7 z."""
    loc = jnp.stack([-0.7 * p["loc"], 1 - 0.7 * p["loc"]])
    return Mixture(
        jnp.stack([jnp.zeros_like(p["logits"]), p["logits"]]),
        Normal(loc, jnp.broadcast_to(0.7 * p["scale"], (2,))),
    )


def families() -> tuple[Family, ...]:
    """The laws of the matrix: continuous, implicit, discrete with one and with several coordinates, and joint."""
    real = {"loc": 0.4, "scale": 0.8}, {"loc": -0.1, "scale": 1.1}
    number = lambda z: z  # noqa: E731
    weights = np.array([1.0, -0.7, 0.4])

    def weighted(z):
        return z @ jnp.asarray(weights[: z.shape[-1]], z.dtype)

    return (
        Family("Normal", _normal, *real, number),
        Family("Laplace", lambda p: Laplace(p["loc"], p["scale"]), real[0], {"loc": 0.4, "scale": 1.1}, number),
        Family("Logistic", lambda p: Logistic(p["loc"], p["scale"]), {"loc": 0.4, "scale": 0.4}, real[1], number),
        Family(
            "LogNormal",
            lambda p: LogNormal(p["loc"], p["scale"]),
            {"loc": 0.1, "scale": 0.4},
            {"loc": -0.1, "scale": 0.5},
            number,
        ),
        Family(
            "Uniform",
            lambda p: Uniform(p["low"], p["high"]),
            {"low": -0.3, "high": 1.1},
            {"low": -1.0, "high": 2.0},
            number,
        ),
        Family(
            "Gamma",
            lambda p: Gamma(p["concentration"], p["rate"]),
            {"concentration": 2.5, "rate": 2.0},
            {"concentration": 2.0, "rate": 1.5},
            number,
        ),
        Family("Beta", lambda p: Beta(p["a"], p["b"]), {"a": 2.0, "b": 1.4}, {"a": 1.5, "b": 1.7}, number),
        Family(
            "Dirichlet",
            lambda p: Dirichlet(p["concentration"]),
            {"concentration": np.array([1.6, 2.2])},
            {"concentration": np.array([1.4, 1.1])},
            weighted,
            lambda p: Beta(p["concentration"][0], p["concentration"][1]),
            1.7,
            -0.7,
        ),
        Family(
            "StudentT",
            lambda p: StudentT(p["df"], p["loc"], p["scale"]),
            {"df": 9.0, "loc": 0.4, "scale": 0.6},
            {"df": 7.0, "loc": 0.0, "scale": 1.0},
            number,
        ),
        Family(
            "MultivariateNormal",
            lambda p: MultivariateNormal(p["loc"], p["tril"]),
            {"loc": np.array([0.4, -0.3]), "tril": np.array([[0.7, 0.0], [0.2, 0.5]])},
            {"loc": np.zeros(2), "tril": np.eye(2)},
            weighted,
            lambda p: Normal(weighted(p["loc"]), jnp.linalg.norm(weighted(jnp.tril(p["tril"]).T))),
        ),
        Family(
            "Mixture of Normal",
            lambda p: Mixture(p["logits"], Normal(p["loc"], p["scale"])),
            {"logits": np.array([0.3, -0.4]), "loc": np.array([0.9, -0.6]), "scale": np.array([0.6, 0.8])},
            {"logits": np.zeros(2), "loc": np.array([1.0, -1.0]), "scale": np.ones(2)},
            number,
        ),
        Family("Bernoulli", lambda p: Bernoulli(p["logits"]), {"logits": -0.6}, {"logits": 0.2}, number),
        Family(
            "Bernoulli(2)",
            lambda p: Bernoulli(p["logits"]),
            {"logits": np.array([0.8, -1.2])},
            {"logits": np.array([0.1, -0.2])},
            weighted,
        ),
        Family(
            "Categorical",
            lambda p: Categorical(p["logits"]),
            {"logits": np.array([0.2, -0.5, 1.0])},
            {"logits": np.array([0.0, 0.1, -0.2])},
            lambda z: jnp.asarray(weights)[z],
        ),
        Family(
            "OneHotCategorical",
            lambda p: OneHotCategorical(p["logits"]),
            {"logits": np.array([0.2, -0.5, 1.0])},
            {"logits": np.array([0.0, 0.1, -0.2])},
            weighted,
        ),
        Family("Poisson", lambda p: Poisson(p["rate"]), {"rate": 1.7}, {"rate": 1.2}, number),
        Family(
            "Joint of Bernoulli and Normal",
            lambda p: Joint((Bernoulli(p["logits"]), Normal(p["loc"], p["scale"]))),
            {"logits": 0.5, **real[0]},
            {"logits": -0.2, **real[1]},
            lambda z: z[0] - 0.7 * z[1],
            _mixture_of_bit_and_normal,
        ),
    )


THRESHOLD = 0.35
"""Where the discontinuous objective jumps."""


def _smooth(family, q, params):
    def f(z):
        s = family.statistic(z)
        return jnp.cos(1.3 * s) + 0.3 * s**2

    return f


def _jump(family, q, params):
    def f(z):
        s = family.statistic(z)
        return jnp.where(s > THRESHOLD, 1.0, 0.0).astype(s.dtype)

    return f


def _own(family, q, params):
    """Depends on the parameters of q and of the model: a likelihood less a penalty on the former."""
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params["q"]))
    return lambda z: _log_likelihood(family, params, z) - 0.5 * penalty


def _log_weight(family, q, params):
    return bounds.LogWeight(functools.partial(_log_likelihood, family, params), family.law(params["prior"]), q)


def _log_likelihood(family, params, z):
    s, slope = family.statistic(z), params["likelihood"]
    return slope * jnp.sin(s) - 0.5 * slope**2 * (s - 0.4) ** 2


OBJECTIVES = {"smooth": _smooth, "discontinuous": _jump, "own parameters": _own, "log-weight": _log_weight}
"""Kinds of objective: (family, q, parameters) -> f."""


def arrays(family: Family) -> Any:
    """All parameters of a family's problems: "q", "prior" and "likelihood"."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), {"q": family.q, "prior": family.prior, "likelihood": 0.8})


def problem(family: Family, objective: str) -> Problem:
    """The estimation problem of an objective under a family."""

    def bound(params):
        q = family.law(params["q"])
        return q, OBJECTIVES[objective](family, q, params)

    return bound


def by_group(value: Array, gradient: Any) -> dict[str, Array]:
    """The value and the flat gradients in the parameters of q and of the model."""
    return {
        "value": value[None],
        "q": vector(gradient["q"]),
        "model": vector({"prior": gradient["prior"], "likelihood": gradient["likelihood"]}),
    }


def vector(tree: Any) -> Array:
    """The leaves of a pytree as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
