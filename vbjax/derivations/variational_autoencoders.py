"""Chapter 3: the variational auto-encoder as an objective, a density and a sampler.

Left sides ask the library, right sides NumPy and SciPy. Start with `vae_objective`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax import bounds, exact
from vbjax.derivations import families
from vbjax.derivations import linear_gaussian as lg
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry, mean_estimate
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.oracles import central_difference
from vbjax.distributions import Categorical, Mixture, Normal
from vbjax.divergences import kl_divergence


class DiagonalDecoder(NamedTuple):
    """One datum, the decoder's mean and log-variance for it."""

    x: tuple
    mean: tuple
    log_variance: tuple


class Shrinking(NamedTuple):
    """Data on the line, and the standard deviations of a component that sits on the first of them."""

    data: tuple
    scales: tuple


class Encoder(NamedTuple):
    """Weights of the data, and the encoder's mean and standard deviation for each."""

    data: tuple
    means: tuple
    scales: tuple


class CurvedDecoder(NamedTuple):
    """x|z ~ N(a tanh(b z) + c z, scale²)."""

    a: float
    b: float
    c: float
    scale: float


class Masses(NamedTuple):
    """Two laws on the same finite set."""

    data: tuple
    model: tuple


@entry(3)
def vae_objective():
    def loss(model, q):
        prior, likelihood = lg.prior(model), lg.log_likelihood(model)
        points, weights, _ = q.nodes(3)
        terms = jax.vmap(lambda z: bounds.elbo(likelihood, q, prior, z))(points)
        return -weights @ terms.total

    def lhs(model):
        def value(mean, log_scale):
            return loss(model, Normal(mean, jnp.exp(log_scale)))

        mean, log_scale = jnp.array(model.q_mean), 0.5 * jnp.log(jnp.diag(jnp.array(model.q_covariance)))
        total, slopes = jax.jit(jax.value_and_grad(value, (0, 1)))(mean, log_scale)
        return {"loss": total, "∂/∂ mean": slopes[0], "∂/∂ log scale": slopes[1]}

    def numpy_loss(model, v, divide_kl=1):
        W, x = np.array(model.weights), np.array(model.observation)
        mean, variance = v[: len(v) // 2], np.exp(2 * v[len(v) // 2 :])
        square = np.sum((x - W @ mean - np.array(model.offset)) ** 2) + np.sum(W**2 @ variance)
        reconstruction = 0.5 * (square / model.noise_variance + len(x) * np.log(2 * np.pi * model.noise_variance))
        return reconstruction + 0.5 * np.sum(variance + mean**2 - 1 - np.log(variance)) / divide_kl

    def sides(model, divide_kl=1):
        k = len(model.q_mean)
        at = np.array([*model.q_mean, *(0.5 * np.log(np.diag(model.q_covariance)))])
        slopes = central_difference(lambda v: numpy_loss(model, v, divide_kl), at)
        return {"loss": numpy_loss(model, at, divide_kl), "∂/∂ mean": slopes[:k], "∂/∂ log scale": slopes[k:]}

    def rhs(model):
        return sides(model)

    def mean_reduced(model):
        return sides(model, divide_kl=len(model.q_mean))

    return Identity(
        title="The loss of a VAE: squared error over twice the variance, plus KL",
        statement=r"-\mathcal{L} = E_q\left[\frac{\|x - \mu_\theta(z)\|^2}{2 \sigma^2}\right] + "
        r"\frac{D}{2} \log 2 \pi \sigma^2 + \mathrm{KL}\left(q_\phi(z \mid x) \,\|\, p(z)\right)",
        lecture="001",
        slide="Variational Autoencoder",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The KL is averaged over the code's coordinates, not summed.", rhs=mean_reduced),
        correction="The loss pulls each *code's* law towards N(0, I); nothing guarantees it for their mixture. “Latent "
        "space is now a distribution” means that the code of one x is. And pixels in [0, 1] ask for a cross-entropy.",
    )


@entry(3)
def max_likelihood_is_forward_kl():
    def lhs(case):
        data, model = (Categorical.from_probs(jnp.array(v)) for v in case)
        return {"-E log p": exact.expectation(data, lambda x: -model.log_prob(x)).value}

    def rhs(case):
        return {"-E log p": stats.entropy(case.data) + stats.entropy(case.data, case.model)}

    def reverse(case):
        return {"-E log p": stats.entropy(case.data) + stats.entropy(case.model, case.data)}

    return Identity(
        title="Maximum likelihood minimises the forward KL",
        statement=r"-E_{p_{\text{data}}}\left[\log p_\theta(x)\right] = H(p_{\text{data}}) + "
        r"\mathrm{KL}\left(p_{\text{data}} \,\|\, p_\theta\right)",
        lecture="000",
        slide="Generative Model",
        kind="identity",
        instance=Masses(data=(0.15, 0.25, 0.2, 0.4), model=(0.3, 0.2, 0.35, 0.15)),
        family=lambda random: Masses(*families.masses(random, 4, 2)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The reverse divergence.", rhs=reverse),
        correction="Training p to “approximate” the data leaves the divergence open; a GAN takes another one.",
    )


@entry(3)
def vae_diagonal_decoder():
    def lhs(case):
        law = Normal(jnp.array(case.mean), jnp.exp(0.5 * jnp.array(case.log_variance)))
        return {"log p(x|z)": law.log_prob(jnp.array(case.x))}

    def rhs(case):
        return {"log p(x|z)": stats.norm.logpdf(case.x, case.mean, np.exp(0.5 * np.array(case.log_variance))).sum()}

    def scale_for_variance(case):
        return {"log p(x|z)": stats.norm.logpdf(case.x, case.mean, np.exp(np.array(case.log_variance))).sum()}

    return Identity(
        title="A decoder that predicts mean and variance",
        statement=r"\log p_\theta(x \mid z) = -\frac{1}{2} \sum_j \left[\log 2 \pi s_j^2(z) + "
        r"\frac{(x_j - \mu_j(z))^2}{s_j^2(z)}\right]",
        lecture="004",
        slide="Variational Autoencoder",
        kind="identity",
        instance=DiagonalDecoder(
            x=(0.4, -1.1, 0.9, 0.0), mean=(0.1, -0.6, 1.5, 0.3), log_variance=(-1.2, 0.4, -0.3, 0.9)
        ),
        family=lambda random: DiagonalDecoder(
            families.normals(random, 4), families.normals(random, 4), random.uniform(-60, 60, 4)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("$s^2$ where s belongs.", rhs=scale_for_variance),
        correction="Lectures 000 and 001 fix $\\sigma^2 I$ instead: two different models under one name. $\\Sigma^z$ "
        "is the encoder's output, not the decoder's.",
    )


@entry(3)
def vae_unbounded_likelihood():
    def lhs(case):
        data = jnp.array(case.data)

        def log_likelihood(scale):
            means, scales = jnp.stack([data[0], data.mean()]), jnp.stack([scale, jnp.array(1.0)])
            model = Mixture(jnp.zeros(2), Normal(means, scales))
            return jax.vmap(model.log_prob)(data).sum()

        coarse, fine = jax.jit(jax.vmap(log_likelihood))(jnp.array(case.scales))
        return {"slope in log s": (coarse - fine) / np.log(case.scales[0] / case.scales[1])}

    def rhs(case):
        return {"slope in log s": -1.0}

    def bounded(case):
        return {"slope in log s": 0.0}

    return Identity(
        title="A free decoder variance has no maximum likelihood",
        statement=r"s \to 0: \qquad \sum_i \log p_s(x_i) \;\geq\; \log P - \frac{1}{2} \log 2 \pi - \log s + "
        r"\mathrm{const} \;\to\; \infty",
        lecture="004",
        slide="Variational Autoencoder",
        kind="limit",
        instance=Shrinking(data=(0.2, 1.1, -0.9, 2.0), scales=(1e-6, 1e-8)),
        family=lambda random: Shrinking(random.normal(size=4), (1e-6, 1e-8)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-4),
        control=Control("The likelihood stays bounded.", rhs=bounded),
        correction="Not mentioned, though the slide predicts the variance: it needs a floor, or a fixed σ.",
    )


@entry(3)
def aggregate_posterior_kl():
    def lhs(case):
        prior = Normal(jnp.zeros(1), jnp.ones(1))
        means, scales = jnp.array(case.means)[:, None], jnp.array(case.scales)[:, None]
        divergences = jax.vmap(lambda m, s: kl_divergence(Normal(m, s), prior))(means, scales)
        return {"E KL(q(z|x)‖p)": jnp.array(case.data) @ divergences}

    def terms(case):
        z = np.linspace(-12, 12, 24001)
        step = z[1] - z[0]
        codes = stats.norm.pdf(z[:, None], case.means, case.scales)
        aggregate = codes @ np.array(case.data)
        log_ratio = stats.norm.logpdf(z[:, None], case.means, case.scales) - np.log(aggregate)[:, None]
        information = step * np.sum(codes * log_ratio @ np.array(case.data))
        return information, step * np.sum(aggregate * (np.log(aggregate) - stats.norm.logpdf(z)))

    def rhs(case):
        return {"E KL(q(z|x)‖p)": sum(terms(case))}

    def no_information(case):
        return {"E KL(q(z|x)‖p)": terms(case)[1]}

    return Identity(
        title="The KL term is information plus the aggregate's divergence",
        statement=r"E_x\left[\mathrm{KL}(q(z \mid x) \,\|\, p(z))\right] = I_q(x; z) + "
        r"\mathrm{KL}\left(q(z) \,\|\, p(z)\right), \qquad q(z) = E_x\left[q(z \mid x)\right]",
        lecture="001",
        slide="Variational Autoencoder",
        kind="identity",
        instance=Encoder(data=(0.3, 0.45, 0.25), means=(-0.8, 0.3, 1.6), scales=(0.6, 0.7, 0.4)),
        family=lambda random: Encoder(families.masses(random, 3), random.normal(size=3), random.uniform(0.3, 0.9, 3)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The information term is left out.", rhs=no_information, on_slide=True),
        correction="“Latent space close to a Gaussian” is the second term alone; the first is what a collapsed "
        "posterior gives up.",
    )


@entry(3)
def vae_ancestral_sampling():
    def sample(key, model, noise):
        key_code, key_noise = jax.random.split(key)
        draws = 100_000
        codes = lg.prior(model).sample(key_code, (draws,))
        means = codes @ jnp.array(model.weights).T + jnp.array(model.offset)[None]
        x = jax.vmap(lambda key, mean: Normal(mean, jnp.full_like(mean, noise)).sample(key))(
            jax.random.split(key_noise, draws), means
        )
        x = np.array(x)
        return {"E x": mean_estimate(x), "E x xᵀ": mean_estimate(x[:, :, None] * x[:, None, :])}

    def lhs(key, model):
        return sample(key, model, model.noise_variance**0.5)

    def rhs(model):
        offset = np.array(model.offset)
        return {"E x": offset, "E x xᵀ": lg.numpy_marginal_covariance(model) + np.outer(offset, offset)}

    def no_noise(key, model):
        return sample(key, model, 1e-12)

    return Identity(
        title="To sample from the model, sample the prior, then the decoder",
        statement=r"z \sim p(z),\; x \sim p_\theta(x \mid z) \quad \Rightarrow \quad x \sim p_\theta(x) = "
        r"\mathcal{N}(\mu,\, W W^\top + \sigma^2 I)",
        lecture="001",
        slide="Variational Autoencoder",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The decoder's mean is shown in place of a draw of it.", lhs=no_noise),
        correction="The codes come from the *prior*, where the slide says latent space. Showing $\\mu_\\theta(z)$ "
        "drops the noise: along a direction that W spans the eye hardly sees it, so all second moments are tested.",
    )


@entry(3)
def vae_normalised_density():
    def density(case, x):
        scale = jnp.array(case.scale)
        law = Normal(jnp.array(0.0), jnp.array(1.0))

        def likelihood(z):
            return jnp.exp(jax.vmap(Normal(case.a * jnp.tanh(case.b * z) + case.c * z, scale).log_prob)(x))

        return exact.expectation(law, likelihood, rtol=1e-9).value

    def lhs(case):
        x = np.linspace(-10, 10, 401)
        return {"∫ p(x) dx": np.sum(density(case, jnp.array(x))) * (x[1] - x[0])}

    def rhs(case):
        return {"∫ p(x) dx": 1.0}

    def squared_error(case):
        return {"∫ p(x) dx": np.sqrt(2 * np.pi) * case.scale}

    return Identity(
        title="A VAE defines a density, whatever its decoder",
        statement=r"\int p_\theta(x)\, dx = \int p(z) \int \mathcal{N}\left(x \mid \mu_\theta(z), \sigma^2 I\right) "
        r"dx\, dz = 1 \qquad (\sigma > 0)",
        lecture="000",
        slide="Faces produced by variational auto-encoders",
        kind="identity",
        instance=CurvedDecoder(a=1.5, b=1.2, c=0.4, scale=0.6),
        family=lambda random: CurvedDecoder(
            random.uniform(0.5, 2), random.uniform(0.5, 1.5), random.uniform(-0.5, 0.5), random.uniform(0.5, 0.9)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("$\\exp(-\\|x - \\mu\\|^2 / 2 \\sigma^2)$ without its normaliser.", rhs=squared_error),
    )
