"""Chapter 9: noise that follows a skeleton, and motions predicted with it.

Left sides ask `vbjax.diffusion.anisotropic` and `vbjax.motion`, right sides dense matrices. Start with
`anisotropic_recap_sqrt`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import autoencoders, motion
from vbjax.derivations import families
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.diffusion import anisotropic, process
from vbjax.diffusion.schedules import from_betas


class Alphas(NamedTuple):
    """α_1 … α_T, the shares of the variance that each step keeps."""

    alphas: tuple


class Skeleton(NamedTuple):
    """The edges of a graph with weights, its number of joints, β_1 … β_T, and m, the share of the graph's noise: one
    number, or one for each step.
    """

    edges: tuple
    joints: int
    betas: tuple
    mixing: float | tuple

    def adjacency(self) -> np.ndarray:
        """`(joints, joints)`, symmetric."""
        A = np.zeros((self.joints, self.joints))
        for a, b, weight in self.edges:
            A[a, b] = A[b, a] = weight
        return A


class Futures(NamedTuple):
    """K random futures of some frames and joints, a truth near one of them, and a skeleton's noise for latents."""

    count: int
    frames: int
    joints: int
    spread: float
    mixing: float
    seed: int

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """`(K, frames, joints, 3)` and the truth."""
        random = np.random.default_rng(self.seed)
        futures = self.spread * random.normal(size=(self.count, self.frames, self.joints, 3))
        return futures, futures[0] + 0.3 * self.spread * random.normal(size=futures.shape[1:])


TREE = Skeleton(((0, 1, 1.0), (1, 2, 1.0), (1, 3, 1.0), (3, 4, 1.0)), 5, (0.1, 0.2, 0.3, 0.2), 0.6)


def random_graph(random: np.random.Generator) -> Skeleton:
    """A weighted tree of three to eight joints, and with as good a chance a few cycles; one share for all steps."""
    joints = int(random.integers(3, 9))
    pairs = [(int(random.integers(j)), j) for j in range(1, joints)]
    if random.random() < 0.5:
        pairs += [(a, b) for b in range(joints) for a in range(b) if (a, b) not in pairs and random.random() < 0.3]
    edges = tuple((a, b, families.positive(random, 0.1, 10)) for a, b in pairs)
    return Skeleton(edges, joints, tuple(random.uniform(0.05, 0.4, 4)), random.uniform(0.2, 0.9))


def random_schedule(random: np.random.Generator) -> Skeleton:
    """The same with a share for each step."""
    return random_graph(random)._replace(mixing=families.positive(random, 0.01, 0.95, 4))


def schedule_of(case):
    """The library's schedule on the graph."""
    return anisotropic.anisotropic(from_betas(jnp.array(case.betas)), case.adjacency(), np.array(case.mixing))


def numpy_sigma_n(case):
    """Σ_N by its eigenvectors."""
    values, vectors = np.linalg.eigh(case.adjacency())
    return vectors * (values - values[0]) / (values[-1] - values[0]) @ vectors.T


def numpy_covariances(case):
    """Σ_t of each step, and Σ̄_t after it, by the recursion."""
    sigma, shares = numpy_sigma_n(case), np.broadcast_to(case.mixing, len(case.betas))
    white = np.eye(case.joints)
    steps = [beta * (m * sigma + (1 - m) * white) for beta, m in zip(case.betas, shares, strict=True)]
    totals = [np.zeros_like(sigma)]
    for beta, step in zip(case.betas, steps, strict=True):
        totals.append((1 - beta) * totals[-1] + step)
    return steps, totals[1:]


