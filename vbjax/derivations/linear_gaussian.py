"""The linear-Gaussian model, on which a bound, its gap and its gradients all have exact answers.

z ~ N(0, I), x|z ~ N(W z + μ, σ² I). The first half says it with the library's laws, as a left side does; the second
half is NumPy and SciPy algebra, for right sides.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vbjax import bounds
from vbjax.derivations import families
from vbjax.distributions import Distribution, MultivariateNormal, Normal
from vbjax.types import LogDensity, Scalar


class LinearGaussian(NamedTuple):
    """Weights `(D, k)`, offset and observation `(D,)`, noise variance σ², and a Gaussian q by mean and covariance."""

    weights: tuple = ((0.9, -0.4), (0.3, 1.1), (-0.5, 0.6))
    offset: tuple = (0.1, 0.3, -0.2)
    noise_variance: float = 0.4
    observation: tuple = (0.8, -0.6, 0.5)
    q_mean: tuple = (0.3, -0.5)
    q_covariance: tuple = ((0.4, -0.1), (-0.1, 0.3))


def random_model(random: np.random.Generator) -> LinearGaussian:
    """Two codes, one to five observed coordinates, and a noise that the quadrature rules still resolve."""
    observed = int(random.integers(1, 6))
    return LinearGaussian(
        weights=families.normals(random, observed, 2),
        offset=families.normals(random, observed),
        noise_variance=random.uniform(0.4, 2),
        observation=families.normals(random, observed),
        q_mean=families.normals(random, 2),
        q_covariance=families.covariance(random, 2, low=0.1, high=1.5),
    )


def prior(model: LinearGaussian) -> Normal:
    """p(z) = N(0, I)."""
    width = len(model.q_mean)
    return Normal(jnp.zeros(width), jnp.ones(width))


def variational(model: LinearGaussian) -> MultivariateNormal:
    """q(z), the instance's own."""
    return MultivariateNormal.from_covariance(jnp.array(model.q_mean), jnp.array(model.q_covariance))


def log_likelihood(model: LinearGaussian) -> LogDensity:
    """`z -> log p(x|z)`, in nats."""
    weights, offset, x = (jnp.array(v) for v in (model.weights, model.offset, model.observation))
    scale = jnp.full(x.shape, model.noise_variance**0.5)
    return lambda z: Normal(weights @ z + offset, scale).log_prob(x)


def log_weight(model: LinearGaussian, q: Distribution) -> LogDensity:
    """`z -> log p(x, z) - log q(z)`, in nats."""
    likelihood, p = log_likelihood(model), prior(model)
    return lambda z: likelihood(z) + p.log_prob(z) - q.log_prob(z)


def elbo(model: LinearGaussian, q: Distribution) -> Scalar:
    """The ELBO by `bounds.elbo`, averaged over a rule that is exact for a quadratic log-likelihood."""
    likelihood, p = log_likelihood(model), prior(model)
    points, weights, _ = q.nodes(3)
    return weights @ jax.vmap(lambda z: bounds.elbo(likelihood, q, p, z).total)(points)


def numpy_posterior(model: LinearGaussian) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of p(z|x) by conditioning the joint Gaussian of (z, x)."""
    W = np.array(model.weights)
    gain = np.linalg.solve(numpy_marginal_covariance(model), W).T
    residual = np.array(model.observation) - np.array(model.offset)
    return gain @ residual, np.eye(W.shape[1]) - gain @ W


def numpy_marginal_covariance(model: LinearGaussian) -> np.ndarray:
    """W Wᵀ + σ² I."""
    W = np.array(model.weights)
    return W @ W.T + model.noise_variance * np.eye(len(W))


def numpy_log_evidence(model: LinearGaussian) -> float:
    """log p(x) by SciPy's normal density."""
    return stats.multivariate_normal(model.offset, numpy_marginal_covariance(model)).logpdf(model.observation)
