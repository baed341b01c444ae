"""Train a variational auto-encoder, and say what it is worth on the test split.

    python experiments/vae.py                                       # the 8x8 digits, about a minute
    python experiments/vae.py --dataset fashion_mnist --download    # or --data-files DIR without a network
    python experiments/vae.py --encoder flow --prior vamp --body conv
    python experiments/vae.py --objective beta --beta 4 --samples 1 --warmup-steps 500
    python experiments/vae.py --annealed-images 450                 # log p(x) from both sides; where the bound is lost
    python experiments/vae.py --latent-dim 8 --validation 300       # choose settings without a look at the test split
    python experiments/vae.py --resume                              # go on after an interruption

Posterior, prior, body, likelihood and objective combine freely; what does not go together is refused before any work.
The run folder holds config.json, metrics.jsonl, checkpoints/, pictures/ and card.json: test ELBO by its terms, the
IWAE-K likelihood with its standard error, active units, and bits per dimension where the pixels are integers. The
continuous Bernoulli and normal likelihoods are densities of pixels in [0, 1], which compare with no bits per dimension.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp

from vbjax import amortisation, bounds, cards, datasets, evaluation, objectives, progress, training
from vbjax.annealing import sigmoidal_betas
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks.heads import HEADS
from vbjax.networks.priors import VampPrior
from vbjax.networks.vae import VAENetworks, conv_vae, mlp_vae
from vbjax.objectives import Objective
from vbjax.reports import pictures
from vbjax.vae import VAE

Likelihood = Literal[
    "bernoulli",
    "categorical",
    "discretised_normal",
    "discretised_logistic",
    "discretised_logistic_mixture",
    "autoregressive_bernoulli",
    "autoregressive_logistic_mixture",
    "continuous_bernoulli",
    "normal_fixed",
    "normal_shared",
    "normal_per_pixel",
    "normal_predicted",
]
READ_BY: dict[str, tuple[str, ...]] = {
    "elbo": (),
    "iwae": (),
    "renyi": ("alpha",),
    "beta": ("beta",),
    "capacity": ("capacity", "gamma"),
    "free_bits": ("free_nats",),
}
"""The options that each objective reads."""
SEVERAL = ("iwae", "renyi")
"""Objectives of several draws of z; the others take one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; the defaults are those of the data set that `--dataset` names. Two runs with the same
    configuration give the same bits on the same machine.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets."""
    binarise: Literal["none", "static", "dynamic"] = "none"
    """Pixels to bits: by a threshold at half range, or by a fresh draw at every step."""
    likelihood: Likelihood = "autoregressive_logistic_mixture"
    """p(x|z): bernoulli ones for bits; continuous and normal ones are densities; the others are for grey levels. In
    autoregressive ones a pixel also looks back, linearly, at those before it: weights for every pair of pixels."""
    body: Literal["mlp", "conv"] = "mlp"
    """Perceptrons or convolutions, in encoder and decoder."""
    encoder: Literal["diagonal", "full", "flow"] = "diagonal"
    """q(z|x): normal with independent coordinates or a full covariance, or a coupling flow."""
    prior: Literal["standard", "mixture", "vamp", "flow"] = "standard"
    """p(z): N(0, I), or learned: 16 normal laws, the posteriors of 64 pseudo-inputs, a coupling flow."""
    latent_dim: int = 24
    """Dimension of z."""
    hidden: tuple[int, ...] = (512, 512)
    """Hidden widths of the encoder, after its convolutions if it has any; the decoder mirrors them."""
    features: tuple[int, ...] = (32, 64)
    """Channels of the convolutions, each of which halves the image."""
    activation: Literal["relu", "silu", "gelu", "tanh"] = "relu"
    """Non-linearity of the hidden layers."""
    dropout: float = 0.2
    """Dropout in the hidden layers while training, in [0, 1)."""
    objective: Literal["elbo", "iwae", "renyi", "beta", "capacity", "free_bits"] = "iwae"
    """What is maximised. Only elbo, iwae and renyi (alpha >= 0) are bounds on log p(x)."""
    samples: int = 5
    """Draws of z per example while training: several for iwae and renyi, 1 for the others."""
    alpha: float = 0.5
    """renyi: its order; 1 is the ELBO, 0 the IWAE bound."""
    beta: float = 4.0
    """beta: weight of the KL."""
    capacity: float = 25.0
    """capacity: nats that the KL is held at."""
    gamma: float = 100.0
    """capacity: price of a nat of KL beside the capacity."""
    free_nats: float = 0.1
    """free_bits: nats per coordinate of z below which the KL costs nothing more."""
    warmup_steps: int = 0
    """Steps over which the weight of the KL (elbo, beta) or the capacity grows from 0."""
    svi_steps: int = 0
    """Semi-amortised inference: steps up the ELBO of each image, by stochastic variational inference from the encoder's
    answer, in training (which differentiates through them) and in the evaluation; 0 is off."""
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
    validation: int = 0
    """Training images to hold out and report on in place of the test split; 0 trains on all and reports the test."""
    annealed_images: int = 0
    """Test images for annealed importance sampling: a sharper log p(x), how sharp on images drawn from the model, and
    the gap to the ELBO split into what the family of posteriors and what the encoder loses; 0 is off."""


SVI_RATE = 0.02
"""Learning rate of Adam in the search of semi-amortised inference."""
ANNEALING_STEPS, LEAPFROG_STEPS, SEARCH_STEPS = 50, 4, 200
"""Temperatures, steps of each transition, and steps of the search for the best posterior of an image."""
_LARGER = Config(
    likelihood="discretised_logistic_mixture",
    latent_dim=40,
    hidden=(400, 400),
    dropout=0.1,
    objective="elbo",
    samples=1,
    steps=12_000,
    eval_samples=100,
)
_BITS = dataclasses.replace(_LARGER, binarise="static", likelihood="autoregressive_bernoulli", eval_samples=500)
DEFAULTS = {
    "digits": Config(),
    "mnist": dataclasses.replace(_BITS, dataset="mnist"),
    "fashion_mnist": dataclasses.replace(_BITS, dataset="fashion_mnist"),
    "cifar10": dataclasses.replace(_LARGER, dataset="cifar10"),
}
"""The configuration that `--dataset` starts from."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    if (HEADS[config.likelihood].reads == "bits") != (config.binarise != "none"):
        raise ValueError(
            f"likelihood {config.likelihood!r} does not go with binarise {config.binarise!r}: bernoulli and "
            "autoregressive_bernoulli read bits, the others grey levels"
        )
    check_counts(config, run, warmup_steps=0, annealed_images=0, svi_steps=0, validation=0)
    if config.svi_steps and config.encoder == "flow":
        raise ValueError("svi_steps need encoder 'diagonal' or 'full': a flow has no parameters of its own to climb in")
    if config.annealed_images == 1:
        raise ValueError("annealed_images must be 0 or at least 2 for a standard error, got 1")
    if config.body != "conv" and config.features != Config.features:
        raise ValueError("features are read by body 'conv' only")
    check_objective(config)
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    build(config, (8, 8) if config.dataset == "digits" else (28, 28), 17)


