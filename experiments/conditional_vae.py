"""Train a class-conditional VAE, and say what it is worth and what its code means.

    python experiments/conditional_vae.py                                       # the 8x8 digits, a minute or two
    python experiments/conditional_vae.py --dataset fashion_mnist --download    # or --data-files DIR, no network
    python experiments/conditional_vae.py --resume                              # go on after an interruption

The label enters encoder and decoder, so the code holds what the label leaves open: slant, thickness, size. Look at
pictures/analogies.png first: one test image a row, drawn again as every class at the same code. The card holds bounds
on log p(x|y) and on log p(x) = log Σ_y p(y) p(x|y), which compares with unconditional models on the same pixels, the
accuracy of the Bayes classifier that the bounds make, and how much of the style survives a change of class.
"""

import dataclasses
import math
from typing import Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp

from vbjax import cards, conditional, datasets, evaluation, latent_space, objectives, training
from vbjax.distributions import Categorical
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks.conditional_vae import CVAENetworks, mlp_cvae
from vbjax.reports import latent_pictures

CLASSES = 10
STYLE_IMAGES = 1000
"""Test images whose style is followed through all classes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; the defaults are those of the data set that `--dataset` names. Two runs with the same
    configuration give the same bits on the same machine.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets."""
    binarise: Literal["none", "static"] = "none"
    """Pixels to bits by a threshold at half range, or grey levels as they are."""
    likelihood: Literal["bernoulli", "categorical", "discretised_logistic", "discretised_logistic_mixture"] = (
        "discretised_logistic_mixture"
    )
    """p(x|z,y): bernoulli for bits, one of the others for grey levels."""
    latent_dim: int = 8
    """Dimension of z. Few coordinates leave the class to the label, and style carries over."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of the encoder; the decoder mirrors them."""
    activation: Literal["relu", "silu", "gelu", "tanh"] = "relu"
    """Non-linearity of the hidden layers."""
    dropout: float = 0.1
    """Dropout in the hidden layers while training, in [0, 1)."""
    samples: int = 1
    """Draws of z per example while training: 1 is the ELBO with its exact KL, more the IWAE bound."""
    beta_start: float = 1.0
    """Weight of the KL at first; falls to 1, the ELBO itself, half-way. A dear code leaves the class to the label."""
    steps: int = 3000
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam, which falls to zero along a cosine."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated; 0 switches it off."""
    seed: int = 0
    """Everything random follows from it."""
    eval_samples: int = 200
    """K of the IWAE-K test likelihoods, for each of the ten classes."""


