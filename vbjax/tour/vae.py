"""The tour's variational auto-encoder, and the rows of the leaderboard that take seconds."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vbjax import datasets, em, evaluation, leaderboard, progress, training
from vbjax.networks.vae import VAENetworks, mlp_vae
from vbjax.recipe import count_parameters, fit_vae
from vbjax.reports import Html, Section, figure, figure_style, image, pictures, prose, section
from vbjax.types import PRNGKey

COMPONENTS = 10
"""Of the mixture of categoricals that EM fits."""


class Trained(NamedTuple):
    """A trained VAE and what is needed to judge it. key: for the evaluation; rows: what training reported."""

    networks: VAENetworks
    state: training.TrainState
    data: datasets.Dataset
    key: PRNGKey
    rows: list[training.Row]
    seconds: float


def train(key: PRNGKey, *, steps: int) -> Trained:
    """Train the digits VAE of the tour: pixels that look back, the IWAE-5 bound, averaged parameters."""
    data = datasets.load("digits").on_device()
    networks = mlp_vae(
        (8, 8),
        likelihood="autoregressive_logistic_mixture",
        levels=data.levels,
        latent_dim=24,
        hidden=(512, 512),
        dropout=0.2,
    )
    key_train, key_test = jax.random.split(key)
    rows: list[training.Row] = []
    with progress.Progress(steps) as bar:

        def on_chunk(state: training.TrainState, row: training.Row) -> None:
            rows.append(row)
            bar.update(row)

        state = fit_vae(key_train, networks, jnp.asarray(data.train_images), samples=5, steps=steps, on_chunk=on_chunk)
    return Trained(networks, state, data, key_test, rows, rows[-1]["seconds"])


def describe(trained: Trained) -> tuple[Section, leaderboard.Entry]:
    """The VAE's section of the page, and its row of the leaderboard."""
    key_elbo, key_iwae, key_pictures = jax.random.split(trained.key, 3)
    vae = trained.networks.bind(trained.state.averaged)
    test = jnp.asarray(trained.data.test_images, jnp.float32)
    terms = jax.jit(lambda key, x: evaluation.elbo_report(key, vae, x))(key_elbo, test)
    entry = leaderboard.by_vae(
        key_iwae,
        "VAE whose pixels look back, IWAE-5",
        vae,
        trained.data,
        samples=1000,
        parameters=count_parameters(trained.state.params),
        seconds=trained.seconds,
    )
    unit, active = 64 * math.log(2), evaluation.active_units(evaluation.posterior_means(vae, test))
    figures = pictures.latent_variable_model(key_pictures, vae, test, jnp.asarray(trained.data.test_labels))
    body = [
        prose(
            f"Trained for {int(trained.state.step)} steps in {trained.seconds:.0f} s on the first 1347 of "
            "scikit-learn's 8×8 digits, judged on the last 450, on the integers from 0 to 16. A pixel is a mixture of "
            "three discretised logistics, moved linearly by the pixels before it."
        ),
        prose(
            f"Test ELBO by its terms: reconstruction {terms.reconstruction.value:.2f} nats, KL "
            f"{terms.kl.value:.2f} nats, {terms.negative_elbo.value / unit:.3f} bits/dim together; IWAE-1000 comes to "
            f"{entry.likelihood.bits_per_dim.value:.3f}. {active} of 24 latent units are active. Monte-Carlo error of "
            f"IWAE-1000: {entry.likelihood.monte_carlo_error / unit:.4f} bits/dim."
        ),
    ]
    captions = {
        "reconstructions": "Test digits and what the decoder makes of their codes.",
        "samples": "Generated digits: the centre of p(x|z), each pixel at its mean given those before it, and full "
        "draws, which carry the pixel noise.",
        "traversal": "One latent coordinate at a time from −2.5 to 2.5, the others as in one test digit.",
        "latent_map": "Codes of the test digits, projected on their first two principal components.",
    }
    body.append(_learning_curve(trained))
    body += [image(pictures.png(figures[name]), alt=caption, caption=caption) for name, caption in captions.items()]
    return section("A variational auto-encoder on the digits", *body, id="vae"), entry


def quick_rows(key: PRNGKey, data: datasets.Dataset) -> Iterator[leaderboard.Entry]:
    """The leaderboard's rows that take seconds; `experiments/likelihoods.py` has them all."""
    key_categoricals, key_normals = jax.random.split(key)
    yield leaderboard.counted(data)
    categoricals = em.categorical_mixture(COMPONENTS, data.levels, smoothing=0.1)
    name = f"mixture of {COMPONENTS} categoricals, EM"
    yield leaderboard.by_em(key_categoricals, name, categoricals, data, of_integers=True)
    normals = em.diagonal_gaussians(4 * COMPONENTS, floor=1 / 12)
    yield leaderboard.by_em(key_normals, f"mixture of {4 * COMPONENTS} diagonal normals, EM", normals, data)


def _learning_curve(trained: Trained) -> Html:
    from matplotlib.figure import Figure

    with figure_style():
        drawing = Figure(figsize=(7, 2.6))
        axes = drawing.subplots()
        unit = math.prod(trained.networks.image_shape) * math.log(2)
        axes.plot([row["step"] for row in trained.rows], [row["loss"] / unit for row in trained.rows])
        axes.set(xlabel="step", ylabel="bits/dim, training")
        alt = "Training loss against the step, falling and levelling off"
        caption = "Negative IWAE-5 bound on the training batches, with dropout on, averaged over 50 steps."
        return figure(drawing, name="learning-curve", alt=alt, caption=caption)
