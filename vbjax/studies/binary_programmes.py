"""ReinMax's polynomial programme: minimise E (1/L) Σ |b_l - c|^p over the logits of L bits, whose answer is known.

The cost adds up over bits, so each one is a problem of its own: gradient, straight-through's bias and both fixed
points are exact. Start at `polynomial_case`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vbjax.distributions import Bernoulli
from vbjax.estimators import leave_one_out, score_function
from vbjax.estimators.estimate import value_and_grad
from vbjax.estimators.relaxed import reinmax, straight_through
from vbjax.studies.published_case import Finding, PublishedCase, mean_of
from vbjax.studies.sweeps import exact_sweep
from vbjax.studies.toy_problems import ToyProblem

BITS, CENTRE, POWERS = 128, 0.45, (1.5, 2.0, 3.0)
SAMPLES = 16
"""Draws in every gradient; a single one moves some bits so far to the wrong side that descent never sees them back."""

SOURCE = "Liu et al. (2023), Bridging discrete and backpropagation: straight-through and beyond, section 5.1"


def problem(params):
    """`{"logits": (bits,), "power": p} -> (q, f)` with f(b) = (1/L) Σ |b_l - c|^p."""
    return Bernoulli(params["logits"]), lambda b: jnp.mean(jnp.abs(b - CENTRE) ** params["power"])


def polynomial_programme(power: float = 3.0, bits: int = 4) -> ToyProblem:
    """The programme with few bits at different logits: small enough to enumerate with any estimator."""

    def at_this_power(logits_only):
        return problem({"logits": logits_only["logits"], "power": power})

    return ToyProblem(
        "polynomial programme",
        rf"\frac1{{{bits}}} \sum_l |b_l - {CENTRE}|^{{{power:g}}},\quad b_l \sim \mathrm{{Bernoulli}}(\sigma(\phi_l))",
        at_this_power,
        {"logits": np.linspace(-1, 1, bits)},
        summary=f"mean |b - {CENTRE}|^{power:g} of {bits} bits",
        source=SOURCE,
    )


def objective(logits, power):
    """E f, exactly."""
    p = jax.nn.sigmoid(logits)
    return jnp.mean(p * (1 - CENTRE) ** power + (1 - p) * CENTRE**power)


def exact_slopes(power: float, probability: float) -> dict[str, float]:
    """Means of the gradient in one logit, on paper: exact, straight-through's, ReinMax's (the trapezoidal rule)."""
    at_one, at_zero = power * (1 - CENTRE) ** (power - 1), -power * CENTRE ** (power - 1)
    slope = probability * (1 - probability)
    return {
        "exact": slope * ((1 - CENTRE) ** power - CENTRE**power),
        "straight-through": slope * (probability * at_one + (1 - probability) * at_zero),
        "ReinMax": slope * (at_one + at_zero) / 2,
    }


def straight_through_rest(power: float) -> float:
    """The probability of a one where straight-through's mean gradient vanishes, inside (0, 1): it attracts."""
    up, down = (1 - CENTRE) ** (power - 1), CENTRE ** (power - 1)
    return down / (up + down)


def descend(estimator, power, key, *, steps: int, learning_rate: float):
    """The exact objective after gradient descent on L f, from logits of zero; step t draws with `fold_in(key, t)`."""

    def step(logits, t):
        _, gradient = value_and_grad(jax.random.fold_in(key, t), estimator, problem, {"logits": logits, "power": power})
        return logits - learning_rate * BITS * gradient["logits"], None

    logits, _ = jax.lax.scan(step, jnp.zeros(BITS), jnp.arange(steps, dtype=jnp.int32))
    return objective(logits, power)


