"""Several latent sites: exact gradients by enumeration and quadrature in NumPy, for sites side by side and nested."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import special, stats

from vbjax.distributions import Bernoulli, Categorical, Distribution, Gamma, Joint, Normal, OneHotCategorical
from vbjax.distributions.hierarchy import Hierarchy
from vbjax.estimators import leave_one_out, pathwise, score_function, value_and_grad
from vbjax.estimators.baselines import score_function_moving_average
from vbjax.estimators.binary import disarm
from vbjax.estimators.coupling import draw
from vbjax.estimators.mixed import mixed, nested
from vbjax.estimators.relaxed import gumbel_softmax, straight_through
from vbjax.exact import exact_moments
from vbjax.types import Nodes, NotAvailable

PARAMS = (0.3, 0.5, -0.9, 1.1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def differences(objective, params=PARAMS, step=1e-3):
    def at(i, shift):
        return objective(*(p + shift * (i == j) for j, p in enumerate(params)))

    count = len(params)
    return np.array(
        [(8 * (at(i, step) - at(i, -step)) - at(i, 2 * step) + at(i, -2 * step)) / (12 * step) for i in range(count)]
    )


def bias(estimator, problem, objective, **kwargs):
    """Exact mean of the value and the gradient less the truth."""
    moments = exact_moments(estimator, problem, tuple(map(jnp.asarray, PARAMS)), **kwargs)
    errors = np.array([moments.value, *moments.mean]) - np.array([objective(*PARAMS), *differences(objective)])
    return np.abs(errors).max()


def cost(w, z1, z2, np=np):
    return w * np.sin(z2 + 2 * z1) + z1 * z2**2


def coin_then(parameters, z1):
    a, b = parameters
    return Bernoulli(a + b * z1)


def normal_then(parameters, z1):
    a, b = parameters
    return Normal(a + b * z1, 0.7)


def coins(z1, a, b):
    """Points and weights of z2 given z1."""
    p = special.expit(a + b * z1)
    return np.array([0.0, 1.0]), np.array([1 - p, p])


POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def normals(z1, a, b):
    return a + b * z1 + 0.7 * POINTS, WEIGHTS


def hierarchy(first, then, first_points, second_points, *, entropy=False):
    """A problem, and its objective in NumPy: E cost, less the log-density of q itself where entropy is asked for."""

    def problem(params):
        phi, a, b, w = params
        q = Hierarchy(first(phi), Partial(then, (a, b)))
        return q, lambda z: cost(w, *z, np=jnp) - (q.log_prob(z) if entropy else 0)

    def objective(phi, a, b, w):
        total = 0.0
        for z1, p1 in zip(*first_points(phi), strict=True):
            z2, p2 = second_points(z1, a, b)
            total += p1 * p2 @ (cost(w, z1, z2) - (np.log(p1 * p2) if entropy else 0))
        return total

    return problem, objective


def coin_first(phi):
    return np.array([0.0, 1.0]), np.array([special.expit(-phi), special.expit(phi)])


def normal_first(phi):
    return phi + 1.2 * POINTS, WEIGHTS


COIN_COIN = hierarchy(Bernoulli, coin_then, coin_first, coins, entropy=True)
COIN_NORMAL = hierarchy(Bernoulli, normal_then, coin_first, normals)
NORMAL_NORMAL = hierarchy(lambda phi: Normal(phi, 1.2), normal_then, normal_first, normals)
NORMAL_COIN = hierarchy(lambda phi: Normal(phi, 1.2), coin_then, normal_first, coins)
RLOO = score_function(2, baseline=leave_one_out)

NESTED = {
    "coin-coin": (COIN_COIN, nested(RLOO, score_function(1))),
    "coin-normal": (COIN_NORMAL, nested(RLOO, pathwise())),
}
MORE = {
    "normal-normal": (NORMAL_NORMAL, nested(pathwise(), pathwise())),
    "coin-coin twice": (COIN_COIN, nested(RLOO, RLOO)),
    "coin-coin antithetic": (COIN_COIN, nested(disarm(), disarm())),
    "coin-normal antithetic": (COIN_NORMAL, nested(disarm(), pathwise())),
    "normal-normal by scores": (NORMAL_NORMAL, nested(score_function(1), score_function(1))),
    "normal-normal, score inside": (NORMAL_NORMAL, nested(pathwise(), score_function(1))),
    "pathwise of the whole": (NORMAL_NORMAL, pathwise()),
}


@pytest.mark.parametrize("name", [*NESTED, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_nested_estimators_are_unbiased_for_both_levels_and_the_model(name):
    (problem, objective), estimator = {**NESTED, **MORE}[name]
    assert bias(estimator, problem, objective) < 1e-9
    assert (estimator.spec.unbiased_value, estimator.spec.unbiased_variational, estimator.spec.unbiased_model) == (
        True,
    ) * 3


def test_inner_noise_that_forgets_where_z1_is_would_be_biased(monkeypatch):
    problem, objective = COIN_COIN
    module = importlib.import_module("vbjax.estimators.mixed")  # the package's attribute is the function
    draw = module.draw

    def forgetful(law, noise):
        return draw(jax.tree.map(lambda x: jnp.full_like(x, 0.5), law), noise)

    monkeypatch.setattr(module, "draw", forgetful)
    assert bias(nested(RLOO, score_function(1)), problem, objective) > 1e-2


@pytest.mark.slow
def test_a_biased_inner_gradient_is_found_and_announced():
    problem, objective = hierarchy(Bernoulli, coin_then, coin_first, coins)
    estimator = nested(score_function(1), straight_through())
    assert not estimator.spec.unbiased_variational
    assert bias(estimator, problem, objective) > 1e-2
    with pytest.raises(ValueError, match="biased value"):
        nested(pathwise(), gumbel_softmax(temperature=1.0))


def test_a_coin_inside_a_normal_is_unbiased_when_its_jump_is_integrated():
    """The jump of z2 in its uniform moves with z1, so the noise's nodes are built here: two cells for each z1."""
    problem, objective = NORMAL_COIN
    phi, a, b, _ = PARAMS
    p = special.expit(a + b * (phi + 1.2 * POINTS))
    uniforms = np.stack([p / 2, (1 + p) / 2], 1).ravel()
    weights = np.stack([p, 1 - p], 1) * WEIGHTS[:, None]

    class Cells(Distribution):
        def nodes(self, order):
            z1 = jnp.repeat(jnp.asarray(POINTS), 2)[:, None]
            return Nodes((z1, jnp.asarray(uniforms)[:, None]), jnp.asarray(weights.ravel()), exact=True)

    estimator = nested(pathwise(), score_function(1))
    assert bias(estimator._replace(noise=lambda q: Cells()), problem, objective) < 1e-8
    # a pathwise gradient that takes z2 for a function of z1 alone misses the score of z2
    blind = nested(pathwise(), score_function(1)._replace(surrogate=lambda state, z, f, q: jax.vmap(f)(z).mean()))
    assert bias(blind._replace(noise=lambda q: Cells()), problem, objective) > 1e-2


