"""Chapter 3: what the code of a variational auto-encoder is: its axes, its width, its levels and its length in bits.

Left sides ask the library, right sides NumPy and SciPy. Start with `linear_vae_ppca`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax import bounds, exact
from vbjax.derivations import families
from vbjax.derivations import linear_gaussian as lg
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.lower_bound import Discrete
from vbjax.derivations.optimum import maximise
from vbjax.distributions import Categorical, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence


class Principal(NamedTuple):
    """A sample covariance (1/N), the width of the code, and an angle by which to rotate the optimal weights."""

    covariance: tuple
    width: int
    angle: float


class Spectrum(NamedTuple):
    """Eigenvalues of the data's covariance, and the decoder's fixed noise variance."""

    eigenvalues: tuple
    noise_variance: float


def random_spectrum(random: np.random.Generator) -> Spectrum:
    """Two eigenvalues clearly above the noise and two below: at equality the optimum is flat to fourth order."""
    noise = random.uniform(0.3, 1)
    ratios = (*random.uniform(1.5, 4, 2), *random.uniform(0.1, 0.7, 2))
    return Spectrum(tuple(random.permutation(ratios) * noise), noise)


class TwoLevels(NamedTuple):
    """q(z₂), q(z₁|z₂), p(z₂), p(z₁|z₂), a row per z₂."""

    q_top: tuple
    q_bottom: tuple
    p_top: tuple
    p_bottom: tuple


@entry(3)
def linear_vae_ppca():
    def optimal_weights(case):
        """Maximum-likelihood PPCA from an eigendecomposition (Tipping & Bishop 1999), rotated by the angle."""
        values, vectors = np.linalg.eigh(np.array(case.covariance))
        k = case.width
        noise = values[:-k].mean()
        c, s = np.cos(case.angle), np.sin(case.angle)
        return vectors[:, -k:] @ np.diag(np.sqrt(values[-k:] - noise)) @ np.array([[c, -s], [s, c]]), noise

    def lhs(case):
        W, noise = (jnp.array(v) for v in optimal_weights(case))
        covariance = jnp.array(case.covariance)
        prior = Normal(jnp.zeros(case.width), jnp.ones(case.width))
        data = MultivariateNormal.from_covariance(jnp.zeros(len(covariance)), covariance).nodes(3)

        def bound(x, q):
            def decode(z):
                return Normal(W @ z, jnp.full(len(covariance), jnp.sqrt(noise)))

            points, weights, _ = q.nodes(3)
            return weights @ jax.vmap(lambda z: bounds.elbo(lambda z: decode(z).log_prob(x), q, prior, z).total)(points)

        def diagonal(params):
            def encode(x):
                return Normal(params["A"] @ x, jnp.exp(params["log scale"]))

            return data.weights @ jax.vmap(lambda x: bound(x, encode(x)))(data.points)

        def full(params):
            tril = jnp.diag(jnp.exp(params["log scale"])) + jnp.array([[0.0, 0.0], [1.0, 0.0]]) * params["off"]

            def encode(x):
                return MultivariateNormal(params["A"] @ x, tril)

            return data.weights @ jax.vmap(lambda x: bound(x, encode(x)))(data.points)

        start = {"A": jnp.zeros((case.width, len(covariance))), "log scale": jnp.zeros(case.width)}
        return {
            "best ELBO, full encoder": maximise(full, start | {"off": jnp.zeros(())})[0],
            "best ELBO, diagonal encoder": maximise(diagonal, start)[0],
        }

    def likelihood(case, scale=1.0):
        W, noise = optimal_weights(case._replace(covariance=tuple(map(tuple, scale * np.array(case.covariance)))))
        marginal = W @ W.T + noise * np.eye(len(W))
        fit = np.trace(np.linalg.solve(marginal, np.array(case.covariance)))
        evidence = -0.5 * (np.linalg.slogdet(2 * np.pi * marginal)[1] + fit)
        precision = np.eye(case.width) + W.T @ W / noise
        gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
        return {"best ELBO, full encoder": evidence, "best ELBO, diagonal encoder": evidence - gap}

    def rhs(case):
        return likelihood(case)

    def unbiased_covariance(case):
        return likelihood(case, scale=20 / 19)

    return Identity(
        title="A linear VAE is probabilistic PCA",
        statement=r"\max_\phi \mathcal{L} = \log p_{\text{PPCA}} - \frac{1}{2} \left(\sum_i \log \Pi_{ii} "
        r"- \log |\Pi|\right) \;\text{ (diagonal encoder)}, \qquad \Pi = I + W^\top W / \sigma^2",
        lecture="000",
        slide="Note",
        kind="identity",
        instance=Principal(
            covariance=((1.9, 0.4, -0.3, 0.1), (0.4, 1.1, 0.2, 0.0), (-0.3, 0.2, 0.7, 0.1), (0.1, 0.0, 0.1, 0.4)),
            width=2,
            angle=0.6,
        ),
        family=lambda random: Principal(families.covariance(random, 4), 2, random.uniform(0.2, 1.3)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-8),
        control=Control("The covariance with $1/(N-1)$ in place of $1/N$, for twenty data.", rhs=unbiased_covariance),
        correction="A gradient-trained bound can be tight without EM: a full encoder reaches the likelihood, "
        "a diagonal one does where $W^\\top W$ is diagonal.",
    )


@entry(3)
def latent_rotation_nonidentifiability():
    def evidence(model):
        likelihood = lg.log_likelihood(model)
        return jnp.log(exact.expectation(lg.prior(model), lambda z: jnp.exp(likelihood(z))).value)

    def transformed(model, matrix):
        return model._replace(weights=tuple(map(tuple, np.array(model.weights) @ matrix)))

    def lhs(model):
        c, s = np.cos(0.9), np.sin(0.9)
        return {"log p(x), rotated code": evidence(transformed(model, np.array([[c, -s], [s, c]])))}

    def rhs(model):
        return {"log p(x), rotated code": lg.numpy_log_evidence(model)}

    def sheared(model):
        return {"log p(x), rotated code": evidence(transformed(model, np.array([[1.0, 0.6], [0.0, 1.0]])))}

    return Identity(
        title="The axes of the code are not identified",
        statement=r"R^\top R = I: \qquad \mathcal{N}(\mu,\, (W R)(W R)^\top + \sigma^2 I) = "
        r"\mathcal{N}(\mu,\, W W^\top + \sigma^2 I)",
        lecture="001",
        slide="Autoencoder Overview",
        kind="identity",
        instance=LinearGaussian(),
        family=lg.random_model,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("A shear in place of the rotation.", lhs=sheared),
        correction="“Interpretable latent space” is not implied by the objective: every rotation of the code fits "
        "equally well, and only a diagonal encoder's gap prefers some axes.",
    )


@entry(3)
def latent_dimension_active_units():
    def lhs(case):
        values = jnp.array(case.eigenvalues)
        data = Normal(jnp.zeros(len(values)), jnp.sqrt(values))

        def log_likelihood(weights):
            model = Normal(data.loc, jnp.sqrt(weights**2 + case.noise_variance))
            return -kl_divergence(data, model) - data.entropy()

        _, weights = maximise(log_likelihood, jnp.full(len(values), 0.7))
        return {"|w|": jnp.abs(weights), "active units": jnp.sum(jnp.abs(weights) > 1e-3)}

    def rhs(case):
        weights = np.sqrt(np.maximum(np.array(case.eigenvalues) - case.noise_variance, 0))
        return {"|w|": weights, "active units": np.sum(np.array(case.eigenvalues) > case.noise_variance)}

    def all_active(case):
        return {
            "|w|": np.sqrt(np.abs(np.array(case.eigenvalues) - case.noise_variance)),
            "active units": len(case.eigenvalues),
        }

    return Identity(
        title="A linear VAE switches on the directions that rise above its noise",
        statement=r"\arg\max_{w_i}: \quad |w_i| = \sqrt{\max(\lambda_i - \sigma^2,\, 0)}, \qquad "
        r"\text{active} = \#\{i : \lambda_i > \sigma^2\}",
        lecture="000",
        slide="Some limitations of autoencoders",
        kind="claim",
        instance=Spectrum(eigenvalues=(3.5, 1.8, 0.9, 0.3), noise_variance=0.6),
        family=random_spectrum,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("Every direction is used.", rhs=all_active),
        correction="“How to choose the latent dimension?” is left open on the slide. For a linear model with fixed "
        "noise this is the answer; the other units collapse to the prior.",
    )


@entry(3)
def hierarchical_vae_elbo():
    def lhs(case):
        q_joint, p_joint = (
            jnp.array(np.array(top)[:, None] * np.array(bottom)).ravel()
            for top, bottom in ((case.q_top, case.q_bottom), (case.p_top, case.p_bottom))
        )
        return {"KL": kl_divergence(Categorical.from_probs(q_joint), Categorical.from_probs(p_joint))}

    def chain(case, weights):
        bottom = [stats.entropy(q, p) for q, p in zip(case.q_bottom, case.p_bottom, strict=True)]
        return {"KL": stats.entropy(case.q_top, case.p_top) + np.dot(weights, bottom)}

    def rhs(case):
        return chain(case, case.q_top)

    def under_the_prior(case):
        return chain(case, case.p_top)

    return Identity(
        title="A hierarchy's KL is a chain of KLs",
        statement=r"\mathrm{KL}\left(q(z_1, z_2) \,\|\, p(z_1, z_2)\right) = "
        r"\mathrm{KL}\left(q(z_2) \,\|\, p(z_2)\right) + "
        r"E_{q(z_2)}\left[\mathrm{KL}(q(z_1 \mid z_2) \,\|\, p(z_1 \mid z_2))\right]",
        lecture="000",
        slide="Faces produced by variational auto-encoders",
        kind="identity",
        instance=TwoLevels(
            q_top=(0.5, 0.2, 0.3),
            q_bottom=((0.6, 0.4), (0.1, 0.9), (0.7, 0.3)),
            p_top=(0.2, 0.4, 0.4),
            p_bottom=((0.5, 0.5), (0.3, 0.7), (0.2, 0.8)),
        ),
        family=lambda random: TwoLevels(
            families.masses(random, 3),
            families.masses(random, 2, 3),
            families.masses(random, 3),
            families.masses(random, 2, 3),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The lower level is averaged under p.", rhs=under_the_prior),
        correction="That hierarchies reach the quality of GANs is literature; it follows from no equation here.",
    )


@entry(3)
def bits_back_compression():
    def lhs(case):
        q, prior = (Categorical.from_probs(jnp.array(v)) for v in (case.q, case.prior))
        log_likelihood = jnp.log(jnp.array(case.likelihood))
        bound = exact.expectation(q, lambda z: bounds.elbo(lambda z: log_likelihood[z], q, prior, z).total).value
        return {"net bits": -bound / jnp.log(2.0)}

    def rhs(case):
        q, joint = np.array(case.q), np.array(case.prior) * np.array(case.likelihood)
        return {"net bits": -q @ np.log2(joint) - stats.entropy(q, base=2)}

    def bits_kept(case):
        joint = np.array(case.prior) * np.array(case.likelihood)
        return {"net bits": -np.array(case.q) @ np.log2(joint)}

    return Identity(
        title="The ELBO is a code length, once the bits are given back",
        statement=r"-E_q\left[\log_2 p(z)\right] - E_q\left[\log_2 p(x \mid z)\right] - H_2(q) = "
        r"-\frac{\mathcal{L}}{\log 2} \;\geq\; -\log_2 p(x)",
        lecture="000",
        slide="Why autoencoders?",
        kind="identity",
        instance=Discrete(prior=(0.45, 0.35, 0.2), likelihood=(0.5, 0.1, 0.8), q=(0.3, 0.2, 0.5)),
        family=lambda random: Discrete(
            families.masses(random, 3), families.likelihoods(random, 3), families.masses(random, 3)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The bits that chose z are not given back.", rhs=bits_kept),
        correction="Compression does not *require* a VAE: quantised codes with an entropy coder compress too. What the "
        "VAE adds is a prior, and hence a rate.",
    )
