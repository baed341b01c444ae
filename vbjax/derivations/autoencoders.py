"""Chapter 6: auto-encoders, what PCA has to do with them, and what they are not.

Left sides ask `vbjax.autoencoders`, right sides NumPy's SVD, finite differences and quadrature. Start with
`linear_autoencoder_pca`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import autoencoders
from vbjax.autoencoders import Autoencoder
from vbjax.derivations.identity import Agreement, Control, Identity, entry
from vbjax.derivations.optimum import maximise
from vbjax.derivations.oracles import central_difference


class Points(NamedTuple):
    """Normal draws with these scales along random axes, moved off the origin, and the width of the code."""

    scales: tuple
    width: int
    count: int
    seed: int

    def data(self) -> np.ndarray:
        """`(count, d)`."""
        random = np.random.default_rng(self.seed)
        d = len(self.scales)
        axes, _ = np.linalg.qr(random.normal(size=(d, d)))
        return 3 + random.normal(size=(self.count, d)) * np.array(self.scales) @ axes.T


class Layers(NamedTuple):
    """Widths of a network's layers, and the seed of its weights and inputs."""

    widths: tuple
    seed: int
    count: int = 6

    def weights(self) -> list[np.ndarray]:
        """A matrix for each layer, of size one."""
        random = np.random.default_rng(self.seed)
        pairs = zip(self.widths[1:], self.widths[:-1], strict=True)
        return [random.normal(size=pair) / pair[1] ** 0.5 for pair in pairs]

    def inputs(self) -> np.ndarray:
        """`(count, widths[0])`."""
        return np.random.default_rng((self.seed, 1)).normal(size=(self.count, self.widths[0]))


class Arc(NamedTuple):
    """Points at equal steps of angle on an arc of the unit circle, at least twenty."""

    angle: float
    count: int


def random_points(random: np.random.Generator) -> Points:
    """Five coordinates whose spectrum falls by at least a fifth at each step."""
    scales = tuple(4 * np.cumprod(random.uniform(0.4, 0.8, 5)))
    return Points(scales, int(random.integers(1, 5)), int(random.integers(8, 60)), int(random.integers(2**31)))


def centred_tail(data, width):
    """Mean squared distance to the best affine subspace, by the singular values of the centred data."""
    singular = np.linalg.svd(data - data.mean(0), compute_uv=False)
    return np.sum(singular[width:] ** 2) / len(data)


def tanh_network(matrices):
    """x -> the network's output: tanh after every layer but the last."""

    def apply(x):
        for matrix in matrices[:-1]:
            x = jnp.tanh(matrix @ x)
        return matrices[-1] @ x

    return apply


def numpy_tanh_network(matrices):
    """The same in NumPy."""

    def apply(x):
        for matrix in matrices[:-1]:
            x = np.tanh(matrix @ x)
        return matrices[-1] @ x

    return apply


def image_ranks(case, decode):
    """Of the image near a point, and of a cloud of decoded codes: directions with any variance."""
    codes = jnp.array(case.inputs())
    near = codes[:1] + 1e-4 * codes
    local = autoencoders.pca(jax.vmap(decode)(near), 0).eigenvalues
    cloud = autoencoders.pca(jax.vmap(decode)(2 * codes), 0).eigenvalues
    # curvature adds a relative 1e-8 locally; rounding 1e-15 globally
    return {"near a point": jnp.sum(local > 1e-6 * local[0]), "altogether": jnp.sum(cloud > 1e-12 * cloud[0])}