@entry(9)
def anisotropic_sigma_n():
    def lhs(case):
        sigma = anisotropic.skeleton_covariance(case.adjacency())
        return {"Σ_N": sigma, "its eigenvalues": np.linalg.eigvalsh(sigma)[[0, -1]]}

    def rhs(case):
        return {"Σ_N": numpy_sigma_n(case), "its eigenvalues": np.array([0.0, 1.0])}

    def laplacian(case):
        A = case.adjacency()
        L = np.diag(A.sum(1)) - A
        return {"Σ_N": L / np.linalg.eigvalsh(L)[-1], "its eigenvalues": np.array([0.0, 1.0])}

    return Identity(
        title="The skeleton's covariance has its eigenvalues between zero and one",
        statement=r"\Sigma_N = \frac{A - \lambda_{\min} I}{\lambda_{\max} - \lambda_{\min}}, \qquad "
        r"0 = \min \lambda(\Sigma_N) < \max \lambda(\Sigma_N) = 1",
        lecture="001",
        slide="Isotropic vs. Anisotropic Diffusion",
        kind="identity",
        instance=TREE,
        family=random_graph,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The graph's Laplacian in place of its adjacency.", rhs=laplacian),
        correction="The least eigenvalue is zero, so $\\Sigma_N$ alone is singular and $\\gamma_t$ must stay below "
        "one; without an edge it is 0/0. On trees its diagonal is one half.",
    )


