"""Every row of the KL table against quadrature, enumeration and NumPyro; what is not in the table refuses."""

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
from oracles import EVERY_LAW, FALSE_ALARM, by_numpyro, every, expectation, holds_only_for, quadrature, spd
from scipy import integrate, linalg, special, stats
from scipy.spatial.distance import jensenshannon

from vbjax import distributions as vd
from vbjax.divergences import (
    chi_squared_divergence,
    f_divergence,
    has_closed_form_kl,
    jensen_shannon_divergence,
    kl_divergence,
    monte_carlo_entropy,
    monte_carlo_kl,
    renyi_divergence,
    total_variation,
)
from vbjax.types import NotAvailable

pytestmark = pytest.mark.usefixtures("x64")

# Parameters of three laws per family, chosen to overlap; SciPy's frozen law, and NumPyro's.
LOC, SCALE = np.array([0.0, 0.8, -1.5]), np.array([1.0, 0.4, 2.5])
A, B = np.array([1.0, 3.2, 12.0]), np.array([2.0, 1.3, 8.0])
LOW, HIGH = np.array([0.1, 0.0, 0.3]), np.array([0.7, 1.0, 0.31])
FAMILIES = {
    "Normal": (vd.Normal, (LOC, SCALE), lambda m, s: stats.norm(m, s), npd.Normal),
    "Laplace": (vd.Laplace, (LOC, SCALE), lambda m, s: stats.laplace(m, s), npd.Laplace),
    "Logistic": (vd.Logistic, (LOC, SCALE), lambda m, s: stats.logistic(m, s), npd.Logistic),
    "StudentT": (vd.StudentT, (2 + A, LOC, SCALE), lambda df, m, s: stats.t(df, m, s), npd.StudentT),
    "Uniform": (vd.Uniform, (LOW, HIGH), lambda a, b: stats.uniform(a, b - a), npd.Uniform),
    "LogNormal": (vd.LogNormal, (LOC, SCALE / 2), lambda m, s: stats.lognorm(s, scale=np.exp(m)), npd.LogNormal),
    "Gamma": (vd.Gamma, (A, B), lambda a, b: stats.gamma(a, scale=1 / b), npd.Gamma),
    "LogGamma": (vd.LogGamma, (A,), lambda a: stats.loggamma(a), None),
    "Beta": (vd.Beta, (A, B), lambda a, b: stats.beta(a, b), npd.Beta),
}
OTHER = {  # the second law of a pair has other parameters than the first
    "Uniform": (LOW - 0.1, HIGH + np.array([0.5, 0.2, 0.1])),
    "Beta": (B + 0.5, A),
    "Gamma": (B, A),
    "LogGamma": (B,),
    "StudentT": (3 + B, LOC[::-1], SCALE),
}
ON_THE_REAL_LINE = ("Normal", "Laplace", "Logistic", "StudentT", "LogGamma")


@functools.cache
def documented_pairs():
    """The pairs of the table in the docstring of `kl_divergence`."""
    pairs = set()
    for line in kl_divergence.__doc__.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.strip().startswith("|") or cells[0] in ("q", "---"):
            continue
        first, second = cells[:2]
        if second.startswith("the same"):
            pairs |= {(name.strip(),) * 2 for name in first.split(";")}
            continue
        left = ON_THE_REAL_LINE if first == "a law on R" else [name.strip() for name in first.split(",")]
        right = left if second.startswith("any of them") else [name.strip() for name in second.split(",")]
        pairs |= set(itertools.product(left, right))
    return pairs


UNIVARIATE_PAIRS = sorted(pair for pair in documented_pairs() if set(pair) <= set(FAMILIES))


def parameters(name, second):
    return OTHER.get(name, FAMILIES[name][1]) if second else FAMILIES[name][1]


def other_parameters(name):
    given_parameters = parameters(name, True)
    if given_parameters is FAMILIES[name][1]:
        return tuple(0.8 * p[::-1] + 0.1 for p in given_parameters)
    return given_parameters


def frozen_kl(q_name, q_parameters, p_name, p_parameters):
    """KL by quadrature of SciPy's log-densities, per parameter setting."""
    q, p = FAMILIES[q_name][2](*q_parameters), FAMILIES[p_name][2](*p_parameters)
    kinks = [v[0] for name, v in ((q_name, q_parameters), (p_name, p_parameters)) if name == "Laplace"]
    rule = quadrature(q, *kinks)
    with np.errstate(all="ignore"):
        log_ratio = q.logpdf(rule[0]) - p.logpdf(rule[0])
    # infinite only at a point that rounds to the end of a support: the caller has checked the supports
    return expectation(q, np.where(np.isfinite(log_ratio), log_ratio, 0), rule)


