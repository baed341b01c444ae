"""Train a variational auto-encoder with two levels of latents, and say what each level is worth.

    python experiments/hierarchical_vae.py                                      # the 8x8 digits, a few minutes
    python experiments/hierarchical_vae.py --inference separate                 # no ladder: a posterior of its own
    python experiments/hierarchical_vae.py --dataset fashion_mnist --download   # or --data-files DIR, no network
    python experiments/hierarchical_vae.py --resume                             # go on after an interruption

z_top -> z_bottom -> x. A ladder infers z_bottom by weighing what the image says against what the generative path says,
each by its precision (Sønderby et al. 2016). The bound pays for both levels: KL(q(z_top|x) ‖ p(z_top)) and
KL(q(z_bottom|x, z_top) ‖ p(z_bottom|z_top)). A level whose KL is zero is not used: warm the KL up for the top; the
bottom fills first, as the path down starts without z_top. The run folder holds config.json, metrics.jsonl,
checkpoints/, pictures/ and card.json.
"""

import dataclasses
from typing import Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp

from vbjax import cards, datasets, evaluation, objectives, training
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks.heads import HEADS
from vbjax.networks.hierarchical_vae import LEVELS, HierarchicalVAENetworks, hierarchical_vae
from vbjax.reports import pictures
from vbjax.vae import VAE, code, grouped_elbo


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; the defaults are those of the data set that `--dataset` names. Two runs with the same
    configuration give the same bits on the same machine.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; the digits are judged on grey levels, the others on bits: pixels above half range."""
    inference: Literal["ladder", "separate"] = "ladder"
    """How z_bottom is inferred: along the generative path, or by networks of its own."""
    likelihood: Literal[
        "bernoulli",
        "categorical",
        "discretised_logistic_mixture",
        "autoregressive_bernoulli",
        "autoregressive_logistic_mixture",
    ] = "autoregressive_logistic_mixture"
    """p(x|z_bottom): bernoulli ones for bits, the others for grey levels. In autoregressive ones a pixel also looks
    back, linearly, at those before it: weights for every pair of pixels."""
    latent_dims: tuple[int, int] = (8, 24)
    """Dimensions of z_top and z_bottom."""
    hidden: tuple[int, ...] = (512, 512)
    """Hidden widths between the pixels and z_bottom; the decoder mirrors them."""
    hidden_top: tuple[int, ...] = (128,)
    """Hidden widths between z_bottom and z_top."""
    dropout: float = 0.2
    """Dropout in the hidden layers while training, in [0, 1)."""
    samples: int = 5
    """Draws of z per example while training: 1 is the ELBO, more the IWAE bound."""
    warmup_steps: int = 0
    """Steps over which the weight of the KL grows from 0, for one sample."""
    steps: int = 2500
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam, which falls to zero along a cosine."""
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


