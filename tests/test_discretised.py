"""Likelihoods of integer levels: exact deep in the tails, in float32 and float64, with finite gradients."""

from decimal import Context, Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for, normal_interval
from scipy import integrate, special, stats

from vbjax.distributions import DiscretisedLogistic, DiscretisedLogisticMixture, DiscretisedNormal
from vbjax.distributions.discretised import log1mexp, log_normal_interval

pytestmark = pytest.mark.usefixtures("x64")


def decimal_intervals(centres, radii):
    return np.array([normal_interval(float(c), float(r)) for c, r in zip(centres, radii, strict=True)])


def far_interval(centre, radius):
    """log P by quadrature of the density in units of its value at the near edge; for intervals far in a tail."""
    edge = abs(centre) - radius
    reach = min(2 * radius, 60 / edge)
    area, _ = integrate.quad(lambda t: np.exp(-edge * t - 0.5 * t**2), 0, reach, epsabs=0, epsrel=1e-13)
    return -0.5 * (edge**2 + np.log(2 * np.pi)) + np.log(area)


def naive_interval(centre, radius):
    return jnp.log(special.ndtr(centre + radius) - special.ndtr(centre - radius))


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)])
def test_log_normal_interval_matches_high_precision_in_both_tails_and_across_the_branches(wide, tolerance):
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        centre, radius = [], []
        for c in (0.0, 0.3, 1.0, 3.0, 8.0, 30.0):
            boundary = 0.5 / (1 + c)  # between the two branches
            for r in (1e-6, 1e-2, boundary * (1 - 1e-3), boundary * (1 + 1e-3), 0.6, 2.0, 7.0):
                centre += [c, -c]
                radius += [r, r]
        centre, radius = np.array(centre, dtype), np.array(radius, dtype)
        exact = decimal_intervals(centre, radius)

        def check(values):
            assert_allclose(values, exact, rtol=tolerance, atol=tolerance)

        ours = jax.jit(log_normal_interval)(centre, radius)
        with np.errstate(divide="ignore"):
            holds_only_for(
                check, ours, naive_interval(centre, radius), jax.jit(log_normal_interval)(centre, 2 * radius)
            )


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)])
def test_log_normal_interval_and_its_gradient_far_beyond_underflow(wide, tolerance):
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        centre = np.array([60.0, 500.0, 1e4, 1e4, -1e6], dtype)
        radius = np.array([1.0, 0.01, 1e-5, 3.0, 1.0], dtype)
        exact = [far_interval(float(c), float(r)) for c, r in zip(centre, radius, strict=True)]
        value, (slope_centre, slope_radius) = jax.jit(
            jax.vmap(jax.value_and_grad(log_normal_interval, argnums=(0, 1)))
        )(centre, radius)
        assert_allclose(value, exact, rtol=tolerance)
        # d/dc log ∫_{c-r}^{c+r} φ = (φ(c+r) - φ(c-r)) / P, in logarithms
        c, r = np.abs(centre).astype(np.float64), radius.astype(np.float64)
        near = np.exp(-0.5 * (c - r) ** 2 - 0.5 * np.log(2 * np.pi) - exact)
        far = near * np.exp(-2 * c * r)
        # the exponent is a difference of numbers as large as c²/2, so the oracle itself keeps fewer digits
        rtol = 100 * tolerance + 1e-15 * c**2
        for ours, expected, digits in zip(slope_centre, np.sign(centre) * (far - near), rtol, strict=True):
            assert_allclose(ours, expected, rtol=digits)
        for ours, expected, digits in zip(slope_radius, far + near, rtol, strict=True):
            assert_allclose(ours, expected, rtol=digits)


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 3e-7), (True, 1e-15)])
def test_log1mexp_matches_high_precision(wide, tolerance):
    with jax.enable_x64(wide):
        x = np.concatenate([np.geomspace(1e-30, 80, 200), [np.log(2), 0.6931, 0.6932, 800.0]])
        x = x.astype(np.float64 if wide else np.float32)
        context = Context(prec=400)
        exact = np.array([float(context.subtract(1, (-Decimal(float(v))).exp(context)).ln(context)) for v in x])

        def check(f):
            assert_allclose(f(x), exact, rtol=4 * tolerance)

        def naive(x):
            with np.errstate(divide="ignore"):
                return np.log(1 - np.exp(-x))

        holds_only_for(check, jax.jit(log1mexp), naive)
        assert log1mexp(jnp.zeros(())) == -jnp.inf


LOC, SCALE = (
    v.ravel().astype(np.float32)
    for v in np.meshgrid([-1.0, 0.3, 1.7, 50.0], np.exp([-30.0, -8.0, -2.0, 0.0, 5.0, 30.0]))
)


