"""Chapter 1: the latent-variable model, its evidence and its posterior, and what a naive average over the prior does.

Left sides ask the library, right sides SciPy and algebra. Start with `latent_variable_marginal`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from vbjax import bounds, exact
from vbjax.derivations import families
from vbjax.derivations import linear_gaussian as lg
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry, mean_estimate
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.optimum import maximise
from vbjax.derivations.oracles import central_difference, mean_log_average
from vbjax.distributions import Categorical, MultivariateNormal, Normal
from vbjax.divergences import renyi_divergence


class OneDatum(NamedTuple):
    """z ~ N(0, 1), x|z ~ N(z, variance), one x, and `samples` draws per estimate."""

    x: float
    variance: float
    samples: int


class FiniteModel(NamedTuple):
    """p(z) and p(x|z) of the observed x, for z in a small finite set."""

    prior: tuple
    likelihood: tuple


class Dimensions(NamedTuple):
    """One observed coordinate per latent coordinate: all x equal, in several dimensions."""

    x: float
    variance: float
    dimensions: tuple


class Manifold(NamedTuple):
    """A linear decoder `(D, d)`, two noise levels, a code to look at, and a distance off the manifold."""

    weights: tuple
    scales: tuple
    code: tuple
    off: float


def random_manifold(random: np.random.Generator) -> Manifold:
    """One or two codes, one to five coordinates more than codes."""
    d = int(random.integers(1, 3))
    observed = d + int(random.integers(1, 6))
    weights = np.eye(observed, d) + 0.2 * families.normals(random, observed, d)
    return Manifold(
        tuple(map(tuple, weights)), (1e-3, 1e-4), families.positive(random, 0.3, 0.8, d), random.uniform(0.3, 0.8)
    )


@entry(1)
def latent_variable_marginal():
    def lhs(model):
        likelihood = lg.log_likelihood(model)
        return {"log p(x)": jnp.log(exact.expectation(lg.prior(model), lambda z: jnp.exp(likelihood(z))).value)}

    def rhs(model):
        return {"log p(x)": lg.numpy_log_evidence(model)}

    def wrong_variance(model):
        W = np.array(model.weights)
        covariance = W @ W.T + model.noise_variance**0.5 * np.eye(len(W))
        return {"log p(x)": stats.multivariate_normal(model.offset, covariance).logpdf(model.observation)}

    return Identity(
        title="The evidence integrates the latent variable out",
        statement=r"p(x) = \int p(z)\, p(x \mid z)\, dz = \mathcal{N}(x \mid \mu,\; W W^\top + \sigma^2 I)",
        lecture="000",
        slide="Latent Variable Models",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The noise enters the covariance as $\\sigma$, not $\\sigma^2$.", rhs=wrong_variance),
        correction="A closed form is out of reach for a neural decoder, not in general: a linear one has this one. "
        "Lecture 000 writes a fixed p(z), lectures 001 and 004 write $p_\\theta(z)$.",
    )


@entry(1)
def bayes_posterior():
    def lhs(model):
        likelihood = lg.log_likelihood(model)

        def moments(z):
            return jnp.exp(likelihood(z)) * jnp.concatenate([jnp.ones(1), z, jnp.outer(z, z).ravel()])

        evidence, *rest = exact.expectation(lg.prior(model), moments).value
        k = len(model.q_mean)
        mean, second = jnp.stack(rest[:k]) / evidence, jnp.stack(rest[k:]).reshape(k, k) / evidence
        return {"E[z|x]": mean, "Cov[z|x]": second - jnp.outer(mean, mean)}

    def rhs(model):
        W, residual = np.array(model.weights), np.array(model.observation) - np.array(model.offset)
        M = W.T @ W + model.noise_variance * np.eye(W.shape[1])
        return {"E[z|x]": np.linalg.solve(M, W.T @ residual), "Cov[z|x]": model.noise_variance * np.linalg.inv(M)}

    def wrong_covariance(model):
        covariance = rhs(model)["Cov[z|x]"] / model.noise_variance
        return {"E[z|x]": rhs(model)["E[z|x]"], "Cov[z|x]": covariance}

    return Identity(
        title="Bayes' rule gives the posterior of the code",
        statement=r"p(z \mid x) = \frac{p(x \mid z)\, p(z)}{p(x)} = "
        r"\mathcal{N}\left(M^{-1} W^\top (x - \mu),\; \sigma^2 M^{-1}\right), \quad M = W^\top W + \sigma^2 I",
        lecture="004",
        slide="Variational Autoencoder: Encoder",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The posterior covariance without its factor $\\sigma^2$.", rhs=wrong_covariance),
        correction="What is intractable is the integral $p_\\theta(x)$ in the denominator, not the product above it; "
        "and a unit Gaussian prior has no parameter $\\theta$.",
    )


@entry(1)
def naive_mc_marginal_likelihood():
    def lhs(key, datum):
        def log_likelihood(z):
            return Normal(z, datum.variance**0.5).log_prob(datum.x)

        draws = 50_000
        z = jax.random.normal(key, (draws, datum.samples))
        log_average = np.array(jax.jit(jax.vmap(lambda z: bounds.iwae(jax.vmap(log_likelihood)(z))))(z))
        return {
            "E p̂(x)": mean_estimate(np.exp(log_average)),
            "E log p̂(x)": mean_estimate(log_average),
        }

    def rhs(datum):
        def log_likelihood(z):
            return stats.norm.logpdf(datum.x, z, datum.variance**0.5)

        evidence = stats.norm.pdf(datum.x, 0, (1 + datum.variance) ** 0.5)
        return {"E p̂(x)": evidence, "E log p̂(x)": mean_log_average(log_likelihood, 0.0, 1.0, datum.samples)}

    def unbiased_logarithm(datum):
        evidence = rhs(datum)["E p̂(x)"]
        return {"E p̂(x)": evidence, "E log p̂(x)": np.log(evidence)}

    return Identity(
        title="The average likelihood is unbiased, its logarithm is not",
        statement=r"\hat p_M = \frac{1}{M} \sum_{j=1}^{M} p(x \mid z_j): \qquad E\, \hat p_M = p(x), \qquad "
        r"E \log \hat p_M = \log p(x) - \frac{\mathrm{Var}[p(x \mid z)]}{2 M\, p(x)^2} + O(M^{-2})",
        lecture="000",
        slide="Marginal Likelihood for Latent Variable Models",
        kind="limit",
        instance=OneDatum(x=0.9, variance=0.3, samples=10),
        family=lambda random: OneDatum(
            x=random.normal(), variance=random.uniform(0.1, 0.5), samples=random.integers(2, 20)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The logarithm of the average is taken for unbiased.", rhs=unbiased_logarithm, on_slide=True),
        correction="The slide's ≈ hides that the logarithm is biased low for every finite M. The oracle is the exact "
        "mean at this M, $\\int (e^{-t} - \\varphi(t)^M)\\, dt/t - \\log M$ with $\\varphi(t) = E e^{-t\\, p(x|z)}$, "
        "rather than the expansion, whose remainder would have to be bounded by hand. Nor does the slide say whether "
        "the data share their draws, which would correlate the terms of the sum.",
    )


@entry(1)
def naive_mc_variance_dimension():
    def lhs(case):
        posterior_variance = case.variance / (1 + case.variance)

        def divergence(d):
            posterior = Normal(jnp.full(d, case.x / (1 + case.variance)), jnp.full(d, posterior_variance**0.5))
            return renyi_divergence(posterior, Normal(jnp.zeros(d), jnp.ones(d)), alpha=2.0)

        return jax.jit(lambda: {f"d = {d}": divergence(d) for d in case.dimensions})()

    def one_dimension(case):
        def moment(power):
            def integrand(z):
                return stats.norm.pdf(z) * stats.norm.pdf(case.x, z, case.variance**0.5) ** power

            return integrate.quad(integrand, -10, 10, epsabs=0, epsrel=1e-12)[0]

        return moment(2) / moment(1) ** 2 - 1

    def rhs(case):
        return {f"d = {d}": d * np.log1p(one_dimension(case)) for d in case.dimensions}

    def linear(case):
        return {f"d = {d}": np.log1p(d * one_dimension(case)) for d in case.dimensions}

    return Identity(
        title="Sampling the prior fails exponentially in the code's dimension",
        statement=r"\log\left(1 + \frac{\mathrm{Var}[p(x \mid z)]}{p(x)^2}\right) = "
        r"D_2\left(p(z \mid x) \,\|\, p(z)\right) = \sum_{i=1}^{d} \log(1 + r_i)",
        lecture="000",
        slide="Marginal Likelihood for Latent Variable Models",
        kind="limit",
        instance=Dimensions(x=0.4, variance=0.2, dimensions=(1, 2, 5, 20, 50)),
        family=lambda random: Dimensions(random.uniform(-2, 2), families.positive(random, 0.05, 1), (1, 2, 5, 20, 50)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The relative variance grows linearly in the dimension.", rhs=linear),
        correction="“Computationally infeasible” can be given a number: a relative error ε takes about "
        "$\\left(\\prod_i (1 + r_i) - 1\\right) / \\varepsilon^2$ samples.",
    )


@entry(1)
def deterministic_decoder_degenerate_density():
    def log_density(signal, point, scale):
        zeros = jnp.zeros(len(point))
        return MultivariateNormal.from_covariance(zeros, signal + scale**2 * jnp.eye(len(point))).log_prob(point)

    def lhs(manifold):
        W = jnp.array(manifold.weights)
        normal = jnp.linalg.svd(W)[0][:, -1]  # orthogonal to the manifold
        on = W @ jnp.array(manifold.code)
        coarse, fine = manifold.scales
        points, scales = jnp.stack([on, on, on + manifold.off * normal]), jnp.array([coarse, fine, fine])
        at = jax.jit(jax.vmap(log_density, (None, 0, 0)))(W @ W.T, points, scales)
        return {"slope in log σ": (at[0] - at[1]) / np.log(coarse / fine), "2σ² log p off it": 2 * fine**2 * at[2]}

    def rhs(manifold):
        observed, d = np.shape(manifold.weights)
        return {"slope in log σ": d - observed, "2σ² log p off it": -(manifold.off**2)}

    def finite(manifold):
        return {"slope in log σ": 0.0, "2σ² log p off it": -(manifold.off**2)}

    return Identity(
        title="Without observation noise the model has no density",
        statement=r"\sigma \to 0: \qquad \log p_\sigma(x) \sim -(D - d) \log \sigma \;\text{ on the manifold}, \qquad "
        r"2 \sigma^2 \log p_\sigma(x) \to -\mathrm{dist}(x)^2 \;\text{ off it}",
        lecture="000",
        slide="Generative Model",
        kind="limit",
        instance=Manifold(weights=((1.5,), (-0.8,)), scales=(1e-3, 1e-4), code=(0.3,), off=0.7),
        family=random_manifold,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-4),
        control=Control("The density stays finite on the manifold.", rhs=finite),
        correction="A density that is zero almost everywhere cannot integrate to one: the law is singular. It is also "
        "what lecture 003 writes down with $x' = d(z)$.",
    )


@entry(1)
def fisher_identity():
    def gradient(model, law):
        x, weights = jnp.array(model.observation), jnp.array(model.weights)

        def score(z):
            def log_joint(offset, variance):
                return Normal(weights @ z + offset, jnp.full(x.shape, variance**0.5)).log_prob(x)

            return jax.grad(log_joint, (0, 1))(jnp.array(model.offset), jnp.array(model.noise_variance))

        in_offset, in_variance = exact.expectation(law, score).value
        return {"∂/∂μ": in_offset, "∂/∂σ²": in_variance}

    def lhs(model):
        mean, covariance = lg.numpy_posterior(model)
        return gradient(model, MultivariateNormal.from_covariance(jnp.array(mean), jnp.array(covariance)))

    def rhs(model):
        def log_evidence(v):
            return lg.numpy_log_evidence(model._replace(offset=tuple(v[:-1]), noise_variance=float(v[-1])))

        slopes = central_difference(log_evidence, np.array([*model.offset, model.noise_variance]))
        return {"∂/∂μ": slopes[:-1], "∂/∂σ²": slopes[-1]}

    def under_the_prior(model):
        return gradient(model, lg.prior(model))

    return Identity(
        title="The evidence has a gradient: the posterior mean of the joint score",
        statement=r"\nabla_\theta \log p_\theta(x) = "
        r"E_{p_\theta(z \mid x)}\left[\nabla_\theta \log p_\theta(x, z)\right]",
        lecture="000",
        slide="Full-Dataset Lower Bound",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The average is taken under the prior.", lhs=under_the_prior),
        correction="“Not suitable for SGD” goes too far: the marginal likelihood's gradient exists, and EM and MCMC "
        "methods follow it. Only the gradient of the naive log-average is biased.",
    )


@entry(1)
def em_e_step():
    def lhs(case):
        log_prior, log_likelihood = jnp.log(jnp.array(case.prior)), jnp.log(jnp.array(case.likelihood))
        prior = Categorical(log_prior)

        def elbo(logits):
            q = Categorical(logits)
            points, weights, _ = q.nodes(1)
            return weights @ jax.vmap(lambda z: bounds.elbo(lambda z: log_likelihood[z], q, prior, z).total)(points)

        value, logits = maximise(elbo, jnp.zeros(len(case.prior)))
        return {"best q": Categorical(logits).probs, "its ELBO": value}

    def rhs(case):
        joint = np.array(case.prior) * np.array(case.likelihood)
        return {"best q": joint / joint.sum(), "its ELBO": np.log(joint.sum())}

    def likelihood_only(case):
        likelihood = np.array(case.likelihood)
        return {"best q": likelihood / likelihood.sum(), "its ELBO": rhs(case)["its ELBO"]}

    return Identity(
        title="The E-step is Bayes' rule, and makes the bound tight",
        statement=r"\arg\min_q \mathrm{KL}(q \,\|\, p(z \mid x)) = p(z \mid x), \qquad "
        r"\mathcal{L}(p(z \mid x), p) = \log p(x)",
        lecture="000",
        slide="Special Case 1: Expectation Maximization",
        kind="identity",
        instance=FiniteModel(prior=(0.25, 0.6, 0.15), likelihood=(0.4, 0.1, 0.7)),
        family=lambda random: FiniteModel(families.masses(random, 3), families.likelihoods(random, 3)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The prior is forgotten: q proportional to the likelihood.", rhs=likelihood_only),
        correction="The side note allows discrete codes and mixtures only, but the linear-Gaussian model (PPCA), named "
        "on an earlier slide, has an exact E-step too. The sum over the data is missing.",
    )