def check_objective(config: Config) -> None:
    """Raise ValueError for what the objective cannot do, or would leave unread."""
    read = READ_BY[config.objective]
    for reader, options in READ_BY.items():
        for name in options:
            if name not in read and getattr(config, name) != getattr(Config, name):
                raise ValueError(f"{name} is read by objective {reader!r} only, not by {config.objective!r}")
    if (config.samples > 1) != (config.objective in SEVERAL):
        wanted = "at least 2" if config.objective in SEVERAL else "1"
        raise ValueError(
            f"samples must be {wanted} for objective {config.objective!r}, got {config.samples}; several draws are for "
            "iwae and renyi"
        )
    if config.warmup_steps and config.objective not in ("elbo", "beta", "capacity"):
        raise ValueError(f"warmup_steps go with elbo, beta and capacity, not with objective {config.objective!r}: 0")
    if config.objective == "free_bits" and (config.encoder, config.prior) != ("diagonal", "standard"):
        raise ValueError(
            "objective 'free_bits' needs the KL by coordinate: encoder 'diagonal' and prior 'standard', got "
            f"{config.encoder!r} and {config.prior!r}"
        )
    if config.objective == "renyi":
        bounds.renyi(config.alpha)
    objective_at(config, config.warmup_steps)


def objective_at(config: Config, step: Any) -> Objective:
    """What is maximised at this step, of the ELBO's terms; with several samples it is the bound instead."""
    share = objectives.ramp(step, config.warmup_steps) if config.warmup_steps else 1
    match config.objective:
        case "beta":
            return objectives.beta_elbo(config.beta * share)
        case "capacity":
            return objectives.capacity(config.capacity * share, gamma=config.gamma)
        case "free_bits":
            return objectives.free_bits(config.free_nats)
    return objectives.beta_elbo(share) if config.warmup_steps else objectives.elbo