@entry(9)
def anisotropic_recap_sqrt():
    def lhs(case):
        schedule = from_betas(1 - jnp.array(case.alphas))
        gamma = schedule.at(jnp.arange(schedule.steps + 1))
        scale = jax.vmap(lambda s, t: process.transition(jnp.array(0.0), s, t).scale)(gamma[:-1], gamma[1:])
        return {"variance given x_0": propagate(case, scale**2)}

    def propagate(case, noise):
        variance, rows = 0.0, []
        for alpha, added in zip(case.alphas, noise, strict=True):
            variance = alpha * variance + added
            rows.append(variance)
        return jnp.stack(rows)

    def rhs(case):
        return {"variance given x_0": 1 - np.cumprod(case.alphas)}

    def as_printed(case):
        return {"variance given x_0": propagate(case, (1 - jnp.array(case.alphas)) ** 2)}

    return Identity(
        title="The step adds noise of variance 1 - α, so of scale √(1 - α)",
        statement=r"x_t = \sqrt{\alpha_t}\, x_{t-1} + \sqrt{1 - \alpha_t}\, \varepsilon \quad \Rightarrow \quad "
        r"\mathrm{Var}(x_t \mid x_0) = 1 - \bar\alpha_t",
        lecture="001",
        slide="Recap: Isotropic Diffusion",
        kind="identity",
        instance=Alphas(alphas=(0.9, 0.8, 0.7)),
        family=lambda random: Alphas(random.uniform(0.5, 0.95, 4)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control(
            "The slide's $(1 - \\alpha_t)\\, \\varepsilon$, without the root.", lhs=as_printed, on_slide=True
        ),
        correction="The slide prints $(1 - \\alpha_t)\\, \\varepsilon$: a variance of $(1 - \\alpha_t)^2$, against its "
        "own $\\Sigma_t$. For a constant α such a chain tends to the variance 1 - α in place of 1.",
    )


@entry(9)
def anisotropic_forward_marginal():
    def lhs(case):
        schedule = schedule_of(case)
        return {f"Σ̄_{t}": schedule.covariance(t) for t in (1, len(case.betas))}

    def rhs(case):
        _, totals = numpy_covariances(case)
        return {f"Σ̄_{t}": totals[t - 1] for t in (1, len(case.betas))}

    def of_one_step(case):
        steps, _ = numpy_covariances(case)
        return {f"Σ̄_{t}": steps[t - 1] for t in (1, len(case.betas))}

    return Identity(
        title="The noise of many anisotropic steps",
        statement=r"\bar\Sigma_t = \alpha_t \bar\Sigma_{t-1} + \Sigma_t, \quad \Sigma_t = (1 - \alpha_t) "
        r"\left[\gamma_t \Sigma_N + (1 - \gamma_t) I\right] \;\Rightarrow\; \bar\Sigma_t = \tilde\gamma_t \Sigma_N + "
        r"(1 - \bar\alpha_t - \tilde\gamma_t) I",
        lecture="001",
        slide="Isotropic vs. Anisotropic Diffusion",
        kind="identity",
        instance=TREE._replace(mixing=(0.2, 0.8, 0.5, 0.6)),
        family=random_schedule,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The step's covariance is taken for the marginal's.", rhs=of_one_step),
        correction="On the slide $\\Sigma_t$ could be read as the covariance given $x_0$: it is that of one step.",
    )


@entry(9)
def anisotropic_posterior():
    def lhs(case):
        schedule, t = schedule_of(case), len(case.betas)
        x_t, x_0 = points(case)
        law = anisotropic.posterior(
            schedule.to_modes(jnp.array(x_t)), schedule.to_modes(jnp.array(x_0)), schedule.at(t - 1), schedule.at(t)
        )
        variance = anisotropic.posterior_variance(schedule.at(t - 1), schedule.at(t))
        covariance = (schedule.basis * variance[None]) @ schedule.basis.T
        return {"mean": schedule.to_joints(law.loc)[:, 0], "covariance": covariance}

    def points(case):
        j = np.arange(case.joints)[:, None]
        return np.cos(1.0 * j), np.sin(2.0 * j)

    def rhs(case):
        steps, totals = numpy_covariances(case)
        x_t, x_0 = points(case)
        alpha = 1 - case.betas[-1]
        kept = np.prod(1 - np.array(case.betas[:-1]))
        # precisions add: of x_{t-1} given x_0, and of x_t given x_{t-1}
        forward, before = np.linalg.inv(steps[-1]), np.linalg.inv(totals[-2])
        covariance = np.linalg.inv(alpha * forward + before)
        mean = covariance @ (np.sqrt(alpha) * forward @ x_t + np.sqrt(kept) * before @ x_0)
        return {"mean": mean[:, 0], "covariance": covariance}

    def isotropic(case):
        kept = np.cumprod(1 - np.array(case.betas))
        beta = (1 - kept[-2]) / (1 - kept[-1]) * case.betas[-1]
        return rhs(case) | {"covariance": beta * np.eye(case.joints)}

    return Identity(
        title="The posterior of an anisotropic step",
        statement=r"\mathrm{Cov}(x_{t-1} \mid x_t, x_0) = \Sigma_t \bar\Sigma_{t-1} \bar\Sigma_t^{-1}, \qquad "
        r"\text{mean} = \sqrt{\alpha_t}\, \bar\Sigma_{t-1} \bar\Sigma_t^{-1} x_t + "
        r"\sqrt{\bar\alpha_{t-1}}\, \Sigma_t \bar\Sigma_t^{-1} x_0",
        lecture="001",
        slide="Isotropic vs. Anisotropic Diffusion",
        kind="identity",
        instance=TREE._replace(mixing=(0.2, 0.8, 0.5, 0.6)),
        family=random_schedule,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("The isotropic $\\tilde\\beta_t I$.", rhs=isotropic),
        correction="Not on the slide, though training needs it. It has this form because all matrices commute.",
    )


@entry(9)
def anisotropic_terminal():
    def lhs(case):
        schedule = schedule_of(long(case))
        prior = schedule.prior((case.joints, 1)).scale[:, 0] ** 2
        return {
            "Σ̄_T": schedule.covariance(schedule.steps),
            "covariance of the prior": (schedule.basis * prior[None]) @ schedule.basis.T,
        }

    def long(case):
        return case._replace(betas=(0.1,) * 300)

    def rhs(case):
        limit = case.mixing * numpy_sigma_n(case) + (1 - case.mixing) * np.eye(case.joints)
        return {"Σ̄_T": limit, "covariance of the prior": limit}

    def white(case):
        return dict.fromkeys(("Σ̄_T", "covariance of the prior"), np.eye(case.joints))

    return Identity(
        title="Anisotropic diffusion does not end at white noise",
        statement=r"\gamma_t = \gamma: \qquad x_T \to \mathcal{N}\left(0,\, \gamma \Sigma_N + (1 - \gamma) I\right)",
        lecture="001",
        slide="Isotropic vs. Anisotropic Diffusion",
        kind="limit",
        instance=TREE,
        family=random_graph,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("Sampling starts from N(0, I), as on «Reverse Diffusion».", rhs=white, on_slide=True),
        correction="A sampler that starts from N(0, I), as the slide «Reverse Diffusion» has it, starts wrong here.",
    )


@entry(9)
def motion_prediction_data():
    """Past and future swapped is no answer to compare, but an error: `motion.conditional` refuses the shape."""

    def spectrum(case, mixing):
        """The widest variance of latents over the narrowest, of draws that have their law's covariance exactly."""
        adjacency = TREE._replace(mixing=mixing).adjacency()
        schedule = anisotropic.anisotropic(from_betas(jnp.array(TREE.betas)), adjacency, mixing)
        draws = np.random.default_rng(case.seed).normal(size=(50, TREE.joints))
        white = np.linalg.qr(draws - draws.mean(0))[0] * 50**0.5
        scale = schedule.prior((TREE.joints, 1)).scale[:, 0]
        latents = jax.vmap(schedule.to_joints)((jnp.array(white) * scale[None])[..., None])[..., 0]
        values = autoencoders.pca(latents, 0).eigenvalues
        return values[0] / values[-1]

    def lhs(case):
        futures, truth = map(jnp.array, case.draw())
        collapsed = jnp.broadcast_to(futures.mean(0)[None], futures.shape)
        best, alike = motion.best_of(futures, truth), motion.best_of(collapsed, truth)
        return {
            "APD": motion.diversity(futures),
            "ADE": best.average,
            "FDE": best.final,
            "APD, all futures alike": motion.diversity(collapsed),
            "ADE, all futures alike": alike.average,
            "gain of diversity in ADE, if any": jnp.maximum(alike.average - best.average, 0),
            "spectrum of anisotropic latents": spectrum(case, case.mixing),
            "spectrum of isotropic latents": spectrum(case, 0.0),
        }

    def sides(case, of_all):
        futures, truth = case.draw()
        pairs = [np.sqrt(((a - b) ** 2).sum()) for i, a in enumerate(futures) for j, b in enumerate(futures) if i != j]
        distances = [[np.linalg.norm(frame - true) for frame, true in zip(f, truth, strict=True)] for f in futures]
        best = of_all([np.mean(row) for row in distances])
        alike = np.mean([np.linalg.norm(frame - true) for frame, true in zip(futures.mean(0), truth, strict=True)])
        return {
            "APD": np.mean(pairs),
            "ADE": best,
            "FDE": of_all([row[-1] for row in distances]),
            "APD, all futures alike": 0.0,
            "ADE, all futures alike": alike,
            "gain of diversity in ADE, if any": alike - best,
            "spectrum of anisotropic latents": 1 / (1 - case.mixing),
            "spectrum of isotropic latents": 1.0,
        }

    def rhs(case):
        return sides(case, np.min)

    def mean_of_futures(case):
        return sides(case, np.mean)

    return Identity(
        title="Diversity and the best of K futures",
        statement=r"\mathrm{APD} = \frac{1}{K (K - 1)} \sum_{i \neq j} \|Y_i - Y_j\|, \qquad \mathrm{ADE} = "
        r"\min_k \frac{1}{F} \sum_{f} \|Y_{k, f} - Y_f\|, \qquad "
        r"\frac{\lambda_{\max}}{\lambda_{\min}}\left(\gamma \Sigma_N + (1 - \gamma) I\right) = \frac{1}{1 - \gamma}",
        lecture="001",
        slide="3D Human Motion Prediction",
        kind="claim",
        instance=Futures(count=8, frames=5, joints=5, spread=0.8, mixing=0.6, seed=1),
        family=lambda random: Futures(
            random.integers(3, 9),
            random.integers(2, 8),
            random.integers(5, 26),
            random.uniform(0.3, 1.5),
            random.uniform(0.4, 0.9),
            random.integers(2**31),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("The mean over the futures, where the best belongs.", rhs=mean_of_futures),
        correction="“Up to time T” and “from time T” both include T: the past is 1 … T, the future T + 1 … T + F. "
        "“Diverse yet realistic” is a picture; these are its two numbers: futures that are all the mean have no APD "
        "and the larger ADE.",
    )
