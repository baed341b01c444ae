"""Chapter 6: what the codes of auto-encoders know, and what decoding noise or removing it amounts to.

Left sides ask `vbjax.autoencoders`, right sides integrate and enumerate. Start with `denoising_ae_score`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax import autoencoders
from vbjax.derivations import families
from vbjax.derivations.identity import Agreement, AtMost, Control, Identity, Statistical, entry, mean_estimate
from vbjax.distributions import Categorical, Mixture, Normal
from vbjax.divergences import kl_divergence


class Clusters(NamedTuple):
    """Two clusters at ± a centre, with normal noise."""

    centre: tuple
    scale: float
    count: int
    seed: int

    def data(self) -> np.ndarray:
        """`(2 count, 2)`, as many in each cluster."""
        random = np.random.default_rng(self.seed)
        signs = np.repeat([1.0, -1.0], self.count)[:, None]
        return signs * np.array(self.centre) + self.scale * random.normal(size=(2 * self.count, 2))


class Channel(NamedTuple):
    """p(x), and the encoder's and the decoder's tables, a row per input."""

    data: tuple
    encoder: tuple
    decoder: tuple


class Noisy(NamedTuple):
    """A mixture of two normal laws by weights, means and scales, the noise's scale, and noisy points."""

    weights: tuple
    means: tuple
    scales: tuple
    noise: float
    at: tuple


