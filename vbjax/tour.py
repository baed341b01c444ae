"""The tour: derivations checked, gradient estimators studied, a VAE trained, and one page that shows it all.

`tour` runs the parts in turn and writes `index.html`; each part is a function that returns a section of the page.
"""

import contextlib
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from vbjax import cards, datasets, evaluation, progress, runs, studies, training
from vbjax.derivations import command, registry
from vbjax.estimators import catalogue
from vbjax.networks.vae import VAENetworks, mlp_vae
from vbjax.reports import Html, Section, figure, figure_style, image, page, pictures, prose, section, stat_tiles, table
from vbjax.reports.derivations import derivations_section
from vbjax.reports.evidence import conformance_section
from vbjax.reports.studies import tour_section
from vbjax.studies.conformance import conformance
from vbjax.studies.toy_problems import toy_problems
from vbjax.types import Estimate, PRNGKey

ESTIMATORS = ("pathwise", "score", "rloo")
SAMPLES = (1, 2)
REPLICATIONS = 100_000
STEPS = 1500
REFERENCES = (
    ("mixture of categoricals, K = 10", 2.211),
    ("MLP-VAE, categorical pixels, IWAE-100", 2.084),
    ("MLP-VAE, 3 discretised logistics, IWAE-1000", 1.933),
)
"""Earlier results on the same integers and the same split, bits per dimension, without intervals."""


def tour(
    out: Path,
    *,
    seed: int = 0,
    ids: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    replications: int = REPLICATIONS,
    steps: int = STEPS,
) -> int:
    """Run everything and write `out/index.html`; returns 0 if every statement held and every control was rejected.

    ids: derivations to check, none means all. methods: estimators to judge, None means all. replications: of each
    estimator studied. steps: of the VAE's training. Raises RunError, before any work, if the folder cannot be written.
    """
    begin, provenance = time.perf_counter(), cards.provenance()
    target = runs.writable_folder(out) / "index.html"
    key_vae = jax.random.key(seed)

    with _part("checking derivations"):
        verdicts = list(command.verdicts_of(registry.select(ids), seed=seed))
    passed = sum(verdict.passed for verdict in verdicts)
    print(f"   {passed} of {len(verdicts)} hold with their control rejected", file=sys.stderr)
    with _part("studying gradient estimators"):
        problems = toy_problems()
        compared = {name: catalogue.METHODS[name] for name in ESTIMATORS}
        cells = studies.grid(problems, compared, samples=SAMPLES)
        results = studies.study(cells, replications=replications, seed=seed)
    with _part("judging every estimator on one bit, by enumeration"):
        judged = list(conformance(jax.random.key(seed), methods=methods, laws=["Bernoulli"], tests=False))
    kept = sum(cell.kept for cell in judged)
    print(f"   {kept} of {len(judged)} promises kept", file=sys.stderr)
    with _part("training a VAE on the 8x8 digits"):
        trained = train(key_vae, steps=steps)
    with _part("measuring its test likelihood and drawing"):
        vae_section, bits = describe(trained)

    seconds = time.perf_counter() - begin
    document = page(
        "Variational Bayes, checked",
        [
            _summary(verdicts, results, bits, seconds),
            derivations_section(verdicts),
            tour_section(problems, results, replications=replications),
            conformance_section(judged, title="Every estimator on one bit"),
            vae_section,
        ],
        subtitle="Derivations with both sides computed by independent routes, gradient estimators integrated exactly "
        "and sampled, and a variational auto-encoder measured on held-out digits.",
        provenance={
            "command": provenance["command"],
            "seed": seed,
            "commit": (provenance["commit"] or {}).get("hash", "not in a checkout"),
            "device": provenance["device"]["kind"],
            "started": provenance["started"],
            "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        },
    )
    runs.write_atomically(target, document)
    print(f"test bits/dim {bits.value:.3f} ± {1.96 * bits.standard_error:.3f}; {seconds:.0f} s; page: {target}")
    return 0 if passed == len(verdicts) and kept == len(judged) else 1


class Trained(NamedTuple):
    """A trained VAE and what is needed to judge it. key: for the evaluation; rows: what training reported."""

    networks: VAENetworks
    state: training.TrainState
    data: datasets.Dataset
    key: PRNGKey
    rows: list[training.Row]
    seconds: float


def train(key: PRNGKey, *, steps: int) -> Trained:
    """Train the digits VAE of the tour: 3 discretised logistics a pixel, the IWAE-5 bound, averaged parameters."""
    data = datasets.load("digits").on_device()
    networks = mlp_vae(
        (8, 8),
        likelihood="discretised_logistic_mixture",
        levels=data.levels,
        latent_dim=24,
        hidden=(512, 512),
        dropout=0.2,
    )
    optimizer = training.make_optimizer(learning_rate=1e-3, schedule="cosine", steps=steps)
    key_init, key_data, key_train, key_test = jax.random.split(key, 4)
    state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=0.999)
    rows: list[training.Row] = []

    def batch(images: Array, step: Array) -> Array:
        return images[datasets.batch_indices(key_data, step, images.shape[0], 128)]

    with progress.Progress(steps) as bar:

        def on_chunk(state: training.TrainState, row: training.Row) -> None:
            rows.append(row)
            bar.update(row)

        state = training.fit(
            key_train,
            networks.loss(samples=5),
            Partial(batch, data.train_images),
            optimizer,
            state,
            steps=steps,
            chunk=50,
            ema_decay=0.999,
            on_chunk=on_chunk,
        )
    return Trained(networks, state, data, key_test, rows, rows[-1]["seconds"])


