"""Continuous families: normal, log-normal, Laplace, logistic, Student, uniform, gamma, beta, Dirichlet.

Each reads like its density. Reparameterised families split sampling in two: `noise()`, a law with no parameters to
learn, and `transport(noise)`, which carries the gradient; the gamma family does it by implicit differentiation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln, digamma, gammaln, xlog1py, xlogy
from jaxtyping import Array, Float
from scipy import special

from vbjax.distributions.compound import Joint
from vbjax.distributions.family import (
    LOG_2PI,
    POSITIVE,
    Distribution,
    Interval,
    Simplex,
    as_parameters,
    family,
    require,
    require_finite,
    require_positive,
    tensor_rule,
    vmap_over,
)
from vbjax.types import Nodes


class _LocationScale(Distribution):
    """`loc + scale * noise`, the noise being the standard member of the family; kept out of sight."""

    loc: Array
    scale: Array
    reparameterised = True

    def __post_init__(self):
        as_parameters(self, "loc", "scale")
        require_finite(self, "loc")
        require_positive(self, "scale")

    def noise(self):
        return type(self)(jnp.zeros_like(self.loc), jnp.ones_like(self.scale))

    def transport(self, noise):
        return self.loc + self.scale * noise

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(self._standard(key, shape + self.loc.shape, self.dtype))

    def mean(self):
        return self.loc

    def nodes(self, order):
        points, weights = self._rule(order)
        shape = self.loc.shape
        rule = tensor_rule(*(np.broadcast_to(v, (*shape, len(v))) for v in (points, weights)), shape)
        standard, weights = (jnp.asarray(v, self.dtype) for v in rule)
        return Nodes(jax.vmap(self.transport)(standard), weights, exact=False)


@family
class Normal(_LocationScale):
    """Normal law with independent coordinates, N(loc, diag(scale²)).

    loc: real; scale: standard deviation > 0; both broadcast to the event's shape.
    """

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    _standard = staticmethod(jax.random.normal)

    def log_prob(self, x):
        z = (x - self.loc) / self.scale
        return jnp.sum(-0.5 * (z**2 + LOG_2PI) - jnp.log(self.scale))

    def variance(self):
        return self.scale**2

    def entropy(self):
        return jnp.sum(0.5 * (1 + LOG_2PI) + jnp.log(self.scale))

    def _rule(self, order):
        points, weights = special.roots_hermitenorm(order)
        return points, weights / weights.sum()


@family
class MultivariateNormal(Distribution):
    """Normal law with a full covariance, N(loc, L Lᵀ).

    loc: `(..., d)`; scale_tril: `(..., d, d)`, the lower Cholesky factor L with a positive diagonal. Leading axes
    are independent blocks. `MultivariateNormal.from_covariance` factorises for you.
    """

    loc: Float[Array, "*event"]
    scale_tril: Float[Array, "*event d"]
    reparameterised = True

    def __post_init__(self):
        loc, tril = jnp.asarray(self.loc), jnp.asarray(self.scale_tril)
        if loc.ndim < 1 or tril.shape != (*loc.shape, loc.shape[-1]):
            raise ValueError(
                f"MultivariateNormal.scale_tril must have shape (*loc.shape, d), got {tril.shape} for {loc.shape}"
            )
        dtype = jnp.result_type(loc.dtype, tril.dtype)
        object.__setattr__(self, "loc", loc.astype(dtype))
        object.__setattr__(self, "scale_tril", tril.astype(dtype))
        require_finite(self, "loc", "scale_tril")
        require(self, "scale_tril", lambda v: np.triu(v, 1) == 0, "lower triangular")
        require(self, "scale_tril", lambda v: np.diagonal(v, 0, -2, -1) > 0, "positive on its diagonal")

    @classmethod
    def from_covariance(cls, loc, covariance) -> "MultivariateNormal":
        """Build from a symmetric positive definite covariance `(..., d, d)`; ValueError if it is not."""
        covariance = jnp.asarray(covariance)
        if not isinstance(covariance, jax.core.Tracer):
            symmetric = np.swapaxes(covariance, -1, -2)
            if not np.allclose(covariance, symmetric, rtol=1e-5, atol=1e-5 * np.abs(covariance).max()):
                raise ValueError("MultivariateNormal.covariance must be symmetric")
        tril = jnp.linalg.cholesky(covariance)
        if not isinstance(tril, jax.core.Tracer) and bool(jnp.isnan(tril).any()):
            raise ValueError("MultivariateNormal.covariance must be positive definite")
        return cls(loc, tril)

    def noise(self):
        return Normal(jnp.zeros_like(self.loc), jnp.ones_like(self.loc))

    def transport(self, noise):
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0]

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(jax.random.normal(key, shape + self.loc.shape, self.dtype))

    def whiten(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """L⁻¹ (x - loc): standard normal if x has this law."""
        solve = jax.lax.linalg.triangular_solve
        return solve(self.scale_tril, (x - self.loc)[..., None], left_side=True, lower=True)[..., 0]

    def log_prob(self, x):
        return jnp.sum(-0.5 * (self.whiten(x) ** 2 + LOG_2PI) - self._log_diagonal())

    def mean(self):
        return self.loc

    def variance(self):
        return jnp.sum(self.scale_tril**2, axis=-1)

    def covariance(self) -> Float[Array, "*event d"]:
        """L Lᵀ."""
        return self.scale_tril @ jnp.swapaxes(self.scale_tril, -1, -2)

    def entropy(self):
        return jnp.sum(0.5 * (1 + LOG_2PI) + self._log_diagonal())

    def nodes(self, order):
        points, weights, _ = self.noise().nodes(order)
        return Nodes(jax.vmap(self.transport)(points), weights, exact=False)

    def _log_diagonal(self):
        return jnp.log(jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1))


@family
class LogNormal(Distribution):
    """Law of exp(loc + scale ξ), ξ standard normal: independent coordinates on (0, ∞)."""

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    reparameterised = True
    support = POSITIVE

    def __post_init__(self):
        as_parameters(self, "loc", "scale")
        require_finite(self, "loc")
        require_positive(self, "scale")

    def log(self) -> Normal:
        """The normal law of the logarithm."""
        return Normal(self.loc, self.scale)

    def noise(self):
        return self.log().noise()

    def transport(self, noise):
        return jnp.exp(self.log().transport(noise))

    def sample(self, key, shape=()):
        return jnp.exp(self.log().sample(key, shape))

    def log_prob(self, x):
        inside = x > 0
        log_x = jnp.log(jnp.where(inside, x, 1))
        return jnp.where(inside.all(), self.log().log_prob(log_x) - log_x.sum(), -jnp.inf)

    def mean(self):
        return jnp.exp(self.loc + 0.5 * self.scale**2)

    def variance(self):
        return jnp.expm1(self.scale**2) * jnp.exp(2 * self.loc + self.scale**2)

    def entropy(self):
        return self.log().entropy() + self.loc.sum()

    def nodes(self, order):
        points, weights, _ = self.log().nodes(order)
        return Nodes(jnp.exp(points), weights, exact=False)


@family
class Laplace(_LocationScale):
    """Laplace law with density exp(-|x - loc| / scale) / (2 scale), independent coordinates."""

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    _standard = staticmethod(jax.random.laplace)

    def log_prob(self, x):
        return jnp.sum(-jnp.abs(x - self.loc) / self.scale - jnp.log(2 * self.scale))

    def variance(self):
        return 2 * self.scale**2

    def entropy(self):
        return jnp.sum(1 + jnp.log(2 * self.scale))

    def _rule(self, order):
        # a rule on each side of the kink: |ξ| is exponential, that is gamma with concentration one
        log_distance, weights = _log_gamma_rule(np.ones(()), max(order // 2, 2))
        distance = np.exp(log_distance)
        return np.concatenate([-distance[::-1], distance]), np.concatenate([weights[::-1], weights]) / 2


@family
class Logistic(_LocationScale):
    """Logistic law, whose distribution function is sigmoid((x - loc) / scale); independent coordinates."""

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    _standard = staticmethod(jax.random.logistic)

    def log_prob(self, x):
        z = (x - self.loc) / self.scale
        return jnp.sum(jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - jnp.log(self.scale))

    def variance(self):
        return (math.pi * self.scale) ** 2 / 3

    def entropy(self):
        return jnp.sum(2 + jnp.log(self.scale))

    def _rule(self, order):
        return _trapezoid(lambda x: -x - 2 * np.logaddexp(0, -x), -45.0, 45.0, order)


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
        z = (x - self.loc) / self.scale
        # log1p(z²/df) through hypot: z² may overflow where the tail, a power of |z|, does not
        log_tail = 2 * jnp.log(jnp.hypot(jnp.ones_like(z), z / jnp.sqrt(self.df)))
        log_norm = jnp.log(self.scale) + 0.5 * jnp.log(self.df) + betaln(half, jnp.full_like(half, 0.5))
        return jnp.sum(-(half + 0.5) * log_tail - log_norm)

    def mean(self):
        return jnp.where(self.df > 1, self.loc, jnp.nan)

    def variance(self):
        finite = self.scale**2 * self.df / jnp.where(self.df > 2, self.df - 2, 1)
        return jnp.where(self.df > 2, finite, jnp.where(self.df > 1, jnp.inf, jnp.nan))

    def entropy(self):
        half = self.df / 2
        log_norm = jnp.log(self.scale) + 0.5 * jnp.log(self.df) + betaln(half, jnp.full_like(half, 0.5))
        return jnp.sum((half + 0.5) * (digamma(half + 0.5) - digamma(half)) + log_norm)


@family
class Uniform(Distribution):
    """Uniform law on the box [low, high], independent coordinates."""

    low: Float[Array, "*event"]
    high: Float[Array, "*event"]
    reparameterised = True
    fixed_support = False

    def __post_init__(self):
        as_parameters(self, "low", "high")
        require_finite(self, "low", "high")
        if not isinstance(self.low, jax.core.Tracer):
            low = np.asarray(self.low)
            require(self, "high", lambda v: v > low, "above low")

    @property
    def support(self):
        return Interval(self.low, self.high)

    def noise(self):
        return Uniform(jnp.zeros_like(self.low), jnp.ones_like(self.high))

    def transport(self, noise):
        return self.low + (self.high - self.low) * noise

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(jax.random.uniform(key, shape + self.low.shape, self.dtype))

    def log_prob(self, x):
        return jnp.where(self.support.contains(x), -jnp.sum(jnp.log(self.high - self.low)), -jnp.inf)

    def mean(self):
        return 0.5 * (self.low + self.high)

    def variance(self):
        return (self.high - self.low) ** 2 / 12

    def entropy(self):
        return jnp.sum(jnp.log(self.high - self.low))

    def nodes(self, order):
        points, weights = special.roots_legendre(order)
        shape = self.low.shape
        rule = ((points + 1) / 2, weights / 2)
        standard, weights = tensor_rule(*(np.broadcast_to(v, (*shape, order)) for v in rule), shape)
        standard = jnp.asarray(standard, self.dtype)
        return Nodes(jax.vmap(self.transport)(standard), jnp.asarray(weights, self.dtype), exact=False)


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
        return jnp.sum(self.concentration * x - jnp.exp(x) - gammaln(self.concentration))

    def mean(self):
        return digamma(self.concentration)

    def variance(self):
        return jax.scipy.special.polygamma(1, self.concentration)

    def entropy(self):
        a = self.concentration
        return jnp.sum(gammaln(a) - a * digamma(a) + a)

    def nodes(self, order):
        points, weights = _log_gamma_rule(np.asarray(self.concentration, np.float64), order)
        points, weights = tensor_rule(points, weights, self.concentration.shape)
        return Nodes(jnp.asarray(points, self.dtype), jnp.asarray(weights, self.dtype), exact=False)


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
    a, y = jnp.asarray(primals[0]), primals[1]
    a_dot, y_dot = tangents
    y = implicit_log_gamma(a, y)  # so that a further forward derivative follows y as a moves
    tiny = y < math.log(jnp.finfo(y.dtype).eps)
    g = jnp.exp(jnp.where(tiny, 0, y))
    slope = jnp.where(tiny, (digamma(a + 1) - y) / a, jax.lax.random_gamma_grad(a, g) / g)
    return y, slope * a_dot + y_dot


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
        inside = x >= 0
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
        log_density = xlogy(a - 1, x) + xlog1py(b - 1, -x) - betaln(a, b)
        return jnp.where(inside.all(), log_density.sum(), -jnp.inf)

    def mean(self):
        return self.concentration1 / (self.concentration1 + self.concentration0)

    def variance(self):
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total**2 * (total + 1))

    def entropy(self):
        a, b = self.concentration1, self.concentration0
        total = a + b
        return jnp.sum(betaln(a, b) - (a - 1) * digamma(a) - (b - 1) * digamma(b) + (total - 2) * digamma(total))

    def nodes(self, order):
        a, b = (np.asarray(c, np.float64) for c in (self.concentration1, self.concentration0))
        rules = [special.roots_jacobi(order, b_i - 1, a_i - 1) for a_i, b_i in zip(a.flat, b.flat, strict=True)]
        points = np.array([(x + 1) / 2 for x, _ in rules]).reshape(*a.shape, order)
        weights = np.array([w / w.sum() for _, w in rules]).reshape(*a.shape, order)
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


def _trapezoid(log_density, low: float, high: float, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid rule against a smooth density that vanishes at both ends: geometric convergence in the order."""
    points, step = np.linspace(low, high, order, retstep=True)
    return points, step * np.exp(log_density(points))


def _log_gamma_rule(concentration: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid rules for `LogGamma`, one per concentration: `(*shape, order)` each.

    Ends: the left tail falls like exp(a y), the right one like exp(-e^y); both are cut near 1e-18 of the mass.
    """

    def rule(a):
        spread = 9 * math.sqrt(special.polygamma(1, a))
        low = min(special.digamma(a) - spread, (special.gammaln(a + 1) - 42) / a)
        high = math.log(special.gammainccinv(a, 1e-300) if a < 1e6 else a) + (0 if a < 1e6 else 9 / math.sqrt(a))
        return _trapezoid(lambda y: a * y - np.exp(y) - special.gammaln(a), low, high, order)

    rules = [rule(float(a)) for a in concentration.flat]
    shape = (*concentration.shape, order)
    return np.array([p for p, _ in rules]).reshape(shape), np.array([w for _, w in rules]).reshape(shape)
