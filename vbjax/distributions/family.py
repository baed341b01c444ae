"""What every family of distributions shares: pytree registration, eager validation, supports, capabilities.

A family is a frozen dataclass whose array fields are its parameters and the leaves of a pytree. All axes of the
parameters belong to *one event*: `Normal(loc, scale)` with `loc` of shape `(d,)` is one law on R^d with independent
coordinates, and `log_prob` is a scalar. Batches are made outside, with `vmap`. Read `continuous.Normal` next.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, cast, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool

from vbjax.types import Event, Nodes, NotAvailable, PRNGKey, Scalar

T = TypeVar("T")
MAX_NODES = 2**22
"""Largest enumeration or tensor rule that is built; beyond it `NotAvailable` points to Monte Carlo."""

LOG_2PI = math.log(2 * math.pi)


class Capabilities(NamedTuple):
    """What can be asked of a law: estimators and `exact` read it before any work starts.

    fixed_support: the support does not move with the parameters, which every use of the score relies on.
    """

    reparameterised: bool
    enumerable: bool
    discrete: bool
    fixed_support: bool
    closed_form_entropy: bool


class Interval(NamedTuple):
    """The finite numbers of a closed interval per coordinate, whose ends may be infinite."""

    lower: ArrayLike
    upper: ArrayLike

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether every coordinate of the event lies inside."""
        return jnp.all((x >= self.lower) & (x <= self.upper) & jnp.isfinite(x))


class Integers(NamedTuple):
    """The integers from lower to upper (which may be infinite) per coordinate."""

    lower: ArrayLike
    upper: ArrayLike

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether every coordinate of the event is an integer inside."""
        return jnp.all((x >= self.lower) & (x <= self.upper) & (x == jnp.round(x)) & jnp.isfinite(x))


class Simplex(NamedTuple):
    """Non-negative coordinates that sum to one along the last axis; one_hot: only its corners."""

    one_hot: bool = False

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether the event lies on the simplex (to sqrt(eps) in the sum), or is one of its corners."""
        if self.one_hot:
            return jnp.all((x == 0) | (x == 1)) & jnp.all(x.sum(-1) == 1)
        return jnp.all(x >= 0) & jnp.all(jnp.abs(x.sum(-1) - 1) < jnp.finfo(x.dtype).eps ** 0.5)


class Product(NamedTuple):
    """Cartesian product of supports, for an event that is a tuple."""

    parts: tuple[Any, ...]

    def contains(self, x: Event) -> Bool[Array, ""]:
        """Whether every part of the event lies in its support."""
        return jnp.all(jnp.stack([part.contains(x_i) for part, x_i in zip(self.parts, x, strict=True)]))


class Power(NamedTuple):
    """Cartesian power of one support, for events stacked on a leading axis."""

    base: Any

    def contains(self, x: Event) -> Bool[Array, ""]:
        """Whether every event of the stack lies in the support."""
        return jnp.all(jax.vmap(self.base.contains)(x))


class Union(NamedTuple):
    """Events that lie in one part at least: the support of a mixture whose components differ in theirs."""

    parts: tuple[Any, ...]

    def contains(self, x: Event) -> Bool[Array, ""]:
        """Whether one of the parts contains the event."""
        return jnp.any(jnp.stack([part.contains(x) for part in self.parts]))


REAL = Interval(-jnp.inf, jnp.inf)
POSITIVE = Interval(0.0, jnp.inf)


