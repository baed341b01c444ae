"""Chapter 1: what optimising the bound does and does not do, for one datum.

Left sides ask the library, right sides NumPy and SciPy. Start with `variational_objective_posterior_kl`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from vbjax import bounds, exact
from vbjax.derivations import families
from vbjax.derivations import linear_gaussian as lg
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.optimum import maximise
from vbjax.derivations.oracles import normal_expectation
from vbjax.distributions import Categorical, Mixture, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence


class ModelStep(NamedTuple):
    """p(z), p(x|z) of the observed x before and after one step of the model, and q(z)."""

    prior: tuple
    before: tuple
    after: tuple
    q: tuple


class Targets(NamedTuple):
    """The covariance of a Gaussian target, and half the distance of the modes of ½ N(-a, 1) + ½ N(a, 1)."""

    covariance: tuple
    separation: float


def discrete_elbo(case, likelihood, q):
    """ELBO by `bounds.elbo` under a categorical q, summed over its support."""
    log_likelihood = jnp.log(jnp.array(likelihood))
    prior = Categorical.from_probs(jnp.array(case.prior))
    points, weights, _ = q.nodes(1)
    return weights @ jax.vmap(lambda z: bounds.elbo(lambda z: log_likelihood[z], q, prior, z).total)(points)


def numpy_discrete_elbo(prior, likelihood, q):
    """The sum Σ q log(p(x, z) / q), as the slide has it."""
    prior, likelihood, q = np.array(prior), np.array(likelihood), np.array(q)
    return float(np.sum(q * np.log(prior * likelihood / q)))


@entry(1)
def variational_objective_posterior_kl():
    def diagonal(model):
        return np.array(model.q_mean), 0.5 * np.log(np.diag(model.q_covariance))

    def lhs(model):
        mean, log_scale = (jnp.array(v) for v in diagonal(model))
        slopes = jax.jit(jax.grad(lambda m, s: lg.elbo(model, Normal(m, jnp.exp(s))), (0, 1)))(mean, log_scale)
        return {"∂/∂m": slopes[0], "∂/∂ log s": slopes[1]}

    def rhs(model):
        mean, log_scale = diagonal(model)
        centre, covariance = lg.numpy_posterior(model)
        precision = np.linalg.inv(covariance)
        return {"∂/∂m": -precision @ (mean - centre), "∂/∂ log s": 1 - np.diag(precision) * np.exp(2 * log_scale)}

    def forward_divergence(model):
        mean, log_scale = diagonal(model)
        centre, covariance = lg.numpy_posterior(model)
        variance = np.exp(2 * log_scale)
        spread = np.diag(covariance) + (mean - centre) ** 2
        return {"∂/∂m": -(mean - centre) / variance, "∂/∂ log s": spread / variance - 1}

    return Identity(
        title="Raising the bound in q is approaching the posterior",
        statement=r"\nabla_\phi \mathcal{L}(q_\phi, p) = "
        r"-\nabla_\phi\, \mathrm{KL}\left(q_\phi(z) \,\|\, p(z \mid x)\right)",
        lecture="000",
        slide="Objective for the variational distribution",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("The gradient of the other direction, KL(posterior‖q).", rhs=forward_divergence),
        correction="The slide's “const” is constant in q only: it moves with the parameters of p.",
    )


@entry(1)
def elbo_tightness():
    def gaps(model, evidence):
        def full(params):
            off_diagonal, log_diagonal, mean = params
            tril = jnp.diag(jnp.exp(log_diagonal)) + jnp.array([[0.0, 0.0], [1.0, 0.0]]) * off_diagonal
            return lg.elbo(model, MultivariateNormal(mean, tril))

        def diagonal(params):
            return lg.elbo(model, Normal(params[1], jnp.exp(params[0])))

        best_full, _ = maximise(full, (jnp.zeros(()), jnp.zeros(2), jnp.zeros(2)))
        best_diagonal, _ = maximise(diagonal, (jnp.zeros(2), jnp.zeros(2)))
        return {"gap, full q": evidence - best_full, "gap, diagonal q": evidence - best_diagonal}

    def lhs(model):
        return gaps(model, exact_evidence(model))

    def exact_evidence(model):
        likelihood = lg.log_likelihood(model)
        return jnp.log(exact.expectation(lg.prior(model), lambda z: jnp.exp(likelihood(z))).value)

    def rhs(model):
        precision = np.linalg.inv(lg.numpy_posterior(model)[1])
        gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
        return {"gap, full q": 0.0, "gap, diagonal q": gap}

    def never_tight(model):
        gap = rhs(model)["gap, diagonal q"]
        return {"gap, full q": gap, "gap, diagonal q": gap}

    return Identity(
        title="How tight the best bound is depends on the family of q",
        statement=r"\min_q \left(\log p(x) - \mathcal{L}\right) = \begin{cases} 0 & \text{full covariance} \\ "
        r"\frac{1}{2} \left(\sum_i \log \Pi_{ii} - \log |\Pi|\right) & \text{diagonal} \end{cases}, \qquad "
        r"\Pi = I + W^\top W / \sigma^2",
        lecture="000",
        slide="Optimization in Variational Bayes",
        kind="claim",
        instance=LinearGaussian(weights=((0.9, 0.7), (0.3, 1.1), (-0.5, 0.2))),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control(
            "Only EM is tight: the gap of a full-covariance q is positive as well.", rhs=never_tight, on_slide=True
        ),
        correction="“Only true for EM” is not so. A Gaussian q with a full covariance, fitted by gradients, closes the "
        "gap of a linear-Gaussian model; the gap is zero when the family of q contains the posterior.",
    )


@entry(1)
def elbo_ascent_vs_evidence():
    def lhs(case):
        q = Categorical.from_probs(jnp.array(case.q))

        def bound_and_divergence(likelihood):
            posterior = Categorical(jnp.log(jnp.array(case.prior) * likelihood))
            return jnp.stack([discrete_elbo(case, likelihood, q), kl_divergence(q, posterior)])

        before, after = jax.jit(jax.vmap(bound_and_divergence))(jnp.array([case.before, case.after]))
        bound, divergence = after - before
        return {"Δ ELBO": bound, "Δ ELBO + Δ KL": bound + divergence}

    def rhs(case):
        evidence = [np.log(np.dot(case.prior, likelihood)) for likelihood in (case.before, case.after)]
        bounds = [numpy_discrete_elbo(case.prior, likelihood, case.q) for likelihood in (case.before, case.after)]
        return {"Δ ELBO": bounds[1] - bounds[0], "Δ ELBO + Δ KL": evidence[1] - evidence[0]}

    def evidence_follows(case):
        rise = rhs(case)["Δ ELBO"]
        return {"Δ ELBO": rise, "Δ ELBO + Δ KL": rise}

    return Identity(
        title="The bound may rise while the evidence falls",
        statement=r"\Delta \log p(x) = \Delta \mathcal{L} + \Delta \mathrm{KL}(q \,\|\, p(z \mid x)), \qquad "
        r"\Delta \mathcal{L} > 0 > \Delta \log p(x) \;\text{ is possible}",
        lecture="000",
        slide="Wrap-Up Variational Bayes",
        kind="inequality",
        instance=ModelStep(prior=(0.4, 0.6), before=(0.15, 0.8), after=(0.3, 0.25), q=(0.85, 0.15)),
        family=lambda random: ModelStep(
            families.masses(random, 2),
            families.likelihoods(random, 2),
            families.likelihoods(random, 2),
            families.masses(random, 2),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The evidence moves by as much as the bound.", rhs=evidence_follows),
        correction="“We always improve the lower bound” holds for exact ascent; a stochastic step may lower it.",
    )


@entry(1)
def reverse_kl_behaviour():
    def lhs(case):
        k = len(case.covariance)
        target = MultivariateNormal.from_covariance(jnp.zeros(k), jnp.array(case.covariance))

        def law(log_scale):
            return Normal(jnp.zeros(k), jnp.exp(log_scale))

        _, reverse = maximise(lambda s: -kl_divergence(law(s), target), jnp.zeros(k))
        _, forward = maximise(lambda s: -kl_divergence(target, law(s)), jnp.zeros(k))
        return {
            "variances, min KL(q‖p)": jnp.exp(2 * reverse),
            "variances, min KL(p‖q)": jnp.exp(2 * forward),
        } | two_modes(case.separation)

    def two_modes(a):
        target = Mixture(jnp.zeros(2), Normal(jnp.array([-a, a]), jnp.ones(2)))
        # beside its kink, the mixture's logarithm is beyond Gauss rules, but not beyond a fine grid
        z = jnp.linspace(-a - 14, a + 14, 1601)
        log_target = jax.vmap(target.log_prob)(z)

        def divergence(params, swap):
            log_q = jax.vmap(Normal(params[0], jnp.exp(params[1])).log_prob)(z)
            first, second = (log_target, log_q) if swap else (log_q, log_target)
            return jnp.sum(jnp.exp(first) * (first - second)) * (z[1] - z[0])

        least, one = maximise(lambda params: -divergence(params, False), jnp.array([a, 0.0]))
        _, both = maximise(lambda params: -divergence(params, True), jnp.array([0.5, 1.0]))
        return named(one[0], jnp.exp(one[1]), -least, both[0], jnp.exp(both[1]))

    def named(mean, scale, divergence, forward_mean, forward_scale):
        return {
            "two modes, min KL(q‖p): mean": mean,
            "two modes, min KL(q‖p): scale": scale,
            "two modes, min KL(q‖p)": divergence,
            "two modes, min KL(p‖q): mean": forward_mean,
            "two modes, min KL(p‖q): scale": forward_scale,
        }

    def numpy_two_modes(a):
        def conditions(params):
            """Where the gradient of KL(q‖p) vanishes, by Bonnet and Price: E (log p)′ = 0, E (log p)″ = -1/s²."""
            mean, scale = params
            slope = normal_expectation(lambda z: a * np.tanh(a * z) - z, mean, scale)
            curvature = normal_expectation(lambda z: (a / np.cosh(a * z)) ** 2 - 1, mean, scale)
            return slope, curvature + 1 / scale**2

        mean, scale = optimize.root(conditions, (a, 1.0), tol=1e-12).x

        def log_target(z):
            return np.logaddexp(stats.norm.logpdf(z, -a), stats.norm.logpdf(z, a)) - np.log(2)

        divergence = -stats.norm.entropy(mean, scale) - normal_expectation(log_target, mean, scale)
        return named(mean, scale, divergence, 0.0, np.hypot(1, a))

    def rhs(case):
        marginal = np.diag(case.covariance)
        conditional = 1 / np.diag(np.linalg.inv(case.covariance))
        answer = {"variances, min KL(q‖p)": conditional, "variances, min KL(p‖q)": marginal}
        return answer | numpy_two_modes(case.separation)

    def swapped(case):
        reverse, forward, mean, scale, divergence, forward_mean, forward_scale = rhs(case).values()
        answer = {"variances, min KL(q‖p)": forward, "variances, min KL(p‖q)": reverse}
        return answer | named(forward_mean, forward_scale, divergence, mean, scale)

    return Identity(
        title="Variational Bayes underestimates variances, and picks one of two modes",
        statement=r"\arg\min_q \mathrm{KL}(q \,\|\, p):\; s_i^2 = 1 / \Lambda_{ii} \;\leq\; \Sigma_{ii} "
        r"\;:\, \arg\min_q \mathrm{KL}(p \,\|\, q), \qquad \Lambda = \Sigma^{-1}",
        lecture="000",
        slide="Objective for the variational distribution",
        kind="claim",
        instance=Targets(covariance=((1.0, 0.6, 0.2), (0.6, 0.8, -0.1), (0.2, -0.1, 0.5)), separation=3.0),
        # nearer modes are not separated: one q covers both
        family=lambda random: Targets(families.covariance(random, 3), random.uniform(3, 6)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-7),
        control=Control("The two directions are swapped.", rhs=swapped),
        correction="“q will approximate the posterior” leaves the direction out, and with it the price: this "
        "direction makes q too narrow and leaves modes out, the other would match mean and variances.",
    )
