"""Chapter 4: what adversarial training does to a generator, and what a generator is.

Left sides ask `vbjax.gan`, `vbjax.em` and `vbjax.autoencoders`, right sides SciPy and small matrices. Start with
`gan_gda_rotation`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from vbjax import em
from vbjax.derivations.autoencoders import Layers, image_ranks, numpy_tanh_network, tanh_network
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.distributions import Laplace, Normal
from vbjax.gan.games import Players, Point, alternating, extragradient, simultaneous, trajectory
from vbjax.gan.optimal import expected_discriminator_loss
from vbjax.gan.values import generator_loss, minimax, non_saturating


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
        correction="“Equilibrium is saddle point” does not say that it is reached: simultaneous steps leave it and "
        "alternating ones circle it.",
    )


@entry(4)
def gan_toy_training():
    """Both players follow expectations, by Gauss' rule, so no seed and no miss; the lecture's samples only add noise.

    Targets farther off are found as well, after more steps: the players orbit the equilibrium before they reach it.
    """

    def train(case, steps_of_d):
        nodes = Normal(jnp.array(0.0), jnp.array(1.0)).nodes(16)

        def logit(phi):
            return lambda x: phi[0] + phi[1] * (x / 2) + phi[2] * (x / 2) ** 2

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
                phi = phi - 1.5 * jax.grad(of_discriminator)(phi, theta)
            return (theta - rate * jax.grad(of_generator)(theta, phi), phi), None

        start = jnp.array([case.start[0], np.log(case.start[1])]), jnp.array([0.0, 0.3, 0.0])
        rates = 0.05 / (1 + jnp.arange(4000) / 1000)
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
        instance=Target(data=(2.0, 0.5), start=(-1.0, 1.0)),
        family=lambda random: Target((random.uniform(-2, 2), random.uniform(0.4, 1.2)), (random.uniform(-1, 1), 1.0)),
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
    """Beside the ranks, the density that noise of scale σ gives the generator, to first order around a latent."""
    scales = (1e-4, 1e-5)

    def lhs(case):
        generate = tanh_network([jnp.array(w) for w in case.weights()])
        z = jnp.array(case.inputs()[0])
        x, slope = generate(z), jax.jacfwd(generate)(z)

        def log_density(scale):
            return em.FactorModel(x, slope, jnp.full(len(x), scale**2)).log_prob(x)

        coarse, fine = scales
        rise = (log_density(coarse) - log_density(fine)) / np.log(coarse / fine)
        return image_ranks(case, generate) | {"slope of log p in log σ": rise}

    def rhs(case):
        generate = numpy_tanh_network(case.weights())
        z = case.inputs()[0]
        steps = 1e-5 * np.eye(len(z))
        jacobian = np.stack([(generate(z + h) - generate(z - h)) / 2e-5 for h in steps], 1)
        samples = np.stack([generate(2 * z) for z in case.inputs()])
        return answer(case, np.linalg.matrix_rank(jacobian, tol=1e-7), np.linalg.matrix_rank(samples, tol=1e-7))

    def answer(case, rank, span):
        return {"near a point": rank, "altogether": span, "slope of log p in log σ": rank - case.widths[-1]}

    def has_a_density(case):
        return answer(case, case.widths[-1], case.widths[-1])

    return Identity(
        title="A generator has samples and no density",
        statement=r"x = G(z),\; \dim z < \dim x: \qquad \mathrm{rank}\, G' \leq \dim z, \qquad "
        r"\log p_\sigma(G(z)) \sim -(\dim x - \mathrm{rank}\, G')\, \log \sigma \to \infty \quad (\sigma \to 0)",
        lecture="002",
        slide="Generative Adversarial Net",
        kind="claim",
        instance=Layers(widths=(2, 16, 10), seed=6, count=60),
        family=lambda random: Layers((2, 16, 10), random.integers(2**31), 60),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-4),
        control=Control(
            "Like a VAE's decoder, it has a density on all of the data's space.", rhs=has_a_density, on_slide=True
        ),
        correction="“Like VAE decoder” is true of the network only: a VAE's decoder is the mean of a density, the "
        "generator's output is the sample itself. Samples may span all of the space all the same.",
    )
