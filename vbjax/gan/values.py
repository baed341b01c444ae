"""The games that GANs play: what each side minimises, as functions of the discriminator's output for one example.

A `Game` knows no networks. `discriminator_loss` and `generator_loss` bind it to callables for one example; batches are
made outside, with `vmap`. Optima are in `optimal`, penalties on the discriminator in `penalties`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.types import Event, Scalar

Discriminator = Callable[[Event], Scalar]
"""`x -> logit`: log-odds that x is real for `minimax` and `non_saturating`, a score of any scale for the others."""

Loss = Callable[[Float[Array, "*n"]], Float[Array, "*n"]]


class Game(NamedTuple):
    """Elementwise functions of the discriminator's output, all to be minimised.

    The discriminator pays real(D(x)) for a datum and fake(D(G(z))) for a fake, the generator pays generator(D(G(z))).
    optimum: the best output where log p_data - log p_model is given; None where there is none.
    """

    name: str
    real: Loss
    fake: Loss
    generator: Loss
    optimum: Loss | None = None


def _half_softplus(logit):
    return 0.5 * jax.nn.softplus(logit)


minimax = Game(
    "minimax",
    real=lambda logit: _half_softplus(-logit),
    fake=_half_softplus,
    generator=lambda logit: -_half_softplus(logit),
    optimum=lambda log_ratio: log_ratio,
)
"""The saturating game, in nats: the sum of both is J^(D) = -½ E log D - ½ E log(1 - D), log 2 at the equilibrium.

J^(D) is the lecture's: the cross-entropy on a balanced batch. The value of Goodfellow et al. (2014, eq. 1) is
V = -2 J^(D), -log 4 at the equilibrium. The generator's term is -J^(D) without the part that it cannot change.
"""

non_saturating = minimax._replace(name="non_saturating", generator=lambda logit: _half_softplus(-logit))
"""As `minimax`, but the generator minimises -½ log D(G(z)), whose gradient does not vanish where D is sure of a fake.

Its fixed points are those of `minimax`, its dynamics are not; the game is not zero-sum (Goodfellow et al. 2014,
section 3).
"""

hinge = Game(
    "hinge",
    real=lambda score: jax.nn.relu(1 - score),
    fake=lambda score: jax.nn.relu(1 + score),
    generator=lambda score: -score,
    optimum=jnp.sign,
)
"""Margins of one on either side (Lim and Ye 2017; Miyato et al. 2018, eqs. 16, 17)."""

least_squares = Game(
    "least_squares",
    real=lambda score: 0.5 * (score - 1) ** 2,
    fake=lambda score: 0.5 * score**2,
    generator=lambda score: 0.5 * (score - 1) ** 2,
    optimum=jax.nn.sigmoid,
)
"""Regression to 1 for real and 0 for fake (Mao et al. 2017, eq. 9)."""

wasserstein = Game("wasserstein", real=lambda score: -score, fake=lambda score: score, generator=lambda score: -score)
"""E D(G(z)) - E D(x): minus the distance W_1 at the best D of Lipschitz constant one (Arjovsky et al. 2017, eq. 2).

Without a bound on the Lipschitz constant there is no best D: see `penalties`.
"""

GAMES = {game.name: game for game in (minimax, non_saturating, hinge, least_squares, wasserstein)}


def scaled(game: Game, factor: int | float) -> Game:
    """The same game with every loss multiplied: `scaled(minimax, 2)` pays in units of Goodfellow's V.

    Raises ValueError unless the factor is positive.
    """
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}: another sign is another game")

    def times(loss: Loss) -> Loss:
        return lambda output: factor * loss(output)

    return game._replace(real=times(game.real), fake=times(game.fake), generator=times(game.generator))


def discriminator_loss(game: Game, discriminator: Discriminator, x_real: Event, x_fake: Event) -> Scalar:
    """What the discriminator minimises for one datum and one fake; no gradient reaches the fake."""
    return game.real(discriminator(x_real)) + game.fake(discriminator(jax.lax.stop_gradient(x_fake)))


def generator_loss(game: Game, discriminator: Discriminator, generator: Callable[[Event], Event], z: Event) -> Scalar:
    """What the generator minimises for one latent z: its gradient comes through x = G(z), by ∂D/∂x alone.

    The discriminator is what its closure says: differentiate with respect to the generator's parameters only.
    """
    return game.generator(discriminator(generator(z)))
