"""Chapter 5: the bound of denoising diffusion, term by term.

Left sides ask `vbjax.diffusion`, right sides moments of neighbours in the chain. Start with `ddpm_vlb_decomposition`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax.derivations.diffusion_chain import (
    Chain,
    Pair,
    alpha_bar,
    levels,
    posterior_coefficients,
    random_chain,
    random_pair,
)
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.oracles import gaussian_kl
from vbjax.diffusion import exact, process
from vbjax.diffusion.schedules import from_betas
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence


@entry(5)
def ddpm_vlb_decomposition():
    def lhs(case):
        gaps = exact.gaussian_gaps(
            jnp.array([case.mean]), jnp.array([case.variance]), from_betas(jnp.array(case.betas))
        )
        return {"bound": gaps.bound(), "-log p(x_0)": gaps.nll()}

    def rhs(case):
        kept = alpha_bar(case.betas)
        means, spreads = np.sqrt(kept) * case.mean, kept * case.variance + 1 - kept
        # E_q of log q(x_{1:T}|x_0) - log p(x_{0:T}), every term by the moments of two neighbours
        bound = -0.5 * np.sum(np.log(2 * np.pi * np.e * np.array(case.betas)))
        bound += 0.5 * (np.log(2 * np.pi) + means[-1] ** 2 + spreads[-1])
        mean, variance = 0.0, 1.0
        for t in range(len(case.betas), 0, -1):
            gain = np.sqrt(kept[t]) * case.variance / spreads[t]
            from_x0, from_xt, noise = posterior_coefficients(case.betas, t)
            if t == 1:
                from_x0, from_xt, noise = 1.0, 0.0, case.betas[0]
            slope = from_x0 * gain + from_xt
            offset = from_x0 * (case.mean - gain * means[t])
            covariance = np.sqrt(1 - case.betas[t - 1]) * spreads[t - 1]
            left = spreads[t - 1] - 2 * slope * covariance + slope**2 * spreads[t]
            square = (means[t - 1] - slope * means[t] - offset) ** 2 + left
            bound += 0.5 * (np.log(2 * np.pi * noise) + square / noise)
            mean, variance = offset + slope * mean, slope**2 * variance + noise
        nll = 0.5 * (np.log(2 * np.pi * variance) + ((case.mean - mean) ** 2 + case.variance) / variance)
        return {"bound": bound, "-log p(x_0)": nll}

    def is_the_likelihood(case):
        nll = rhs(case)["-log p(x_0)"]
        return {"bound": nll, "-log p(x_0)": nll}

    return Identity(
        title="The loss of a diffusion model is a bound, every term under the expectation",
        statement=r"E_q\left[L_T + \sum_{t \geq 2} L_{t-1} + L_0\right] = E_q\left[\log \frac{q(x_{1:T} \mid x_0)}"
        r"{p_\theta(x_{0:T})}\right] \;\geq\; -\log p_\theta(x_0)",
        lecture="001",
        slide="Training a Diffusion Model",
        kind="identity",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("The bound is the negative log-likelihood.", rhs=is_the_likelihood, on_slide=True),
        correction="The slide's bracket closes after the first KL, so that the expectation misses the rest; it calls "
        "the bound “negative log-likelihood”; and its $p_\\theta(x_T)$ has no θ.",
    )


@entry(5)
def ddpm_vlb_gaussian_identity():
    def bound(case, **variances):
        arguments = jnp.array([case.mean]), jnp.array([case.variance]), from_betas(jnp.array(case.betas))
        return {"bound": exact.gaussian_gaps(*arguments, **variances).bound()}

    def lhs(case):
        best = process.optimal_variance(exact.gaussian_error(jnp.array([case.variance])))
        return bound(case, reverse_variance=best, decoder_variance=best)

    def posterior_variances(case):
        return bound(case)

    def rhs(case):
        kept = alpha_bar(case.betas)[-1]
        entropy = stats.norm(0, case.variance**0.5).entropy()
        last = gaussian_kl(
            [np.sqrt(kept) * case.mean], [[kept * case.variance + 1 - kept]], [0.0], [[1.0]]
        )  # fmt: skip
        return {"bound": entropy + last}

    return Identity(
        title="With exact reverse steps the bound loses only the start",
        statement=r"E_{x_0}\left[L_{\text{VLB}}\right] = H(x_0) + \mathrm{KL}\left(q(x_T) \,\|\, "
        r"\mathcal{N}(0, I)\right)",
        lecture="001",
        slide="Training a Diffusion Model",
        kind="identity",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("The reverse variances are $\\tilde\\beta_t$.", lhs=posterior_variances),
        correction="Not on the slide: the least value of its loss, which is not zero.",
    )


@entry(5)
def ddpm_kl_to_mse():
    def lhs(case):
        gamma = levels(case.betas)
        x_t, predicted = jnp.array(case.noise), jnp.array(case.predicted)

        def divergences(s, t):
            target = process.posterior(x_t, jnp.array(case.x0), s, t)
            return [
                kl_divergence(target, Normal(predicted, jnp.sqrt(variance(x_t, s, t))))
                for variance in (process.posterior_variance, process.forward_variance)
            ]

        small, large = jax.vmap(divergences)(gamma[1:-1], gamma[2:])
        return {"σ² = β̃": small, "σ² = β": large}

    def sides(case, constant):
        small, large = [], []
        for t in range(2, len(case.betas) + 1):
            a, b, noise = posterior_coefficients(case.betas, t)
            square = (a * case.x0 + b * case.noise - case.predicted) ** 2
            ratio = noise / case.betas[t - 1]
            small.append(square / (2 * noise))
            large.append(square / (2 * case.betas[t - 1]) + constant * 0.5 * (ratio - 1 - np.log(ratio)))
        return {"σ² = β̃": small, "σ² = β": large}

    def rhs(case):
        return sides(case, 1.0)

    def proportional(case):
        return sides(case, 0.0)

    return Identity(
        title="A term of the bound is a squared error, up to a constant and a weight",
        statement=r"L_{t-1} = \frac{\|\tilde\mu_t - \mu_\theta\|^2}{2 \sigma_t^2} + \frac{d}{2} \left("
        r"\frac{\tilde\beta_t}{\sigma_t^2} - 1 - \log \frac{\tilde\beta_t}{\sigma_t^2}\right)",
        lecture="001",
        slide="Training a Diffusion Model",
        kind="identity",
        instance=Pair(betas=(0.1, 0.2, 0.3, 0.4), x0=1.2, noise=-0.7, predicted=0.1),
        family=random_pair,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control(
            "The term is proportional to the squared error, whatever the variance.", rhs=proportional, on_slide=True
        ),
        correction="“∝” is exact for $\\sigma_t^2 = \\tilde\\beta_t$ alone, with a factor that depends on t; with a "
        "learned variance it is false. The simple loss drops the factor.",
    )
