"""Chapter 5: the forward process of denoising diffusion, and when its reverse is Gaussian.

Left sides ask `vbjax.diffusion`, which knows noise levels γ only; right sides are NumPy and dense Gaussian algebra.
Start with `ddpm_forward_marginal`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax.derivations.diffusion_chain import (
    Chain,
    OneStep,
    Path,
    Terminal,
    alpha_bar,
    levels,
    random_chain,
    random_path,
)
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.oracles import gaussian_kl
from vbjax.diffusion import process
from vbjax.diffusion.bound import prior_kl
from vbjax.diffusion.schedules import from_betas
from vbjax.distributions import Mixture, Normal


@entry(5)
def ddpm_forward_kernel_and_joint():
    def lhs(case):
        x, gamma = jnp.array(case.x), levels(case.betas)
        step = jax.vmap(lambda x_s, x_t, s, t: process.transition(x_s, s, t).log_prob(x_t))
        return {"log q(x_1, …, x_T | x_0)": step(x[:-1], x[1:], gamma[:-1], gamma[1:]).sum()}

    def rhs(case):
        kept = alpha_bar(case.betas)[1:]
        earlier, later = np.maximum.outer(kept, kept), np.minimum.outer(kept, kept)
        law = stats.multivariate_normal(np.sqrt(kept) * case.x[0], np.sqrt(later / earlier) * (1 - earlier))
        return {"log q(x_1, …, x_T | x_0)": law.logpdf(case.x[1:])}

    def scale_beta(case):
        x, betas = np.array(case.x), np.array(case.betas)
        return {"log q(x_1, …, x_T | x_0)": stats.norm.logpdf(x[1:], np.sqrt(1 - betas) * x[:-1], betas).sum()}

    return Identity(
        title="The forward chain is one Gaussian",
        statement=r"q(x_{1:T} \mid x_0) = \prod_{t=1}^T \mathcal{N}\left(x_t \mid \sqrt{1 - \beta_t}\, x_{t-1}, "
        r"\beta_t I\right), \qquad \mathrm{Cov}(x_s, x_t) = \sqrt{\bar\alpha_t / \bar\alpha_s}\, (1 - \bar\alpha_s), "
        r"\; s \leq t",
        lecture="001",
        slide="Forward Diffusion",
        kind="identity",
        instance=Path(betas=(0.1, 0.2, 0.3, 0.4), x=(1.2, 0.8, 1.1, 0.3, -0.4)),
        family=random_path,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("$\\beta_t$ is taken for the standard deviation.", rhs=scale_beta),
        correction="“Efficiency?” has an answer in the marginals: no step has to be simulated. $\\beta_t$ lies in "
        "(0, 1) and t starts at 1.",
    )


@entry(5)
def ddpm_alphabar_index():
    def lhs(case):
        return {"ᾱ_t": jax.vmap(process.signal)(levels(case.betas)) ** 2}

    def rhs(case):
        kept = [1.0]
        for beta in case.betas:
            kept.append(kept[-1] * (1 - beta))
        return {"ᾱ_t": kept}

    def from_zero(case):
        return {"ᾱ_t": (1 - case.betas[0]) * np.array(rhs(case)["ᾱ_t"])}

    return Identity(
        title="The product starts at one",
        statement=r"\bar\alpha_t = \prod_{s=1}^{t} (1 - \beta_s), \qquad \bar\alpha_0 = 1",
        lecture="001",
        slide="Reparameterization",
        kind="identity",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The product from s = 0, with $\\beta_1$ in slot 0 of an array.", rhs=from_zero, on_slide=True),
        correction="The slide's product starts at s = 0, and there is no $\\beta_0$. Harmless for $\\beta_0 := 0$; in "
        "an array that counts from 0 every $\\bar\\alpha$ is off by a factor.",
    )


@entry(5)
def ddpm_noise_merging():
    def lhs(case):
        gamma = levels(case.betas)
        two = jax.vmap(lambda s, t: process.transition(jnp.array(0.0), s, t).scale ** 2)(gamma[:-2], gamma[2:])
        return {"variance of two steps": two}

    def coefficients(case):
        betas = np.array(case.betas)
        return np.sqrt(betas[1:]), np.sqrt((1 - betas[1:]) * betas[:-1])

    def rhs(case):
        new, old = coefficients(case)
        return {"variance of two steps": new**2 + old**2}

    def one_noise(case):
        new, old = coefficients(case)
        return {"variance of two steps": (new + old) ** 2}

    return Identity(
        title="Two noises merge into a third",
        statement=r"\sqrt{1 - \alpha_t}\, \varepsilon_{t-1} + \sqrt{\alpha_t (1 - \alpha_{t-1})}\, \varepsilon_{t-2} "
        r"\sim \mathcal{N}\left(0, (1 - \alpha_t \alpha_{t-1}) I\right)",
        lecture="001",
        slide="Reparameterization",
        kind="identity",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control(
            "One and the same ε stands in both places, as the letters suggest.", rhs=one_noise, on_slide=True
        ),
        correction="The slide's equalities hold in *distribution*: the $\\varepsilon_{t-2}$ of its third line and the "
        "$\\varepsilon_0$ of its last are new, merged noises.",
    )


@entry(5)
def ddpm_forward_marginal():
    def lhs(case):
        law = jax.vmap(lambda gamma: process.marginal(jnp.array(case.mean), gamma))(levels(case.betas)[1:])
        return {"mean": law.loc, "variance": law.scale**2}

    def rhs(case):
        mean, variance, rows = case.mean, 0.0, []
        for beta in case.betas:
            mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
            rows.append((mean, variance))
        return {"mean": [m for m, _ in rows], "variance": [v for _, v in rows]}

    def root(case):
        found = rhs(case)
        return found | {"variance": np.sqrt(found["variance"])}

    return Identity(
        title="Any time of the forward process in one step",
        statement=r"q(x_t \mid x_0) = \mathcal{N}\left(\sqrt{\bar\alpha_t}\, x_0,\; (1 - \bar\alpha_t) I\right)",
        lecture="001",
        slide="Reparameterization",
        kind="identity",
        instance=Chain(),
        family=random_chain,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("$\\sqrt{1 - \\bar\\alpha_t}$ is taken for the variance.", rhs=root),
    )


@entry(5)
def ddpm_terminal_gaussian():
    def lhs(case):
        linear = from_betas(jnp.linspace(case.first, case.last, case.steps))
        summable = from_betas(1 / jnp.arange(2.0, case.steps + 2.0) ** 2)
        return {
            "KL(q(x_T|x_0)‖N(0, I)), linear": prior_kl(jnp.array(case.x), linear.gamma[-1]),
            "ᾱ_T, β = 1/(t+1)²": process.signal(summable.gamma[-1]) ** 2,
        }

    def rhs(case):
        kept = np.prod(1 - np.linspace(case.first, case.last, case.steps))
        divergence = gaussian_kl([np.sqrt(kept) * case.x], [[1 - kept]], [0.0], [[1.0]])
        # the product telescopes: t (t + 2) / (t + 1)²
        telescoped = (case.steps + 2) / (2 * (case.steps + 1))
        return {"KL(q(x_T|x_0)‖N(0, I)), linear": divergence, "ᾱ_T, β = 1/(t+1)²": telescoped}

    def always_forgets(case):
        return rhs(case) | {"ᾱ_T, β = 1/(t+1)²": 0.0}

    return Identity(
        title="The chain forgets its start if and only if the noise adds up to infinity",
        statement=r"x_T \to \mathcal{N}(0, I) \iff \sum_t \beta_t = \infty; \qquad "
        r"\mathrm{KL}\left(q(x_T \mid x_0) \,\|\, \mathcal{N}(0, I)\right) \approx \frac{1}{2} \bar\alpha_T \|x_0\|^2",
        lecture="001",
        slide="Reverse Diffusion",
        kind="limit",
        instance=Terminal(first=1e-4, last=0.02, steps=1000, x=1.0),
        family=lambda random: Terminal(
            random.uniform(1e-4, 1e-3), random.uniform(0.01, 0.05), random.integers(50, 1000), random.normal()
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("However small the steps, T to infinity suffices.", rhs=always_forgets, on_slide=True),
        correction="“$x_{T \\to \\infty}$ becomes Gaussian” needs more than T: with $\\beta_t = 1/(t+1)^2$ half of the "
        "signal's variance stays for ever. And the limit is the *standard* Gaussian.",
    )


@entry(5)
def ddpm_reverse_gaussianity():
    def grid(case):
        return np.linspace(-8, 8, 8001)

    def lhs(case):
        x = jnp.array(grid(case))
        step = x[1] - x[0]
        law = Mixture(jnp.zeros(2), Normal(jnp.array(case.means), jnp.full(2, case.scale)))

        def divergence(beta):
            gamma = jnp.log(beta) - jnp.log1p(-beta)
            forward = jax.vmap(lambda x: process.marginal(x, gamma).log_prob(jnp.array(case.x)))(x)
            log_reverse = jax.nn.log_softmax(jax.vmap(law.log_prob)(x) + forward) - jnp.log(step)
            weights = jnp.exp(log_reverse) * step
            mean = weights @ x
            matched = Normal(mean, jnp.sqrt(weights @ (x - mean) ** 2))
            return weights @ (log_reverse - jax.vmap(matched.log_prob)(x))

        return {f"β = {beta}": jax.jit(divergence)(jnp.array(beta)) for beta in case.betas}

    def rhs(case):
        x = grid(case)

        def divergence(beta):
            means, variance, root = np.array(case.means), case.scale**2, np.sqrt(1 - beta)
            # each component's reverse law is normal, and so is what it says of x_t
            spread = (1 - beta) * variance + beta
            shares = stats.norm.pdf(case.x, root * means, np.sqrt(spread))
            shares /= shares.sum()
            centres = means + root * variance / spread * (case.x - root * means)
            inner = variance * beta / spread
            mean = shares @ centres
            total = inner + shares @ (centres - mean) ** 2
            density = stats.norm.pdf(x[:, None], centres, np.sqrt(inner)) @ shares
            log_ratio = np.log(np.maximum(density, 1e-300)) - stats.norm.logpdf(x, mean, np.sqrt(total))
            return np.sum(density * log_ratio) * (x[1] - x[0])

        return {f"β = {beta}": divergence(beta) for beta in case.betas}

    def always_gaussian(case):
        return {f"β = {beta}": 0.0 for beta in case.betas}

    return Identity(
        title="A reverse step is Gaussian only when it is small",
        statement=r"\mathrm{KL}\left(q(x_{t-1} \mid x_t) \,\|\, \mathcal{N}(\text{its moments})\right) \to 0 \quad "
        r"(\beta_t \to 0)",
        lecture="001",
        slide="Approximate Reverse Process",
        kind="limit",
        instance=OneStep(betas=(0.9, 0.5, 0.1, 0.01, 0.001), means=(-1.0, 1.0), scale=0.3, x=0.0),
        family=lambda random: OneStep(
            (0.8, 0.4, 0.05), (random.uniform(-1.2, -0.8), random.uniform(0.8, 1.2)), random.uniform(0.3, 0.4), 0.0
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("The reverse step is Gaussian, whatever β.", rhs=always_gaussian, on_slide=True),
        correction="The slide writes the Gaussian model without its condition. For Gaussian data it holds at any β; "
        "for others as β goes to zero.",
    )
