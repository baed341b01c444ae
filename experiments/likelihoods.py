"""One leaderboard: the held-out likelihood of many models on the same integers, each exact or a bound.

    python experiments/likelihoods.py                                 # the 8x8 digits, about a quarter of an hour
    python experiments/likelihoods.py --rows counted categoricals vae # some rows only
    python experiments/likelihoods.py --resume                        # go on after an interruption
    python experiments/likelihoods.py --dataset fashion_mnist --data-files DIR

Every row that is done is kept, so that an interruption costs one row. Grey levels of the 8x8 digits are scored as
they are (0 to 16); other data sets are binarised at half range. The run folder holds rows/NAME.npz (log P(x) of every
test image, in nats), index.html, pictures/leaderboard.png and card.json.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import cards, datasets, em, leaderboard, progress, runs
from vbjax.diffusion.decoders import embed_levels
from vbjax.diffusion.schedules import discretise, linear_gamma
from vbjax.evaluation import Evidence
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.leaderboard import Entry
from vbjax.networks.denoisers import mlp_denoiser
from vbjax.networks.hierarchical_vae import hierarchical_vae
from vbjax.networks.vae import mlp_vae
from vbjax.recipe import count_parameters, fit_denoiser, fit_vae, log_frequencies
from vbjax.reports import page
from vbjax.reports.leaderboard import drawing, leaderboard_section, ranking, text_table

GREY = ("counted", "categoricals", "diagonal", "gaussians", "ppca", "factors")
BITS = ("counted", "bernoullis")
TRAINED = ("vae", "iwae", "hierarchical", "flow_prior", "autoregressive")
"""Rows by data: classical models of grey levels, of bits; those trained by gradients; digits have "diffusion" too."""
DIFFUSION_ENDS, DIFFUSION_TIMES, DIFFUSION_STEPS = (-8.0, 6.0), 1000, 1000
"""γ at both ends of the chain, for grey levels an eighth apart; its length; and when longer training overfits."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed. Two runs with the same configuration give the same bits on the same machine."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets, and are binarised at half range."""
    rows: tuple[str, ...] = ()
    """Rows by name; none means all: counted, categoricals, diagonal, gaussians, ppca, factors (grey levels) or
    bernoullis (bits), vae, iwae, hierarchical, flow_prior, autoregressive, diffusion (grey levels)."""
    latent_dim: int = 24
    """Dimension of z."""
    hidden: tuple[int, ...] = (512, 512)
    """Hidden widths of the encoders; the decoders mirror them."""
    dropout: float = 0.2
    """Dropout while training, in [0, 1)."""
    samples: int = 5
    """Draws of z per example while training, for all but the row vae."""
    steps: int = 2500
    """Training steps of each network."""
    components: int = 20
    """Components of the mixtures of categoricals or coins; the mixture of normal laws has a quarter of them."""
    seed: int = 0
    """Everything random follows from it."""
    eval_samples: int = 1000
    """K of the IWAE-K test likelihood."""
    annealing_steps: int = 50
    """Temperatures of annealed importance sampling, which then measures the networks instead of IWAE-K; 0 is off."""


_LARGER = Config(
    latent_dim=40, hidden=(400, 400), dropout=0.1, steps=12_000, components=500, eval_samples=500, annealing_steps=0
)
DEFAULTS = {name: dataclasses.replace(_LARGER, dataset=name) for name in ("mnist", "fashion_mnist")}
"""The configuration that `--dataset` starts from."""

Maker = Callable[[jax.Array], Entry]
"""A key -> a row."""


def row_names(config: Config) -> tuple[str, ...]:
    """The rows to make, in order; raises ValueError for one that this data set has not."""
    every = (*GREY, *TRAINED, "diffusion") if config.dataset == "digits" else (*BITS, *TRAINED)
    unknown = [name for name in config.rows if name not in every]
    if unknown:
        raise ValueError(f"rows must be among {', '.join(every)} for {config.dataset}, got {', '.join(unknown)}")
    return tuple(name for name in every if name in config.rows) if config.rows else every


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    check_counts(config, run, annealing_steps=0)
    if config.annealing_steps and config.eval_samples != Config.eval_samples:
        raise ValueError("eval_samples is read with annealing_steps 0 only: annealing measures the networks otherwise")
    row_names(config)
    makers(config, datasets.load("digits"), run)


def makers(config: Config, data: datasets.Dataset, run: Run) -> dict[str, Maker]:
    """How each row is made; networks are built here, so that a bad size is refused now."""
    shape, levels, count = data.train_images.shape[1:], data.levels, len(data.train_images)
    if config.components > count:
        raise ValueError(f"components must be at most the number of training images, {count}, got {config.components}")
    k, few = config.components, max(1, config.components // 4)
    pixels, short = ("bernoulli",) * 2 if levels == 2 else ("discretised_logistic_mixture", "logistic_mixture")
    shared: dict[str, Any] = {"levels": levels, "hidden": config.hidden, "dropout": config.dropout}
    plain = mlp_vae(shape, latent_dim=config.latent_dim, likelihood=pixels, **shared)
    prior = "flow" if {"flow_prior", "autoregressive"} & {*row_names(config)} else "standard"
    flow = mlp_vae(shape, latent_dim=config.latent_dim, likelihood=pixels, prior=prior, **shared)
    both = mlp_vae(shape, latent_dim=config.latent_dim, likelihood=f"autoregressive_{short}", prior=prior, **shared)
    # a level above the latents that the others have
    split = (max(1, config.latent_dim // 3), config.latent_dim)
    levels_of_latents = hierarchical_vae(shape, latent_dims=split, likelihood=pixels, **shared)

    def fitted(name: str, family: em.Family, **options) -> Maker:
        return lambda key: leaderboard.by_em(key, f"{name}, EM", family, data, **options)

    def trained(name: str, networks, samples: int) -> Maker:
        def make(key):
            key_train, key_test = jax.random.split(key)
            begin = time.perf_counter()
            with progress.Progress(config.steps, quiet=run.quiet) as bar:
                state = fit_vae(
                    key_train,
                    networks,
                    data.train_images,
                    samples=samples,
                    steps=config.steps,
                    on_chunk=lambda state, row: bar.update(row),
                )
            return leaderboard.by_vae(
                key_test,
                name,
                networks.bind(state.averaged),
                data,
                samples=config.eval_samples,
                annealing_steps=config.annealing_steps,
                parameters=count_parameters(state.params),
                seconds=time.perf_counter() - begin,
            )

        return make

    def diffusion(key):
        key_train, key_test = jax.random.split(key)
        begin, (low, high), steps = time.perf_counter(), DIFFUSION_ENDS, min(config.steps, DIFFUSION_STEPS)
        frequencies = log_frequencies(jnp.asarray(data.train_images), levels=levels)
        networks = mlp_denoiser(
            shape,
            prediction="levels",
            width=config.hidden[0],
            blocks=len(config.hidden),
            dropout=0.5,
            levels=levels,
            log_prior=frequencies,
        )
        with progress.Progress(steps, quiet=run.quiet) as bar:
            state = fit_denoiser(
                key_train,
                networks,
                embed_levels(jnp.asarray(data.train_images), levels=levels),
                low=low,
                high=high,
                steps=steps,
                on_chunk=lambda state, row: bar.update(row),
            )
        return leaderboard.by_diffusion(
            key_test,
            "diffusion",
            networks.chain(state.averaged),
            discretise(linear_gamma(low, high), DIFFUSION_TIMES),
            data,
            parameters=count_parameters(state.params),
            seconds=time.perf_counter() - begin,
        )

    slow: dict[str, Any] = {"tolerance": 1e-6, "restarts": 1}
    return {
        "counted": lambda key: leaderboard.counted(data),
        "categoricals": fitted(
            f"mixture of {k} categoricals", em.categorical_mixture(k, levels, smoothing=0.2), of_integers=True
        ),
        "bernoullis": fitted(f"mixture of {k} coins", em.bernoulli_mixture(k, smoothing=0.1), of_integers=True),
        "diagonal": fitted(f"mixture of {2 * k} diagonal normals", em.diagonal_gaussians(2 * k, floor=1 / 12)),
        "gaussians": fitted(f"mixture of {few} full normals", em.full_gaussians(few, floor=1 / 12)),
        "ppca": fitted("probabilistic PCA", em.ppca(min(50, data.train_images[0].size - 1)), **slow),
        "factors": fitted("factor analysis", em.factor_analysis(30, floor=1 / 12), **slow),
        "vae": trained("VAE trained on the ELBO", plain, 1),
        "iwae": trained(f"VAE trained on IWAE-{config.samples}", plain, config.samples),
        "hierarchical": trained(f"hierarchical VAE, IWAE-{config.samples}", levels_of_latents, config.samples),
        "flow_prior": trained(f"VAE with a flow prior, IWAE-{config.samples}", flow, config.samples),
        "autoregressive": trained(f"flow prior, pixels look back, IWAE-{config.samples}", both, config.samples),
        "diffusion": diffusion,
    }


def save(path: Path, entry: Entry) -> None:
    """Write a row so that a kill leaves the whole of it or nothing."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **(entry._asdict() | entry.evidence._asdict() | {"evidence": ()}))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def restore(path: Path) -> Entry:
    """Read what `save` wrote."""
    with np.load(path) as row:
        evidence = Evidence(jnp.asarray(row["nats"]), jnp.asarray(row["variance"]))
        texts, counts = (str(row["name"]), str(row["measured"])), (int(row["dimensions"]), int(row["parameters"]))
        return Entry(*texts, evidence, *counts, float(row["seconds"]))


