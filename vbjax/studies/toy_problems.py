"""The toy problems on which gradient estimators are compared in the literature, each with one or two parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from vbjax.distributions import Bernoulli, Normal, Poisson
from vbjax.types import Problem


class ToyProblem(NamedTuple):
    """An objective E_q f to differentiate.

    name: short, for tables. statement: the cost and the law in TeX. problem: `params -> (q, f)`, of any float type.
    params: a pytree of Python floats. summary: half a line. source: the paper. truth: params -> the gradient of E f
    by other means than `exact_gradient`, where that has no answer. sweep: a parameter's name and the values worth
    trying.
    """

    name: str
    statement: str
    problem: Problem
    params: Any
    summary: str = ""
    source: str = ""
    truth: Callable[[Any], Any] | None = None
    sweep: tuple[str, Sequence[int | float]] | None = None


def square(centre: float = -0.4, loc: float = 0.7, scale: float = 1.3) -> ToyProblem:
    """(z - a)² under a normal law (Mohamed et al. 2020, section 3)."""
    return ToyProblem(
        "square",
        rf"(z - a)^2,\quad a = {centre},\quad z \sim N({loc}, {scale}^2)",
        lambda params: (Normal(params["loc"], params["scale"]), lambda z: (z - centre) ** 2),
        {"loc": loc, "scale": scale},
        sweep=("loc", (-3.0, -1.5, -0.4, 0.7, 1.5, 3.0)),
    )


def bump(sharpness: float = 1.0, loc: float = 0.7, scale: float = 1.3) -> ToyProblem:
    """exp(-k z²) under a normal law (Mohamed et al. 2020, section 3)."""
    return ToyProblem(
        "exponential",
        rf"e^{{-k z^2}},\quad k = {sharpness},\quad z \sim N({loc}, {scale}^2)",
        lambda params: (Normal(params["loc"], params["scale"]), lambda z: jnp.exp(-sharpness * z**2)),
        {"loc": loc, "scale": scale},
        sweep=("scale", (0.1, 0.2, 0.4, 0.8, 1.3, 2.0)),
    )


def cosine(frequency: float = 2.0, loc: float = 0.7, scale: float = 1.3) -> ToyProblem:
    """cos ωz under a normal law: for ω above 0.7069 the score varies less than the path, here in loc."""
    return ToyProblem(
        "cosine",
        rf"\cos \omega z,\quad \omega = {frequency},\quad z \sim N({loc}, {scale}^2)",
        lambda params: (Normal(params["loc"], params["scale"]), lambda z: jnp.cos(frequency * z)),
        {"loc": loc, "scale": scale},
        sweep=("scale", (0.1, 0.2, 0.4, 0.8, 1.3, 2.0)),
    )


def coin(target: float, logit: float = 0.3) -> ToyProblem:
    """(b - t)² under a Bernoulli law: t = 0.45 is REBAR's toy (Tucker et al. 2017), 0.499 RELAX's (2018)."""
    return ToyProblem(
        f"coin t={target}",
        rf"(b - t)^2,\quad t = {target},\quad b \sim \mathrm{{Bernoulli}}(\sigma({logit}))",
        lambda params: (Bernoulli(params["logit"]), lambda b: (b - target) ** 2),
        {"logit": logit},
        sweep=("logit", (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)),
    )


def counts(target: float = 3.0, rate: float = 4.0) -> ToyProblem:
    """(z - t)² under a Poisson law: a discrete latent without end."""
    return ToyProblem(
        "Poisson",
        rf"(z - t)^2,\quad t = {target},\quad z \sim \mathrm{{Poisson}}({rate})",
        lambda params: (Poisson(params["rate"]), lambda z: (z - target) ** 2),
        {"rate": rate},
    )


def linear_gaussian_elbo(x: float = 1.2, gain: float = 0.9, loc: float = 0.8, scale: float = 0.6) -> ToyProblem:
    """The ELBO of z ~ N(0, 1), x | z ~ N(gain z, 1/4): a parameter of the model, two of q, and q inside the cost."""

    def problem(params):
        q = Normal(params["loc"], params["scale"])

        def log_weight(z):
            prior, likelihood = (
                Normal(jnp.zeros_like(z), jnp.ones_like(z)),
                Normal(params["gain"] * z, 0.5 * jnp.ones_like(z)),
            )
            return prior.log_prob(z) + likelihood.log_prob(x) - q.log_prob(z)

        return q, log_weight

    statement = rf"\log p(x, z) - \log q(z),\quad z \sim N(0, 1),\; x \mid z \sim N(g z, \tfrac14),\; x = {x}"
    return ToyProblem("linear ELBO", statement, problem, {"gain": gain, "loc": loc, "scale": scale})


def toy_problems() -> tuple[ToyProblem, ...]:
    """The classic set: three costs of a normal law, two coins, counts, and a small ELBO."""
    return (square(), bump(), cosine(), coin(0.45), coin(0.499), counts(), linear_gaussian_elbo())
