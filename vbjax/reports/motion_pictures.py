"""Pictures of moving skeletons and of noise that follows them: stick figures from the side, spectra over the modes.

Each function returns a matplotlib figure. Positions are `(frames, joints, 3)`: sideways, up, forward.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float

Motion = Float[np.ndarray | Array, "_ joints 3"]
Motions = Sequence[Motion] | Float[np.ndarray, "K _ joints 3"]
_PAST, _TRUTH, _DRAWN = "#8a94a3", "#1d2530", ("#2f6db3", "#c2571a", "#2e8b63", "#8a4fb0", "#b0892a")


def futures(past: Motion, truth: Motion, drawn: Mapping[str, Motions], parents: Sequence[int]):
    """The past, then the truth and each model's futures, a colour each, frame by frame; seen from the left."""
    figure, cells = _rows(1 + len(drawn), len(past) + len(truth))
    for row, (name, motions) in zip(cells, {"truth": np.asarray(truth)[None], **drawn}.items(), strict=True):
        for cell, pose in zip(row, past, strict=False):
            _stick(cell, pose, parents, _PAST)
        for index, motion in enumerate(motions):
            colour = _TRUTH if name == "truth" else _DRAWN[index % len(_DRAWN)]
            for cell, pose in zip(row[len(past) :], motion, strict=True):
                _stick(cell, pose, parents, colour, alpha=0.8)
        _name(row[0], name)
    for column, cell in enumerate(cells[0]):
        past_frame = column < len(past)
        cell.set_title(f"seen {column + 1}" if past_frame else f"+{column + 1 - len(past)}", fontsize=8)
    return figure


def strip(rows: Mapping[str, Sequence[Float[np.ndarray | Array, "joints 3"]]], header: Sequence[str], parents):
    """Rows of single poses, as of a diffusion forwards and backwards; header: over the columns."""
    figure, cells = _rows(len(rows), len(header))
    for line, (name, poses) in zip(cells, rows.items(), strict=True):
        for cell, pose in zip(line, poses, strict=True):
            _stick(cell, pose, parents, _DRAWN[0])
        _name(line[0], name)
    for cell, words in zip(cells[0], header, strict=True):
        cell.set_title(words, fontsize=8)
    return figure


def spectra(
    eigenvalues: Float[np.ndarray, " joints"],
    data: Float[np.ndarray, " joints"],
    unseen: Float[np.ndarray, " joints"],
    noises: Mapping[str, Float[np.ndarray, "times joints"]],
    times: Sequence[str],
):
    """Left: variance of futures in the graph's modes, and what the past leaves of it. Right: variance of the noise.

    eigenvalues: of Σ_N, a mode each; noises: eigenvalues of Σ̄_t at some times.
    """
    figure = _figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    modes = np.arange(1, len(eigenvalues) + 1)
    left.plot(modes, data, "o-", color=_TRUTH, label="futures")
    left.plot(modes, unseen, "s-", color=_DRAWN[2], label="futures given their past")
    left.plot(modes, eigenvalues, "^--", color=_DRAWN[1], label=r"eigenvalue of $\Sigma_N$")
    left.set(ylabel="variance", title="data in the modes of the skeleton")
    left.set_yscale("symlog", linthresh=0.02)
    left.set_ylim(bottom=0)
    for (name, values), style in zip(noises.items(), ("--", "-"), strict=True):
        for index, (level, words) in enumerate(zip(values, times, strict=True)):
            colour = _DRAWN[index % len(_DRAWN)]
            right.plot(modes, level, style, color=colour, label=f"{name}, {words}")
    right.set(yscale="log", ylabel="variance", title="noise in $x_t$")
    for axes in (left, right):
        axes.set(xlabel=r"mode, from $\lambda_{min}$ to $\lambda_{max}$", xticks=modes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    return figure


def _stick(cell, pose, parents: Sequence[int], colour: str, *, alpha: float = 1.0) -> None:
    """One pose from the side: forward to the right, up; the far half of the body thinner."""
    pose = np.asarray(pose)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            ends = pose[[parent, joint]]
            near = ends[:, 0].mean() >= -1e-9
            cell.plot(ends[:, 2], ends[:, 1], "-", color=colour, lw=1.3 if near else 0.7, alpha=alpha)
    cell.plot(*pose[2, [2, 1]], "o", color=colour, ms=3, alpha=alpha)


def _rows(rows: int, columns: int):
    figure = _figure(0.75 * columns + 1.1, 1.25 * rows + 0.2)
    cells = figure.subplots(rows, columns, squeeze=False)
    for cell in cells.ravel():
        cell.set(xlim=(-1.0, 1.0), ylim=(-1.45, 1.35), aspect="equal")
        cell.set_axis_off()
    return figure, cells


def _name(cell, words: str) -> None:
    cell.text(-0.1, 0.5, words, transform=cell.transAxes, ha="right", va="center", fontsize=9)


def _figure(width: float, height: float):
    # not pyplot, which keeps every figure and takes over the caller's backend
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
