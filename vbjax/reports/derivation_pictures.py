"""Pictures for entries that a picture says better than numbers: a function of nothing for each id, in `PICTURES`.

What is drawn is the library's own answer over a range, where the entry checks one point of it. `account` says in
plain lines what a check found, for those who read a notebook and not a page.
"""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import bounds, energy, exact
from vbjax.attention import attention_weights, causal_mask, sinusoidal_positions, two_key_slope
from vbjax.derivations.command import error_text
from vbjax.derivations.identity import Verdict
from vbjax.diffusion.schedules import cosine_schedule, linear_schedule, sigmoid_schedule
from vbjax.distributions import MultivariateNormal, Normal
from vbjax.divergences import kl_divergence, renyi_divergence
from vbjax.estimators import pathwise, score_function
from vbjax.gan.games import Players, Point, alternating, extragradient, simultaneous, trajectory
from vbjax.reports.figures import SERIES, figure, figure_style
from vbjax.reports.html import Html
from vbjax.reports.numbers import number, uncertain


class Picture(Html):
    """A picture that shows itself in a notebook, on white: its lines are dark where no page colours them."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<div style="display: inline-block; background: white; color: black">{self}</div>'


def account(verdict: Verdict, *, rows: int = 6) -> str:
    """What a check found, as plain lines: both sides, the control beside them, both verdicts, the slide's correction.

    rows: the most quantities to list.
    """
    identity = verdict.identity
    control = identity.control
    lines = [f"{identity.title} ({identity.id}; lecture {identity.lecture}, «{identity.slide}»)"]
    header = ("", "library", f"{identity.test.relation} oracle", "control")
    sides = [
        [uncertain(value, error) for value, error in zip(side.values, side.standard_error, strict=True)]
        for side in (verdict.lhs, verdict.rhs, verdict.control)
    ]
    table = [header, *zip(verdict.lhs.names, *sides, strict=True)]
    lines += [f"  {name:44s}" + "".join(f"{cell:>18s}" for cell in cells) for name, *cells in table[: rows + 1]]
    if len(table) > rows + 1:
        lines.append(f"  … and {len(table) - rows - 1} more")
    found = verdict.failure or f"error {error_text(verdict, verdict.error)}, {number(verdict.limit, 3)} passes"
    lines.append(f"  {'holds' if verdict.holds else 'DOES NOT HOLD'}: {found}")
    rejected = "rejected" if verdict.control_rejected else "NOT REJECTED"
    of = "the slide as it stands" if control.on_slide else "control"
    lines.append(f"  {of} {rejected}, error {error_text(verdict, verdict.control_error)}: {control.claim}")
    if identity.correction:
        lines.append(f"  on the slide: {identity.correction}")
    return "\n".join(wrapped for line in lines for wrapped in textwrap.wrap(line, 110, subsequent_indent="    "))


def variance_against_distance() -> Picture:
    """Both gradients' variances of a square, while the mean moves away from the target."""
    distances = np.linspace(0, 4, 9)

    def problem(params):
        return Normal(*params), lambda x: x**2

    with jax.enable_x64(True):
        variances = [
            [float(exact.exact_moments(e, problem, (jnp.array(d), jnp.array(1.0))).variance[0]) for d in distances]
            for e in (pathwise(1), score_function(1))
        ]
    with _axes("distance of the mean from the target, in σ", "variance of ∂μ, one draw") as (drawing, axes):
        _curves(axes, distances, variances, ("pathwise", "score"))
        axes.set(yscale="log")
    return _figure(drawing, "gradient-variance-quadratic", "Score variance grows as the fourth power of the distance.")


