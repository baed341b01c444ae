"""Train a GAN, and say which modes it covers and how far its samples are from the test split.

    python experiments/gan.py                                  # eight Gaussians on a ring, under a minute
    python experiments/gan.py --r1 0 --seed 1                  # without the penalty: modes are lost
    python experiments/gan.py --dataset digits                 # convolutions on 8x8 images, some minutes
    python experiments/gan.py --dataset digits --conditional   # a projection discriminator, and a sheet by class
    python experiments/gan.py --dataset digits --validation 300    # choose settings without a look at the test split
    python experiments/gan.py --dataset fashion_mnist --download   # or --data-files DIR, no network
    python experiments/gan.py --resume                         # go on after an interruption

Look at pictures/plane.png or pictures/samples.png first. A generator has no likelihood, so the card compares samples:
Fréchet and kernel distance, precision and recall, modes or classes covered. Zero or one is not what a perfect generator
would read, so two yardsticks stand beside them. Names that end in _real: the same measure of as many other real points.
In the plane these are fresh draws of the law. For images they are of the training split, to which the classifier whose
features are compared was fitted in the run, and for the digits of other writers: farther from the test split than
samples of its own law. frechet_bias: what samples of one law, of these sizes, read on average, to first order. The
classifier's accuracy on the test split is on the card.
"""

import dataclasses
import functools
import math
from typing import Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from vbjax import cards, datasets, evaluation, sample_quality, training
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.gan import values
from vbjax.networks.classifier import accuracy, fit_classifier
from vbjax.networks.gan import GANNetworks, conv_gan, mlp_gan
from vbjax.reports import gan_pictures

CLASSES = 10
SCALE, DEVIATIONS = 0.05, 3
"""Standard deviation of the plane's modes, and how many of them a point of high quality may be away."""
LAWS = {
    "ring": (functools.partial(datasets.gaussian_mixture_ring, scale=SCALE), lambda: datasets.ring_modes(8, 2.0)),
    "grid": (functools.partial(datasets.gaussian_mixture_grid, scale=SCALE), lambda: datasets.grid_modes(5, 1.0)),
}
"""Laws of the plane by name: one draw for a key, and the modes."""
MOST_IMAGES, LEAST_IMAGES = 2000, 10
"""Test images that are compared; distances of all pairs are held in memory."""
REFERENCES = 8
"""Draws of other real points over which the real Fréchet distance is averaged; other measures take the first."""
UNREAD = {"the plane": ("conditional", "features", "classifier_steps", "validation"), "images": ("hidden",)}
"""Fields that each kind of data does not read."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; the defaults are those of the data set that `--dataset` names. Two runs with the same
    configuration give the same bits on the same machine.
    """

    dataset: Literal["ring", "grid", "digits", "mnist", "fashion_mnist"] = "ring"
    """ring, grid: Gaussians in the plane, whose modes are known. The others are images; all but the digits come from
    tensorflow-datasets."""
    game: Literal["minimax", "non_saturating", "hinge", "least_squares", "wasserstein"] = "non_saturating"
    """What each player minimises."""
    r1: float = 0.02
    """Weight of the squared slope of the discriminator at the data."""
    r2: float = 0.0
    """Weight of its squared slope at the fakes."""
    gradient_penalty: float = 0.0
    """Weight of (slope - 1)² between data and fakes."""
    spectral_norm: bool = False
    """Divide every kernel of the discriminator by an estimate of its largest singular value, one power iteration per
    step; a convolution's kernel counts as a matrix, whose norm is not that of the operator."""
    conditional: bool = False
    """Give both players the class; for images."""
    latent_dim: int = 2
    """Dimension of z."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the perceptrons; for the plane."""
    features: tuple[int, ...] = (64, 128)
    """Channels of the discriminator's convolutions, from the pixels inwards; the generator mirrors them; for images."""
    steps: int = 4000
    """Steps of the discriminator."""
    discriminator_steps: int = 1
    """The generator moves at every so many of them."""
    batch_size: int = 128
    """Data, and fakes, per step."""
    learning_rate: float = 2e-3
    """Of the discriminator's Adam; it falls to zero along a cosine."""
    generator_rate: float = 1e-3
    """Of the generator's Adam, likewise."""
    beta1: float = 0.5
    """Decay of the first moment of both; with 0.9 the players overshoot each other."""
    ema_decay: float = 0.999
    """Decay of the moving average of the generator, which is what gets evaluated; 0 switches it off."""
    seed: int = 0
    """Everything random follows from it."""
    classifier_steps: int = 600
    """Training steps of the classifier by whose features and classes images are judged."""
    eval_samples: int = 2000
    """Points compared, of the generator and of the test split each; images: at most 2000, and as either split has."""
    validation: int = 0
    """Training images to hold out and compare with in place of the test split; 0 trains on all. For images."""


