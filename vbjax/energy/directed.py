"""Directed graphical models: p(x) = Π_i p(x_i | x_pa(i)), normalised whatever the conditionals compute.

Each conditional is a function of the parents' values alone, which a network may be; the graph is checked once, for a
cyclic one has no joint law. Start at `directed_model`; `sigmoid_belief_net` is the classic.
"""

import graphlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import Bernoulli
from vbjax.types import PRNGKey, Scalar

Conditional = Callable[[Float[Array, " parents"]], Any]
"""The parents' values, in the order in which they are named -> the law of one variable, with a scalar event."""

Parents = tuple[tuple[int, ...], ...]


class DirectedModel(NamedTuple):
    """A law of x: `(n,)`, one variable after another; made by `directed_model`.

    parents: of each variable. conditionals: one each. order: the variables, parents first.
    """

    parents: Parents
    conditionals: tuple[Conditional, ...]
    order: tuple[int, ...]

    def given_parents(self, x: Float[Array, " n"], variable: int) -> Any:
        """p(x_i | x_pa(i)) at the parents' values in x."""
        return self.conditionals[variable](x[jnp.array(self.parents[variable], int)])

    def log_prob(self, x: Float[Array, " n"]) -> Scalar:
        """log p(x) = Σ_i log p(x_i | x_pa(i)), in nats."""
        return jnp.stack([self.given_parents(x, i).log_prob(x[i]) for i in self.order]).sum()

    def sample(self, key: PRNGKey, dtype: Any = float) -> Float[Array, " n"]:
        """One draw by ancestral sampling: every variable after its parents, from its law given them."""
        x = jnp.zeros(len(self.order), dtype)
        for i, key_i in zip(self.order, jax.random.split(key, len(self.order)), strict=True):
            x = x.at[i].set(self.given_parents(x, i).sample(key_i).astype(dtype))
        return x


def directed_model(parents: Sequence[Sequence[int]], conditionals: Sequence[Conditional]) -> DirectedModel:
    """The model with these parents and conditionals, one of each per variable.

    Raises ValueError for a graph with a cycle, which it names, for parents that are no variables or named twice, and
    unless there is one conditional per variable. Source: Pearl (1988), chapter 3; lecture 002 «Directed Graphical
    Model».
    """
    count = len(parents)
    if len(conditionals) != count:
        raise ValueError(f"conditionals must be one per variable: {count} have parents, {len(conditionals)} have a law")
    strangers = sorted({p for family in parents for p in family} - set(range(count)))
    if strangers:
        raise ValueError(f"parents must be variables 0 … {count - 1}, got {strangers}")
    doubled = [i for i, family in enumerate(parents) if len(set(family)) < len(family)]
    if doubled:
        raise ValueError(f"parents must be named once each, got {tuple(parents[doubled[0]])} for variable {doubled[0]}")
    try:
        order = tuple(graphlib.TopologicalSorter(dict(enumerate(parents))).static_order())
    except graphlib.CycleError as error:
        cycle = " → ".join(map(str, error.args[1]))
        raise ValueError(f"parents form a cycle, {cycle}: the product of conditionals need not sum to one; drop an "
                         "edge, or take an undirected model, as BoltzmannMachine") from None  # fmt: skip
    return DirectedModel(tuple(map(tuple, parents)), tuple(conditionals), order)


def sigmoid_belief_net(
    parents: Sequence[Sequence[int]], biases: Float[Array, " n"], weights: Float[Array, "n n"]
) -> DirectedModel:
    """Binary variables with P(x_i = 1 | x_pa(i)) = σ(b_i + Σ_{j ∈ pa(i)} w_ij x_j); other weights do not count.

    Raises ValueError as `directed_model` does, and unless biases are `(n,)` and weights `(n, n)` for n variables.
    Source: Neal (1992).
    """
    count = len(parents)
    for name, parameter, shape in (("biases", biases, (count,)), ("weights", weights, (count, count))):
        if parameter.shape != shape:
            raise ValueError(f"{name} must be {shape}, as {count} variables have parents, got shape {parameter.shape}")

    def unit(i: int) -> Conditional:
        return lambda values: Bernoulli(biases[i] + weights[i, jnp.array(parents[i], int)] @ values)

    return directed_model(parents, [unit(i) for i in range(count)])