def variance_against_frequency() -> Picture:
    """The two variances for a wave, whose order changes."""
    frequencies = np.linspace(0.05, 3, 25)

    def problem(params):
        return Normal(params["mean"], jnp.array(1.1)), lambda x: jnp.cos(params["ω"] * x)

    def variance(estimator, frequency):
        at = {"mean": jnp.array(0.5), "ω": jnp.array(frequency)}
        return float(exact.exact_moments(estimator, problem, at).variance["mean"])

    with jax.enable_x64(True):
        variances = [[variance(e, w) for w in frequencies] for e in (pathwise(1), score_function(1))]
    with _axes("frequency ω of f = cos ωx", "variance of ∂μ, one draw") as (drawing, axes):
        _curves(axes, frequencies, variances, ("pathwise", "score"))
    return _figure(drawing, "score-vs-reparam-counterexample", "The curves cross: neither is better for every f.")


def bound_against_samples() -> Picture:
    """The importance-weighted bound closing its gap."""
    counts = (1, 2, 3)
    q = Normal(jnp.array(0.4), jnp.array(0.6))

    def log_weight(z):
        return Normal(z, jnp.array(0.3**0.5)).log_prob(0.9) + Normal(0.0 * z, 1.0 + 0.0 * z).log_prob(z) - q.log_prob(z)

    def objective(_):
        return q, log_weight

    with jax.enable_x64(True):
        values = [
            float(exact.exact_objective(objective, (), samples=k, bound=bounds.iwae, rtol=1e-4).value) for k in counts
        ]
        evidence = float(Normal(jnp.array(0.0), jnp.array(1.3**0.5)).log_prob(0.9))
    with _axes("samples K inside the logarithm", "bound, nats") as (drawing, axes):
        axes.plot(counts, values, marker="o")
        axes.axhline(evidence, color=SERIES[1], linestyle="--")
        axes.annotate("log p(x)", (counts[-1], evidence), textcoords="offset points", xytext=(0, -12), ha="right")
        axes.set_xticks(counts)
    return _figure(drawing, "iwae-bound-monotone", "The bound rises towards the evidence with every further sample.")


def gap_against_correlation() -> Picture:
    """What a diagonal q loses on a correlated posterior."""
    correlations = np.linspace(-0.97, 0.97, 61)
    with jax.enable_x64(True):

        def gap(r):
            covariance = jnp.array([[1.0, 0.0], [0.0, 1.0]]) + r * jnp.array([[0.0, 1.0], [1.0, 0.0]])
            posterior = MultivariateNormal.from_covariance(jnp.zeros(2), covariance)
            return kl_divergence(Normal(jnp.zeros(2), jnp.full(2, jnp.sqrt(1 - r**2))), posterior)

        gaps = np.asarray(jax.vmap(gap)(jnp.array(correlations)))
    with _axes("correlation of the posterior", "gap of the best bound, nats") as (drawing, axes):
        _curves(axes, correlations, [gaps, 0 * gaps], ("diagonal q", "full q"))
    return _figure(drawing, "elbo-tightness", "A full q has no gap; that of a diagonal one grows with the correlation.")


def divergence_directions() -> Picture:
    """Contours of a correlated target and its two diagonal approximations."""
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    angles = np.linspace(0, 2 * np.pi, 120)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    narrow, wide = np.sqrt(1 / np.diag(np.linalg.inv(covariance))), np.sqrt(np.diag(covariance))
    with _axes("z₁", "z₂", size=(6.4, 3.4)) as (drawing, axes):
        for shape, label in (
            (np.linalg.cholesky(covariance) @ circle, "p"),
            (narrow[:, None] * circle, "q of least KL(q‖p)"),
            (wide[:, None] * circle, "q of least KL(p‖q)"),
        ):
            axes.plot(*shape, label=label)
        axes.set_aspect("equal")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return _figure(drawing, "reverse-kl-behaviour", "One direction fits inside the target, the other around it.")


def prior_sampling_cost() -> Picture:
    """Draws of the prior that a relative error of one tenth takes."""
    dimensions = np.arange(1, 41)
    variance, x = 0.2, 0.4
    with jax.enable_x64(True):
        posterior = Normal(jnp.array(x / (1 + variance)), jnp.array((variance / (1 + variance)) ** 0.5))
        one = float(renyi_divergence(posterior, Normal(jnp.array(0.0), jnp.array(1.0)), alpha=2.0))
    with _axes("dimensions of the code", "draws of the prior") as (drawing, axes):
        axes.plot(dimensions, 100 * np.expm1(one * dimensions))
        axes.set(yscale="log")
    return _figure(
        drawing, "naive-mc-variance-dimension", "Draws for a relative error of 10%: exponential in the dimension."
    )