def main(config: Config, run: Run) -> cards.Card:
    """Make the rows, write the page; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=128)
        if config.dataset != "digits":
            data = data.binarised((data.levels - 1) // 2)
        names, make = row_names(config), makers(config, data.on_device(), run)
        experiment = Experiment.open(f"likelihoods-{config.dataset}", config, run, begin=begin)

    with experiment.running():
        rows, folder = {}, experiment.folder.path / "rows"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            path = folder / f"{name}.npz"
            if path.exists():
                rows[name] = restore(path)
            else:
                rows[name] = make[name](jax.random.fold_in(jax.random.key(config.seed), number))
                save(path, rows[name])
            if not run.quiet:
                entry = rows[name]
                print(f"{number + 1}/{len(names)}  {entry.name}: {bits(entry).value:.3f} bits/dim, {entry.measured}, "
                      f"{entry.seconds:.0f} s", file=sys.stderr)  # fmt: skip
        entries = list(rows.values())
        about = f"{len(data.test_images)} test images of {config.dataset}, {data.levels} levels a pixel."
        document = page(
            "Likelihoods on the same integers",
            [leaderboard_section(entries, title="Leaderboard", about=about)],
            provenance={"command": experiment.provenance["command"], "seed": config.seed},
        )
        runs.write_atomically(experiment.folder.path / "index.html", document)
        if not run.quiet and not run.json:
            print(text_table(entries))
        numbers = {name: bits(entry) for name, entry in rows.items()}
        numbers["best_nats"] = nats(ranking(entries)[0])
        return experiment.finish(numbers, {"leaderboard": drawing(entries)})


def bits(entry: Entry) -> cards.Number:
    """Bits per dimension with their standard error over test images."""
    value, error, _ = entry.likelihood.bits_per_dim
    return cards.number(value, error, unit="bits/dim")


def nats(entry: Entry) -> cards.Number:
    """Nats per image."""
    value, error, _ = entry.likelihood.nats
    return cards.number(value, error, unit="nats")


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