@pytest.mark.parametrize(("q_name", "p_name"), every(3, UNIVARIATE_PAIRS))
def test_closed_form_matches_quadrature_and_its_gradient_matches_differences(q_name, p_name):
    q_parameters, p_parameters = FAMILIES[q_name][1], other_parameters(p_name)
    q_family, p_family = FAMILIES[q_name][0], FAMILIES[p_name][0]
    count = len(q_parameters)

    @jax.jit
    @jax.vmap
    def kl_and_gradient(parameters):
        def kl(parameters):
            return kl_divergence(q_family(*parameters[:count]), p_family(*parameters[count:]))

        return jax.value_and_grad(kl)(parameters)

    stacked = np.stack([*q_parameters, *p_parameters], -1)
    ours, gradient = (np.asarray(v) for v in kl_and_gradient(stacked))
    if np.isinf(ours).any():
        # q has mass where p has none: certified by SciPy's distribution functions
        q, p = FAMILIES[q_name][2](*q_parameters), FAMILIES[p_name][2](*p_parameters)
        low, high = p.support()
        outside = q.cdf(low) + q.sf(high)
        assert np.array_equal(outside > 0, np.isinf(ours))
        assert not np.isnan(gradient).any()
        if np.isinf(ours).all():
            return
        stacked = stacked[np.isfinite(ours)]
        gradient, ours = gradient[np.isfinite(ours)], ours[np.isfinite(ours)]

    def by_quadrature(stacked):
        columns = tuple(stacked.T)
        return frozen_kl(q_name, columns[:count], p_name, columns[count:])

    expected = by_quadrature(stacked)

    def check(value):
        assert_allclose(value, expected, rtol=1e-7, atol=1e-9)

    cross_entropy = ours + np.asarray(jax.vmap(lambda q: q.entropy())(q_family(*stacked.T[:count])))
    holds_only_for(check, ours, cross_entropy, -ours, 0.5 * ours)

    def difference(i):
        h = 1e-5 * np.maximum(np.abs(stacked[:, i]), 0.1)
        moved = [np.where(np.arange(stacked.shape[1]) == i, stacked + s * h[:, None], stacked) for s in (1, -1)]
        return (by_quadrature(moved[0]) - by_quadrature(moved[1])) / (2 * h)

    if "Uniform" in (q_name, p_name):
        return  # its ends at the ends of another support have one-sided derivatives only
    differences = np.stack([difference(i) for i in range(stacked.shape[1])], -1)
    assert_allclose(gradient, differences, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("q_name", ["Laplace", "Uniform", "Gamma", "Beta", "LogNormal"])
def test_gradient_to_a_uniform_or_from_one_matches_differences_of_our_own_value(q_name):
    # for supports that end in the open, where quadrature of SciPy's densities has moving ends
    q = FAMILIES[q_name][0](*(0.5 * v + 0.2 for v in FAMILIES[q_name][1]))
    p = vd.Uniform(-1.0, 3.0) if q_name == "Uniform" else vd.Normal(0.3, 1.2)
    one = jax.tree.map(lambda leaf: leaf[0], q)

    @jax.jit
    def kl(leaves, p):
        return kl_divergence(jax.tree.unflatten(jax.tree.structure(one), list(leaves)), p)

    leaves = jnp.stack(jax.tree.leaves(one))
    gradient = jax.jit(jax.grad(kl))(leaves, p)
    steps = 1e-6 * jnp.eye(len(leaves))
    differences = [(kl(leaves + h, p) - kl(leaves - h, p)) / 2e-6 for h in steps]
    assert_allclose(gradient, differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["Normal", "Gamma", "Beta"])
def test_closed_form_matches_numpyro(name):
    family, q_parameters, _, twin = FAMILIES[name]
    p_parameters = other_parameters(name)
    expected = by_numpyro(lambda: npd.kl_divergence(twin(*q_parameters), twin(*p_parameters)))
    kl, q, p = jax.jit(jax.vmap(kl_divergence)), family(*q_parameters), family(*p_parameters)
    holds_only_for(lambda value: assert_allclose(value, expected, rtol=1e-6), kl(q, p), kl(p, q))


@pytest.mark.parametrize(("q_name", "p_name"), list(itertools.product([*EVERY_LAW][:-1], repeat=2)))
def test_every_pair_is_in_the_table_or_refuses(q_name, p_name):
    q, p = EVERY_LAW[q_name](), EVERY_LAW[p_name]()
    if (q_name, p_name) in documented_pairs():
        assert has_closed_form_kl(q, p)
        value = jax.eval_shape(kl_divergence, q, p)
        assert value.shape == ()
    else:
        assert not has_closed_form_kl(q, p)
        with pytest.raises(NotAvailable, match=f"{q_name} ‖ {p_name}.*monte_carlo_kl"):
            kl_divergence(q, p)


def test_the_table_is_read_whole():
    pairs = documented_pairs()
    assert len(pairs) > 60
    assert {("Normal", "MultivariateNormal"), ("Copies", "Copies"), ("LogGamma", "LogGamma")} <= pairs
    assert ("LogNormal", "Beta") in pairs
    assert set(itertools.chain(*pairs)) <= set(EVERY_LAW)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(3, sorted(name for name in EVERY_LAW if (name, name) in documented_pairs())))