def active_directions() -> Picture:
    """The optimal weight of a direction against its eigenvalue."""
    eigenvalues, noise = np.linspace(0, 4, 200), 0.6
    with _axes("eigenvalue λ of the data's covariance", "optimal weight |w|") as (drawing, axes):
        axes.plot(eigenvalues, np.sqrt(np.maximum(eigenvalues - noise, 0)))
        axes.axvline(noise, color=SERIES[1], linestyle="--")
        axes.annotate("σ²", (noise, 1.5), textcoords="offset points", xytext=(6, 0))
    return _figure(drawing, "latent-dimension-active-units", "Below the decoder's noise a direction is switched off.")


def game_rotation() -> Picture:
    """Three ways to step towards the saddle of xy."""
    bilinear = Players(generator=lambda x, y: x * y, discriminator=lambda x, y: -x * y)
    start = Point(jnp.array(1.0), jnp.array(0.0))
    with _axes("x", "y", size=(6.4, 3.6)) as (drawing, axes):
        for method in (simultaneous, alternating, extragradient):
            path = trajectory(method, bilinear, start, rate=0.2, steps=60)
            axes.plot(np.asarray(path.generator), np.asarray(path.discriminator), label=method.name)
        axes.plot(0, 0, marker="+", markersize=10, color=SERIES[3])
        axes.set_aspect("equal")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return _figure(drawing, "gan-gda-rotation", "Simultaneous steps leave the saddle, extragradient reaches it.")


def schedules() -> Picture:
    """What is left of the signal under the schedules of the literature."""
    with _axes("time t / T", "signal left, ᾱ") as (drawing, axes):
        for name, make in (("linear", linear_schedule), ("cosine", cosine_schedule), ("sigmoid", sigmoid_schedule)):
            kept = np.asarray(jax.nn.sigmoid(-make(200).gamma))
            axes.plot(np.arange(1, 201) / 200, kept, label=name)
        axes.legend()
    return _figure(drawing, "ddpm-forward-marginal", "All schedules end near zero; they differ in when.")


def contrastive_divergence_bias() -> Picture:
    """The largest error of the mean CD-k gradient, at three sizes of the weights."""
    steps = (1, 2, 4, 8, 16)
    random = np.random.default_rng(1)
    weights, data = random.normal(size=(3, 2)), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])

    @jax.jit
    def errors(scale):
        rbm = energy.RBM(jnp.zeros(3), jnp.zeros(2), scale * jnp.array(weights))

        def gradient(phases):
            return jax.vmap(lambda v: phases(v).gradient.weights)(jnp.array(data)).mean(0)

        exact = gradient(lambda v: energy.likelihood_phases(rbm, v))
        means = [gradient(lambda v, k=k: energy.expected_contrastive_divergence(rbm, v, steps=k)) for k in steps]
        return jnp.abs(jnp.stack(means) - exact[None]).max((1, 2))

    with jax.enable_x64(True), _axes("Gibbs steps k", "largest error of ∂W") as (drawing, axes):
        for scale in (0.5, 1.0, 2.0):
            axes.plot(steps, np.asarray(errors(scale)), marker="o", label=f"weights of size {scale:g}")
        axes.set(yscale="log", ylim=(1e-9, 1))
        axes.legend()
    return _figure(
        drawing, "rbm-contrastive-divergence", "The bias falls geometrically with k, the slower the larger the weights."
    )


