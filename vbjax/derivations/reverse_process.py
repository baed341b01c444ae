"""Chapter 5: the reverse process of denoising diffusion, its bound, and what networks predict.

Left sides ask `vbjax.diffusion`, right sides condition joint Gaussians and sum on grids. Start with
`ddpm_posterior_mean`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax.derivations.diffusion_chain import (
    Chain,
    Noised,
    Pair,
    Spreads,
    alpha_bar,
    levels,
    posterior_coefficients,
    random_betas,
    random_chain,
    random_pair,
)
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry, mean_estimate
from vbjax.derivations.oracles import gaussian_kl
from vbjax.diffusion import exact, process
from vbjax.diffusion.samplers import affine_law, ancestral
from vbjax.diffusion.schedules import from_betas
from vbjax.distributions import Mixture, Normal
from vbjax.divergences import kl_divergence


@entry(5)
def ddpm_exact_reverse_sampling():
    def laws(case, kernel):
        gamma = levels(case.betas)[:0:-1]
        last = process.marginal(jnp.array(case.mean), gamma[0])
        spread = process.signal(gamma[0]) ** 2 * case.variance + process.noise(gamma[0]) ** 2
        answer = {}
        for name, mean, variance in (("q(x_T)", last.loc, spread), ("N(0, 1)", jnp.array(0.0), jnp.array(1.0))):
            mean, covariance = affine_law(kernel, gamma, mean[None], variance[None, None])
            answer |= {f"mean of x_1, from {name}": mean[0], f"variance of x_1, from {name}": covariance[0, 0]}
        return answer

    def lhs(case):
        denoiser = exact.gaussian_denoiser(jnp.array([case.mean]), jnp.array([case.variance]))
        variance = process.optimal_variance(exact.gaussian_error(jnp.array([case.variance])))
        return laws(case, process.reverse_kernel(denoiser, variance))

    def forwards(case):
        return laws(case, process.transition)

    def rhs(case):
        kept = alpha_bar(case.betas)
        means, spreads = np.sqrt(kept) * case.mean, kept * case.variance + 1 - kept
        mean, variance = 0.0, 1.0
        for t in range(len(case.betas), 1, -1):
            # regression of x_{t-1} on x_t
            gain = np.sqrt(1 - case.betas[t - 1]) * spreads[t - 1] / spreads[t]
            left = spreads[t - 1] - gain**2 * spreads[t]
            mean, variance = means[t - 1] + gain * (mean - means[t]), gain**2 * variance + left
        return {
            "mean of x_1, from q(x_T)": means[1],
            "variance of x_1, from q(x_T)": spreads[1],
            "mean of x_1, from N(0, 1)": mean,
            "variance of x_1, from N(0, 1)": variance,
        }

    return Identity(
        title="Exact reverse steps give the data back, from the right start",
        statement=r"x_T \sim q(x_T),\; x_{t-1} \sim q(x_{t-1} \mid x_t) \;\Rightarrow\; x_1 \sim q(x_1); \qquad "
        r"\mathrm{KL}(q(x_0) \,\|\, p(x_0)) \leq \mathrm{KL}\left(q(x_T) \,\|\, \mathcal{N}(0, I)\right) \text{ else}",
        lecture="001",
        slide="Reverse Diffusion",
        kind="identity",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("The forward kernels are used backwards.", lhs=forwards),
        correction="“Novel data point from the original distribution” hides two approximations: $x_T$ is drawn from "
        "N(0, I), and $p_\\theta$ is Gaussian. The first alone shows here.",
    )


@entry(5)
def ddpm_posterior_mean():
    def lhs(case):
        gamma = levels(case.betas)
        x_t = jnp.array(case.noise)

        def law(s, t):
            made = process.posterior(x_t, jnp.array(case.x0), s, t)
            return made.loc, made.scale**2

        mean, variance = jax.vmap(law)(gamma[1:-1], gamma[2:])
        return {"μ̃, t ≥ 2": mean, "β̃, t ≥ 2": variance, "μ̃ at t = 1": process.posterior_mean(
            x_t, jnp.array(case.x0), gamma[0], gamma[1])}  # fmt: skip

    def sides(case, swap=False):
        rows = [posterior_coefficients(case.betas, t) for t in range(2, len(case.betas) + 1)]
        first, second = (case.noise, case.x0) if swap else (case.x0, case.noise)
        return {
            "μ̃, t ≥ 2": [a * first + b * second for a, b, _ in rows],
            "β̃, t ≥ 2": [variance for _, _, variance in rows],
            "μ̃ at t = 1": case.x0,
        }

    def rhs(case):
        return sides(case)

    def swapped(case):
        return sides(case, swap=True)

    return Identity(
        title="The posterior of a forward step",
        statement=r"\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x_0 + "
        r"\frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t, \qquad "
        r"\tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\, \beta_t",
        lecture="001",
        slide="Training a Diffusion Model",
        kind="identity",
        instance=Pair(betas=(0.1, 0.2, 0.3, 0.4), x0=1.2, noise=-0.7, predicted=0.1),
        family=random_pair,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The two coefficients are swapped.", rhs=swapped),
        correction="The slide uses $\\tilde\\mu_t$ without saying what it is. At t = 1 it is $x_0$, with no variance.",
    )


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


@entry(5)
def ddpm_parameterisations():
    def lhs(case):
        gamma, x0, eps = levels(case.betas)[1:], jnp.array(case.x0), jnp.array(case.noise)

        def means(s, t):
            alpha, sigma = process.signal(t), process.noise(t)
            x_t = alpha * x0 + sigma * eps
            denoisers = {
                "ε": process.from_epsilon(lambda *_: eps),
                "v": process.from_v(lambda *_: alpha * eps - sigma * x0),
                "score": process.from_score(lambda *_: -eps / sigma),
            }
            return {f"μ̃ of {name}": process.posterior_mean(x_t, d(x_t, t), s, t) for name, d in denoisers.items()}

        return jax.vmap(means)(gamma[:-1], gamma[1:])

    def sides(case, power):
        betas, kept = np.array(case.betas)[1:], alpha_bar(case.betas)[2:]
        x_t = np.sqrt(kept) * case.x0 + np.sqrt(1 - kept) * case.noise
        mean = (x_t - betas * case.noise / (1 - kept) ** power) / np.sqrt(1 - betas)
        return {f"μ̃ of {name}": mean for name in ("ε", "v", "score")}

    def rhs(case):
        return sides(case, 0.5)

    def no_root(case):
        return sides(case, 1.0)

    return Identity(
        title="Noise, datum, velocity and score say the same",
        statement=r"\tilde\mu_t = \frac{1}{\sqrt{\alpha_t}} \left(x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\, "
        r"\varepsilon\right) = \frac{1}{\sqrt{\alpha_t}} \left(x_t + \beta_t \nabla \log q(x_t \mid x_0)\right)",
        lecture="001",
        slide="Training a Diffusion Model",
        kind="identity",
        instance=Pair(betas=(0.1, 0.2, 0.3, 0.4), x0=1.2, noise=-0.7, predicted=0.1),
        family=random_pair,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("$\\beta_t / (1 - \\bar\\alpha_t)$, without the root.", rhs=no_root),
        correction="“Predicts the diffusion posterior mean” is one of four equivalent outputs.",
    )


@entry(5)
def ddpm_optimal_denoiser():
    def gamma(case):
        return jnp.log1p(-jnp.array(case.signal)) - jnp.log(case.signal)

    def law(case):
        means, scales = jnp.array(case.means), jnp.array(case.scales)
        noisy = jnp.sqrt(case.signal * scales**2 + 1 - case.signal)
        return Mixture(jnp.log(jnp.array(case.weights)), Normal(jnp.sqrt(case.signal) * means, noisy))

    def answers(case, sign):
        denoiser = exact.mixture_denoiser(*(jnp.array(v) for v in (case.weights, case.means, case.scales)))
        tweedie = process.from_score(lambda x, _: sign * jax.grad(law(case).log_prob)(x))
        at = jnp.array(case.at)
        return {
            "E[x_0|x_t]": jax.vmap(lambda x: denoiser(x, gamma(case)))(at),
            "by Tweedie's formula": jax.vmap(lambda x: tweedie(x, gamma(case)))(at),
        }

    def lhs(case):
        return answers(case, 1)

    def wrong_sign(case):
        return answers(case, -1)

    def rhs(case):
        x, at = np.linspace(-14, 14, 8001), np.array(case.at)
        prior = stats.norm.pdf(x[:, None], case.means, case.scales) @ np.array(case.weights)
        joint = prior * stats.norm.pdf(at[:, None], np.sqrt(case.signal) * x, np.sqrt(1 - case.signal))
        mean = joint @ x / joint.sum(1)
        return {"E[x_0|x_t]": mean, "by Tweedie's formula": mean}

    return Identity(
        title="The best denoiser returns a conditional mean",
        statement=r"\arg\min_f E\|f(x_t) - x_0\|^2 = E[x_0 \mid x_t] = "
        r"\frac{x_t + (1 - \bar\alpha_t) \nabla \log q(x_t)}{\sqrt{\bar\alpha_t}}",
        lecture="001",
        slide="Diffusion Process",
        kind="identity",
        instance=Noised(weights=(0.3, 0.7), means=(-1.0, 2.0), scales=(0.4, 0.6), signal=0.4, at=(-1.0, 0.2, 1.5)),
        family=lambda random: Noised(
            (0.4, 0.6),
            random.uniform(-2, 2, 2),
            random.uniform(0.3, 0.8, 2),
            random.uniform(0.2, 0.9),
            random.normal(size=3),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("The score has the wrong sign.", lhs=wrong_sign),
        correction="“Trained to recover the original data”: what it recovers is their conditional *mean*.",
    )


@entry(5)
def ddpm_reverse_variance_choice():
    def lhs(case):
        gamma = levels(case.betas)

        def best(variance):
            rule = process.optimal_variance(exact.gaussian_error(variance))
            return rule(jnp.array(0.0), gamma[-2], gamma[-1])

        return {"best variance": jax.vmap(best)(jnp.array(case.variances))}

    def rhs(case):
        kept, variances = alpha_bar(case.betas), np.array(case.variances)
        before, after = (kept[t] * variances + 1 - kept[t] for t in (-2, -1))
        return {"best variance": before * case.betas[-1] / after}

    def capped(case):
        return {"best variance": np.minimum(rhs(case)["best variance"], case.betas[-1])}

    return Identity(
        title="The two usual reverse variances bound the best one only for data narrower than the noise",
        statement=r"\sigma_t^2 = \frac{V_{t-1}\, \beta_t}{V_t}, \quad V_t = \bar\alpha_t s^2 + 1 - \bar\alpha_t: "
        r"\qquad \tilde\beta_t \;(s = 0), \quad \beta_t \;(s = 1), \quad > \beta_t \;(s > 1)",
        lecture="001",
        slide="Training a Diffusion Model",
        kind="identity",
        instance=Spreads(betas=(0.1, 0.2, 0.3, 0.4), variances=(1e-4, 0.25, 1.0, 4.0)),
        family=lambda random: Spreads(random_betas(random), (random.uniform(0.1, 0.9), random.uniform(1.5, 6))),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("It never exceeds $\\beta_t$.", rhs=capped),
        correction="The slide leaves $\\Sigma_\\theta$ open. That $\\beta_t$ and $\\tilde\\beta_t$ are its bounds "
        "needs data of variance at most one.",
    )


@entry(5)
def ddpm_toy_training():
    def lhs(key, case):
        gamma = levels(case.betas)[:0:-1]
        denoiser = exact.gaussian_denoiser(jnp.array(case.mean), jnp.array(case.variance))
        kernel = process.reverse_kernel(denoiser)
        key_start, key_steps = jax.random.split(key)
        start = jax.random.normal(key_start, (20_000,))
        draws = np.array(ancestral(key_steps, broadcast(kernel), gamma, start))
        return {"E x_1": mean_estimate(draws), "E x_1²": mean_estimate(draws**2)}

    def broadcast(kernel):
        """The scalar kernel for many chains at once, each with its own noise."""

        def many(x_t, gamma_s, gamma_t):
            law = jax.vmap(lambda x: kernel(x, gamma_s, gamma_t))(x_t)
            return Normal(law.loc, law.scale)

        return many

    def moments(case):
        kept = alpha_bar(case.betas)
        return np.sqrt(kept) * case.mean, kept * case.variance + 1 - kept

    def rhs(case):
        means, spreads = moments(case)
        kept = alpha_bar(case.betas)
        mean, variance = 0.0, 1.0
        for t in range(len(case.betas), 1, -1):
            a, b, noise = posterior_coefficients(case.betas, t)
            gain = np.sqrt(kept[t]) * case.variance / spreads[t]
            slope, offset = a * gain + b, a * (case.mean - gain * means[t])
            mean, variance = offset + slope * mean, slope**2 * variance + noise
        return {"E x_1": mean, "E x_1²": variance + mean**2}

    def the_data(case):
        means, spreads = moments(case)
        return {"E x_1": means[1], "E x_1²": spreads[1] + means[1] ** 2}

    return Identity(
        title="Samples have the law of the model's chain, not of the data",
        statement=r"x_T \sim \mathcal{N}(0, I),\; x_{t-1} \sim \mathcal{N}\left(\tilde\mu_t(x_t, E[x_0 \mid x_t]),\, "
        r"\tilde\beta_t\right): \qquad m_{t-1} = a_t m_t + b_t, \quad v_{t-1} = a_t^2 v_t + \tilde\beta_t",
        lecture="001",
        slide="Diffusion Process",
        kind="behaviour",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The samples have the law of the data.", rhs=the_data),
        correction="With few steps the start N(0, I) and the variance $\\tilde\\beta_t$ show. The ledger regresses ε "
        "on draws first; the exact regression is `gaussian_denoiser`, which ddpm-optimal-denoiser checks.",
    )