def test_kl_is_zero_at_equality_and_positive_beside_it(name):
    law = EVERY_LAW[name]()

    def beside(step):
        return jax.tree.map(lambda leaf: leaf * (1 + step), law)

    steps = jnp.asarray([0.0, 1e-10, 1e-7, 1e-4, 1e-2])
    kl, gradients = jax.jit(jax.vmap(lambda step: jax.value_and_grad(lambda q: kl_divergence(q, law))(beside(step))))(
        steps
    )
    if name == "Uniform":  # its support moves, to the right of p's
        assert kl[0] == 0
        assert kl[-1] == jnp.inf
        return
    assert_allclose(kl[0], 0, atol=1e-14)
    assert jnp.all(kl > -1e-12)
    assert jnp.all(kl[-2:] > 0)
    # quadratic: the Fisher information, times the square of the step
    assert_allclose(kl[-1] / kl[-2], 1e4, rtol=0.1)
    for leaf in jax.tree.leaves(gradients):
        assert_allclose(leaf[0], 0, atol=1e-12)


# Gaussian laws.


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from([1, 3, 16]), st.floats(0, 8), st.floats(0, 4), st.integers(0, 2**31))
def test_full_covariance_kl_matches_generalised_eigenvalues(d, log10_q, log10_p, seed):
    rng = np.random.default_rng(seed)
    q_covariance, p_covariance = spd(rng, d, log10_q, 10 ** rng.uniform(-4, 4)), spd(rng, d, log10_p, 1.0)
    q_loc, p_loc = rng.normal(size=(2, d))
    eigenvalues = linalg.eigvalsh(q_covariance, p_covariance)
    # the smallest ones carry the error of the factor, their logarithm alone matters
    q_factor = np.linalg.cholesky(q_covariance)
    log_det = 2 * np.log(np.diag(q_factor)).sum() - np.linalg.slogdet(p_covariance)[1]
    distance = (q_loc - p_loc) @ np.linalg.solve(p_covariance, q_loc - p_loc)
    expected = 0.5 * (eigenvalues.sum() - d - log_det + distance)
    value, swapped, by_normal = gaussian_report(
        vd.MultivariateNormal(q_loc, q_factor), vd.MultivariateNormal.from_covariance(p_loc, p_covariance)
    )
    missing_half = value - 0.5 * log_det
    wrong = [swapped] if abs(swapped - expected) > 1e-3 * abs(expected) else []
    wrong += [missing_half] if abs(log_det) > 1e-3 * abs(expected) else []
    holds_only_for(lambda kl: assert_allclose(kl, expected, rtol=1e-7, atol=1e-8), value, *wrong)
    assert_allclose(by_normal[0], by_normal[1], rtol=1e-10, atol=1e-10)


@jax.jit
def gaussian_report(q, p):
    diagonal = vd.Normal(q.loc, jnp.diag(q.scale_tril))
    as_full = vd.MultivariateNormal(diagonal.loc, jnp.diag(diagonal.scale))
    mixed = jnp.stack([kl_divergence(diagonal, p), kl_divergence(p, diagonal)])
    full = jnp.stack([kl_divergence(as_full, p), kl_divergence(p, as_full)])
    return kl_divergence(q, p), kl_divergence(p, q), (mixed, full)


def test_full_covariance_kl_matches_numpyro_and_survives_leading_axes():
    rng = np.random.default_rng(0)
    factors = [np.stack([np.linalg.cholesky(spd(rng, 3, 2, 1.0)) for _ in range(2)]) for _ in range(2)]
    locs = rng.normal(size=(2, 2, 3))
    q, p = (vd.MultivariateNormal(loc, factor) for loc, factor in zip(locs, factors, strict=True))
    expected = by_numpyro(
        lambda: npd.kl_divergence(
            *(npd.MultivariateNormal(m, scale_tril=f) for m, f in zip(locs, factors, strict=True))
        )
    )
    holds_only_for(lambda kl: assert_allclose(kl, expected.sum(), rtol=1e-10), kl_divergence(q, p), kl_divergence(p, q))
    diagonal = vd.Normal(locs[0], np.diagonal(factors[0], 0, 1, 2))
    assert jnp.isfinite(kl_divergence(diagonal, p))
    assert jnp.isfinite(renyi_divergence(q, p, alpha=0.5))


def test_condition_number_1e8_costs_no_more_than_its_square_root():
    covariance = spd(np.random.default_rng(1), 8, 8, 1.0)
    q, p = vd.MultivariateNormal.from_covariance(np.zeros(8), covariance), vd.Normal(np.zeros(8), 1.0)
    eigenvalues = 10.0 ** -np.linspace(0, 8, 8)
    forward = 0.5 * np.sum(eigenvalues - 1 - np.log(eigenvalues))
    backward = 0.5 * np.sum(1 / eigenvalues - 1 + np.log(eigenvalues))
    holds_only_for(lambda kl: assert_allclose(kl, forward, rtol=1e-6), kl_divergence(q, p), kl_divergence(p, q))
    assert_allclose(kl_divergence(p, q), backward, rtol=1e-6)


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)])
def test_normal_kl_is_right_for_log_variances_of_sixty(wide, tolerance):
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        loc, log_variance = np.array([0.5, -1.2, 0.0, 3.0]), np.array([-60.0, 60.0, -2.0, 0.8])
        scale = np.exp(0.5 * log_variance).astype(dtype)
        loc = loc.astype(dtype)
        variance = scale.astype(np.float64) ** 2
        exact = 0.5 * (variance + loc.astype(np.float64) ** 2 - 1 - np.log(variance))

        @jax.jit
        def kl(loc, scale):
            q, p = vd.Normal(loc, scale), vd.Normal(jnp.zeros_like(loc), jnp.ones_like(scale))
            return kl_divergence(q, p)

        half_exponent = 0.5 * (scale + loc**2 - 1 - np.log(variance))
        swapped = 0.5 * ((1 + loc**2) / variance - 1 + np.log(variance))
        ours = jax.vmap(kl)(loc, scale)
        holds_only_for(lambda v: assert_allclose(v, exact, rtol=tolerance), ours, half_exponent, swapped)
        slope = jax.jit(jax.vmap(jax.grad(kl, argnums=1)))(loc, scale)
        assert_allclose(slope * scale, variance - 1, rtol=10 * tolerance)


