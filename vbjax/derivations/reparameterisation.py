"""Chapter 2: gradients along the sample, where they hold, where they do not, and the estimators of the bound.

Left sides integrate the library's estimators over their noise; right sides are closed forms, SciPy quadrature and
finite differences. Start with `reparameterisation_lotus`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from vbjax import exact, moments
from vbjax.derivations import families
from vbjax.derivations.gradients import NormalLaw, by_parameter, normal_params, normal_problem, random_normal_law
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry
from vbjax.derivations.optimum import maximise
from vbjax.derivations.oracles import central_difference, normal_expectation
from vbjax.distributions import LogNormal, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence
from vbjax.estimators import pathwise, score_function
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.types import Estimate, stop_gradient


class Affine(NamedTuple):
    """A mean and a lower triangular root of a covariance."""

    mean: tuple
    root: tuple


class Variances(NamedTuple):
    """The variances of a Gaussian posterior with independent coordinates."""

    variances: tuple


class Posterior(NamedTuple):
    """z ~ N(0, 1), x|z ~ N(z, variance), q = N(mean, scale²)."""

    x: float
    variance: float
    mean: float
    scale: float


def random_jump(random: np.random.Generator) -> NormalLaw:
    """Zero is within two standard deviations of the mean: farther out, too few draws see the jump."""
    scale = random.uniform(0.4, 1.5)
    return NormalLaw(random.uniform(-2, 2) * scale, scale)


@entry(2)
def reparameterisation_lotus():
    def lhs(case):
        q = LogNormal(jnp.array(case.mean), jnp.array(case.scale))

        def f_of_noise(noise):
            x = q.transport(noise)
            return x * jnp.log1p(x)

        return {"E f": exact.expectation(q.noise(), f_of_noise).value}

    def mean(shape, location):
        def integrand(x):
            return stats.lognorm.pdf(x, shape, scale=np.exp(location)) * x * np.log1p(x)

        return integrate.quad(integrand, 0, 60, epsabs=1e-13, epsrel=1e-12, limit=300)[0]

    def rhs(case):
        return {"E f": mean(case.scale, case.mean)}

    def variance_for_scale(case):
        return {"E f": mean(case.scale**2, case.mean)}

    return Identity(
        title="The reparameterised expectation is the same expectation",
        statement=r"x = h_\theta(\xi),\; \xi \sim q: \qquad \int p_\theta(x)\, f(x)\, dx = "
        r"\int q(\xi)\, f(h_\theta(\xi))\, d\xi",
        lecture="000",
        slide="Basics: Reparameterization Trick",
        kind="identity",
        instance=NormalLaw(mean=0.1, scale=0.45),
        family=lambda random: NormalLaw(random.uniform(-0.5, 0.1), random.uniform(0.15, 0.45)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The map uses $\\sigma^2$ where $\\sigma$ belongs.", rhs=variance_for_scale),
        correction="The slide equates an argmin with the value of its expectation, and minimises although the bound is "
        "to be maximised.",
    )


@entry(2)
def reparameterisation_gradient():
    def bind(params):
        a, b, c = params["A"]
        law = MultivariateNormal(params["μ"], jnp.stack([jnp.stack([a, 0 * a]), jnp.stack([b, c])]))
        return law, lambda z: z[0] ** 2 * z[1] + z[1] ** 3 / 3 - z[0]

    def grid(mean, root):
        points, weights = np.polynomial.hermite_e.hermegauss(6)
        noise = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
        return noise, np.array(mean) + noise @ np.array(root).T, np.outer(weights, weights).ravel() / weights.sum() ** 2

    def lhs(case):
        (a, _), (b, c) = case.root
        params = {"μ": jnp.array(case.mean), "A": jnp.array([a, b, c])}
        return {f"∂/∂{name}": slope for name, slope in exact.exact_moments(pathwise(1), bind, params).mean.items()}

    def rhs(case):
        def mean(v):
            _, z, weights = grid(v[:2], [[v[2], 0], [v[3], v[4]]])
            return weights @ (z[:, 0] ** 2 * z[:, 1] + z[:, 1] ** 3 / 3 - z[:, 0])

        (a, _), (b, c) = case.root
        slopes = central_difference(mean, np.array([*case.mean, a, b, c]))
        return {"∂/∂A": slopes[2:], "∂/∂μ": slopes[:2]}

    def transposed(case):
        noise, z, weights = grid(case.mean, case.root)
        slope = np.stack([2 * z[:, 0] * z[:, 1] - 1, z[:, 0] ** 2 + z[:, 1] ** 2], -1)
        outer = np.einsum("n,ni,nj->ij", weights, noise, slope)
        return {"∂/∂A": outer[np.tril_indices(2)], "∂/∂μ": weights @ slope}

    return Identity(
        title="The pathwise gradient: differentiate the sample",
        statement=r"\nabla_\theta E[f(x)] = "
        r"E_\xi\left[\left(\frac{\partial h_\theta(\xi)}{\partial \theta}\right)^\top \nabla f(h_\theta(\xi))\right], "
        r"\qquad \nabla_A E[f(\mu + A \xi)] = E\left[\nabla f\, \xi^\top\right]",
        lecture="000",
        slide="Basics: Reparameterization Trick",
        kind="identity",
        instance=Affine(mean=(0.5, -0.3), root=((0.9, 0.0), (0.4, 0.6))),
        family=lambda random: Affine(random.normal(size=2), families.triangular_root(random, 2)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The outer product is transposed.", rhs=transposed),
        correction="The product of the two derivatives needs a convention (it is a vector-Jacobian product), f has to "
        "be differentiable almost everywhere without jumps, and a θ inside f adds a term of its own.",
    )


@entry(2)
def reparameterisation_discontinuity():
    def step(x):
        return jnp.where(x > 0, 1.0, 0.0)

    def lhs(key, case):
        draws = 200_000
        by_score = moments.replicate(
            key, score_function(1), normal_problem(step), normal_params(case), replications=draws
        )
        slope, error = by_score.mean[0], by_score.standard_error[0]
        return {"∂μ P(x > 0)": Estimate(slope, error, draws)}

    def rhs(case):
        return {"∂μ P(x > 0)": stats.norm.pdf(0, case.mean, case.scale)}

    def along_the_sample(case):
        return {"∂μ P(x > 0)": 0.0}

    return Identity(
        title="A jump is invisible along the sample, and the score sees it",
        statement=r"f(x) = 1_{x > 0}: \qquad \nabla_\mu E[f] = \mathcal{N}(0 \mid \mu, \sigma^2), \qquad "
        r"E_\xi\left[\nabla_\mu f(\mu + \sigma \xi)\right] = 0",
        lecture="000",
        slide="Basics: Reparameterization Trick",
        kind="claim",
        instance=NormalLaw(mean=0.4, scale=0.8),
        family=random_jump,
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The pathwise gradient, which is zero almost surely.", rhs=along_the_sample, on_slide=True),
        correction="The slide states no condition on f. A kink is harmless, a jump is not.",
    )


@entry(2)
def gaussian_affine_reparameterisation():
    def lhs(case):
        root = jnp.array(case.root)
        q = MultivariateNormal.from_covariance(jnp.array(case.mean), root @ root.T)

        def moments_of(noise):
            x = q.transport(noise)
            return x, jnp.outer(x - q.loc, x - q.loc)

        mean, covariance = exact.expectation(q.noise(), moments_of).value
        return {"mean": mean, "covariance": covariance}

    def rhs(case):
        root = np.array(case.root)
        return {"mean": case.mean, "covariance": root @ root.T}

    def transposed_root(case):
        root = np.array(case.root)
        return {"mean": case.mean, "covariance": root.T @ root}

    return Identity(
        title="Any root of the covariance reparameterises a Gaussian",
        statement=r"h(\xi) = \mu + L \xi, \quad L L^\top = \Sigma, \quad \xi \sim \mathcal{N}(0, I) \quad "
        r"\Rightarrow \quad h(\xi) \sim \mathcal{N}(\mu, \Sigma)",
        lecture="000",
        slide="Basics: Reparameterization Trick",
        kind="identity",
        instance=Affine(mean=(0.5, -0.3), root=((0.9, 0.0), (0.4, 0.6))),
        family=lambda random: Affine(random.normal(size=2), families.triangular_root(random, 2)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control(
            "The usual Cholesky factor, used with the slide's transpose: $\\mu + L^\\top \\xi$.", rhs=transposed_root
        ),
        correction="Right as written, with $A^\\top A = \\Sigma$; but libraries return L with $L L^\\top = \\Sigma$, "
        "so $A = L^\\top$. Taking Σ itself as the parameter hides the derivative of the root.",
    )


@entry(2)
def bonnet_price():
    def bind(params):
        mean, variance = params
        return Normal(mean, jnp.sqrt(variance)), lambda x: jnp.sin(x) + x**2 / 2

    def lhs(case):
        slopes = exact.exact_gradient(bind, (jnp.array(case.mean), jnp.array(case.scale**2))).value
        return {"∂/∂μ": slopes[0], "∂/∂σ²": slopes[1]}

    def rhs(case):
        first = normal_expectation(lambda x: np.cos(x) + x, case.mean, case.scale)
        second = normal_expectation(lambda x: 1 - np.sin(x), case.mean, case.scale)
        return {"∂/∂μ": first, "∂/∂σ²": second / 2}

    def no_half(case):
        slopes = rhs(case)
        return {"∂/∂μ": slopes["∂/∂μ"], "∂/∂σ²": 2 * slopes["∂/∂σ²"]}

    return Identity(
        title="Gradients in the mean and the variance, without a root",
        statement=r"\nabla_\mu E[f] = E[\nabla f], \qquad \nabla_\Sigma E[f] = \frac{1}{2} E\left[\nabla^2 f\right]",
        lecture="000",
        slide="Basics: Reparameterization Trick",
        kind="identity",
        instance=NormalLaw(mean=0.4, scale=0.8),
        family=random_normal_law,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The second identity without its one half.", rhs=no_half),
        correction="Not on the slide, whose θ includes Σ all the same: this is its derivative.",
    )


@entry(2)
def encoder_diagonal_covariance():
    def lhs(case):
        target = Normal(jnp.zeros(len(case.variances)), jnp.sqrt(jnp.array(case.variances)))

        def law(log_scale):
            return Normal(target.loc, jnp.full_like(target.scale, jnp.exp(log_scale)))

        value, log_scale = maximise(lambda s: -kl_divergence(law(s), target), jnp.zeros(()))
        spread = exact.expectation(target.noise(), lambda xi: jnp.outer(target.transport(xi), target.transport(xi)))
        return {"Cov h": spread.value, "best common variance": jnp.exp(2 * log_scale), "KL left": -value}

    def rhs(case):
        v = np.array(case.variances)
        harmonic = len(v) / np.sum(1 / v)
        return {"Cov h": np.diag(v), "best common variance": harmonic, "KL left": 0.5 * np.sum(np.log(v / harmonic))}

    def arithmetic(case):
        v = np.array(case.variances)
        return {"Cov h": v.mean() * np.eye(len(v)), "best common variance": v.mean(), "KL left": 0.0}

    return Identity(
        title="One variance for all coordinates is another family than one for each",
        statement=r"h = \mu_\phi + \sigma_\phi \circ \xi \;\Rightarrow\; \mathrm{Cov} = \mathrm{diag}(\sigma_\phi^2); "
        r"\qquad \arg\min_s \mathrm{KL}\left(\mathcal{N}(0, s^2 I) \,\|\, \mathcal{N}(0, \mathrm{diag}(v))\right): "
        r"\; s^2 = \frac{d}{\sum_i 1 / v_i}",
        lecture="000",
        slide="Back to optimization over the variational distribution",
        kind="identity",
        instance=Variances(variances=(0.15, 0.6, 1.8)),
        family=lambda random: Variances(families.positive(random, 0.1, 5, 3)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control(
            "The isotropic law costs nothing, at the mean of the variances.", rhs=arithmetic, on_slide=True
        ),
        correction="The slide writes $\\sigma_\\phi^2(x) I$, one number, beside $\\sigma_\\phi \\circ \\xi$, one per "
        "coordinate. Read $\\mathrm{diag}(\\sigma_\\phi^2)$; h also loses its φ, and the integral its $d\\xi$.",
    )


@entry(2)
def reparameterised_elbo_estimator():
    def lhs(case):
        q, p = Normal(*normal_params(case)), Normal(jnp.array(0.0), jnp.array(1.0))

        def term(noise):
            z = q.transport(noise)
            value = p.log_prob(z) - q.log_prob(z)
            return value, value**2

        mean, square = exact.expectation(q.noise(), term).value
        return {"mean": mean, "variance": square - mean**2}

    def rhs(case):
        m, s = case.mean, case.scale
        divergence = integrate.quad(
            lambda z: stats.norm.pdf(z, m, s) * (stats.norm.logpdf(z, m, s) - stats.norm.logpdf(z)),
            m - 9 * s,
            m + 9 * s,
        )[0]
        return {"mean": -divergence, "variance": 0.5 * (1 - s**2) ** 2 + (m * s) ** 2}

    def closed_form(case):
        return {"mean": -rhs(case)["mean"], "variance": 0.0}

    return Identity(
        title="The slide's KL term is one noisy draw of minus the KL",
        statement=r"E_\xi\left[\log p(h) - \log q(h)\right] = -\mathrm{KL}(q \,\|\, p), \qquad "
        r"\mathrm{Var} = \frac{1}{2} (1 - s^2)^2 + m^2 s^2",
        lecture="000",
        slide="Back to optimization over the variational distribution",
        kind="identity",
        instance=NormalLaw(mean=0.7, scale=0.5),
        family=random_normal_law,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The term is +KL, and as free of noise as its closed form.", rhs=closed_form, on_slide=True),
        correction="The brace labelled “KL-term” holds *minus* the KL, from one draw: noisy, and possibly positive.",
    )


@entry(2)
def elbo_total_derivative():
    def problem(case, density):
        def bind(params):
            q = Normal(*params)

            def log_weight(z):
                log_joint = Normal(z, jnp.array(case.variance**0.5)).log_prob(case.x)
                log_joint += Normal(jnp.array(0.0), jnp.array(1.0)).log_prob(z)
                return log_joint - density(q).log_prob(z)

            return q, log_weight

        return bind

    def exact_posterior(case):
        variance = case.variance / (1 + case.variance)
        return Posterior(case.x, case.variance, case.x / (1 + case.variance), variance**0.5)

    def estimates(case, density, noise):
        """One gradient estimate for each noise."""
        estimator = pathwise(1)
        bind, params = problem(case, density), normal_params(case)
        return jax.vmap(lambda xi: value_and_grad_at(xi[None], estimator, bind, params, ())[1])(noise)

    def sides(case, path_density):
        answer = {}
        noise, weights, _ = Normal(jnp.array(0.0), jnp.array(1.0)).nodes(40)
        for name, density in (("total", lambda q: q), ("path", path_density)):
            here = estimates(case, density, noise)
            there = estimates(exact_posterior(case), density, noise)
            answer |= by_parameter([weights @ slope for slope in here], f"{name}: mean ∂")
            answer |= by_parameter([weights @ slope**2 for slope in there], f"{name}: Var at the posterior ∂")
        return answer

    def lhs(case):
        return jax.jit(lambda: sides(case, stop_gradient))()

    def rhs(case):
        m, s, v = case.mean, case.scale, case.variance
        gradient = ((case.x - m) / v - m, 1 / s - s / v - s)
        optimal = exact_posterior(case).scale
        answer = {}
        for name, variance in (("total", (1 / optimal**2, 2 / optimal**2)), ("path", (0.0, 0.0))):
            answer |= by_parameter(gradient, f"{name}: mean ∂")
            answer |= by_parameter(variance, f"{name}: Var at the posterior ∂")
        return answer

    def no_entropy(case):
        def wide(q):
            return Normal(stop_gradient(q.loc), jnp.full_like(q.scale, 1e6))

        return jax.jit(lambda: sides(case, wide))()

    return Identity(
        title="The path alone is enough, and noiseless at the optimum",
        statement=r"\frac{d}{d\phi} \left[\log p - \log q_\phi\right](h_\phi) = \left(\partial_z \log p - "
        r"\partial_z \log q\right) \partial_\phi h - \partial_\phi \log q_\phi, \qquad "
        r"E\left[\partial_\phi \log q_\phi\right] = 0",
        lecture="000",
        slide="Back to optimization over the variational distribution",
        kind="identity",
        instance=Posterior(x=0.9, variance=0.3, mean=0.3, scale=0.7),
        family=lambda random: Posterior(
            random.normal(), random.uniform(0.2, 1), random.uniform(-1, 1), random.uniform(0.4, 1.2)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("The path through log q is dropped: only the gradient in σ tells, by $1/s$.", lhs=no_entropy),
        correction="The slide's formula has an f free of θ, so it does not cover $\\log q_\\phi$; this does.",
    )
