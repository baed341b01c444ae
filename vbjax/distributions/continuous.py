"""Continuous families with an explicit transport: normal, log-normal, Laplace, logistic, uniform.

Each reads like its density. Reparameterised families split sampling in two: `noise()`, a law with no parameters to
learn, and `transport(noise)`, which carries the gradient. Read `Normal` first; the gamma family is in `gamma`.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit, ndtr, ndtri
from jaxtyping import Array, Float

from vbjax.distributions.family import (
    LOG_2PI,
    POSITIVE,
    Distribution,
    Interval,
    as_parameters,
    family,
    float_dtype,
    require,
    require_finite,
    require_positive,
    vmap_over,
)
from vbjax.distributions.quadrature import log_gamma_rule, normal_rule, tensor_rule, trapezoid, uniform_rule
from vbjax.types import Nodes


class _LocationScale(Distribution):
    """`loc + scale * noise`, the noise being the standard member of the family; kept out of sight."""

    loc: Array
    scale: Array
    reparameterised = True
    closed_form_cdf = True
    _standard: ClassVar[Callable[..., Array]]
    _standard_cdf: ClassVar[Callable[[Array], Array]]
    _standard_quantile: ClassVar[Callable[[Array], Array]]

    def _rule(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """One-dimensional rule for the standard member."""
        raise NotImplementedError

    def __post_init__(self):
        as_parameters(self, "loc", "scale")
        require_finite(self, "loc")
        require_positive(self, "scale")

    def noise(self):
        member: Any = type(self)
        return member(jnp.zeros_like(self.loc), jnp.ones_like(self.scale))

    def transport(self, noise):
        return self.loc + self.scale * noise

    def inverse_transport(self, x):
        return (x - self.loc) / self.scale

    def reflect(self, x):
        return 2 * self.loc - x

    def quantile(self, u):
        return self.transport(self._standard_quantile(u))

    def cdf(self, x):
        return self._standard_cdf(self.inverse_transport(x))

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(self._standard(key, shape + self.loc.shape, self.dtype))

    def mean(self):
        return self.loc

    def nodes(self, order):
        shape = self.loc.shape
        points, weights = (np.broadcast_to(v, (*shape, len(v))) for v in self._rule(order))
        standard, weights = (jnp.asarray(v, self.dtype) for v in tensor_rule(points, weights, shape))
        return Nodes(jax.vmap(self.transport)(standard), weights, exact=False)


@family
class Normal(_LocationScale):
    """Normal law with independent coordinates, N(loc, diag(scale²)).

    loc: real; scale: standard deviation > 0; both broadcast to the event's shape.
    """

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    _standard = staticmethod(jax.random.normal)
    _standard_cdf = staticmethod(ndtr)
    _standard_quantile = staticmethod(ndtri)

    def log_prob(self, x):
        z = (x - self.loc) / self.scale
        return jnp.sum(-0.5 * (z**2 + LOG_2PI) - jnp.log(self.scale))

    def variance(self):
        return self.scale**2

    def entropy(self):
        return jnp.sum(0.5 * (1 + LOG_2PI) + jnp.log(self.scale))

    def _rule(self, order):
        return normal_rule(order)


def solve_lower(tril: Float[Array, "*event d"], b: Float[Array, "*event"]) -> Float[Array, "*event"]:
    """x of L x = b for a lower triangular L, by forward substitution.

    Not LAPACK's: a batch of its solves waits for the threads that run it, so that two at a time wait for ever on two
    cores (jaxlib 0.10.1).
    """

    def substitute(rest, column):
        i, below = column
        x_i = rest[..., i] / below[..., i]
        return rest - x_i[..., None] * below, x_i

    columns = jnp.arange(b.shape[-1]), jnp.moveaxis(tril, -1, 0)
    return jnp.moveaxis(jax.lax.scan(substitute, b, columns)[1], 0, -1)


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
        dtype = float_dtype(loc, tril)
        object.__setattr__(self, "loc", loc.astype(dtype))
        object.__setattr__(self, "scale_tril", tril.astype(dtype))
        require_finite(self, "loc", "scale_tril")
        require(self, "scale_tril", lambda v: np.triu(v, 1) == 0, "lower triangular")
        require(self, "scale_tril", lambda v: np.diagonal(v, 0, -2, -1) > 0, "positive on its diagonal")

    @classmethod
    def from_covariance(cls, loc, covariance) -> "MultivariateNormal":
        """Build from a symmetric positive definite covariance `(..., d, d)`; ValueError if it is not."""
        covariance = jnp.asarray(covariance)
        covariance = covariance.astype(float_dtype(covariance))
        if not isinstance(covariance, jax.core.Tracer):
            symmetric = np.swapaxes(covariance, -1, -2)
            if not np.allclose(covariance, symmetric, rtol=1e-5, atol=1e-5 * np.abs(covariance).max()):
                raise ValueError("MultivariateNormal.covariance must be symmetric")
        tril = jnp.linalg.cholesky(covariance)
        if not isinstance(tril, jax.core.Tracer) and bool(jnp.isnan(tril).any()):
            raise ValueError("MultivariateNormal.covariance must be positive definite")
        return cls(loc, tril)

    @property
    def factor(self) -> Float[Array, "*event d"]:
        """L: what stands above the diagonal of `scale_tril` is no parameter, so that no gradient moves it."""
        return jnp.tril(self.scale_tril)

    def noise(self):
        return Normal(jnp.zeros_like(self.loc), jnp.ones_like(self.loc))

    def transport(self, noise):
        return self.loc + (self.factor @ noise[..., None])[..., 0]

    def inverse_transport(self, x):
        return self.whiten(x)

    def sample(self, key, shape=()):
        return vmap_over(shape, self.transport)(jax.random.normal(key, shape + self.loc.shape, self.dtype))

    def whiten(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """L⁻¹ (x - loc): standard normal if x has this law."""
        return solve_lower(self.scale_tril, x - self.loc)

    def log_prob(self, x):
        return jnp.sum(-0.5 * (self.whiten(x) ** 2 + LOG_2PI) - self._log_diagonal())

    def mean(self):
        return self.loc

    def variance(self):
        return jnp.sum(self.factor**2, axis=-1)

    def covariance(self) -> Float[Array, "*event d"]:
        """L Lᵀ."""
        return self.factor @ jnp.swapaxes(self.factor, -1, -2)

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

    def inverse_transport(self, x):
        return self.log().inverse_transport(jnp.log(x))

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

    @staticmethod
    def _standard_cdf(x):
        tail = 0.5 * jnp.exp(-jnp.abs(x))
        return jnp.where(x < 0, tail, 1 - tail)

    @staticmethod
    def _standard_quantile(u):
        return jnp.where(u < 0.5, jnp.log(2 * u), -jnp.log(2 * (1 - u)))

    def log_prob(self, x):
        return jnp.sum(-jnp.abs(x - self.loc) / self.scale - jnp.log(2 * self.scale))

    def variance(self):
        return 2 * self.scale**2

    def entropy(self):
        return jnp.sum(1 + jnp.log(2 * self.scale))

    def _rule(self, order):
        # a rule on each side of the kink: |ξ| is exponential, that is gamma with concentration one
        log_distance, weights = log_gamma_rule(np.ones(()), max(order // 2, 2))
        distance = np.exp(log_distance)
        return np.concatenate([-distance[::-1], distance]), np.concatenate([weights[::-1], weights]) / 2


@family
class Logistic(_LocationScale):
    """Logistic law, whose distribution function is sigmoid((x - loc) / scale); independent coordinates."""

    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    _standard = staticmethod(jax.random.logistic)
    _standard_cdf = staticmethod(jax.nn.sigmoid)
    _standard_quantile = staticmethod(logit)

    def log_prob(self, x):
        z = (x - self.loc) / self.scale
        return jnp.sum(jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - jnp.log(self.scale))

    def variance(self):
        return (math.pi * self.scale) ** 2 / 3

    def entropy(self):
        return jnp.sum(2 + jnp.log(self.scale))

    def _rule(self, order):
        return trapezoid(lambda x: -x - 2 * np.logaddexp(0, -x), -45.0, 45.0, order)


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

    def reflect(self, x):
        return self.low + self.high - x

    def quantile(self, u):
        return self.transport(u)

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
        shape = self.low.shape
        points, weights = (np.broadcast_to(v, (*shape, order)) for v in uniform_rule(order))
        standard, weights = (jnp.asarray(v, self.dtype) for v in tensor_rule(points, weights, shape))
        return Nodes(jax.vmap(self.transport)(standard), weights, exact=False)