@pytest.mark.slow
def test_three_levels():
    logits = np.array([0.4, -0.3, 0.1])

    def third(w, z1, z2):
        return OneHotCategorical(jnp.asarray(logits) * z2 + w * z1 * jnp.arange(3.0))

    def second(parameters, z1):
        a, b = parameters
        return Hierarchy(Bernoulli(a + z1), Partial(third, b, z1))

    weights = np.array([1.0, -2.0, 0.5])

    def problem(params):
        phi, a, b, w = params
        q = Hierarchy(Bernoulli(phi), Partial(second, (a, b)))
        return q, lambda z: w * jnp.sin(z[0] + 2 * z[1][0]) * (z[1][1] @ jnp.asarray(weights)) - q.log_prob(z)

    def objective(phi, a, b, w):
        total = 0.0
        for z1, p1 in zip(*coin_first(phi), strict=True):
            for z2, p2 in zip(*coins(z1, a, 1.0), strict=True):
                p3 = special.softmax(logits * z2 + b * z1 * np.arange(3))
                total += p1 * p2 * p3 @ (w * np.sin(z1 + 2 * z2) * weights - np.log(p1 * p2 * p3))
        return total

    assert bias(nested(score_function(1), nested(score_function(1), score_function(1))), problem, objective) < 1e-9


