"""Chapter 2: gradients of expectations by the score, their baselines, and their exact variances.

Left sides integrate the library's estimators over all of their noise; right sides are closed forms and SciPy. Start
with `score_function_gradient`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import exact
from vbjax.derivations import families
from vbjax.derivations.gradients import (
    Quadratic,
    by_parameter,
    normal_params,
    normal_problem,
    quadratic,
    random_quadratic,
)
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.oracles import central_difference, normal_expectation
from vbjax.distributions import Bernoulli, Categorical, Gamma, Normal, Poisson
from vbjax.estimators import Baseline, constant, leave_one_out, pathwise, score_function


class NormalAndTable(NamedTuple):
    """A normal law, and a categorical law with a value of f for each outcome."""

    mean: float
    scale: float
    logits: tuple
    values: tuple


class Families(NamedTuple):
    """Parameters of a normal and a gamma law, the logits of two discrete ones, and the rate of a Poisson law."""

    normal: tuple
    gamma: tuple
    categorical: tuple
    bernoulli: tuple
    poisson: tuple


class Waves(NamedTuple):
    """f(x) = cos ωx under N(mean, scale²), for several ω."""

    mean: float
    scale: float
    frequencies: tuple


@entry(2)
def score_function_gradient():
    def f(x):
        return jnp.exp(0.4 * x) + x**3

    def lhs(case):
        normal = exact.exact_moments(score_function(1), normal_problem(f), normal_params(case)).mean
        values = jnp.array(case.values)

        def table(logits):
            return (Categorical(logits), lambda z: values[z])

        categorical = exact.exact_moments(score_function(1), table, jnp.array(case.logits)).mean
        return by_parameter(normal) | {"∂ logits": categorical}

    def rhs(case):
        def mean(v):
            return normal_expectation(lambda x: np.exp(0.4 * x) + x**3, *v)

        p = np.exp(case.logits) / np.exp(case.logits).sum()
        advantage = np.array(case.values) - p @ np.array(case.values)
        return by_parameter(central_difference(mean, np.array([case.mean, case.scale]))) | {"∂ logits": p * advantage}

    def descent(case):
        return {name: -slope for name, slope in rhs(case).items()}

    return Identity(
        title="Differentiate the density, not the sample",
        statement=r"\nabla_\theta E_{p_\theta}[f(x)] = E_{p_\theta}\left[f(x)\, \nabla_\theta \log p_\theta(x)\right]",
        lecture="000",
        slide="Optimization over the variational distribution",
        kind="identity",
        instance=NormalAndTable(mean=0.4, scale=0.8, logits=(0.3, -0.6, 0.9), values=(1.0, 3.0, -1.5)),
        family=lambda random: NormalAndTable(
            random.uniform(-1, 1), random.uniform(0.3, 1.2), *random.normal(size=(2, 3))
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The sign is wrong: the gradient of a loss taken for that of a reward.", rhs=descent),
        correction="The slide speaks of “standard gradients”: the estimator is the score function, or REINFORCE.",
    )


@entry(2)
def score_zero_mean():
    laws = {
        "normal": Normal,
        "gamma": Gamma,
        "categorical": lambda *v: Categorical(jnp.stack(v)),
        "bernoulli": Bernoulli,
        "poisson": Poisson,
    }

    def weighted_score(case, weight):
        def mean(family, params):
            def score(x):
                return weight(x) * jnp.stack(jax.grad(lambda params: family(*params).log_prob(x))(params))

            return exact.expectation(family(*params), score).value

        return {name: mean(laws[name], tuple(map(jnp.array, params))) for name, params in case._asdict().items()}

    def lhs(case):
        return weighted_score(case, lambda x: 1.0)

    def rhs(case):
        return {name: np.zeros(len(params)) for name, params in case._asdict().items()}

    def baseline_sees_its_sample(case):
        return weighted_score(case, lambda x: jnp.asarray(x, float))

    return Identity(
        title="The score has mean zero, so a constant baseline costs no bias",
        statement=r"E_{p_\theta}\left[\nabla_\theta \log p_\theta(x)\right] = 0 \quad \Rightarrow \quad "
        r"E\left[(f - b)\, \nabla_\theta \log p_\theta\right] = \nabla_\theta E[f]",
        lecture="000",
        slide="Optimization over the variational distribution",
        kind="identity",
        instance=Families(
            normal=(0.4, 0.8), gamma=(2.5, 1.5), categorical=(0.3, -0.6, 0.9), bernoulli=(0.7,), poisson=(2.2,)
        ),
        family=lambda random: Families(
            (random.uniform(-1, 1), random.uniform(0.4, 1.5)),
            random.uniform(1.5, 4, 2),
            random.normal(size=3),
            random.normal(size=1),
            random.uniform(0.3, 9, 1),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control(
            "A baseline that depends on its own sample, $b(x) = x$: its bias is $\\nabla E b$.",
            lhs=baseline_sees_its_sample,
        ),
    )


@entry(2)
def gradient_variance_quadratic():
    def lhs(case):
        along_sample = exact.exact_moments(pathwise(1), *quadratic(case)).variance
        by_score = exact.exact_moments(score_function(1), *quadratic(case)).variance
        return by_parameter(along_sample, "pathwise ∂") | by_parameter(by_score, "score ∂")

    def second_moments(d, s):
        along_sample = (4 * (d**2 + s**2), 4 * d**2 + 12 * s**2)
        by_score = (d**4 / s**2 + 18 * d**2 + 15 * s**2, 2 * d**4 / s**2 + 60 * d**2 + 78 * s**2)
        return np.array(along_sample), np.array(by_score)

    def named(along_sample, by_score):
        return by_parameter(along_sample, "pathwise ∂") | by_parameter(by_score, "score ∂")

    def rhs(case):
        d, s = case.mean - case.target, case.scale
        gradient = np.array([2 * d, 2 * s])
        return named(*(second - gradient**2 for second in second_moments(d, s)))

    def raw_moment(case):
        return named(*second_moments(case.mean - case.target, case.scale))

    return Identity(
        title="The variance of both gradients of a square",
        statement=r"f = (x - a)^2,\; \delta = \mu - a: \quad \mathrm{Var}_{\text{path}} = \left(4 \sigma^2,\; "
        r"4 \delta^2 + 8 \sigma^2\right), \quad "
        r"\mathrm{Var}_{\text{score}} = \left(\tfrac{\delta^4}{\sigma^2} + 14 \delta^2 "
        r"+ 15 \sigma^2,\; \tfrac{2 \delta^4}{\sigma^2} + 60 \delta^2 + 74 \sigma^2\right)",
        lecture="000",
        slide="Optimization over the variational distribution",
        kind="identity",
        instance=Quadratic(mean=0.4, scale=0.8, target=-0.5),
        family=lambda random: Quadratic(
            random.uniform(-50, 50), families.positive(random, 1e-3, 1e3), random.uniform(-50, 50)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The squared mean is not subtracted.", rhs=raw_moment),
        correction="The slide's “very inefficient” is right here, by a factor that grows as $\\delta^4 / \\sigma^4$; "
        "it is no theorem: see score-vs-reparam-counterexample.",
    )


@entry(2)
def score_vs_reparam_counterexample():
    def lhs(case):
        answer = {}
        for w in case.frequencies:
            problem = normal_problem(lambda x, w=w: jnp.cos(w * x))
            for name, estimator in (("pathwise", pathwise(1)), ("score", score_function(1))):
                variance = exact.exact_moments(estimator, problem, normal_params(case)).variance[0]
                answer[f"{name}, ω = {w}"] = variance
        return answer

    def rhs(case):
        answer = {}
        m, s = case.mean, case.scale
        for w in case.frequencies:
            # moments of cos and sin are the real and imaginary parts of the characteristic function
            damped = np.cos(2 * w * m) * np.exp(-2 * (w * s) ** 2)
            gradient = -w * np.sin(w * m) * np.exp(-0.5 * (w * s) ** 2)
            answer[f"pathwise, ω = {w}"] = w**2 * (1 - damped) / 2 - gradient**2
            answer[f"score, ω = {w}"] = (1 + (1 - 4 * (w * s) ** 2) * damped) / (2 * s**2) - gradient**2
        return answer

    def always_better(case):
        answer = rhs(case)
        for w in case.frequencies:
            answer[f"pathwise, ω = {w}"] = min(answer[f"pathwise, ω = {w}"], answer[f"score, ω = {w}"])
        return answer

    return Identity(
        title="The score estimator can be the better one",
        statement=r"f = \cos \omega x: \qquad \mathrm{Var}_{\text{path}} \sim \frac{\omega^2}{2}, \qquad "
        r"\mathrm{Var}_{\text{score}} \to \frac{1}{2 \sigma^2} \qquad (\omega \to \infty)",
        lecture="000",
        slide="Optimization over the variational distribution",
        kind="claim",
        instance=Waves(mean=0.5, scale=1.1, frequencies=(0.4, 1.5)),
        family=lambda random: Waves(
            random.uniform(-1, 1), random.uniform(0.8, 1.4), (random.uniform(0.2, 0.5), random.uniform(2, 3))
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The pathwise variance never exceeds that of the score.", rhs=always_better, on_slide=True),
        correction="There is no order between the two for every f. Pathwise wins for smooth f that change little "
        "over one σ; the score also serves discrete z and discontinuous f.",
    )


@entry(2)
def optimal_baseline():
    def lhs(case):
        def variances(b):
            return np.array(exact.exact_moments(score_function(1, baseline=constant(b)), *quadratic(case)).variance)

        # the variance is a parabola in the baseline: three points give its vertex
        at = [variances(b) for b in (0.0, 1.0, 2.0)]
        curvature = (at[2] - 2 * at[1] + at[0]) / 2
        slope = at[1] - at[0] - curvature
        return by_parameter(-slope / (2 * curvature), "b* for ∂") | by_parameter(
            at[0] - slope**2 / (4 * curvature), "least Var ∂"
        )

    def rhs(case):
        d, s = (case.mean - case.target) ** 2, case.scale**2
        return by_parameter((d + 3 * s, d + 5 * s), "b* for ∂") | by_parameter(
            (8 * d + 6 * s, 40 * d + 24 * s), "least Var ∂"
        )

    def mean_of_f(case):
        d, s = (case.mean - case.target) ** 2, case.scale**2
        return by_parameter((d + s, d + s), "b* for ∂") | by_parameter((8 * d + 10 * s, 40 * d + 56 * s), "least Var ∂")

    return Identity(
        title="The best constant baseline is not the mean of f",
        statement=r"b^* = \frac{E[f s^2]}{E[s^2]}, \quad s = \partial_\theta \log p_\theta: \qquad "
        r"b^*_\mu = \delta^2 + 3 \sigma^2, \quad b^*_\sigma = \delta^2 + 5 \sigma^2 \quad \text{for } f = (x - a)^2",
        lecture="000",
        slide="Optimization over the variational distribution",
        kind="identity",
        instance=Quadratic(mean=0.4, scale=0.8, target=-0.5),
        family=random_quadratic,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("The baseline $b = E f$ is taken for the best.", rhs=mean_of_f),
        correction="No slide has a baseline. The usual one, the mean of f, is not the best for either parameter.",
    )


@entry(2)
def rloo_variance():
    own_mean = Baseline("own mean", lambda values: jnp.full_like(values, values.mean()), independent=False)

    def sides(case, baseline):
        result = exact.exact_moments(score_function(2, baseline=baseline), *quadratic(case))
        return by_parameter(result.mean, "mean ∂") | by_parameter(result.variance, "Var ∂")

    def lhs(case):
        return sides(case, leave_one_out)

    def rhs(case):
        d, s, n = (case.mean - case.target) ** 2, case.scale**2, 2
        variance = np.array([8 * d + 10 * s, 40 * d + 56 * s]) / n
        variance += np.array([8 * d + 2 * s, 8 * d + 8 * s]) / (n * (n - 1))
        return by_parameter((2 * (case.mean - case.target), 2 * case.scale), "mean ∂") | by_parameter(variance, "Var ∂")

    def own_sample(case):
        return sides(case, own_mean)

    return Identity(
        title="Leave-one-out is unbiased, and its variance is known",
        statement=r"\mathrm{Var}_{\text{RLOO}} = \frac{\mu_{22} - \mu_{11}^2}{S} + "
        r"\frac{\mu_{11}^2 + \mu_{20}\, \mu_{02}}{S (S - 1)}, \qquad \mu_{jk} = E\left[(f - E f)^j s^k\right]",
        lecture="000",
        slide="Optimization over the variational distribution",
        kind="identity",
        instance=Quadratic(mean=0.4, scale=0.8, target=-0.5),
        family=random_quadratic,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control(
            "The baseline averages over the own sample too: the gradient shrinks by $(S - 1)/S$, and its "
            "variance falls.",
            lhs=own_sample,
        ),
    )
