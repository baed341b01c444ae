"""What the conformance matrix compares with: exact values and gradients by routes that no estimator takes.

`truth` sums over outcomes or a quadrature rule with the density's slope; a jump is integrated from where it is; and a
bound of any number of samples is one integral over one sample, by a Laplace transform.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from vbjax import bounds
from vbjax.distributions import Beta, Laplace
from vbjax.estimators import catalogue
from vbjax.exact import NotConverged
from vbjax.studies import families
from vbjax.types import Nodes, NotAvailable


def truth(family: families.Family, objective: str, samples: int, bound: Any):
    """The objective and its gradient by groups, or None where there is no oracle."""
    if bound is bounds.mean:
        return _truths_of_the_mean(family.name)[objective]
    return _truth_of_a_bound(family.name, samples, bound)


def _named(name: str) -> families.Family:
    return next(family for family in families.families() if family.name == name)


@functools.cache
def _truths_of_the_mean(name: str) -> dict[str, Any]:
    """All objectives of a family by one sum over its outcomes, or over the points of a rule for its noise."""
    family = _named(name)
    params = families.arrays(family)
    law = family.law(params["q"])
    jumps, own = not law.enumerable, _has_own_rule(law)

    @jax.jit
    def integrals(nodes):
        def integral(objective, params):
            q = family.law(params["q"])
            z, weights = _points(q, nodes, own)
            return weights @ jax.vmap(families.OBJECTIVES[objective](family, q, params))(z)

        smooth = [objective for objective in families.OBJECTIVES if not (jumps and objective == "discontinuous")]
        return {o: families.by_group(*jax.value_and_grad(functools.partial(integral, o))(params)) for o in smooth}

    found = integrals(_rule(law, 2**16))
    if not law.enumerable:
        change = jax.tree.map(
            lambda a, b: jnp.max(jnp.abs(a - b)), found, integrals(_rule(law, 2**11 if own else 2**14))
        )
        if max(jax.tree.leaves(change)) > 1e-8:
            raise NotConverged(f"the rules for {name} differ by {change}")
        found["discontinuous"] = _jump_truth(family)
    return found


def _rule(law: Any, most: int) -> Nodes:
    """The law's outcomes, a rule for the law, or one for what it is made of, of at most so many points."""
    source = law if _has_own_rule(law) else law.noise()
    order = 8
    nodes = source.nodes(order)
    while (
        not nodes.exact
        and order < _HIGHEST.get(type(law), 512)
        and (finer := source.nodes(2 * order)).weights.shape[0] <= most
    ):
        order, nodes = 2 * order, finer
    return nodes


_HIGHEST = {Laplace: 2**13}
"""Orders of rules that converge slowly, here by two kinks in one place."""


def _has_own_rule(law: Any) -> bool:
    """Not the beta law, whose rule converges slowly for its logarithmic score."""
    try:
        law.nodes(8)
    except NotAvailable:
        return False
    return law.fixed_support and not isinstance(law, Beta)


def _points(q: Any, nodes: Nodes, own: bool):
    """Events and weights as functions of the law: by its density where it has a rule of its own, else by its path."""
    if not own:
        return jax.vmap(q.transport)(nodes.points), nodes.weights
    log_q = jax.vmap(q.log_prob)(nodes.points)
    return nodes.points, nodes.weights * jnp.exp(log_q - jax.lax.stop_gradient(log_q))


@functools.cache
def _truth_of_a_bound(name: str, samples: int, bound: Any):
    power = {bounds.iwae: 1.0, catalogue.RENYI: 0.5, catalogue.CUBO: 2.0}.get(bound)
    if power is None and bound is not catalogue.TVO:
        return None
    log_mean, count = _log_mean(name), jnp.asarray(float(samples))

    @jax.jit
    def objective(params):
        if power is not None:
            return log_mean(params, count, jnp.asarray(power)) / power

        # the self-normalised mean of log w under w^β is the slope of log mean w^β in β
        def slope(beta):
            return jax.jvp(lambda b: log_mean(params, count, b), (beta,), (jnp.ones_like(beta),))[1]

        widths = np.diff([*catalogue.BETAS, 1.0])
        return jnp.asarray(widths) @ jax.lax.map(slope, jnp.asarray(catalogue.BETAS))

    return families.by_group(*jax.value_and_grad(objective)(families.arrays(_named(name))))


def _jump_truth(family: families.Family):
    """P(s > c) and its gradient: an integral of the density and its slope from the jump on."""
    params = families.arrays(family)
    line = family.line or family.law

    @jax.jit
    def integrand(x):
        def weighted(q):
            return jnp.exp(line(q).log_prob(x))

        return jnp.concatenate([weighted(params["q"])[None], families.vector(jax.grad(weighted)(params["q"]))])

    law = line(params["q"])
    start, end = (families.THRESHOLD - family.shift) / family.scale, float(getattr(law.support, "upper", np.inf))
    if not law.reparameterised and law.discrete:
        total = np.sum([np.asarray(integrand(x)) for x in np.arange(math.floor(start) + 1, 200.0)], axis=0)
    else:
        total, _ = integrate.quad_vec(lambda x: np.asarray(integrand(x)), start, end, epsrel=1e-11, epsabs=1e-13)
    model = families.vector({"prior": params["prior"], "likelihood": params["likelihood"]})
    return {"value": total[:1], "q": total[1:], "model": np.zeros(model.shape)}


def _log_mean(name: str):
    """(params, samples, s) -> E log mean w^s, by the Laplace transform of w^s, for any number of samples from one
    integral over one sample: log S = ∫ (e^{-t} - e^{-tS}) dt/t.
    """
    family = _named(name)
    law = family.law(families.arrays(family)["q"])
    own = _has_own_rule(law)
    nodes = _rule(law, 2**12 if own else 2**16)
    step = 0.25
    u = jnp.arange(-45, 700, step)

    def log_mean(params, samples, power):
        q = family.law(params["q"])
        z, weights = _points(q, nodes, own)
        log_w = power * jax.vmap(families.OBJECTIVES["log-weight"](family, q, params))(z)

        @jax.checkpoint  # or derivatives keep every u times every point, 12 GB for TVO on a beta law
        def transform_at(u):
            return weights @ jnp.exp(-jnp.exp(jnp.minimum(u + log_w, 40)))  # beyond, a derivative of inf · 0

        transform = jax.lax.map(transform_at, u, batch_size=64)
        return step * jnp.sum(jnp.exp(-jnp.exp(u)) - transform**samples) - jnp.log(samples)

    return log_mean
