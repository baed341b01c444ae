"""Chapter 1: the bound of a data set, and what it takes to estimate it: one draw, more draws, one encoder for all.

Left sides ask the library, right sides NumPy and SciPy. Start with `dataset_elbo_bracketing`.
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
from vbjax.derivations.variational_bayes import discrete_elbo, numpy_discrete_elbo
from vbjax.distributions import Categorical, MultivariateNormal, Normal
from vbjax.estimators import pathwise


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
def posterior_directed_sampling():
    def marginals(model):
        """The posterior without its correlation: what a well trained q with a diagonal covariance comes near to."""
        mean, covariance = lg.numpy_posterior(model)
        return mean, np.diag(np.diag(covariance))

    def lhs(model):
        mean, covariance = marginals(model)
        q = Normal(jnp.array(mean), jnp.sqrt(jnp.diag(jnp.array(covariance))))

        def fraction(law):
            def powers(z):
                weight = jnp.exp(lg.log_weight(model, law)(z))
                return weight, weight**2

            first, second = exact.expectation(law, powers).value
            return first**2 / second

        return {"ESS / n, prior": fraction(lg.prior(model)), "ESS / n, q": fraction(q)}

    def under_the_prior(model):
        """p² / E p(x|z)²: the square of a normal density is another one, with half the variance."""
        x, noise = np.array(model.observation), model.noise_variance
        half = lg.numpy_marginal_covariance(model) - 0.5 * noise * np.eye(len(x))
        log_square = stats.multivariate_normal(model.offset, half).logpdf(x) - 0.5 * len(x) * np.log(4 * np.pi * noise)
        return np.exp(2 * lg.numpy_log_evidence(model) - log_square)

    def under(model, mean_q, covariance_q):
        """The same for a normal q, ∫ posterior² / q being that of a quadratic."""
        mean, covariance = lg.numpy_posterior(model)
        narrow, wide = np.linalg.inv(covariance), np.linalg.inv(covariance_q)
        left = 2 * narrow - wide
        shift = mean - mean_q
        quadratic = shift @ (wide + wide @ np.linalg.solve(left, wide)) @ shift
        log_determinants = [np.linalg.slogdet(m)[1] for m in (covariance, covariance_q, left)]
        return np.exp(log_determinants[0] - 0.5 * log_determinants[1] + 0.5 * log_determinants[2] - quadratic)

    def rhs(model):
        return {"ESS / n, prior": under_the_prior(model), "ESS / n, q": under(model, *marginals(model))}

    def displaced(model):
        """Three standard deviations from the posterior, with its own covariance."""
        mean, covariance = lg.numpy_posterior(model)
        shift = 3 * np.linalg.cholesky(covariance)[:, 0]
        return rhs(model) | {"ESS / n, q": under(model, mean + shift, covariance)}

    return Identity(
        title="A q near the posterior wastes fewer draws than the prior",
        statement=r"w = \frac{p(x, z)}{q(z)}, \; z \sim q: \qquad \frac{\mathrm{ESS}}{n} \to "
        r"\frac{(E\, w)^2}{E\, w^2} = \frac{p(x)^2}{E_q\left[w^2\right]}, \qquad q = p(z): \quad "
        r"\frac{p(x)^2}{E_{p(z)}\left[p(x \mid z)^2\right]}",
        lecture="000",
        slide="Full-Dataset Lower Bound",
        kind="claim",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("A q three standard deviations off does as well: it falls below the prior.", rhs=displaced),
        correction="“Each $q_i$ will produce samples with high $p(x|z)$”: q aims at the posterior, not at the "
        "likelihood's maximum, and directs the sampling only where it is near it.",
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
