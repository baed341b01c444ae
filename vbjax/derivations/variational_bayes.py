"""Chapter 1: what optimising the bound does and does not do, for one datum and for a data set.

Left sides ask the library, right sides NumPy and SciPy. Start with `variational_objective_posterior_kl`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax import bounds, exact, moments
from vbjax.derivations import families
from vbjax.derivations import linear_gaussian as lg
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.optimum import maximise
from vbjax.derivations.oracles import gaussian_kl, mean_log_average
from vbjax.distributions import Categorical, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence
from vbjax.estimators import pathwise


class ModelStep(NamedTuple):
    """The same with the likelihood before and after one step of the model."""

    prior: tuple
    before: tuple
    after: tuple
    q: tuple


class DiscreteData(NamedTuple):
    """p(z), a table p(x|z) with a row per code, the observed symbols, and q_i(z) for each of them."""

    prior: tuple
    likelihood: tuple
    data: tuple
    q: tuple


class OneDimension(NamedTuple):
    """z ~ N(0, 1), x|z ~ N(z, variance), and q = N(mean, scale²)."""

    x: float
    variance: float
    mean: float
    scale: float


class Scalars(NamedTuple):
    """x|z ~ N(weight z + offset, variance) with scalar x and z ~ N(0, 1), for several data."""

    weight: float
    offset: float
    variance: float
    data: tuple


class Correlation(NamedTuple):
    """The covariance of a Gaussian target."""

    covariance: tuple


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
        return {"variances, min KL(q‖p)": jnp.exp(2 * reverse), "variances, min KL(p‖q)": jnp.exp(2 * forward)}

    def rhs(case):
        marginal = np.diag(case.covariance)
        conditional = 1 / np.diag(np.linalg.inv(case.covariance))
        return {"variances, min KL(q‖p)": conditional, "variances, min KL(p‖q)": marginal}

    def swapped(case):
        reverse, forward = rhs(case).values()
        return {"variances, min KL(q‖p)": forward, "variances, min KL(p‖q)": reverse}

    return Identity(
        title="Mean-field variational Bayes underestimates variances",
        statement=r"\arg\min_q \mathrm{KL}(q \,\|\, p):\; s_i^2 = 1 / \Lambda_{ii} \;\leq\; \Sigma_{ii} "
        r"\;:\, \arg\min_q \mathrm{KL}(p \,\|\, q), \qquad \Lambda = \Sigma^{-1}",
        lecture="000",
        slide="Objective for the variational distribution",
        kind="claim",
        instance=Correlation(covariance=((1.0, 0.6, 0.2), (0.6, 0.8, -0.1), (0.2, -0.1, 0.5))),
        family=lambda random: Correlation(families.covariance(random, 3)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-7),
        control=Control("The two directions are swapped.", rhs=swapped),
        correction="“q will approximate the posterior” leaves the direction out, and with it the price: this "
        "direction makes q too narrow, the other would match the marginal variances.",
    )


@entry(1)
def dataset_elbo_bracketing():
    def lhs(case):
        table = jnp.array(case.likelihood)

        def one(q, x):
            return discrete_elbo(case, table[:, x], Categorical.from_probs(q))

        return {"mean bound": jax.jit(jax.vmap(one))(jnp.array(case.q), jnp.array(case.data)).mean()}

    def rhs(case):
        table = np.array(case.likelihood)
        bounds = [numpy_discrete_elbo(case.prior, table[:, x], q) for x, q in zip(case.data, case.q, strict=True)]
        return {"mean bound": np.mean(bounds)}

    def divergence_outside(case):
        table = np.array(case.likelihood)
        reconstructions = [np.dot(q, np.log(table[:, x])) for x, q in zip(case.data, case.q, strict=True)]
        divergences = [stats.entropy(q, case.prior) for q in case.q]
        return {"mean bound": np.mean(reconstructions) - np.sum(divergences)}

    return Identity(
        title="The bound of a data set is a mean of bounds",
        statement=r"\mathcal{L} = \frac{1}{N} \sum_i \left[E_{q_i} \log p(x_i \mid z) - "
        r"\mathrm{KL}(q_i(z) \,\|\, p(z))\right] \;\leq\; \frac{1}{N} \sum_i \log p(x_i)",
        lecture="000",
        slide="Full-Dataset Lower Bound",
        kind="identity",
        instance=DiscreteData(
            prior=(0.3, 0.5, 0.2),
            likelihood=((0.7, 0.3), (0.2, 0.8), (0.5, 0.5)),
            data=(0, 1, 1, 0),
            q=((0.5, 0.3, 0.2), (0.1, 0.7, 0.2), (0.2, 0.6, 0.2), (0.6, 0.1, 0.3)),
        ),
        family=lambda random: DiscreteData(
            families.masses(random, 3),
            families.masses(random, 2, 3),
            random.integers(2, size=5),
            families.masses(random, 3, 5),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control(
            "The divergences stand outside the mean, as the slide is typeset.", rhs=divergence_outside, on_slide=True
        ),
        correction="The slide lacks the brackets, so the divergence has an unbound index i and no $1/N$. And $1/N$ "
        "makes it a bound on the *mean* log-likelihood, while the slide «Marginal Likelihood…» writes the sum.",
    )


@entry(1)
def single_sample_elbo_unbiased():
    def problem(model):
        def bind(params):
            q = MultivariateNormal(*params)
            return q, lg.log_weight(model, q)

        q = lg.variational(model)
        return bind, (q.loc, q.scale_tril)

    def lhs(key, model):
        return {"E of one draw": moments.replicate(key, pathwise(1), *problem(model), replications=100_000).value}

    def rhs(model):
        W, S = np.array(model.weights), np.array(model.q_covariance)
        residual = np.array(model.observation) - W @ np.array(model.q_mean) - np.array(model.offset)
        noise = model.noise_variance
        square = residual @ residual + np.trace(W @ S @ W.T)
        reconstruction = -0.5 * (square / noise + len(residual) * np.log(2 * np.pi * noise))
        return {"E of one draw": reconstruction - gaussian_kl(model.q_mean, S, np.zeros(2), np.eye(2))}

    def evidence(model):
        return {"E of one draw": lg.numpy_log_evidence(model)}

    return Identity(
        title="One draw of z estimates the bound without bias",
        statement=r"z \sim q: \qquad E\left[\log p(x \mid z) + \log p(z) - \log q(z)\right] = \mathcal{L}(q, p)",
        lecture="000",
        slide="Full-Dataset Lower Bound",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The draws are taken for unbiased estimates of log p(x).", rhs=evidence),
        correction="Unbiased does not mean precise: the standard deviation of one draw is larger than the gap.",
    )


@entry(1)
def iwae_bound_monotone():
    def problem(case):
        q = Normal(jnp.array(case.mean), jnp.array(case.scale))
        prior = Normal(jnp.array(0.0), jnp.array(1.0))

        def log_weight(z):
            return Normal(z, jnp.array(case.variance**0.5)).log_prob(case.x) + prior.log_prob(z) - q.log_prob(z)

        return lambda _: (q, log_weight)

    def lhs(case):
        def bound(k):
            return exact.exact_objective(problem(case), (), samples=k, bound=bounds.iwae, rtol=1e-9).value

        return {f"K = {k}": bound(k) for k in (1, 2)}

    def rhs(case):
        def log_weight(z):
            log_joint = stats.norm.logpdf(case.x, z, case.variance**0.5) + stats.norm.logpdf(z)
            return log_joint - stats.norm.logpdf(z, case.mean, case.scale)

        return {f"K = {k}": mean_log_average(log_weight, case.mean, case.scale, k) for k in (1, 2)}

    def mean_of_logarithms(case):
        q, log_weight = problem(case)(())
        points, weights, _ = q.nodes(64)
        bound = weights @ jax.vmap(log_weight)(points)
        return {"K = 1": bound, "K = 2": bound}

    return Identity(
        title="More samples inside the logarithm tighten the bound",
        statement=r"\mathcal{L}_K = E \log \frac{1}{K} \sum_{k=1}^{K} w(z_k) = "
        r"\int_0^\infty \left(e^{-t} - \varphi(t)^K\right) \frac{dt}{t} - \log K, \qquad \varphi(t) = E\, e^{-t w}",
        lecture="000",
        slide="Full-Dataset Lower Bound",
        kind="inequality",
        instance=OneDimension(x=0.9, variance=0.3, mean=0.4, scale=0.6),
        family=lambda random: OneDimension(
            random.normal(), random.uniform(0.3, 1), random.uniform(-0.5, 0.8), random.uniform(0.4, 0.9)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("The mean of the logarithms, which does not depend on K.", lhs=mean_of_logarithms),
        correction="Not named on the slides. It joins two of them: K = 1 is the ELBO, and q = p(z) gives the "
        "“infeasible” average over the prior.",
    )


@entry(1)
def amortised_elbo_and_gap():
    def lhs(case):
        data = jnp.array(case.data)[:, None]
        prior = Normal(jnp.zeros(1), jnp.ones(1))

        def bound(mean, log_scale, x):
            q = Normal(mean, jnp.exp(log_scale))

            def decode(z):
                return Normal(case.weight * z + case.offset, jnp.full(1, case.variance**0.5))

            points, weights, _ = q.nodes(3)
            return weights @ jax.vmap(lambda z: bounds.elbo(lambda z: decode(z).log_prob(x), q, prior, z).total)(points)

        def amortised(params):
            slope, intercept, log_scale = params
            return jax.vmap(lambda x: bound(slope * x + intercept, log_scale, x))(data).mean()

        def without_bias(params):
            slope, log_scale = params
            return amortised((slope, jnp.zeros(1), log_scale))

        zero = jnp.zeros(1)
        return {
            "without bias": maximise(without_bias, (zero, zero))[0],
            "with bias": maximise(amortised, (zero, zero, zero))[0],
        }

    def rhs(case):
        x = np.array(case.data)
        spread = case.weight**2 + case.variance
        evidence = stats.norm.logpdf(x, case.offset, spread**0.5).mean()
        optimal_mean = case.weight * (x - case.offset) / spread
        # the best line through the origin; each miss costs its square over twice the posterior variance
        miss = optimal_mean - x * (x @ optimal_mean) / (x @ x)
        return {"without bias": evidence - np.mean(miss**2) * spread / (2 * case.variance), "with bias": evidence}

    def no_gap(case):
        evidence = rhs(case)["with bias"]
        return {"without bias": evidence, "with bias": evidence}

    return Identity(
        title="Amortisation costs what the encoder cannot express",
        statement=r"\max_\phi \frac{1}{N} \sum_i \mathcal{L}\left(q_\phi(z \mid x_i)\right) \;\leq\; "
        r"\frac{1}{N} \sum_i \max_{q_i} \mathcal{L}(q_i)",
        lecture="000",
        slide="Special Case 2: Amortized Variational Inference",
        kind="inequality",
        instance=Scalars(weight=1.2, offset=0.5, variance=0.6, data=(-1.0, 0.2, 0.7, 1.9, 2.5)),
        family=lambda random: Scalars(
            random.uniform(0.5, 2), random.uniform(0.3, 1), random.uniform(0.3, 1), random.normal(size=5)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("An encoder without a bias loses nothing.", rhs=no_gap),
        correction="One symbol, φ, stands for the encoder, the decoder and the prior on two slides: read "
        "$q_\\phi(z|x)$, $p_\\theta(x|z)$ and $p(z)$.",
    )