def test_published_value_of_a_diagonal_kl():
    q = vd.Normal([0.5, -1.2, 0.0], np.exp(0.5 * np.array([-0.3, 0.8, -2.0])))
    assert_allclose(kl_divergence(q, vd.Normal(np.zeros(3), 1.0)), 1.645847216205, rtol=1e-12)


def test_hessian_of_the_laplace_kl_at_equality_is_the_fisher_information():
    p = vd.Laplace(0.3, 0.5)
    hessian = jax.hessian(lambda loc, scale: kl_divergence(vd.Laplace(loc, scale), p), argnums=(0, 1))(0.3, 0.5)
    assert_allclose(hessian, [[4.0, 0.0], [0.0, 4.0]], atol=1e-10)


# Discrete laws.


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from([2, 7, 64]), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 2**31))
def test_finite_divergences_with_exact_zeros_match_direct_sums(k, alpha, seed):
    rng = np.random.default_rng(seed)
    q, p = rng.dirichlet(np.full(k, alpha), size=2) * (rng.random((2, k)) > 0.25)
    p = np.where(rng.random() < 0.6, p + (q > 0) * 1e-3, p)
    q, p = ((v + 1e-3 * (np.arange(k) == rng.integers(k))) for v in (q, p))
    q, p = q / q.sum(), p / p.sum()
    with np.errstate(all="ignore"):
        kl = special.rel_entr(q, p).sum()
        skewed = {a: np.log(np.sum(np.where((q > 0), q**a * p ** (1.0 - a), 0))) / (a - 1) for a in (0.0, 0.5, 2.0)}
        chi_squared = np.sum(np.where(p > 0, (q - p) ** 2 / p, np.where(q > 0, np.inf, 0)))
    expected = {
        "kl": kl,
        "jsd": jensenshannon(q, p) ** 2,
        "tv": 0.5 * np.abs(q - p).sum(),
        "chi_squared": chi_squared,
        **{f"renyi {a}": value for a, value in skewed.items()},
    }
    laws = vd.Categorical.from_probs(q), vd.Categorical.from_probs(p)
    values, gradient = finite_report(*laws)

    def check(values):
        for name, value in expected.items():
            assert_allclose(values[name], value, rtol=1e-8, atol=1e-10, err_msg=name)

    wrong = [values | {"jsd": values["jsd"] ** 0.5}] if 1e-3 < values["jsd"] < 0.69 else []
    if np.isfinite(kl) and kl > 1e-3:
        wrong.append(values | {"kl": np.sum(q * (np.log(q + 1e-3) - np.log(p + 1e-3)))})
    holds_only_for(check, values, *wrong)
    if np.isfinite(kl):
        possible = q > 0
        slope = np.where(possible, q * (np.log(np.where(possible, q, 1) / np.where(possible, p, 1)) - kl), 0)
        assert_allclose(gradient[0].logits, slope, rtol=1e-7, atol=1e-10)
        assert_allclose(gradient[1].logits, p - q, rtol=1e-7, atol=1e-10)


@jax.jit
def finite_report(q, p):
    values = {
        "kl": kl_divergence(q, p),
        "jsd": jensen_shannon_divergence(q, p),
        "tv": total_variation(q, p),
        "chi_squared": chi_squared_divergence(q, p),
        **{f"renyi {alpha}": renyi_divergence(q, p, alpha=alpha) for alpha in (0.0, 0.5, 2.0)},
    }
    gradients = jax.grad(kl_divergence, argnums=(0, 1))(q, p)
    return values, gradients


