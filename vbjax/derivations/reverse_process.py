"""Chapter 5: the reverse process of denoising diffusion, and what networks predict.

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
from vbjax.distributions import Mixture, Normal
from vbjax.divergences import kl_divergence
from vbjax.types import Estimate


@entry(5)
def ddpm_exact_reverse_sampling():
    def laws(case, kernel):
        gamma = jnp.append(levels(case.betas)[:0:-1], -80.0)  # x_0 itself, in all but name
        last = process.marginal(jnp.array(case.mean), gamma[0])
        spread = process.signal(gamma[0]) ** 2 * case.variance + process.noise(gamma[0]) ** 2
        started = Normal(last.loc, jnp.sqrt(spread)), Normal(jnp.array(0.0), jnp.array(1.0))
        ends = [affine_law(kernel, gamma, q.loc[None], (q.scale**2)[None, None]) for q in started]
        model = Normal(ends[1][0][0], jnp.sqrt(ends[1][1][0, 0]))
        data = Normal(jnp.array(case.mean), jnp.sqrt(jnp.array(case.variance)))
        return named(*ends[0], *ends[1], kl_divergence(data, model), kl_divergence(*started))

    def named(mean, variance, model_mean, model_variance, at_the_end, at_the_start):
        return {
            "mean of x_0, from q(x_T)": np.squeeze(mean),
            "variance of x_0, from q(x_T)": np.squeeze(variance),
            "mean of x_0, from N(0, 1)": np.squeeze(model_mean),
            "variance of x_0, from N(0, 1)": np.squeeze(model_variance),
            "KL(q(x_0)‖p(x_0))": at_the_end,
            "KL(q(x_0)‖p(x_0)) above KL(q(x_T)‖N(0, 1)) by": np.maximum(at_the_end - at_the_start, 0),
        }

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
        for t in range(len(case.betas), 0, -1):
            # regression of x_{t-1} on x_t
            gain = np.sqrt(1 - case.betas[t - 1]) * spreads[t - 1] / spreads[t]
            left = spreads[t - 1] - gain**2 * spreads[t]
            mean, variance = means[t - 1] + gain * (mean - means[t]), gain**2 * variance + left
        lost = gaussian_kl([case.mean], [[case.variance]], [mean], [[variance]])
        return named(case.mean, case.variance, mean, variance, lost, np.inf)

    return Identity(
        title="Exact reverse steps give the data back, from the right start",
        statement=r"x_T \sim q(x_T),\; x_{t-1} \sim q(x_{t-1} \mid x_t) \;\Rightarrow\; x_0 \sim q(x_0); \qquad "
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
    """Regression and sampling side by side: samples by the exact denoiser have a law that is known exactly, those by
    a fitted one to a few per cent only.
    """

    def fitted(key, case, gamma):
        """The least-squares slope of ε on x_t, with its standard error."""
        draws = 50_000
        key_data, key_noise = jax.random.split(key)
        x_0 = case.mean + case.variance**0.5 * jax.random.normal(key_data, (draws,))
        eps = jax.random.normal(key_noise, (draws,))
        x_t = np.array(process.signal(gamma) * x_0 + process.noise(gamma) * eps)
        found = stats.linregress(x_t, np.array(eps))
        return Estimate(jnp.array(found.slope), jnp.array(found.stderr), draws)

    def lhs(key, case):
        gamma = jnp.append(levels(case.betas)[:0:-1], -80.0)
        variance = process.optimal_variance(exact.gaussian_error(jnp.array(case.variance)))
        kernel = process.reverse_kernel(
            exact.gaussian_denoiser(jnp.array(case.mean), jnp.array(case.variance)), variance
        )
        key_start, key_steps, key_first, key_last = jax.random.split(key, 4)
        start = jax.random.normal(key_start, (50_000,))
        draws = np.array(ancestral(key_steps, broadcast(kernel), gamma, start))
        return {
            "slope of ε on x_1": fitted(key_first, case, gamma[-2]),
            "slope of ε on x_T": fitted(key_last, case, gamma[0]),
            "E x_0": mean_estimate(draws),
            "E x_0²": mean_estimate(draws**2),
        }

    def broadcast(kernel):
        """The scalar kernel for many chains at once, each with its own noise."""

        def many(x_t, gamma_s, gamma_t):
            law = jax.vmap(lambda x: kernel(x, gamma_s, gamma_t))(x_t)
            return Normal(law.loc, law.scale)

        return many

    def sides(case, first_moments):
        kept = alpha_bar(case.betas)
        spreads = kept * case.variance + 1 - kept
        slopes = np.sqrt(1 - kept) / spreads
        mean, variance = first_moments(case, kept, spreads)
        return {
            "slope of ε on x_1": slopes[1],
            "slope of ε on x_T": slopes[-1],
            "E x_0": mean,
            "E x_0²": variance + mean**2,
        }

    def rhs(case):
        def recursion(case, kept, spreads):
            means = np.sqrt(kept) * case.mean
            mean, variance = 0.0, 1.0
            for t in range(len(case.betas), 0, -1):
                gain = np.sqrt(1 - case.betas[t - 1]) * spreads[t - 1] / spreads[t]
                left = spreads[t - 1] - gain**2 * spreads[t]
                mean, variance = means[t - 1] + gain * (mean - means[t]), gain**2 * variance + left
            return mean, variance

        return sides(case, recursion)

    def the_data(case):
        return sides(case, lambda case, kept, spreads: (case.mean, case.variance))

    return Identity(
        title="A fitted chain has the slopes of regression, and samples of its own law",
        statement=r"\hat\varepsilon(x_t) = \frac{\sqrt{1 - \bar\alpha_t}}{V_t} (x_t - E x_t); \qquad "
        r"x_T \sim \mathcal{N}(0, I): \quad m_{t-1} = E x_{t-1} + a_t (m_t - E x_t), \quad v_{t-1} = a_t^2 v_t + "
        r"\sigma_t^2, \qquad a_t = \sqrt{\alpha_t}\, V_{t-1} / V_t",
        lecture="001",
        slide="Diffusion Process",
        kind="behaviour",
        instance=Chain(),
        family=lambda random: random_chain(random)._replace(
            betas=tuple(random.uniform(0.05, 0.3, 4)), variance=random.uniform(0.3, 2)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The samples have the law of the data.", rhs=the_data),
        correction="“Novel data points from the original distribution” come with the start's error: N(0, I) is not "
        "$q(x_T)$ where some signal is left, and samples show it.",
    )
