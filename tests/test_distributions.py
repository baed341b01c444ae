"""Densities, moments, supports and samples of every family against SciPy, NumPyro, quadrature and enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from oracles import (
    CONTINUOUS,
    DISCRETE,
    EVERY_LAW,
    FALSE_ALARM,
    by_numpyro,
    every,
    expectation,
    holds_only_for,
    quadrature,
    spd,
    z_threshold,
)
from scipy import special, stats

from vbjax import distributions as vd
from vbjax.divergences import kl_divergence
from vbjax.types import NotAvailable

pytestmark = pytest.mark.usefixtures("x64")
UNIVARIATE = CONTINUOUS | DISCRETE


@functools.cache
def drawn(name, num=20_000):
    """A law, many of its events, the first of them with its log-density, mean and variance: one compilation."""
    law = EVERY_LAW[name]()

    @jax.jit
    def report(law):
        draws = law.sample(jax.random.key(5), (num,))
        event = jax.tree.map(lambda leaf: leaf[0], draws)
        return draws, event, law.log_prob(event), law.support.contains(event), law.mean(), law.variance()

    return law, *report(law)


def each_law(law, x):
    """log_prob of every coordinate of x, `(m, n)`, under the n laws of one family stacked on an axis."""
    by_law = jax.vmap(lambda law, x: law.log_prob(x))
    return np.asarray(jax.jit(jax.vmap(by_law, (None, 0)))(law, jnp.asarray(x)))


def interior_points(frozen):
    return frozen.ppf(np.array([1e-12, 1e-4, 0.02, 0.3, 0.5, 0.8, 0.99, 1 - 1e-9])[:, None])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_density_matches_scipy_and_numpyro(name):
    twin = CONTINUOUS[name]()
    x = interior_points(twin.scipy)

    def check(law):
        log_density = each_law(law, x)
        assert_allclose(log_density, twin.scipy.logpdf(x), rtol=1e-10, atol=1e-10)
        assert_allclose(log_density, by_numpyro(lambda: twin.numpyro.log_prob(x)), rtol=1e-9, atol=1e-9)

    holds_only_for(check, twin.law, twin.slip)


@pytest.mark.parametrize("name", DISCRETE)
def test_log_mass_matches_scipy_and_numpyro(name):
    twin = DISCRETE[name]()
    x = np.array([0.0, 1.0])[:, None] if name == "Bernoulli" else np.arange(0.0, 60.0)[:, None]
    x = np.broadcast_to(x, (len(x), 5))

    def check(law):
        assert_allclose(each_law(law, x), by_numpyro(lambda: twin.numpyro.log_prob(x)), rtol=1e-10, atol=1e-12)
        assert_allclose(np.exp(each_law(law, x)), twin.scipy.pmf(x), rtol=1e-9, atol=1e-14)

    holds_only_for(check, twin.law, twin.slip)


@pytest.mark.parametrize("name", UNIVARIATE)
def test_mean_and_variance_match_scipy(name):
    twin = UNIVARIATE[name]()
    mean, variance = twin.scipy.stats(moments="mv")
    if name == "StudentT":
        # at df <= 1 there is no mean and SciPy answers inf; ours is NaN
        mean, variance = (np.where(np.arange(5) == 1, np.nan, v) for v in (mean, variance))

    def check_mean(law):
        assert_allclose(law.mean(), mean, rtol=1e-10, atol=1e-14)

    def check_variance(variance_or_scale):
        assert_allclose(variance_or_scale, variance, rtol=1e-9, atol=1e-15)

    wrong_mean = [] if name in ("Laplace", "Logistic", "StudentT", "Normal") else [twin.slip]
    holds_only_for(check_mean, twin.law, *wrong_mean)
    holds_only_for(check_variance, twin.law.variance(), twin.law.variance() ** 0.5, twin.slip.variance())


@pytest.mark.parametrize("name", [n for n in UNIVARIATE if n != "Poisson"])
def test_entropy_matches_scipy_and_sums_over_coordinates(name):
    twin = UNIVARIATE[name]()
    expected = twin.scipy.entropy()

    def check(law):
        assert_allclose(jax.jit(jax.vmap(lambda law: law.entropy()))(law), expected, rtol=1e-8, atol=1e-9)

    holds_only_for(check, twin.law, twin.slip)
    assert_allclose(twin.law.entropy(), expected.sum(), rtol=1e-8)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_density_integrates_to_one_and_entropy_is_its_integral(name):
    twin = CONTINUOUS[name]()
    points, weights = quadrature(twin.scipy, *([] if twin.kink is None else [twin.kink]))

    def check(tilt):
        log_density = each_law(twin.law, points) + tilt
        density = np.exp(log_density)
        assert_allclose(np.sum(weights * density, 0), 1, rtol=1e-7)
        entropy = -np.sum(weights * density * np.where(density > 0, log_density, 0), 0)
        assert_allclose(entropy, jax.vmap(lambda law: law.entropy())(twin.law), rtol=1e-6, atol=1e-6)

    holds_only_for(check, 0.0, 1e-4)


@pytest.mark.parametrize("name", UNIVARIATE)
def test_nodes_reproduce_expectations(name):
    twin = UNIVARIATE[name]()
    if name == "StudentT":
        with pytest.raises(NotAvailable, match="StudentT has no quadrature rule"):
            twin.law.nodes(8)
        return

    def smooth(x):
        if name == "LogNormal":  # its moments grow too fast for a rule in x
            return np.cos(np.log(np.maximum(x, 1e-300)))
        return np.cos((x - twin.scipy.mean()[:, None]) / twin.scipy.std()[:, None])

    nodes = [jax.tree.map(lambda leaf, i=i: leaf[i], twin.law).nodes(240) for i in range(5)]
    laws = [rule.points for rule in nodes]
    if name in DISCRETE:
        counts = np.broadcast_to(np.arange(2000.0), (5, 2000))
        expected = np.sum(np.where(twin.scipy.pmf(counts.T).T > 0, twin.scipy.pmf(counts.T).T * smooth(counts), 0), 1)
    else:
        rule = quadrature(twin.scipy, *([] if twin.kink is None else [twin.kink]))
        expected = expectation(twin.scipy, smooth(rule[0].T).T, rule)

    def check(weights):
        assert_allclose([w.sum() for w in weights], 1, rtol=1e-8)
        ours = [
            np.sum(w * smooth(np.broadcast_to(x, (5, len(x))))[i])
            for i, (x, w) in enumerate(zip(laws, weights, strict=True))
        ]
        assert_allclose(ours, expected, atol=1e-6)

    right = [np.asarray(rule.weights) for rule in nodes]
    holds_only_for(check, right, [w**2 / np.sum(w**2) for w in right])


def test_nodes_of_small_log_gamma_concentrations_follow_the_long_left_tail():
    for a in (1e-3, 0.05, 0.9, 1e3):
        points, weights, _ = vd.LogGamma(a).nodes(200)
        assert_allclose([weights.sum(), weights @ points], [1, stats.loggamma(a).mean()], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(3, CONTINUOUS))
def test_samples_pass_kolmogorov_smirnov(name):
    twin = CONTINUOUS[name]()
    num = 20_000
    sample = jax.jit(lambda law: law.sample(jax.random.key(1), (num,)))

    @jax.jit
    def carry(law):
        return jax.vmap(law.transport)(law.noise().sample(jax.random.key(2), (num,)))

    transported = np.asarray(carry(twin.law))
    share = FALSE_ALARM / (2 * len(CONTINUOUS) * 5)

    def check(draws):
        assert draws.shape == (num, 5)
        for i, column in enumerate(draws.T):
            p_value = stats.kstest(
                column, lambda x, i=i: twin.scipy.cdf(np.broadcast_to(x[:, None], (num, 5)))[:, i]
            ).pvalue
            assert p_value > share

    holds_only_for(check, np.asarray(sample(twin.law)), np.asarray(sample(twin.slip)))
    check(transported)


@pytest.mark.parametrize("name", ["Bernoulli", "Poisson", "Categorical", "OneHotCategorical", "DiscretisedNormal"])
def test_discrete_samples_pass_chi_squared(name):
    num = 20_000
    law = {
        "Bernoulli": vd.Bernoulli([0.7]),
        "Poisson": vd.Poisson([1.3]),
        "Categorical": vd.Categorical([0.0, 1.0, -np.inf, 0.5]),
        "OneHotCategorical": vd.OneHotCategorical([0.0, 1.0, -np.inf, 0.5]),
        "DiscretisedNormal": vd.DiscretisedNormal([0.3], [0.5], 6),
    }[name]
    draws = jax.jit(lambda law: law.sample(jax.random.key(3), (num,)))(law)
    points = jnp.arange(8.0)[:, None] if name == "Poisson" else law.enumerate()
    probs = np.exp(jax.jit(jax.vmap(law.log_prob))(points))
    draws, points = np.asarray(draws).reshape(num, -1), np.asarray(points).reshape(len(points), -1)
    counts = (draws[:, None] == points[None]).all(-1).sum(0)

    def check(probs):
        assert counts[probs == 0].sum() == 0
        expected = np.append(probs[probs > 0] * num, max(num * (1 - probs.sum()), 1e-9))
        observed = np.append(counts[probs > 0], num - counts.sum())
        keep = expected > 1e-6
        statistic = np.sum((observed - expected)[keep] ** 2 / expected[keep])
        assert stats.chi2.sf(statistic, keep.sum() - 1) > FALSE_ALARM / 5
        assert observed[~keep].sum() == 0

    holds_only_for(check, probs, probs[::-1], np.full(len(probs), 1 / len(probs)))


@pytest.mark.parametrize("name", every(3, EVERY_LAW))
def test_sample_moments_agree_with_mean_and_variance(name):
    _, draws, _, _, _, means, variances = drawn(name)
    num = 20_000
    z_max = z_threshold(2 * 2 * len(EVERY_LAW) + 2)
    for column, mean, variance in zip(*map(jax.tree.leaves, (draws, means, variances)), strict=True):
        column = np.asarray(column, np.float64)
        assert column.shape == (num, *mean.shape)
        centred = column - np.asarray(mean)
        assert np.all(np.abs(centred.mean(0)) < z_max * column.std(0) / num**0.5)
        if name == "StudentT":
            continue  # the fourth moment of three degrees of freedom is infinite
        squares = centred**2
        assert np.all(np.abs(squares.mean(0) - variance) < z_max * squares.std(0) / num**0.5)
        with pytest.raises(AssertionError):
            assert np.all(np.abs(squares.mean(0) - 1.3 * np.asarray(variance)) < z_max * squares.std(0) / num**0.5)


# Multivariate and compound laws.


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from([1, 3, 16]), st.floats(0, 8), st.floats(-4, 4), st.integers(0, 2**31))
def test_multivariate_normal_of_any_condition_matches_scipy(d, log10_condition, log10_scale, seed):
    rng = np.random.default_rng(seed)
    covariance = spd(rng, d, log10_condition, 10.0**log10_scale)
    factor = np.linalg.cholesky(covariance)
    loc = rng.normal(size=d)
    x = loc + factor @ rng.normal(size=d)
    frozen = stats.multivariate_normal(loc, covariance, allow_singular=True)
    law = vd.MultivariateNormal.from_covariance(loc, covariance)
    tolerance = 1e-13 * 10.0**log10_condition + 1e-9

    def check(value):
        assert_allclose(value, frozen.logpdf(x), rtol=tolerance, atol=tolerance)

    value, entropy, product, again = multivariate_report(law, x)
    uncorrelated = vd.MultivariateNormal(loc, np.diag(np.diag(factor)))
    wrong = [multivariate_report(uncorrelated, x)[0]] if d > 1 and log10_condition > 1 else []
    holds_only_for(check, value, *wrong)
    assert_allclose(entropy, frozen.entropy(), rtol=1e-8, atol=1e-7)
    assert_allclose(product, covariance, rtol=1e-9, atol=1e-9 * 10.0**log10_scale)
    assert_allclose(again, x, rtol=tolerance * 10, atol=tolerance * 10)


@jax.jit
def multivariate_report(law, x):
    return law.log_prob(x), law.entropy(), law.covariance(), law.whiten(law.transport(x))


def test_transport_of_a_multivariate_normal_has_its_covariance():
    factor = np.array([[1.0, 0, 0], [0.5, 1.2, 0], [-0.3, 0.4, 0.8]])
    law = vd.MultivariateNormal(np.zeros(3), factor)

    def check(transport):
        points, weights, _ = law.noise().nodes(3)
        z = np.asarray(jax.vmap(transport)(points))
        assert_allclose(np.einsum("n,ni,nj->ij", weights, z, z), factor @ factor.T, atol=1e-12)

    holds_only_for(check, law.transport, lambda noise: jnp.asarray(factor).T @ noise)
    assert_allclose(law.variance(), np.diag(factor @ factor.T), rtol=1e-14)


def test_nothing_moves_what_stands_above_the_diagonal_of_a_cholesky_factor():
    """Or a path would change draws in a way that the density and the score cannot see."""
    p = vd.MultivariateNormal(jnp.array([0.4, -0.3]), jnp.array([[0.7, 0.0], [0.2, 0.5]]))
    x = jnp.array([0.3, 0.9])

    @jax.jit
    @jax.jacobian
    def everything(tril):
        q = vd.MultivariateNormal(p.loc, tril)
        covariance = q.covariance()
        return jnp.stack(
            [*q.transport(x), q.log_prob(x), *q.variance(), covariance[0, 1], q.entropy(), *q.whiten(x),
             kl_divergence(q, p), kl_divergence(p, q)]
        )  # fmt: skip

    slopes = everything(jnp.array([[0.9, 0.0], [-0.4, 0.6]]))
    assert_allclose(slopes[:, 0, 1], 0)
    assert np.abs(slopes[:, 1, 0]).max() > 0.1
    # the wrong variant: a path through the whole matrix
    assert jax.jacobian(lambda tril: tril @ x)(p.scale_tril)[0, 0, 1] == x[1]


def test_blocks_of_a_multivariate_normal_are_independent():
    factors = np.stack([np.eye(2), np.array([[2.0, 0], [1.0, 0.5]])])
    law = vd.MultivariateNormal(np.ones((2, 2)), factors)
    x = jnp.asarray([[0.3, 1.0], [2.0, -1.0]])
    expected = sum(
        stats.multivariate_normal(np.ones(2), f @ f.T).logpdf(row) for f, row in zip(factors, x, strict=True)
    )
    assert_allclose(law.log_prob(x), expected, rtol=1e-12)
    assert law.sample(jax.random.key(0), (4,)).shape == (4, 2, 2)


@pytest.mark.parametrize("concentration", [[0.5, 2.0, 3.0], [1.0, 1.0], [100.0, 300.0, 1.0, 0.9]])
def test_dirichlet_matches_scipy_and_numpyro(concentration):
    frozen, twin = stats.dirichlet(concentration), npd.Dirichlet(np.array(concentration))
    x = np.random.default_rng(0).dirichlet(np.ones(len(concentration)), size=5)

    def check(law):
        ours = jax.vmap(law.log_prob)(jnp.asarray(x))
        assert_allclose(ours, [frozen.logpdf(row) for row in x], rtol=1e-10, atol=1e-12)
        assert_allclose(ours, by_numpyro(lambda: twin.log_prob(x)), rtol=1e-10, atol=1e-12)
        assert_allclose(law.entropy(), frozen.entropy(), rtol=1e-10, atol=1e-12)
        assert_allclose(law.mean(), frozen.mean(), rtol=1e-12)
        assert_allclose(law.variance(), frozen.var(), rtol=1e-10)

    holds_only_for(check, vd.Dirichlet(concentration), vd.Dirichlet(np.array(concentration) + 1))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from([2, 7, 64]), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 2**31))
def test_categorical_with_exact_zeros_matches_direct_sums(k, alpha, seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k, alpha)) * (rng.random(k) > 0.3)
    probs[rng.integers(k)] += 0.1
    probs /= probs.sum()
    law, one_hot = vd.Categorical.from_probs(probs), vd.OneHotCategorical.from_probs(probs)
    entropy = -sum(p * np.log(p) for p in probs if p > 0)
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    gradient, ours, by_one_hot, entropies, moments, spread = categorical_report(law, one_hot)
    assert_allclose(ours, log_probs, rtol=1e-9, atol=1e-12)
    assert_allclose(by_one_hot, log_probs, rtol=1e-9, atol=1e-12)
    assert_allclose(entropies, entropy, rtol=1e-10, atol=1e-12)
    mean = probs @ np.arange(k)
    assert_allclose(moments, [mean, probs @ np.arange(k) ** 2 - mean**2], rtol=1e-9, atol=1e-9)
    assert_allclose(spread, probs @ (np.eye(k) - probs) ** 2, rtol=1e-9, atol=1e-12)
    assert isinstance(gradient, vd.Categorical)
    possible = probs > 0
    expected = np.where(possible, -probs * (np.log(np.where(possible, probs, 1)) + entropy), 0)
    assert_allclose(gradient.logits, expected, rtol=1e-8, atol=1e-11)


@jax.jit
def categorical_report(law, one_hot):
    return (
        jax.grad(lambda law: law.entropy())(law),
        jax.vmap(law.log_prob)(law.enumerate()),
        jax.vmap(one_hot.log_prob)(one_hot.enumerate()),
        jnp.stack([law.entropy(), one_hot.entropy()]),
        jnp.stack([law.mean(), law.variance()]),
        one_hot.variance(),
    )


def test_rows_of_logits_are_independent_categories():
    logits = np.array([[0.0, 1.0, -0.5], [2.0, 0.3, 0.1]])
    first, second = special.log_softmax(logits, 1)

    def check(law):
        mass = jax.vmap(law.log_prob)(law.enumerate())
        assert_allclose(mass, (first[:, None] + second[None]).ravel(), rtol=1e-12)

    holds_only_for(check, vd.Categorical(logits), vd.Categorical(logits[::-1]))


def test_mixture_matches_a_direct_sum_and_its_posterior():
    weights, locs, scales = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 3.0]), np.array([0.5, 1.0, 0.2])
    components = [stats.norm(m, s) for m, s in zip(locs, scales, strict=True)]
    law = vd.Mixture(np.log(weights), vd.Normal(locs, scales))
    x = 0.7
    parts = np.array([w * c.pdf(x) for w, c in zip(weights, components, strict=True)])

    def check(law):
        assert_allclose(law.log_prob(jnp.asarray(x)), np.log(parts.sum()), rtol=1e-12)
        assert_allclose(jax.nn.softmax(law.component_log_probs(jnp.asarray(x))), parts / parts.sum(), rtol=1e-12)
        second = sum(w * (c.var() + c.mean() ** 2) for w, c in zip(weights, components, strict=True))
        assert_allclose([law.mean(), law.variance()], [weights @ locs, second - (weights @ locs) ** 2], rtol=1e-12)
        nodes = law.nodes(20)
        assert_allclose(nodes.weights @ nodes.points**2, second, rtol=1e-10)

    holds_only_for(check, law, vd.Mixture(weights, vd.Normal(locs, scales)))
    assert vd.Mixture([0.0, -np.inf], vd.Normal([0.0, 9.0], [1.0, 1.0])).log_prob(jnp.zeros(())) == stats.norm.logpdf(0)


def test_mixture_of_uniforms_is_supported_on_their_union():
    law = vd.Mixture([0.0, 0.0], vd.Uniform([0.0, 2.0], [1.0, 4.0]))
    inside = [bool(law.support.contains(jnp.asarray(x))) for x in (0.5, 1.5, 3.0)]
    assert inside == [True, False, True]
    assert_allclose(np.exp([law.log_prob(jnp.asarray(x)) for x in (0.5, 1.5, 3.0)]), [0.5, 0, 0.25])


def test_copies_and_joint_add_up_over_their_parts():
    base, other = vd.Normal([0.3, -1.0], [1.0, 0.5]), vd.Poisson(2.0)
    x, n = np.array([[0.1, 0.2], [0.3, -0.5], [2.0, 1.0]]), 3.0
    copies, joint = vd.Copies(base, 3), vd.Joint((base, other))
    by_scipy = stats.norm([0.3, -1.0], [1.0, 0.5]).logpdf(x)
    assert_allclose(copies.log_prob(jnp.asarray(x)), by_scipy.sum(), rtol=1e-12)
    assert_allclose(joint.log_prob((jnp.asarray(x[0]), jnp.asarray(n))), by_scipy[0].sum() + stats.poisson(2).logpmf(3))
    assert_allclose(copies.entropy(), 3 * base.entropy())
    assert copies.event_shape == (3, 2)
    assert joint.event_shape == ((2,), ())
    points, weights, exact = vd.Joint((vd.Bernoulli(0.3), vd.Categorical([0.0, 1.0, 2.0]))).nodes(2)
    assert exact
    assert points[0].shape == points[1].shape == weights.shape == (6,)
    assert_allclose(weights.sum(), 1)
    assert vd.Copies(vd.Bernoulli(0.3), 4).enumerate().shape == (16, 4)
    assert jax.tree.map(jnp.shape, joint.sample(jax.random.key(0), (5, 4))) == ((5, 4, 2), (5, 4))


# The interface.


@pytest.mark.parametrize("name", EVERY_LAW)
def test_shapes_capabilities_and_enumeration_are_consistent(name):
    law, _, event, log_density, contained, _, _ = drawn(name)

    def shapes(shape):
        sampled = jax.eval_shape(lambda key: law.sample(key, shape), jax.random.key(0))
        return jax.tree.map(lambda leaf: leaf.shape, sampled)

    assert shapes(()) == jax.tree.map(jnp.shape, event) == law.event_shape
    assert jax.tree.leaves(shapes((3, 4)), is_leaf=lambda s: isinstance(s[0], int))[0][:2] == (3, 4)
    assert log_density.shape == ()
    assert jnp.isfinite(log_density)
    assert contained
    capabilities = law.capabilities
    assert capabilities.fixed_support == (name != "Uniform")
    for possible, call in [
        (capabilities.enumerable, law.enumerate),
        (capabilities.closed_form_entropy, law.entropy),
        (capabilities.reparameterised, lambda: law.transport(law.noise().sample(jax.random.key(2)))),
    ]:
        if possible:
            jax.eval_shape(call)
        else:
            with pytest.raises(NotAvailable):
                call()
    if capabilities.enumerable:
        assert_allclose(jax.jit(lambda law: law.nodes(1).weights.sum())(law), 1, rtol=1e-12)


@pytest.mark.parametrize("name", every(3, EVERY_LAW))
def test_a_law_is_a_pytree_whose_gradient_is_a_law(name):
    law, _, event, *_ = drawn(name)
    leaves, structure = jax.tree.flatten(law)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(law)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))
    step = 1e-6
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * (1 + step), leaf * (1 - step)]), law)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(lambda law: law.log_prob(event))))(stacked)
    assert jax.tree.structure(gradients) == structure
    along = sum(jnp.sum(g[0] * leaf) for g, leaf in zip(jax.tree.leaves(gradients), leaves, strict=True))
    assert_allclose(along, (values[1] - values[2]) / (2 * step), rtol=1e-6, atol=1e-7)


OUTSIDE = {
    "LogNormal": [-1.0],
    "Gamma": [-1e-3],
    "Beta": [-0.1, 1.1],
    "Uniform": [-0.1, 1.1],
    "Bernoulli": [0.5, 2.0, -1.0],
    "Poisson": [-1.0, 0.5],
    "DiscretisedNormal": [-1.0, 0.5, 3.0],
    "DiscretisedLogistic": [-1.0, 0.5, 3.0],
    "Categorical": [-1, 3],
}


@pytest.mark.parametrize("name", every(3, sorted(set(EVERY_LAW) - {"Joint", "Categorical"} | set(OUTSIDE))))
def test_log_prob_outside_the_support_is_minus_infinity_and_its_gradient_is_no_nan(name):
    law, _, good, *_ = drawn(name)
    values = [*OUTSIDE.get(name, []), *([] if name == "Categorical" else [np.inf, -np.inf])]
    events = jnp.stack([good.at[(0,) * good.ndim].set(value) for value in values])
    log_density, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda law, x: law.log_prob(x)), (None, 0)))(
        law, events
    )
    assert jnp.all(log_density == -jnp.inf), log_density
    assert not jnp.any(jax.vmap(law.support.contains)(events))
    finite = jnp.isfinite(events).reshape(len(values), -1).all(-1)
    for leaf in jax.tree.leaves(gradient):
        assert not bool(jnp.isnan(leaf[finite]).any())


def test_simplices_reject_what_lies_off_them():
    dirichlet, one_hot = vd.Dirichlet([1.0, 2.0]), vd.OneHotCategorical([1.0, 2.0])
    for x in ([0.5, 0.6], [-0.1, 1.1]):
        assert dirichlet.log_prob(jnp.asarray(x)) == -jnp.inf
    for x in ([1.0, 1.0], [0.0, 0.0], [0.5, 0.5]):
        assert one_hot.log_prob(jnp.asarray(x)) == -jnp.inf


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: vd.Normal(0.0, -1.0), r"Normal\.scale must be positive and finite, got -1"),
        (lambda: vd.Normal(np.nan, 1.0), r"Normal\.loc must be finite, got NaN"),
        (lambda: vd.Normal([0.0, 1.0], [1.0, 1.0, 1.0]), r"loc\(2,\), scale\(3,\)"),
        (lambda: vd.LogNormal(0.0, 0.0), r"LogNormal\.scale"),
        (lambda: vd.Laplace(np.inf, 1.0), r"Laplace\.loc"),
        (lambda: vd.Logistic(0.0, np.inf), r"Logistic\.scale"),
        (lambda: vd.StudentT(0.0, 0.0, 1.0), r"StudentT\.df"),
        (lambda: vd.Uniform(1.0, 1.0), r"Uniform\.high must be above low"),
        (lambda: vd.Gamma(-1.0, 1.0), r"Gamma\.concentration"),
        (lambda: vd.Gamma(1.0, -1.0), r"Gamma\.rate"),
        (lambda: vd.LogGamma(0.0), r"LogGamma\.concentration"),
        (lambda: vd.Beta(1.0, 0.0), r"Beta\.concentration0"),
        (lambda: vd.Dirichlet([1.0, -1.0]), r"Dirichlet\.concentration"),
        (lambda: vd.Dirichlet(1.0), r"Dirichlet\.concentration must end in an axis"),
        (lambda: vd.Bernoulli(np.nan), r"Bernoulli\.logits"),
        (lambda: vd.Bernoulli.from_probs(1.2), r"Bernoulli\.probs must lie in \[0, 1\]"),
        (lambda: vd.Categorical.from_probs([0.5, 0.6]), r"Categorical\.probs must sum to one"),
        (lambda: vd.Categorical([np.inf, 0.0]), r"Categorical\.logits must be below \+inf"),
        (lambda: vd.Categorical([-np.inf, -np.inf]), r"Categorical\.logits must be finite for one category"),
        (lambda: vd.Categorical(0.0), r"Categorical\.logits must have a last axis"),
        (lambda: vd.OneHotCategorical.from_probs([-0.5, 1.5]), r"OneHotCategorical\.probs must lie"),
        (lambda: vd.Poisson(-1.0), r"Poisson\.rate"),
        (lambda: vd.MultivariateNormal([0.0, 0.0], np.eye(3)), r"scale_tril must have shape"),
        (lambda: vd.MultivariateNormal([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), r"must be lower triangular"),
        (lambda: vd.MultivariateNormal([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]), r"positive on its diagonal"),
        (lambda: vd.MultivariateNormal.from_covariance([0.0, 0.0], [[1.0, 0.5], [0.2, 1.0]]), r"must be symmetric"),
        (lambda: vd.MultivariateNormal.from_covariance([0.0, 0.0], [[1, 2], [2, 1]]), r"must be positive definite"),
        (lambda: vd.DiscretisedNormal(0.0, 1.0, 1), r"DiscretisedNormal\.levels must be at least 2"),
        (lambda: vd.DiscretisedLogistic(0.0, -1.0, 4), r"DiscretisedLogistic\.scale"),
        (lambda: vd.DiscretisedLogisticMixture(0.0, 0.0, 1.0, 4), r"logits must have a last axis"),
        (lambda: vd.Mixture([0.0, 0.0], vd.Normal(np.zeros(3), 1.0)), r"Mixture\.components must have leading axis"),
        (lambda: vd.Mixture([np.nan, 0.0], vd.Normal(np.zeros(2), 1.0)), r"Mixture\.logits"),
        (lambda: vd.Copies(vd.Normal(0.0, 1.0), 0), r"Copies\.count must be at least 1"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_traced_parameters_are_let_through():
    assert jnp.isnan(jax.jit(lambda scale: vd.Normal(0.0, scale).entropy())(-1.0))


def test_integers_and_arrays_become_floating_point_parameters():
    assert vd.Normal(0, 1).dtype == jnp.float64
    assert vd.MultivariateNormal([0, 0], [[1, 0], [0, 1]]).dtype == jnp.float64
    assert vd.MultivariateNormal.from_covariance([0, 0], [[2, 1], [1, 2]]).dtype == jnp.float64
    assert vd.Normal(np.float32(0), 1.0).dtype == jnp.float32


def test_too_many_nodes_are_refused():
    with pytest.raises(NotAvailable, match="Monte Carlo"):
        vd.Bernoulli(np.zeros(30)).enumerate()
    with pytest.raises(NotAvailable, match="Monte Carlo"):
        vd.Normal(np.zeros(12), 1.0).nodes(10)


# Extremes, in both precisions.


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)])
def test_normal_densities_are_right_for_log_variances_of_sixty(wide, tolerance):
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        for log_variance, z in itertools.product((-60.0, 60.0), (0.0, 1.5, -40.0)):
            scale = dtype(np.exp(0.5 * log_variance))
            law, x = vd.Normal(dtype(0), scale), jnp.asarray(dtype(z) * scale)
            expected = stats.norm(0, float(scale)).logpdf(float(x))

            def check(value, expected=expected):
                assert_allclose(value, expected, rtol=tolerance)

            holds_only_for(check, law.log_prob(x), vd.Normal(dtype(0), scale * scale).log_prob(x))
            gradient = jax.grad(lambda law, x=x: law.log_prob(x))(law)
            assert_allclose(gradient.scale * scale, (float(x) / float(scale)) ** 2 - 1, rtol=20 * tolerance)


@pytest.mark.parametrize("wide", [False, True])
def test_certain_outcomes_have_exact_densities_entropies_and_gradients(wide):
    with jax.enable_x64(wide):
        logits = np.array([800.0, -800.0, -np.inf, np.inf])
        outcomes = jnp.asarray([0.0, 1.0])
        right = np.minimum(np.stack([-logits, logits], -1), 0)

        def density_and_slope(logit, x):
            return jax.value_and_grad(lambda logit: vd.Bernoulli(logit).log_prob(x))(logit)

        per_logit = jax.vmap(jax.vmap(density_and_slope, (None, 0)), (0, None))
        density, slope = jax.jit(per_logit)(jnp.asarray(logits), outcomes)
        holds_only_for(lambda value: assert_allclose(value, right), density, density[:, ::-1])
        assert_allclose(slope, np.stack([-1.0 * (logits > 0), 1.0 * (logits < 0)], -1), atol=1e-12)
        entropy = jax.vmap(jax.value_and_grad(lambda logit: vd.Bernoulli(logit).entropy()))
        assert_allclose(jax.jit(entropy)(jnp.asarray(logits)), np.zeros((2, 4)), atol=1e-12)

        def categorical(logit):
            law = vd.Categorical(jnp.stack([jnp.zeros_like(logit), logit]))
            gradients = [jax.grad(f)(law) for f in (lambda q: q.entropy(), lambda q: q.log_prob(jnp.asarray(1)))]
            return jax.vmap(law.log_prob)(law.enumerate()), law.entropy(), gradients

        density, entropy, gradients = jax.jit(jax.vmap(categorical))(jnp.asarray(logits[:3]))
        assert_allclose(density, right[:3], atol=1e-12)
        assert_allclose(entropy, 0, atol=1e-12)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_probabilities_of_exactly_zero_and_one_survive():
    assert_allclose(vd.Bernoulli.from_probs([0.0, 1.0, 0.5]).probs, [0, 1, 0.5])
    law = vd.Poisson([0.0])
    assert law.log_prob(jnp.zeros(1)) == 0
    assert law.log_prob(jnp.ones(1)) == -jnp.inf


def test_student_t_approaches_the_normal_law_in_float32():
    with jax.enable_x64(False):
        x = jnp.asarray(1.3)
        for df in (10.0, 38.0, 42.0, 1e3, 1e6):
            law, frozen = vd.StudentT(df, 0.0, 1.0), stats.t(df)
            assert_allclose(law.log_prob(x), frozen.logpdf(np.float32(1.3)), rtol=3e-6)
            assert_allclose(law.entropy(), frozen.entropy(), rtol=5e-6)
        assert_allclose(vd.StudentT(2.0, 0.0, 1.0).log_prob(jnp.asarray(1e30)), stats.t(2).logpdf(1e30), rtol=1e-5)


@pytest.mark.parametrize("name", every(5, EVERY_LAW))
def test_log_prob_refuses_a_batch_and_names_the_family(name):
    law = EVERY_LAW[name]()
    batch = law.sample(jax.random.key(0), (7,))
    with pytest.raises(ValueError, match="log_prob takes"):
        law.log_prob(batch)


def test_log_prob_names_both_shapes_where_a_number_would_broadcast():
    with pytest.raises(ValueError, match=r"Normal.log_prob takes one event of shape \(3,\), got \(\)"):
        vd.Normal(jnp.zeros(3), 1.0).log_prob(0.5)
    with pytest.raises(ValueError, match=r"Copies.log_prob takes one event of shape \(2,\), got \(3,\)"):
        vd.Copies(vd.Normal(0.0, 1.0), 2).log_prob(jnp.zeros(3))
    with pytest.raises(ValueError, match="log_prob takes a tuple"):
        vd.Joint((vd.Normal(0.0, 1.0), vd.Bernoulli(0.0))).log_prob(jnp.zeros(2))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_log_prob_of_a_python_number_is_that_of_the_array(name, wide):
    with jax.enable_x64(wide):
        law = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[0]), UNIVARIATE[name]().law)
        number = float(jnp.asarray(law.mean())) if name in CONTINUOUS else 1.0
        assert law.log_prob(number) == law.log_prob(jnp.asarray(number, law.dtype))


@pytest.mark.parametrize("count", [2, 3])
def test_support_of_copies_of_a_joint_law_contains_its_events_alone(count):
    law = vd.Copies(vd.Joint((vd.Normal(0.0, 1.0), vd.Bernoulli(jnp.zeros(2)))), count)
    x, bits = law.sample(jax.random.key(1))
    assert law.support.contains((x, bits))
    assert not law.support.contains((x, bits.at[count - 1, 1].set(0.5)))
    assert not law.support.contains((x.at[0].set(jnp.nan), bits))


def test_poisson_of_rate_zero_has_the_slope_of_its_limit():
    slope = jax.grad(lambda rate, x: vd.Poisson(rate).log_prob(x))
    assert slope(0.0, 0.0) == -1
    assert_allclose(slope(2.0, 3.0), 0.5)


def test_categorical_index_is_int32_under_float64():
    assert vd.Categorical(jnp.zeros(3)).sample(jax.random.key(0), (4,)).dtype == jnp.int32
