"""Learn classes from a few labels and many images without one, by the semi-supervised VAE (M2 of Kingma et al. 2014).

    python experiments/semi_supervised.py                            # 8x8 digits, 10 labels a class, about two minutes
    python experiments/semi_supervised.py --labels-per-class 3
    python experiments/semi_supervised.py --resume                   # go on after an interruption

The class is a latent variable wherever it is not given; its ten values are summed, not sampled. The card compares the
test accuracy of q(y|x) with the same classifier trained on the labelled images alone and with the nearest labelled
image, on the same labels; `gain` is the paired difference to the better of the two. An interval covers the choice of
test images, not that of the labels: try other seeds.
"""

import dataclasses
from typing import Any, Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from vbjax import cards, conditional, datasets, evaluation, training
from vbjax.distributions import Categorical
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks.conditional_vae import M2Networks, mlp_cvae, mlp_m2
from vbjax.reports import latent_pictures, pictures

CLASSES = 10
NAMES = [str(y) for y in range(CLASSES)]
SUPERVISED_STEPS = 500
"""Steps of the supervised classifier, which by then has learned its few images by heart."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed. Two runs with the same configuration give the same bits on the same machine."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets, and are binarised at half range."""
    labels_per_class: int = 10
    """Training images of each class whose label is used, drawn from the seed; the others keep theirs to themselves."""
    latent_dim: int = 8
    """Dimension of z."""
    hidden: tuple[int, ...] = (256,)
    """Hidden widths of encoder, decoder and classifier."""
    dropout: float = 0.1
    """Dropout in the hidden layers while training, in [0, 1)."""
    alpha: float = 5.0
    """Weight of log q(y|x) on the labelled images, which the bound does not contain, in nats per nat."""
    steps: int = 2000
    """Training steps."""
    batch_size: int = 64
    """Labelled and unlabelled examples per step, so many of each."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam, which falls to zero along a cosine."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated; 0 switches it off."""
    seed: int = 0
    """Everything random follows from it, the choice of the labels too."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    check_counts(config, run)
    training.init_state({}, make_optimizer(config, config.steps), ema_decay=config.ema_decay)
    build(config, (8, 8), 17).loss(labelled_share=1.0, alpha=config.alpha)


def make_optimizer(config: Config, steps: int):
    """Adam as configured."""
    return training.make_optimizer(learning_rate=config.learning_rate, schedule="cosine", steps=steps, clip_norm=100.0)


def build(config: Config, image_shape: tuple[int, ...], levels: int) -> M2Networks:
    """The networks for such images, with equal probabilities of the classes, which so few labels do not tell."""
    cvae = mlp_cvae(
        image_shape,
        classes=CLASSES,
        likelihood="bernoulli" if levels == 2 else "discretised_logistic",
        levels=levels,
        latent_dim=config.latent_dim,
        hidden=config.hidden,
        dropout=config.dropout,
    )
    return mlp_m2(cvae, Categorical(jnp.zeros(CLASSES)), hidden=config.hidden, dropout=config.dropout)


def split(key, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the labelled examples, `per_class` of each class at random, and of the others.

    Raises ValueError unless every class has more.
    """
    fewest = np.bincount(labels, minlength=CLASSES).min()
    if per_class >= fewest:
        raise ValueError(
            f"labels_per_class must be below {fewest}, the training examples of the rarest class, got {per_class}"
        )
    order = np.asarray(jax.random.permutation(key, labels.size))
    known = np.concatenate([order[labels[order] == y][:per_class] for y in range(CLASSES)])
    return known, np.setdiff1d(order, known)


def pairs(labelled, unlabelled) -> Partial:
    """`step -> (labelled batch, unlabelled batch)`."""
    return Partial(lambda labelled, unlabelled, step: (labelled(step), unlabelled(step)), labelled, unlabelled)


def classify(networks: M2Networks, params, images):
    """The most probable class of each image under q(y|x)."""

    @jax.jit
    def answer(params, images):
        return jax.vmap(lambda x: networks.bind(params).classify(x).logits.argmax())(images.astype(jnp.float32))

    return answer(params, images)


def compare(answers: dict[str, Any], labels) -> dict[str, cards.Number]:
    """Test accuracy of each method, and the paired gain of the first over the best of the others on the test split,
    a choice that favours the others.
    """
    right = {name: (answer == labels).astype(jnp.float32) for name, answer in answers.items()}
    first, *others = right
    rival = max(others, key=lambda name: right[name].mean())
    estimates = {f"{name}_accuracy": evaluation.over_examples(values) for name, values in right.items()}
    estimates["gain"] = evaluation.over_examples(right[first] - right[rival])
    return {name: cards.number(e.value, e.standard_error, unit="fraction") for name, e in estimates.items()}


def main(config: Config, run: Run) -> cards.Card:
    """Train, compare, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=config.batch_size)
        keys = jax.random.split(jax.random.key(config.seed), 7)
        key_split, key_init, key_labelled, key_unlabelled, key_train, key_supervised, key_pictures = keys
        known, rest = split(key_split, np.asarray(data.train_labels), config.labels_per_class)
        data = (data if data.levels == 17 else data.binarised((data.levels - 1) // 2)).on_device()
        known_data = jnp.asarray(data.train_images[known]), jnp.asarray(data.train_labels[known])
        networks = build(config, data.train_images.shape[1:], data.levels)
        optimizer = make_optimizer(config, config.steps)
        loss = networks.loss(labelled_share=known.size / (known.size + rest.size), alpha=config.alpha)
        state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open(f"semi-supervised-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        labelled = datasets.batches(key_labelled, known_data, config.batch_size)
        unlabelled = datasets.batches(key_unlabelled, data.train_images[rest], config.batch_size)
        alone = make_optimizer(config, SUPERVISED_STEPS)
        supervised = training.fit(
            key_supervised,
            networks.supervised_loss(),
            labelled,
            alone,
            training.init_state(state.params, alone),
            steps=SUPERVISED_STEPS,
        )
        state = experiment.train(
            key_train,
            loss,
            pairs(labelled, unlabelled),
            optimizer,
            state,
            steps=config.steps,
            ema_decay=config.ema_decay,
        )
        answers = {
            "semi_supervised": classify(networks, state.averaged, data.test_images),
            "supervised": classify(networks, supervised.params, data.test_images),
            "nearest_labelled": conditional.nearest_label(
                jnp.asarray(known_data[0], jnp.float32), known_data[1], jnp.asarray(data.test_images, jnp.float32)
            ),
        }
        figures = {
            # the labelled images come class by class
            "labelled": pictures.sheet([images[:20] for images in jnp.split(known_data[0], CLASSES)], NAMES),
            "class_samples": latent_pictures.class_samples(
                key_pictures, networks.bind(state.averaged).cvae, NAMES, rows=8
            ),
        }
        return experiment.finish(compare(answers, data.test_labels), figures)


if __name__ == "__main__":
    main(*command_line(__doc__, Config()))
