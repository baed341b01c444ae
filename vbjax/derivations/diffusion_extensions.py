"""Chapter 9: guidance, inpainting and distillation.

Left sides ask `vbjax.diffusion`, right sides dense matrices and finite differences. Start with
`classifier_free_guidance`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry, mean_estimate
from vbjax.diffusion import exact, process
from vbjax.diffusion.guidance import evidence_guided, gaussian_evidence, guided, score_distillation
from vbjax.diffusion.inpainting import replacement_kernel
from vbjax.diffusion.samplers import affine_law
from vbjax.diffusion.schedules import from_betas


class Guidance(NamedTuple):
    """Normal laws with and without a condition, as mean and variance; the weight, ᾱ_t, and points x_t."""

    conditional: tuple
    unconditional: tuple
    w: float
    signal: float
    at: tuple


class Known(NamedTuple):
    """Two unit normal coordinates with this correlation, the value of the second, and β_1 … β_T."""

    correlation: float
    value: float
    betas: tuple


class Distilled(NamedTuple):
    """Normal data as mean and variance, ᾱ_t, and the point to be moved."""

    mean: float
    variance: float
    signal: float
    at: float


@entry(9)
def classifier_free_guidance():
    def lhs(case):
        gamma = jnp.log1p(-jnp.array(case.signal)) - jnp.log(case.signal)
        conditional = exact.gaussian_denoiser(*map(jnp.array, case.conditional))
        unconditional = exact.gaussian_denoiser(*map(jnp.array, case.unconditional))
        score = process.score(guided(conditional, unconditional, case.w))
        return {"guided score": jax.vmap(lambda x: score(x, gamma))(jnp.array(case.at))}

    def tilted(case, power_c, power_u):
        def log_density(x):
            parts = []
            for mean, variance in (case.conditional, case.unconditional):
                spread = case.signal * variance + 1 - case.signal
                parts.append(stats.norm.logpdf(x, np.sqrt(case.signal) * mean, np.sqrt(spread)))
            return power_c * parts[0] + power_u * parts[1]

        at = np.array(case.at)
        return {"guided score": (log_density(at + 1e-5) - log_density(at - 1e-5)) / 2e-5}

    def rhs(case):
        return tilted(case, 1 + case.w, -case.w)

    def other_convention(case):
        return tilted(case, case.w, 1 - case.w)

    return Identity(
        title="Guidance is the score of a tilted law",
        statement=r"(1 + w)\, s_c - w\, s_u = \nabla \log \left(p_c^{1 + w}\, p_u^{-w}\right) \quad "
        r"\text{at each noise level}",
        lecture="001",
        slide="Applications",
        kind="identity",
        instance=Guidance((1.0, 0.5), (0.0, 2.0), 1.5, 0.6, (-0.5, 0.4, 1.6)),
        family=lambda random: Guidance(
            (random.normal(), random.uniform(0.3, 1)),
            (random.normal(), random.uniform(1, 3)),
            random.uniform(0.3, 3),
            random.uniform(0.2, 0.9),
            random.normal(size=3),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-7),
        control=Control("The other paper's w, smaller by one.", rhs=other_convention),
        correction="Only applications are shown. The tilted laws of the levels are not one tilted law, diffused: "
        "guided samples have no closed law, even for Gaussians.",
    )


@entry(9)
def diffusion_inpainting():
    def parts(case):
        covariance = jnp.array([[1.0, case.correlation], [case.correlation, 1.0]])
        schedule = from_betas(jnp.array(case.betas))
        return exact.gaussian_denoiser(jnp.zeros(2), covariance), schedule.at(jnp.arange(schedule.steps, -1, -1))

    def lhs(case):
        denoiser, gamma = parts(case)
        evidence = gaussian_evidence(denoiser, lambda x: x[1:], jnp.array([case.value]))
        x_t = jnp.array([0.3, -0.4])
        kernel = replacement_kernel(
            process.reverse_kernel(denoiser), jnp.array([0.0, case.value]), jnp.array([False, True])
        )
        mean, covariance = affine_law(kernel, gamma, jnp.zeros(2), jnp.eye(2))
        return {
            "E[x_1 | x_t, x_2], guided": evidence_guided(denoiser, evidence)(x_t, gamma[1])[0],
            "mean of x_1, replacement": mean[0],
            "variance of x_1, replacement": covariance[0, 0],
        }

    def guided_mean(case, x_t, kept):
        """By conditioning (x_1, x_2, noisy x_1, noisy x_2) on all but the first."""
        r, a = case.correlation, np.sqrt(kept)
        seen = np.array([[1, a * r, a], [a * r, 1, a * a * r], [a, a * a * r, 1]])
        cross = np.array([r, a, a * r])
        return cross @ np.linalg.solve(seen, [case.value, *x_t])

    def rhs(case):
        kept = np.concatenate([[1.0], np.cumprod(1 - np.array(case.betas))])
        joint = np.array([[1, case.correlation], [case.correlation, 1]])
        mean, covariance = np.zeros(2), np.eye(2)
        for t in range(len(case.betas), 0, -1):
            before, after = 1 - kept[t - 1], 1 - kept[t]
            back = np.sqrt(1 - case.betas[t - 1]) * before / after
            towards = np.sqrt(kept[t - 1]) * case.betas[t - 1] / after
            denoise = np.sqrt(kept[t]) * joint @ np.linalg.inv(kept[t] * joint + after * np.eye(2))
            row = (towards * denoise + back * np.eye(2))[0]
            variance = row @ covariance @ row + before / after * case.betas[t - 1]
            # the known coordinate is noised afresh, independently of the other
            mean = np.array([row @ mean, np.sqrt(kept[t - 1]) * case.value])
            covariance = np.diag([variance, before])
        return {
            "E[x_1 | x_t, x_2], guided": guided_mean(case, (0.3, -0.4), kept[-2]),
            "mean of x_1, replacement": mean[0],
            "variance of x_1, replacement": covariance[0, 0],
        }

    def exact_conditional(case):
        return rhs(case) | {
            "mean of x_1, replacement": case.correlation * case.value,
            "variance of x_1, replacement": 1 - case.correlation**2,
        }

    return Identity(
        title="Overwriting the known part is not conditioning on it",
        statement=r"x_1 \mid x_2 = y \sim \mathcal{N}(\rho y, 1 - \rho^2), \qquad \text{but replacing } x_{t, 2} "
        r"\text{ by } \sqrt{\bar\alpha_t}\, y + \sqrt{1 - \bar\alpha_t}\, \varepsilon \text{ at every step is biased}",
        lecture="001",
        slide="Image inpainting & outpainting",
        kind="claim",
        instance=Known(correlation=0.8, value=1.5, betas=(0.02,) * 40 + (0.1,) * 20),
        family=lambda random: Known(random.uniform(0.4, 0.9), random.uniform(0.8, 2), random.uniform(0.02, 0.2, 40)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("Replacement draws from the conditional law.", rhs=exact_conditional),
        correction="Only applications are shown, and many implementations replace: even with an exact model the "
        "unknown part never hears enough of the known one. The score of the conditional law is exact.",
    )


@entry(9)
def sds_gradient():
    def lhs(key, case):
        gamma = jnp.log1p(-jnp.array(case.signal)) - jnp.log(case.signal)
        denoiser = exact.gaussian_denoiser(jnp.array([case.mean]), jnp.array([case.variance]))
        at = jnp.array([case.at])
        draws = jax.vmap(lambda key: score_distillation(key, denoiser, at, gamma))(jax.random.split(key, 20_000))
        return {"E[ε̂ - ε]": mean_estimate(np.array(draws[:, 0]))}

    def closed(case, scale):
        spread = case.signal * case.variance + 1 - case.signal
        return {"E[ε̂ - ε]": scale * np.sqrt(1 - case.signal) * (case.at - case.mean) / spread}

    def rhs(case):
        return closed(case, np.sqrt(case.signal))

    def no_root(case):
        return closed(case, case.signal)

    return Identity(
        title="Score distillation descends a divergence, to a mode",
        statement=r"E[\hat\varepsilon(x_t) - \varepsilon] = \frac{\sqrt{\bar\alpha_t (1 - \bar\alpha_t)}}"
        r"{\bar\alpha_t s^2 + 1 - \bar\alpha_t}\, (\theta - m) \;\propto\; "
        r"\nabla_\theta \mathrm{KL}\left(q(x_t \mid \theta) \,\|\, p_t\right)",
        lecture="001",
        slide="Text-to-3D NeRF",
        kind="identity",
        instance=Distilled(mean=1.5, variance=0.25, signal=0.4, at=3.0),
        family=lambda random: Distilled(
            random.normal(), random.uniform(0.1, 1), random.uniform(0.2, 0.7), random.uniform(3, 5)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("$\\bar\\alpha$ where its root belongs.", rhs=no_root),
        correction="Only an application is shown. Subtracting ε changes no mean, it only lowers the variance.",
    )