@entry(6)
def autoencoder_reconstruction_loss():
    def lhs(case):
        half = len(case.widths) // 2
        x = jnp.array(case.inputs())

        def loss(weights):
            pair = Autoencoder(tanh_network(weights[:half]), tanh_network(weights[half:]))
            return jax.vmap(lambda x: autoencoders.reconstruction_error(pair, x))(x).sum()

        total, slopes = jax.jit(jax.value_and_grad(loss))([jnp.array(w) for w in case.weights()])
        return {"L": total} | {f"∂L/∂W{i}": slope for i, slope in enumerate(slopes)}

    def sides(case, reduce):
        half = len(case.widths) // 2
        weights, x = case.weights(), case.inputs()

        def loss(weights):
            total = 0.0
            for row in x:
                hidden = row
                for i, matrix in enumerate(weights):
                    hidden = matrix @ hidden
                    if i not in (half - 1, len(weights) - 1):
                        hidden = np.tanh(hidden)
                total += reduce((hidden - row) ** 2)
            return total

        def slope(i):
            def at(flat):
                return loss([*weights[:i], flat.reshape(weights[i].shape), *weights[i + 1 :]])

            return central_difference(at, weights[i].ravel()).reshape(weights[i].shape)

        return {"L": loss(weights)} | {f"∂L/∂W{i}": slope(i) for i in range(len(weights))}

    def rhs(case):
        return sides(case, np.sum)

    def mean_over_features(case):
        return sides(case, np.mean)

    return Identity(
        title="An auto-encoder is regression of the data on themselves",
        statement=r"L(\phi, \theta) = \sum_i \|d_\theta(e_\phi(x_i)) - x_i\|^2",
        lecture="000",
        slide="Auto-encoders",
        kind="identity",
        instance=Layers(widths=(4, 3, 2, 3, 4), seed=1),
        family=lambda random: Layers((4, 3, 2, 3, 4), random.integers(2**31)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The mean over the features, where the sum belongs.", rhs=mean_over_features),
        correction="One θ stands for both networks; they share nothing. No label enters, so “train with no labels” "
        "is regression with the input as its own label.",
    )


@entry(6)
def linear_autoencoder_pca():
    def lhs(case):
        data = jnp.array(case.data())
        best = autoencoders.pca(data, case.width)
        random = np.random.default_rng(0)
        d = data.shape[1]

        def negative_loss(params):
            pair = autoencoders.linear(params["E"], params["W"], params["offset"])
            return -jax.vmap(lambda x: autoencoders.reconstruction_error(pair, x))(data).mean()

        start = {
            "E": jnp.array(random.normal(size=(case.width, d))),
            "W": jnp.array(random.normal(size=(d, case.width))),
            "offset": jnp.zeros(d),
        }
        least, found = maximise(negative_loss, start)
        angle = autoencoders.largest_principal_angle(found["W"], best.components.T)
        return {"least loss, by gradients": -least, "least loss, PCA": best.loss, "angle of the subspaces": angle}

    def rhs(case):
        tail = centred_tail(case.data(), case.width)
        return {"least loss, by gradients": tail, "least loss, PCA": tail, "angle of the subspaces": 0.0}

    def uncentred(case):
        data = case.data()
        tail = np.sum(np.linalg.svd(data, compute_uv=False)[case.width :] ** 2) / len(data)
        return {"least loss, by gradients": tail, "least loss, PCA": tail, "angle of the subspaces": 0.0}

    return Identity(
        title="A linear auto-encoder finds the principal subspace",
        statement=r"\min_{E, W, b} \frac{1}{n} \sum_i \|W E (x_i - b) + b - x_i\|^2 = \sum_{j > k} \lambda_j, \qquad "
        r"\mathrm{span}\, W = \mathrm{span}\, U_k",
        lecture="000",
        slide="Auto-encoders",
        kind="identity",
        instance=Points(scales=(3.0, 2.0, 1.0, 0.5), width=2, count=40, seed=2),
        family=random_points,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-6),
        control=Control("The data are not centred, and the layers have no bias.", rhs=uncentred),
        correction="“1 linear layer: PCA” holds for the *subspace*: not for axes, order or scales, any invertible "
        "mixing of the codes being as good, and only for centred data or layers with a bias.",
    )


