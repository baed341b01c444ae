"""Train an auto-encoder, and say what it is worth next to PCA, the best linear one.

    python experiments/autoencoder.py                                       # the 8x8 digits, under a minute
    python experiments/autoencoder.py --model denoising --noise 0.5
    python experiments/autoencoder.py --model deep --code-dim 2             # adds a map of the code
    python experiments/autoencoder.py --model conv --dataset fashion_mnist --download    # or --data-files DIR
    python experiments/autoencoder.py --resume                              # go on after an interruption

pca: closed form. linear: finds PCA's subspace by gradients. deep: narrowing perceptrons. denoising: the same, shown
corrupted images. stacked: layers trained one after another on corrupted codes, then together. sparse: more units than
pixels, few of which speak. conv: convolutions. recurrent: a gated unit that reads and writes an image row by row.

Stacking gains nothing certain on the digits. Its test error less that of joint training, per pixel, over 5 seeds with
95% intervals: .0002 ± .0003 (of .0145) after 2000 steps each, -.0010 ± .0012 after 300. Joint training that also gets
the 1500 steps of the layers is .0028 ± .0006 better than stacking with 300, and .0005 ± .0003 worse with 2000, where
it overfits.

The card holds squared errors per pixel (white is 1) on the test split, of clean and of corrupted images, each beside
that of PCA with a code of the same size; how often the nearest training code has the right label; and how far
decodings lie from the nearest training image, of test codes and of noise. An auto-encoder has no law of its codes:
see pictures/decoded_noise.png, and experiments/vae.py for a model that does.
"""

import dataclasses
from typing import Any, Literal

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp

from vbjax import autoencoders, cards, datasets, evaluation, training
from vbjax.autoencoders import Autoencoder
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks import autoencoders as networks
from vbjax.reports import autoencoder_pictures

Model = Literal["pca", "linear", "deep", "denoising", "stacked", "sparse", "conv", "recurrent"]
DEEP = ("deep", "denoising", "stacked")
READ_BY: dict[str, tuple[Model, ...]] = {
    "tied": ("linear",),
    "hidden": (*DEEP, "conv"),
    "activation": (*DEEP, "conv"),
    "features": ("conv",),
    "units": ("recurrent",),
    "pretrain_steps": ("stacked",),
    "sparsity": ("sparse",),
    "target": ("sparse",),
    "weight": ("sparse",),
}
"""The models that read an option; the others read what is not named here."""
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"steps": 4000, "learning_rate": 1e-2},
    "denoising": {"code_dim": 32},
    "sparse": {"code_dim": 128},
}
"""What 0 stands for where it is not a code of 8 numbers, 2000 steps and a learning rate of 2e-3."""
KNOWN_IMAGES, PROBES = 10_000, 1000
"""Training images among which the nearest is looked for, and test images for which."""
SPEAKS = 0.1
"""A unit of a sparse code that is above this says something about the image."""
UNITS = {
    "mse": "per pixel",
    "pca_mse": "per pixel",
    "mse_minus_pca": "per pixel",
    "denoising_mse": "per pixel",
    "pca_denoising_mse": "per pixel",
    "neighbour_accuracy": "fraction",
    "pca_neighbour_accuracy": "fraction",
    "reconstruction_distance": "white",
    "decoded_noise_distance": "white",
    "mean_activation": "per unit",
    "active_units": "units",
}
"""Numbers of the card with their units, in its order."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed. Two runs with the same configuration give the same bits on the same machine."""

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets."""
    model: Model = "deep"
    """Which auto-encoder."""
    code_dim: int = 0
    """Size of the code. 0: 8, but 32 for denoising and 128 for sparse."""
    hidden: tuple[int, ...] = (256, 128)
    """deep, denoising, stacked, conv: widths from the pixels inwards, after the convolutions if any; mirrored."""
    activation: Literal["relu", "silu", "gelu", "tanh"] = "relu"
    """deep, denoising, stacked, conv: non-linearity of the hidden layers."""
    features: tuple[int, ...] = (16, 32)
    """conv: channels of the convolutions, each of which halves the image."""
    units: int = 128
    """recurrent: size of the state."""
    tied: bool = False
    """linear: the encoder is the decoder's transpose."""
    corruption: Literal["gaussian", "masking", "salt_and_pepper"] = "gaussian"
    """What destroys images: denoising trains on it, stacked its layers, and all are tested with it."""
    noise: float = 0.3
    """Strength of the corruption: standard deviation, or the probability of a pixel."""
    pretrain_steps: int = 500
    """stacked: training steps of each layer, before those of the whole."""
    sparsity: Literal["kl", "top_k"] = "kl"
    """sparse: sigmoids held to a mean activation by a KL, or all but the largest units set to zero."""
    target: float = 0.05
    """sparse: mean activation (kl) or share of the units that stay (top_k). PCA gets as many numbers as units speak."""
    weight: float = 1.0
    """sparse, kl: price of a nat of the KL."""
    steps: int = 0
    """Training steps, of all layers together. 0: 2000, but 4000 for linear. pca takes none."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 0.0
    """Peak learning rate of Adam, which falls to zero along a cosine. 0: 2e-3, but 1e-2 for linear."""
    seed: int = 0
    """Everything random follows from it."""


def settled(config: Config) -> Config:
    """The configuration with the model's own settings in the place of zeros."""
    settings: dict[str, Any] = {"code_dim": 8, "steps": 2000, "learning_rate": 2e-3} | SETTINGS.get(config.model, {})
    unset = {name: value for name, value in settings.items() if not getattr(config, name)}
    return dataclasses.replace(config, **unset)


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    for name, models in READ_BY.items():
        if config.model not in models and getattr(config, name) != getattr(Config, name):
            raise ValueError(f"{name} is read by {', '.join(models)} only, not by model {config.model!r}")
    if config.sparsity == "top_k" and config.weight != Config.weight:
        raise ValueError("weight is read by sparsity 'kl' only, not by 'top_k'")
    check_counts(config, run)
    corruption(config)
    if not 0 < config.target < 1:
        raise ValueError(f"target must lie in (0, 1), got {config.target}")
    make_optimizer(config, config.steps)
    if config.dataset == "digits":
        check_sizes(config, (8, 8))


