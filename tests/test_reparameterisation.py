"""Transports carry exact gradients: explicit ones by quadrature, implicit ones against the quantile function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import expectation, holds_only_for, quadrature
from scipy import special, stats

from vbjax import distributions as vd
from vbjax.distributions.gamma import implicit_log_gamma

pytestmark = pytest.mark.usefixtures("x64")
QUANTILES = np.array([1e-3, 0.1, 0.5, 0.9, 0.999])
CONCENTRATIONS = np.array([1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0, 1e3, 1e4])


def f(x):
    return x**2 / (1 + x**2) + 0.3 * x


GRADIENT_CASES = {
    "Normal": (vd.Normal, lambda m, s: stats.norm(m, s), [0.4, 0.7]),
    "LogNormal": (vd.LogNormal, lambda m, s: stats.lognorm(s, scale=np.exp(m)), [0.1, 0.5]),
    "Laplace": (vd.Laplace, lambda m, s: stats.laplace(m, s), [0.4, 0.7]),
    "Logistic": (vd.Logistic, lambda m, s: stats.logistic(m, s), [0.4, 0.7]),
    "Uniform": (vd.Uniform, lambda a, b: stats.uniform(a, b - a), [0.4, 1.7]),
    "LogGamma": (vd.LogGamma, lambda a: stats.loggamma(a), [1.7]),
    "Gamma": (vd.Gamma, lambda a, b: stats.gamma(a, scale=1 / b), [1.7, 0.8]),
    "Beta": (vd.Beta, lambda a, b: stats.beta(a, b), [1.7, 1.2]),
    "StudentT": (vd.StudentT, lambda df, m, s: stats.t(df, m, s), [6.0, 0.4, 0.7]),
}


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradient_of_an_expectation_by_transport_matches_differences_of_quadrature(name):
    family, frozen, parameters = GRADIENT_CASES[name]
    parameters = np.array(parameters)
    order = {"Laplace": 800, "Logistic": 600}.get(name, 150)
    points, weights, _ = family(*parameters).noise().nodes(order)

    @jax.jit
    def pathwise(parameters, slip):
        def value(*parameters):
            law = family(*parameters)
            z = jax.vmap(law.transport)(points)
            # the slip: a transport whose last parameter carries no gradient
            stopped = family(*parameters[:-1], jax.lax.stop_gradient(parameters[-1]))
            return weights @ f(jnp.where(slip, jax.vmap(stopped.transport)(points), z))

        return jnp.stack(jax.grad(value, argnums=tuple(range(len(parameters))))(*parameters))

    def quadrature_value(parameters):
        law = frozen(*parameters[:, None])
        rule = quadrature(law, *([parameters[:1]] if name == "Laplace" else []))
        return expectation(law, f(rule[0]), rule)[0]

    steps = 1e-4 * np.eye(len(parameters))
    expected = [(quadrature_value(parameters + h) - quadrature_value(parameters - h)) / 2e-4 for h in steps]

    def check(gradient):
        # Gauss-Hermite converges slowly against the poles of f under Student's t
        assert_allclose(gradient, expected, rtol=1e-4 if name == "StudentT" else 1e-5, atol=1e-6)

    holds_only_for(check, pathwise(parameters, False), pathwise(parameters, True))


def log_gamma_quantile(a, u):
    """log of the gamma quantile; where it underflows, F(g) = g^a / Γ(a+1)."""
    leading = (np.log(u) + special.gammaln(a + 1)) / a
    with np.errstate(divide="ignore"):
        return np.where(leading < -40, leading, np.log(special.gammaincinv(a, u)))


def quantile_slope(quantile, a):
    h = 1e-5 * a
    return (quantile(a + h) - quantile(a - h)) / (2 * h)


@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-8), (False, 1e-3)])
def test_implicit_gamma_gradient_is_the_slope_of_the_quantile(wide, tolerance):
    a, u = (v.ravel() for v in np.meshgrid(CONCENTRATIONS, QUANTILES))
    y, expected = log_gamma_quantile(a, u), quantile_slope(lambda a: log_gamma_quantile(a, u), a)
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        ours = np.asarray(jax.jit(jax.vmap(jax.grad(implicit_log_gamma)))(a.astype(dtype), y.astype(dtype)))

    def check(slope):
        # a rounding error of y is up to 1e-4 of its spread for a concentration of 1e4 in float32
        assert_allclose(slope, expected, rtol=tolerance)

    mean_path = special.polygamma(1, a)  # as if every quantile moved like the mean
    holds_only_for(check, ours, mean_path, ours * np.exp(y))


def test_implicit_beta_gradient_is_the_slope_of_the_quantile_in_distribution():
    # E[φ(x)] moves by E[φ'(x) dx/da], and the noise averages: compare at the level of conditional expectations
    law = vd.Beta(2.5, 0.7)
    points, weights, _ = law.noise().nodes(300)

    @jax.jit
    def slopes(law):
        z = jax.vmap(law.transport)(points)
        jacobian = jax.vmap(jax.jacrev(lambda law, e: law.transport(e)), (None, 0))(law, points)
        return z, jacobian.concentration1, jacobian.concentration0

    z, slope1, slope0 = (np.asarray(v) for v in slopes(law))
    for power in (1, 2, 3, 5):
        h = 1e-5
        moment = [stats.beta(2.5 + h, 0.7).moment(power), stats.beta(2.5 - h, 0.7).moment(power)]
        expected1 = (moment[0] - moment[1]) / (2 * h)
        moment = [stats.beta(2.5, 0.7 + h).moment(power), stats.beta(2.5, 0.7 - h).moment(power)]
        expected0 = (moment[0] - moment[1]) / (2 * h)

        def check(pair, power=power, expected=(expected1, expected0)):
            ours = [weights @ (power * z ** (power - 1) * slope) for slope in pair]
            assert_allclose(ours, expected, rtol=1e-6)

        holds_only_for(check, (slope1, slope0), (slope0, slope1))


def test_implicit_dirichlet_jacobian_is_that_of_the_softmax_of_quantiles():
    a = np.array([[1e-3, 2e-3], [0.5, 1.0], [30.0, 2.0], [1e4, 3e4]])
    u = np.array([[0.9995, 0.9], [0.3, 0.6], [0.99, 0.01], [0.2, 0.7]])

    def first(a):
        return special.softmax(log_gamma_quantile(a, u), axis=-1)[:, 0]

    def slope(i):
        h = 1e-5 * a * np.eye(2)[i]
        return (first(a + h) - first(a - h)) / (2 * h[:, i])

    noise = jnp.asarray(log_gamma_quantile(a, u))
    ours = jax.jit(jax.vmap(jax.grad(lambda law, e: law.transport(e)[0])))(vd.Dirichlet(a), noise).concentration
    assert_allclose(jax.vmap(vd.Dirichlet([1.0, 1.0]).transport)(noise)[:, 0], first(a), rtol=1e-9)
    expected = np.stack([slope(0), slope(1)], -1)
    holds_only_for(
        lambda jacobian: assert_allclose(jacobian, expected, rtol=1e-7, atol=1e-15), ours, ours[:, ::-1], -ours
    )


def test_implicit_student_gradient_is_the_slope_of_the_quantile_of_its_gamma():
    df, xi, u = np.array([1.5, 6.0, 300.0])[:, None], np.array([-1.3, 0.4, 2.0]), np.array([0.05, 0.5, 0.9])

    def transported(df):
        return xi * np.sqrt(df / 2 / np.exp(log_gamma_quantile(df / 2, u)))

    noise = (np.broadcast_to(xi, (3, 3)), log_gamma_quantile(df / 2, u))
    df = np.broadcast_to(df, (3, 3))
    law = vd.StudentT(df, np.zeros((3, 3)), np.ones((3, 3)))
    assert_allclose(law.transport(tuple(map(jnp.asarray, noise))), transported(df), rtol=1e-10)
    slope = jax.jit(jax.grad(lambda law, e: law.transport(e).sum()))(law, tuple(map(jnp.asarray, noise))).df
    no_quantile = transported(df) / (2 * df)  # as if the gamma did not move with df
    holds_only_for(lambda value: assert_allclose(value, quantile_slope(transported, df), rtol=1e-6), slope, no_quantile)


def test_second_derivative_of_the_implicit_gamma_is_forward_over_reverse():
    a, u = np.array([0.05, 0.7, 3.0, 50.0]), np.array([0.3, 0.5, 0.8, 0.1])
    y = log_gamma_quantile(a, u)
    h = 1e-3 * a
    quantile = [log_gamma_quantile(a + s * h, u) for s in (-2, -1, 0, 1, 2)]
    expected = np.dot([-1 / 12, 4 / 3, -2.5, 4 / 3, -1 / 12], quantile) / h**2
    hessian = jax.jit(jax.vmap(jax.hessian(implicit_log_gamma)))(a, y)

    def frozen_slope(a, y):
        return jax.grad(implicit_log_gamma)(a, jax.lax.stop_gradient(y))

    step = 1e-4 * a
    partial = [jax.vmap(frozen_slope)(a + s * step, y) for s in (1, -1)]
    without_motion = (np.asarray(partial[0]) - np.asarray(partial[1])) / (2 * step)
    holds_only_for(lambda value: assert_allclose(value, expected, rtol=2e-5), hessian, without_motion)


def test_reverse_over_reverse_through_the_implicit_gamma_raises():
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(jax.grad(implicit_log_gamma))(jnp.asarray(2.0), jnp.asarray(0.3))


def test_transport_takes_gradients_only_through_its_parameters():
    law = vd.Gamma(2.0, 3.0)
    blocked = jax.grad(lambda law: law.noise().concentration)(law)
    assert blocked.concentration == 0
