"""Chapter 4: generative adversarial networks as games with known losses, values and gradients.

Left sides ask `vbjax.gan`, right sides scikit-learn and SciPy. Start with `gan_discriminator_bce`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special, stats
from scipy.spatial.distance import jensenshannon

from vbjax.derivations import families
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.oracles import central_difference
from vbjax.distributions import Categorical, Normal
from vbjax.gan.optimal import expected_discriminator_loss, optimal_discriminator
from vbjax.gan.values import discriminator_loss, generator_loss, minimax, non_saturating


class Logits(NamedTuple):
    """The discriminator's outputs on as many data as fakes."""

    real: tuple
    fake: tuple


class TwoNormals(NamedTuple):
    """The data's law and the generator's, as mean and scale, and points to look at."""

    data: tuple
    model: tuple
    at: tuple


class Masses(NamedTuple):
    """The data's law and the generator's on the same finite set."""

    data: tuple
    model: tuple


def random_masses(random: np.random.Generator) -> Masses:
    """Two laws, one of which may lack an outcome, or each another one."""
    laws = families.masses(random, 4, 2)
    for law, lacking in zip(laws, random.permutation(4)[: random.integers(3)], strict=False):
        law[lacking] = 0
    return Masses(*(laws / laws.sum(1, keepdims=True)))


class Affine(NamedTuple):
    """G(z) = shift + scale z, the logit D(x) = a + b x + c x², and latents and data."""

    generator: tuple
    discriminator: tuple
    latents: tuple
    data: tuple


