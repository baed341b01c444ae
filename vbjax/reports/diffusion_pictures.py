"""Pictures of a diffusion model: the process both ways, samples, guidance, inpainting, the bound's terms over time.

Each function returns a matplotlib figure. Images are `(rows, columns)` or with channels, as stored: 0 is white.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vbjax.diffusion.bound import DiffusionBound, DiffusionModel
from vbjax.diffusion.inpainting import repaint_kernel, replacement_kernel, resampling
from vbjax.diffusion.process import Denoiser, Reverse, marginal
from vbjax.diffusion.samplers import ancestral, ancestral_path, descent
from vbjax.diffusion.schedules import Schedule
from vbjax.reports.pictures import sheet
from vbjax.types import PRNGKey


def samples(drawn: Array, nearest: Array, *, rows: int = 5, compared: int = 12):
    """Rows of draws, then the first few above the training images nearest to them, which tell copies."""
    columns = len(drawn) // rows
    grid = [drawn[i * columns : (i + 1) * columns] for i in range(rows)]
    return sheet(
        [*grid, drawn[:compared], nearest[:compared]],
        ["drawn", *[""] * (rows - 1), "drawn", "nearest in training"],
        smooth=True,
    )


def guidance(drawn: Array, weights: Sequence[float], names: Sequence[str]):
    """Columns: classes. Rows: draws at each weight w, `(weights, classes, n, *shape)`; one start of noise per column
    and line within each block, so that only w differs from block to block.
    """
    lines, words = [], []
    for w, block in zip(weights, drawn, strict=True):
        for j in range(block.shape[1]):
            lines.append(block[:, j])
            words.append(f"w = {w:g}" if j == 0 else "")
    return sheet(lines, words, header=names, smooth=True)


def both_ways(key: PRNGKey, denoiser: Denoiser, reverse: Reverse, schedule: Schedule, x0: Array, *, columns: int = 12):
    """A datum on its way to noise, what the denoiser makes of each x_t, and a chain from noise, read from the right.

    x0: one embedded image. The columns are noise levels, least noise first, evenly spread over the schedule.
    """
    key_forward, key_start, key_chain = jax.random.split(key, 3)
    levels = descent(schedule)
    shown = np.linspace(schedule.steps - 1, 0, columns).round().astype(int)

    def guesses(xs: Array) -> Array:
        return jax.vmap(denoiser)(xs, levels[shown])

    eps = jax.random.normal(key_forward, x0.shape)
    forward = jax.vmap(lambda gamma: (law := marginal(x0, gamma)).loc + law.scale * eps)(levels[shown])
    chain = ancestral_path(key_chain, reverse, levels, jax.random.normal(key_start, x0.shape))[shown]
    rows = [forward, guesses(forward), chain, guesses(chain)]
    titles = [f"γ = {float(levels[i]):.1f}" for i in shown]
    words = ["test image → x_t", "its x̂_0", "chain ← noise, x_t", "its x̂_0"]
    # grey levels from white to black, and noise beyond them clipped
    return sheet([jnp.clip(row + 1, 0, 2) for row in rows], words, header=titles)


def inpainting(
    key: PRNGKey, model: DiffusionModel, schedule: Schedule, images: Array, stored: Callable[[Array], Array]
):
    """Images, their upper halves, and the lower halves drawn anew by replacement and by RePaint.

    stored: from x_0 to an image.
    """
    known = jnp.broadcast_to(jnp.arange(images.shape[1])[:, None] < images.shape[1] // 2, images.shape[1:])
    ladder = descent(schedule, min(schedule.steps, 100))
    ladders = [
        (replacement_kernel, "replacement", ladder),
        (repaint_kernel, "RePaint", resampling(ladder, repetitions=10, jump=10)),
    ]

    @partial(jax.jit, static_argnums=1)
    def complete(keys: Array, kernel: Callable[..., Reverse], levels: Array) -> Array:
        def one(key: PRNGKey, image: Array) -> Array:
            key_start, key_chain = jax.random.split(key)
            start = jax.random.normal(key_start, image.shape)
            drawn = ancestral(key_chain, kernel(model.reverse, model.embed(image), known), levels, start)
            return jnp.where(known, image, stored(drawn))

        return jax.vmap(one)(keys, images)

    keys = jax.random.split(key, len(images))
    rows = [complete(keys, kernel, levels) for kernel, _, levels in ladders]
    return sheet(
        [images, jnp.where(known, images, 0), *rows], ["image", "known", *(name for _, name, _ in ladders)], smooth=True
    )


def terms(bound: DiffusionBound, schedule: Schedule, dimensions: int):
    """L_{t-1} over the noise level γ_t, in bits per dimension and unit of γ, and the whole bound as it accumulates.

    bound: of many images, with every term, `(n, T-1)`; a point is the mean over a hundredth of the times. The band is
    two standard errors of that mean over images.
    """
    from matplotlib.figure import Figure

    unit = dimensions * np.log(2)
    gamma, each = np.asarray(schedule.gamma), np.asarray(bound.diffusion) / unit
    # neighbouring times tell the same: averaged, image by image, the noise of single draws goes
    wide = max(1, each.shape[1] // 100)
    kept = each.shape[1] // wide * wide
    density = (each / np.diff(gamma))[:, :kept].reshape(len(each), -1, wide).mean(2)
    mean, error = density.mean(0), density.std(0, ddof=1) / len(density) ** 0.5
    middle = gamma[1 : kept + 1].reshape(-1, wide).mean(1)
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(middle, mean)
    left.fill_between(middle, mean - 2 * error, mean + 2 * error, alpha=0.25, linewidth=0)
    left.set(xlabel="γ_t, log noise-to-signal", ylabel="bits/dim per unit of γ", title="where the bits are")
    first, last = float(np.mean(bound.reconstruction)) / unit, float(np.mean(bound.prior)) / unit
    total = first + np.cumsum(each.mean(0))
    right.plot(gamma[1:], total)
    right.plot(gamma[0], first, "o", label=f"L_0 = {first:.2g}")
    right.plot(gamma[-1], total[-1] + last, "s", label=f"with L_T = {last:.2g}: {total[-1] + last:.3f}")
    right.set(xlabel="γ_t", ylabel="bits/dim", title="the bound, from L_0 up", ylim=(min(0, 1.1 * first), None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
