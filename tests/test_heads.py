"""Likelihoods of grey values in [0, 1]: the continuous Bernoulli law against quadrature, scales with a floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import FALSE_ALARM, holds_only_for
from scipy import integrate, special, stats

from vbjax.distributions import Bernoulli, ContinuousBernoulli, Mixture, Normal
from vbjax.distributions.continuous_bernoulli import log_sinhc
from vbjax.divergences import kl_divergence
from vbjax.networks.heads import HEADS, FixedNormalHead, LearnedNormalHead, PredictedNormalHead, positive, rounding

LOGITS = np.array([0.0, 1e-9, -1e-4, 0.3, -1.99999, 2.00001, -7.0, 40.0, -800.0, 800.0])
SHAPE = (3, 2)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def moments_by_quadrature(logits):
    """log Z, mean and variance of the density ∝ exp(logit x) on [0, 1], one logit after the other."""

    def one(logit):
        # measured from the end where the density is largest; beyond 60 decay lengths nothing is left
        rate = abs(logit)
        end = min(1.0, 60 / rate) if rate else 1.0

        def integral(f):
            return integrate.quad(lambda u: f(u) * np.exp(-rate * u), 0, end, epsabs=0, epsrel=1e-13)[0]

        z = integral(lambda u: 1)
        mean = integral(lambda u: u) / z
        spread = integral(lambda u: (u - mean) ** 2)
        return np.log(z) + max(logit, 0), 1 - mean if logit > 0 else mean, spread / z

    return np.array([one(logit) for logit in logits]).T


def each(function):
    return np.asarray(jax.jit(jax.vmap(lambda logit: function(ContinuousBernoulli(logit))))(jnp.asarray(LOGITS)))


def test_continuous_bernoulli_matches_quadrature_at_and_around_a_half_and_far_from_it(float64):
    log_z, mean, variance = moments_by_quadrature(LOGITS)
    x = np.array([0.0, 0.2, 0.5, 0.99, 1.0])
    expected = LOGITS[:, None] * x - log_z[:, None]

    def cross_entropy(law):
        """What is often taken for it: Bernoulli's formula at grey values, which integrates to less than one."""
        return lambda x: x * law.logits - jax.nn.softplus(law.logits)

    def check(log_density):
        ours = each(lambda law: jax.vmap(log_density(law))(jnp.asarray(x)))
        assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)

    holds_only_for(check, lambda law: law.log_prob, cross_entropy)
    p = special.expit(LOGITS)
    holds_only_for(lambda v: assert_allclose(v, mean, rtol=1e-12, atol=1e-13), each(lambda law: law.mean()), p)
    holds_only_for(lambda v: assert_allclose(v, variance, rtol=1e-10), each(lambda law: law.variance()), p * (1 - p))
    assert_allclose(each(lambda law: law.entropy()), log_z - LOGITS * mean, rtol=1e-11, atol=1e-11)
    assert each(lambda law: law.log_prob(jnp.asarray(1.001))).max() == -np.inf


def test_continuous_bernoulli_keeps_its_digits_in_float32():
    log_z, mean, variance = moments_by_quadrature(LOGITS)

    def naive(logit):
        return jnp.log((jnp.exp(logit) - 1) / logit) - 0.5 * logit

    def check(normaliser):
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(normaliser)))(jnp.asarray(LOGITS, jnp.float32))
        curvature = jax.jit(jax.vmap(jax.grad(jax.grad(normaliser))))(jnp.asarray(LOGITS, jnp.float32))
        assert_allclose(value, log_z - LOGITS / 2, rtol=2e-6, atol=1e-7)
        assert_allclose(slope, mean - 0.5, rtol=2e-6, atol=1e-12)
        assert_allclose(curvature, variance, rtol=2e-5)

    holds_only_for(check, lambda logit: log_sinhc(logit / 2), naive)


def test_continuous_bernoulli_distribution_function_quantile_and_draws_agree(float64):
    law, draws = ContinuousBernoulli(LOGITS), 4000
    u = np.array([1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6])[:, None] * np.ones_like(LOGITS)
    x = jax.jit(jax.vmap(law.quantile))(jnp.asarray(u))
    assert_allclose(jax.jit(jax.vmap(law.cdf))(x), u, rtol=1e-9, atol=1e-12)
    for k in (0, 3, 6):
        density = jax.jit(jax.vmap(lambda t, k=k: jnp.exp(ContinuousBernoulli(LOGITS[k]).log_prob(t))))
        nodes, weights = np.polynomial.legendre.leggauss(40)
        below = [np.asarray(density(jnp.asarray(t * (nodes + 1) / 2))) @ weights * t / 2 for t in np.asarray(x[:, k])]
        assert_allclose(below, u[:, k], rtol=1e-9)
    sample = np.asarray(jax.jit(lambda key: law.sample(key, (draws,)))(jax.random.key(0)))

    def check(law):
        u = np.asarray(jax.vmap(law.cdf)(jnp.asarray(sample)))
        assert min(stats.kstest(u[:, k], "uniform").pvalue for k in range(len(LOGITS))) > FALSE_ALARM / len(LOGITS)

    holds_only_for(check, law, ContinuousBernoulli(-LOGITS), ContinuousBernoulli(LOGITS + 0.5))