def make_loss(config: Config, networks: VAENetworks, grey_levels: int) -> training.Loss:
    """The loss of a batch `(images of grey levels, step)`."""

    def loss(key, params, batch):
        images, step = batch
        negative_bound = networks.loss(
            samples=config.samples,
            bound=bounds.renyi(config.alpha) if config.objective == "renyi" else bounds.iwae,
            objective=objective_at(config, step),
            binarise_dynamically_from=grey_levels if config.binarise == "dynamic" else None,
            refine=partial(refined, config) if config.svi_steps else None,
        )
        return negative_bound(key, params, as_read(config, images, grey_levels))

    return loss


def refined(config: Config, key, vae: VAE) -> VAE:
    """The model with the encoder's answers improved by SVI."""
    optimizer = training.make_optimizer(learning_rate=SVI_RATE, schedule="constant", steps=config.svi_steps)
    return amortisation.semi_amortised(key, vae, optimizer, steps=config.svi_steps, family=family(config))


def family(config: Config) -> amortisation.Family:
    """The laws that a search for the best posterior moves in."""
    return amortisation.FULL_COVARIANCE if config.encoder == "full" else amortisation.DIAGONAL


def as_read(config: Config, images, grey_levels: int):
    """Grey levels as the likelihood reads them."""
    if HEADS[config.likelihood].reads == "unit interval":
        return images.astype(jnp.float32) / (grey_levels - 1)
    return images


def make_optimizer(config: Config):
    """Adam as configured."""
    return training.make_optimizer(
        learning_rate=config.learning_rate, schedule=config.schedule, steps=config.steps, clip_norm=config.clip_norm
    )


def build(config: Config, image_shape: tuple[int, ...], grey_levels: int) -> VAENetworks:
    """The networks for such images."""
    shared: dict[str, Any] = {
        "likelihood": config.likelihood,
        "levels": grey_levels if config.binarise == "none" else 2,
        "latent_dim": config.latent_dim,
        "hidden": config.hidden,
        "activation": config.activation,
        "dropout": config.dropout,
        "encoder": config.encoder,
        "prior": config.prior,
    }
    if config.body == "conv":
        return conv_vae(image_shape, features=config.features, **shared)
    return mlp_vae(image_shape, **shared)


def fresh_parameters(key, networks: VAENetworks, data: datasets.Dataset):
    """Parameters before training; pseudo-inputs start at training images."""
    params = jax.jit(networks.init)(key)
    prior = networks.prior
    if isinstance(prior, VampPrior):
        images = data.train_images[: prior.components] * (prior.largest / (data.levels - 1))
        params["prior"] = prior.init_from(images)
    return params


def test_images(key, config: Config, data: datasets.Dataset):
    """Test images as the model reads them; dynamic bits are drawn once, from the run's seed."""
    if config.binarise != "dynamic":
        return as_read(config, jnp.asarray(data.test_images, jnp.float32), data.levels)
    keys = jax.random.split(key, data.test_images.shape[0])
    bits = jax.vmap(lambda key, image: datasets.dynamic_binarise(key, image, data.levels))(keys, data.test_images)
    return bits.astype(jnp.float32)