@entry(4)
def gan_discriminator_bce():
    def lhs(case):
        real, fake = jnp.array(case.real), jnp.array(case.fake)
        sure = jnp.array([-800.0, 800.0])
        return {
            "J(D)": minimax.real(real).mean() + minimax.fake(fake).mean(),
            "J(D) where D is sure and wrong": minimax.real(sure[0]) + minimax.fake(sure[1]),
        }

    def rhs(case):
        from sklearn.metrics import log_loss

        labels = np.repeat([1, 0], len(case.real))
        probabilities = special.expit([*case.real, *case.fake])
        return {"J(D)": log_loss(labels, probabilities), "J(D) where D is sure and wrong": 800.0}

    def no_half(case):
        return {name: 2 * value for name, value in rhs(case).items()}

    return Identity(
        title="The discriminator's loss is a classifier's cross-entropy",
        statement=r"J^{(D)} = -\frac{1}{2} E_{\text{data}} \log D(x) - \frac{1}{2} E_z \log(1 - D(G(z))) = "
        r"\frac{1}{2} E\, \mathrm{sp}(-\ell) + \frac{1}{2} E\, \mathrm{sp}(\ell)",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="identity",
        instance=Logits(real=(1.2, -0.3, 2.5, 0.4), fake=(-0.9, 0.6, -2.2, 0.1)),
        family=lambda random: Logits(2 * random.normal(size=6), 2 * random.normal(size=6)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("Both terms without their half.", rhs=no_half),
        correction="Right as written; in floating point, log(1 - D) is minus infinity from a logit of 37 on, so the "
        "softplus of the logit is what to compute.",
    )


@entry(4)
def gan_optimal_discriminator():
    def lhs(case):
        data, model = (Normal(*map(jnp.array, law)) for law in (case.data, case.model))
        best = optimal_discriminator(minimax, data.log_prob, model.log_prob)
        return {"logit of D*": jax.vmap(best)(jnp.array(case.at))}

    def rhs(case):
        def pointwise(x):
            p, q = stats.norm.pdf(x, *case.data), stats.norm.pdf(x, *case.model)
            share = p / (p + q)

            def loss(logit):
                return share * np.logaddexp(0, -logit) + (1 - share) * np.logaddexp(0, logit)

            slope = 1e-5  # the root of its derivative is found to more digits than its minimum
            return optimize.brentq(lambda logit: loss(logit + slope) - loss(logit - slope), -40, 40, xtol=1e-12)

        return {"logit of D*": [pointwise(x) for x in case.at]}

    def fake_over_both(case):
        return {"logit of D*": -np.array(rhs(case)["logit of D*"])}

    return Identity(
        title="The best discriminator is a density ratio",
        statement=r"\arg\min_D J^{(D)}: \quad D^*(x) = \frac{p_{\text{data}}(x)}{p_{\text{data}}(x) + p_g(x)}, \qquad "
        r"\ell^*(x) = \log \frac{p_{\text{data}}(x)}{p_g(x)}",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="identity",
        instance=TwoNormals(data=(0.0, 1.0), model=(1.5, 0.8), at=(-0.5, 0.6, 1.4)),
        family=lambda random: TwoNormals(
            (random.normal(), random.uniform(0.7, 1.3)),
            (random.normal(), random.uniform(0.7, 1.3)),
            random.uniform(-1.5, 1.5, 3),
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-5),
        control=Control("The ratio of the fake's density to both.", rhs=fake_over_both),
        correction="Not written on the slide; without it “supervision by D” has no content.",
    )


def tables(case):
    """Both laws, with the points at which expectations are taken."""
    data, model = (Categorical.from_probs(jnp.array(law)) for law in (case.data, case.model))
    return data, model, data.nodes(1), model.nodes(1)


@entry(4)
def gan_value_jsd():
    def lhs(case):
        data, model, real, fake = tables(case)
        best = optimal_discriminator(minimax, data.log_prob, model.log_prob)
        return {"min J(D)": expected_discriminator_loss(minimax, best, real, fake)}

    def rhs(case):
        return {"min J(D)": np.log(2) - jensenshannon(case.data, case.model) ** 2}

    def goodfellow(case):
        return {"min J(D)": 2 * rhs(case)["min J(D)"]}

    return Identity(
        title="Against the best discriminator, the generator minimises the Jensen-Shannon divergence",
        statement=r"\min_D J^{(D)} = \log 2 - \mathrm{JSD}(p_{\text{data}} \,\|\, p_g)",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="identity",
        instance=Masses(data=(0.1, 0.5, 0.4, 0.0), model=(0.3, 0.3, 0.0, 0.4)),
        family=random_masses,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("Goodfellow's constants, $\\log 4 - 2\\, \\mathrm{JSD}$, for a J with halves.", rhs=goodfellow),
        correction="The slide's halves change the constants: $V = -2 J^{(D)}$ of the paper is $-\\log 4$ at the "
        "equilibrium. `scipy.spatial.distance.jensenshannon` returns the root of the divergence.",
    )


@entry(4)
def gan_zero_sum_saddle():
    def losses(case):
        random = np.random.default_rng(5)
        outputs = jnp.array(random.normal(size=(200, len(case.data))))
        others = jnp.array(random.dirichlet(np.ones(len(case.data)), 200))
        data, _, real, _ = tables(case)

        def value(logits, weights):
            return expected_discriminator_loss(minimax, lambda x: logits[x], real, real._replace(weights=weights))

        def best(weights):
            model = Categorical.from_probs(weights)
            return expected_discriminator_loss(
                minimax, optimal_discriminator(minimax, data.log_prob, model.log_prob), real,
                real._replace(weights=weights),
            )  # fmt: skip

        over_d = jax.vmap(lambda logits: value(logits, real.weights))(outputs)
        flat = jax.vmap(lambda weights: value(jnp.zeros(len(case.data)), weights))(others)
        return over_d, flat, jax.vmap(best)(others)

    def lhs(case):
        over_d, flat, best = jax.jit(lambda: losses(case))()
        log_2 = jnp.log(2.0)
        return {
            "J(D, data) below log 2 by": jnp.maximum(log_2 - over_d, 0).max(),
            "J(½, G) away from log 2 by": jnp.abs(flat - log_2).max(),
            "min J above log 2 by": jnp.maximum(best - log_2, 0).max(),
        }

    def rhs(case):
        names = ("J(D, data) below log 2 by", "J(½, G) away from log 2 by", "min J above log 2 by")
        return dict.fromkeys(names, 0.0)

    def joint_minimum(case):
        _, _, best = jax.jit(lambda: losses(case))()
        return lhs(case) | {"J(D, data) below log 2 by": jnp.maximum(jnp.log(2.0) - best, 0).max()}

    return Identity(
        title="The equilibrium is a saddle: no player gains alone, together they would",
        statement=r"J(D, p_{\text{data}}) \;\geq\; J(\tfrac{1}{2}, p_g) = \log 2 \;\geq\; \min_D J(D, p_g) \qquad "
        r"\text{for all } D,\, p_g",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="inequality",
        instance=Masses(data=(0.1, 0.5, 0.25, 0.15), model=(0.25, 0.25, 0.25, 0.25)),
        family=lambda random: Masses(*families.masses(random, 4, 2)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The equilibrium is a minimum over both players.", lhs=joint_minimum),
        correction="“Equilibrium is a saddle point” is one of *functions*. With parameters there may be none, and "
        "one that exists need not attract: see gan-gda-rotation.",
    )


@entry(4)
def gan_generator_goal():
    def parts(case):
        z, x = jnp.array(case.latents), jnp.array(case.data)

        def discriminator(x):
            a, b, c = case.discriminator
            return a + b * x + c * x**2

        return discriminator, z, x

    def lhs(case, stop=lambda x: x):
        discriminator, z, x = parts(case)

        def of_generator(theta):
            return jax.vmap(
                lambda z: generator_loss(minimax, discriminator, lambda z: stop(theta[0] + theta[1] * z), z)
            )(z).mean()

        def of_discriminator(theta):
            return jax.vmap(lambda x, z: discriminator_loss(minimax, discriminator, x, theta[0] + theta[1] * z))(
                x, z
            ).mean()

        theta = jnp.array(case.generator)
        return {
            "∂J(G)/∂θ": jax.grad(of_generator)(theta),
            "∂/∂θ of the discriminator's loss": jax.grad(of_discriminator)(theta),
        }

    def stopped(case):
        return lhs(case, stop=jax.lax.stop_gradient)

    def rhs(case):
        def loss(theta):
            x = theta[0] + theta[1] * np.array(case.latents)
            return -0.5 * np.logaddexp(0, np.polynomial.polynomial.polyval(x, case.discriminator)).mean()

        slope = central_difference(loss, np.array(case.generator))
        return {"∂J(G)/∂θ": slope, "∂/∂θ of the discriminator's loss": np.zeros(2)}

    return Identity(
        title="The generator learns through the discriminator's slope alone",
        statement=r"J^{(G)} = \frac{1}{2} E_z \log(1 - D(G_\theta(z))), \qquad \nabla_\theta J^{(G)} = "
        r"-\frac{1}{2} E_z\left[D(x)\, \nabla_x \ell(x)^\top \frac{\partial G_\theta(z)}{\partial \theta}\right]",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="claim",
        instance=Affine(
            generator=(-0.5, 0.8), discriminator=(0.3, 0.7, -0.4), latents=(-1.1, 0.2, 0.9), data=(1.5, 2.2, 1.8)
        ),
        family=lambda random: Affine(
            random.normal(size=2), random.normal(size=3), random.normal(size=3), random.normal(size=3)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-7),
        control=Control("The gradient is stopped at the fake.", lhs=stopped),
        correction="“Minimises the probability that D is correct” means its *logarithm*, on fakes; the data's term of "
        "$J^{(D)}$ has no gradient in the generator.",
    )


@entry(4)
def gan_nonsaturating():
    def lhs(case):
        logits = jnp.array(case.fake)
        return {game.name: jax.vmap(jax.grad(game.generator))(logits) for game in (minimax, non_saturating)}

    def rhs(case):
        logits = np.array(case.fake)
        return {"minimax": -special.expit(logits) / 2, "non_saturating": -special.expit(-logits) / 2}

    def equal(case):
        slope = rhs(case)["minimax"]
        return {"minimax": slope, "non_saturating": slope}

    return Identity(
        title="Where D is sure of a fake, only the non-saturating generator learns",
        statement=r"\frac{\partial}{\partial \ell}: \quad -\frac{1}{2} \sigma(\ell) \;\text{ (minimax)}, \qquad "
        r"-\frac{1}{2} (1 - \sigma(\ell)) \;\text{ (non-saturating)}, \qquad \text{ratio } e^{-\ell}",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="identity",
        instance=Logits(real=(), fake=(-4.0, -1.0, 0.0, 2.0)),
        family=lambda random: Logits((), 3 * random.normal(size=5)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("Both generators have the same gradient.", rhs=equal),
        correction="The slide has the saturating loss only, which hardly anyone trains; the fixed point is the same, "
        "the dynamics are not.",
    )