def test_continuous_bernoulli_kl_matches_quadrature(float64):
    q, p = np.array([0.0, 1.0, -3.0, 30.0]), np.array([1e-3, -2.0, -3.5, 5.0])
    (log_zq, *_), (log_zp, *_) = moments_by_quadrature(q), moments_by_quadrature(p)

    def expected(a, b, log_za, log_zb):
        def cost(x):
            return np.exp(a * x - log_za) * ((a - b) * x - log_za + log_zb)

        return integrate.quad(cost, 0, 1, epsabs=1e-14, epsrel=1e-9, limit=200)[0]

    right = [expected(*row) for row in zip(q, p, log_zq, log_zp, strict=True)]
    kl = jax.jit(jax.vmap(lambda q, p: kl_divergence(ContinuousBernoulli(q), ContinuousBernoulli(p))))
    q, p = jnp.asarray(q), jnp.asarray(p)
    bernoulli = jax.vmap(lambda q, p: kl_divergence(Bernoulli(q), Bernoulli(p)))(q, p)
    holds_only_for(lambda v: assert_allclose(v, right, rtol=1e-7, atol=1e-13), kl(q, p), kl(p, q), bernoulli)


def continuous_bernoulli_kl(q, p):
    return kl_divergence(ContinuousBernoulli(q), ContinuousBernoulli(p))


def test_continuous_bernoulli_kl_of_neighbours_keeps_its_digits_and_its_sign_in_float32():
    logits = np.linspace(-40, 40, 401)
    pairs = np.concatenate([np.stack([logits, logits + gap]) for gap in (1e-4, 1e-3, -0.1, 3.0, -5.0, 19.0, -60.0)], 1)
    large = [[800, 801, 800, 300, 0, 800], [801, 800, 1190, 1, 800, 0]]
    q, p = np.float32(np.concatenate([pairs, large], 1))
    # the integral of (1 - s) gap² Var along the segment, in NumPy's float64 by far more nodes
    start, end = q.astype(float) / 2, p.astype(float) / 2
    nodes, weights = np.polynomial.legendre.leggauss(400)
    nodes, weights = (nodes + 1) / 2, weights / 2
    t = start + nodes[:, None] * (end - start)
    tiny = np.abs(t) < 1e-2
    safe = np.where(tiny, 1, t)
    curvature = np.where(tiny, 1 / 3 - t**2 / 15, 1 / safe**2 - 1 / np.sinh(np.clip(safe, -300, 300)) ** 2)
    expected = (end - start) ** 2 * ((weights * (1 - nodes)) @ curvature)

    def naive(q, p):
        q, p = ContinuousBernoulli(q), ContinuousBernoulli(p)
        return p.log_normaliser() - q.log_normaliser() - (p.logits - q.logits) * (q.mean() - 0.5)

    def check(kl):
        found = np.asarray(jax.jit(jax.vmap(kl))(jnp.asarray(q), jnp.asarray(p)))
        assert found.min() > 0
        assert_allclose(found, expected, rtol=2e-5)

    holds_only_for(check, continuous_bernoulli_kl, naive)
    # of a law and its mirror image: the logit times twice the distance of the mean from a half
    assert_allclose(continuous_bernoulli_kl(np.float32(800), np.float32(-800)), 800 - 2, rtol=1e-6)


def test_continuous_bernoulli_kl_has_the_gradient_of_an_exponential_family(float64):
    q = jnp.asarray(np.repeat([0.0, 0.3, -2.0, 7.0, -40.0, 800.0], 6))
    p = q + jnp.asarray(np.tile([0.0, 1e-6, -3.9, 4.1, -25.0, 500.0], 6))
    at_q, at_p = jax.jit(jax.vmap(jax.grad(continuous_bernoulli_kl, (0, 1))))(q, p)
    of_q, of_p = ContinuousBernoulli(q), ContinuousBernoulli(p)
    assert_allclose(at_q, (q - p) * of_q.variance(), rtol=1e-9)
    assert_allclose(at_p, of_p.mean() - of_q.mean(), rtol=1e-9, atol=1e-14)


def test_continuous_bernoulli_quantiles_stay_in_the_interval_and_its_distribution_function_outside_of_it():
    law = ContinuousBernoulli(np.array([0.0, 20, -20, 800, -800], np.float32))

    def check(quantile):
        low, high = (np.asarray(quantile(jnp.full(5, u, jnp.float32))) for u in (0, 1))
        assert np.all((low >= 0) & (low <= high) & (high <= 1))
        assert_allclose([low[[0, 2, 4]], high[[0, 1, 3]]], [[0] * 3, [1] * 3])

    def unclamped(u):
        size = jnp.maximum(jnp.abs(law.logits), 1e-7)
        distance = -jnp.log1p(jnp.where(law.logits <= 0, u, 1 - u) * jnp.expm1(-size)) / size
        return jnp.where(law.logits <= 0, distance, 1 - distance)

    holds_only_for(check, law.quantile, unclamped)
    for x, below in ((-0.5, 0), (-np.inf, 0), (0, 0), (1, 1), (1.5, 1), (np.inf, 1)):
        assert_allclose(law.cdf(jnp.full(5, x, jnp.float32)), below)


