"""Restricted Boltzmann machines: two layers of binary units, each independent given the other.

log p(v) = -F(v) - log Z, with a free energy that every size affords and a partition function that sums over the
states of the smaller layer. The gradient of log p(v) is a difference of two `Phases`: the negative one exactly, or
from a few Gibbs steps (`contrastive_divergence`). One datum at a time; the mean over data and the step along it are
the caller's. Start at `RBM`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions import Bernoulli
from vbjax.distributions.discrete import logit
from vbjax.energy.states import MAX_KERNEL_UNITS, MAX_UNITS, check_units, log_sum_exp, position, states
from vbjax.types import PRNGKey, Scalar

Visible = Float[Array, " visible"]
Hidden = Float[Array, " hidden"]


class RBM(NamedTuple):
    """p(v, h) = exp(-E(v, h)) / Z with E(v, h) = -bᵀv - cᵀh - vᵀW h, over states of zeros and ones (floats).

    visible_bias b: `(visible,)`; hidden_bias c: `(hidden,)`; weights W: `(visible, hidden)`. What is nats here is
    energy there. Source: Smolensky (1986); lecture 002 «Restricted Boltzmann Machine».
    """

    visible_bias: Visible
    hidden_bias: Hidden
    weights: Float[Array, "visible hidden"]

    @property
    def transposed(self) -> "RBM":
        """The same law with the layers' roles swapped: its visible units are the hidden ones."""
        return RBM(self.hidden_bias, self.visible_bias, self.weights.T)

    def energy(self, v: Visible, h: Hidden) -> Scalar:
        """E(v, h), in nats."""
        return -(self.visible_bias @ v + self.hidden_bias @ h + v @ self.weights @ h)

    def given_visible(self, v: Visible) -> Bernoulli:
        """p(h|v): independent units with log-odds c + Wᵀv."""
        return Bernoulli(self.hidden_bias + v @ self.weights)

    def given_hidden(self, h: Hidden) -> Bernoulli:
        """p(v|h): independent units with log-odds b + W h."""
        return self.transposed.given_visible(h)

    def free_energy(self, v: Visible) -> Scalar:
        """F(v) = -log Σ_h exp(-E(v, h)) = -bᵀv - Σ_j softplus(c_j + vᵀW_j), in nats; finite at log-odds of any size.

        Source: Hinton (2010), «A practical guide to training RBMs», section 16.1.
        """
        return -(self.visible_bias @ v + jax.nn.softplus(self.given_visible(v).logits).sum())

    def log_partition(self) -> Scalar:
        """log Z, exact by summing over the smaller layer; raises ValueError if that has more than `MAX_UNITS` units.

        Its gradient holds the model's mean statistics.
        """
        small = min(self, self.transposed, key=lambda rbm: rbm.weights.shape[0])
        units = small.weights.shape[0]
        check_units("log Z", units, MAX_UNITS, "make one layer small; contrastive_divergence needs no log Z")
        return log_sum_exp(lambda v: -small.free_energy(v), units, small.weights.dtype)

    def log_prob(self, v: Visible) -> Scalar:
        """log p(v) = -F(v) - log Z, in nats. Raises ValueError where log Z cannot be enumerated.

        Under `vmap` log Z is computed once.
        """
        return -self.free_energy(v) - self.log_partition()

    def statistics(self, v: Visible) -> "RBM":
        """(v, E[h|v], v E[h|v]ᵀ), in the places of (b, c, W): the derivatives of -F(v)."""
        h = self.given_visible(v).probs
        return RBM(v, h, jnp.outer(v, h))


class Phases(NamedTuple):
    """A gradient of log p(v) before its subtraction, each part shaped like the model.

    positive: statistics with the datum clamped. negative: their mean under the model, or an estimate of it.
    """

    positive: RBM
    negative: RBM

    @property
    def gradient(self) -> RBM:
        """∇ log p(v), uphill: ⟨v hᵀ⟩_data - ⟨v hᵀ⟩_model for the weights."""
        return jax.tree.map(jnp.subtract, *self)


def initial_rbm(key: PRNGKey, mean: Visible, *, hidden: int, scale: int | float = 0.01) -> RBM:
    """Where training starts: the data's mean in the visible biases, N(0, scale²) weights.

    mean: of the data, each coordinate strictly inside (0, 1). Raises ValueError for other means, and below one hidden
    unit. Source: Hinton (2010), section 8.
    """
    if hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}")
    if not isinstance(mean, jax.core.Tracer) and not bool(((mean > 0) & (mean < 1)).all()):
        raise ValueError(
            f"mean must lie strictly inside (0, 1), got {mean.min():g} to {mean.max():g}: units that never change have "
            "infinite log-odds; smooth it as (ones + 1) / (count + 2)"
        )
    weights = scale * jax.random.normal(key, (mean.shape[0], hidden), mean.dtype)
    return RBM(logit(mean), jnp.zeros(hidden, mean.dtype), weights)


