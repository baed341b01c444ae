"""Pictures of a trained GAN: the plane with its modes, samples, interpolations, classes, attributes of latents.

Each function returns a matplotlib figure. `plane` is for laws of two dimensions, the others are for images.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vbjax import latent_space
from vbjax.reports.pictures import sheet

Points = Float[Array, "n 2"]
Latents = Float[Array, "n dim"]
Labels = Int[Array, " n"]
Generate = Callable[[Array, Array], Array]
"""`(z, label) -> image`; without classes the label changes nothing."""


def plane(real: Points, model: Points, score: Callable[[Array], Array]):
    """Real points beside the model's, over the discriminator's output, whose zero is a line where it has one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    both = np.asarray(real)
    reach = 1.25 * np.abs(both).max()
    line = jnp.linspace(-reach, reach, 80, dtype=real.dtype)
    grid = jnp.stack(jnp.meshgrid(line, line), -1)
    scores = np.asarray(jax.jit(jax.vmap(jax.vmap(score)))(grid))
    shade = np.abs(scores).max() or 1
    for axes, points, title in zip(figure.subplots(1, 2), (real, model), ("data", "generator"), strict=True):
        field = axes.contourf(line, line, scores, levels=20, cmap="RdBu", vmin=-shade, vmax=shade, alpha=0.6)
        if scores.min() < 0 < scores.max():
            axes.contour(line, line, scores, levels=[0.0], colors="0.4", linewidths=0.8)
        axes.scatter(*np.asarray(points)[:2000].T, s=3, color="black", linewidths=0, alpha=0.5)
        axes.set(title=title, xlabel="x[0]", ylabel="x[1]", aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    figure.colorbar(field, ax=figure.axes, label="discriminator: fake < 0 < real", shrink=0.8)
    return figure


def pair(first: Points, forward: Points, second: Points, backward: Points):
    """Two domains side by side: the first and its images in the second, the second and its images in the first.

    A point and its image have the colour of the point's angle, so that the colours show which map was found.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    panels = ((first, forward, "there"), (second, backward, "and back"))
    for axes, (source, image, title) in zip(figure.subplots(1, 2), panels, strict=True):
        source, image = np.asarray(source), np.asarray(image)
        angles = np.arctan2(source[:, 1], source[:, 0])
        axes.scatter(*source.T, c=angles, cmap="hsv", s=10, linewidths=0, alpha=0.25, label="data")
        axes.scatter(*image.T, c=angles, cmap="hsv", s=6, marker="x", linewidths=0.7, label="their images")
        for point, end in zip(source[:60], image[:60], strict=True):
            axes.plot(*np.stack([point, end]).T, color="0.6", linewidth=0.4, zorder=0)
        axes.set(title=title, aspect="equal")
        axes.legend(loc="upper right", fontsize=8)
    return figure


def samples(real: Float[Array, "n rows columns"], model: Float[Array, "m rows columns"], *, columns: int = 12):
    """Two rows of real images above five of the model's, neither of them chosen."""
    rows = [real[:columns], real[columns : 2 * columns]]
    rows += [model[start : start + columns] for start in range(0, 5 * columns, columns)]
    return sheet(rows, ["data", "", "generator", "", "", "", ""], smooth=True)


def interpolation(generate: Generate, latents: Latents, labels: Labels, *, rows: int = 6):
    """Great-circle paths between pairs of latents: a generator that has learned no lookup table changes smoothly.

    labels: the class of each path is that of its first end.
    """
    pairs = latents[: 2 * rows].reshape(rows, 2, -1)
    paths = [latent_space.path(latent_space.spherical, a, b, steps=11) for a, b in pairs]
    drawn = [jax.vmap(generate, (0, None))(path, label) for path, label in zip(paths, labels[::2], strict=False)]
    return sheet(drawn, [""] * rows, header=["from", *[""] * 9, "to"], smooth=True)


def class_sheet(generate: Generate, latents: Latents, names: Sequence[str], *, rows: int = 8):
    """Every class at the same latents: what a row shares is the latent's, what a column shares the class's."""
    drawn = [jax.vmap(generate, (None, 0))(z, jnp.arange(len(names))) for z in latents[:rows]]
    return sheet(drawn, [""] * rows, header=names, smooth=True)


def arithmetic(generate: Generate, groups: Sequence[tuple[Latents, Labels]], words: Sequence[str]):
    """a - b + c in the latent space: three exemplars of each group and its mean; then three latents of c, moved by
    a - b, and the answer.

    words: what the images of a, b, c and of the answer should show. Source: Radford et al. (2016), section 6.3.2.
    """
    means = [latents.mean(0) for latents, _ in groups]
    direction, (latents, labels) = means[0] - means[1], groups[2]
    rows = [(*group, mean) for group, mean in zip(groups, means, strict=True)]
    rows.append((latents + direction[None], labels, means[2] + direction))
    drawn = [
        jax.vmap(generate)(jnp.concatenate([z[:3], mean[None]]), jnp.concatenate([y[:3], y[:1]])) for z, y, mean in rows
    ]
    names = [sign + word for sign, word in zip(("", "- ", "+ ", "= "), words, strict=True)]
    return sheet(drawn, names, header=["three of them", "", "", "mean latent"], smooth=True)
