"""Chapter 4: generative adversarial networks as games with known values, gradients and dynamics.

Left sides ask `vbjax.gan`, right sides scikit-learn, SciPy and small matrices. Start with `gan_discriminator_bce`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special, stats
from scipy.spatial.distance import jensenshannon

from vbjax import em
from vbjax.derivations import families
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.oracles import central_difference
from vbjax.distributions import Categorical, Laplace, Normal
from vbjax.gan.games import Players, Point, alternating, extragradient, simultaneous, trajectory
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


class Affine(NamedTuple):
    """G(z) = shift + scale z, the logit D(x) = a + b x + c x², and latents and data."""

    generator: tuple
    discriminator: tuple
    latents: tuple
    data: tuple


class Steps(NamedTuple):
    """A learning rate and a number of steps."""

    rate: float
    count: int


class Target(NamedTuple):
    """Mean and scale of the data, and of the generator at the start."""

    data: tuple
    start: tuple


class Numbers(NamedTuple):
    """An odd number of data on the line."""

    data: tuple


class Pushforward(NamedTuple):
    """A matrix from latents to data, a latent, and two noise scales."""

    matrix: tuple
    latent: tuple
    scales: tuple


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
        family=lambda random: Masses(*families.masses(random, 4, 2)),
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


@entry(4)
def gan_gda_rotation():
    methods = (simultaneous, alternating, extragradient)

    def square_of(name):
        return f"‖(x, y)‖², {name}"

    def lhs(case):
        bilinear = Players(generator=lambda x, y: x * y, discriminator=lambda x, y: -x * y)
        start = Point(jnp.array(1.0), jnp.array(0.5))
        answer = {}
        for method in methods:
            path = trajectory(method, bilinear, start, rate=case.rate, steps=case.count)
            answer[square_of(method.name)] = path.generator[-1] ** 2 + path.discriminator[-1] ** 2
        return answer

    def rhs(case):
        h, start = case.rate, np.array([1.0, 0.5])
        simultaneous_map = np.array([[1, -h], [h, 1]])
        maps = {
            "simultaneous": simultaneous_map,
            "alternating": np.array([[1 - h**2, -h], [h, 1]]),  # the discriminator goes first
            "extragradient": np.eye(2) + np.array([[0, -h], [h, 0]]) @ simultaneous_map,
        }
        return {
            square_of(name): np.sum((np.linalg.matrix_power(m, case.count) @ start) ** 2) for name, m in maps.items()
        }

    def gradient_flow(case):
        return rhs(case) | {square_of("simultaneous"): 1.25}

    return Identity(
        title="Simultaneous gradient steps spiral away from the saddle",
        statement=r"\min_x \max_y\, xy: \qquad \|(x, y)_{t+1}\|^2 = (1 + \eta^2)\, \|(x, y)_t\|^2; \qquad "
        r"\text{alternating: bounded}; \qquad \text{extragradient: } 1 - \eta^2 + \eta^4",
        lecture="001",
        slide="GANs: Loss Functions",
        kind="behaviour",
        instance=Steps(rate=0.1, count=100),
        family=lambda random: Steps(random.uniform(0.02, 0.3), random.integers(20, 150)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("The steps circle like the flow that they approximate.", rhs=gradient_flow),
        correction="“Equilibrium is saddle point” does not say that it is reached: the usual algorithm leaves it.",
    )


@entry(4)
def gan_toy_training():
    def train(case, steps_of_d):
        nodes = Normal(jnp.array(0.0), jnp.array(1.0)).nodes(24)

        def logit(phi):
            return lambda x: phi[0] + phi[1] * x + phi[2] * x**2

        def point(theta, z):
            return theta[0] + jnp.exp(theta[1]) * z

        def of_discriminator(phi, theta):
            data = jax.vmap(lambda z: case.data[0] + case.data[1] * z)(nodes.points)
            fake = jax.vmap(lambda z: point(theta, z))(nodes.points)
            real, model = nodes._replace(points=data), nodes._replace(points=fake)
            return expected_discriminator_loss(minimax, logit(phi), real, model)

        def of_generator(theta, phi):
            losses = jax.vmap(lambda z: generator_loss(non_saturating, logit(phi), lambda z: point(theta, z), z))(
                nodes.points
            )
            return nodes.weights @ losses

        def step(players, rate):
            theta, phi = players
            for _ in range(steps_of_d):
                phi = phi - 0.3 * jax.grad(of_discriminator)(phi, theta)
            return (theta - rate * jax.grad(of_generator)(theta, phi), phi), None

        start = jnp.array([case.start[0], np.log(case.start[1])]), jnp.array([0.0, 0.3, 0.0])
        rates = 0.2 / (1 + jnp.arange(3000) / 300)
        (theta, _), _ = jax.lax.scan(step, start, rates)
        return {"mean": theta[0], "scale": jnp.exp(theta[1])}

    def lhs(case):
        return jax.jit(lambda: train(case, 5))()

    def frozen(case):
        return jax.jit(lambda: train(case, 0))()

    def rhs(case):
        return {"mean": case.data[0], "scale": case.data[1]}

    return Identity(
        title="A GAN in which both players can win finds the data's law",
        statement=r"G(z) = m + s z, \quad \ell(x) = a + b x + c x^2: \qquad (m, s) \to (\mu, \sigma)",
        lecture="001",
        slide="Generative Adversarial Networks",
        kind="behaviour",
        instance=Target(data=(1.0, 0.5), start=(-0.5, 1.0)),
        family=lambda random: Target((random.uniform(-1, 1), random.uniform(0.4, 1)), (random.uniform(-1, 1), 1.2)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-2),
        control=Control("The discriminator stays as it began.", lhs=frozen),
    )


@entry(4)
def l2_mean_l1_median():
    def lhs(case):
        data = np.array(case.data)

        def best(law):
            loss = jax.jit(lambda c: -jax.vmap(law(c).log_prob)(jnp.array(data)).sum())
            return optimize.minimize_scalar(
                lambda c: float(loss(c)), bounds=(data.min(), data.max()), method="bounded", options={"xatol": 1e-9}
            ).x  # fmt: skip

        one = jnp.array(1.0)
        return {
            "normal": best(lambda c: Normal(jnp.asarray(c), one)),
            "Laplace": best(lambda c: Laplace(jnp.asarray(c), one)),
        }

    def rhs(case):
        return {"normal": np.mean(case.data), "Laplace": np.median(case.data)}

    def swapped(case):
        return {"normal": np.median(case.data), "Laplace": np.mean(case.data)}

    return Identity(
        title="Squared error asks for the mean, absolute error for the median",
        statement=r"\arg\min_c \sum_i (x_i - c)^2 = \bar x, \qquad \arg\min_c \sum_i |x_i - c| = \mathrm{median}(x)",
        lecture="001",
        slide="Decoder as Generative Model",
        kind="identity",
        instance=Numbers(data=(0.0, 1.0, 1.5, 4.0, 9.0)),
        family=lambda random: Numbers(random.gamma(1.0, 2.0, 7)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The two are swapped.", rhs=swapped),
        correction="“L2 distributes error equally” is not so: it weighs large errors by their square. That “the mean "
        "is optimal” is right, for codes that say nothing about x.",
    )


@entry(4)
def gan_implicit_density():
    def lhs(case):
        matrix, z = jnp.array(case.matrix), jnp.array(case.latent)

        def log_density(scale):
            noise = jnp.full(len(matrix), scale**2)
            return em.FactorModel(jnp.zeros(len(matrix)), matrix, noise).log_prob(matrix @ z)

        coarse, fine = case.scales
        return {"slope of log p in log σ": (log_density(coarse) - log_density(fine)) / np.log(coarse / fine)}

    def rhs(case):
        return {"slope of log p in log σ": np.linalg.matrix_rank(case.matrix) - len(case.matrix)}

    def has_a_density(case):
        return {"slope of log p in log σ": 0.0}

    return Identity(
        title="A generator has samples and no density",
        statement=r"x = G(z),\; \dim z < \dim x: \qquad \log p_\sigma(G(z)) \sim -(\dim x - \mathrm{rank}\, G')\, "
        r"\log \sigma \to \infty \quad (\sigma \to 0)",
        lecture="002",
        slide="Generative Adversarial Net",
        kind="claim",
        instance=Pushforward(
            matrix=((0.9, -0.4), (0.3, 1.1), (-0.5, 0.6), (0.2, 0.7)), latent=(0.4, -0.7), scales=(1e-2, 1e-3)
        ),
        family=lambda random: Pushforward(
            np.eye(4, 2) + 0.3 * random.normal(size=(4, 2)), random.normal(size=2), (1e-2, 1e-3)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-3),
        control=Control("Like a VAE's decoder, it has a finite density.", rhs=has_a_density, on_slide=True),
        correction="“Like VAE decoder” is true of the network only: a VAE's decoder is the mean of a density, the "
        "generator's output is the sample itself.",
    )