_IMAGES = Config(r1=0.3, latent_dim=32, steps=3000, batch_size=64, learning_rate=5e-4, generator_rate=5e-4)
DEFAULTS = {
    "ring": Config(),
    "grid": dataclasses.replace(Config(), dataset="grid", steps=8000),
    "digits": dataclasses.replace(_IMAGES, dataset="digits"),
    "mnist": dataclasses.replace(_IMAGES, dataset="mnist", latent_dim=64),
    "fashion_mnist": dataclasses.replace(_IMAGES, dataset="fashion_mnist", latent_dim=64),
}
"""The configuration that `--dataset` starts from."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    check_counts(config, run, eval_samples=10, validation=0)
    for name in ("r1", "r2", "gradient_penalty"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be zero or a positive number, got {getattr(config, name)}")
    if config.discriminator_steps > config.steps:
        raise ValueError(
            f"discriminator_steps must be at most the {config.steps} steps, or the generator never moves, got "
            f"{config.discriminator_steps}"
        )
    kind = "the plane" if config.dataset in LAWS else "images"
    for name in UNREAD[kind]:
        default = getattr(DEFAULTS[config.dataset], name)
        if getattr(config, name) != default:
            raise ValueError(f"{name} is not read for {kind} such as {config.dataset!r}: leave it at {default}")
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    build(config, (2,) if config.dataset in LAWS else (8, 8))


def make_optimizer(config: Config):
    """An Adam for each player; the spectral state is carried along."""

    def adam(rate: float, steps: int):
        return training.make_optimizer(
            learning_rate=rate, schedule="cosine", steps=steps, beta1=config.beta1, beta2=0.99
        )

    generator_steps = -(-config.steps // config.discriminator_steps)
    players = {
        "discriminator": adam(config.learning_rate, config.steps),
        "generator": training.every(adam(config.generator_rate, generator_steps), config.discriminator_steps),
        "spectral": training.CARRIED,
    }
    return training.each(players)


def build(config: Config, shape: tuple[int, ...]) -> GANNetworks:
    """The networks for points of this shape."""
    shared = {"latent_dim": config.latent_dim, "spectral": config.spectral_norm}
    if config.dataset in LAWS:
        return mlp_gan(shape, hidden=config.hidden, **shared)
    return conv_gan(shape, features=config.features, classes=CLASSES if config.conditional else None, **shared)


def make_loss(config: Config, networks: GANNetworks):
    """What both players minimise, as configured."""
    return networks.loss(
        values.GAMES[config.game], r1=config.r1, r2=config.r2, gradient_penalty=config.gradient_penalty
    )


def law_batches(key, draw, batch_size: int) -> Partial:
    """`step -> (points, labels)`: fresh draws of a law at every step; the labels are zero."""

    def batch(key, step):
        keys = jax.random.split(jax.random.fold_in(key, step), batch_size)
        return jax.vmap(draw)(keys), jnp.zeros(batch_size, jnp.int32)

    return Partial(batch, key)


def image_batches(key, data: datasets.Dataset, batch_size: int) -> Partial:
    """`step -> (images, labels)`, pixels in [-1, 1]."""
    batch = datasets.batches(key, (data.train_images, data.train_labels), batch_size)

    def scaled(batch, step):
        images, labels = batch(step)
        return images.astype(jnp.float32) * (2 / (data.levels - 1)) - 1, labels

    return Partial(scaled, batch)


def comparison(real, model, references) -> dict[str, cards.Number]:
    """Distances, precision and recall of features of real test points against the model's and as many other real ones.

    references: `(draws, n, d)`. The standard error of the real Fréchet distance is over these draws, at the same test
    points. In float64: small distances are differences of large numbers.
    """
    with jax.enable_x64(True):
        real, model, references = (jnp.asarray(features, jnp.float64) for features in (real, model, references))

        @jax.jit
        def frechet(others):
            target = sample_quality.fit_gaussian(real)
            fits = jax.vmap(sample_quality.fit_gaussian)(others)
            return jax.vmap(sample_quality.frechet_distance, (None, 0))(target, fits)

        @jax.jit
        def measure(other):
            return sample_quality.kernel_distance(real, other), sample_quality.neighbourhoods(real, other)

        distances = frechet(jnp.concatenate([model[None], references]))
        distance, distance_real = distances[0], evaluation.over_examples(distances[1:])
        bias = sample_quality.frechet_bias(real, real.shape[0], model.shape[0])
        numbers = {
            "frechet": cards.number(distance, unit="squared distance"),
            "frechet_real": cards.number(
                distance_real.value,
                distance_real.standard_error,
                unit=f"squared distance, mean of {len(references)} draws",
            ),
            "frechet_ratio": cards.number(distance / distance_real.value, unit="times real against real"),
            "frechet_bias": cards.number(bias, unit="squared distance, of equal laws to first order"),
            "frechet_bias_ratio": cards.number(distance / bias, unit="times that of equal laws"),
            "frechet_excess": cards.number(distance - bias, unit="squared distance, less the bias"),
            "frechet_excess_real": cards.number(distance_real.value - bias, unit="squared distance, less the bias"),
        }
        for suffix, other in (("", model), ("_real", references[0])):
            kernel, near = measure(other)
            numbers[f"kernel{suffix}"] = cards.number(kernel.value, kernel.standard_error, unit="MMD²")
            numbers |= {
                f"{name}{suffix}": cards.number(value, unit="balls" if name == "density" else "fraction")
                for name, value in near._asdict().items()
            }
        return numbers


def coverage(found: sample_quality.ModeCoverage, reference: sample_quality.ModeCoverage, of: str):
    """Modes or classes, and the evenness of the histogram, beside those of real points."""
    numbers = {f"{of}_covered": cards.number(found.covered, unit=f"of {len(found.counts)}")}
    for suffix, coverage in (("", found), ("_real", reference)):
        numbers[f"{of}_kl{suffix}"] = cards.number(coverage.kl, unit="nats from uniform")
    return numbers


def law_numbers(model, real, references, modes) -> dict[str, cards.Number]:
    """The card of a law in the plane."""

    @jax.jit
    def cover(points):
        assigned, distance = jax.vmap(sample_quality.nearest_mode, (0, None))(points, modes)
        near = distance < DEVIATIONS * SCALE
        of_high_quality = evaluation.over_examples(near.astype(jnp.float32))
        return sample_quality.mode_coverage(assigned, near, modes=len(modes)), of_high_quality

    found, near = cover(model)
    exact = sample_quality.high_quality_share(2, deviations=DEVIATIONS)
    return {
        **coverage(found, cover(references[0])[0], "modes"),
        "high_quality": cards.number(near.value, near.standard_error, unit=f"fraction within {DEVIATIONS} deviations"),
        "high_quality_exact": cards.number(exact, unit="fraction, of the law itself"),
        **comparison(real, model, references),
    }


def image_numbers(judge, networks: GANNetworks, model, asked, test, references) -> dict[str, cards.Number]:
    """The card of images. asked: labels of the model's images, for a conditional one; test: images and labels;
    references: draws of as many real images.
    """
    seen, of_test = judge(model), judge(test[0])
    of_references = jax.tree.map(
        lambda x: x.reshape(*references.shape[:2], -1), judge(references.reshape(-1, *references.shape[2:]))
    )
    right = evaluation.over_examples(accuracy(of_test, test[1]))
    numbers = {"classifier_accuracy": cards.number(right.value, right.standard_error, unit="fraction of test images")}
    if networks.classes:
        obeyed = evaluation.over_examples(accuracy(seen, asked))
        numbers["class_as_asked"] = cards.number(obeyed.value, obeyed.standard_error, unit="fraction of samples")

    def cover(logits):
        everywhere = jnp.ones(logits.shape[0], bool)
        return sample_quality.mode_coverage(logits.argmax(-1), everywhere, modes=CLASSES)

    numbers |= coverage(cover(seen.logits), cover(of_references.logits[0]), "classes")
    return numbers | comparison(of_test.features, seen.features, of_references.features)


def attributes(key, generate, judge, networks: GANNetworks, names, *, count: int = 4000, members: int = 20):
    """Bold minus thin of one class, added to thin images of another, in the latent space of the generator.

    Returns what became of the other class and of its ink, and a figure. The groups are of the generator's own images,
    by the classifier and by the mean pixel; nothing is returned where there are too few of a second class.
    """
    z = jax.random.normal(key, (count, networks.latent_dim))
    asked = jnp.arange(count) % CLASSES
    images = many(generate, z, asked)
    seen, ink = judge(images).logits.argmax(-1), images.mean((1, 2))
    sizes = jnp.bincount(seen, length=CLASSES)
    first, second = jnp.argsort(-sizes)[:2].tolist()
    members = min(members, int(sizes[second]) // 3)
    if members < 3:
        return {}, {}

    def by_ink(label):
        order = jnp.argsort(ink)
        return order[(seen == label)[order]]

    bold, thin, other = by_ink(first)[-members:], by_ink(first)[:members], by_ink(second)[:members]
    moved = many(generate, z[other] + (z[bold].mean(0) - z[thin].mean(0))[None], asked[other])
    kept = evaluation.over_examples((judge(moved).logits.argmax(-1) == second).astype(jnp.float32))
    gained = evaluation.over_examples((moved.mean((1, 2)) - ink[other]) / (ink[bold].mean() - ink[thin].mean()))
    numbers = {
        "arithmetic_keeps_class": cards.number(kept.value, kept.standard_error, unit="fraction"),
        "arithmetic_moves_ink": cards.number(gained.value, gained.standard_error, unit="of bold minus thin"),
    }
    words = [f"bold {names[first]}", f"thin {names[first]}", f"thin {names[second]}", f"bold {names[second]}"]
    groups = [(z[rows[:20]], asked[rows[:20]]) for rows in (bold, thin, other)]
    return numbers, {"arithmetic": gan_pictures.arithmetic(generate, groups, words)}


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        if config.dataset in LAWS:
            networks, evaluate = build(config, (2,)), evaluate_law
            batch = law_batches(key_data, LAWS[config.dataset][0], config.batch_size)
        else:
            data = load_data(config.dataset, run, batch_size=config.batch_size, validation=config.validation)
            if config.validation and min(config.validation, len(data.train_images)) < LEAST_IMAGES:
                raise ValueError(
                    f"validation must hold out and leave at least {LEAST_IMAGES} images, got {config.validation}"
                )
            data = data.on_device()
            networks, evaluate = build(config, data.train_images.shape[1:]), functools.partial(evaluate_images, data)
            batch = image_batches(key_data, data, config.batch_size)
        optimizer = make_optimizer(config)
        state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open(f"gan-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        state = experiment.train(
            key_train,
            make_loss(config, networks),
            batch,
            optimizer,
            state,
            steps=config.steps,
            ema_decay=config.ema_decay,
        )
        return experiment.finish(*evaluate(key_test, config, networks, state))


def evaluate_law(key, config: Config, networks: GANNetworks, state: training.TrainState):
    """The card's numbers and the pictures, for a law in the plane."""
    draw, modes = LAWS[config.dataset]
    key_z, key_real, key_reference = jax.random.split(key, 3)
    count = config.eval_samples
    real = jax.vmap(draw)(jax.random.split(key_real, count))
    references = jax.vmap(jax.vmap(draw))(jax.random.split(key_reference, (REFERENCES, count)))
    z = jax.random.normal(key_z, (count, networks.latent_dim))
    model = jax.jit(jax.vmap(networks.generate(state.averaged)))(z)
    score = networks.discriminate(networks.normalise(state.params))
    # the output where both are equally likely; a game without an optimum has no such output but the average
    optimum = values.GAMES[config.game].optimum
    neutral = jax.vmap(score)(real).mean() if optimum is None else optimum(jnp.float32(0))
    figures = {"plane": gan_pictures.plane(real, model, lambda x: score(x) - neutral)}
    return law_numbers(model, real, references, modes()), figures


