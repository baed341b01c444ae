"""The gradients of a small VAE of one digit at a frozen checkpoint: thousands of parameters, and still an exact truth.

Two latents: a normal one on the plane (a quadrature rule sums it) and ten bits (an enumeration does). The networks
are plain functions of dictionaries; the checkpoint is trained, seeded, when it is first asked for. Start at
`digits_vae`.
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vbjax.bounds import LogWeight
from vbjax.datasets import load
from vbjax.distributions import Bernoulli, Normal
from vbjax.estimators import leave_one_out, pathwise, score_function, value_and_grad
from vbjax.exact import NotConverged
from vbjax.studies.descent import adam
from vbjax.studies.toy_problems import ToyProblem
from vbjax.types import Problem

HIDDEN, PIXELS, BITS, PLANE = 24, 64, 10, 2
STEPS, BATCH = 600, 64


def initial(seed: int, *, discrete: bool) -> Any:
    """Weights of encoder and decoder, one hidden layer each: normal, of variance 1/inputs; biases zero."""
    rng = np.random.default_rng(seed)
    latent, outputs = (BITS, BITS) if discrete else (PLANE, 2 * PLANE)

    def mlp(inputs, outputs):
        return {
            "in": rng.normal(size=(HIDDEN, inputs)) / np.sqrt(inputs),
            "in_bias": np.zeros(HIDDEN),
            "out": rng.normal(size=(outputs, HIDDEN)) / np.sqrt(HIDDEN),
            "out_bias": np.zeros(outputs),
        }

    return {"encoder": mlp(PIXELS, outputs), "decoder": mlp(latent, PIXELS)}


def _apply(layers, x):
    return layers["out"] @ jnp.tanh(layers["in"] @ x + layers["in_bias"]) + layers["out_bias"]


def elbo_problem(x, *, discrete: bool) -> Problem:
    """`{"encoder", "decoder"} -> (q(z|x), log-weight)` for one binary image x of 64 pixels."""

    def problem(params):
        pixels = jnp.asarray(x, params["encoder"]["in"].dtype)
        h = _apply(params["encoder"], pixels)
        if discrete:
            q, prior = Bernoulli(h), Bernoulli(jnp.zeros_like(h))
        else:
            loc, raw = h[:PLANE], h[PLANE:]
            # a small floor and softplus keep the deviation positive without a bound above
            q, prior = Normal(loc, 0.01 + jax.nn.softplus(raw)), Normal(jnp.zeros_like(loc), jnp.ones_like(loc))
        return q, LogWeight(lambda z: Bernoulli(_apply(params["decoder"], z)).log_prob(pixels), prior, q)

    return problem


@functools.cache
def _images() -> np.ndarray:
    images = load("digits").train_images
    return (np.asarray(images).reshape(-1, PIXELS) > 8).astype(np.float32)


@functools.cache
def checkpoint(*, discrete: bool) -> Any:
    """The parameters after 600 seeded steps of Adam on batches of 64; takes seconds, once a process, and says so."""
    latent = "ten bits" if discrete else "normal latent"
    print(f"training a small VAE ({latent}) for its gradients ...", file=sys.stderr)
    estimator = score_function(4, baseline=leave_one_out) if discrete else pathwise()
    optimizer = adam(0.003)
    images = jnp.asarray(_images())
    params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), initial(0, discrete=discrete))

    def one(params, key, x):
        return value_and_grad(key, estimator, elbo_problem(x, discrete=discrete), params)[1]

    def step(carry, key):
        params, state = carry
        key_batch, key_noise = jax.random.split(key)
        batch = images[jax.random.randint(key_batch, (BATCH,), 0, len(images))]
        gradients = jax.vmap(one, (None, 0, 0))(params, jax.random.split(key_noise, BATCH), batch)
        # ascent on the bound
        steps, state = optimizer.update(jax.tree.map(lambda g: -g.mean(0), gradients), state, params)
        return (jax.tree.map(jnp.add, params, steps), state), None

    keys = jax.random.split(jax.random.key(0), STEPS)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    return jax.tree.map(np.asarray, params)


def exact_gradient(x, params: Any, *, discrete: bool, rtol: float = 1e-9) -> Any:
    """The gradient of the ELBO of one image, float64: 1024 outcomes, or a rule that doubles until it settles.

    Raises `NotConverged` where order 256 a coordinate does not settle.
    """
    with jax.enable_x64(True):
        params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), params)
        problem = elbo_problem(x, discrete=discrete)

        def enumerated(params):
            q, f = problem(params)
            bits = q.enumerate()
            return jnp.exp(jax.vmap(q.log_prob)(bits)) @ jax.vmap(f)(bits)

        if discrete:
            return jax.jit(jax.grad(enumerated))(params)

        def by_rule(params, points, weights):
            q, f = problem(params)
            return weights @ jax.vmap(lambda xi: f(q.transport(xi)))(points)

        gradient = jax.jit(jax.grad(by_rule))
        standard = Normal(jnp.zeros(PLANE), jnp.ones(PLANE))
        order, change, value = 16, np.inf, None
        while not change <= rtol:
            if order > 256:
                raise NotConverged(f"the gradient still changes by {change:.1e} at order {order // 2}")
            rule = standard.nodes(order)
            previous, value = value, gradient(params, rule.points, rule.weights)
            if previous is not None:
                size = max(float(jnp.abs(v).max()) for v in jax.tree.leaves(value))
                moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), value, previous)
                change = max(jax.tree.leaves(moved)) / size
            order *= 2
        return value


def digits_vae(*, discrete: bool, image: int = 0) -> ToyProblem:
    """The ELBO of one digit at the checkpoint, as a function of all weights of encoder and decoder."""
    x = _images()[image]
    latent = r"z \in \{0, 1\}^{10}" if discrete else r"z \in \mathbb{R}^2"
    return ToyProblem(
        "digits VAE, " + ("bits" if discrete else "normal"),
        rf"\log p_\theta(x | z) + \log p(z) - \log q_\phi(z | x),\quad {latent}",
        elbo_problem(x, discrete=discrete),
        checkpoint(discrete=discrete),
        summary=f"the gradient of a VAE of one digit, {'ten bits' if discrete else 'a normal latent on the plane'}",
        source="Kingma and Welling (2014); Mnih and Gregor (2014)",
        truth=functools.partial(exact_gradient, x, discrete=discrete),
    )
