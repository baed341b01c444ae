"""Chapter 1: the evidence lower bound as an identity and an inequality, and the divergences it is made of.

Left sides ask the library, right sides NumPy and SciPy. Start with `elbo_decomposition`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from vbjax import exact
from vbjax.derivations import families
from vbjax.derivations import linear_gaussian as lg
from vbjax.derivations.identity import Agreement, AtLeast, AtMost, Control, Identity, entry
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.oracles import gaussian_kl
from vbjax.distributions import Categorical, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence, renyi_divergence


class Gaussians(NamedTuple):
    """Two Gaussians by mean and covariance."""

    mean_q: tuple
    covariance_q: tuple
    mean_p: tuple
    covariance_p: tuple


def random_gaussians(random: np.random.Generator) -> Gaussians:
    """One to eight dimensions."""
    d = int(random.integers(1, 9))
    q, p = ((families.normals(random, d), families.covariance(random, d)) for _ in range(2))
    return Gaussians(*q, *p)


class DiagonalGaussian(NamedTuple):
    """A Gaussian by its mean and the logarithm of its variances."""

    mean: tuple
    log_variance: tuple


class Count(NamedTuple):
    """How many random pairs of laws, over how many outcomes; as many pairs of Gaussians in three dimensions."""

    pairs: int
    outcomes: int


class Discrete(NamedTuple):
    """p(z), p(x|z) of the observed x, and q(z) or q(z|x), on a finite set of codes."""

    prior: tuple
    likelihood: tuple
    q: tuple


class RandomLaws(NamedTuple):
    """How many random Gaussians q to try on the linear-Gaussian model."""

    model: LinearGaussian
    count: int


@entry(1)
def elbo_decomposition():
    def posterior(model):
        mean, covariance = lg.numpy_posterior(model)
        return MultivariateNormal.from_covariance(jnp.array(mean), jnp.array(covariance))

    def lhs(model):
        q = lg.variational(model)
        bound = exact.expectation(q, lg.log_weight(model, q)).value
        return {"ELBO + KL(q‖posterior)": bound + kl_divergence(q, posterior(model))}

    def rhs(model):
        return {"ELBO + KL(q‖posterior)": lg.numpy_log_evidence(model)}

    def swapped(model):
        q, p = lg.variational(model), posterior(model)
        return {"ELBO + KL(q‖posterior)": jax.jit(lambda: lg.elbo(model, q) + kl_divergence(p, q))()}

    return Identity(
        title="Evidence = lower bound + divergence from the posterior",
        statement=r"\log p(x) = E_q\left[\log \frac{p(x \mid z)\, p(z)}{q(z)}\right] + "
        r"\mathrm{KL}\left(q(z) \,\|\, p(z \mid x)\right)",
        lecture="000",
        slide="Variational Bayes",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("The divergence is taken the other way round, KL(posterior‖q).", lhs=swapped),
        correction="“For any q” needs a support condition: see elbo-support-condition.",
    )


@entry(1)
def elbo_support_condition():
    def sides(case, q):
        joint = np.array(case.prior) * np.array(case.likelihood)
        posterior = Categorical.from_probs(jnp.array(joint / joint.sum()))
        log_joint = jnp.log(jnp.array(joint))
        q = Categorical.from_probs(jnp.array(q))
        bound = exact.expectation(q, lambda z: log_joint[z] - q.log_prob(z)).value
        return bound, kl_divergence(q, posterior)

    def lhs(case):
        bound, divergence = sides(case, case.q)
        inside = np.where(np.array(case.likelihood) > 0, 1.0, 0.0)
        return {"ELBO": bound, "KL": divergence, "sum, q inside the support": sum(sides(case, inside / inside.sum()))}

    def rhs(case):
        evidence = np.log(np.dot(case.prior, case.likelihood))
        return {"ELBO": -np.inf, "KL": np.inf, "sum, q inside the support": evidence}

    def clipped(case):
        joint, q = np.array(case.prior) * np.array(case.likelihood), np.array(case.q)
        posterior = joint / joint.sum()
        return {
            "ELBO": np.sum(q * np.log(np.maximum(joint, 1e-12) / q)),
            "KL": np.sum(q * np.log(q / np.maximum(posterior, 1e-12))),
            "sum, q inside the support": rhs(case)["sum, q inside the support"],
        }

    return Identity(
        title="The decomposition needs q inside the posterior's support",
        statement=r"\exists z:\; q(z) > 0 = p(z \mid x) \quad \Rightarrow \quad \mathcal{L} = -\infty, \quad "
        r"\mathrm{KL}(q \,\|\, p(z \mid x)) = +\infty",
        lecture="000",
        slide="Variational Bayes",
        kind="inequality",
        instance=Discrete(prior=(0.5, 0.3, 0.2), likelihood=(0.6, 0.2, 0.0), q=(0.4, 0.4, 0.2)),
        family=lambda random: Discrete(
            families.masses(random, 3), (*families.likelihoods(random, 2), 0.0), families.masses(random, 3)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("Zeros are clipped at 1e-12, which makes both sides finite.", rhs=clipped),
        correction="“This decomposition holds for any q” is too strong; a q on a *smaller* support than the posterior "
        "is fine.",
    )


@entry(1)
def elbo_reconstruction_minus_kl():
    def lhs(model):
        q = lg.variational(model)
        return {"ELBO": jax.jit(lambda: lg.elbo(model, q))()}

    def rhs(model):
        W, x = np.array(model.weights), np.array(model.observation)
        q = stats.multivariate_normal(model.q_mean, model.q_covariance)
        p = stats.multivariate_normal(np.zeros(2))
        # a 24 x 24 Gauss-Hermite rule of the log-ratio itself, which never separates the two terms
        points, weights = np.polynomial.hermite_e.hermegauss(24)
        grid = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
        z = np.array(model.q_mean) + grid @ np.linalg.cholesky(model.q_covariance).T
        noise = stats.multivariate_normal(np.zeros(len(x)), model.noise_variance * np.eye(len(x)))
        log_ratio = noise.logpdf(x - z @ W.T - np.array(model.offset)) + p.logpdf(z) - q.logpdf(z)
        return {"ELBO": np.outer(weights, weights).ravel() @ log_ratio / weights.sum() ** 2}

    def no_trace(model):
        q, zeros = lg.variational(model), np.zeros(2)
        divergence = gaussian_kl(model.q_mean, model.q_covariance, zeros, np.eye(2))
        return {"ELBO": lg.log_likelihood(model)(q.mean()) - divergence}

    return Identity(
        title="The bound is reconstruction minus divergence from the prior",
        statement=r"\mathcal{L}(q, p) = E_q\left[\log p(x \mid z)\right] - \mathrm{KL}\left(q(z) \,\|\, p(z)\right)",
        lecture="000",
        slide="Optimization in Variational Bayes",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control(
            "The likelihood at the mean of q only, without $\\mathrm{tr}(W S W^\\top)/2\\sigma^2$.", lhs=no_trace
        ),
    )


@entry(1)
def kl_nonnegativity():
    def masses(case):
        random = np.random.default_rng(7)
        return random.dirichlet(np.full(case.outcomes, 0.4), (2, case.pairs))

    def divergences(case):
        q, p = jnp.log(jnp.array(masses(case)))
        return jax.jit(jax.vmap(lambda q, p: kl_divergence(Categorical(q), Categorical(p))))(q, p)

    def gaussian_divergences(case):
        random = np.random.default_rng(8)
        means, roots = random.normal(size=(case.pairs, 3)), random.normal(size=(case.pairs, 3, 3))
        roots = np.tril(roots, -1) + np.eye(3) * np.exp(0.5 * roots)
        # far apart, near, and closer than rounding resolves
        steps = np.resize([1.0, 1e-4, 1e-9], case.pairs)[:, None]
        others = means + steps * random.normal(size=means.shape), roots * (1 + steps[..., None] * random.random())
        q, p = (MultivariateNormal(*map(jnp.array, law)) for law in ((means, roots), others))
        return jax.jit(jax.vmap(kl_divergence))(q, p)

    def lhs(case):
        q, p = masses(case)
        return {
            "least excess over 2 TV²": jnp.min(divergences(case) - jnp.array(0.5 * np.abs(q - p).sum(-1) ** 2)),
            "least KL of Gaussians": jnp.min(gaussian_divergences(case)),
        }

    def rhs(case):
        return {"least excess over 2 TV²": 0.0, "least KL of Gaussians": 0.0}

    def unnormalised(case):
        return {
            "least excess over 2 TV²": jnp.min(divergences(case) - jnp.log(3.0)),
            "least KL of Gaussians": jnp.min(gaussian_divergences(case) - jnp.log(3.0)),
        }

    return Identity(
        title="The KL divergence is never negative",
        statement=r"\mathrm{KL}(q \,\|\, p) \;\geq\; \frac{1}{2} \left(\sum_z |q(z) - p(z)|\right)^2 \;\geq\; 0",
        lecture="000",
        slide="Optimization in Variational Bayes",
        kind="inequality",
        instance=Count(pairs=2000, outcomes=5),
        family=lambda random: Count(pairs=random.integers(200, 2000), outcomes=random.integers(2, 6)),
        lhs=lhs,
        rhs=rhs,
        test=AtLeast(1e-12),
        control=Control("A p of total mass three: the inequality needs normalised laws.", lhs=unnormalised),
        correction="True of normalised laws only. Pinsker's inequality, checked here, is the sharper statement.",
    )


@entry(1)
def elbo_lower_bound():
    def laws(case):
        random = np.random.default_rng(3)
        k = len(case.model.q_mean)
        tril = np.tril(random.normal(size=(case.count, k, k)), -1) + np.eye(k) * random.gamma(
            2, 0.5, (case.count, 1, k)
        )
        return MultivariateNormal(jnp.array(random.normal(size=(case.count, k))), jnp.array(tril))

    def lhs(case):
        return {"largest ELBO": jax.jit(jax.vmap(lambda q: lg.elbo(case.model, q)))(laws(case)).max()}

    def rhs(case):
        return {"largest ELBO": lg.numpy_log_evidence(case.model)}

    def upper_bound(case):
        mean, covariance = (jnp.array(v) for v in lg.numpy_posterior(case.model))
        posterior = MultivariateNormal.from_covariance(mean, covariance)
        wide = MultivariateNormal.from_covariance(mean, 2 * covariance)
        half_divergence = 0.5 * renyi_divergence(posterior, wide, alpha=2.0)
        return {"largest ELBO": lg.numpy_log_evidence(case.model) + half_divergence}

    return Identity(
        title="The bound never exceeds the evidence",
        statement=r"\mathcal{L}(q, p) \;\leq\; \log p(x) \qquad \text{for every } q",
        lecture="000",
        slide="Optimization in Variational Bayes",
        kind="inequality",
        instance=RandomLaws(LinearGaussian(), 500),
        family=lambda random: RandomLaws(lg.random_model(random), 200),
        lhs=lhs,
        rhs=rhs,
        test=AtMost(1e-12),
        control=Control("The χ bound $\\frac{1}{2} \\log E_q w^2$, which lies above the evidence.", lhs=upper_bound),
        correction="It is the expectation that is bounded: an estimate from one draw of z may exceed log p(x).",
    )


@entry(1)
def gaussian_kl_closed_form():
    def lhs(case):
        q = Normal(jnp.array(case.mean), jnp.exp(0.5 * jnp.array(case.log_variance)))
        p = Normal(jnp.zeros(len(case.mean)), jnp.ones(len(case.mean)))
        each = jax.vmap(kl_divergence)(*(Normal(law.loc[:, None], law.scale[:, None]) for law in (q, p)))
        return {"KL": kl_divergence(q, p), "KL of a coordinate": each}

    def named(each):
        return {"KL": np.sum(each), "KL of a coordinate": each}

    def rhs(case):
        def one(mean, log_variance):
            scale = np.exp(0.5 * log_variance)

            def integrand(noise):
                return stats.norm.pdf(noise) * (stats.norm.logpdf(noise) - np.log(scale) - log_p(mean + scale * noise))

            def log_p(z):
                return -0.5 * (z**2 + np.log(2 * np.pi))

            return integrate.quad(integrand, -12, 12, epsabs=1e-13, epsrel=1e-13)[0]

        return named([one(m, v) for m, v in zip(case.mean, case.log_variance, strict=True)])

    def halved_log_variance(case):
        m, v = np.array(case.mean), np.array(case.log_variance)
        return named(0.5 * (np.exp(0.5 * v) + m**2 - 1 - v))

    return Identity(
        title="The KL term of a diagonal Gaussian encoder",
        statement=r"\mathrm{KL}\left(\mathcal{N}(m, \mathrm{diag}(s^2)) \,\|\, \mathcal{N}(0, I)\right) = "
        r"\frac{1}{2} \sum_i \left(s_i^2 + m_i^2 - 1 - \log s_i^2\right)",
        lecture="001",
        slide="Variational Autoencoder",
        kind="identity",
        instance=DiagonalGaussian(mean=(0.9, -0.4, 0.0), log_variance=(-0.7, 0.5, -1.6)),
        # one coordinate of size one, one of any variance, one far away
        family=lambda random: DiagonalGaussian(
            (*random.normal(size=2), families.positive(random, 1, 1e8)),
            (*(random.uniform(-3, 2, 1)), random.uniform(-60, 60), random.uniform(-3, 2)),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("$e^{v/2}$ where $e^v$ belongs, v being the log-variance.", rhs=halved_log_variance),
        correction="No slide writes the formula out; signs and the log-variance convention are the usual bug.",
    )


@entry(1)
def gaussian_kl_full_covariance():
    def lhs(case):
        q = MultivariateNormal.from_covariance(jnp.array(case.mean_q), jnp.array(case.covariance_q))
        p = MultivariateNormal.from_covariance(jnp.array(case.mean_p), jnp.array(case.covariance_p))
        return {"KL(q‖p)": kl_divergence(q, p), "KL(p‖q)": kl_divergence(p, q)}

    def rhs(case):
        q, p = (case.mean_q, case.covariance_q), (case.mean_p, case.covariance_p)
        return {"KL(q‖p)": gaussian_kl(*q, *p), "KL(p‖q)": gaussian_kl(*p, *q)}

    def full_log_determinant(case):
        excess = 0.5 * np.log(np.linalg.det(case.covariance_p) / np.linalg.det(case.covariance_q))
        return {"KL(q‖p)": rhs(case)["KL(q‖p)"] + excess, "KL(p‖q)": rhs(case)["KL(p‖q)"] - excess}

    return Identity(
        title="The KL divergence of two full Gaussians",
        statement=r"\mathrm{KL} = \frac{1}{2} \left[\mathrm{tr}(\Sigma_1^{-1} \Sigma_0) + "
        r"\delta^\top \Sigma_1^{-1} \delta - k + \log \frac{|\Sigma_1|}{|\Sigma_0|}\right] = "
        r"\frac{1}{2} \sum_i (\lambda_i - 1 - \log \lambda_i) + \frac{1}{2} \delta^\top \Sigma_1^{-1} \delta",
        lecture="001",
        slide="Comparing two Gaussian distributions",
        kind="identity",
        instance=Gaussians(
            mean_q=(0.2, -0.6, 1.0),
            covariance_q=((1.2, 0.3, -0.2), (0.3, 0.7, 0.1), (-0.2, 0.1, 0.5)),
            mean_p=(-0.4, 0.1, 0.3),
            covariance_p=((0.6, -0.1, 0.0), (-0.1, 1.1, 0.2), (0.0, 0.2, 0.9)),
        ),
        family=random_gaussians,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The log-determinant without its factor one half.", rhs=full_log_determinant),
    )