def gibbs_convergence() -> Picture:
    """Distance to equilibrium of a chain of six units, from all zeros, at three temperatures."""
    random = np.random.default_rng(0)
    biases, weights = 0.3 * random.normal(size=6), 1.5 * random.normal(size=(6, 6))
    sweeps = np.arange(41)

    @jax.jit
    def distances(temperature):
        at = energy.tempered(energy.BoltzmannMachine(jnp.array(biases), jnp.array(weights)), temperature)
        law = jnp.exp(jax.vmap(at.log_prob)(energy.states(6)))
        kernel = energy.sequential_kernel(at)
        start = jnp.zeros_like(law).at[0].set(1)
        _, rows = jax.lax.scan(lambda row, _: (row @ kernel, row), start, None, len(sweeps))
        return 0.5 * jnp.abs(rows - law[None]).sum(1)

    with jax.enable_x64(True), _axes("sweeps from the state 0", "total variation from $e^{-E/T}/Z$") as (drawing, axes):
        for temperature in (2.0, 1.0, 0.5):
            axes.plot(sweeps, np.asarray(distances(temperature)), label=f"T = {temperature:g}")
        axes.set(yscale="log", ylim=(1e-9, 1.2))
        axes.legend()
    return _figure(drawing, "boltzmann-machine-gibbs", "Gibbs sampling forgets its start, the slower the colder it is.")


def softmax_slopes() -> Picture:
    """The mean slope of a softmax over two keys as they get wider, with and without the divisor."""
    widths = np.unique(np.geomspace(1, 1024, 30).astype(int))
    slopes = [
        [float(two_key_slope(int(d), divisor=float(c))) for d, c in zip(widths, cs, strict=True)]
        for cs in (widths**0.5, widths**0)
    ]
    with _axes("width of queries and keys", "E p(1 - p), two keys") as (drawing, axes):
        _curves(axes, widths, slopes, ("q·k/√d", "q·k"))
        axes.set(xscale="log", yscale="log")
    return _figure(drawing, "softmax-saturation", "Without the divisor, the softmax loses its slope as 1/√d.")


def weights_of_positions() -> Picture:
    """How much each place looks at the others by its sinusoids alone, with and without a causal mask."""
    places = sinusoidal_positions(24, 32)
    weights = [attention_weights(3 * places, places, mask) for mask in (None, causal_mask(24))]
    together = np.concatenate([weights[0], np.full((24, 2), np.nan), weights[1]], 1)
    with _axes("key: any place · an earlier place only", "query", size=(6.4, 3.2)) as (drawing, axes):
        axes.imshow(together, cmap="Blues", vmin=0)
        axes.set(xticks=[0, 23, 26, 49], xticklabels=[0, 23, 0, 23])
        axes.grid(False)
    caption = "Sinusoids tell places apart: each looks at its neighbours, and under a causal mask at earlier ones."
    return _figure(drawing, "transformer-permutation", caption)


@contextmanager
def _axes(xlabel: str, ylabel: str, *, size: tuple[float, float] = (6.4, 2.9)) -> Iterator[Any]:
    import matplotlib.figure

    with figure_style():
        drawing = matplotlib.figure.Figure(figsize=size)
        axes = drawing.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        yield drawing, axes


def _curves(axes: Any, x: np.ndarray, curves: Sequence, labels: Sequence[str]) -> None:
    for curve, label in zip(curves, labels, strict=True):
        axes.plot(x, curve, label=label)
    axes.legend()


def _figure(drawing: Any, name: str, caption: str) -> Picture:
    with figure_style():
        return Picture(figure(drawing, name=f"picture-{name}", alt=caption, caption=caption))


PICTURES: dict[str, Callable[[], Picture]] = {
    "gradient-variance-quadratic": variance_against_distance,
    "score-vs-reparam-counterexample": variance_against_frequency,
    "iwae-bound-monotone": bound_against_samples,
    "elbo-tightness": gap_against_correlation,
    "reverse-kl-behaviour": divergence_directions,
    "naive-mc-variance-dimension": prior_sampling_cost,
    "latent-dimension-active-units": active_directions,
    "gan-gda-rotation": game_rotation,
    "ddpm-forward-marginal": schedules,
    "rbm-contrastive-divergence": contrastive_divergence_bias,
    "boltzmann-machine-gibbs": gibbs_convergence,
    "softmax-saturation": softmax_slopes,
    "transformer-permutation": weights_of_positions,
}
