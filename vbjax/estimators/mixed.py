"""Several latent sites, each with an estimator of its own: independent sites side by side, or one inside the other.

`mixed` serves a `Joint` law, site by site. `nested` serves a `Hierarchy`: the inner site's surrogate is the outer
one's objective, so that gradients run through the whole stochastic computation graph.
"""

from typing import Any

import jax

from vbjax.distributions import Copies, Joint
from vbjax.distributions.hierarchy import Hierarchy
from vbjax.estimators.coupling import StandardNoise, draw
from vbjax.estimators.estimate import check_samples, inject
from vbjax.types import Event, GradientEstimator, NotAvailable, Spec, stop_gradient


def mixed(*estimators: GradientEstimator, samples: int = 1) -> GradientEstimator:
    """Estimate the gradient of E f(z_1, …, z_m), z_i ~ q_i independent, by one estimator per site.

    g_i = the i-th estimator's gradient of q_i at f_i(z_i) = f(z with its i-th entry replaced), z drawn from q = Joint.
    estimators: as many as sites, each for the *mean* of its samples, which no check can see. samples: draws of z,
    averaged, each with fresh noise of every member. The value and the gradient in what f closes over are those of
    f(z). Unbiased if the members are; first derivatives only. The cost is that of all members plus one call of f a
    draw: *where all sites suit one estimator, use that* on the joint law. Raises `NotAvailable` for a law that is no
    `Joint` of as many sites, and as the members do; ValueError for no estimator.
    Source: Mohamed et al. (2020), section 2, one conditional expectation per site; Titsias & Lázaro-Gredilla (2015).
    """
    check_samples(samples)
    if not estimators:
        raise ValueError("mixed needs one estimator for each site, got none")
    specs = [estimator.spec for estimator in estimators]
    name = f"mixed({', '.join(spec.name for spec in specs)}, samples={samples})"

    def sites(q):
        if not isinstance(q, Joint) or len(q.laws) != len(estimators):
            got = f"a Joint of {len(q.laws)}" if isinstance(q, Joint) else type(q).__name__
            raise NotAvailable(f"{name} needs a Joint of {len(estimators)} laws, got {got}; nested serves a Hierarchy.")
        return q.laws

    def noise(q):
        members = Joint(tuple(e.noise(law) for e, law in zip(estimators, sites(q), strict=True)))
        return Copies(Joint((stop_gradient(q), members)), samples)

    def members(state, z, noise, f, q):
        """Each member with its arguments."""
        for i, (estimator, law) in enumerate(zip(estimators, sites(q), strict=True)):
            yield estimator, state[i], noise[i], lambda z_i, i=i: f((*z[:i], z_i, *z[i + 1 :])), law

    def surrogate(state, noise, f, q):
        def gradient(z, noise):
            gradients = [
                jax.grad(lambda law, e=e, s=s, xi=xi, f_i=f_i: e.surrogate(s, xi, f_i, law))(law)
                for e, s, xi, f_i, law in members(state, z, noise, f, stop_gradient(q))
            ]
            return Joint(tuple(gradients))

        z, _ = noise
        gradient = jax.tree.map(lambda g: g.mean(0), jax.vmap(gradient)(*noise))
        return jax.vmap(f)(z).mean() + inject(q, gradient, estimator=name)

    def init(q):
        return tuple(estimator.init(law) for estimator, law in zip(estimators, sites(q), strict=True))

    def update(state, noise, f, q):
        def one(z, noise):
            return tuple(e.update(s, xi, f_i, law) for e, s, xi, f_i, law in members(state, z, noise, f, q))

        return jax.tree.map(lambda x: x.mean(0), jax.vmap(one)(*noise))

    return GradientEstimator(
        spec=Spec(
            name,
            True,
            all(spec.unbiased_variational for spec in specs),
            True,
            (),
            samples * (1 + sum(spec.evaluations for spec in specs)),
            1,
        ),
        noise=noise,
        surrogate=surrogate,
        init=init,
        update=update,
    )


def nested(outer: GradientEstimator, inner: GradientEstimator) -> GradientEstimator:
    """Estimate the gradient of E f(z1, z2) under a `Hierarchy`: the outer objective is the inner surrogate.

    F(z1) = inner surrogate of f(z1, ·) under q(z2 | z1); the estimate is the outer surrogate of F under q(z1).
    A pathwise outer site differentiates F through z1; a score-function one weighs its value. All z1 that the
    outer estimator tries share one inner noise: discrete inner draws come from uniforms by inverse distribution
    functions, so the noise does not depend on z1. Deeper: `nested(a, nested(b, c))`, where the inner law is a
    `Hierarchy` itself. Both are for the *mean* of their samples, which no check can see. Unbiased if both are; right to
    the lower order of derivative of the two. Exact moments need a finite outer law or a reparameterised inner one:
    under a continuous z1 the jumps of a discrete z2 move. An inner estimator that learns is updated at one more draw
    of z1. *Not where f forgets z1 or z2 quickly*: the inner draw is repeated for every outer one. Raises
    `NotAvailable` for a law that is no `Hierarchy`, and for inner noise that moves with z1 (gamma family, Poisson);
    ValueError for an inner estimator of biased value.
    Source: Schulman et al. (2015), theorem 1; Foerster et al. (2018).
    """
    if not inner.spec.unbiased_value:
        raise ValueError(
            f"{inner.spec.name} has a biased value, which the outer estimator would take for the objective"
        )
    name = f"nested({outer.spec.name}, {inner.spec.name})"
    orders = [spec.derivative_order for spec in (outer.spec, inner.spec) if spec.derivative_order is not None]

    def require_hierarchy(q):
        if not isinstance(q, Hierarchy):
            raise NotAvailable(f"{name} needs a Hierarchy, got {type(q).__name__}; mixed serves a Joint.")

    def inner_noise(then, z1):
        return inner.noise(then(z1))

    def inner_state(q):
        return inner.init(q.second())

    def noise(q):
        require_hierarchy(q)
        q = stop_gradient(q)
        laws = (outer.noise(q.first), StandardNoise(jax.tree_util.Partial(inner_noise, q.then), q.first, name))
        learns = jax.tree.leaves(inner_state(q))
        return Joint((*laws, q.first)) if learns else Joint(laws)

    def objective(state, u, f, q):
        def value(z1: Event) -> Any:
            law = q.then(z1)
            return inner.surrogate(state, draw(inner.noise(law), u), lambda z2: f((z1, z2)), law)

        return value

    def surrogate(state, noise, f, q):
        require_hierarchy(q)
        return outer.surrogate(state[0], noise[0], objective(state[1], noise[1], f, q), q.first)

    def init(q):
        require_hierarchy(q)
        return outer.init(q.first), inner_state(q)

    def update(state, noise, f, q):
        outer_next = outer.update(state[0], noise[0], objective(state[1], noise[1], f, q), q.first)
        if len(noise) == 2:
            return outer_next, state[1]
        _, u, z1 = noise
        law = q.then(z1)
        return outer_next, inner.update(state[1], draw(inner.noise(law), u), lambda z2: f((z1, z2)), law)

    return GradientEstimator(
        spec=Spec(
            name,
            outer.spec.unbiased_value,
            # what z1 does to the inner objective is part of its model
            all(s.unbiased_variational and s.unbiased_model for s in (outer.spec, inner.spec)),
            outer.spec.unbiased_model and inner.spec.unbiased_model,
            (),
            outer.spec.evaluations * inner.spec.evaluations,
            min(orders, default=None),
        ),
        noise=noise,
        surrogate=surrogate,
        init=init,
        update=update,
    )