@entry(6)
def ae_not_generative():
    def to_cluster(case, x):
        centres = np.array([case.centre, case.centre])
        centres[1] *= -1
        return np.sqrt(((x[:, None] - centres) ** 2).sum(-1)).min(1)

    def distances(key, case, from_codes):
        draws = 20_000
        data = jnp.array(case.data())
        pair = autoencoders.pca(data, 1).autoencoder
        key_noise, key_code = jax.random.split(key)
        noise = jax.random.normal(key_noise, (draws, 1))
        codes = jax.vmap(pair.encode)(data)[jax.random.randint(key_code, (draws,), 0, len(data))]
        decoded = {"from N(0, I)": codes if from_codes else noise, "from codes of data": codes}
        return {
            name: mean_estimate(to_cluster(case, np.array(jax.vmap(pair.decode)(z)))) for name, z in decoded.items()
        }

    def lhs(key, case):
        return distances(key, case, False)

    def as_good_as_codes(key, case):
        return distances(key, case, True)

    def rhs(case):
        data = case.data()
        _, _, axes = np.linalg.svd(data - data.mean(0), full_matrices=False)
        direction = axes[0]
        z = np.linspace(-9, 9, 4001)
        from_noise = stats.norm.pdf(z) @ to_cluster(case, data.mean(0) + z[:, None] * direction) * (z[1] - z[0])
        codes = (data - data.mean(0)) @ direction
        from_codes = to_cluster(case, data.mean(0) + codes[:, None] * direction).mean()
        return {"from N(0, I)": from_noise, "from codes of data": from_codes}

    return Identity(
        title="Decoding noise is not generating",
        statement=r"z \sim \mathcal{N}(0, I):\; E\, \mathrm{dist}(d(z), \text{data}) \gg "
        r"E\, \mathrm{dist}(d(e(x)), \text{data})",
        lecture="001",
        slide="Autoencoders",
        kind="claim",
        instance=Clusters(centre=(3.0, 1.0), scale=0.05, count=100, seed=5),
        family=lambda random: Clusters(
            random.uniform(1.5, 3, 2), random.uniform(0.03, 0.1), 100, random.integers(2**31)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("Decoded noise is as near to the data as decoded codes.", lhs=as_good_as_codes, on_slide=True),
        correction="Lecture 001 decodes a “random” vector as a basic generative model, lecture 000 lists that a plain "
        "auto-encoder has no p(x) among its limitations. The second is right; a density fitted to the codes repairs "
        "it.",
    )


@entry(6)
def ae_embedding_sufficiency():
    def joint(case, *tables):
        law = np.diag(case.data)
        for table in tables:
            law = law @ np.array(table)
        return law

    def information(law):
        product = np.outer(law.sum(1), law.sum(0))
        return kl_divergence(Categorical.from_probs(jnp.array(law.ravel())), Categorical.from_probs(
            jnp.array(product.ravel())))  # fmt: skip

    def lhs(case):
        return {"I(x; x′)": information(joint(case, case.encoder, case.decoder))}

    def rhs(case):
        law = joint(case, case.encoder)
        return {"I(x; x′)": stats.entropy(law.ravel(), np.outer(law.sum(1), law.sum(0)).ravel())}

    def everything(case):
        return {"I(x; x′)": information(np.diag(case.data) + 1e-300)}

    return Identity(
        title="A reconstruction knows no more of x than its code",
        statement=r"x \to h \to x': \qquad I(x; x') \;\leq\; I(x; h) \;\leq\; H(x)",
        lecture="003",
        slide="Auto encoder",
        kind="inequality",
        instance=Channel(
            data=(0.3, 0.25, 0.2, 0.25),
            encoder=((0.9, 0.1), (0.7, 0.3), (0.2, 0.8), (0.1, 0.9)),
            decoder=((0.5, 0.3, 0.1, 0.1), (0.1, 0.1, 0.3, 0.5)),
        ),
        family=lambda random: Channel(
            families.masses(random, 4), families.masses(random, 2, 4), families.masses(random, 4, 2)
        ),
        lhs=lhs,
        rhs=rhs,
        test=AtMost(1e-12),
        control=Control("The reconstruction contains all of x: $I = H(x)$.", lhs=everything, on_slide=True),
        correction="“The information needed to recreate the full x′” is true of x′, being a function of the code, and "
        "says nothing of x.",
    )


@entry(6)
def denoising_ae_score():
    def lhs(case):
        law = Mixture(jnp.log(jnp.array(case.weights)), Normal(jnp.array(case.means), jnp.array(case.scales)))
        denoise = autoencoders.optimal_denoiser(autoencoders.smoothed(law, case.noise).log_prob, case.noise)
        score = autoencoders.denoiser_score(denoise, case.noise)
        at = jnp.array(case.at)
        return {"E[x|x̃]": jax.vmap(denoise)(at), "(E[x|x̃] - x̃) / σ²": jax.vmap(score)(at)}

    def density(case, x, noise):
        return stats.norm.pdf(x[:, None], case.means, np.hypot(case.scales, noise)) @ np.array(case.weights)

    def sides(case, noise_of_score):
        at, x = np.array(case.at), np.linspace(-12, 12, 8001)
        joint = density(case, x, 0.0) * stats.norm.pdf(at[:, None], x, case.noise)
        h = 1e-5
        score = (np.log(density(case, at + h, noise_of_score)) - np.log(density(case, at - h, noise_of_score))) / (
            2 * h
        )
        return {"E[x|x̃]": joint @ x / joint.sum(1), "(E[x|x̃] - x̃) / σ²": score}

    def rhs(case):
        return sides(case, case.noise)

    def clean_score(case):
        return sides(case, 0.0)

    return Identity(
        title="The best denoiser knows the score of the noisy data",
        statement=r"r^*(\tilde x) = E[x \mid \tilde x], \qquad \frac{r^*(\tilde x) - \tilde x}{\sigma^2} = "
        r"\nabla \log p_\sigma(\tilde x)",
        lecture="002",
        slide="Stacked (Denoising) Autoencoder",
        kind="identity",
        instance=Noisy(weights=(0.4, 0.6), means=(-1.0, 1.2), scales=(0.3, 0.5), noise=0.6, at=(-0.8, 0.1, 1.9)),
        family=lambda random: Noisy(
            families.masses(random, 2),
            random.uniform(-2, 2, 2),
            random.uniform(0.3, 0.8, 2),
            random.uniform(0.2, 1),
            random.uniform(-2, 2, 3),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The score of the clean density.", rhs=clean_score),
        correction="The slide only names the denoising auto-encoder; this is what it learns, and what diffusion uses.",
    )
