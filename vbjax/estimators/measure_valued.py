"""Measure-valued gradients: ∂q/∂η = c (p⁺ - p⁻), so that ∂E f = c (E_{p⁺} f - E_{p⁻} f), a difference of plain values.

f may jump and q may be discrete. One coordinate moves at a time, so the cost grows with the dimension. Read
`measure_valued`, then `_normal`: a family is its noise, its base draw, the values that replace one coordinate of it,
and the gradient as a function of the values of f there.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from vbjax import bounds
from vbjax.distributions import (
    Bernoulli,
    Categorical,
    Copies,
    Distribution,
    Gamma,
    Joint,
    LogGamma,
    Normal,
    OneHotCategorical,
    Poisson,
)
from vbjax.estimators.estimate import check_samples, estimator_name, inject, without_derivative
from vbjax.types import GradientEstimator, NotAvailable, Scalar, Spec, stop_gradient


class Decomposition(NamedTuple):
    """How a family's density differentiates, coordinate by coordinate.

    noise: q -> the law of one draw. base: (q, noise) -> an event of q. replacements: (q, base, noise of the base, noise
    of the other part) -> `(m, *event)`, what is put in the place of each coordinate in turn. gradient: (q, base,
    values `(m, *event)` of f there less f at the base) -> the gradient in each leaf of q, None where it has none.
    point_masses: whether p⁺ and p⁻ are fixed outcomes. event: what f is given, from a base event.
    """

    noise: Callable[[Any], Any]
    base: Callable[[Any, Any], Array]
    replacements: Callable[[Any, Array, Any, Any], Array]
    gradient: Callable[[Any, Array, Array], tuple[Array | None, ...]]
    point_masses: bool = False
    event: Callable[[Any, Array], Array] = lambda q, z: z


def measure_valued(samples: int = 1, *, like: Distribution | None = None) -> GradientEstimator:
    """Estimate ∂E f by c (f(z⁺) - f(z⁻)), the two draws coupled and all other coordinates of z shared.

    By coordinate, with z the base draw (Mohamed et al. 2020, table 1):

    - Normal mean: c = 1/(σ√2π), z± = μ ± σρ, ρ Rayleigh. Scale: c = 1/σ, z⁺ = μ + σX, X double-sided Maxwell, z⁻ = z =
      μ + σUX with U uniform on (0, 1), the coupling of Heidergott et al. (2008).
    - Poisson rate: c = 1, z⁺ = z + 1, z⁻ = z.
    - Gamma rate: c = a/b, z⁺ = z, z⁻ = z + e/b ~ Gamma(a + 1, b), e exponential. A concentration that is differentiated
      is refused; use `pathwise`.
    - Bernoulli: p(1-p) (f(1) - f(0)). Categorical, one-hot: p_l (f(l) - Σ_j p_j f(j)), every category in turn.

    samples: K base draws per estimate; the mean of f there is the value and carries the gradient of what f closes over.
    Calls of f for D coordinates: K (1 + 3D) for Normal, K (1 + D) for Poisson, Gamma, Bernoulli, K (1 + (k-1) D) for k
    categories; `spec.evaluations` is that number for `like`, a law of the same family and shape as q; by default for
    one normal coordinate. Not for many dimensions: `pathwise` where f is smooth, `score_function` with a baseline
    otherwise. Gives first derivatives only. Raises `NotAvailable` for other families. Source: Mohamed et al. (2020),
    section 6; Pflug (1989); lecture 000 «Basics».
    """
    return _measure_valued("measure_valued", samples, like, draws=1)


def measure_valued_independent(samples: int = 1, *, like: Distribution | None = None) -> GradientEstimator:
    """As `measure_valued`, the positive and the negative part drawn independently.

    The textbook form, for comparison, of the same mean and cost. For rates and scales it has more variance: what
    the two parts share no longer cancels. For the *mean* of a normal law it can have less, since a shared ρ helps only
    where f is even about μ: d²(8/π - 2) + 4σ²/π against d²(16/π - 4) for the square cost at distance d. Raises
    `NotAvailable` also for Bernoulli and categorical laws, whose parts are fixed outcomes: nothing is drawn. Source:
    Mohamed et al. (2020), section 6.
    """
    return _measure_valued("measure_valued_independent", samples, like, draws=2)


def _measure_valued(factory: str, samples: int, like: Distribution | None, draws: int) -> GradientEstimator:
    check_samples(samples)
    name = estimator_name(factory, samples, bound=bounds.mean)

    def decomposition(q) -> Decomposition:
        found = _FAMILIES.get(type(q))
        if found is None:
            raise NotAvailable(f"{factory} knows {', '.join(law.__name__ for law in _FAMILIES)}, not "
                               f"{type(q).__name__}; use pathwise or score_function.")  # fmt: skip
        if found.point_masses and draws > 1:
            raise NotAvailable(f"{factory} draws nothing for {type(q).__name__}, whose parts are fixed outcomes; use "
                               "measure_valued.")  # fmt: skip
        return found

    def noise(q):
        return Copies(Copies(decomposition(q).noise(stop_gradient(q)), draws), samples)

    def surrogate(state, noise, f, q):
        family, fixed = decomposition(q), stop_gradient(q)

        def once(noise) -> tuple[Scalar, Any]:
            first, last = jax.tree.map(lambda x: x[0], noise), jax.tree.map(lambda x: x[-1], noise)
            base = family.base(fixed, first)
            alternatives = family.replacements(fixed, base, first, last)
            value = f(family.event(fixed, base))
            values = jax.vmap(jax.vmap(lambda z: f(family.event(fixed, z))))(_replaced(base, alternatives))
            change = (values - value).reshape(alternatives.shape)
            return value, family.gradient(fixed, base, change)

        values, gradients = jax.vmap(once)(noise)
        gradient = jax.tree.map(lambda g: g.mean(0), gradients)
        return values.mean() + _inject_known(q, gradient, name)

    evaluations = samples * _calls(decomposition(like), like) if like is not None else samples * 4
    return GradientEstimator(Spec(name, True, True, True, (), evaluations, 1), noise, surrogate)


def _calls(family: Decomposition, q: Distribution) -> int:
    """Calls of f for one base draw."""

    def replacements(q):
        points = family.noise(q).sample(jax.random.key(0))
        return family.replacements(q, family.base(q, points), points, points)

    return 1 + jax.eval_shape(replacements, q).size


def _replaced(base: Shaped[Array, "*event"], alternatives: Shaped[Array, "m *event"]) -> Shaped[Array, "m d *event"]:
    """The base with one coordinate, in turn, replaced by each of its alternatives."""
    coordinate = jnp.eye(base.size, dtype=bool).reshape(1, base.size, *base.shape)
    return jnp.where(coordinate, alternatives[:, None], base[None, None])


def _inject_known(q, gradient: tuple[Array | None, ...], name: str) -> Scalar:
    """Inject the gradient; a parameter that has none says so when it is differentiated."""
    pairs = list(zip(jax.tree.leaves(q), gradient, strict=True))
    known = [(leaf, g) for leaf, g in pairs if g is not None]
    refused = [without_derivative(leaf, _CONCENTRATION).sum() for leaf, g in pairs if g is None]
    return inject([leaf for leaf, _ in known], [g for _, g in known], estimator=name) + sum(refused)


_CONCENTRATION = (
    "measure_valued differentiates a Gamma law in its rate, not its concentration; use pathwise, or "
    "stop_gradient(concentration)."
)


def _normal() -> Decomposition:
    """Three standard normals in polar form give all of it: the base s|z|, ρ² = x² + y², X = s √(z² + ρ²).

    |z| / |X| is uniform and independent of X (Archimedes). The logarithms of z²/2 and ρ²/2 are smooth noise.
    """

    def noise(q):
        zero = jnp.zeros_like(q.loc)
        return Joint((Bernoulli(zero), LogGamma(zero + 0.5), LogGamma(zero + 1)))

    def length(log_half_square):
        return jnp.sqrt(2 * jnp.exp(log_half_square))

    def base(q, noise):
        side, log_z, _ = noise
        return q.loc + q.scale * (2 * side - 1) * length(log_z)

    def replacements(q, z, first, last):
        side, log_z, log_rho = last
        maxwell = (2 * side - 1) * length(jnp.logaddexp(log_z, log_rho))
        return q.loc[None] + q.scale[None] * jnp.stack([length(log_rho), -length(first[2]), maxwell])

    def gradient(q, z, change):
        above, below, maxwell = change
        return (above - below) / (q.scale * math.sqrt(2 * math.pi)), maxwell / q.scale

    return Decomposition(noise, base, replacements, gradient)


def _poisson() -> Decomposition:
    return Decomposition(
        noise=lambda q: q,
        base=lambda q, count: count,
        replacements=lambda q, z, first, last: last[None] + 1,
        gradient=lambda q, z, change: (change[0],),
    )


def _gamma() -> Decomposition:
    return Decomposition(
        noise=lambda q: Joint((LogGamma(q.concentration), LogGamma(jnp.ones_like(q.rate)))),
        base=lambda q, noise: jnp.exp(noise[0]) / q.rate,
        replacements=lambda q, z, first, last: (jnp.exp(jnp.logaddexp(*last)) / q.rate)[None],
        gradient=lambda q, z, change: (None, -change[0] * q.concentration / q.rate),
    )


def _bernoulli() -> Decomposition:
    def variance(q):
        return q.variance()

    def flipped(q, z, first, last):
        # where the other side cannot occur, f may be infinite there
        return jnp.where(variance(q) > 0, 1 - z, z)[None]

    return Decomposition(
        noise=lambda q: q,
        base=lambda q, bits: bits,
        replacements=flipped,
        gradient=lambda q, z, change: (variance(q) * (1 - 2 * z) * change[0],),
        point_masses=True,
    )


def _categorical(event: Callable[[Any, Array], Array], index: Callable[[Any], Categorical]) -> Decomposition:
    """The base is an index per coordinate; the other k - 1 categories follow it in a circle."""

    def others(q, z, first, last):
        k = q.logits.shape[-1]
        steps = jnp.arange(1, k, dtype=z.dtype).reshape(-1, *[1] * z.ndim)
        category = (z[None] + steps) % k
        probs = jnp.moveaxis(jnp.take_along_axis(q.probs, jnp.moveaxis(category, 0, -1), axis=-1), -1, 0)
        return jnp.where(probs > 0, category, z[None])  # f may be infinite at what cannot occur

    def gradient(q, z, change):
        k = q.logits.shape[-1]
        change = jnp.concatenate([jnp.zeros_like(change[:1]), change])
        steps = (jnp.arange(k, dtype=z.dtype).reshape(*[1] * z.ndim, k) - z[..., None]) % k
        by_category = jnp.take_along_axis(jnp.moveaxis(change, 0, -1), steps, axis=-1)
        mean = jnp.sum(q.probs * by_category, axis=-1, keepdims=True)
        return (q.probs * (by_category - mean),)

    return Decomposition(index, lambda q, z: z, others, gradient, True, event)


_FAMILIES: dict[type, Decomposition] = {
    Normal: _normal(),
    Poisson: _poisson(),
    Gamma: _gamma(),
    Bernoulli: _bernoulli(),
    Categorical: _categorical(lambda q, z: z, lambda q: q),
    OneHotCategorical: _categorical(
        lambda q, z: jax.nn.one_hot(z, q.logits.shape[-1], dtype=q.dtype), lambda q: q.index()
    ),
}
