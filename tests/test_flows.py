"""Coupling flows against change of variables, quadrature and the laws that they must contain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from numpy.testing import assert_allclose
from oracles import FALSE_ALARM, holds_only_for
from scipy import stats

from vbjax import bounds, training
from vbjax.distributions import CouplingFlow, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence
from vbjax.estimators import doubly_reparameterised, pathwise, sticking_the_landing
from vbjax.networks.flows import CouplingNetworks
from vbjax.types import NotAvailable, stop_gradient

pytestmark = pytest.mark.usefixtures("x64")


def random_flow(dim, *, layers=3, hidden=8, spread=0.5, features=None):
    """A flow of a correlated normal law whose networks are far from where they start."""
    networks = CouplingNetworks(dim, layers, hidden)
    with jax.enable_x64(False):
        shapes = jax.eval_shape(lambda: networks.init(jax.random.key(0), None if features is None else len(features)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(spread * rng.normal(size=leaf.shape)), shapes)
    tril = np.eye(dim) + 0.3 * np.tril(np.ones((dim, dim)), -1)
    return networks.law(params, MultivariateNormal(np.ones(dim), tril), features)


def flipped(law):
    """log q with the sign of the log-determinant the wrong way round."""

    def log_prob(y):
        x, log_determinant = law.inverse(y)
        return law.base.log_prob(x) - log_determinant

    return log_prob


def without_determinant(law):
    return lambda y: law.base.log_prob(law.inverse(y)[0])


def grid(law, points=300):
    """The axes of a fine lattice that holds all of a flow on R², its points, and the area of a cell."""
    corners = law.sample(jax.random.key(9), (4000,))
    margin = 1.0 * (corners.max(0) - corners.min(0))
    axes = jnp.linspace(corners.min(0) - margin, corners.max(0) + margin, points).T
    lattice = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    cell = jnp.prod(axes[:, 1] - axes[:, 0])
    return axes, lattice, cell


def test_density_is_the_change_of_variables_by_the_jacobian_and_the_inverse_is_exact():
    features = jnp.asarray([0.3, -2.0, 1.0])
    law = random_flow(5, layers=4, features=features)
    base_points = law.base.sample(jax.random.key(1), (30,))

    def by_jacobian(x):
        return law.forward(x), law.base.log_prob(x) - jnp.linalg.slogdet(jax.jacfwd(law.forward)(x))[1]

    points, expected = jax.jit(jax.vmap(by_jacobian))(base_points)

    def check(log_prob):
        assert_allclose(jax.jit(jax.vmap(log_prob))(points), expected, rtol=1e-11)

    holds_only_for(check, law.log_prob, flipped(law), without_determinant(law))
    back, again = jax.jit(jax.vmap(lambda y: (law.inverse(y)[0], law.transport(law.inverse_transport(y)))))(points)
    assert_allclose(back, base_points, atol=1e-12, rtol=1e-12)
    assert_allclose(again, points, atol=1e-12, rtol=1e-12)
    assert float(jnp.abs(points - base_points).max()) > 1


def test_density_on_the_plane_integrates_to_one_and_its_draws_have_it():
    law, draws = random_flow(2, spread=0.3), 10_000
    axes, lattice, cell = grid(law)
    sample = np.asarray(law.sample(jax.random.key(2), (draws,)))

    @jax.jit
    def masses(law):
        return [cell * jnp.exp(jax.vmap(jax.vmap(f))(lattice)) for f in
                (law.log_prob, flipped(law), without_determinant(law))]  # fmt: skip

    def check(mass):
        assert_allclose(mass.sum(), 1, rtol=1e-8)
        follows(mass)

    def follows(mass):
        for coordinate in (0, 1):
            marginal = np.asarray(mass.sum(1 - coordinate))
            # half of its own cell is below a node
            cdf = (np.cumsum(marginal) - 0.5 * marginal) / marginal.sum()
            u = np.interp(sample[:, coordinate], np.asarray(axes[coordinate]), cdf)
            assert stats.kstest(u, "uniform").pvalue > FALSE_ALARM / 2

    right, *wrong = masses(law)
    holds_only_for(check, right, *wrong)
    # the draws alone tell the laws apart, even where both are normalised
    holds_only_for(follows, right, *(mass / mass.sum() for mass in wrong))
    nodes = law.nodes(60)
    assert_allclose(nodes.weights @ nodes.points, jnp.tensordot(right, lattice, 2), rtol=1e-5)


def test_density_on_the_line_integrates_to_one():
    # even layers keep nothing of one coordinate, odd ones all of it
    def conditioner(parameters, kept):
        moved = 1 - kept.shape[0]
        return parameters[0] * jnp.ones(moved), parameters[1] * jnp.ones(moved)

    law = CouplingFlow(Normal([0.3], [0.7]), (Partial(conditioner, jnp.asarray([1.0, 0.8])),) * 2)
    x = jnp.linspace(-40.0, 40.0, 4001)

    def check(log_prob):
        assert_allclose(jnp.exp(jax.vmap(log_prob)(x[:, None])).sum() * (x[1] - x[0]), 1, rtol=1e-8)

    holds_only_for(check, law.log_prob, flipped(law), without_determinant(law))
    log_scale = 2 * np.tanh(0.4)
    exact = stats.norm.logpdf(np.asarray(x), 0.3 * np.exp(log_scale) + 1, 0.7 * np.exp(log_scale))
    assert_allclose(jax.vmap(law.log_prob)(x[:, None]), exact, rtol=1e-12)


def test_the_gradient_along_the_path_is_that_of_the_density():
    law = random_flow(2, layers=2, hidden=3, spread=0.3)
    _, lattice, cell = grid(law)
    xi = jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(-9.0, 9.0, 150)], indexing="ij"), -1).reshape(-1, 2)
    weights = jax.vmap(law.noise().log_prob)(xi)

    def f(z):
        return jnp.sin(0.3 * z[0]) * jnp.cos(0.3 * z[1])

    @jax.jit
    def gradients(law):
        along_the_path = jax.grad(
            lambda q: jax.nn.softmax(weights) @ jax.vmap(lambda noise: f(q.transport(noise)))(xi)
        )(law)
        by_density = jax.grad(
            lambda q: cell * jnp.sum(jax.vmap(jax.vmap(lambda z: jnp.exp(q.log_prob(z)) * f(z)))(lattice))
        )(law)
        return [
            jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slopes.conditioners)])
            for slopes in (along_the_path, by_density)
        ]

    path, density = gradients(law)
    scale = float(jnp.abs(density).max())
    holds_only_for(lambda g: assert_allclose(g, density, atol=1e-7 * scale, rtol=0), path, 1.01 * path, -path)


def test_estimators_take_a_flow_and_the_landing_sticks_where_it_is_the_posterior():
    law = random_flow(2, layers=1, hidden=3)
    posterior = stop_gradient(law)

    @jax.jit
    def gradient(keys, q):
        def of(estimator, key):
            noise = estimator.noise(q).sample(key)

            def surrogate(q):
                f = bounds.LogWeight(lambda z: jnp.zeros(()), posterior, q)
                return estimator.surrogate((), noise, f, q)

            slopes = jax.grad(surrogate)(q)
            return jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(slopes)]).max()

        estimators = (sticking_the_landing(4), doubly_reparameterised(4), pathwise(4))
        return [of(estimator, key) for estimator, key in zip(estimators, keys, strict=True)]

    *still, noisy = gradient(tuple(jax.random.split(jax.random.key(3), 3)), law)
    assert max(still) < 1e-10
    assert noisy > 1e-2


def test_fresh_networks_make_the_identity_and_equal_ones_share_a_compiled_program():
    base = Normal([0.3, -1.0, 2.0], [1.0, 0.5, 2.0])
    with jax.enable_x64(False):
        params = [CouplingNetworks(3).init(jax.random.key(k)) for k in (0, 1)]
    laws = [CouplingNetworks(3).law(jax.tree.map(lambda leaf: leaf.astype(base.dtype), p), base) for p in params]
    x = jnp.asarray([0.1, 0.2, 0.3])
    assert_allclose(laws[0].log_prob(x), base.log_prob(x), rtol=1e-12)
    assert_allclose(laws[0].centre(), base.mean(), rtol=1e-12)
    assert_allclose(base.centre(), base.mean())
    traces = []

    @jax.jit
    def log_prob(law):
        traces.append(None)
        return law.log_prob(x)

    assert log_prob(laws[0]) == log_prob(laws[1])
    assert len(traces) == 1


def test_float32_keeps_the_density_and_its_slope_finite_a_thousand_away():
    with jax.enable_x64(False):
        law = random_flow(6, layers=8, hidden=16)
        far = 1e3 * jnp.concatenate([jnp.eye(6), -jnp.eye(6), jnp.ones((1, 6))])
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(law.log_prob)))(far)
        assert values.dtype == jnp.float32
        assert jnp.isfinite(values).all()
        assert jnp.isfinite(slopes).all()


def test_what_a_flow_does_not_have_is_refused_by_name():
    law = random_flow(2)
    assert law.capabilities == law.base.capabilities._replace(closed_form_entropy=False)
    for missing in (law.mean, law.variance, law.entropy):
        with pytest.raises(NotAvailable, match="CouplingFlow has no"):
            missing()
    for q, p in ((law, Normal([0.0, 0.0], 1.0)), (Normal([0.0, 0.0], 1.0), law)):
        with pytest.raises(NotAvailable, match=r"CouplingFlow.*monte_carlo_kl"):
            kl_divergence(q, p)
    with pytest.raises(ValueError, match=r"takes one event of shape \(2,\)"):
        law.log_prob(jnp.zeros((3, 2)))
    with pytest.raises(TypeError, match=r"Partial\(function"):
        CouplingFlow(Normal([0.0, 0.0], 1.0), (lambda kept: (kept, kept),))
    with pytest.raises(ValueError, match=r"CouplingFlow.base must have events of shape \(d,\)"):
        CouplingFlow(Normal(jnp.zeros((2, 2)), 1.0), law.conditioners)


@pytest.mark.parametrize(("sizes", "named"), [((1, 2, 3), "dim"), ((2, 0, 3), "layers"), ((2, 1, 0), "hidden")])
def test_sizes_below_the_least_are_named(sizes, named):
    with pytest.raises(ValueError, match=f"{named} must be at least"):
        CouplingNetworks(*sizes)


@pytest.mark.slow
def test_a_trained_flow_reaches_the_banana_and_its_known_entropy():
    # x2 | x1 ~ N(x1²/2, 0.3²): an affine coupling holds it, so what is left is the network's error in x1²/2
    scale, weight = 0.3, 0.5

    def log_target(x):
        return Normal(0.0, 1.0).log_prob(x[0]) + Normal(weight * x[0] ** 2, scale).log_prob(x[1])

    with jax.enable_x64(False):
        networks = CouplingNetworks(2, layers=2, hidden=32)
        base = Normal(jnp.zeros(2), jnp.ones(2))

        def loss(key, params, batch):
            q = networks.law(params, base)
            noise = q.noise().sample(key, (256,))
            kl = jax.vmap(lambda e: stop_gradient(q).log_prob(q.transport(e)) - log_target(q.transport(e)))(noise)
            return kl.mean(), {}

        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 3000))
        fresh = networks.init(jax.random.key(0))
        state = training.init_state(fresh, optimizer)
        state = training.fit(
            jax.random.key(1), loss, lambda step: jnp.zeros((1, 1)), optimizer, state, steps=3000, chunk=1000
        )
        draws, entropy = 100_000, np.log(2 * np.pi * np.e) + np.log(scale)

        @jax.jit
        def densities(q):
            z = q.sample(jax.random.key(2), (draws,))
            return jax.vmap(q.log_prob)(z), jax.vmap(log_target)(z)

        def check(params):
            log_q, log_p = (np.asarray(v, np.float64) for v in densities(networks.law(params, base)))
            kl, error = (log_q - log_p).mean(), (log_q - log_p).std() / draws**0.5
            assert kl < 0.003 + 5 * error
            assert abs(-log_q.mean() - entropy) < 0.01 + 5 * log_q.std() / draws**0.5

        holds_only_for(check, state.params, fresh)