_BITS = Config(
    binarise="static",
    likelihood="bernoulli",
    latent_dim=8,
    hidden=(400, 400),
    beta_start=20.0,
    steps=6000,
    eval_samples=20,
)
DEFAULTS = {
    "digits": Config(),
    "mnist": dataclasses.replace(_BITS, dataset="mnist"),
    "fashion_mnist": dataclasses.replace(_BITS, dataset="fashion_mnist"),
}
"""The configuration that `--dataset` starts from."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    if (config.likelihood == "bernoulli") != (config.binarise == "static"):
        raise ValueError(
            f"likelihood {config.likelihood!r} does not go with binarise {config.binarise!r}: bernoulli reads bits, "
            "the others grey levels"
        )
    check_counts(config, run)
    if not 1 <= config.beta_start < math.inf or (config.beta_start > 1 and config.samples > 1):
        raise ValueError(f"beta_start must be at least 1, and 1 with several samples, got {config.beta_start}")
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    build(config, (8, 8), 2 if config.binarise == "static" else 17)


def make_optimizer(config: Config):
    """Adam as configured."""
    return training.make_optimizer(
        learning_rate=config.learning_rate, schedule="cosine", steps=config.steps, clip_norm=100.0
    )


def build(config: Config, image_shape: tuple[int, ...], levels: int) -> CVAENetworks:
    """The networks for such images."""
    return mlp_cvae(
        image_shape,
        classes=CLASSES,
        likelihood=config.likelihood,
        levels=levels,
        latent_dim=config.latent_dim,
        hidden=config.hidden,
        activation=config.activation,
        dropout=config.dropout,
    )


def make_loss(config: Config, networks: CVAENetworks):
    """The loss on `((images, labels), step)`."""

    def loss(key, params, batch):
        examples, step = batch
        if config.beta_start == 1:
            return networks.loss(samples=config.samples)(key, params, examples)
        beta = config.beta_start + (1 - config.beta_start) * objectives.ramp(step, max(1, config.steps // 2))
        return networks.loss(objective=objectives.beta_elbo(beta))(key, params, examples)

    return loss


def likelihoods(key, networks: CVAENetworks, params, data: datasets.Dataset, samples: int) -> dict[str, cards.Number]:
    """Test bounds with their standard errors over examples, and the accuracy of Bayes' rule."""
    class_prior = Categorical(jnp.log(jnp.bincount(data.train_labels, length=CLASSES).astype(jnp.float32)))
    images, labels = jnp.asarray(data.test_images, jnp.float32), jnp.asarray(data.test_labels)
    # memory: batch_size x samples decodings at once
    batch_size = max(1, 4000 // samples)

    @jax.jit
    def measure(params, images):
        cvae = networks.bind(params)
        return conditional.class_evidence(key, cvae, class_prior, images, samples=samples, batch_size=batch_size)

    evidence = measure(params, images)
    dimensions = images[0].size
    given_class = evidence.at(labels).likelihood(dimensions)
    unconditional = evidence.marginal().likelihood(dimensions)
    right = evaluation.over_examples((evidence.log_posterior().argmax(1) == labels).astype(jnp.float32))
    estimates = {
        "nll_given_class": (given_class.nats, "nats"),
        "nll": (unconditional.nats, "nats"),
        "bits_per_dim_given_class": (given_class.bits_per_dim, "bits/dim"),
        "bits_per_dim": (unconditional.bits_per_dim, "bits/dim"),
        "bayes_accuracy": (right, "fraction"),
    }
    return {
        **{name: cards.number(e.value, e.standard_error, unit=unit) for name, (e, unit) in estimates.items()},
        "monte_carlo_error": cards.number(unconditional.monte_carlo_error, unit="nats"),
    }


def style(networks: CVAENetworks, params, data: datasets.Dataset) -> dict[str, cards.Number]:
    """How test images drawn as other classes keep their style, and whether they are of that class for an outsider.

    The outsider is the nearest training image; on the test images themselves its accuracy is `nearest_accuracy`.
    `class_in_codes`: of the codes' variance, what lies between the means of the classes; 0 is a code without class.
    """
    images, labels = jnp.asarray(data.test_images, jnp.float32)[:STYLE_IMAGES], jnp.asarray(data.test_labels)
    labels, known = labels[:STYLE_IMAGES], jnp.asarray(data.train_images[:10_000], jnp.float32)
    known_labels = jnp.asarray(data.train_labels)[:10_000]

    @jax.jit
    def measure(params, images, labels, known):
        cvae = networks.bind(params)
        drawn = jax.vmap(lambda x, y: latent_space.analogies(cvae, x, y, classes=CLASSES))(images, labels)

        seen = jax.lax.map(lambda images: conditional.nearest_label(known, known_labels, images), drawn)
        other = labels[:, None] != jnp.arange(CLASSES)[None]
        as_asked = (other & (seen == jnp.arange(CLASSES)[None])).sum(1) / (CLASSES - 1)
        itself = conditional.nearest_label(known, known_labels, images) == labels
        kept = latent_space.style_kept(drawn, images, labels)
        codes = jax.vmap(lambda x, y: cvae.encode(x, y).mean())(images, labels)
        own = jax.nn.one_hot(labels, CLASSES)
        class_means = own @ (own.T @ codes / own.sum(0)[:, None])
        leaked = class_means.var(0).sum() / codes.var(0).sum()
        return kept, evaluation.over_examples(as_asked), evaluation.over_examples(itself.astype(jnp.float32)), leaked

    kept, as_asked, itself, leaked = measure(params, images, labels, known)
    return {
        **{f"{name}_kept": cards.number(e.value, e.standard_error, unit="correlation") for name, e in kept.items()},
        "analogies_of_class": cards.number(as_asked.value, as_asked.standard_error, unit="fraction"),
        "nearest_accuracy": cards.number(itself.value, itself.standard_error, unit="fraction"),
        "class_in_codes": cards.number(leaked, unit="fraction of their variance"),
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
        experiment = Experiment.open(f"conditional-vae-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        batch = datasets.batches(key_data, (data.train_images, data.train_labels), config.batch_size)
        state = experiment.train(
            key_train,
            make_loss(config, networks),
            datasets.numbered(batch),
            optimizer,
            state,
            steps=config.steps,
            ema_decay=config.ema_decay,
        )
        key_eval, key_pictures = jax.random.split(key_test)
        numbers = likelihoods(key_eval, networks, state.averaged, data, config.eval_samples)
        numbers |= style(networks, state.averaged, data)
        images, labels = jnp.asarray(data.test_images, jnp.float32), jnp.asarray(data.test_labels)
        figures = latent_pictures.conditional_model(
            key_pictures,
            networks.bind(state.averaged),
            images[:STYLE_IMAGES],
            labels[:STYLE_IMAGES],
            names=data.class_names,
        )
        return experiment.finish(numbers, figures)


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