class Distribution:
    """The interface of a family; methods raise `NotAvailable`, with a way out, where nothing closed exists."""

    reparameterised: ClassVar[bool] = False
    discrete: ClassVar[bool] = False
    fixed_support: ClassVar[bool] = True
    closed_form_entropy: ClassVar[bool] = True
    closed_form_cdf: ClassVar[bool] = False

    @property
    def enumerable(self) -> bool:
        """Whether the support is finite."""
        return False

    @property
    def capabilities(self) -> Capabilities:
        """What can be asked of this law."""
        return Capabilities(**{name: getattr(self, name) for name in Capabilities._fields})

    @property
    def event_shape(self) -> Any:
        """Shape of one event; by default the common shape of the parameters."""
        return jax.tree.leaves(self)[0].shape

    @property
    def dtype(self) -> Any:
        """Floating-point type of the parameters and of the densities."""
        return jax.tree.leaves(self)[0].dtype

    @property
    def support(self) -> Any:
        """The set that events lie in; `support.contains(x)`."""
        return REAL

    def sample(self, key: PRNGKey, shape: tuple[int, ...] = ()) -> Event:
        """Draw one event, or independent events stacked on leading axes of the given shape."""
        raise NotImplementedError

    def log_prob(self, x: Event) -> Scalar:
        """Log-density of one event, in nats; -inf outside the support.

        Raises ValueError, for every family, unless the event has `event_shape`: batches are made with `vmap`.
        """
        raise NotImplementedError

    def mean(self) -> Event:
        """Mean, with the shape of an event."""
        raise self._missing("mean", "average `sample(key, (n,))`")

    def centre(self) -> Event:
        """A point that stands for the law: its mean, or what a law without a closed one says instead."""
        return self.mean()

    def variance(self) -> Event:
        """Variance per coordinate, with the shape of an event."""
        raise self._missing("variance", "average `sample(key, (n,))`")

    def entropy(self) -> Scalar:
        """Entropy (differential for continuous laws) of the whole event, in nats."""
        raise self._missing("closed-form entropy", "use divergences.monte_carlo_entropy")

    def noise(self) -> Any:
        """Law of the noise of the reparameterisation; gradients do not flow into it."""
        raise self._missing("reparameterisation", "use a score-function estimator")

    def transport(self, noise: Event) -> Event:
        """Map noise to an event, differentiably in the parameters: `transport(noise().sample(key))` has this law."""
        raise self._missing("reparameterisation", "use a score-function estimator")

    def inverse_transport(self, x: Event) -> Event:
        """The noise that `transport` carries to x."""
        raise self._missing("inverse of its transport", "use doubly_reparameterised")

    def reflect(self, x: Event) -> Event:
        """The mirror image of an event about the centre of symmetry: it has the same law."""
        raise self._missing("symmetry", "use pathwise, whose draws are independent")

    def quantile(self, u: Event) -> Event:
        """The event whose coordinates have the distribution functions u, each inside (0, 1)."""
        raise self._missing("quantile function", "use pathwise, whose draws are independent")

    def cdf(self, x: Event) -> Event:
        """The distribution function of each of the independent coordinates; `closed_form_cdf` says if there is one."""
        raise self._missing("distribution function", "average `sample(key, (n,)) <= x`")

    def enumerate(self) -> Event:
        """All events of a finite support, stacked on a leading axis."""
        raise self._missing("finite support", "use `nodes(order)` or Monte Carlo")

    def nodes(self, order: int) -> Nodes:
        """Points and weights that stand for this law: its enumeration, or a rule of `order` points a coordinate.

        Raises `NotAvailable` if there is no rule, or if it would need more than `MAX_NODES` points.
        """
        if not self.enumerable:
            raise self._missing("quadrature rule", "use moments.replicate (Monte Carlo)")
        points = self.enumerate()
        return Nodes(points, jnp.exp(jax.vmap(self.log_prob)(points)), exact=True)

    def _missing(self, what: str, way_out: str) -> NotAvailable:
        return NotAvailable(f"{type(self).__name__} has no {what}; {way_out}.")