def evaluate(
    key, bind: Callable[[Any], VAE], params, images, samples: int, *, discrete: bool = True
) -> dict[str, cards.Number]:
    """Test numbers with their standard errors over examples, in nats unless named otherwise.

    discrete: whether the likelihood is one of integers, which bits per dimension compare.
    """
    key_elbo, key_iwae = jax.random.split(key)

    @jax.jit
    def measure(params, images):
        vae = bind(params)
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
    }
    if discrete:
        estimates["bits_per_dim"] = (likelihood.bits_per_dim, "bits/dim")
    return {
        **{name: cards.number(e.value, e.standard_error, unit=unit) for name, (e, unit) in estimates.items()},
        "monte_carlo_error": cards.number(likelihood.monte_carlo_error, unit="nats"),
        "active_units": cards.number(evaluation.active_units(codes), unit="units"),
    }


def annealed(key, config: Config, vae: VAE, images, *, quiet: bool) -> dict[str, cards.Number]:
    """-log p(x) by annealing, its bracket on images drawn from the model, and the two parts of the inference gap.

    The gap is left out for a flow, whose best member no search finds.
    """
    key_tune, key_chains, key_drawn, key_gaps = jax.random.split(key, 4)
    plan = evaluation.tune_annealing(
        key_tune, vae, images[:16], sigmoidal_betas(ANNEALING_STEPS), leapfrog_steps=LEAPFROG_STEPS
    )
    with progress.Progress(len(images), quiet=quiet, unit="images") as bar:
        evidence = evaluation.annealed_evidence(key_chains, vae, images, plan, on_chunk=bar.update)
    bracket = jax.jit(lambda key: evaluation.bidirectional_bounds(key, vae, plan, count=64))(key_drawn)
    found = {"ais_nll": evaluation.over_examples(-evidence.nats), "bracket_of_draws": bracket.gap}
    if config.encoder != "flow":
        gaps = amortisation.inference_gaps(
            key_gaps,
            vae,
            images,
            evidence.nats,
            training.make_optimizer(learning_rate=0.02, schedule="cosine", steps=SEARCH_STEPS),
            steps=SEARCH_STEPS,
            family=family(config),
        )
        found |= {"approximation_gap": gaps.approximation, "amortisation_gap": gaps.amortisation}
    return {name: cards.number(e.value, e.standard_error, unit="nats") for name, e in found.items()}


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=config.batch_size, validation=config.validation)
        if config.binarise == "static":
            data = data.binarised((data.levels - 1) // 2)
        if config.annealed_images > len(data.test_images):
            raise ValueError(f"annealed_images must be at most the {len(data.test_images)} test images")
        data = data.on_device()
        networks, optimizer = build(config, data.train_images.shape[1:], data.levels), make_optimizer(config)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(fresh_parameters(key_init, networks, data), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open(f"vae-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        batch = datasets.batches(key_data, data.train_images, config.batch_size)
        state = experiment.train(
            key_train,
            make_loss(config, networks, data.levels),
            datasets.numbered(batch),
            optimizer,
            state,
            steps=config.steps,
            ema_decay=config.ema_decay,
        )
        key_bits, key_eval, key_annealed, key_pictures, key_search = jax.random.split(key_test, 5)

        def bind(params) -> VAE:
            vae = networks.bind(params)
            return refined(config, key_search, vae) if config.svi_steps else vae

        images = test_images(key_bits, config, data)
        discrete = HEADS[config.likelihood].reads != "unit interval"
        numbers = evaluate(key_eval, bind, state.averaged, images, config.eval_samples, discrete=discrete)
        vae, labels = bind(state.averaged), jnp.asarray(data.test_labels)
        if config.annealed_images:
            some = images[: config.annealed_images]
            numbers |= annealed(key_annealed, config, vae, some, quiet=run.quiet)
        return experiment.finish(numbers, pictures.latent_variable_model(key_pictures, vae, images, labels))


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
