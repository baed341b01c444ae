"""Two players who each descend their own loss: the vector field, its Jacobian, and steps with their exact rates.

A method near an equilibrium is a linear map, made of the game's Jacobian A alone; its spectral radius is the factor by
which distances to the equilibrium change per step. `convergence_rate` predicts it, `trajectory` shows it. Start at
`Players`; `dirac` has the smallest game in which all of it can be worked out by hand.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float

from vbjax.types import Params, Scalar

Matrix = Float[Array, "n n"]
Rate = Scalar | float | int


class Players(NamedTuple):
    """The losses (θ, φ) -> scalar of a generator with parameters θ and a discriminator with parameters φ.

    Neither may stop gradients on the way to the other's parameters: `game_jacobian` and `consensus` need the mixed
    derivatives, which `values.discriminator_loss` does not have.
    """

    generator: Callable[[Params, Params], Scalar]
    discriminator: Callable[[Params, Params], Scalar]


class Point(NamedTuple):
    """The parameters of both players, or a direction in their space."""

    generator: Params
    discriminator: Params


class Method(NamedTuple):
    """A rule for both players' next parameters.

    step: (players, point, the point before, rate) -> the next point. matrix: (A, size of θ, rate) -> the linear map of
    one step near an equilibrium, on deviations (θ, φ), or on those of two successive points where the rule uses both.
    """

    name: str
    step: Callable[[Players, Point, Point, Rate], Point]
    matrix: Callable[[Matrix, int, Rate], Array]


def vector_field(players: Players, point: Point) -> Point:
    """(-∇_θ L_G, -∇_φ L_D): where either player moves. An equilibrium is a zero of it."""
    return Point(
        jax.tree.map(jnp.negative, jax.grad(players.generator, 0)(*point)),
        jax.tree.map(jnp.negative, jax.grad(players.discriminator, 1)(*point)),
    )


def game_jacobian(players: Players, point: Point) -> Matrix:
    """A, the derivative of the vector field in all parameters in one row, θ first; not symmetric.

    Eigenvalues with negative real parts make an equilibrium attract gradient flow (Mescheder et al. 2017, section 3).
    """
    flat, unravel = ravel_pytree(point)
    return jax.jacfwd(lambda flat: ravel_pytree(vector_field(players, unravel(flat)))[0])(flat)


def _simultaneous(players, point, previous, rate):
    return _moved(point, vector_field(players, point), rate)


def _alternating(players, point, previous, rate):
    point = point._replace(discriminator=_simultaneous(players, point, previous, rate).discriminator)
    return point._replace(generator=_simultaneous(players, point, previous, rate).generator)


def _extragradient(players, point, previous, rate):
    return _moved(point, vector_field(players, _simultaneous(players, point, previous, rate)), rate)


def _optimistic(players, point, previous, rate):
    now, before = vector_field(players, point), vector_field(players, previous)
    return _moved(point, jax.tree.map(lambda new, old: 2 * new - old, now, before), rate)


def _moved(point: Point, direction: Point, rate) -> Point:
    return jax.tree.map(lambda x, d: x + rate * d, point, direction)


def _alternating_matrix(jacobian, size, rate):
    identity = jnp.eye(jacobian.shape[0], dtype=jacobian.dtype)
    discriminator = identity.at[size:].add(rate * jacobian[size:])
    generator = identity.at[:size].add(rate * jacobian[:size])
    return generator @ discriminator


def _optimistic_matrix(jacobian, size, rate):
    identity = jnp.eye(jacobian.shape[0], dtype=jacobian.dtype)
    return jnp.block([[identity + 2 * rate * jacobian, -rate * jacobian], [identity, jnp.zeros_like(identity)]])


def _one_plus(polynomial: Callable[[Matrix], Matrix]) -> Callable[[Matrix, int, Rate], Matrix]:
    def matrix(jacobian, size, rate):
        return jnp.eye(jacobian.shape[0], dtype=jacobian.dtype) + polynomial(rate * jacobian)

    return matrix


simultaneous = Method("simultaneous", _simultaneous, _one_plus(lambda a: a))
"""Both players step from the same point: 1 + hλ. Imaginary eigenvalues make it spiral outwards at every rate."""

alternating = Method("alternating", _alternating, _alternating_matrix)
"""The discriminator steps, then the generator against the new one (Goodfellow et al. 2014, algorithm 1)."""

extragradient = Method("extragradient", _extragradient, _one_plus(lambda a: a + a @ a))
"""The step that simultaneous descent would look at next: 1 + hλ + (hλ)² (Korpelevich 1976)."""

optimistic = Method("optimistic", _optimistic, _optimistic_matrix)
"""Twice the gradient minus the one before: μ² = μ (1 + 2hλ) - hλ (Daskalakis et al. 2018, eq. 6)."""


def consensus(weight: int | float) -> Method:
    """Simultaneous descent that also lowers weight * ½ ‖v‖², v the vector field: A - weight AᵀA in place of A.

    Source: Mescheder et al. (2017), algorithm 2.
    """

    def step(players, point, previous, rate):
        field, pull = jax.vjp(lambda point: vector_field(players, point), point)
        (towards,) = pull(field)
        return _moved(point, jax.tree.map(lambda v, g: v - weight * g, field, towards), rate)

    def matrix(jacobian, size, rate):
        return simultaneous.matrix(jacobian - weight * jacobian.T @ jacobian, size, rate)

    return Method("consensus", step, matrix)


def convergence_rate(method: Method, players: Players, equilibrium: Point, *, rate: Rate) -> Scalar:
    """The factor by which distances to an equilibrium change per step in the long run; above one they grow.

    The spectral radius of the method's linear map, which the game's Jacobian determines (CPU only: eigenvalues).
    """
    size = ravel_pytree(equilibrium.generator)[0].shape[0]
    return spectral_radius(method.matrix(game_jacobian(players, equilibrium), size, rate))


def spectral_radius(matrix: Matrix) -> Scalar:
    """The largest modulus of an eigenvalue."""
    return jnp.max(jnp.abs(jnp.linalg.eigvals(matrix)))


def largest_rate(eigenvalues: Complex[Array, " n"]) -> Scalar:
    """The rate below which simultaneous descent is attracted, min -2 Re λ / |λ|²; zero or less where none is."""
    squared = jnp.abs(eigenvalues) ** 2
    return jnp.min(jnp.where(squared > 0, -2 * eigenvalues.real / jnp.where(squared > 0, squared, 1), 0))


def trajectory(method: Method, players: Players, start: Point, *, rate: Rate, steps: int) -> Point:
    """All points from the start on, stacked on a leading axis of length steps + 1."""

    def step(points, _):
        point, previous = points
        following = method.step(players, point, previous, rate)
        return (following, point), following

    _, points = jax.lax.scan(step, (start, start), None, steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, points)
