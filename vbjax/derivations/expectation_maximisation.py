"""Chapter 7, and EM of chapter 1: climbs that end where a closed form or another library ends.

Left sides ask `vbjax.em`, right sides scikit-learn and NumPy. Start with `em_monotone`.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax import bounds, em
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.distributions import Normal


class TwoClusters(NamedTuple):
    """Draws of two normal laws on the line: their means and scales, the first one's share, and EM's first means."""

    means: tuple
    scales: tuple
    share: float
    start: tuple
    count: int
    seed: int
    updates: int = 5

    def data(self) -> np.ndarray:
        """`(count, 1)`."""
        random = np.random.default_rng(self.seed)
        second = (random.random(self.count) > self.share).astype(int)
        return random.normal(np.array(self.means)[second], np.array(self.scales)[second])[:, None]


class Cloud(NamedTuple):
    """Draws of N(0, covariance) moved by a constant, and the width of the code."""

    covariance: tuple
    width: int
    count: int
    seed: int

    def data(self) -> np.ndarray:
        """`(count, d)`."""
        random = np.random.default_rng(self.seed)
        return 2 + random.normal(size=(self.count, len(self.covariance))) @ np.linalg.cholesky(self.covariance).T


def random_clusters(random: np.random.Generator) -> TwoClusters:
    """Clusters that overlap or do not, from a start between them."""
    return TwoClusters(
        means=(random.uniform(-3, -1), random.uniform(1, 3)),
        scales=(random.uniform(0.4, 1), random.uniform(0.4, 1)),
        share=random.uniform(0.3, 0.7),
        start=(random.uniform(-1.5, -0.5), random.uniform(0.5, 1.5)),
        count=80,
        seed=int(random.integers(2**31)),
    )


def random_cloud(random: np.random.Generator) -> Cloud:
    """Four coordinates, two of them wide: EM slows down where the third eigenvalue comes near the second."""
    axes, _ = np.linalg.qr(random.normal(size=(4, 4)))
    spectrum = (random.uniform(4, 6), random.uniform(2.5, 3.5), *random.uniform(0.2, 0.8, 2))
    covariance = tuple(map(tuple, axes * spectrum @ axes.T))
    return Cloud(covariance, 2, 60, int(random.integers(2**31)))


@entry(1)
def em_monotone():
    def answer(trace, gap, weights, means, variances):
        # a bound that is tight before the M-step rises no more than the likelihood does
        return {
            "largest fall of log p": np.maximum(-np.diff(trace), 0).max(),
            "log p - bound after the E-step": gap,
            "log p": trace[-1],
            "weights": weights,
            "means": means,
            "variances": variances,
        }

    def lhs(case):
        data, start = case.data(), jnp.array(case.start)[:, None]
        initial = em.MixtureModel(jnp.zeros(2), Normal(start, jnp.ones((2, 1))))
        family = em.spherical_gaussians(2, floor=1e-12)
        found = em.fit(jax.random.key(0), family, data, initial=initial, tolerance=0, max_iterations=case.updates)

        model = found.model

        def gap(x):
            q = model.posterior(x)
            weight = bounds.LogWeight(lambda z: model.likelihood(z).log_prob(x), model.prior, q)
            return model.log_prob(x) - q.probs @ jax.vmap(weight)(jnp.arange(2))

        largest = jnp.abs(jax.jit(jax.vmap(gap))(jnp.array(data))).max()
        variances = model.components.scale[:, 0] ** 2
        return answer(found.log_likelihood, largest, model.prior.probs, model.components.loc[:, 0], variances)

    def rhs(case):
        from sklearn.mixture import GaussianMixture

        data = case.data()
        mixture = GaussianMixture(
            2, covariance_type="spherical", reg_covar=0, tol=0, max_iter=case.updates, init_params="random",
            weights_init=(0.5, 0.5), means_init=np.array(case.start)[:, None], precisions_init=(1.0, 1.0),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few updates do not converge
            mixture.fit(data)
        trace = np.array([mixture.score(data)])
        found = answer(np.append(trace, trace), 0.0, mixture.weights_, mixture.means_[:, 0], mixture.covariances_)
        return found | {"largest fall of log p": 0.0}

    def shuffled(case):
        x = case.data()[:, 0]
        weights, means, variances = np.full(2, 0.5), np.array(case.start), np.ones(2)
        trace = []

        def joint_density():
            joint = weights * stats.norm.pdf(x[:, None], means, np.sqrt(variances))
            trace.append(np.log(joint.sum(1)).mean())
            return joint

        for _ in range(case.updates):
            joint = joint_density()
            share = np.roll(joint / joint.sum(1, keepdims=True), 1, 0)
            weights, means = share.mean(0), share.T @ x / share.sum(0)
            variances = np.sum(share * (x[:, None] - means) ** 2, 0) / share.sum(0)
        joint_density()
        return answer(np.array(trace), 0.0, weights, means, variances)

    return Identity(
        title="EM never lowers the likelihood",
        statement=r"q = p_\theta(z \mid x): \qquad \log p_{\theta'}(x) - \log p_\theta(x) \;\geq\; "
        r"\mathcal{L}(q, p_{\theta'}) - \mathcal{L}(q, p_\theta) \;\geq\; 0",
        lecture="000",
        slide="Special Case 1: Expectation Maximization",
        kind="behaviour",
        instance=TwoClusters((-2.0, 1.5), (0.7, 1.0), 0.6, (-1.0, 1.0), 120, 4),
        family=random_clusters,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("Each datum gets its neighbour's responsibilities.", rhs=shuffled),
        correction="“Increasing the lower bound always increases the marginal likelihood” is true only of a bound "
        "that was tight before the M-step; and it ends at a stationary point, not at the global maximum. Swapping "
        "the two *components* is a relabelling, and no control.",
    )


@entry(7)
def ppca_ml():
    def lhs(case):
        data = case.data()
        climbed = em.fit(jax.random.key(1), em.ppca(case.width), data, tolerance=0, max_iterations=2000)
        answer = {"largest fall of log p": np.maximum(-np.diff(climbed.log_likelihood), 0).max().round(9)}
        for name, model in (("EM", climbed.model), ("closed form", em.ppca_maximum(data, case.width))):
            answer |= {
                f"W Wᵀ, {name}": model.loadings @ model.loadings.T,
                f"σ², {name}": model.noise[0],
                f"log p, {name}": jax.vmap(model.log_prob)(jnp.array(data)).mean(),
            }
        return answer

    def sides(case, noise_of):
        from sklearn.decomposition import PCA

        data = case.data()
        share = 1 - 1 / len(data)  # scikit-learn divides by n - 1, maximum likelihood by n
        found = PCA(case.width).fit(data)
        noise = noise_of(np.linalg.eigvalsh(np.cov(data.T, ddof=0)))
        signal = found.explained_variance_ * share - noise
        outer = found.components_.T * signal @ found.components_
        log_p = stats.multivariate_normal(found.mean_, outer + noise * np.eye(len(outer))).logpdf(data).mean()
        answer = {"largest fall of log p": 0.0}
        for name in ("EM", "closed form"):
            answer |= {f"W Wᵀ, {name}": outer, f"σ², {name}": noise, f"log p, {name}": log_p}
        return answer

    def rhs(case):
        return sides(case, lambda eigenvalues: eigenvalues[: -case.width].mean())

    def all_eigenvalues(case):
        return sides(case, lambda eigenvalues: eigenvalues.mean())

    return Identity(
        title="Maximum likelihood of probabilistic PCA, by EM and in one step",
        statement=r"\sigma^2 = \frac{1}{D - k} \sum_{i > k} \lambda_i, \qquad "
        r"W = U_k (\Lambda_k - \sigma^2 I)^{1/2} R, \qquad R^\top R = I",
        lecture="000",
        slide="Note",
        kind="identity",
        instance=Cloud(
            covariance=((4.0, 1.0, 0.5, 0.0), (1.0, 2.5, -0.3, 0.2), (0.5, -0.3, 0.6, 0.1), (0.0, 0.2, 0.1, 0.4)),
            width=2,
            count=60,
            seed=3,
        ),
        family=random_cloud,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-5),
        control=Control("$\\sigma^2$ is the mean of all eigenvalues.", rhs=all_eigenvalues),
        correction="The slide names PPCA as an example of EM; it needs none, having this closed form.",
    )


@entry(7)
def kmeans_hard_em():
    def lhs(case):
        data, start = case.data(), jnp.array(case.start)[:, None]
        hard = em.k_means(jax.random.key(0), data, 2, initial=start)
        return {
            "centres, Lloyd": hard.centres[:, 0],
            "centres, soft": soft_centres(case, 1e-6),
            "J": hard.distortion[-1] * len(data),
            "largest rise of J": np.maximum(np.diff(hard.distortion), 0).max(),
        }

    def soft_centres(case, variance):
        start = jnp.array(case.start)[:, None]
        initial = em.MixtureModel(jnp.zeros(2), Normal(start, jnp.full((2, 1), variance**0.5)))
        family = em.soft_k_means(2, variance=variance)
        found = em.fit(jax.random.key(0), family, case.data(), initial=initial, tolerance=0, max_iterations=50)
        return found.model.components.loc[:, 0]

    def rhs(case):
        from sklearn.cluster import KMeans

        found = KMeans(2, init=np.array(case.start)[:, None], n_init=1, tol=0).fit(case.data())
        centres = found.cluster_centers_[:, 0]
        return {
            "centres, Lloyd": centres,
            "centres, soft": centres,
            "J": found.inertia_,
            "largest rise of J": 0.0,
        }

    def wide(case):
        return lhs(case) | {"centres, soft": soft_centres(case, 4.0)}

    return Identity(
        title="k-means is EM of equal spheres, in the limit of no variance",
        statement=r"\sigma^2 \to 0: \qquad p(z = k \mid x) \to 1\left[k = \arg\min_j \|x - \mu_j\|\right], \qquad "
        r"J = \sum_i \min_k \|x_i - \mu_k\|^2 \;\text{ never rises}",
        lecture="000",
        slide="Wrap-Up",
        kind="limit",
        instance=TwoClusters((-3.0, 2.0), (1.0, 1.0), 0.5, (-1.0, 1.0), 80, 2),
        family=random_clusters,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The soft algorithm with $\\sigma^2 = 4$.", lhs=wide),
        correction="The wrap-up lists k-means apart from EM; its “reconstruction loss” is that of a vector quantiser.",
    )