def side_by_side(phi, a, b, w):
    total = 0.0
    for z1, p1 in zip(*coin_first(phi), strict=True):
        total += p1 * WEIGHTS @ cost(w, z1, a + np.exp(b) * POINTS)
    return total


def mixed_problem(params):
    phi, a, b, w = params
    return Joint((Bernoulli(phi), Normal(a, jnp.exp(b)))), lambda z: cost(w, *z, np=jnp)


def test_mixed_sites_are_unbiased_for_every_law_and_the_model():
    assert bias(mixed(score_function(1), pathwise()), mixed_problem, side_by_side) < 1e-9


@pytest.mark.slow
def test_a_biased_member_is_found_and_announced():
    estimator = mixed(straight_through(), pathwise())
    assert bias(estimator, mixed_problem, side_by_side) > 1e-2
    assert not estimator.spec.unbiased_variational


@pytest.mark.slow
def test_mixed_averages_draws_and_updates_its_members():
    estimator = mixed(score_function_moving_average(2), pathwise(2), samples=3)
    params = tuple(map(jnp.asarray, PARAMS))
    q, f = mixed_problem(params)
    noise = estimator.noise(q).sample(jax.random.key(0))
    state = estimator.init(q)
    after = estimator.update(state, noise, f, q)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state, after)
    assert max(jax.tree.leaves(moved)) > 0
    z, members = noise
    one = mixed(score_function_moving_average(2), pathwise(2))

    def single(k):
        return one.surrogate(state, jax.tree.map(lambda x: x[k : k + 1], (z, members)), f, q)

    assert jnp.allclose(estimator.surrogate(state, noise, f, q), sum(map(single, range(3))) / 3)


@pytest.mark.slow
def test_nested_updates_its_members_after_use():
    problem, _ = COIN_NORMAL
    estimator = nested(score_function(1), score_function_moving_average(1))
    params = tuple(map(jnp.asarray, PARAMS))
    q, f = problem(params)
    state = estimator.init(q)
    noise = estimator.noise(q).sample(jax.random.key(0))
    after = estimator.update(state, noise, f, q)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert any(jnp.any(x != y) for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True))


@pytest.mark.slow
def test_under_jit_and_vmap_in_float32():
    with jax.enable_x64(False):
        phi = jnp.linspace(-1, 1, 3, dtype=jnp.float32)

        def gradients(key, phi):
            keys = jax.random.split(key)
            params = (phi, jnp.float32(0.5), jnp.float32(-0.9), jnp.float32(1.1))
            return (
                value_and_grad(keys[0], nested(RLOO, score_function(2)), COIN_COIN[0], params),
                value_and_grad(keys[1], mixed(RLOO, pathwise(), samples=2), mixed_problem, params),
            )

        for value, gradient in jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(0), 3), phi):
            assert value.dtype == jnp.float32
            assert all(g.shape == (3,) and jnp.isfinite(g).all() and g.dtype == jnp.float32 for g in gradient)


def test_equal_steps_of_the_uniform_noise_draw_each_category_in_its_share():
    count, probs = 1000, np.array([0.2, 0.5, 0.0, 0.3], np.float32)
    uniforms = jnp.asarray((np.arange(count) + 0.5) / count, jnp.float32)
    drawn = jax.vmap(lambda u: draw(Categorical.from_probs(probs), u))(uniforms)
    np.testing.assert_array_equal(np.bincount(drawn, minlength=4), [200, 500, 0, 300])


def test_an_impossible_category_is_never_drawn():
    """In float32 the probabilities may add up to less than one, and the largest uniform lies above their sum."""
    logits = np.append(np.random.default_rng(0).normal(size=(200, 9)), np.full((200, 1), -np.inf), 1)
    law = Categorical(jnp.asarray(logits, jnp.float32))
    largest = jnp.full(200, np.nextafter(np.float32(1), np.float32(0)))
    assert (np.cumsum(np.asarray(law.probs), -1)[:, -2] <= largest).any()
    assert not (draw(law, largest) == 9).any()


