"""Train a variational auto-encoder with multi-layer perceptrons, and say what it is worth on the test split.

    python experiments/vae.py                                       # the 8x8 digits, about a minute
    python experiments/vae.py --dataset fashion_mnist --download    # or --data-files DIR without a network
    python experiments/vae.py --resume                              # go on after an interruption

The run folder holds config.json, metrics.jsonl, checkpoints/, pictures/ and card.json: test ELBO by its terms, the
IWAE-K likelihood with its standard error, bits per dimension, active units.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vbjax.cli import BAD_INPUT, exit_with, start_jax

start_jax()

import jax
import jax.numpy as jnp
import tyro
from jax.tree_util import Partial

from vbjax import cards, checkpoints, datasets, evaluation, progress, runs, training
from vbjax.networks.vae import VAENetworks, mlp_vae
from vbjax.reports import pictures

Likelihood = Literal[
    "bernoulli",
    "categorical",
    "discretised_normal",
    "discretised_logistic",
    "discretised_logistic_mixture",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; the defaults are those of the data set that `--dataset` names. Two runs with the same
    configuration give the same bits on the same machine.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets."""
    binarise: Literal["none", "static", "dynamic"] = "none"
    """Pixels to bits: by a threshold at half range, or by a fresh draw at every step."""
    likelihood: Likelihood = "discretised_logistic_mixture"
    """p(x|z): bernoulli for bits, one of the others for grey levels."""
    latent_dim: int = 24
    """Dimension of z."""
    hidden: tuple[int, ...] = (512, 512)
    """Hidden widths of the encoder; the decoder mirrors them."""
    activation: Literal["relu", "silu", "gelu", "tanh"] = "relu"
    """Non-linearity of the hidden layers."""
    dropout: float = 0.2
    """Dropout in the hidden layers while training, in [0, 1)."""
    samples: int = 5
    """Draws of z per example while training: 1 is the ELBO with its exact KL, more the IWAE bound."""
    steps: int = 2500
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam."""
    schedule: Literal["constant", "cosine", "exponential"] = "cosine"
    """Learning-rate schedule over the run."""
    clip_norm: float | None = 100.0
    """Largest global gradient norm; None switches clipping off."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated; 0 switches it off."""
    seed: int = 0
    """Everything random follows from it."""
    eval_samples: int = 1000
    """K of the IWAE-K test likelihood."""


_LARGER = Config(latent_dim=40, hidden=(400, 400), dropout=0.1, samples=1, steps=12_000, eval_samples=100)
_BITS = dataclasses.replace(_LARGER, binarise="static", likelihood="bernoulli")
DEFAULTS = {
    "digits": Config(),
    "mnist": dataclasses.replace(_BITS, dataset="mnist"),
    "fashion_mnist": dataclasses.replace(_BITS, dataset="fashion_mnist"),
    "cifar10": dataclasses.replace(_LARGER, dataset="cifar10"),
}
"""The configuration that `--dataset` starts from."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and how: none of it changes a number."""

    out: Path | None = None
    """Run folder. Default: runs/vae-DATASET."""
    resume: bool = False
    """Go on from the last whole checkpoint of the same configuration."""
    overwrite: bool = False
    """Delete what an earlier run left in the folder."""
    download: bool = False
    """Allow downloading the data set; nothing is downloaded otherwise."""
    data_files: Path | None = None
    """Folder with the published data files, for use without a network."""
    data_dir: Path | None = None
    """Where prepared data sets live. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, at least; they are made at multiples of 100 and at the end."""
    json: bool = False
    """Print the result card as JSON on standard output."""
    quiet: bool = False
    """No progress bar and no summary."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """All of the command line."""

    config: tyro.conf.OmitArgPrefixes[Config]
    run: tyro.conf.OmitArgPrefixes[Run]


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    if (config.likelihood == "bernoulli") != (config.binarise != "none"):
        raise ValueError(
            f"likelihood {config.likelihood!r} does not go with binarise {config.binarise!r}: bernoulli reads bits, "
            "the others grey levels"
        )
    for name, value in [*dataclasses.asdict(config).items(), ("checkpoint_every", run.checkpoint_every)]:
        least = {"seed": 0, "eval_samples": 2}.get(name, 1)
        if type(value) is int and not least <= value < 2**31:
            raise ValueError(f"{name} must be a whole number from {least} to 2^31 - 1, got {value}")
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    build(config, (8, 8), 17)


def make_optimizer(config: Config):
    """Adam as configured."""
    return training.make_optimizer(
        learning_rate=config.learning_rate, schedule=config.schedule, steps=config.steps, clip_norm=config.clip_norm
    )


def load_data(config: Config, run: Run) -> datasets.Dataset:
    """The data as uint8 on the device; dynamic binarisation keeps the grey levels for training."""
    data = datasets.load(config.dataset, data_dir=run.data_dir, manual_dir=run.data_files, download=run.download)
    count = data.train_images.shape[0]
    if config.batch_size > count:
        raise ValueError(f"batch_size {config.batch_size} exceeds the {count} training examples of {config.dataset}")
    return (data.binarised((data.levels - 1) // 2) if config.binarise == "static" else data).on_device()


def build(config: Config, image_shape: tuple[int, ...], grey_levels: int) -> VAENetworks:
    """The networks for such images."""
    return mlp_vae(
        image_shape,
        likelihood=config.likelihood,
        levels=grey_levels if config.binarise == "none" else 2,
        latent_dim=config.latent_dim,
        hidden=config.hidden,
        activation=config.activation,
        dropout=config.dropout,
    )


def test_images(key, config: Config, data: datasets.Dataset):
    """Test images as the model reads them; dynamic bits are drawn once, from the run's seed."""
    if config.binarise != "dynamic":
        return jnp.asarray(data.test_images, jnp.float32)
    keys = jax.random.split(key, data.test_images.shape[0])
    bits = jax.vmap(lambda key, image: datasets.dynamic_binarise(key, image, data.levels))(keys, data.test_images)
    return bits.astype(jnp.float32)