def check_sizes(config: Config, image_shape: tuple[int, ...]) -> None:
    """Raise ValueError, naming the field, for networks or a baseline that such images do not allow."""
    make_loss(config, build(config, image_shape))
    pixels = jnp.zeros(image_shape).size
    if config.model != "sparse" and config.code_dim > pixels:
        raise ValueError(f"code_dim must be at most the {pixels} pixels: a larger code is for model 'sparse'")


def corruption(config: Config) -> autoencoders.Corruption:
    """The corruption as configured."""
    try:
        return autoencoders.CORRUPTIONS[config.corruption](config.noise)
    except ValueError as error:
        raise ValueError(f"noise: {error}") from error


def make_optimizer(config: Config, steps: int):
    """Adam as configured."""
    return training.make_optimizer(learning_rate=config.learning_rate, schedule="cosine", steps=steps, clip_norm=100.0)


def active_units(config: Config) -> int:
    """Units that top_k leaves in a sparse code."""
    return max(1, round(config.target * config.code_dim))


def speaking(config: Config, model: Autoencoder, images):
    """How many entries of each image's code say something: all, or those above `SPEAKS` of a sparse one."""
    codes = jax.vmap(model.encode)(images)
    entries = codes > SPEAKS if config.model == "sparse" else jnp.ones(codes.shape)
    return entries.sum(1).astype(jnp.float32)


def build(config: Config, image_shape: tuple[int, ...]) -> Any:
    """The networks for such images; pca's are those of the linear model, and stay as they are."""
    size = {"code_dim": config.code_dim}
    match config.model:
        case "pca" | "linear":
            return networks.Linear(image_shape, config.code_dim, config.tied)
        case "sparse":
            active = active_units(config) if config.sparsity == "top_k" else None
            return networks.sparse(image_shape, active=active, **size)
        case "conv":
            return networks.convolutional(
                image_shape, features=config.features, hidden=config.hidden, activation=config.activation, **size
            )
        case "recurrent":
            return networks.recurrent(image_shape, units=config.units, **size)
    return networks.deep(image_shape, hidden=config.hidden, activation=config.activation, **size)


def make_loss(config: Config, model: networks.Networks) -> training.Loss:
    """The loss of a batch of images in [0, 1]."""
    if config.model == "sparse" and config.sparsity == "kl":
        return networks.sparse_loss(model.bind, target=config.target, weight=config.weight)
    return networks.batch_loss(model.bind, corruption(config) if config.model == "denoising" else None)


def pretrained(key, config: Config, stack: networks.Stack, images):
    """Parameters of a stack whose layers learned one after another to restore the codes below them.

    Each layer sees its own data corrupted, as Vincent et al. (2010, section 3.5); a checkpoint does not hold this
    phase, which a resumed run repeats.
    """
    params = []
    optimizer = make_optimizer(config, config.pretrain_steps)
    for layer, layer_key in zip(stack.layers, jax.random.split(key, len(stack.layers)), strict=True):
        key_init, key_data, key_train = jax.random.split(layer_key, 3)
        codes = jax.vmap(stack.bind(params).encode)(images)
        state = training.fit(
            key_train,
            networks.batch_loss(layer.bind, corruption(config)),
            datasets.batches(key_data, codes, config.batch_size),
            optimizer,
            training.init_state(layer.init(key_init), optimizer),
            steps=config.pretrain_steps,
        )
        params.append(state.params)
    return params