def test_a_biased_model_of_the_inner_site_is_announced():
    """What z1 does to the inner objective reaches q(z1) through the inner model's gradient."""
    inner = pathwise(1)
    biased = inner._replace(spec=inner.spec._replace(unbiased_model=False))
    assert nested(pathwise(1), inner).spec.unbiased_variational
    assert not nested(pathwise(1), biased).spec.unbiased_variational


def test_refusals_name_a_way_out():
    def run(estimator, q):
        return value_and_grad(jax.random.key(0), estimator, lambda q: (q, lambda z: z[0] * z[1]), q)

    def gamma(rate, z1):
        return Gamma(jnp.exp(z1), rate)

    joint = Joint((Bernoulli(0.0), Normal(0.0, 1.0)))
    with pytest.raises(NotAvailable, match="nested"):
        run(mixed(pathwise()), Hierarchy(Normal(0.0, 1.0), Partial(normal_then, (jnp.zeros(()), jnp.ones(())))))
    with pytest.raises(NotAvailable, match="Joint of 1"):
        run(mixed(pathwise()), joint)
    with pytest.raises(NotAvailable, match="score_function"):
        run(mixed(pathwise(), pathwise()), joint)
    with pytest.raises(NotAvailable, match="mixed"):
        run(nested(pathwise(), pathwise()), joint)
    with pytest.raises(NotAvailable, match="moves with the outer event"):
        run(nested(pathwise(), pathwise()), Hierarchy(Normal(0.0, 1.0), Partial(gamma, jnp.asarray(2.0))))
    with pytest.raises(TypeError, match="Partial"):
        Hierarchy(Normal(0.0, 1.0), lambda z1: Normal(z1, 1.0))
    with pytest.raises(ValueError, match="none"):
        mixed()
    noise = ((jnp.zeros(1), jnp.zeros(1)), (jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    estimator = mixed(score_function(1), pathwise())

    def surrogate(phi):
        q = Joint((Bernoulli(phi), Normal(0.0, 1.0)))
        return estimator.surrogate(((), ()), noise, lambda z: z[0] * z[1], q)

    with pytest.raises(NotAvailable, match="first derivatives"):
        jax.grad(jax.grad(surrogate))(0.3)


def test_a_hierarchy_is_the_law_of_its_pairs():
    q = Hierarchy(Bernoulli(0.3), Partial(coin_then, (0.5, -0.9)))
    points, weights, exact = q.nodes(2)
    p1 = special.expit(0.3)
    second = [special.expit(-0.5), special.expit(0.5), special.expit(0.4), special.expit(-0.4)]
    table = np.array([1 - p1, 1 - p1, p1, p1]) * second
    assert exact
    np.testing.assert_allclose(weights, table, rtol=1e-12)
    np.testing.assert_allclose(np.exp(jax.vmap(q.log_prob)(points)), table, rtol=1e-12)
    z1, z2 = q.sample(jax.random.key(0), (20_000,))
    counts = np.bincount(np.asarray(2 * z1 + z2, int), minlength=4)
    assert stats.chisquare(counts, 20_000 * table).pvalue > 1e-6
    assert stats.chisquare(counts, 20_000 * table[[1, 0, 2, 3]]).pvalue < 1e-6


@pytest.mark.slow
def test_the_noise_of_a_hierarchy_may_depend_on_the_first_event():
    def gamma(rate, z1):
        return Gamma(jnp.exp(z1), rate)

    q = Hierarchy(Normal(0.2, 0.3), Partial(gamma, jnp.asarray(2.0)))
    assert isinstance(Hierarchy(Normal(0.2, 0.3), Partial(normal_then, (jnp.zeros(()), jnp.ones(())))).noise(), Joint)
    noise = q.noise()
    assert isinstance(noise, Hierarchy)
    points, weights, _ = noise.nodes(128)
    z1, z2 = jax.vmap(q.transport)(points)
    # E z2 = E e^z1 / 2, and E z1 z2 = E z1 e^z1 / 2
    mean = np.exp(0.2 + 0.09 / 2) / 2
    np.testing.assert_allclose(weights @ z2, mean, rtol=1e-9)
    np.testing.assert_allclose(weights @ (z1 * z2), (0.2 + 0.09) * mean, rtol=1e-9)