def gibbs_step(key: PRNGKey, rbm: RBM, v: Visible) -> Visible:
    """One step of block Gibbs sampling, h ~ p(h|v) and v ~ p(v|h): p(v) is stationary."""
    key_hidden, key_visible = jax.random.split(key)
    return rbm.given_hidden(rbm.given_visible(v).sample(key_hidden)).sample(key_visible)


def gibbs_chain(key: PRNGKey, rbm: RBM, v: Visible, *, steps: int) -> Visible:
    """The state after that many Gibbs steps from v; raises ValueError below one step."""
    _check_steps(steps)
    return jax.lax.fori_loop(0, steps, lambda t, v: gibbs_step(jax.random.fold_in(key, t), rbm, v), v)


def visible_kernel(rbm: RBM) -> Float[Array, "states states"]:
    """p(v'|v) of `gibbs_step`, rows and columns in the order of `states`; p(v) is its left eigenvector of eigenvalue 1.

    Raises ValueError if a layer has more than `MAX_KERNEL_UNITS` units.
    """
    check_units("the kernel", max(rbm.weights.shape), MAX_KERNEL_UNITS, "run chains with gibbs_step")
    v, h = (states(units, rbm.weights.dtype) for units in rbm.weights.shape)
    return _table(rbm.given_visible, v, h) @ _table(rbm.given_hidden, h, v)


def likelihood_phases(rbm: RBM, v: Visible) -> Phases:
    """The exact phases of ∇ log p(v); raises ValueError where log Z cannot be enumerated.

    Source: Ackley, Hinton and Sejnowski (1985), section 3; lecture 002 «RBM Training».
    """
    return Phases(rbm.statistics(v), jax.grad(RBM.log_partition)(rbm))


def contrastive_divergence(key: PRNGKey, rbm: RBM, v: Visible, *, steps: int = 1) -> Phases:
    """CD-k: the negative phase from a chain of k = steps Gibbs steps that starts at the datum.

    A biased estimate of ∇ log p(v), and of no function's gradient (Sutskever and Tieleman 2010); the bias falls with
    the kernel's second eigenvalue to the power k. Raises ValueError below one step. Source: Hinton (2002).
    """
    return _phases(rbm, v, gibbs_chain(key, rbm, v, steps=steps))


def persistent_contrastive_divergence(
    key: PRNGKey, rbm: RBM, v: Visible, particle: Visible, *, steps: int = 1
) -> tuple[Phases, Visible]:
    """CD from a chain that is kept between updates: the phases at v, and the particle to pass next time.

    While the model moves slowly against the chain, the particle follows p(v) and the bias vanishes. Raises ValueError
    below one step. Source: Tieleman (2008).
    """
    particle = gibbs_chain(key, rbm, particle, steps=steps)
    return _phases(rbm, v, particle), particle


def expected_contrastive_divergence(rbm: RBM, v: Visible, *, steps: int = 1) -> Phases:
    """The mean of `contrastive_divergence` over its randomness, exactly: its bias is the gap to `likelihood_phases`.

    Raises ValueError below one step, and if a layer has more than `MAX_KERNEL_UNITS` units.
    """
    _check_steps(steps)
    kernel, every = visible_kernel(rbm), states(v.shape[0], rbm.weights.dtype)
    start = jax.nn.one_hot(position(v), every.shape[0], dtype=kernel.dtype)
    law = jax.lax.fori_loop(0, steps, lambda _, law: law @ kernel, start)
    seen = jax.vmap(rbm.statistics)(every)
    return Phases(rbm.statistics(v), jax.tree.map(lambda leaf: jnp.tensordot(law, leaf, 1), seen))


def _phases(rbm: RBM, v: Visible, fantasy: Visible) -> Phases:
    return Phases(rbm.statistics(v), rbm.statistics(fantasy))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: without one a chain is where it began")


def _table(given, rows: Array, columns: Array) -> Array:
    """Probabilities of the columns' states under the law at each of the rows' states."""
    return jax.vmap(lambda row: jnp.exp(jax.vmap(given(row).log_prob)(columns)))(rows)