def evaluate_images(data: datasets.Dataset, key, config: Config, networks: GANNetworks, state: training.TrainState):
    """The card's numbers and the pictures, for images."""
    key_judge, key_z, key_rows, key_attributes = jax.random.split(key, 4)
    white = data.levels - 1
    train, test = (
        (jnp.asarray(images), jnp.asarray(labels))
        for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    )
    judge = fit_classifier(key_judge, *train, classes=CLASSES, white=white, steps=config.classifier_steps)
    generator = networks.generate(state.averaged)

    def generate(z, label):
        # to pixels, as the data have them
        return (generator(z, label) + 1) * (white / 2)

    count = min(config.eval_samples, len(test[1]), len(train[1]), MOST_IMAGES)
    test = (test[0][:count], test[1][:count])
    keys = jax.random.split(key_rows, REFERENCES)
    rows = jnp.stack([jax.random.permutation(k, len(train[1]))[:count] for k in keys])
    z, asked = jax.random.normal(key_z, (count, networks.latent_dim)), train[1][rows[0]]
    model = many(generate, z, asked)
    numbers = image_numbers(judge, networks, model, asked, test, train[0][rows])
    figures = {
        "samples": gan_pictures.samples(test[0].astype(jnp.float32), model),
        "interpolation": gan_pictures.interpolation(generate, z, asked),
    }
    if config.conditional:
        figures["classes"] = gan_pictures.class_sheet(generate, z, data.class_names)
    more, drawn = attributes(key_attributes, generate, judge, networks, data.class_names)
    return numbers | more, figures | drawn


def many(generate, z, labels):
    """Images of many latents, some at a time to bound the memory."""
    return jax.jit(lambda z, labels: jax.lax.map(lambda pair: generate(*pair), (z, labels), batch_size=256))(z, labels)


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