def test_discrete_laws_of_every_kind_match_enumeration():
    pairs = [
        (vd.Bernoulli([0.3, -2.0]), vd.Bernoulli([1.0, 0.5])),
        (EVERY_LAW["Categorical"](), vd.Categorical([[0.0, 1.0, 2.0], [0.3, -1.0, 0.2]])),
        (EVERY_LAW["OneHotCategorical"](), vd.OneHotCategorical([0.0, 1.0])),
        *itertools.combinations([EVERY_LAW[f"Discretised{k}"]() for k in ("Normal", "Logistic", "LogisticMixture")], 2),
        (vd.Bernoulli([0.3, -2.0]), vd.Poisson([0.4, 0.1])),
    ]
    for q, p in pairs:
        events = q.enumerate()

        @jax.jit
        def both(q, p, events=events):
            log_q, log_p = jax.vmap(q.log_prob)(events), jax.vmap(p.log_prob)(events)
            return log_q, log_p, kl_divergence(q, p), kl_divergence(q, q) if type(q) is type(p) else 0.0

        log_q, log_p, kl, at_equality = (np.asarray(v) for v in both(q, p))
        exact = np.sum(np.exp(log_q) * (log_q - log_p))
        backward = np.sum(np.exp(log_p) * (log_p - log_q))
        holds_only_for(lambda v, exact=exact: assert_allclose(v, exact, rtol=1e-9), kl, backward)
        assert_allclose(at_equality, 0, atol=1e-14)


def test_poisson_kl_matches_summation_at_zero_and_for_large_near_equal_rates():
    rates = [(2.0, 3.0), (0.5, 20.0), (30.0, 31.0)]
    counts = np.arange(300)
    for q, p in rates:
        exact = np.sum(
            stats.poisson(q).pmf(counts) * (stats.poisson(q).logpmf(counts) - stats.poisson(p).logpmf(counts))
        )
        holds_only_for(
            lambda v, exact=exact: assert_allclose(v, exact, rtol=1e-9),
            kl_divergence(vd.Poisson(q), vd.Poisson(p)),
            kl_divergence(vd.Poisson(p), vd.Poisson(q)),
        )
    zero, two = vd.Poisson(0.0), vd.Poisson(2.0)
    assert kl_divergence(zero, zero) == 0
    assert kl_divergence(zero, two) == 2
    assert kl_divergence(two, zero) == jnp.inf
    with jax.enable_x64(False):
        near = kl_divergence(vd.Poisson(np.float32(1e6)), vd.Poisson(np.float32(1e6 + 1)))
        assert_allclose(near, 0.5e-6, rtol=0.2)


def test_dirichlet_kl_matches_its_two_category_beta_and_quadrature():
    q, p = (2.0, 0.7), (1.2, 3.0)
    by_beta = kl_divergence(vd.Beta(*q), vd.Beta(*p))
    kl = kl_divergence(vd.Dirichlet(q), vd.Dirichlet(p))
    exact, _ = integrate.quad(
        lambda u: stats.beta(*q).logpdf(x := stats.beta(*q).ppf(u)) - stats.beta(*p).logpdf(x), 0, 1, limit=200
    )
    assert_allclose(kl, by_beta, rtol=1e-11)
    holds_only_for(lambda v: assert_allclose(v, exact, rtol=1e-5), kl, kl_divergence(vd.Dirichlet(p), vd.Dirichlet(q)))
    q, p = np.array([2.0, 0.7, 3.0]), np.array([1.2, 3.0, 0.4])
    numpyro_value = by_numpyro(lambda: npd.kl_divergence(npd.Dirichlet(q), npd.Dirichlet(p)))
    assert_allclose(kl_divergence(vd.Dirichlet(q), vd.Dirichlet(p)), numpyro_value, rtol=1e-9)


def test_certain_outcomes_cost_infinity_only_where_the_other_law_forbids_them():
    for logit in (np.inf, -np.inf, 800.0, -800.0):
        certain, fair = vd.Bernoulli(logit), vd.Bernoulli(0.0)
        assert_allclose(kl_divergence(certain, fair), np.log(2), rtol=1e-12)
        assert kl_divergence(certain, certain) == 0
        expected = np.inf if np.isinf(logit) else 0.5 * 800 - np.log(2)
        assert_allclose(kl_divergence(fair, certain), expected, rtol=1e-12)
        gradients = jax.grad(kl_divergence, argnums=(0, 1))(certain, fair)
        assert not any(bool(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(gradients))


def test_copies_and_joint_laws_add_up():
    q, p = vd.Normal([0.1, 0.2], [1.0, 2.0]), vd.Normal([0.0, 0.0], [1.0, 1.0])
    r, s = vd.Poisson(2.0), vd.Poisson(3.0)
    single = [kl_divergence(q, p), kl_divergence(r, s)]
    assert_allclose(kl_divergence(vd.Copies(q, 3), vd.Copies(p, 3)), 3 * single[0])
    assert_allclose(kl_divergence(vd.Joint((q, r)), vd.Joint((p, s))), sum(single))
    assert has_closed_form_kl(vd.Joint((q, r)), vd.Joint((p, s)))
    with pytest.raises(NotAvailable, match="monte_carlo_kl"):
        kl_divergence(vd.Joint((q, r)), vd.Joint((vd.Logistic([0.0, 0.0], 1.0), s)))


def test_events_and_supports_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"events differ in shape: \(2,\) under q, \(3,\) under p"):
        kl_divergence(vd.Normal(np.zeros(2), 1.0), vd.Normal(np.zeros(3), 1.0))
    with pytest.raises(ValueError, match="events differ in shape"):
        renyi_divergence(vd.Normal(np.zeros(2), 1.0), vd.Normal(0.0, 1.0), alpha=0.5)
    with pytest.raises(ValueError, match="events differ in shape"):
        renyi_divergence(vd.Categorical([0.0, 1.0]), vd.OneHotCategorical([0.0, 1.0]), alpha=0.5)
    with pytest.raises(ValueError, match="supports differ: 2 outcomes under q, 3 under p"):
        kl_divergence(vd.Categorical([0.0, 1.0]), vd.Categorical([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="same finite support"):
        total_variation(vd.Categorical([0.0, 1.0]), vd.Categorical([0.0, 1.0, 2.0]))
    with pytest.raises(NotAvailable):
        total_variation(vd.Normal(0.0, 1.0), vd.Normal(0.0, 1.0))


# Rényi and f-divergences.


def renyi_by_quadrature(q, p, alpha):
    def integrand(x):
        return np.exp(alpha * q.logpdf(x) + (1 - alpha) * p.logpdf(x))

    return np.log(integrate.quad(integrand, -60, 60, points=[0.0, 1.0], limit=400, epsabs=1e-14)[0]) / (alpha - 1)


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.5, 1.9])
def test_renyi_divergence_of_normal_laws_matches_quadrature(alpha):
    q, p = vd.Normal(0.4, 0.9), vd.Normal(-0.3, 1.2)
    exact = renyi_by_quadrature(stats.norm(0.4, 0.9), stats.norm(-0.3, 1.2), alpha)

    def check(value):
        assert_allclose(value, exact, rtol=1e-9)

    holds_only_for(
        check,
        renyi_divergence(q, p, alpha=alpha),
        renyi_divergence(p, q, alpha=alpha),
        (alpha - 1) * renyi_divergence(q, p, alpha=alpha),
    )
    full = [vd.MultivariateNormal(law.loc[None], law.scale[None, None]) for law in (q, p)]
    assert_allclose(renyi_divergence(*full, alpha=alpha), exact, rtol=1e-9)


