"""Pictures of what codes mean: analogies, a class grid, interpolations, attributes added and taken away.

Each function returns a matplotlib figure; `conditional_model` returns the standard set for a class-conditional VAE.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vbjax import latent_space
from vbjax.conditional import CVAE, given
from vbjax.reports.pictures import latent_map, sheet, traversal
from vbjax.types import PRNGKey

EXTREMES = {
    "slant": ("leaning left", "leaning right"),
    "ink": ("thin", "bold"),
    "width": ("narrow", "wide"),
}
"""Styles that a person sees, and the words for little and much of each."""


def conditional_model(key: PRNGKey, cvae: CVAE, images: Array, labels: Array, *, names: Sequence[str]) -> dict:
    """The standard set of figures by name, for a model and test images `(n, rows, columns)` with labels `(n,)`.

    names: of the classes.
    """
    codes = jax.vmap(lambda x, y: cvae.encode(x, y).mean())(images, labels)
    values = style_values(images, labels, classes=len(names))
    first = extremes(values["slant"], np.asarray(labels))[1][0]
    return {
        "analogies": analogies(cvae, images, labels, values, names),
        "class_samples": class_samples(key, cvae, names, rows=8),
        "style_traversal": traversal(given(cvae, labels[first]), images[first], codes, smooth=True),
        "interpolation": interpolation(cvae, codes, labels, values["slant"], names),
        "attributes": attributes(cvae, codes, labels, values),
        "latent_map": latent_map(codes, labels),
    }


def style_values(images: Array, labels: Array, *, classes: int) -> dict[str, np.ndarray]:
    """The styles of `EXTREMES`, measured on the images, less the mean of each class."""
    styles = latent_space.within_classes(jax.vmap(latent_space.style)(images), labels, classes=classes)
    return {name: np.asarray(getattr(styles, name)) for name in EXTREMES}


def extremes(values: np.ndarray, labels: np.ndarray, *, count: int = 2) -> tuple[list[int], list[int]]:
    """Examples with small and with great values, each of another class; beyond the outer 1% there are odd ones."""

    def first_of_their_class(order: np.ndarray) -> list[int]:
        ranks = [np.flatnonzero(labels[order] == y)[0] for y in np.unique(labels)]
        return order[sorted(ranks)[:count]].tolist()

    order, odd = np.argsort(values), len(values) // 100
    return first_of_their_class(order[odd:]), first_of_their_class(order[::-1][odd:])


def analogies(cvae: CVAE, images: Array, labels: Array, values: dict[str, np.ndarray], names: Sequence[str]):
    """Rows: the test images with the least and the most of each style. Columns: the image, then every class drawn at
    the image's code, its own class framed. What a row shares is the style.
    """
    sources, words, left, classes = [], [], np.arange(len(images)), np.asarray(labels)
    for name, of in values.items():
        for word, chosen in zip(EXTREMES[name], extremes(of[left], classes[left]), strict=True):
            sources += left[chosen].tolist()
            words += [word] + [""] * (len(chosen) - 1)
        # thin ones are narrow: show others
        left = np.setdiff1d(left, sources)
    images, labels = images[np.array(sources)], labels[np.array(sources)]
    drawn = jax.vmap(lambda x, y: latent_space.analogies(cvae, x, y, classes=len(names)))(images, labels)
    rows = [jnp.concatenate([image[None], line]) for image, line in zip(images, drawn, strict=True)]
    framed = [(i, int(y) + 1) for i, y in enumerate(labels)]
    return sheet(rows, words, header=["image", *names], framed=framed, gap_after=0, smooth=True)


def class_samples(key: PRNGKey, cvae: CVAE, names: Sequence[str], *, rows: int):
    """Rows: draws of z from the prior. Columns: the decoder's mean for every class at that z."""
    codes = jax.vmap(cvae.prior.sample)(jax.random.split(key, rows))
    labels = jnp.arange(len(names))
    drawn = jax.vmap(lambda z: jax.vmap(lambda y: cvae.decode(z, y).mean())(labels))(codes)
    return sheet(list(drawn), [f"z ~ p(z), {i + 1}" for i in range(rows)], header=names, smooth=True)


def interpolation(cvae: CVAE, codes: Array, labels: Array, values: np.ndarray, names: Sequence[str], *, pairs: int = 4):
    """Between the two test images of a class whose values are the least and the most, on a line and on an arc.

    The number over an image is the length of its code.
    """
    rows, words, lengths = [], [], []
    for y in np.linspace(0, len(names) - 1, pairs).astype(int):
        members = np.flatnonzero(np.asarray(labels) == y)
        a, b = members[values[members].argmin()], members[values[members].argmax()]
        for interpolate in (latent_space.linear, latent_space.spherical):
            between = latent_space.path(interpolate, codes[a], codes[b], steps=9)
            rows.append(_decoded(cvae, between, int(y)))
            words.append(f"{names[y]}, {interpolate.__name__}")
            lengths.append([f"{length:.1f}" for length in jnp.linalg.norm(between, axis=1)])
    return sheet(rows, words, captions=lengths, smooth=True)


def attributes(cvae: CVAE, codes: Array, labels: Array, values: dict[str, np.ndarray], *, rows: int = 3):
    """Codes with a multiple of an attribute's direction added, the class held; 0 is the image's own code."""
    steps = jnp.linspace(-2.0, 2.0, 9)
    drawn, words = [], []
    for name, of in values.items():
        direction = latent_space.attribute(codes, jnp.asarray(of))
        # the middling ones, which can go either way
        for i in extremes(np.abs(of), np.asarray(labels), count=rows)[0]:
            drawn.append(_decoded(cvae, codes[i][None] + steps[:, None] * direction[None], int(labels[i])))
            words.append(name)
    return sheet(drawn, words, header=[f"{step:+g}" for step in steps], smooth=True)


def _decoded(cvae: CVAE, codes: Array, y: int) -> Array:
    return jax.vmap(lambda z: cvae.decode(z, y).mean())(codes)
