"""The gamma family and what is built on it: log-gamma, gamma, beta, Dirichlet, Student's t.

Sampling is reparameterised by implicit differentiation, in the logarithm, where small concentrations do not
underflow: start with `implicit_log_gamma`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma, xlog1py, xlogy
from jaxtyping import Array, Float

from vbjax.distributions.compound import Joint
from vbjax.distributions.continuous import Normal
from vbjax.distributions.family import (
    LOG_2PI,
    POSITIVE,
    Distribution,
    Interval,
    Simplex,
    as_parameters,
    family,
    require_finite,
    require_positive,
    vmap_over,
)
from vbjax.distributions.quadrature import beta_rule, log_gamma_rule, tensor_rule
from vbjax.types import Nodes


@jax.custom_jvp
def implicit_log_gamma(concentration: Array, log_sample: Array) -> Array:
    """Return `log_sample`, with its derivative in the concentration a by implicit differentiation.

    For y = log g and g ~ gamma(a): dy/da = -(∂F/∂a) / (p(g) g) (Figurnov et al. 2018, eq. 5). Where g is below the
    rounding error of one, F(g) = g^a / Γ(a+1) gives dy/da = (ψ(a+1) - y) / a. A second derivative needs forward mode
    (`jax.hessian`); reverse over reverse raises.
    """
    del concentration
    return log_sample


@implicit_log_gamma.defjvp
def _implicit_log_gamma_jvp(primals, tangents):
    a, y = (jnp.asarray(primal) for primal in primals)
    a_dot, y_dot = tangents
    y = implicit_log_gamma(a, y)  # so that a further forward derivative follows y as a moves
    tiny = y < math.log(jnp.finfo(y.dtype).eps)
    g = jnp.exp(jnp.where(tiny, 0, y))
    slope = jnp.where(tiny, (digamma(a + 1) - y) / a, jax.lax.random_gamma_grad(a, g) / g)
    return y, slope * a_dot + y_dot


@family
class LogGamma(Distribution):
    """Law of the logarithm of a gamma(concentration, 1) variable; independent coordinates.

    The noise of the gamma, beta, Dirichlet and Student laws: for a concentration of 1e-3 the gamma variable itself
    is below the smallest float half of the time, and its logarithm is not.
    """

    concentration: Float[Array, "*event"]
    reparameterised = True

    def __post_init__(self):
        as_parameters(self, "concentration")
        require_positive(self, "concentration")

    def noise(self):
        return LogGamma(jax.lax.stop_gradient(self.concentration))

    def transport(self, noise):
        return implicit_log_gamma(self.concentration, noise)

    def sample(self, key, shape=()):
        concentration = jnp.broadcast_to(self.concentration, shape + self.concentration.shape)
        return jax.random.loggamma(key, jax.lax.stop_gradient(concentration), dtype=self.dtype)

    def log_prob(self, x):
        inside = x < jnp.inf
        x = jnp.where(inside, x, 0)
        log_density = self.concentration * x - jnp.exp(x) - gammaln(self.concentration)
        return jnp.where(inside.all(), log_density.sum(), -jnp.inf)

    def mean(self):
        return digamma(self.concentration)

    def variance(self):
        return polygamma(1, self.concentration)

    def entropy(self):
        # gammaln(a) - a ψ(a) + a with what cancels for large a taken out
        a = self.concentration
        remainder, slope = jax.jvp(stirling_remainder, (a,), (jnp.ones_like(a),))
        return jnp.sum(0.5 * (1 + LOG_2PI - jnp.log(a)) + remainder - a * slope)

    def nodes(self, order):
        points, weights = log_gamma_rule(np.asarray(self.concentration, np.float64), order)
        points, weights = tensor_rule(points, weights, self.concentration.shape)
        return Nodes(jnp.asarray(points, self.dtype), jnp.asarray(weights, self.dtype), exact=False)


@family
class Gamma(Distribution):
    """Gamma law with density ∝ x^(concentration-1) exp(-rate x), independent coordinates on (0, ∞)."""

    concentration: Float[Array, "*event"]
    rate: Float[Array, "*event"]
    reparameterised = True
    support = POSITIVE

    def __post_init__(self):
        as_parameters(self, "concentration", "rate")
        require_positive(self, "concentration", "rate")

    def noise(self):
        return LogGamma(self.concentration).noise()

    def transport(self, noise):
        return jnp.exp(implicit_log_gamma(self.concentration, noise) - jnp.log(self.rate))

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(self.noise().sample(key, shape))

    def log_prob(self, x):
        a = self.concentration
        inside = (x >= 0) & (x < jnp.inf)
        x = jnp.where(inside, x, 1)
        log_density = xlogy(a - 1, x) + xlogy(a, self.rate) - self.rate * x - gammaln(a)
        return jnp.where(inside.all(), log_density.sum(), -jnp.inf)

    def mean(self):
        return self.concentration / self.rate

    def variance(self):
        return self.concentration / self.rate**2

    def entropy(self):
        return LogGamma(self.concentration).entropy() + jnp.sum(digamma(self.concentration) - jnp.log(self.rate))

    def nodes(self, order):
        points, weights, _ = LogGamma(self.concentration).nodes(order)
        return Nodes(jax.vmap(self.transport)(points), weights, exact=False)


@family
class Beta(Distribution):
    """Beta law with density ∝ x^(concentration1-1) (1-x)^(concentration0-1), independent coordinates."""

    concentration1: Float[Array, "*event"]
    concentration0: Float[Array, "*event"]
    reparameterised = True
    support = Interval(0.0, 1.0)

    def __post_init__(self):
        as_parameters(self, "concentration1", "concentration0")
        require_positive(self, "concentration1", "concentration0")

    def noise(self):
        return Joint((LogGamma(self.concentration1).noise(), LogGamma(self.concentration0).noise()))

    def transport(self, noise):
        log_g1 = implicit_log_gamma(self.concentration1, noise[0])
        log_g0 = implicit_log_gamma(self.concentration0, noise[1])
        return jax.nn.sigmoid(log_g1 - log_g0)

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(self.noise().sample(key, shape))

    def log_prob(self, x):
        a, b = self.concentration1, self.concentration0
        inside = (x >= 0) & (x <= 1)
        x = jnp.where(inside, x, 0.5)
        log_density = xlogy(a - 1, x) + xlog1py(b - 1, -x) - log_beta(a, b)
        return jnp.where(inside.all(), log_density.sum(), -jnp.inf)

    def mean(self):
        return self.concentration1 / (self.concentration1 + self.concentration0)

    def variance(self):
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total**2 * (total + 1))

    def entropy(self):
        a, b = self.concentration1, self.concentration0
        total = a + b
        return jnp.sum(log_beta(a, b) - (a - 1) * digamma(a) - (b - 1) * digamma(b) + (total - 2) * digamma(total))

    def nodes(self, order):
        a, b = (np.asarray(c, np.float64) for c in (self.concentration1, self.concentration0))
        rules = [beta_rule(a_i, b_i, order) for a_i, b_i in zip(a.flat, b.flat, strict=True)]
        points = np.array([x for x, _ in rules]).reshape(*a.shape, order)
        weights = np.array([w for _, w in rules]).reshape(*a.shape, order)
        points, weights = tensor_rule(points, weights, a.shape)
        return Nodes(jnp.asarray(points, self.dtype), jnp.asarray(weights, self.dtype), exact=False)


@family
class Dirichlet(Distribution):
    """Dirichlet law on the simplex; concentration: `(..., k)`, leading axes are independent."""

    concentration: Float[Array, "*event"]
    reparameterised = True
    support = Simplex()

    def __post_init__(self):
        as_parameters(self, "concentration")
        require_positive(self, "concentration")
        if self.concentration.ndim < 1 or self.concentration.shape[-1] < 2:
            raise ValueError(
                f"Dirichlet.concentration must end in an axis of length >= 2, got {self.concentration.shape}"
            )

    def noise(self):
        return LogGamma(self.concentration).noise()

    def transport(self, noise):
        return jax.nn.softmax(implicit_log_gamma(self.concentration, noise), axis=-1)

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(self.noise().sample(key, shape))

    def log_normaliser(self) -> Float[Array, "..."]:
        """log of the multivariate beta function, one per leading axis."""
        return gammaln(self.concentration).sum(-1) - gammaln(self.concentration.sum(-1))

    def log_prob(self, x):
        log_density = jnp.sum(xlogy(self.concentration - 1, jnp.where(x >= 0, x, 1))) - self.log_normaliser().sum()
        return jnp.where(self.support.contains(x), log_density, -jnp.inf)

    def mean(self):
        return self.concentration / self.concentration.sum(-1, keepdims=True)

    def variance(self):
        mean = self.mean()
        return mean * (1 - mean) / (self.concentration.sum(-1, keepdims=True) + 1)

    def entropy(self):
        a = self.concentration
        total = a.sum(-1)
        inner = jnp.sum((a - 1) * digamma(a), axis=-1)
        return jnp.sum(self.log_normaliser() + (total - a.shape[-1]) * digamma(total) - inner)


@family
class StudentT(Distribution):
    """Student's t law: loc + scale ξ √(df / 2g), ξ standard normal, g gamma(df / 2); independent coordinates.

    df: degrees of freedom > 0. The mean is NaN for df <= 1; the variance is +inf for df <= 2 and NaN for df <= 1.
    """

    df: Float[Array, "*event"]
    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    reparameterised = True

    def __post_init__(self):
        as_parameters(self, "df", "loc", "scale")
        require_finite(self, "loc")
        require_positive(self, "df", "scale")

    def noise(self):
        standard_normal = Normal(jnp.zeros_like(self.loc), jnp.ones_like(self.scale))
        return Joint((standard_normal, LogGamma(jax.lax.stop_gradient(self.df / 2))))

    def transport(self, noise):
        xi, log_g = noise
        log_g = implicit_log_gamma(self.df / 2, log_g)
        return self.loc + self.scale * xi * jnp.exp(0.5 * (jnp.log(self.df / 2) - log_g))

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(self.noise().sample(key, shape))

    def log_prob(self, x):
        half = self.df / 2
        u = jnp.abs(x - self.loc) / self.scale / jnp.sqrt(self.df)
        # log(1 + u²): u² may overflow where the tail, a power of u, does not
        far = u > 1
        log_tail = jnp.where(
            far,
            2 * jnp.log(jnp.where(far, u, 1)) + jnp.log1p(jnp.where(far, u, 1) ** -2),
            jnp.log1p(jnp.where(far, 0, u) ** 2),
        )
        return jnp.sum(-(half + 0.5) * log_tail - self._log_norm())

    def mean(self):
        return jnp.where(self.df > 1, self.loc, jnp.nan)

    def variance(self):
        finite = self.scale**2 * self.df / jnp.where(self.df > 2, self.df - 2, 1)
        return jnp.where(self.df > 2, finite, jnp.where(self.df > 1, jnp.inf, jnp.nan))

    def entropy(self):
        half = self.df / 2
        return jnp.sum((half + 0.5) * digamma_half_step(half) + self._log_norm())

    def _log_norm(self):
        half = self.df / 2
        return jnp.log(self.scale) + 0.5 * jnp.log(self.df) + log_beta(half, jnp.full_like(half, 0.5))


def digamma_half_step(x: Array) -> Array:
    """ψ(x + 1/2) - ψ(x) for x > 0 to rounding error: for large x by its asymptotic series, which does not cancel."""
    large = x > 20
    near, far = jnp.where(large, 1, x), jnp.where(large, x, 20)
    s = far**-2
    series = (0.5 + (0.125 - (1 / 64 - (1 / 128 - 17 / 2048 * s) * s) * s) / far) / far
    return jnp.where(large, series, digamma(near + 0.5) - digamma(near))


def stirling_remainder(x: Array) -> Array:
    """log Γ(x) - ((x - 1/2) log x - x + log(2π)/2) for x > 0, without cancellation for large x."""
    threshold = 10 if x.dtype == jnp.float64 else 3  # beyond it the series is right to rounding error
    large = x > threshold
    near, far = jnp.where(large, 1, x), jnp.where(large, x, threshold)
    s = far**-2
    series = 0.0
    for coefficient in (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * s + coefficient
    direct = gammaln(near) - (near - 0.5) * jnp.log(near) + near - 0.5 * LOG_2PI
    return jnp.where(large, series / far, direct)


def log_beta(a: Array, b: Array) -> Array:
    """log B(a, b) to rounding error; JAX's `betaln` is off by up to 7e-7 in float64."""
    remainders = stirling_remainder(a) + stirling_remainder(b) - stirling_remainder(a + b)
    leading = 0.5 * (LOG_2PI - jnp.log(a) - jnp.log(b) + jnp.log(a + b))
    return leading - a * jnp.log1p(b / a) - b * jnp.log1p(a / b) + remainders