@entry(6)
def autoencoder_bottleneck():
    def lhs(case):
        data = case.data()
        d = data.shape[1]
        wide = jnp.concatenate([jnp.eye(d), jnp.ones((2, d))])
        identity = autoencoders.linear(wide, jnp.linalg.pinv(wide), jnp.zeros(d))
        losses = jnp.stack([autoencoders.pca(data, k).loss for k in range(d + 1)])
        overcomplete = jax.vmap(lambda x: autoencoders.reconstruction_error(identity, x))(jnp.array(data)).mean()
        return {"least loss, k codes": losses, "loss, d + 2 codes": overcomplete}

    def rhs(case):
        data = case.data()
        return {
            "least loss, k codes": [centred_tail(data, k) for k in range(data.shape[1] + 1)],
            "loss, d + 2 codes": 0.0,
        }

    def never_trivial(case):
        losses = rhs(case)["least loss, k codes"]
        return {"least loss, k codes": [*losses[:-1], losses[-2]], "loss, d + 2 codes": losses[-2]}

    return Identity(
        title="Without a bottleneck the identity is optimal",
        statement=r"\min L_0 > \min L_1 > \dots > \min L_r = 0, \qquad r = \mathrm{rank}",
        lecture="000",
        slide="Auto-encoders",
        kind="inequality",
        instance=Points(scales=(3.0, 2.0, 1.0, 0.5), width=2, count=40, seed=2),
        family=random_points,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("As many codes as coordinates still lose something.", rhs=never_trivial),
        correction="A bottleneck is one way to make it non-trivial; lecture 002 adds sparsity, and noise is another.",
    )


@entry(6)
def decoder_manifold():
    def lhs(case):
        return image_ranks(case, tanh_network([jnp.array(w) for w in case.weights()]))

    def rhs(case):
        decode = numpy_tanh_network(case.weights())
        z = case.inputs()[0]
        steps = 1e-5 * np.eye(len(z))
        jacobian = np.stack([(decode(z + h) - decode(z - h)) / 2e-5 for h in steps])
        cloud = np.stack([decode(2 * z) for z in case.inputs()])
        return {
            "near a point": np.linalg.matrix_rank(jacobian, tol=1e-7),
            "altogether": np.linalg.matrix_rank(cloud - cloud.mean(0), tol=1e-7),
        }

    def linear_decoder(case):
        first, last = (jnp.array(w) for w in case.weights())
        return image_ranks(case, lambda z: last @ first @ z)

    return Identity(
        title="The decoder's image is a curved surface of the code's dimension",
        statement=r"\dim \left(\text{tangent of } d(\mathbb{R}^k) \text{ at } d(z)\right) = "
        r"\mathrm{rank} \frac{\partial d}{\partial z} \leq k, \qquad \text{while } d(\mathbb{R}^k) \text{ may span } "
        r"\mathbb{R}^D",
        lecture="000",
        slide="Deep auto-encoders",
        kind="identity",
        instance=Layers(widths=(2, 16, 10), seed=4, count=60),
        family=lambda random: Layers((2, 16, 10), random.integers(2**31), 60),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("A linear decoder: its image is the tangent.", lhs=linear_decoder),
        correction="“Manifold” asks for a decoder that is injective and of full rank; nothing in training does.",
    )


