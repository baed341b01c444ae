"""A softmax bandit: the policy gradient of reinforcement learning is the score-function gradient.

Start at `bandit`; `noisy_bandit` draws the rewards too.
"""

import jax.numpy as jnp
import numpy as np

from vbjax.distributions import Joint, Normal, OneHotCategorical
from vbjax.studies.toy_problems import ToyProblem

REWARDS = (1.0, 0.9, 0.2, -0.5)
LOGITS = (0.0, 0.5, -0.3, 0.2)
NOISE = 0.5
_SOURCE = "Williams (1992); lecture 000 «Optimization over the variational distribution»"


def bandit(rewards: tuple[float, ...] = REWARDS, logits: tuple[float, ...] = LOGITS) -> ToyProblem:
    """E r·a under a softmax policy over the arms; rewards known. f is linear, so relaxed actions have a reward."""
    return ToyProblem(
        "bandit",
        rf"r^\top a,\quad r = {rewards},\quad a \sim \mathrm{{softmax}}(\phi)",
        lambda params: (
            OneHotCategorical(params["logits"]),
            lambda a: jnp.asarray(rewards, a.dtype) @ a,
        ),
        {"logits": np.array(logits)},
        summary=f"expected reward of a softmax policy over {len(rewards)} arms",
        source=_SOURCE,
    )


def noisy_bandit(
    rewards: tuple[float, ...] = REWARDS, logits: tuple[float, ...] = LOGITS, noise: float = NOISE
) -> ToyProblem:
    """The same when a pull of arm a pays r_a + noise·ε: randomness that no choice of the policy's estimator removes."""

    def problem(params):
        policy = OneHotCategorical(params["logits"])
        unit = Normal(jnp.zeros((), policy.dtype), jnp.ones((), policy.dtype))

        def reward(event):
            action, epsilon = event
            return jnp.asarray(rewards, action.dtype) @ action + noise * epsilon

        return Joint((policy, unit)), reward

    return ToyProblem(
        "noisy bandit",
        rf"r^\top a + {noise} \varepsilon,\quad r = {rewards},"
        r"\quad a \sim \mathrm{softmax}(\phi),\; \varepsilon \sim N(0, 1)",
        problem,
        {"logits": np.array(logits)},
        summary="the bandit with noisy rewards",
        source=_SOURCE,
    )


def closed_form_variance(baseline: float = 0.0, *, noise: float = NOISE) -> tuple[np.ndarray, np.ndarray]:
    """Gradient p_j (r_j - r̄) and variance of (r_a + noise ε - b)(1[a = j] - p_j), one draw: NumPy, on paper."""
    r, logits = np.array(REWARDS), np.array(LOGITS)
    p = np.exp(logits) / np.exp(logits).sum()
    gradient = p * (r - p @ r)
    score = np.eye(len(r)) - p
    return gradient, p @ (((r - baseline) ** 2 + noise**2)[:, None] * score**2) - gradient**2