@pytest.mark.parametrize("kind", [DiscretisedNormal, DiscretisedLogistic])
def test_levels_sum_to_one_and_float32_gradients_are_right_everywhere(kind):
    @jax.jit
    def report(loc, scale):
        def levels(loc, scale):
            log_probs = kind(loc, scale, 256).log_probs()
            return log_probs, log_probs

        slopes, log_probs = jax.vmap(jax.jacfwd(levels, argnums=(0, 1), has_aux=True))(loc, scale)
        reverse = jax.vmap(jax.grad(lambda law: law.log_prob(jnp.asarray(3.0, loc.dtype))))(kind(loc, scale, 256))
        return log_probs, slopes, (reverse.loc, reverse.scale)

    exact = jax.tree.map(np.asarray, report(LOC.astype(np.float64), SCALE.astype(np.float64)))
    with jax.enable_x64(False):
        single = jax.tree.map(np.asarray, report(LOC, SCALE))
    for (log_probs, slopes, reverse), tolerance in ((exact, 1e-12), (single, 1e-5)):
        assert np.isfinite(log_probs).all()

        def check(log_probs, tolerance=tolerance):
            assert_allclose(np.exp(log_probs.astype(np.float64)).sum(-1), 1, rtol=tolerance)

        holds_only_for(check, log_probs, log_probs[:, 1:-1], 1.001 * log_probs)
        for forward, backward, truth in zip(slopes, reverse, exact[2], strict=True):
            # NaN only where the derivative itself, in a scale of e^-30, is beyond the largest float32
            assert not np.isnan(backward[np.abs(truth) < 1e36]).any()
            finite = np.abs(backward) < 1e38
            assert_allclose(backward[finite], forward[:, 3][finite], rtol=1e-3, atol=1e-7)
    # the distance of a level from loc is itself rounded
    assert_allclose(single[0], exact[0], rtol=1e-4, atol=1e-5)
    for ours, expected in zip(single[1], exact[1], strict=True):
        assert np.isfinite(expected).all()
        # a derivative in a scale of e^-30 may lie beyond the largest float32, with steps on the way to it
        overflow = np.abs(expected) > 1e36
        unit = np.broadcast_to(1 / SCALE[:, None], ours.shape)
        assert_allclose((ours / unit)[~overflow], (expected / unit)[~overflow], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("levels", [17, 256])
def test_float32_reverse_gradient_of_the_discretised_normal_matches_float64_where_a_tail_underflows(levels):
    scale = np.array([0.005, 0.02, 0.05, 0.2])
    events = np.array([0, 1, levels // 2, levels - 1])

    def slopes(dtype):
        by_event = jax.vmap(jax.grad(lambda law, x: law.log_prob(x)), (None, 0))
        by_scale = jax.jit(jax.vmap(by_event, (0, None)))
        laws = DiscretisedNormal(np.zeros(4, dtype), scale.astype(dtype), levels)
        return jax.tree.map(np.asarray, jax.tree.leaves(by_scale(laws, events.astype(dtype))))

    exact = slopes(np.float64)
    with jax.enable_x64(False):
        single = slopes(np.float32)
    for ours, expected in zip(single, exact, strict=True):
        assert np.isfinite(expected).all()
        assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [DiscretisedNormal, DiscretisedLogistic])
def test_level_probabilities_are_differences_of_the_distribution_function_with_the_tails(kind):
    loc, scale, levels = np.array([0.3, -0.8, 1.2]), np.array([0.4, 0.05, 2.0]), 8
    frozen = (stats.norm if kind is DiscretisedNormal else stats.logistic)(loc[:, None], scale[:, None])
    edges = -1 + (2 * np.arange(1, levels) - 1) / (levels - 1)
    ends = np.concatenate([[-np.inf], edges, [np.inf]])
    exact = np.where(ends[1:] < loc[:, None], np.diff(frozen.cdf(ends)), -np.diff(frozen.sf(ends)))
    no_tails = np.diff(frozen.cdf(-1 + (2 * np.arange(levels + 1) - 1) / (levels - 1)))
    law = kind(loc, scale, levels)

    def check(probs):
        assert_allclose(probs, exact, rtol=1e-9, atol=1e-15)

    # the others: bins of half a width beside the tails, and the density times the width
    at_points = frozen.pdf(np.linspace(-1, 1, levels)) * 2 / (levels - 1)
    holds_only_for(check, np.exp(law.log_probs()), no_tails, at_points)
    k = np.arange(levels)
    mean = exact @ k
    assert_allclose(law.mean(), mean, rtol=1e-10)
    assert_allclose(law.variance(), exact @ k**2 - mean**2, rtol=1e-9)
    assert_allclose(law.entropy(), special.entr(exact).sum(), rtol=1e-9)
    assert_allclose(law.log_prob(jnp.asarray([0.0, 3.0, 7.0])), np.log(exact[[0, 1, 2], [0, 3, 7]]).sum(), rtol=1e-9)


def test_logistic_levels_far_in_the_tail_keep_their_exponential_decay():
    loc, scale, levels = 0.0, 1e-3, 256
    with jax.enable_x64(False):
        law = DiscretisedLogistic(np.float32(loc), np.float32(scale), levels)
        ours = jax.jit(jax.vmap(law.log_prob))(jnp.arange(200.0, 255.0))
    upper, lower = ((2 * np.arange(200.0, 255.0) - 255 + s) / 255 / scale for s in (1, -1))
    # σ(-a) - σ(-b) = e^-a (1 - e^(a-b)) up to e^-a, here below 1e-200
    exact = -lower + np.log(-np.expm1(lower - upper))
    holds_only_for(lambda value: assert_allclose(value, exact, rtol=1e-5), ours, exact + np.log(2), exact * 0.99)


def test_mixture_of_logistics_is_the_weighted_sum_of_its_components():
    logits = np.array([[0.0, 1.0, -np.inf], [0.2, 0.1, 0.0]])
    loc = np.array([[0.3, -1.0, 0.0], [0.1, 0.0, 2.0]])
    scale = np.array([[1.0, 0.5, 0.1], [0.3, 0.2, 0.01]])
    weights = special.softmax(logits, axis=-1)
    law = DiscretisedLogisticMixture(logits, loc, scale, 5)
    parts = np.exp(DiscretisedLogistic(loc, scale, 5).log_probs())
    exact = np.einsum("ik,ikl->il", weights, parts)
    holds_only_for(lambda p: assert_allclose(p, exact, rtol=1e-10), np.exp(law.log_probs()), parts.mean(1))
    gradient = jax.jit(jax.grad(lambda law: law.log_prob(jnp.asarray([0.0, 2.0]))))(law)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert law.event_shape == (2,)
    assert_allclose(jax.jit(lambda law: law.nodes(1).weights.sum())(law), 1, rtol=1e-12)