def polynomial_case(*, steps: int = 2000, seeds: int = 5, learning_rate: float = 1.0) -> PublishedCase:
    """Exact bias of one bit's gradient, and where descent ends, for p = 1.5, 2 and 3 from `seeds` seeds."""
    methods = {"straight-through": straight_through(SAMPLES), "ReinMax": reinmax(SAMPLES)}
    # a mean over draws has the mean of one, whose noise is cheaper to integrate
    one_draw = {"straight-through": straight_through(), "ReinMax": reinmax()}
    logits = np.linspace(-3, 3, 7)
    probabilities = 1 / (1 + np.exp(-logits))
    paper = [[exact_slopes(power, p) for p in probabilities] for power in POWERS]
    exact = np.array([[slopes["exact"] for slopes in row] for row in paper])
    settings = [{"logits": np.array([x]), "power": power} for power in POWERS for x in logits]
    means = {k: exact_sweep(e, problem, settings).mean[:, 0].reshape(exact.shape) for k, e in one_draw.items()}
    worst = max(np.max(np.abs(means[k] - [[slopes[k] for slopes in row] for row in paper])) for k in methods)
    bias = {k: np.max(np.abs(means[k] / exact - 1), axis=1) for k in methods}

    ends = {}
    for name, estimator in {**methods, "RLOO": score_function(SAMPLES, baseline=leave_one_out)}.items():
        run = functools.partial(descend, estimator, steps=steps, learning_rate=learning_rate)
        keys = jax.random.split(jax.random.key(len(ends)), seeds)
        by_seed = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
        ends[name] = np.asarray(jax.jit(by_seed)(jnp.array(POWERS), keys), float)

    rows, findings = [], []
    for i, power in enumerate(POWERS):
        optimum, rest = CENTRE**power, straight_through_rest(power)
        begin = (optimum + (1 - CENTRE) ** power) / 2
        stuck = rest * (1 - CENTRE) ** power + (1 - rest) * optimum
        reached = {name: end[i] for name, end in ends.items()}
        gap = {name: (end - optimum) / (begin - optimum) for name, end in reached.items()}
        rows.append((f"{power:g}", optimum, stuck, float(bias["straight-through"][i]), float(bias["ReinMax"][i]),
                     *map(mean_of, reached.values())))  # fmt: skip
        findings.append(
            Finding(
                f"p = {power:g}: ReinMax closes all but {gap['ReinMax'].max():.1%} of the gap to the optimum in the "
                f"worst of {seeds} seeds, straight-through leaves {gap['straight-through'].min():.1%} in the best; its "
                f"fixed point would leave {(stuck - optimum) / (begin - optimum):.1%}.",
                bool(gap["ReinMax"].max() < 0.05 and gap["straight-through"].min() > 0.5),
            )
        )
    first, second, third = bias["ReinMax"]
    findings += [
        Finding(f"The exact mean gradients are those on paper, to {worst:.1e}.", bool(worst < 1e-12)),
        Finding(
            f"ReinMax is unbiased at p = 2 (relative bias {second:.1e}), and not at p = 1.5 and 3 ({first:.2f}, "
            f"{third:.2f}), where it keeps the sign; straight-through is off by {bias['straight-through'].min():.1f} "
            "and more somewhere between the logits, sign included.",
            bool(second < 1e-10 < min(first, third) and max(first, third) < 1 < bias["straight-through"].min()),
        ),
    ]
    return PublishedCase(
        name="polynomial-programme",
        title="ReinMax's polynomial programme",
        claim="Straight-through, a first-order approximation of the gradient, stops far from the optimum; ReinMax, of "
        "second order at the same cost, reaches it.",
        source=SOURCE,
        columns=(
            "p",
            "optimum",
            "straight-through's fixed point",
            "relative bias, straight-through",
            "relative bias, ReinMax",
            *(f"reached, {name}" for name in ends),
        ),
        rows=tuple(rows),
        findings=tuple(findings),
        remark=f"{BITS} bits, $c = {CENTRE}$, {steps} steps of plain gradient descent on the logits from zero, each "
        f"with {SAMPLES} draws. Relative "
        "bias: exact, the largest over logits from -3 to 3. The fixed point is where straight-through's mean gradient "
        "changes sign; optimum and values reached are of the objective.",
    )
