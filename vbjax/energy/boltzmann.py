"""Boltzmann machines: binary units that influence each other both ways, one at a time, with some noise.

A unit becomes one where its net input plus logistic noise is positive. That is Gibbs sampling of p(x) ∝ exp(-E(x)),
whatever the order; without the noise it is a Hopfield network, which walks down the same energy. `tempered` sets the
noise's scale. Start at `BoltzmannMachine`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.energy.states import MAX_KERNEL_UNITS, MAX_UNITS, check_units, log_sum_exp, states
from vbjax.types import PRNGKey, Scalar

State = Float[Array, " n"]
Kernel = Float[Array, "states states"]


class BoltzmannMachine(NamedTuple):
    """p(x) = exp(-E(x)) / Z with E(x) = -Σ_{i>j} w_ij x_i x_j - bᵀx, over states of zeros and ones (floats).

    biases b: `(n,)`. weights: `(n, n)`, of which only the strictly lower triangle counts: couplings are symmetric and
    no unit sees itself, whatever is passed or learnt. Source: Ackley, Hinton and Sejnowski (1985); lecture 002
    «Boltzmann-Maschinen (1985)».
    """

    biases: State
    weights: Float[Array, "n n"]

    @property
    def couplings(self) -> Float[Array, "n n"]:
        """The symmetric matrix of w_ij, with zeros on the diagonal."""
        below = jnp.tril(self.weights, -1)
        return below + below.T

    def energy(self, x: State) -> Scalar:
        """E(x), in nats."""
        return -(x @ jnp.tril(self.weights, -1) @ x + self.biases @ x)

    def net_input(self, x: State) -> State:
        """b + W x: the log-odds of each unit given all the others, E(x with x_i = 0) - E(x with x_i = 1)."""
        return self.biases + self.couplings @ x

    def log_partition(self) -> Scalar:
        """log Z by enumeration; raises ValueError for more than `MAX_UNITS` units."""
        units = self.biases.shape[0]
        check_units("log Z", units, MAX_UNITS, "compare energies, whose differences need no log Z")
        return log_sum_exp(lambda x: -self.energy(x), units, self.biases.dtype)

    def log_prob(self, x: State) -> Scalar:
        """log p(x), in nats; raises ValueError for more than `MAX_UNITS` units."""
        return -self.energy(x) - self.log_partition()


def tempered(machine: BoltzmannMachine, temperature: Scalar | float | int) -> BoltzmannMachine:
    """The machine whose law is p(x) ∝ exp(-E(x) / T). Raises ValueError unless T is positive."""
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature:g}; hopfield_sweep is the limit of zero")
    return jax.tree.map(lambda parameter: parameter / temperature, machine)


def sequential_sweep(key: PRNGKey, machine: BoltzmannMachine, x: State) -> State:
    """Every unit once, in order, each from its law given the others: p(x) is stationary."""
    return _sweep(machine, x, jax.random.logistic(key, x.shape, x.dtype))


def random_scan_step(key: PRNGKey, machine: BoltzmannMachine, x: State) -> State:
    """One unit, chosen evenly, from its law given the others: p(x) is stationary, and the chain reversible."""
    key_unit, key_noise = jax.random.split(key)
    unit = jax.random.randint(key_unit, (), 0, x.shape[0])
    return _visit(machine.biases, machine.couplings, x, unit, jax.random.logistic(key_noise, (), x.dtype))


def hopfield_sweep(machine: BoltzmannMachine, x: State) -> State:
    """Every unit once, in order, one where its net input is positive; at zero it stays.

    `sequential_sweep` in the limit of zero temperature, except at ties, which that breaks with a fair coin; it never
    raises the energy. Source: Hopfield (1982), eq. 1.
    """
    return _sweep(machine, x, jnp.zeros_like(x))


def sequential_kernel(machine: BoltzmannMachine) -> Kernel:
    """p(x'|x) of `sequential_sweep`, in the order of `states`; raises ValueError above `MAX_KERNEL_UNITS` units."""
    kernels = _unit_kernels(machine)
    return jax.lax.scan(lambda before, kernel: (before @ kernel, None), kernels[0], kernels[1:])[0]


def random_scan_kernel(machine: BoltzmannMachine) -> Kernel:
    """p(x'|x) of `random_scan_step`, in the order of `states`; raises ValueError above `MAX_KERNEL_UNITS` units."""
    return _unit_kernels(machine).mean(0)


def _sweep(machine: BoltzmannMachine, x: State, noise: State) -> State:
    couplings = machine.couplings

    def visit(x, unit):
        index, epsilon = unit
        return _visit(machine.biases, couplings, x, index, epsilon), None

    return jax.lax.scan(visit, x, (jnp.arange(x.shape[0]), noise))[0]


def _visit(biases: State, couplings: Array, x: State, unit: Array, noise: Scalar) -> State:
    level = biases[unit] + couplings[unit] @ x + noise
    return x.at[unit].set(jnp.where(level == 0, x[unit], (level > 0).astype(x.dtype)))


def _unit_kernels(machine: BoltzmannMachine) -> Float[Array, "n states states"]:
    """The kernel of each unit's visit."""
    units = machine.biases.shape[0]
    check_units("the kernel", units, MAX_KERNEL_UNITS, "run chains with sequential_sweep")
    every = states(units, machine.biases.dtype)
    log_odds = jax.vmap(machine.net_input)(every)
    here, digit = jnp.arange(2**units), 2 ** jnp.arange(units)[::-1]

    def kernel(digit, log_odds):
        return _rows(here | digit, jax.nn.sigmoid(log_odds)) + _rows(here & ~digit, jax.nn.sigmoid(-log_odds))

    return jax.vmap(kernel)(digit, log_odds.T)


def _rows(columns: Array, probabilities: Array) -> Array:
    """A matrix with one entry a row."""
    return probabilities[:, None] * jax.nn.one_hot(columns, columns.shape[0], dtype=probabilities.dtype)
