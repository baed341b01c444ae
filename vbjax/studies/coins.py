"""The coin of REBAR, RELAX and ARM: E (b - t)², b ~ Bernoulli(σ(φ)), where t near 1/2 hides the gradient in noise.

Every variance is exact, by enumeration of the bit and quadrature of whatever noise is left. Start at `coin_case`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax.distributions import Bernoulli
from vbjax.estimators import arm, disarm, leave_one_out, score_function
from vbjax.estimators.rebar import rebar, relax, tuned_rebar
from vbjax.studies.descent import adam
from vbjax.studies.published_case import Finding, PublishedCase
from vbjax.studies.sweeps import exact_sweep
from vbjax.types import GradientEstimator

LOGITS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
TARGETS = (0.45, 0.49, 0.499, 0.5, 0.501, 0.51)


def problem(params):
    """`{"logit", "target"} -> (q, f)`; the gradient in the target is there too, and not looked at."""
    return Bernoulli(params["logit"]), lambda b: (b - params["target"]) ** 2


def settings(targets, logits=LOGITS):
    """Parameters for each target and, within it, each logit."""
    return [{"logit": logit, "target": target} for target in targets for logit in logits]


def closed_forms(target: float, logits=LOGITS) -> dict[str, np.ndarray]:
    """Exact variances on paper, D = 1 - 2t, q = min(p, 1 - p), g = p(1 - p)D: one number for each logit."""
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    q, d = np.minimum(p, 1 - p), 1 - 2 * target
    g = p * (1 - p) * d
    return {
        "score": p * (1 - p) * ((1 - target) ** 4 * (1 - p) + target**4 * p) - g**2,
        "RLOO": p * (1 - p) * d**2 / 2 - g**2,
        "ARM": 2 * d**2 / 3 * (1 / 8 - (1 / 2 - q) ** 3) - g**2,
        "DisARM": q * d**2 * (1 - q) ** 2 / 2 - g**2,
    }


class Curves(NamedTuple):
    """Exact variances by estimator: `(targets, logits)`, one estimate."""

    targets: tuple[float, ...]
    variance: dict[str, np.ndarray]


def trained_states(estimator: GradientEstimator, targets, *, steps: int, seed: int = 0) -> list:
    """A learned control variate after `steps` updates, for each target and logit, learnt there alone."""

    def train(params, key):
        q, f = problem(params)

        def step(state, t):
            noise = estimator.noise(q).sample(jax.random.fold_in(key, t))
            return estimator.update(state, noise, f, q), None

        return jax.lax.scan(step, estimator.init(q), jnp.arange(steps, dtype=jnp.int32))[0]

    with jax.enable_x64(True):
        params = settings(targets)
        stacked = jax.tree.map(lambda *x: jnp.asarray(x, jnp.float64), *params)
        keys = jax.random.split(jax.random.key(seed), len(params))
        states = jax.jit(jax.vmap(train))(stacked, keys)
        return [jax.tree.map(lambda x, i=i: x[i], states) for i in range(len(params))]


def _sweep(estimator, targets, states=None):
    # a trained network is smooth enough for the plots, not for ten digits
    rtol = 1e-8 if states else None
    variance = exact_sweep(estimator, problem, settings(targets), states=states, rtol=rtol).variance[:, 0]
    return variance.reshape(len(targets), len(LOGITS))


@functools.cache
def plain_curves() -> Curves:
    """Estimators without a relaxation, at the targets of all three papers."""
    variance = {
        "score": _sweep(score_function(), TARGETS),
        "RLOO": _sweep(score_function(2, baseline=leave_one_out), TARGETS),
        "ARM": _sweep(arm(), TARGETS),
        "DisARM": _sweep(disarm(), TARGETS),
    }
    return Curves(TARGETS, variance)


@functools.cache
def relaxed_curves(steps: int) -> Curves:
    """REBAR as it starts and tuned, and RELAX, each trained for `steps` at every point; t = 0.45 and 0.499."""
    targets = (0.45, 0.499)
    tuned, learned = tuned_rebar(optimizer=adam(0.03)), relax(optimizer=adam(0.01))
    variance = {
        "REBAR": _sweep(rebar(), targets),
        "REBAR, tuned": _sweep(tuned, targets, trained_states(tuned, targets, steps=steps)),
        "RELAX": _sweep(learned, targets, trained_states(learned, targets, steps=steps, seed=1)),
    }
    return Curves(targets, variance)


def coin_case(target: float, *, steps: int = 4000) -> PublishedCase:
    """Exact variances over the logits at REBAR's target, 0.45, or RELAX's, 0.499. steps: of learning at each logit."""
    plain, relaxed = plain_curves(), relaxed_curves(steps)
    variances = {name: v[plain.targets.index(target)] for name, v in plain.variance.items()}
    variances |= {name: v[relaxed.targets.index(target)] for name, v in relaxed.variance.items()}
    middle = LOGITS.index(0.0)
    ratio = {name: float(v[middle] / variances["score"][middle]) for name, v in variances.items()}
    relax_wins = Finding(
        f"At p = 1/2 RELAX has {ratio['RELAX']:.2g} of the score function's variance and "
        f"{ratio['RELAX'] / ratio['REBAR, tuned']:.2g} of REBAR's.",
        ratio["RELAX"] < 0.1 * min(1, ratio["REBAR, tuned"]),
    )
    if target == 0.45:
        rebar_finding = Finding(
            f"At p = 1/2 REBAR, tuned, has {ratio['REBAR, tuned']:.3f} of the score function's variance.",
            ratio["REBAR, tuned"] < 1,
        )
    else:
        rebar_finding = Finding(
            f"At p = 1/2 REBAR does not help: {ratio['REBAR, tuned']:.3f} of the score function's variance when tuned.",
            ratio["REBAR, tuned"] > 0.9,
        )
    p = 1 / (1 + np.exp(-np.asarray(LOGITS)))
    gradient = p * (1 - p) * (1 - 2 * target)
    name, claim, source = _PAPERS[target]
    return PublishedCase(
        name=name,
        title=f"The coin at t = {target:g}",
        claim=claim,
        source=source,
        columns=("logit", "p", "gradient", *variances),
        rows=tuple(
            (logit, float(p[i]), float(gradient[i]), *(float(v[i]) for v in variances.values()))
            for i, logit in enumerate(LOGITS)
        ),
        findings=(_closed_forms_hold(), rebar_finding, relax_wins),
        remark="$f(b) = (b - t)^2$, exact variance of one estimate. Calls of $f$: score function 1, RLOO, ARM and "
        "DisARM 2, REBAR and RELAX 3. REBAR starts at temperature 1/2 and scale 1, where it varies "
        f"{ratio['REBAR']:.2f} times as much as the score function at p = 1/2; tuning and RELAX take {steps} steps of "
        "Adam at every logit. The estimators that pair two values need no relaxation here.",
    )


_PAPERS = {
    0.45: (
        "coin-rebar",
        "A control variate from the relaxed coin, with temperature and scale tuned, lowers the variance of the score "
        "function without bias.",
        "Tucker et al. (2017), REBAR, section 5.1",
    ),
    0.499: (
        "coin-relax",
        "With t this close to 1/2 REINFORCE and REBAR are too noisy to make progress; the learned control variate of "
        "RELAX has far less variance.",
        "Grathwohl et al. (2018), Backpropagation through the void, section 4.1 and figure 1",
    ),
}


def arm_case() -> PublishedCase:
    """The coins of the ARM paper: the largest exact variance over the logits, for every target."""
    curves = plain_curves()
    v = curves.variance
    over = float(np.max(v["ARM"] - v["score"]))
    order = float(np.max(v["DisARM"] - np.minimum(v["ARM"], v["RLOO"])))
    ratio = v["ARM"][0] / v["RLOO"][0]
    fair = curves.targets.index(0.5)
    pairs = max(v[name][fair].max() for name in ("RLOO", "ARM", "DisARM"))
    findings = (
        _closed_forms_hold(),
        Finding(f"ARM varies less than REINFORCE at every logit and target; largest difference {over:.1e}.", over < 0),
        Finding(
            "DisARM varies no more than ARM or leave-one-out, at the same two calls, at every logit and target; "
            f"largest excess {order:.1e}.",
            order <= 1e-12,
        ),
        Finding(
            f"ARM has {ratio.min():.3f} of leave-one-out's variance at p = 1/2 and {ratio.max():.3f} in the tails: "
            "most of its gain over REINFORCE is the second call.",
            bool(ratio.argmin() == LOGITS.index(0.0) and 0.9 < ratio.max() < 1),
        ),
        Finding(
            "At t = 1/2 every estimator that subtracts two values of f is exactly zero; the score function is not.",
            bool(pairs == 0 < v["score"][fair].min()),
        ),
    )
    return PublishedCase(
        name="coin-arm",
        title="The coins of ARM",
        claim="ARM estimates the gradient of a binary law with far less variance than REINFORCE; DisARM, which "
        "integrates ARM's uniform out, with less still.",
        source="Yin and Zhou (2019), ARM, section 4.1 and figure 1; Dong et al. (2020), DisARM, section 3",
        columns=("t", *v),
        rows=tuple((t, *(float(x[i].max()) for x in v.values())) for i, t in enumerate(curves.targets)),
        findings=findings,
        remark=f"The largest exact variance over {len(LOGITS)} logits from {LOGITS[0]:g} to {LOGITS[-1]:g}; "
        "$E (b - t)^2$, $b \\sim \\mathrm{Bernoulli}(\\sigma(\\phi))$.",
    )


def _closed_forms_hold() -> Finding:
    curves = plain_curves()
    truth = [closed_forms(t) for t in curves.targets]
    worst = max(float(np.max(np.abs(v - [forms[name] for forms in truth]))) for name, v in curves.variance.items())
    return Finding(
        f"Score function, RLOO, ARM and DisARM have their closed forms' variances everywhere, to {worst:.1e}.",
        worst < 1e-12,
    )