def law_of(head, raw=None):
    """The law at features of zero; raw: what the scale's parameters are set to."""
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros(4))
    if raw is not None:
        params["params"]["raw_scale"] = jnp.full_like(params["params"]["raw_scale"], raw)
    return params["params"], jax.jit(head.apply)(params, jnp.zeros(4))


def test_normal_heads_differ_in_who_sets_the_scale():
    _, fixed = law_of(FixedNormalHead(SHAPE, 0.25))
    assert_allclose(fixed.scale, np.full(SHAPE, 0.25))
    params, shared = law_of(HEADS["normal_shared"].build(SHAPE, 17))
    assert params["raw_scale"].shape == ()
    assert np.unique(shared.scale).size == 1
    params, per_pixel = law_of(HEADS["normal_per_pixel"].build(SHAPE, 17))
    assert params["raw_scale"].shape == per_pixel.scale.shape == SHAPE
    head = HEADS["normal_predicted"].build(SHAPE, 17)
    params = head.init(jax.random.key(0), jnp.zeros(4))
    scales = [head.apply(params, h).scale for h in (jnp.ones(4), -jnp.ones(4))]
    assert np.abs(scales[0] - scales[1]).min() > 1e-3


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_floor_is_the_spread_of_the_rounding_and_no_raw_scale_goes_below_it(levels):
    values = np.random.default_rng(0).uniform(size=100_000) * (levels - 1)
    error = (values - np.round(values)) / (levels - 1)
    z = (error.var() / rounding(levels) ** 2 - 1) / np.sqrt((9 / 5 - 1) / error.size)  # kurtosis of a uniform law
    assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)
    for head in (LearnedNormalHead(SHAPE, rounding(levels)), LearnedNormalHead(SHAPE, rounding(levels), SHAPE)):
        assert_allclose(law_of(head, -1e4)[1].scale, rounding(levels), rtol=1e-6)


def test_without_a_floor_the_likelihood_grows_by_one_nat_for_every_nat_of_the_scale_and_with_it_stops(float64):
    # half the mass of the model sits on one of the three points of the data
    data = np.array([0.0, 1.3, -0.7])

    def log_likelihood(floor, s):
        scale = positive(jnp.log(jnp.expm1(jnp.asarray(s))), floor=floor)
        law = Mixture(jnp.zeros(2), Normal(jnp.zeros(2), jnp.stack([scale, jnp.ones(())])))
        return float(jax.vmap(law.log_prob)(jnp.asarray(data)).sum())

    def by_scipy(s):
        return np.sum(np.log(0.5 * stats.norm.pdf(data, scale=s) + 0.5 * stats.norm.pdf(data)))

    def slope(floor):
        return (log_likelihood(floor, 1e-4) - log_likelihood(floor, 1e-6)) / np.log(1e-4 / 1e-6)

    free = [log_likelihood(0.0, s) for s in (1e-1, 1e-3, 1e-6)]
    assert_allclose(free, [by_scipy(s) for s in (1e-1, 1e-3, 1e-6)], rtol=1e-9)
    assert_allclose(free, [-3.528, 0.982, 7.889], atol=6e-4)
    floor = rounding(17)

    def grows(floor):
        assert_allclose(slope(floor), -1, atol=1e-3)

    holds_only_for(grows, 0.0, floor)
    assert log_likelihood(floor, 1e-12) <= by_scipy(floor) + 1e-9


def test_a_predicted_scale_cannot_make_the_density_of_an_image_exceed_that_at_the_floor():
    head = PredictedNormalHead(SHAPE, rounding(256))
    params = head.init(jax.random.key(0), jnp.zeros(4))
    params["params"]["parameters"]["bias"] = jnp.concatenate([jnp.zeros(6), jnp.full(6, -1e4)])
    best = head.apply(params, jnp.zeros(4)).log_prob(jnp.zeros(SHAPE))
    assert_allclose(best, stats.norm.logpdf(0, scale=rounding(256)) * 6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_head_gives_mass_or_density_to_the_pixels_it_says_it_reads(name):
    levels = 2 if HEADS[name].reads == "bits" else 5
    _, law = law_of(HEADS[name].build(SHAPE, levels))
    white = {"bits": 1.0, "integers": 4.0, "unit interval": 1.0}[HEADS[name].reads]
    assert law.event_shape == SHAPE
    inside, outside = jax.jit(jax.vmap(law.log_prob))(jnp.stack([jnp.full(SHAPE, white + k) for k in (0, 1)]))
    assert jnp.isfinite(inside)
    assert (outside == -jnp.inf) == (not name.startswith("normal"))  # a normal law has all of R
