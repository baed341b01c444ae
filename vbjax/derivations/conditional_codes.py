"""Chapter 8: class-conditional VAEs, the semi-supervised bound, and what codes can be added and interpolated to.

Left sides ask `vbjax.conditional` and `vbjax.latent_space`, right sides enumerate or integrate. Start with `cvae_elbo`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from vbjax import bounds, conditional, latent_space, linear_gaussian
from vbjax.conditional import CVAE
from vbjax.derivations import families
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry, mean_estimate
from vbjax.distributions import Categorical, Normal
from vbjax.divergences import kl_divergence


class Labelled(NamedTuple):
    """p(z), p(y), p(x|z,y) of the observed x with a row per class, and q(z|x,y) likewise, and q(y|x)."""

    prior: tuple
    classes: tuple
    likelihood: tuple
    q: tuple
    q_class: tuple


class StyleAndClass(NamedTuple):
    """x = ± shift/2 + z style + noise in the plane: two equally frequent classes, one style."""

    shift: tuple
    style: tuple
    noise_variance: float


class Sphere(NamedTuple):
    """Independent draws of N(0, I) in this dimension."""

    dimension: int


class Attributes(NamedTuple):
    """Two attributes as directions of the code, and how many codes stand for each concept."""

    first: tuple
    second: tuple
    count: int


def random_attributes(random: np.random.Generator) -> Attributes:
    """At angles from 90° to 30°: attributes that share a direction are mistaken for each other more often."""
    first, second = random.normal(size=(2, 3))
    angle = random.uniform(np.pi / 6, np.pi / 2)
    second -= second @ first / (first @ first) * first
    second = np.cos(angle) * first / np.linalg.norm(first) + np.sin(angle) * second / np.linalg.norm(second)
    return Attributes(first, random.uniform(0.7, 2) * second, random.choice([1, 3, 10, 100]))


def random_labelled(random: np.random.Generator) -> Labelled:
    """Three codes, two classes, likelihoods of one x."""
    return Labelled(
        families.masses(random, 3),
        families.masses(random, 2),
        families.masses(random, 3, 2),
        families.masses(random, 3, 2),
        families.masses(random, 2),
    )


def exact_bounds(case):
    """The CVAE's bound on log p(x|y) for each class, summed over q's codes."""
    tables = jnp.array(case.likelihood), jnp.array(case.q)
    cvae = CVAE(
        Categorical.from_probs(jnp.array(case.prior)),
        lambda x, y: Categorical.from_probs(tables[1][y]),
        lambda z, y: Categorical(jnp.stack([jnp.log(tables[0][y, z]), jnp.log1p(-tables[0][y, z])])),
    )

    def bound(y):
        vae = conditional.given(cvae, y)
        q = vae.encode(jnp.array(0))
        terms = jax.vmap(lambda z: bounds.elbo(lambda z: vae.decode(z).log_prob(0), q, vae.prior, z).total)
        return tables[1][y] @ terms(jnp.arange(len(case.prior)))

    return jax.vmap(bound)(jnp.arange(len(case.classes)))


def numpy_bounds(case):
    """The same by the sum of q log(joint / q)."""
    joint = np.array(case.prior) * np.array(case.likelihood)
    return np.sum(np.array(case.q) * np.log(joint / np.array(case.q)), 1)


@entry(8)
def cvae_elbo():
    def lhs(case, wrong=False):
        joint = np.array(case.prior) * np.array(case.likelihood)
        posterior = jnp.array(joint / joint.sum(1, keepdims=True))
        divergences = jax.vmap(lambda q, p: kl_divergence(Categorical.from_probs(q), Categorical.from_probs(p)))
        return {
            "bound + KL": exact_bounds(case) + divergences(jnp.array(case.q), posterior[::-1] if wrong else posterior)
        }

    def rhs(case):
        return {"bound + KL": np.log(np.array(case.likelihood) @ np.array(case.prior))}

    def other_label(case):
        return lhs(case, wrong=True)

    return Identity(
        title="The bound of a class-conditional VAE is the bound, class by class",
        statement=r"\log p(x \mid y) = E_q\left[\log p(x \mid z, y)\right] - \mathrm{KL}\left(q(z \mid x, y) \,\|\, "
        r"p(z)\right) + \mathrm{KL}\left(q(z \mid x, y) \,\|\, p(z \mid x, y)\right)",
        lecture="000",
        slide="Class conditional VAEs",
        kind="identity",
        instance=Labelled(
            prior=(0.5, 0.3, 0.2),
            classes=(0.6, 0.4),
            likelihood=((0.7, 0.2, 0.4), (0.1, 0.5, 0.6)),
            q=((0.6, 0.1, 0.3), (0.2, 0.5, 0.3)),
            q_class=(0.7, 0.3),
        ),
        family=random_labelled,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The divergence is from the posterior of the other label.", lhs=other_label),
        correction="The label enters the encoder *and* the decoder. That the prior is p(z), not p(z|y), is an "
        "assumption: z is independent of y.",
    )


@entry(8)
def semi_supervised_m2_bound():
    def answer(case, bound):
        likelihood, prior = np.array(case.likelihood), np.array(case.prior)
        joint = np.array(case.classes) * (likelihood @ prior)
        tight = case._replace(q=prior * likelihood / (likelihood @ prior)[:, None], q_class=joint / joint.sum())
        return {"bound": bound(case), "bound at the posterior": bound(tight)}

    def library_bound(case):
        q = Categorical.from_probs(jnp.array(case.q_class))
        return conditional.over_classes(q, exact_bounds(case) + jnp.log(jnp.array(case.classes)))

    def lhs(case):
        return answer(case, lambda case: library_bound(case).total)

    def minus_entropy(case):
        return answer(case, lambda case: library_bound(case).labelled - library_bound(case).entropy)

    def rhs(case):
        labelled = numpy_bounds(case) + np.log(case.classes)
        evidence = np.log(np.array(case.classes) @ np.array(case.likelihood) @ np.array(case.prior))
        return {
            "bound": np.dot(case.q_class, labelled) + stats.entropy(case.q_class),
            "bound at the posterior": evidence,
        }

    return Identity(
        title="Without its label, a datum is bounded by the mean over labels plus an entropy",
        statement=r"\log p(x) \;\geq\; \sum_y q(y \mid x) \left[\mathcal{L}(x, y) + \log p(y)\right] + "
        r"H\left(q(y \mid x)\right), \qquad \text{tight at the posterior}",
        lecture="000",
        slide="Class conditional VAEs",
        kind="inequality",
        instance=Labelled(
            prior=(0.5, 0.3, 0.2),
            classes=(0.6, 0.4),
            likelihood=((0.7, 0.2, 0.4), (0.1, 0.5, 0.6)),
            q=((0.6, 0.1, 0.3), (0.2, 0.5, 0.3)),
            q_class=(0.7, 0.3),
        ),
        family=random_labelled,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The entropy is subtracted.", lhs=minus_entropy),
        correction="The slide cites the paper and gives no formula; this is its bound for data without a label.",
    )


@entry(8)
def cvae_style_content():
    def sides(case, label_in_encoder):
        shift, style = np.array(case.shift), np.array(case.style)
        centres = jnp.array([-shift / 2, shift / 2])
        model = linear_gaussian.LinearVAE(
            weights=jnp.array(style)[:, None], offset=jnp.zeros(2), noise_variance=jnp.array(case.noise_variance)
        )
        cvae = CVAE(
            model.prior,
            lambda x, y: model.posterior(x - centres[y] if label_in_encoder else x),
            lambda z, y: Normal(model.decode(z).mean() + centres[y], jnp.full(2, case.noise_variance**0.5)),
        )
        # the style, and the noise of x
        points, weights, _ = Normal(jnp.zeros(3), jnp.ones(3)).nodes(3)

        def moments(y):
            x = points[:, :1] * jnp.array(style) + case.noise_variance**0.5 * points[:, 1:]
            codes = jax.vmap(lambda x: cvae.encode(x + centres[y], y).mean()[0])(x)
            return jnp.stack([weights @ codes, weights @ codes**2, weights @ (codes * points[:, 0])])

        (low, low_square, low_product), (high, high_square, high_product) = moments(0), moments(1)
        spread = jnp.sqrt((low_square + high_square) / 2 - ((low + high) / 2) ** 2)
        drawn = latent_space.analogies(cvae, jnp.array([0.3, -0.4]), 1, classes=2)
        return {
            "corr(z, y)": (high - low) / 2 / spread,
            "corr(z, style)": (low_product + high_product) / 2 / spread,
            "analogy": drawn[1] - drawn[0],
        }

    def lhs(case):
        return sides(case, True)

    def label_hidden(case):
        return sides(case, False)

    def rhs(case):
        signal = np.dot(case.style, case.style)
        kept = np.sqrt(signal / (signal + case.noise_variance))
        return {"corr(z, y)": 0.0, "corr(z, style)": kept, "analogy": np.array(case.shift)}

    return Identity(
        title="Given the class, the code is left with the style",
        statement=r"x = \mu_y + w s + \varepsilon: \quad \mathrm{corr}\left(E[z \mid x, y],\, y\right) = 0, \quad "
        r"\mathrm{corr}\left(E[z \mid x, y],\, s\right) = \frac{\|w\|}{\sqrt{\|w\|^2 + \sigma^2}}, \qquad "
        r"d(z, 1) - d(z, 0) = \mu_1 - \mu_0 \;\text{ for every } z",
        lecture="000",
        slide="Class-conditional VAE",
        kind="claim",
        instance=StyleAndClass(shift=(2.0, 0.6), style=(0.4, 0.9), noise_variance=0.1),
        family=lambda random: StyleAndClass(
            random.uniform(0.5, 2, 2), random.uniform(0.3, 1, 2), random.uniform(0.05, 0.5)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The encoder does not see the label, and the code takes the class up.", lhs=label_hidden),
        correction="“If we're lucky” is right in general; in this linear case it is not luck but algebra. It needs "
        "the label in the encoder, and a style that is independent of the class.",
    )


@entry(8)
def latent_interpolation():
    def squares(key, case, along_sphere):
        draws = 10_000
        a, b = jax.random.normal(key, (2, draws, case.dimension))
        half = jnp.array(0.5)

        def norms(interpolate):
            middle = jax.vmap(lambda a, b: interpolate(a, b, half))(a, b)
            return mean_estimate(np.array(jnp.sum(middle**2, 1)))

        return {"E‖·‖², straight": norms(along_sphere), "E‖·‖², great circle": norms(latent_space.spherical)}

    def lhs(key, case):
        return squares(key, case, latent_space.linear)

    def stays_on_the_shell(key, case):
        return squares(key, case, latent_space.spherical)

    def rhs(case):
        d = case.dimension
        # ‖(a+b)/(2 cos ω/2)‖² with independent lengths and angle; E 1/(1 + cos ω) = (d-2)/(d-3)
        share = (d - 2) / (d - 3)
        mean_length = np.sqrt(2) * np.exp(special.gammaln((d + 1) / 2) - special.gammaln(d / 2))
        return {"E‖·‖², straight": d / 2, "E‖·‖², great circle": d * share + mean_length**2 * (1 - share)}

    return Identity(
        title="Half-way between two codes there are no codes",
        statement=r"a, b \sim \mathcal{N}(0, I_d): \quad E\left\|\tfrac{a + b}{2}\right\|^2 = \frac{d}{2}, \qquad "
        r"E\|\mathrm{slerp}\|^2 = d\, \frac{d - 2}{d - 3} - \frac{m_d^2}{d - 3} \approx d, \qquad m_d = E\|a\|",
        lecture="000",
        slide="Latent Space Interpolations",
        kind="identity",
        instance=Sphere(dimension=32),
        family=lambda random: Sphere(random.integers(8, 80)),
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("The straight line stays on the shell as well.", lhs=stays_on_the_shell, on_slide=True),
        correction="The slides interpolate along straight lines, which leave the shell of radius $\\sqrt{d}$ where "
        "the prior has its mass.",
    )


@entry(8)
def latent_arithmetic():
    def sides(key, case, combine):
        first, second = (jnp.array(v) for v in (case.first, case.second))
        # smiling women, women, men; the answer should be smiling men
        means = jnp.stack([first + second, second, jnp.zeros_like(first)])
        codes = means[None, :, None] + jax.random.normal(key, (10_000, 3, case.count, len(case.first)))
        values = np.array(jax.jit(jax.vmap(lambda groups: combine(*groups)))(codes))
        centred = values - np.array(first)
        smiling, woman = np.linalg.pinv(np.stack([case.first, case.second], 1)) @ values.T
        return {
            "mean": mean_estimate(values),
            "variance": mean_estimate((centred**2).mean(1)),
            "hits: smiling and a man": share((smiling > 0.5) & (woman < 0.5)),
        }

    def share(hits):
        """A frequency, whose error is never taken for zero: where all hit, one miss in as many draws."""
        found = mean_estimate(hits)
        return found._replace(standard_error=jnp.maximum(found.standard_error, 1 / len(hits)))

    def lhs(key, case):
        return sides(key, case, lambda a, b, c: latent_space.arithmetic(a, b, c).value)

    def one_sign(key, case):
        return sides(key, case, lambda a, b, c: latent_space.arithmetic(a, -b, c).value)

    def rhs(case):
        dual = np.linalg.pinv(np.stack([case.first, case.second], 1))
        law = stats.multivariate_normal([1, 0], 3 / case.count * dual @ dual.T)
        miss = law.cdf([0.5, 0.5])  # of the first attribute alone
        return {
            "mean": case.first,
            "variance": 3 / case.count,
            "hits: smiling and a man": stats.norm.cdf(0.5, 0, law.cov[1, 1] ** 0.5) - miss,
        }

    return Identity(
        title="Attributes add, and averages make them stable",
        statement=r"\bar z_{\text{smiling woman}} - \bar z_{\text{woman}} + \bar z_{\text{man}} \sim "
        r"\mathcal{N}\left(z_{\text{smiling man}},\, \tfrac{3}{n} I\right)",
        lecture="004",
        slide="Vector Math",
        kind="claim",
        instance=Attributes(first=(1.5, 0.2, 0.0), second=(-0.3, 1.2, 0.5), count=5),
        family=random_attributes,
        lhs=lhs,
        rhs=rhs,
        test=Statistical(),
        control=Control("A sign is wrong: the woman is added, not taken away.", lhs=one_sign),
        correction="The slide leaves the signs out, and one code for each concept has three times the noise of a "
        "code: hence the averages. That attributes are additive is an assumption on the model.",
    )
