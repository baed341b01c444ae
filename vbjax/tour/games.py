"""The tour's games: the Dirac-GAN, whose every rate is predicted and then measured."""

import jax
import jax.numpy as jnp

from vbjax.gan import dirac, games, penalties
from vbjax.gan.values import minimax, scaled
from vbjax.reports import Section, figure, figure_style, prose, section, table

RATE, STEPS, GAMMA = 0.1, 400, 1.5
START = 0.2
"""Of both parameters: near enough for the equilibrium's linear map to hold."""
METHODS = (games.simultaneous, games.alternating, games.extragradient)
VALUE = scaled(minimax, 2)
"""Mescheder's units."""


def games_section() -> Section:
    """Every method on the smallest GAN, with and without R1: the factor of distances per step from the game's
    Jacobian, beside the one measured over a trajectory.
    """

    def with_r1(discriminator, x_real, x_fake):
        return GAMMA * penalties.r1(discriminator, x_real)

    start = games.Point(jnp.asarray(START), jnp.asarray(START))
    rows, paths = [], {}
    for name, penalty in (("none", dirac.no_penalty), (f"R1, γ = {GAMMA:g}", with_r1)):
        players = dirac.dirac_gan(VALUE, penalty)
        for method in METHODS:
            predicted = games.convergence_rate(method, players, dirac.equilibrium(), rate=RATE)
            path = jax.jit(lambda m=method, p=players: games.trajectory(m, p, start, rate=RATE, steps=STEPS))()
            distance = jnp.hypot(*path)
            measured = (distance[-1] / distance[STEPS // 2]) ** (2 / STEPS)
            rows.append((method.name, name, f"{predicted:.5f}", f"{measured:.5f}", f"{distance[-1]:.2g}"))
            paths[method.name, name] = path
    return section(
        "The smallest GAN circles its equilibrium",
        prose(
            "All data at zero, a generator that puts its mass at θ, a discriminator D(x) = ψx. The game's Jacobian at "
            "(0, 0) has the eigenvalues ±i/2, so gradient flow circles for ever; R1 moves them to the left. A method's "
            f"linear map there, at a step of {RATE:g}, gives the factor by which a distance changes per step in the "
            f"long run; beside it the factor measured between steps {STEPS // 2} and {STEPS} from ({START}, {START})."
        ),
        table(
            ("method", "penalty", "factor per step, predicted", "measured", f"distance after {STEPS}"),
            rows,
            caption="Below one it attracts",
        ),
        _paths(paths),
        id="games",
    )


def _paths(paths):
    from matplotlib.figure import Figure

    shown, penalties_shown = (list(dict.fromkeys(names)) for names in zip(*paths, strict=True))
    with figure_style():
        drawing = Figure(figsize=(8, 3))
        for axes, method in zip(drawing.subplots(1, len(shown), sharex=True, sharey=True), shown, strict=True):
            for penalty in penalties_shown:
                axes.plot(*paths[method, penalty], lw=1, label=f"penalty: {penalty}")
            axes.plot(0, 0, "k+")
            axes.set(title=method, xlabel="θ")
            axes.set_aspect("equal")
        drawing.axes[0].set_ylabel("ψ")
        drawing.axes[-1].legend(fontsize="small", loc="upper right")
        alt = "Paths of the two parameters: simultaneous steps spiral outwards, all others in or around"
        caption = f"(θ, ψ) from ({START}, {START}), {STEPS} steps of {RATE:g}."
        return figure(drawing, name="dirac-gan", alt=alt, caption=caption)
