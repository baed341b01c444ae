"""The tour's diffusion models: one of Gaussian data, whose every gap is known, and one trained on the digits."""

import time

import jax
import jax.numpy as jnp

from vbjax import datasets, leaderboard, progress
from vbjax.diffusion import exact, schedules
from vbjax.diffusion.decoders import embed_levels
from vbjax.diffusion.process import forward_variance, optimal_variance, posterior_variance
from vbjax.diffusion.samplers import generate
from vbjax.networks.denoisers import mlp_denoiser
from vbjax.recipe import count_parameters, fit_denoiser, log_frequencies
from vbjax.reports import Html, Section, diffusion_pictures, image, pictures, prose, section, table
from vbjax.types import PRNGKey

CHAINS = (1, 10, 100, 1000)
MEAN, VARIANCE = 1.5, 0.25
LOW, HIGH, TIMES = -9.0, 6.0, 200
"""Ends of γ, and T, of the digits' chain."""
DRAWS = 60


def diffusion_section(key: PRNGKey, *, steps: int) -> tuple[Section, leaderboard.Entry]:
    """The gaps on Gaussian data; then a model of the digits after so many steps, its bound and draws of it."""
    data = datasets.load("digits").on_device()
    levels, shape = data.levels, data.train_images.shape[1:]
    networks = mlp_denoiser(
        shape,
        prediction="levels",
        width=384,
        blocks=2,
        dropout=0.5,
        levels=levels,
        log_prior=log_frequencies(jnp.asarray(data.train_images), levels=levels),
    )
    begin = time.perf_counter()
    key_train, key_bound, key_draws = jax.random.split(key, 3)
    with progress.Progress(steps) as bar:
        state = fit_denoiser(
            key_train,
            networks,
            embed_levels(jnp.asarray(data.train_images), levels=levels),
            low=LOW,
            high=HIGH,
            steps=steps,
            on_chunk=lambda state, row: bar.update(row),
        )
    seconds, params = time.perf_counter() - begin, state.averaged
    model = networks.chain(params)
    schedule = schedules.discretise(schedules.linear_gamma(LOW, HIGH), TIMES)
    entry = leaderboard.by_diffusion(
        key_bound, "diffusion", model, schedule, data, parameters=count_parameters(params), seconds=seconds
    )
    drawn = jax.jit(jax.vmap(lambda key: generate(key, model, schedule, shape)))(jax.random.split(key_draws, DRAWS))
    distances = jnp.sum((drawn[:, None] - jnp.asarray(data.train_images, jnp.float32)[None]) ** 2, (2, 3))
    nearest = data.train_images[distances.argmin(1)]
    caption = "Digits drawn by the model, and at the bottom some above the training images that are nearest to them."
    return section(
        "Diffusion, and what its bound loses",
        prose(
            "On Gaussian data with the exact denoiser nothing is left to chance: entropy ≤ −log p ≤ bound, and what "
            "lies between has a name and a closed form. The prior's gap is that of x_T, which is not quite noise; the "
            "other is paid for a reverse variance that is not the best one, and no number of steps mends β̃ quickly."
        ),
        gaps_table(),
        prose(
            f"On the digits a perceptron says of every pixel, from the others, how probable each grey level is; the "
            f"pixel's own noisy value enters by Bayes' rule. After {steps} steps in {seconds:.0f} s the bound of a "
            f"chain of {TIMES} is {entry.likelihood.bits_per_dim.value:.3f} bits/dim on the test digits, all terms "
            "measured for every image."
        ),
        image(pictures.png(diffusion_pictures.samples(drawn, nearest)), alt=caption, caption=caption),
        id="diffusion",
    ), entry


def gaps_table() -> Html:
    """Entropy ≤ NLL ≤ bound on Gaussian data with the exact denoiser, and what each gap is, for chains of T steps."""
    rows = []
    with jax.enable_x64(True):
        mean, variance = jnp.full(1, MEAN), jnp.full(1, VARIANCE)
        best = optimal_variance(exact.gaussian_error(variance))
        for name, reverse in (("β̃", posterior_variance), ("β", forward_variance), ("optimal", best)):
            for steps in CHAINS:
                schedule = schedules.linear_schedule(steps)
                gaps = exact.gaussian_gaps(mean, variance, schedule, reverse_variance=reverse, decoder_variance=best)
                numbers = (gaps.entropy, gaps.nll(), gaps.bound(), gaps.prior, gaps.reverse.sum())
                rows.append((name, f"{steps:,}", *(f"{float(number):.6f}" for number in numbers)))
    return table(
        ("reverse variance", "T", "entropy", "NLL", "bound", "gap: prior", "gap: reverse variance"),
        rows,
        caption=f"In nats, exactly: x₀ ~ N({MEAN:g}, {VARIANCE:g}), the exact denoiser, the linear schedule",
    )
