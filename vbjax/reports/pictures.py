"""Pictures of a trained latent-variable model: reconstructions, samples, a latent traversal, the latent map.

Each function returns a matplotlib figure; `latent_variable_model` returns the standard set by name.
"""

import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vbjax import evaluation
from vbjax import vae as vaes
from vbjax.types import PRNGKey
from vbjax.vae import VAE


def latent_variable_model(key: PRNGKey, vae: VAE, images: Array, labels: Array) -> dict:
    """The standard set of figures for a model and test images `(n, *shape)` with labels `(n,)`.

    Adds `latent_grid`, the decoded plane, for a two-dimensional latent space.
    """
    codes = evaluation.posterior_means(vae, images)
    figures = {
        "reconstructions": reconstructions(vae, images[:12]),
        "samples": samples(key, vae, count=40),
        "traversal": traversal(vae, images[0], codes),
        "latent_map": latent_map(codes, labels),
    }
    if codes.shape[1] == 2:
        figures["latent_grid"] = latent_grid(vae)
    return figures


def reconstructions(vae: VAE, images: Array):
    """Test images above their reconstructions, the decoder's mean at the encoder's mean."""
    means = jax.vmap(lambda x: vaes.reconstruct(vae, x))(images)
    return sheet([images, means], ["image", "reconstruction"])


def samples(key: PRNGKey, vae: VAE, *, count: int):
    """Draws from the prior: the decoder's means above full draws of p(x|z), which carry the pixel noise."""
    drawn, means = jax.vmap(lambda k: vaes.generate(k, vae))(jax.random.split(key, count // 2))
    half = count // 4
    return sheet(
        [means[:half], means[half:], drawn[:half], drawn[half:]],
        ["centre of p(x|z)", "", "draw of p(x|z)", ""],
    )


def traversal(vae: VAE, image: Array, codes: Array, *, rows: int = 6, smooth: bool = False):
    """One latent coordinate at a time from -2.5 to 2.5, for the coordinates that vary most over the data."""
    decoded = vaes.latent_traversal(vae, image)
    order = np.argsort(-np.asarray(codes.var(0)))[:rows]
    return sheet([decoded[i] for i in order], [f"z[{i}]" for i in order], smooth=smooth)


def latent_map(codes: Array, labels: Array):
    """Posterior means coloured by label: the latent plane itself, or its first two principal components."""
    points = np.asarray(codes)
    axes_names = ("z[0]", "z[1]")
    if points.shape[1] > 2:
        centred = points - points.mean(0)
        points = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        axes_names = ("first principal component of E[z|x]", "second")
    figure = _figure(5.6, 4.6)
    axes = figure.subplots()
    if points.shape[1] == 1:
        points, axes_names = np.column_stack([points, np.asarray(labels)]), ("z[0]", "label")
    scatter = axes.scatter(
        *points[:2000].T, c=np.asarray(labels)[:2000], cmap="tab10", s=14, linewidths=0, vmin=-0.5, vmax=9.5
    )
    figure.colorbar(scatter, ax=axes, ticks=range(10), label="class")
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def latent_grid(vae: VAE, *, side: int = 15):
    """Decoded means over a two-dimensional latent plane, at normal quantiles of each axis."""
    quantiles = jax.scipy.stats.norm.ppf(jnp.linspace(0.03, 0.97, side))
    grid = jnp.stack(jnp.meshgrid(quantiles, quantiles[::-1]), -1)
    decoded = np.asarray(jax.vmap(jax.vmap(lambda z: vae.decode(z).centre()))(grid))
    height, width = decoded.shape[2:4]
    canvas = decoded.swapaxes(1, 2).reshape(side * height, side * width, *decoded.shape[4:])
    figure = _figure(6.0, 6.0)
    axes = figure.subplots()
    axes.imshow(_displayable(canvas), cmap="gray_r")
    axes.set(xticks=[], yticks=[], xlabel="z[0], quantiles 0.03 to 0.97", ylabel="z[1]")
    return figure


def sheet(
    rows: Sequence[Array],
    names: Sequence[str],
    *,
    header: Sequence[str] = (),
    framed: Sequence[tuple[int, int]] = (),
    gap_after: int | None = None,
    captions: Sequence[Sequence[str]] = (),
    smooth: bool = False,
):
    """Images in rows, each row with its name; all share one grey scale.

    header: names of the columns. framed: (row, column) of images with a frame. gap_after: a column with white space to
    its right. captions: over each image of each row. smooth: interpolate between the pixels of small images, whose
    shapes the eye finds better so.
    """
    columns = max(len(row) for row in rows)
    figure = _figure(0.62 * columns + 1.3, (0.8 if captions else 0.66) * len(rows) + (0.3 if header else 0.1))
    widths = [1.35 if column == gap_after else 1.0 for column in range(columns)]
    axes = figure.subplots(len(rows), columns, squeeze=False, width_ratios=widths)
    top = max(float(np.asarray(row).max()) for row in rows)
    for line, row, name in zip(axes, rows, names, strict=True):
        for cell in line:
            cell.set_axis_off()
            cell.set_anchor("W")
        for cell, image in zip(line, np.asarray(row), strict=False):
            between = "bicubic" if smooth and len(image) < 16 else "nearest"
            cell.imshow(_displayable(image, top), cmap="gray_r", vmin=0, vmax=1, interpolation=between)
        line[0].text(-0.25, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    for line, titles in zip(axes, [header, *[()] * (len(rows) - 1)] if header else captions, strict=False):
        for cell, title in zip(line, titles, strict=False):
            cell.set_title(title, fontsize=9 if header else 7, pad=4 if header else 2)
    for row, column in framed:
        axes[row, column].set_axis_on()
        axes[row, column].set(xticks=[], yticks=[])
        axes[row, column].spines[:].set(color="tab:red", linewidth=1.5)
    return figure


def png(figure) -> bytes:
    """A figure as the bytes of a PNG, for `reports.image`."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _displayable(image, top=None):
    image = np.asarray(image, np.float32)
    return np.clip(image / (top or image.max() or 1), 0, 1)


def _figure(width: float, height: float):
    # not pyplot, which keeps every figure and takes over the caller's backend
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