def test_renyi_divergence_of_correlated_laws_matches_gauss_hermite():
    rng = np.random.default_rng(3)
    q_cov, p_cov = spd(rng, 2, 0.5, 0.8), spd(rng, 2, 0.5, 1.5)
    q_loc, p_loc = np.array([0.2, -0.1]), np.array([0.5, 0.3])
    x = np.stack(np.meshgrid(*[np.linspace(-9, 9, 501)] * 2), -1)
    for alpha in (0.4, 1.3):
        power = alpha * stats.multivariate_normal(q_loc, q_cov).logpdf(x)
        power += (1 - alpha) * stats.multivariate_normal(p_loc, p_cov).logpdf(x)
        exact = np.log(np.exp(power).sum() * (18 / 500) ** 2) / (alpha - 1)
        laws = [vd.MultivariateNormal.from_covariance(*v) for v in ((q_loc, q_cov), (p_loc, p_cov))]
        holds_only_for(
            lambda v, exact=exact: assert_allclose(v, exact, rtol=1e-8),
            renyi_divergence(*laws, alpha=alpha),
            renyi_divergence(*laws[::-1], alpha=alpha),
        )


def test_renyi_divergence_has_its_limits():
    q, p = vd.Normal([0.4, 0.1], [0.9, 2.0]), vd.Normal([-0.3, 0.0], [1.2, 1.0])
    full = [vd.MultivariateNormal(law.loc, jnp.diag(law.scale)) for law in (q, p)]
    kl = kl_divergence(q, p)
    assert renyi_divergence(q, p, alpha=1.0) == kl
    for alpha in (1 - 1e-6, 1 + 1e-6):
        assert_allclose(renyi_divergence(q, p, alpha=alpha), kl, rtol=1e-5)
        assert_allclose(renyi_divergence(*full, alpha=alpha), kl, rtol=1e-5)
    with jax.enable_x64(False):
        narrow = [vd.Normal(*(np.asarray(v, np.float32) for v in (law.loc, law.scale))) for law in (q, p)]
        assert_allclose(renyi_divergence(*narrow, alpha=1 - 1e-4), kl, rtol=1e-3)
    assert_allclose(renyi_divergence(q, p, alpha=0.0), 0, atol=1e-14)
    # α p² + (1 - α) q² = 0 at α = 4/3 in the second coordinate
    assert jnp.isfinite(renyi_divergence(q, p, alpha=1.33))
    for laws in ((q, p), full):
        assert renyi_divergence(*laws, alpha=1.34) == jnp.inf
    one, other = vd.Categorical.from_probs([0.5, 0.5, 0.0]), vd.Categorical.from_probs([0.2, 0.3, 0.5])
    assert_allclose(renyi_divergence(one, other, alpha=0.0), -np.log(0.5), rtol=1e-12)
    assert renyi_divergence(other, one, alpha=2.0) == jnp.inf
    for alpha in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="alpha must be non-negative and finite"):
            renyi_divergence(q, p, alpha=float(alpha))
    with pytest.raises(NotAvailable, match="Rényi divergence of Gamma from Gamma"):
        renyi_divergence(vd.Gamma(1.0, 1.0), vd.Gamma(2.0, 1.0), alpha=0.5)


