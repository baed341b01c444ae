"""What can be done with codes: interpolation, analogies, attribute arithmetic, and what of an image's style survives.

Pure functions of codes and callables, for one example where nothing else is said. `vae.latent_traversal` moves one
coordinate; `reports.latent_pictures` draws all of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vbjax.conditional import CVAE, Label
from vbjax.types import Estimate, Scalar

Code = Float[Array, " dim"]
Interpolation = Callable[[Code, Code, Scalar], Code]
"""`(a, b, t)` -> a at t = 0, b at t = 1."""


def linear(a: Code, b: Code, t: Scalar) -> Code:
    """(1 - t) a + t b. Half-way between two draws of N(0, I_d), E‖·‖² = d/2: inside the shell where the prior lives."""
    return (1 - t) * a + t * b


def spherical(a: Code, b: Code, t: Scalar) -> Code:
    """Along the great circle: (sin((1-t)ω) a + sin(tω) b) / sin ω, ω the angle between a and b, neither of them zero.

    Keeps the norm of equally long codes, so a path between draws of N(0, I_d) stays near the shell of radius √d.
    Undefined between opposite directions. Source: Shoemake (1985); White (2016), section 2.1.
    """
    u, v = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    # arccos(u·v) would lose half the digits of a small angle
    angle = 2 * jnp.arctan2(jnp.linalg.norm(u - v), jnp.linalg.norm(u + v))

    def share(t):
        # sin(tω) / sin ω, which is t at ω = 0
        return t * jnp.sinc(t * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)

    return share(1 - t) * a + share(t) * b


def path(interpolate: Interpolation, a: Code, b: Code, *, steps: int) -> Float[Array, "steps dim"]:
    """Codes at equal steps of t from a to b, both included."""
    return jax.vmap(lambda t: interpolate(a, b, t))(jnp.linspace(0, 1, steps, dtype=a.dtype))


def analogies(cvae: CVAE, x: Array, y: Label, *, classes: int) -> Float[Array, "classes *pixels"]:
    """x : y as answer[y'] : y' for every class y': the decoder's means at the code of x, with the label changed."""
    code = cvae.encode(x, y).mean()
    return jax.vmap(lambda label: cvae.decode(code, label).mean())(jnp.arange(classes))


def arithmetic(a: Float[Array, "n dim"], b: Float[Array, "m dim"], c: Float[Array, "l dim"]) -> Estimate:
    """mean(a) - mean(b) + mean(c), of codes of three groups: c with what a has and b has not.

    With n codes of unit variance in each group its noise has variance 3/n per coordinate: one code for each concept
    is unstable. Source: Radford et al. (2016), section 6.3.2.
    """
    variance = sum(group.var(0, ddof=1) / group.shape[0] for group in (a, b, c))
    return Estimate(a.mean(0) - b.mean(0) + c.mean(0), jnp.sqrt(variance), min(map(len, (a, b, c))))


def attribute(codes: Float[Array, "n dim"], values: Float[Array, " n"]) -> Code:
    """The direction of an attribute: mean code where its value is above the median, minus mean code of the others.

    Where none is above, as with a yes or no that most have, the median itself counts as having it. Add multiples of
    it to a code to give it more or less of the attribute. Raises ValueError if all values are equal.
    """
    if not isinstance(values, jax.core.Tracer) and not values.max() > values.min():
        raise ValueError(f"values must differ to have a direction, got {values[0]} for every code; leave it out")
    median = jnp.median(values)
    above = values > median
    has = jnp.where(above.any(), above, values >= median).astype(codes.dtype)
    return has @ codes / has.sum() - (1 - has) @ codes / (1 - has).sum()


class Style(NamedTuple):
    """What a label does not say about a drawing, measured on its pixels.

    ink: mean pixel, in its own unit. slant: columns to the right for each row upwards. width: standard deviation of
    the ink's columns. height: of its rows.
    """

    ink: Scalar
    slant: Scalar
    width: Scalar
    height: Scalar


def style(image: Float[Array, "rows columns"]) -> Style:
    """First and second moments of the ink, pixels being the weights: non-negative. Zero where there is no ink, and no
    slant within a single row.
    """
    weight = image / _or_one(image.sum())
    rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=image.dtype) for n in image.shape), indexing="ij")
    rows, columns = rows - jnp.sum(weight * rows), columns - jnp.sum(weight * columns)
    row_variance = jnp.sum(weight * rows**2)
    slant = -jnp.sum(weight * rows * columns) / _or_one(row_variance)
    return Style(image.mean(), slant, jnp.sqrt(jnp.sum(weight * columns**2)), jnp.sqrt(row_variance))


def within_classes(styles: Style, labels: Int[Array, " n"], *, classes: int) -> Style:
    """Styles of n images, fields `(n,)`, less the mean of their class: what varies within a class."""
    own = jax.nn.one_hot(labels, classes, dtype=styles.ink.dtype)
    # a class without an image has no mean, and nobody asks for it
    share = own / jnp.maximum(own.sum(0), 1)[None]
    return Style(*(values - own @ (values @ share) for values in styles))


def style_kept(
    drawn: Float[Array, "n classes rows columns"],
    images: Float[Array, "n rows columns"],
    labels: Int[Array, " n"],
) -> dict[str, Estimate]:
    """Correlation of each `Style` of an image with its mean over the image's analogies in the *other* classes.

    drawn: `analogies` of the images. Only what varies within a class counts, on both sides: 1 is a style that
    survives the change of class, 0 one that is lost. The standard error is Fisher's, (1 - r²)/√n.
    """
    count, classes = drawn.shape[:2]
    other = 1 - jax.nn.one_hot(labels, classes, dtype=drawn.dtype)
    sources = within_classes(jax.vmap(style)(images), labels, classes=classes)
    copies = jax.vmap(jax.vmap(style))(drawn)

    def correlation(source, copy):
        r = jnp.corrcoef(source, jnp.sum((copy - copy.mean(0)[None]) * other, 1))[0, 1]
        return Estimate(r, (1 - r**2) / count**0.5, count)

    return {name: correlation(*pair) for name, *pair in zip(Style._fields, sources, copies, strict=True)}


def _or_one(x: Scalar) -> Scalar:
    """A divisor for what is zero where x is."""
    return jnp.where(x == 0, 1, x)
