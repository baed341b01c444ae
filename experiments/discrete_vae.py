"""Train a VAE with discrete latents by any gradient estimator, and watch the variance of its gradient.

    python experiments/discrete_vae.py                                               # the 8x8 digits, RLOO
    python experiments/discrete_vae.py --dataset fashion_mnist --estimator disarm    # --data-files DIR, no network
    python experiments/discrete_vae.py --estimator relax --resume                    # go on after an interruption

The set-up of Dong et al. (2020): 200 Bernoulli latents, pixels binarised afresh at every step, a linear model or two
hidden layers of 200. `vbjax study --list` lists the estimators. The run folder holds config.json, metrics.jsonl
(training bound, variance and signal-to-noise ratio of the encoder's gradient), checkpoints/, pictures/ and card.json.
"""

import dataclasses
import time
from typing import Any, Literal, NamedTuple

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from vbjax import cards, datasets, evaluation, training
from vbjax.estimators import catalogue
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks.discrete_vae import DiscreteVAENetworks, discrete_vae
from vbjax.reports import pictures
from vbjax.types import GradientEstimator

GRADIENT_DRAWS = 32
"""Gradients of one batch behind each variance that is logged."""
JUDGED = 1000
"""Training examples whose ELBO is logged."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed. Two runs with the same configuration give the same bits on the same machine."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets."""
    estimator: str = "rloo"
    """Gradient estimator by name, as `vbjax study --list` shows them."""
    samples: int = 2
    """Samples per estimate."""
    latents: Literal["bernoulli", "categorical"] = "bernoulli"
    """Kind of latent."""
    latent_shape: tuple[int, ...] = (200,)
    """(d,) bits, or (d, k) for d categorical latents with k outcomes."""
    hidden: tuple[int, ...] = ()
    """Hidden widths; empty is the linear model, 200 200 the nonlinear one of the literature."""
    steps: int = 2000
    """Training steps."""
    batch_size: int = 50
    """Examples per step."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    estimator_learning_rate: float = 1e-3
    """Learning rate of Adam for what the estimator itself learns (nvil, tuned_rebar, relax)."""
    log_every: int = 1000
    """Steps between rows of metrics: bound on training data, variance and signal-to-noise ratio of the gradient."""
    seed: int = 0
    """Everything random follows from it."""
    eval_samples: int = 100
    """K of the IWAE-K test likelihood."""


class Setup(NamedTuple):
    """What was asked for, and what it makes."""

    config: Config
    data: datasets.Dataset
    networks: DiscreteVAENetworks
    estimator: GradientEstimator
    optimizer: Any


def validate(config: Config, run: Run) -> None:
    """Raise ValueError or NotAvailable, naming the way out, for whatever can be refused without the data."""
    check_counts(config, run)
    networks = build(config, np.full((8, 8), 0.5))
    estimator = make_estimator(config)
    state = jax.eval_shape(lambda key: networks.init(key, estimator), jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 8, 8), jnp.uint8)
    loss = networks.loss(estimator, levels=17, bound=catalogue.METHODS[config.estimator].bound)
    jax.eval_shape(jax.grad(loss, argnums=1, has_aux=True), jax.random.key(0), state, images)


def make_estimator(config: Config) -> GradientEstimator:
    """The estimator by name; one that learns does so by Adam."""
    method = catalogue.METHODS.get(config.estimator)
    optimizer = training.make_optimizer(learning_rate=config.estimator_learning_rate)
    options = {"optimizer": optimizer} if method and method.learns else {}
    return catalogue.make(config.estimator, config.samples, **options)


def build(config: Config, pixel_mean: np.ndarray) -> DiscreteVAENetworks:
    """The networks for images with this mean."""
    return discrete_vae(pixel_mean, latents=config.latents, latent_shape=config.latent_shape, hidden=config.hidden)


def assemble(config: Config, run: Run) -> Setup:
    """Load the data and build everything that the run needs."""
    data = load_data(config.dataset, run, batch_size=config.batch_size)
    pixel_mean = np.asarray(data.train_images, np.float64).mean(0) / (data.levels - 1)
    return Setup(
        config,
        data.on_device(),
        build(config, pixel_mean),
        make_estimator(config),
        training.carry(training.make_optimizer(learning_rate=config.learning_rate), "estimator"),
    )


def bits(key, images, levels: int):
    """Images as random bits, drawn once."""
    keys = jax.random.split(key, images.shape[0])
    drawn = jax.vmap(lambda key, image: datasets.dynamic_binarise(key, image, levels))(keys, images)
    return drawn.astype(jnp.float32)


def statistics(setup: Setup):
    """The function that fills a row of metrics: (key, params) -> the ELBO of fixed training examples at true draws of
    q, and variance and signal-to-noise ratio of one batch's gradient in the encoder, all its parameters together.
    """
    config, networks, data = setup.config, setup.networks, setup.data
    # bits as images of two levels, which binarisation leaves alone: only the estimator's noise varies
    loss = networks.loss(setup.estimator, levels=2, bound=catalogue.METHODS[config.estimator].bound)
    fixed = bits(jax.random.key(config.seed), data.train_images[:JUDGED], data.levels).astype(jnp.uint8)

    @jax.jit
    def measure(key, params, images):
        key_gradient, key_elbo = jax.random.split(key)

        def encoder_gradient(key):
            gradient = jax.grad(loss, argnums=1, has_aux=True)(key, params, images[: config.batch_size])[0]
            return ravel_pytree(gradient["encoder"])[0]

        draws = jax.lax.map(encoder_gradient, jax.random.split(key_gradient, GRADIENT_DRAWS))
        mean, variance = draws.mean(0), draws.var(0, ddof=1).sum()
        # the squared mean of M draws exceeds the signal by variance / M
        signal = jnp.maximum(jnp.sum(mean**2) - variance / GRADIENT_DRAWS, 0)
        return {
            "train_elbo": elbos(key_elbo, networks, params, images).mean(),
            "gradient_variance": variance,
            "gradient_snr": jnp.sqrt(signal / variance),
        }

    return lambda key, params: {name: float(value) for name, value in measure(key, params, fixed).items()}


def elbos(key, networks: DiscreteVAENetworks, params, images):
    """The ELBO of each image of bits at one true draw of q, in nats; the KL is exact."""

    def one(example):
        key, x = example
        q, f = networks.problem(x.astype(jnp.float32))(params)
        return f(q.sample(key))

    return jax.lax.map(one, (jax.random.split(key, images.shape[0]), images), batch_size=250)


def evaluate(key, setup: Setup, params) -> dict[str, cards.Number]:
    """Test numbers with their standard errors over examples, in nats."""
    key_bits, key_elbo, key_iwae = jax.random.split(key, 3)
    images = bits(key_bits, setup.data.test_images, setup.data.levels)
    samples = setup.config.eval_samples

    @jax.jit
    def measure(params, images):
        return (
            evaluation.over_examples(-elbos(key_elbo, setup.networks, params, images)),
            evaluation.importance_weighted_nll(
                key_iwae, setup.networks.bind(params), images, samples=samples, batch_size=max(1, 4000 // samples)
            ),
        )

    negative_elbo, likelihood = measure(params, images)
    return {
        "negative_elbo": cards.number(negative_elbo.value, negative_elbo.standard_error, unit="nats"),
        f"iwae_{samples}_nll": cards.number(likelihood.nats.value, likelihood.nats.standard_error, unit="nats"),
        "monte_carlo_error": cards.number(likelihood.monte_carlo_error, unit="nats"),
    }


def watch(key, setup: Setup, params):
    """The function that adds a row's measurements: (state, row) -> row.

    `watch_seconds` is what measuring the gradient has cost so far, within the `seconds` of all of it; `cpu_seconds` is
    the processor time of the training alone, which other work on the machine does not change.
    """
    measure, watched, watched_cpu = statistics(setup), 0.0, 0.0
    measure(key, params)  # compiled before the clocks run
    start_cpu = time.process_time()

    def columns(state: training.TrainState, row: training.Row) -> training.Row:
        nonlocal watched, watched_cpu
        begin, begin_cpu = time.perf_counter(), time.process_time()
        row = row | measure(jax.random.fold_in(key, int(row["step"])), state.params)
        watched += time.perf_counter() - begin
        row = row | {"watch_seconds": watched, "cpu_seconds": begin_cpu - start_cpu - watched_cpu}
        watched_cpu += time.process_time() - begin_cpu
        return row

    return columns


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        setup = assemble(config, run)
        key_init, key_data, key_train, key_watch, key_test = jax.random.split(jax.random.key(config.seed), 5)
        params = jax.jit(lambda key: setup.networks.init(key, setup.estimator))(key_init)
        state = training.init_state(params, setup.optimizer)
        name = f"discrete-vae-{config.dataset}-{config.estimator}"
        experiment = Experiment.open(name, config, run, state, begin=begin)

    with experiment.running():
        bound = catalogue.METHODS[config.estimator].bound
        state = experiment.train(
            key_train,
            setup.networks.loss(setup.estimator, levels=setup.data.levels, bound=bound),
            datasets.batches(key_data, setup.data.train_images, config.batch_size),
            setup.optimizer,
            state,
            steps=config.steps,
            chunk=config.log_every,
            measure=watch(key_watch, setup, state.params),
        )
        key_eval, key_bits, key_pictures = jax.random.split(key_test, 3)
        numbers = evaluate(key_eval, setup, state.params)
        vae = setup.networks.bind(state.params)
        shown = bits(key_bits, setup.data.test_images[:12], setup.data.levels)
        figures = {
            "reconstructions": pictures.reconstructions(vae, shown),
            "samples": pictures.samples(key_pictures, vae, count=40),
        }
        return experiment.finish(numbers, figures)


if __name__ == "__main__":
    main(*command_line(__doc__, Config()))
