"""Objectives of a VAE on the linear-Gaussian model: gradients by finite differences, and where they meet the ELBO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for

from vbjax import objectives
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence
from vbjax.objectives import GroupedELBO, beta_elbo, capacity, free_bits, ramp

pytestmark = pytest.mark.usefixtures("x64")
LOADING = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.2]])
X, NOISE_VARIANCE = np.array([0.4, -1.1, 0.7]), 0.36
POINT = np.array([0.3, 1.5, -0.2, -1.0])
"""Means and log-scales of q: its KLs are 0.08 and 1.69 nats."""


def terms(point):
    """The exact ELBO under q: a Gauss-Hermite rule is exact for its quadratic reconstruction."""
    q = Normal(point[:2], jnp.exp(point[2:]))
    z, weights, _ = q.nodes(3)
    likelihood = jax.vmap(lambda z: Normal(LOADING @ z, NOISE_VARIANCE**0.5 * jnp.ones(3)).log_prob(jnp.asarray(X)))
    kls = jax.vmap(kl_divergence)(q, Normal(jnp.zeros(2), jnp.ones(2)))
    return GroupedELBO(weights @ likelihood(z), kls)


def closed_form(point):
    mean, variance = point[:2], np.exp(2 * point[2:])
    spread = (LOADING**2).sum(0) @ variance
    squares = np.sum((X - LOADING @ mean) ** 2) + spread
    reconstruction = -0.5 * squares / NOISE_VARIANCE - 1.5 * np.log(2 * np.pi * NOISE_VARIANCE)
    return reconstruction, 0.5 * (variance + mean**2 - 1 - np.log(variance))


def slope(objective):
    """Central differences of an objective of the closed form."""
    steps = 1e-5 * np.eye(4)
    values = [objective(*closed_form(POINT + step)) - objective(*closed_form(POINT - step)) for step in steps]
    return np.array(values) / 2e-5


CASES = {
    "elbo": (objectives.elbo, lambda r, kls: r - kls.sum(), [lambda t: t.reconstruction + t.kl]),
    "beta": (beta_elbo(4.0), lambda r, kls: r - 4 * kls.sum(), [lambda t: 4 * t.reconstruction - t.kl]),
    "capacity above": (
        capacity(25.0, gamma=3.0),
        lambda r, kls: r - 3 * (25 - kls.sum()),
        [lambda t: t.reconstruction - 3 * (t.kl - 25.0), capacity(0.0, gamma=3.0)],
    ),
    "capacity below": (capacity(0.5, gamma=3.0), lambda r, kls: r - 3 * (kls.sum() - 0.5), [capacity(2.5, gamma=3.0)]),
    "free bits": (
        free_bits(0.5),
        lambda r, kls: r - max(0.5, kls[0]) - max(0.5, kls[1]),
        [lambda t: t.reconstruction - jnp.minimum(0.5, t.kls).sum(), lambda t: t.reconstruction - max(0.5, t.kl)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_finite_differences_of_the_closed_form(name):
    right, oracle, wrong = CASES[name]
    expected = slope(oracle)

    def check(objective):
        assert_allclose(jax.grad(lambda point: objective(terms(point)))(jnp.asarray(POINT)), expected, rtol=1e-8)

    holds_only_for(check, right, *wrong)


def test_beta_of_one_no_free_bits_and_the_end_of_a_warm_up_are_the_elbo():
    here = terms(jnp.asarray(POINT))

    def check(objective):
        assert_allclose(objective(here), here.total, rtol=1e-15)

    warm = (beta_elbo(ramp(step, 100)) for step in (100, 10_000, 50))
    holds_only_for(check, beta_elbo(1.0), beta_elbo(0.99), free_bits(1.0), capacity(0.0, gamma=0.5))
    holds_only_for(check, free_bits(0.0), beta_elbo(ramp(99, 100)))
    check(next(warm))
    holds_only_for(check, *warm)
    check(beta_elbo(ramp(0, 0)))


def test_at_its_capacity_and_below_its_floor_the_kl_has_no_gradient():
    kls = jnp.asarray([0.08, 1.69])
    grad = [jax.grad(lambda k, f=f: f(GroupedELBO(jnp.asarray(-3.0), k)))(kls) for f in
            (capacity(kls.sum(), gamma=7.0), free_bits(0.5), free_bits(2.0))]  # fmt: skip
    assert_allclose(grad, [[0, 0], [0, -1], [0, 0]])


def test_a_ramp_is_a_line_that_stays_at_one():
    assert_allclose([ramp(step, 4) for step in range(7)], [0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert_allclose(jax.jit(lambda step: ramp(step, 4))(jnp.int32(3)), 0.75)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: beta_elbo(-1.0), "beta"),
        (lambda: beta_elbo(float("nan")), "beta"),
        (lambda: capacity(-1.0, gamma=1.0), "capacity"),
        (lambda: capacity(1.0, gamma=-1.0), "gamma"),
        (lambda: free_bits(-0.1), "free_nats"),
    ],
)
def test_negative_prices_are_refused_by_name(build, named):
    with pytest.raises(ValueError, match=named):
        build()