_BITS = Config(
    likelihood="autoregressive_bernoulli",
    latent_dims=(16, 40),
    hidden=(400, 400),
    dropout=0.1,
    samples=1,
    warmup_steps=2000,
    steps=12_000,
    eval_samples=100,
)
DEFAULTS = {
    "digits": Config(),
    "mnist": dataclasses.replace(_BITS, dataset="mnist"),
    "fashion_mnist": dataclasses.replace(_BITS, dataset="fashion_mnist"),
}
"""The configuration that `--dataset` starts from."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    if (HEADS[config.likelihood].reads == "bits") != (config.dataset != "digits"):
        raise ValueError(
            f"likelihood {config.likelihood!r} does not go with {config.dataset}: bernoulli and "
            "autoregressive_bernoulli read bits, the others the grey levels of the digits"
        )
    check_counts(config, run, warmup_steps=0, validation=0)
    if config.warmup_steps and config.samples > 1:
        raise ValueError(f"warmup_steps weigh the ELBO's KL: samples 1, got {config.samples}, or warmup_steps 0")
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    build(config, (8, 8), 17 if config.dataset == "digits" else 2)


def make_optimizer(config: Config):
    """Adam as configured."""
    return training.make_optimizer(
        learning_rate=config.learning_rate, schedule="cosine", steps=config.steps, clip_norm=config.clip_norm
    )


def build(config: Config, image_shape: tuple[int, ...], levels: int) -> HierarchicalVAENetworks:
    """The networks for such images: bits where there are two levels."""
    return hierarchical_vae(
        image_shape,
        likelihood=config.likelihood,
        levels=levels,
        latent_dims=config.latent_dims,
        hidden=config.hidden,
        hidden_top=config.hidden_top,
        inference=config.inference,
        dropout=config.dropout,
    )


def make_loss(config: Config, networks: HierarchicalVAENetworks) -> training.Loss:
    """The loss of a batch `(images, step)`."""

    def loss(key, params, batch):
        images, step = batch
        weight = objectives.ramp(step, config.warmup_steps)
        objective = objectives.beta_elbo(weight) if config.warmup_steps else objectives.elbo
        return networks.loss(samples=config.samples, objective=objective)(key, params, images)

    return loss


def evaluate(key, vae: VAE, images, samples: int) -> dict[str, cards.Number]:
    """Test numbers with their standard errors over examples, in nats unless named otherwise."""
    key_elbo, key_iwae = jax.random.split(key)

    @jax.jit
    def measure(images):
        terms = jax.lax.map(
            lambda example: grouped_elbo(example[0], vae, example[1]),
            (jax.random.split(key_elbo, images.shape[0]), images),
            batch_size=256,
        )
        # memory: batch_size x samples decodings at once
        likelihood = evaluation.importance_weighted_nll(
            key_iwae, vae, images, samples=samples, batch_size=max(1, 4000 // samples)
        )
        return terms, likelihood, jax.lax.map(lambda x: code(vae, x), images, batch_size=256)

    terms, likelihood, codes = measure(images)
    nats = {
        "negative_elbo": evaluation.over_examples(terms.kls.sum(1) - terms.reconstruction),
        "reconstruction": evaluation.over_examples(terms.reconstruction),
        **{name: evaluation.over_examples(kl) for name, kl in zip(LEVELS, terms.kls.T, strict=True)},
        f"iwae_{samples}_nll": likelihood.nats,
    }
    bits = likelihood.bits_per_dim
    return {
        **{name: cards.number(e.value, e.standard_error, unit="nats") for name, e in nats.items()},
        "bits_per_dim": cards.number(bits.value, bits.standard_error, unit="bits/dim"),
        "monte_carlo_error": cards.number(likelihood.monte_carlo_error, unit="nats"),
        "active_top": cards.number(evaluation.active_units(codes[0]), unit="units"),
        "active_bottom": cards.number(evaluation.active_units(codes[1]), unit="units"),
    }


def draw(key, vae: VAE, images, labels) -> dict:
    """The pictures: reconstructions, samples, what each level decides, the codes of each level."""
    key_samples, key_levels = jax.random.split(key)
    codes = jax.lax.map(lambda x: code(vae, x), images, batch_size=256)
    return {
        "reconstructions": pictures.reconstructions(vae, images[:12]),
        "samples": pictures.samples(key_samples, vae, count=40),
        "levels": levels(key_levels, vae),
        "codes_top": pictures.latent_map(codes[0], labels),
        "codes_bottom": pictures.latent_map(codes[1], labels),
    }


def levels(key, vae: VAE, *, rows: int = 3, columns: int = 12):
    """Means of p(x|z) while one level is drawn anew along a row and the noise of the other stays."""
    first, second = vae.prior.noise().sample(key, (rows * columns,))

    def sheet(top, bottom):
        z = jax.vmap(vae.prior.transport)((top, bottom))
        means = jax.vmap(lambda z: vae.decode(z).centre())(z)
        return list(means.reshape(rows, columns, *means.shape[1:]))

    fixed = jnp.arange(rows * columns) // columns
    drawn = [*sheet(first[fixed], second), *sheet(first, second[fixed])]
    names = ["z_bottom anew", *[""] * (rows - 1), "z_top anew", *[""] * (rows - 1)]
    return pictures.sheet(drawn, names)


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=config.batch_size, validation=config.validation)
        if config.dataset != "digits":
            data = data.binarised((data.levels - 1) // 2)
        data = data.on_device()
        networks, optimizer = build(config, data.train_images.shape[1:], data.levels), make_optimizer(config)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open(f"hierarchical-vae-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        batch = datasets.batches(key_data, data.train_images, config.batch_size)
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
        vae, images = networks.bind(state.averaged), jnp.asarray(data.test_images, jnp.float32)
        numbers = evaluate(key_eval, vae, images, config.eval_samples)
        return experiment.finish(numbers, draw(key_pictures, vae, images, jnp.asarray(data.test_labels)))


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