def test_f_divergence_reproduces_the_kl_and_its_infinite_slope():
    q, p = vd.Categorical.from_probs([0.5, 0.5, 0.0]), vd.Categorical.from_probs([0.2, 0.3, 0.5])

    def t_log_t(t):
        return t * jnp.log(jnp.where(t > 0, t, 1))

    as_kl = f_divergence(q, p, t_log_t, slope_at_infinity=np.inf)
    holds_only_for(lambda v: assert_allclose(v, kl_divergence(q, p), rtol=1e-12), as_kl, 2 * as_kl)
    assert f_divergence(p, q, t_log_t, slope_at_infinity=np.inf) == kl_divergence(p, q) == jnp.inf
    hellinger = f_divergence(q, p, lambda t: 0.5 * (jnp.sqrt(t) - 1) ** 2, slope_at_infinity=0.5)
    assert_allclose(hellinger, 1 - np.sqrt([0.1, 0.15]).sum(), rtol=1e-12)
    disjoint = vd.Categorical.from_probs([1.0, 0.0]), vd.Categorical.from_probs([0.0, 1.0])
    assert_allclose(total_variation(*disjoint), 1)
    assert_allclose(jensen_shannon_divergence(*disjoint), np.log(2), rtol=1e-14)
    assert chi_squared_divergence(*disjoint) == jnp.inf


# Monte Carlo.


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("Normal", "Laplace"), ("Gamma", "LogNormal"), ("Categorical", "Categorical")])
def test_monte_carlo_agrees_with_the_closed_form_within_five_standard_errors(pair):
    q, p = EVERY_LAW[pair[0]](), EVERY_LAW[pair[1]]()
    if pair[0] == "Categorical":
        p = vd.Categorical([[0.0, 1.0, 2.0], [0.3, -1.0, 0.2]])
    kl = jax.jit(lambda q, p: monte_carlo_kl(jax.random.key(0), q, p, num_samples=40_000))(q, p)
    entropy = jax.jit(lambda q: monte_carlo_entropy(jax.random.key(1), q, num_samples=40_000))(q)
    assert kl.count == 40_000
    for estimate, exact, wrong in ((kl, kl_divergence(q, p), -kl_divergence(q, p)), (entropy, q.entropy(), 0.0)):

        def check(reference, estimate=estimate):
            assert abs(estimate.value - reference) < 5 * estimate.standard_error

        holds_only_for(check, exact, wrong)


def test_monte_carlo_standard_error_covers_as_often_as_it_says():
    q, p = vd.Normal([0.3, -1.0], [1.0, 0.5]), vd.Normal([0.0, 0.0], [1.0, 1.0])
    repeats, draws = 2000, 400
    keys = jax.random.split(jax.random.key(7), repeats)
    estimates = jax.jit(jax.vmap(lambda key: monte_carlo_kl(key, q, p, num_samples=draws)[:2]))(keys)
    z = (np.asarray(estimates[0]) - float(kl_divergence(q, p))) / np.asarray(estimates[1])

    def check(z):
        covered = int(np.sum(np.abs(z) < stats.t(draws - 1).isf(0.025)))
        # skewness costs about a percent of coverage at 400 draws
        assert stats.binom(repeats, 0.94).sf(covered - 1) > FALSE_ALARM
        assert stats.binom(repeats, 0.96).cdf(covered) > FALSE_ALARM

    holds_only_for(check, z, 1.2 * z, 0.8 * z)


def test_one_draw_has_no_standard_error():
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        monte_carlo_kl(jax.random.key(0), vd.Normal(0.0, 1.0), vd.Normal(0.0, 1.0), num_samples=1)


@pytest.mark.parametrize("wide", [False, True])
def test_jensen_shannon_of_coins_is_right_for_every_logit(wide):
    logits = np.array([-np.inf, -800, -704, -100, -87, -86, -85, -20, -1, 0, 0.5, 15, 86, 100, 800, np.inf])

    def value_and_slopes(q, p):
        return jax.value_and_grad(lambda q, p: jensen_shannon_divergence(vd.Bernoulli(q), vd.Bernoulli(p)), (0, 1))(
            q, p
        )

    heads, tails = special.expit(logits), special.expit(-logits)

    def relative_entropy(i, j):
        return sum(special.rel_entr(v[i], 0.5 * (v[i] + v[j])) for v in (heads, tails))

    i, j = (v.ravel() for v in np.indices((len(logits), len(logits))))
    exact = 0.5 * (relative_entropy(i, j) + relative_entropy(j, i))
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        pairs = logits[i].astype(dtype), logits[j].astype(dtype)
        value, slopes = jax.jit(jax.vmap(value_and_slopes))(*pairs)
        assert_allclose(value, exact, rtol=1e-12 if wide else 1e-5, atol=1e-15 if wide else 1e-7)
        finite = np.isfinite(pairs[0]) & np.isfinite(pairs[1])
        assert np.isfinite(np.stack(slopes)[:, finite]).all()
        assert np.min(value) >= 0


@functools.cache
def kl_and_slopes(family):
    return jax.jit(jax.value_and_grad(lambda q, p: kl_divergence(family(*q), family(*p)), (0, 1)))