@entry(6)
def nonlinear_ae_vs_pca():
    def points(case):
        angles = (np.arange(case.count) + 0.5) * case.angle / case.count
        return np.stack([np.cos(angles), np.sin(angles)], -1)

    def trained(x, count=6):
        """The loss of count curved pieces in the code and back, at the end of BFGS."""
        random = np.random.default_rng(1)
        shapes = {"A": (count, 2), "D": (2, count), "d": (2,)} | dict.fromkeys("aBCc", (count,))
        start = {name: jnp.array(random.normal(size=shape)) for name, shape in shapes.items()}

        def loss(p):
            def encode(x):
                return p["B"] @ jnp.tanh(p["A"] @ x + p["a"])

            def decode(z):
                return p["D"] @ jnp.tanh(p["C"] * z + p["c"]) + p["d"]

            return jax.vmap(lambda x: autoencoders.reconstruction_error(Autoencoder(encode, decode), x))(x).mean()

        return -maximise(lambda p: -loss(p), start)[0]

    def lhs(case):
        x = jnp.array(points(case))
        angle = Autoencoder(lambda x: jnp.arctan2(x[1], x[0]), lambda a: jnp.stack([jnp.cos(a), jnp.sin(a)]))
        curved = jax.vmap(lambda x: autoencoders.reconstruction_error(angle, x))(x).mean()
        linear = autoencoders.pca(x, 1).loss
        excess = jnp.maximum(trained(x[:: len(x) // 20]) - 0.1 * linear, 0)
        return {"one linear code": linear, "one angle": curved, "a trained code, above a tenth by": excess}

    def rhs(case):
        n, a = case.count, case.angle
        h = a / n
        # sums of sines and cosines at midpoints are closed: Σ e^{i m θ} is geometric
        first = (np.exp(1j * a) - 1) / (2j * n * np.sin(h / 2))
        second = (np.exp(2j * a) - 1) / (2j * n * np.sin(h))
        # the covariance of the plane as (trace, deviator): its smaller eigenvalue is their difference, halved
        trace, deviator = 1 - abs(first) ** 2, abs(second - first**2)
        return {"one linear code": (trace - deviator) / 2, "one angle": 0.0, "a trained code, above a tenth by": 0.0}

    def no_better(case):
        loss = rhs(case)["one linear code"]
        return {"one linear code": loss, "one angle": loss, "a trained code, above a tenth by": 0.9 * loss}

    return Identity(
        title="One curved code can do what one linear code cannot",
        statement=r"x = (\cos a, \sin a): \qquad \min_{\text{linear}} L = \lambda_2 > 0, \qquad "
        r"\min_{\text{nonlinear}} L = 0",
        lecture="000",
        slide="Deep auto-encoders",
        kind="claim",
        instance=Arc(angle=5.0, count=200),
        family=lambda random: Arc(random.uniform(2, 6), random.integers(20, 300)),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-10),
        control=Control("A nonlinear code loses as much as PCA.", rhs=no_better),
        correction="“More powerful” is about what can be represented, and the angle shows it; that training finds it "
        "is another matter, and on a closed circle no continuous code of one dimension can.",
    )


@entry(6)
def recurrent_and_stacked_ae():
    """The stack only: that a recurrent auto-encoder can be trained to copy is an experiment, with no second side."""

    def losses(case, mix):
        data = jnp.array(case.data())
        width = case.width
        first = autoencoders.pca(data, width + 1)
        codes = jax.vmap(first.autoencoder.encode)(data)
        second = autoencoders.pca(codes, width)
        stack = Autoencoder(
            lambda x: second.autoencoder.encode(first.autoencoder.encode(x)),
            lambda z: first.autoencoder.decode(mix(second.autoencoder.decode(z))),
        )
        return {
            "first layer": first.loss,
            "second layer, on the codes": second.loss,
            "the stack": jax.vmap(lambda x: autoencoders.reconstruction_error(stack, x))(data).mean(),
        }

    def lhs(case):
        return losses(case, lambda codes: codes)

    def rhs(case):
        data, width = case.data(), case.width
        first, both = centred_tail(data, width + 1), centred_tail(data, width)
        return {"first layer": first, "second layer, on the codes": both - first, "the stack": both}

    def wrong_order(case):
        return losses(case, lambda codes: codes[::-1])

    return Identity(
        title="Stacked layers, trained one after the other, are nested PCAs",
        statement=r"L_{\text{stack}} = L_1 + L_2 = \sum_{j > k} \lambda_j, \qquad "
        r"\text{codes of layer 1 being the data of layer 2}",
        lecture="002",
        slide="Stacked (Denoising) Autoencoder",
        kind="behaviour",
        instance=Points(scales=(3.0, 2.0, 1.0, 0.5), width=2, count=40, seed=2),
        family=lambda random: random_points(random)._replace(width=int(random.integers(1, 4))),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The decoders are connected in the wrong order.", lhs=wrong_order),
        correction="The slides show figures. What is exact is the linear stack; the recurrent auto-encoder of the "
        "next slide has no formula, only training.",
    )
