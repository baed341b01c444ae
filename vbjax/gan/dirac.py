"""The Dirac-GAN: data at zero, a generator that puts all its mass at θ, a discriminator D(x) = ψ x of slope ψ.

The smallest GAN there is, with its only equilibrium at (0, 0), and every rate in closed form: unregularised gradient
flow circles it for ever, R1 makes it attract (Mescheder et al. 2018, sections 2 to 4).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex

from vbjax.gan.games import Players, Point
from vbjax.gan.values import Discriminator, Game, generator_loss
from vbjax.types import Scalar

Penalty = Callable[[Discriminator, Scalar, Scalar], Scalar]
"""`(discriminator, x_real, x_fake) ->` what is added to the discriminator's loss."""


def no_penalty(discriminator: Discriminator, x_real: Scalar, x_fake: Scalar) -> Scalar:
    """Zero."""
    return jnp.zeros_like(x_real)


def dirac_gan(game: Game, penalty: Penalty = no_penalty) -> Players:
    """The losses of (θ, ψ), both scalars; to ψ x is added the game's output for x that are as likely real as fake.

    `scaled(minimax, 2)` is Mescheder's, f(t) = -log(1 + exp(-t)). Source: Mescheder et al. (2018), definition 2.1.
    """

    def discriminator(psi):
        return lambda x: psi * x + _neutral(game, jnp.zeros_like(psi))

    def of_discriminator(theta, psi):
        # not `discriminator_loss`, which holds the fake fixed: the game's Jacobian needs the derivative in θ and ψ
        D, real = discriminator(psi), jnp.zeros_like(theta)
        return game.real(D(real)) + game.fake(D(theta)) + penalty(D, real, theta)

    def of_generator(theta, psi):
        return generator_loss(game, discriminator(psi), lambda z: z + theta, jnp.zeros_like(theta))

    return Players(of_generator, of_discriminator)


def equilibrium() -> Point:
    """(0, 0): the generator has found the data, and the discriminator is flat."""
    return Point(jnp.zeros(()), jnp.zeros(()))


def eigenvalues(game: Game, *, gamma: Scalar | float | int = 0) -> Complex[Array, " 2"]:
    """Of the game's Jacobian at the equilibrium, with R1 or R2 of weight γ: -γ/2 ± √(γ²/4 + g' f').

    f' and g' are the slopes of the fake's loss and the generator's at the neutral output; for `minimax` g' = -f', and
    without regularisation the eigenvalues are ±i f' (Mescheder et al. 2018, lemmas 2.3 and 4.1).
    """
    neutral = _neutral(game, jnp.zeros(()))
    product = jax.grad(game.fake)(neutral) * jax.grad(game.generator)(neutral)
    pull, square = (jax.lax.complex(x, 0 * x) for x in (gamma / 2 + 0 * product, gamma**2 / 4 + product))
    root = jnp.sqrt(square)
    return jnp.stack([root, -root]) - pull


def _neutral(game: Game, zero: Scalar) -> Scalar:
    return zero if game.optimum is None else game.optimum(zero)