def float32_kl(family, q, p):
    with jax.enable_x64(False):
        pair = (tuple(np.asarray(v, np.float32) for v in parameters) for parameters in (q, p))
        value, slopes = kl_and_slopes(family)(*pair)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    return np.asarray(value)


def concentration_cost(a, b):
    """log Γ(b) - log Γ(a) - (b - a) ψ(a) as the integral of (b - t) ψ'(t), along log t."""
    points, weights = special.roots_legendre(100)
    low, width = np.log(a), np.log(b / a)
    t = np.exp(low + 0.5 * width * (points + 1))
    return 0.5 * width * np.sum(weights * (b - t) * special.polygamma(1, t) * t)


def exact_dirichlet_kl(q, p):
    a, b = (np.array(v, np.float32).astype(np.float64) for v in (q, p))
    return sum(map(concentration_cost, a, b)) - concentration_cost(a.sum(), b.sum())


def exact_gamma_kl(q, p):
    a, a_rate, b, b_rate = np.array([*q, *p], np.float32).astype(np.float64)
    log_rates, gap = np.log(b_rate / a_rate), (b_rate - a_rate) / a_rate
    return concentration_cost(a, b) + a * gap - b * log_rates


@pytest.mark.slow
@pytest.mark.parametrize("size", every(2, [1e-3, 0.3, 2.0, 9.99, 1e2, 1e4, 1e6, 1e9]))
def test_float32_kl_within_the_gamma_family_does_not_cancel_for_close_or_large_concentrations(size):
    for factor in (1.0, 1 + 1e-6, 1.001, 0.98, 3.0, 1e-4):
        pairs = [
            (vd.Gamma, exact_gamma_kl, (size, 1.0), (factor * size, 1.0)),
            (vd.Gamma, exact_gamma_kl, (size, 2.0), (factor * size, 2.002)),
            (vd.Gamma, exact_gamma_kl, (size, 2.0), (factor * size, 2 * factor)),
            (vd.Beta, exact_dirichlet_kl, (size, 2 * size), (size, factor * 2 * size)),
            (vd.Beta, exact_dirichlet_kl, (size, 0.5), (factor * size, 0.5)),
            (vd.Beta, exact_dirichlet_kl, (size, size), (factor * size, factor * size)),
        ]
        for kind, exact, q, p in pairs:
            assert_allclose(float32_kl(kind, q, p), exact(q, p), rtol=1e-4, atol=3e-6)
        a, b = np.array([size, 1.0, 2 * size]), np.array([factor * size, 1.0, 2 * size])
        assert_allclose(float32_kl(vd.Dirichlet, (a,), (b,)), exact_dirichlet_kl(a, b), rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(("family", "twin"), [
    (vd.Gamma, lambda first: stats.gamma(first, scale=1 / 3)),
    (vd.Beta, lambda first: stats.beta(first, 3)),
    (vd.LogNormal, lambda first: stats.lognorm(3, scale=np.exp(first))),
], ids=["Gamma", "Beta", "LogNormal"])  # fmt: skip
@pytest.mark.parametrize("first", [1.0, 2.0])
def test_kl_from_a_uniform_law_that_starts_at_zero_is_the_integral_and_has_slopes(family, twin, first):
    def kl(low, high):
        return kl_divergence(vd.Uniform(low, high), family(first, 3.0))

    log_p = twin(first).logpdf
    integral, _ = integrate.quad(lambda x: -log_p(x) / 0.7, 0, 0.7, epsabs=1e-13, epsrel=1e-11)
    assert_allclose(kl(0.0, 0.7), integral - np.log(0.7), rtol=1e-8)
    slopes = jax.jit(jax.grad(kl, (0, 1)))(0.0, 0.7)
    assert np.isfinite(slopes).all()
    assert_allclose(slopes[1], (kl(0.0, 0.7 + 1e-6) - kl(0.0, 0.7 - 1e-6)) / 2e-6, rtol=1e-6)
    if first == 1 and family is not vd.LogNormal:  # else the slope at zero is logarithmically infinite
        assert_allclose(slopes[0], (kl(1e-6, 0.7) - kl(0.0, 0.7)) / 1e-6, rtol=1e-4)


def test_laws_of_different_events_have_no_closed_form_and_no_monte_carlo_kl():
    normal = vd.Normal(0.0, 1.0)
    pairs = [
        (vd.Categorical(jnp.zeros(2)), vd.Categorical(jnp.zeros(3))),
        (vd.Joint((normal,)), vd.Joint((normal, normal))),
        (vd.Copies(normal, 2), vd.Copies(normal, 3)),
        (vd.DiscretisedNormal(0.0, 1.0, 4), vd.DiscretisedLogistic(0.0, 1.0, 5)),
    ]
    assert not any(has_closed_form_kl(q, p) for q, p in pairs)
    assert has_closed_form_kl(vd.DiscretisedNormal(0.0, 1.0, 4), vd.DiscretisedLogistic(0.0, 1.0, 4))
    with pytest.raises(ValueError, match="differ in shape"):
        monte_carlo_kl(jax.random.key(0), vd.Normal(jnp.zeros(3), 1.0), normal, num_samples=4)
