"""Pixels that look back: a law of independent pixels, each moved linearly by the pixels before it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vbjax.distributions.discrete import Bernoulli
from vbjax.distributions.discretised import DiscretisedLogisticMixture
from vbjax.distributions.family import Distribution, as_parameters, family, require_finite


@family
class Autoregressive(Distribution):
    """p(x) = Π p(x_i | x_<i) in raster order: `pixels` with its logits (Bernoulli) or locations (logistic mixtures)
    moved by weights · x, of which only the strictly lower triangle counts.

    weights: `(d, d)` for the d pixels of an event, which enter on [-1, 1]. An exact density in one pass; a draw takes
    d passes. Source: Frey (1998), section 3.3 (the logistic autoregressive network); Salimans et al. (2017), section
    2.2, who let the channels of a pixel look back so.
    """

    pixels: Bernoulli | DiscretisedLogisticMixture
    weights: Float[Array, "d d"]
    discrete = True
    closed_form_entropy = False

    def __post_init__(self):
        if not isinstance(self.pixels, Bernoulli | DiscretisedLogisticMixture):
            raise TypeError(f"pixels must be Bernoulli or DiscretisedLogisticMixture, got {type(self.pixels).__name__}")
        as_parameters(self, "weights")
        require_finite(self, "weights")
        size = math.prod(self.pixels.event_shape)
        if self.weights.shape != (size, size):
            raise ValueError(f"weights must have shape {(size, size)} for {size} pixels, got {self.weights.shape}")

    @property
    def event_shape(self):
        return self.pixels.event_shape

    @property
    def support(self):
        return self.pixels.support

    def given(self, x: Float[Array, "*event"]) -> Bernoulli | DiscretisedLogisticMixture:
        """The law of each pixel given the pixels of x that come before it."""
        levels = 2 if isinstance(self.pixels, Bernoulli) else self.pixels.levels
        shift = jnp.tril(self.weights, -1) @ (jnp.ravel(x) * (2 / (levels - 1)) - 1)
        shift = shift.reshape(self.event_shape)
        if isinstance(self.pixels, Bernoulli):
            return dataclasses.replace(self.pixels, logits=self.pixels.logits + shift)
        return dataclasses.replace(self.pixels, loc=self.pixels.loc + shift[..., None])

    def log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        return self.given(x).log_prob(x)

    def sample(self, key, shape=()):
        return jax.vmap(self._one)(jax.random.split(key, math.prod(shape))).reshape(*shape, *self.event_shape)

    def _one(self, key):
        return self._in_order(lambda i, law: law.sample(jax.random.fold_in(key, i)))

    def centre(self) -> Float[Array, "*event"]:
        """A point that stands for the law, which has no closed mean: each pixel at its mean given those before it."""
        return self._in_order(lambda i, law: law.mean())

    def _in_order(self, pixel):
        index = jnp.arange(math.prod(self.event_shape)).reshape(self.event_shape)

        def step(i, x):
            return jnp.where(index == i, pixel(i, self.given(x)), x)

        return jax.lax.fori_loop(0, index.size, step, jnp.zeros(self.event_shape, self.dtype))