@dataclass_transform(frozen_default=True)
def family(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass, registered as a pytree whose leaves are the parameters.

    `log_prob` is given the check of the event's shape. Fields marked
    `dataclasses.field(metadata={"static": True})` are part of the tree's structure. Unflattening
    bypasses `__post_init__`, so validation runs once, on what the user built, and never on traced values.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    cast(Any, cls).log_prob = _of_one_event(cast(Any, cls).log_prob)
    # the annotations describe the attributes; the constructor also takes numbers and NumPy arrays
    cls.__init__.__annotations__ = {}
    fields = dataclasses.fields(cast(Any, cls))
    leaves = [f.name for f in fields if not f.metadata.get("static")]
    static = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(dist):
        children = [(jax.tree_util.GetAttrKey(name), getattr(dist, name)) for name in leaves]
        return children, tuple(getattr(dist, name) for name in static)

    def unflatten(aux, children):
        dist = object.__new__(cls)
        for name, value in [*zip(leaves, children, strict=True), *zip(static, aux, strict=True)]:
            object.__setattr__(dist, name, value)
        return dist

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def _of_one_event(log_prob: Callable[[Any, Event], Scalar]) -> Callable[[Any, Event], Scalar]:
    @functools.wraps(log_prob)
    def checked(law, x):
        return log_prob(law, _as_event(law, x, law.event_shape))

    return checked


def _as_event(law: Any, x: Any, shape: Any) -> Any:
    """The event with its numbers as arrays; ValueError, naming the family, unless it has this shape."""
    if is_shape(shape):
        if not isinstance(x, (jax.Array, np.ndarray)):
            x = jnp.asarray(x, law.dtype)
        if x.shape != shape:
            raise ValueError(f"{type(law).__name__}.log_prob takes one event of shape {shape}, got {x.shape}; use vmap")
        return x
    if not isinstance(x, tuple) or len(x) != len(shape):
        got = f"{len(x)} entries" if isinstance(x, tuple) else type(x).__name__
        raise ValueError(f"{type(law).__name__}.log_prob takes a tuple of shapes {shape}, got {got}")
    return tuple(_as_event(law, x_i, shape_i) for x_i, shape_i in zip(x, shape, strict=True))


def is_shape(x: Any) -> bool:
    """Whether this is the shape of an array, rather than a tuple of shapes."""
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


def static_field(**kwargs: Any) -> Any:
    """Declare a field that is structure, not a parameter."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def as_parameters(dist: Any, *names: str) -> None:
    """Turn the named fields into arrays of one common shape and floating-point type.

    Raises ValueError, naming the fields, if their shapes do not broadcast.
    """
    values = [jnp.asarray(getattr(dist, name)) for name in names]
    dtype = float_dtype(*values)
    try:
        shape = np.broadcast_shapes(*(value.shape for value in values))
    except ValueError:
        shapes = ", ".join(f"{name}{value.shape}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{type(dist).__name__}: shapes do not broadcast: {shapes}") from None
    for name, value in zip(names, values, strict=True):
        object.__setattr__(dist, name, jnp.broadcast_to(value.astype(dtype), shape))


def float_dtype(*values: Array) -> Any:
    """The floating-point type for these parameters: the widest strong type among them, else JAX's default."""
    strong = [v.dtype for v in values if jnp.issubdtype(v.dtype, jnp.floating) and not v.weak_type]
    return max(strong, key=lambda dtype: jnp.finfo(dtype).bits) if strong else jnp.result_type(float)


def require(dist: Any, name: str, condition: Callable[[np.ndarray], Any], requirement: str) -> None:
    """Raise ValueError naming the parameter unless its concrete values satisfy the condition; NaN never does.

    Traced values are let through: they were validated, or derived from what was, outside.
    """
    value = getattr(dist, name)
    if isinstance(value, jax.core.Tracer):
        return
    value = np.asarray(value)
    if np.isnan(value).any():
        raise ValueError(f"{type(dist).__name__}.{name} must be {requirement}, got NaN")
    if not np.all(condition(value)):
        raise ValueError(f"{type(dist).__name__}.{name} must be {requirement}, got {_summary(value)}")


def require_finite(dist: Any, *names: str) -> None:
    """Raise ValueError unless the named parameters are finite."""
    for name in names:
        require(dist, name, np.isfinite, "finite")


def require_positive(dist: Any, *names: str) -> None:
    """Raise ValueError unless the named parameters are positive and finite."""
    for name in names:
        require(dist, name, lambda v: (v > 0) & np.isfinite(v), "positive and finite")


def _summary(value: np.ndarray) -> str:
    return f"{value.item():g}" if value.size == 1 else f"values from {value.min():g} to {value.max():g}"


def vmap_over(shape: tuple[int, ...], fn: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function of one event over leading axes of the given shape."""
    for _ in shape:
        fn = jax.vmap(fn)
    return fn


def check_node_count(count: int) -> None:
    """Raise `NotAvailable` for more nodes than memory should hold."""
    if count > MAX_NODES:
        raise NotAvailable(f"{count:.3g} nodes exceed {MAX_NODES}; use moments.replicate (Monte Carlo).")