def evaluate(
    key, config: Config, model: Autoencoder, pca: Autoencoder, data: datasets.Dataset
) -> dict[str, cards.Number]:
    """Test numbers with their standard errors over examples, for the model and for PCA."""
    known, test = pixels(data, data.train_images[:KNOWN_IMAGES]), pixels(data, data.test_images)
    labels, test_labels = jnp.asarray(data.train_labels)[:KNOWN_IMAGES], jnp.asarray(data.test_labels)[:PROBES]
    corrupt = corruption(config)

    def distances(points, x):
        return jnp.sqrt(jnp.sum(jnp.square(points - x[None]), range(1, points.ndim)))

    @jax.jit
    def measure(key, known, test):
        key_corrupt, key_noise = jax.random.split(key)
        corrupted = jax.vmap(corrupt)(jax.random.split(key_corrupt, test.shape[0]), test)

        def errors(autoencoder, images):
            restored = jax.vmap(lambda x: autoencoders.reconstruct(autoencoder, x))(images)
            return jnp.mean(jnp.square(restored - test), range(1, test.ndim))

        def right(autoencoder):
            codes = jax.vmap(autoencoder.encode)(known)
            found = jax.lax.map(lambda x: labels[distances(codes, autoencoder.encode(x)).argmin()], test[:PROBES])
            return (found == test_labels).astype(jnp.float32)

        def off(codes):
            return jax.lax.map(lambda z: distances(known, model.decode(z)).min(), codes)

        clean, pca_clean = errors(model, test), errors(pca, test)
        codes = jax.vmap(model.encode)(test)
        values = {
            "mse": clean,
            "pca_mse": pca_clean,
            "mse_minus_pca": clean - pca_clean,
            "denoising_mse": errors(model, corrupted),
            "pca_denoising_mse": errors(pca, corrupted),
            "neighbour_accuracy": right(model),
            "pca_neighbour_accuracy": right(pca),
            "reconstruction_distance": off(codes[:PROBES]),
            "decoded_noise_distance": off(jax.random.normal(key_noise, codes[:PROBES].shape)),
        }
        if config.model == "sparse":
            values["mean_activation"] = codes.mean(1)
            values["active_units"] = speaking(config, model, test)
        return {name: evaluation.over_examples(value) for name, value in values.items()}

    measured = measure(key, known, test)
    return {
        name: cards.number(measured[name].value, measured[name].standard_error, unit=unit)
        for name, unit in UNITS.items()
        if name in measured
    }


def pixels(data: datasets.Dataset, images):
    """Grey levels as numbers in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / (data.levels - 1)


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        config = settled(config)
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=config.batch_size).on_device()
        train, test = pixels(data, data.train_images), pixels(data, data.test_images)
        shape = train.shape[1:]
        check_sizes(config, shape)
        model, optimizer = build(config, shape), make_optimizer(config, config.steps)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(jax.jit(model.init)(key_init), optimizer)
        experiment = Experiment.open(f"autoencoder-{config.model}-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        key_pretrain, key_fit = jax.random.split(key_train)
        numbers, trained = {}, None
        if config.model == "stacked":
            state = training.init_state(pretrained(key_pretrain, config, model, train), optimizer)
            errors = jax.vmap(lambda x: autoencoders.reconstruction_error(model.bind(state.params), x))(test)
            before = evaluation.over_examples(errors / test[0].size)
            numbers["pretrained_mse"] = cards.number(before.value, before.standard_error, unit="per pixel")
        if config.model != "pca":
            batch = datasets.batches(key_data, train, config.batch_size)
            state = experiment.train(key_fit, make_loss(config, model), batch, optimizer, state, steps=config.steps)
            trained = model.bind(state.params)
        pca_dim = config.code_dim if trained is None else max(1, round(float(speaking(config, trained, train).mean())))
        principal = autoencoders.pca(train.reshape(train.shape[0], -1), min(pca_dim, test[0].size))
        pca = autoencoders.on_images(principal.autoencoder, shape)
        trained = trained or pca
        if config.model == "linear":
            angle = autoencoders.largest_principal_angle(state.params["decoder"], principal.components.T)
            numbers["largest_angle_to_pca"] = cards.number(angle, unit="radians")
        numbers["pca_code_dim"] = cards.number(principal.components.shape[0], unit="numbers")
        key_eval, key_pictures = jax.random.split(key_test)
        numbers = evaluate(key_eval, config, trained, pca, data) | numbers
        first = model.layers[0].bind(state.params[0]) if isinstance(model, networks.Stack) else trained
        figures = autoencoder_pictures.autoencoder_model(
            key_pictures, trained, first, pca, corruption(config), test, jnp.asarray(data.test_labels)
        )
        return experiment.finish(numbers, figures)


if __name__ == "__main__":
    main(*command_line(__doc__, Config()))