def describe(trained: Trained) -> tuple[Section, Estimate]:
    """The VAE's section of the page, and its test likelihood in bits per dimension."""
    key_elbo, key_iwae, key_pictures = jax.random.split(trained.key, 3)
    vae = trained.networks.bind(trained.state.averaged)
    test = jnp.asarray(trained.data.test_images, jnp.float32)
    terms = jax.jit(lambda key, x: evaluation.elbo_report(key, vae, x))(key_elbo, test)
    iwae = jax.jit(lambda key, x: evaluation.importance_weighted_nll(key, vae, x, samples=1000, batch_size=8))
    likelihood = iwae(key_iwae, test)
    bits, unit = likelihood.bits_per_dim, 64 * math.log(2)
    negative_elbo = Estimate(
        terms.negative_elbo.value / unit, terms.negative_elbo.standard_error / unit, terms.negative_elbo.count
    )
    rows = [
        ("uniform over 17 levels", math.log2(trained.data.levels), "exact"),
        ("independent pixels, counted", independent_pixels(trained.data), "exact, test split"),
        *((name, value, "earlier single run") for name, value in REFERENCES),
        ("this VAE, −ELBO", negative_elbo, "bound, test split"),
        ("this VAE, IWAE-1000", bits, "bound, test split"),
    ]
    figures = pictures.latent_variable_model(key_pictures, vae, test, jnp.asarray(trained.data.test_labels))
    body = [
        prose(
            f"Trained for {int(trained.state.step)} steps in {trained.seconds:.0f} s on the first 1347 of "
            "scikit-learn's 8×8 digits, judged on the last 450. Every row scores the same integers from 0 to 16, in "
            "bits per dimension; the number in parentheses is the standard error over test images, in the last digits."
        ),
        table(("model", "bits/dim", "what it is"), rows, caption="Held-out likelihood, lower is better"),
        prose(
            f"Test ELBO by its terms: reconstruction {terms.reconstruction.value:.2f} nats, KL "
            f"{terms.kl.value:.2f} nats. {evaluation.active_units(evaluation.posterior_means(vae, test))} of 24 latent "
            f"units are active. Monte-Carlo error of IWAE-1000: {likelihood.monte_carlo_error / unit:.4f} bits/dim."
        ),
    ]
    captions = {
        "reconstructions": "Test digits and the decoder's mean at their code.",
        "samples": "Generated digits: means of p(x|z), and full draws, which carry the model's pixel noise.",
        "traversal": "One latent coordinate at a time from −2.5 to 2.5, the others as in one test digit.",
        "latent_map": "Codes of the test digits, projected on their first two principal components.",
    }
    body.append(_learning_curve(trained))
    body += [image(_png(figures[name]), alt=caption, caption=caption) for name, caption in captions.items()]
    return section("A variational auto-encoder on the digits", *body, id="vae"), bits


def independent_pixels(data: datasets.Dataset) -> Estimate:
    """Test bits per dimension of a categorical law per pixel, its counts smoothed by one tenth."""
    train, test = np.asarray(data.train_images), np.asarray(data.test_images)
    counts = np.stack([(train == level).sum(0) for level in range(data.levels)], -1) + 0.1
    probs = counts / counts.sum(-1, keepdims=True)
    chosen = np.take_along_axis(probs[None], test[..., None].astype(int), -1)
    return evaluation.over_examples(jnp.asarray(-np.log2(chosen).reshape(len(test), -1).mean(1)))


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


def _png(drawing) -> bytes:
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _summary(verdicts, results, bits: Estimate, seconds: float) -> Section:
    held, rejected = sum(v.holds for v in verdicts), sum(v.control_rejected for v in verdicts)
    tiles = [
        (f"{held} / {len(verdicts)}", "statements hold"),
        (f"{rejected} / {len(verdicts)}", "wrong variants rejected"),
        (f"{sum(not result.refusal for result in results)}", "gradient estimates studied, exactly where possible"),
        (f"{bits.value:.3f}", "bits/dim on test digits"),
        (f"{seconds:.0f} s", "for all of it"),
    ]
    return section("At a glance", stat_tiles(tiles), id="summary")


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    print(f"-- {name} ...", file=sys.stderr, flush=True)
    yield
    print(f"   done in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
