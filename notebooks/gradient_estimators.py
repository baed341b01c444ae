# %% [markdown]
# # Gradients of expectations
#
# Variational inference climbs $E_{q_\theta} f(z)$, and its gradient has to be estimated from draws of $z$. There are
# two ways to do it: differentiate the density (the score function, or REINFORCE) or differentiate the sample (the
# path, or the reparameterisation trick). Both aim at the same number; they differ in variance, and in what they ask
# of $f$ and $q$. You will see
#
# - both hit the exact gradient, the score with more noise, and a function for which it is the other way round;
# - a jump of $f$ that the path cannot see;
# - two baselines, of which the wrong one has the *smaller* variance;
# - a coin, which has no path, and what relaxing it costs;
# - a small training that ends where the variance of its gradient lets it.

# %%
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401 - shows the figures in Jupyter

from vbjax import evaluation, exact, moments, testing
from vbjax.derivations import check, select
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence
from vbjax.estimators import Baseline, leave_one_out, pathwise, score_function, sticking_the_landing, value_and_grad
from vbjax.estimators.catalogue import METHODS
from vbjax.reports.derivation_pictures import PICTURES, account
from vbjax.reports.figures import figure_style
from vbjax.reports.numbers import uncertain
from vbjax.studies import figures, grid, study, toy_problems
from vbjax.types import NotAvailable

# %% [markdown]
# ## Two ways to one gradient
#
# A problem is a function of the parameters that returns a law and the $f$ to average: here $f(z) = (z + 0.4)^2$ under
# $N(\mu, \sigma^2)$. The exact gradient comes from quadrature; each estimator is drawn 100,000 times.

# %%
square = toy_problems.square()
truth = exact.exact_gradient(square.problem, jax.tree.map(jnp.asarray, square.params)).value
print(f"exact: ∂μ {truth['loc']:.5f}, ∂σ {truth['scale']:.5f}")
for estimator in (score_function(1), pathwise(1)):
    found = moments.replicate(jax.random.key(0), estimator, square.problem, square.params, replications=100_000)
    print(f"{estimator.spec.name:34s}", *(uncertain(found.mean[p], found.standard_error[p]) for p in truth))
    z = {p: (found.mean[p] - truth[p]) / found.standard_error[p] for p in truth}
    assert all(abs(value) < 5 for value in z.values()), z

# %% [markdown]
# The first way as the lecture has it. The check computes both sides by routes that share no code, here the library's
# estimator integrated over all of its noise against finite differences, and then repeats itself with a typical
# mistake in place: unless that *control* is rejected, the check proves nothing.

