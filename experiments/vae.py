"""Train a variational auto-encoder with multi-layer perceptrons, and say what it is worth on the test split.

    python experiments/vae.py                                       # the 8x8 digits, about a minute
    python experiments/vae.py --dataset fashion_mnist --download    # or --data-files DIR without a network
    python experiments/vae.py --resume                              # go on after an interruption

The run folder holds config.json, metrics.jsonl, checkpoints/, pictures/ and card.json: test ELBO by its terms, the
IWAE-K likelihood with its standard error, bits per dimension, active units.
"""

import dataclasses
from typing import Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp

from vbjax import cards, datasets, evaluation, training
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
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


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    if (config.likelihood == "bernoulli") != (config.binarise != "none"):
        raise ValueError(
            f"likelihood {config.likelihood!r} does not go with binarise {config.binarise!r}: bernoulli reads bits, "
            "the others grey levels"
        )
    check_counts(config, run)
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    build(config, (8, 8), 17)


def make_optimizer(config: Config):
    """Adam as configured."""
    return training.make_optimizer(
        learning_rate=config.learning_rate, schedule=config.schedule, steps=config.steps, clip_norm=config.clip_norm
    )


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


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=config.batch_size)
        if config.binarise == "static":
            data = data.binarised((data.levels - 1) // 2)
        data = data.on_device()
        networks, optimizer = build(config, data.train_images.shape[1:], data.levels), make_optimizer(config)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open(f"vae-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        loss = networks.loss(
            samples=config.samples,
            binarise_dynamically_from=data.levels if config.binarise == "dynamic" else None,
        )
        batch = datasets.batches(key_data, data.train_images, config.batch_size)
        state = experiment.train(
            key_train, loss, batch, optimizer, state, steps=config.steps, ema_decay=config.ema_decay
        )
        key_bits, key_eval, key_pictures = jax.random.split(key_test, 3)
        images = test_images(key_bits, config, data)
        numbers = evaluate(key_eval, networks, state.averaged, images, config.eval_samples)
        vae, labels = networks.bind(state.averaged), jnp.asarray(data.test_labels)
        return experiment.finish(numbers, pictures.latent_variable_model(key_pictures, vae, images, labels))


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