def evaluate(key, networks: VAENetworks, params, images, samples: int) -> dict[str, cards.Number]:
    """Test numbers with their standard errors over examples, in nats unless named otherwise."""
    key_elbo, key_iwae = jax.random.split(key)

    @jax.jit
    def measure(params, images):
        vae = networks.bind(params)
        # memory: batch_size x samples decodings at once
        batch_size = max(1, 4000 // samples)
        return (
            evaluation.elbo_report(key_elbo, vae, images),
            evaluation.importance_weighted_nll(key_iwae, vae, images, samples=samples, batch_size=batch_size),
            evaluation.posterior_means(vae, images),
        )

    terms, likelihood, codes = measure(params, images)
    estimates = {
        "negative_elbo": (terms.negative_elbo, "nats"),
        "reconstruction": (terms.reconstruction, "nats"),
        "kl": (terms.kl, "nats"),
        f"iwae_{samples}_nll": (likelihood.nats, "nats"),
        "bits_per_dim": (likelihood.bits_per_dim, "bits/dim"),
    }
    return {
        **{name: cards.number(e.value, e.standard_error, unit=unit) for name, (e, unit) in estimates.items()},
        "monte_carlo_error": cards.number(likelihood.monte_carlo_error, unit="nats"),
        "active_units": cards.number(evaluation.active_units(codes), unit="units"),
    }


class Setup(NamedTuple):
    """What was asked for, and what it makes."""

    config: Config
    run: Run
    data: datasets.Dataset
    networks: VAENetworks
    optimizer: Any


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    begin, provenance = time.perf_counter(), cards.provenance()
    with exit_with(BAD_INPUT, ValueError, runs.RunError, datasets.DatasetUnavailable):
        validate(config, run)
        data = load_data(config, run)
        networks = build(config, data.train_images.shape[1:], data.levels)
        setup = Setup(config, run, data, networks, make_optimizer(config))
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(jax.jit(networks.init)(key_init), setup.optimizer, ema_decay=config.ema_decay)
        folder = runs.RunFolder.open(
            run.out or Path("runs") / f"vae-{config.dataset}",
            config,
            resume=run.resume,
            overwrite=run.overwrite,
            expected_bytes=checkpoints.expected_bytes(state, keep_last=2),
        )

    with (
        exit_with(BAD_INPUT, runs.RunError, OSError),
        exit_with(1, training.NonFiniteLoss, checkpoints.NonFiniteState),
        folder,
    ):
        state = train(key_train, key_data, setup, state, folder, provenance)
        key_bits, key_eval, key_pictures = jax.random.split(key_test, 3)
        images = test_images(key_bits, config, data)
        numbers = evaluate(key_eval, networks, state.averaged, images, config.eval_samples)
        vae, labels = networks.bind(state.averaged), jnp.asarray(data.test_labels)
        for name, figure in pictures.latent_variable_model(key_pictures, vae, images, labels).items():
            figure.savefig(folder.picture(f"{name}.png"), dpi=160)
        seconds = time.perf_counter() - begin
        card = cards.Card(f"vae-{config.dataset}", numbers, folder.config, config.seed, seconds, provenance)
        cards.write_card(folder.path / "card.json", card)
    if run.json:
        print((folder.path / "card.json").read_text(), end="")
    elif not run.quiet:
        print(cards.summary(card))
        print(f"card, metrics, checkpoints and pictures: {folder.path}/")
    return card


def train(key, key_data, setup: Setup, state, folder: runs.RunFolder, provenance) -> training.TrainState:
    """Train to the configured step, from the last whole checkpoint if asked to, with a bar, metrics and checkpoints."""
    config, run, data, networks, optimizer = setup

    def warn(line: str) -> None:
        print(f"warning: {line}", file=sys.stderr)

    def batch(images, step):
        return images[datasets.batch_indices(key_data, step, images.shape[0], config.batch_size)]

    with (
        checkpoints.CheckpointFolder(
            folder.checkpoints, config=folder.config, provenance=provenance, warn=warn
        ) as saved,
        progress.Progress(config.steps, quiet=run.quiet) as bar,
    ):
        restored = saved.restore_latest(state) if run.resume else None
        state = state if restored is None else restored.state
        folder.rewind(int(state.step))
        last_saved = int(state.step)

        def on_chunk(state: training.TrainState, row: training.Row) -> None:
            nonlocal last_saved
            folder.log(row)
            bar.update(row)
            step = int(row["step"])
            if step - last_saved >= run.checkpoint_every or step == config.steps:
                saved.save(state, metric=row["loss"])
                last_saved = step

        return training.fit(
            key,
            networks.loss(
                samples=config.samples,
                binarise_dynamically_from=data.levels if config.binarise == "dynamic" else None,
            ),
            Partial(batch, data.train_images),
            optimizer,
            state,
            steps=config.steps,
            chunk=100,
            ema_decay=config.ema_decay,
            on_chunk=on_chunk,
        )


if __name__ == "__main__":
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--dataset", default="digits")
    start_from = DEFAULTS.get(which.parse_known_args()[0].dataset, Config())
    arguments = tyro.cli(
        Arguments,
        description=__doc__,
        default=Arguments(start_from, Run()),
    )
    main(arguments.config, arguments.run)