# %%
verdict = check(*select(["score-function-gradient"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# And the second: $z = h_\theta(\xi)$ moves with the parameters, so the chain rule reaches them through the sample.

# %%
verdict = check(*select(["reparameterisation-gradient"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## How noisy they are
#
# For a square both variances are polynomials of the distance $\delta$ from the target, and only the score's has a
# fourth power of it.

# %%
verdict = check(*select(["gradient-variance-quadratic"]))
print(account(verdict))
assert verdict.passed
PICTURES["gradient-variance-quadratic"]()

# %% [markdown]
# That is a fact about squares. A fast wave has a steep slope everywhere but a bounded value, and there the score wins:
# "the score is inefficient" is a rule of thumb, no theorem.

# %%
verdict = check(*select(["score-vs-reparam-counterexample"]))
print(account(verdict))
assert verdict.passed
PICTURES["score-vs-reparam-counterexample"]()

# %% [markdown]
# ## What the path cannot see
#
# Let $f$ be a step. Its slope is zero wherever it has one, so the path reports no gradient at all, while
# $P(z > 0)$ plainly depends on $\mu$. The library looks at the program of $f$ and refuses; the score answers.

# %%
verdict = check(*select(["reparameterisation-discontinuity"]))
print(account(verdict))
assert verdict.passed


def jump(params):
    return Normal(params["loc"], params["scale"]), lambda z: jnp.where(z > 0, 1.0, 0.0)


try:
    value_and_grad(jax.random.key(0), pathwise(1), jump, {"loc": jnp.array(0.5), "scale": jnp.array(1.0)})
except NotAvailable as refusal:
    print("\npathwise on a step:", refusal)
else:
    raise AssertionError("the jump went unnoticed")

# %% [markdown]
# ## Baselines
#
# Subtracting a number from $f$ leaves the score's mean alone. The mean of the *other* draws is such a number; the mean
# over all draws is not, as it has seen the draw that it is subtracted from. Its variance is lower, which is why a
# picture of variances alone would recommend it. The moments below are integrals over the noise: no error bars.

# %%
own_mean = Baseline("own mean", lambda values: jnp.full_like(values, values.mean()), independent=False)
with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, square.params)
    biases = {}
    for name, estimator in {
        "no baseline": score_function(2),
        "leave one out": score_function(2, baseline=leave_one_out),
        "own sample's": score_function(2, baseline=own_mean),
    }.items():
        found = exact.exact_moments(estimator, square.problem, params)
        biases[name] = testing.exact_bias(estimator, square.problem, params, samples=2).gradient["loc"]
        variance = found.variance["loc"]
        print(f"{name:14s} E ∂μ {found.mean['loc']:.4f}, variance {variance:7.3f}, bias {biases[name]:.1%}")
assert biases["leave one out"] < 1e-9
assert abs(biases["own sample's"] - 0.5) < 1e-9, "the gradient shrinks by (S - 1) / S"

# %%
for name in ("rloo-variance", "optimal-baseline"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %% [markdown]
# ## A coin has no path
#
# One bit, $f(b) = (b - 0.45)^2$. The score serves; a baseline or an antithetic pair of draws (DisARM) makes it quieter;
# relaxing the bit to a number between 0 and 1 gives it a path and costs bias. A study puts them side by side while the
# coin's logit moves, with a verdict on each bias that is exact wherever the noise can be integrated.

# %%
coin = toy_problems.coin(0.45)
methods = {name: METHODS[name] for name in ("score", "rloo", "disarm", "gumbel_softmax")}
cells = grid([coin], methods, samples=(2,), sweeps={"logit": (-1.5, 0.0, 1.5)})
results = study(cells, replications=10_000)
for result in results:
    mean = uncertain(result.mean[0], result.standard_error[0])
    print(f"logit {result.point['logit']:4.1f}, {result.estimator:14s} {mean:>12s}, ", end="")
    print(f"exact mean {result.exact_mean[0]:8.5f}, gradient {result.truth[0]:.5f}: {result.outcome}")
assert {result.estimator for result in results if result.outcome == "biased"} == {"gumbel_softmax"}

# %% [markdown]
# At logit $-1.5$ the relaxed gradient does not even have the right sign: it would walk away from the optimum. And at
# logit 0 DisARM has no variance at all, so a logarithmic axis leaves that point out.

# %%
relaxed = next(result for result in results if result.estimator == "gumbel_softmax")
assert relaxed.exact_mean[0] < 0 < relaxed.truth[0]
with figure_style():
    drawn = figures(results)
drawn["variance against logit"]

# %% [markdown]
# ## Sticking the landing
#
# In the bound, $f = \log p(x, z) - \log q_\theta(z)$ contains $\theta$ itself. Differentiating along the path alone is
# enough, since the score that it leaves out has mean zero. At the exact posterior that estimate does not vary at all.

# %%
verdict = check(*select(["elbo-total-derivative"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## What the noise costs in training
#
# Fit $q = N(\mu, \sigma^2)$ to the posterior of $z \sim N(0, 1)$, $x \mid z \sim N(0.9 z, 1/4)$ at $x = 1.2$: 600 steps
# uphill at a fixed rate, four draws a step. The posterior is known, so what a run ends with can be compared to the
# optimum without error; the error bars are over 64 runs.

# %%
elbo = toy_problems.linear_gaussian_elbo()
precision = 1 + 0.9**2 / 0.25
posterior = Normal(jnp.array(0.9 / 0.25 * 1.2 / precision), jnp.array(precision**-0.5))


def bound(params, sign=1):
    """The toy's law and log-weight, its gain left as it is; sign -1 is the loss that an optimiser would be given."""
    scale = jnp.exp(params["log scale"])
    q, log_weight = elbo.problem({"gain": jnp.array(0.9), "loc": params["loc"], "scale": scale})
    return q, lambda z: sign * log_weight(z)


def step(estimator, sign, params, key):
    """One step uphill along one estimate of the gradient."""
    gradient = value_and_grad(key, estimator, partial(bound, sign=sign), params)[1]
    return jax.tree.map(lambda value, slope: value + 0.01 * sign * slope, params, gradient), None


def gap(key, estimator, sign):
    """The nats between the bound and its optimum after training."""
    start = {"loc": jnp.array(0.0), "log scale": jnp.array(0.0)}
    params, _ = jax.lax.scan(partial(step, estimator, sign), start, jax.random.split(key, 600))
    return kl_divergence(bound(params)[0], posterior)


gaps = {}
for name, estimator, sign in (
    ("score", score_function(4), 1),
    ("leave one out", score_function(4, baseline=leave_one_out), 1),
    ("pathwise", pathwise(4), 1),
    ("sticking the landing", sticking_the_landing(4), 1),
    ("the same of minus the bound", sticking_the_landing(4), -1),
):
    runs = jax.jit(jax.vmap(partial(gap, estimator=estimator, sign=sign)))
    gaps[name] = evaluation.over_examples(runs(jax.random.split(jax.random.key(1), 64)))
    print(f"{name:28s} {uncertain(gaps[name].value, gaps[name].standard_error):>18s} nats below the optimum")

# %% [markdown]
# The order is that of the variances near the optimum. Only sticking the landing is silent there, and it alone arrives.
# The last line is a mistake to avoid: the score that the estimator adds back cancels the one inside
# $-\log q_\theta$, and doubles the one inside $+\log q_\theta$. Hand it the bound and go uphill, never the loss.

# %%
order = ("sticking the landing", "pathwise", "the same of minus the bound")
for better, worse in (("leave one out", "score"), *pairwise(order)):
    difference = gaps[worse].value - gaps[better].value
    assert difference > 5 * jnp.hypot(gaps[worse].standard_error, gaps[better].standard_error), (worse, better)

# %% [markdown]
# ## Try this
#
# - `vbjax study --list`, then `vbjax study coin-rebar --estimators score rloo rebar relax --samples 2 --out runs/coin`:
#   the table above as a page.
# - `vbjax study square --sweep loc=-3:3:13 --out runs/square`: the fourth power, swept.
# - Write a `problem` of your own in a file, and `vbjax study my_problem.py`: `vbjax study --help` shows how.
# - `vbjax check --chapter 2 --instances 20`: every statement of this theme on twenty random instances.
