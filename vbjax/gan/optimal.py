"""The best discriminator for known laws, and what it pays: the divergence that a generator minimises against it.

With p the law of the data, q the generator's and m = (p + q) / 2, the least discriminator's losses are

| game | best output | least loss |
|---|---|---|
| minimax, non_saturating | log p/q | log 2 - JSD(p, q) |
| least_squares | p / (p + q) | ¼ - ¼ χ²(p‖m) |
| hinge | sign(p - q) | 2 - 2 TV(p, q) |
| wasserstein, 1-Lipschitz outputs | Kantorovich's potential | -W_1(p, q) |

`expected_discriminator_loss` takes the expectations by enumeration or quadrature, at any discriminator.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.gan.values import Discriminator, Game
from vbjax.types import LogDensity, Nodes, Scalar


def optimal_discriminator(game: Game, data: LogDensity, model: LogDensity) -> Discriminator:
    """The discriminator that minimises the game's loss at every x, given both log-densities, in nats.

    Infinite, or at its end, where only one of the laws has mass; neutral where neither has. Raises ValueError for the
    Wasserstein game, which has a best discriminator only among Lipschitz functions. Sources: Goodfellow et al. (2014),
    proposition 1; Mao et al. (2017), eq. 4; Lim and Ye (2017), eq. 10.
    """
    optimum = game.optimum
    if optimum is None:
        raise ValueError(f"no output is best for the game {game.name!r}: use kantorovich_potential on the line")

    def discriminator(x):
        log_p, log_q = data(x), model(x)
        nowhere = (log_p == -jnp.inf) & (log_q == -jnp.inf)
        return optimum(jnp.where(nowhere, 0, log_p) - jnp.where(nowhere, 0, log_q))

    return discriminator


def expected_discriminator_loss(game: Game, discriminator: Discriminator, data: Nodes, model: Nodes) -> Scalar:
    """E real(D(x)) + E fake(D(G(z))) over the points of both laws; points without weight cost nothing."""

    def mean(loss, nodes):
        losses = jax.vmap(lambda x: loss(discriminator(x)))(nodes.points)
        return jnp.sum(nodes.weights * jnp.where(nodes.weights > 0, losses, 0))

    return mean(game.real, data) + mean(game.fake, model)


def wasserstein_1(data: Nodes, model: Nodes) -> Scalar:
    """W_1 between two finite laws on the line: the area between their distribution functions, or quantiles.

    Equal weights make it the distance between samples. Source: Vallender (1974).
    """
    points, excess = _distribution_functions(data, model)
    return jnp.sum(jnp.abs(excess) * jnp.diff(points))


def kantorovich_potential(data: Nodes, model: Nodes) -> Discriminator:
    """The best discriminator of Lipschitz constant one for two finite laws on the line: E_p D - E_q D = W_1.

    It rises by one wherever more of the data's mass than of the model's lies above, falls where less does, and is
    constant outside of the points.
    """
    points, excess = _distribution_functions(data, model)
    heights = jnp.concatenate([jnp.zeros_like(points[:1]), jnp.cumsum(jnp.sign(excess) * jnp.diff(points))])
    return lambda x: jnp.interp(x, points, heights)


def _distribution_functions(data: Nodes, model: Nodes) -> tuple[Float[Array, " n"], Float[Array, " n-1"]]:
    """All points in order, and between each and its successor the model's distribution function minus the data's."""
    points = jnp.concatenate([data.points, model.points])
    order = jnp.argsort(points)
    mass = jnp.concatenate([-data.weights, model.weights])
    return points[order], jnp.cumsum(mass[order])[:-1]
