"""Train a diffusion model, and say what it is worth: its bound term by term, samples, guidance, inpainting.

    python experiments/ddpm.py                                         # the 8x8 digits, a few minutes
    python experiments/ddpm.py --prediction epsilon --variance forward --schedule linear --loss simple  # Ho et al. 2020
    python experiments/ddpm.py --dataset fashion_mnist --data-files DIR          # 28x28, a U-Net; wants a GPU
    python experiments/ddpm.py --resume                                # go on after an interruption

Look at pictures/samples.png first: draws above the training images nearest to them. pictures/guidance.png has every
class at growing guidance weights, pictures/both_ways.png the process and its reversal, pictures/terms.png where along
the way the bits are spent. The card holds the bound L_T + Σ L_{t-1} + L_0 on -log P(x) of the test images, in bits per
dimension; as the mean of random terms it is an upper bound in expectation, and its interval is over test images.
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, NamedTuple

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp

from vbjax import cards, conditional, datasets, evaluation, training
from vbjax.diffusion import decoders, guidance, losses, samplers, schedules, times
from vbjax.diffusion.bound import DiffusionBound, DiffusionModel, bound_term, diffusion_bound, sampled_bound
from vbjax.diffusion.continuous import ContinuousModel, continuous_bound
from vbjax.diffusion.process import Denoiser, Variance, forward_variance, marginal, posterior_variance, reverse_kernel
from vbjax.diffusion.schedules import Gamma, Schedule
from vbjax.experiment import Experiment, Run, check_counts, command_line, load_data, preparing
from vbjax.networks.denoisers import DenoiserNetworks, mlp_denoiser, unet_denoiser
from vbjax.recipe import log_frequencies
from vbjax.reports import diffusion_pictures

CLASSES = 10
PER_CLASS = 20
"""Guided samples of each class that are judged, at each weight."""
CONTINUOUS_TIMES = 200
"""Times of the continuous bound, for each image."""
BATCH = 500
"""Images that a network sees at once."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; the defaults are those of the data set that `--dataset` names. Two runs with the same
    configuration give the same bits on the same machine.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; all but the digits come from tensorflow-datasets."""
    validation: int = 0
    """Training images held out, which then take the place of the test split: to choose settings by. 0 is none."""
    network: Literal["mlp", "unet"] = "mlp"
    """A residual perceptron or a U-Net."""
    prediction: Literal["epsilon", "x0", "v", "score", "levels"] = "levels"
    """What the network says: the noise, x_0, a mix of both, the score, or for every pixel the law of its grey level,
    whose own noisy value then enters by Bayes' rule, exactly."""
    width: int = 384
    """Units of a layer of the mlp; channels of the unet's first level."""
    blocks: int = 2
    """Residual blocks: of the mlp, or of each level of the unet."""
    dropout: float = 0.5
    """Dropout while training, in [0, 1)."""
    schedule: Literal["uniform", "linear", "cosine", "sigmoid", "learned"] = "uniform"
    """How γ, the log noise-to-signal ratio, grows with time: at constant speed, with β on a line (Ho et al. 2020),
    cosine, sigmoid, or a monotone function that is trained too (Kingma et al. 2021)."""
    gamma_low: float = -8.0
    """γ at time 0, for all schedules but linear; at least -15, for below it float32 loses the noise."""
    gamma_high: float = 6.0
    """γ at time T, for all schedules but linear."""
    timesteps: int = 1000
    """T, the steps of the chain."""
    variance: Literal["posterior", "forward", "optimal", "learned"] = "optimal"
    """Of the reverse steps: β̃, β, the best one (levels only), or one between β̃ and β from a second output."""
    loss: Literal["bound", "importance", "simple", "hybrid"] = "bound"
    """The bound itself at stratified times; the same at times drawn by their past losses; the unweighted error of ε;
    or that and a thousandth of the bound, for a learned variance (Nichol and Dhariwal 2021)."""
    conditional: bool = True
    """Whether the network hears the class, so that it can be asked for one."""
    null_rate: float = 0.5
    """How often the class is withheld in training; without it the network is the model of all classes."""
    guidance: tuple[float, ...] = (0.0, 1.0, 3.0)
    """Weights w of classifier-free guidance: x̂_0 of the class plus w times its lead over x̂_0 of no class."""
    sampler: Literal["ancestral", "ddim", "heun", "dpm_solver"] = "ancestral"
    """How samples are drawn: the chain itself, or solvers of its ordinary differential equation."""
    sampler_steps: int = 0
    """Steps of the sampler, at most timesteps; 0 is 250, or 30 of dpm_solver, or timesteps where these are fewer."""
    steps: int = 1000
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam, which falls to zero along a cosine."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated; 0 switches it off."""
    seed: int = 0
    """Everything random follows from it."""
    eval_images: int = 0
    """How many test images the bound is measured on; 0 is all."""
    eval_times: int = 0
    """Times at which it is measured for each image, drawn evenly; 0 is all of them, with the picture of the terms."""


_LARGER = Config(
    network="unet",
    prediction="v",
    width=32,
    blocks=1,
    dropout=0.1,
    schedule="cosine",
    gamma_low=-13.0,
    null_rate=0.2,
    variance="posterior",
    sampler="dpm_solver",
    steps=20_000,
    learning_rate=5e-4,
    eval_times=20,
    eval_images=2000,
)
DEFAULTS = {name: dataclasses.replace(_LARGER, dataset=name) for name in ("mnist", "fashion_mnist")}
"""The configuration that `--dataset` starts from."""


class Setup(NamedTuple):
    """A configuration, its data, and its networks before they have parameters."""

    config: Config
    data: datasets.Dataset
    networks: DenoiserNetworks

    def init(self, key) -> dict[str, Any]:
        """Fresh parameters: "network", and "schedule" or "history" where one is learned."""
        key_network, key_schedule = jax.random.split(key)
        params: dict[str, Any] = {"network": self.networks.init(key_network)}
        if self.config.schedule == "learned":
            low, high = self.config.gamma_low, self.config.gamma_high
            params["schedule"] = schedules.monotone_gamma(key_schedule, low=low, high=high)
        if self.config.loss == "importance":
            empty = times.empty_history(self.config.timesteps)
            params["history"] = empty._replace(counts=empty.counts.astype(jnp.float32))._asdict()
        return params

    def gamma(self, params) -> Gamma:
        """γ(t) in continuous time."""
        return params["schedule"].fixed_ends() if self.config.schedule == "learned" else make_gamma(self.config)

    def schedule(self, params) -> Schedule:
        """γ_1 … γ_T."""
        if self.config.schedule == "linear":
            return schedules.linear_schedule(self.config.timesteps)
        return schedules.discretise(self.gamma(params), self.config.timesteps)

    def bind(self, params, label=None, dropout_key=None) -> tuple[Denoiser, DiffusionModel]:
        """The denoiser and the chain at these parameters, for one class or for any."""
        of = (params["network"], label, dropout_key)
        denoiser = self.networks.bind(*of)
        if self.config.prediction == "levels":
            decode = self.networks.bind_levels(*of)
        else:
            decode = decoders.discretised_decoder(denoiser, levels=self.data.levels)
        return denoiser, DiffusionModel(self.embed, reverse_kernel(denoiser, self.variance(*of)), decode)

    def variance(self, network, label=None, dropout_key=None) -> Variance:
        """That of the reverse steps."""
        fixed: dict[str, Variance] = {"posterior": posterior_variance, "forward": forward_variance}
        return fixed.get(self.config.variance) or self.networks.bind_variance(network, label, dropout_key)

    def embed(self, x):
        """Grey levels as points of [-1, 1]."""
        return decoders.embed_levels(x, levels=self.data.levels)

    def stored(self, x0):
        """Points of [-1, 1] at the nearest grey level."""
        return jnp.clip(jnp.round((x0 + 1) / 2 * (self.data.levels - 1)), 0, self.data.levels - 1)


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without the data."""
    check_counts(config, run, validation=0, eval_images=0, eval_times=0, timesteps=2, sampler_steps=0)
    start = DEFAULTS.get(config.dataset, Config())
    if config.schedule == "linear" and (config.gamma_low, config.gamma_high) != (start.gamma_low, start.gamma_high):
        raise ValueError("gamma_low and gamma_high are not read by schedule 'linear', whose β are given")
    if config.gamma_low < -15:
        raise ValueError(
            f"gamma_low must be at least -15, got {config.gamma_low}: below, the rounding of x_t in float32 is no "
            "longer small against its noise, and the bound reads too low"
        )
    if (config.variance == "optimal") and config.prediction != "levels":
        raise ValueError("variance 'optimal' needs prediction 'levels': from no other is the spread of x_0 known")
    if config.variance == "learned" and (config.prediction == "levels" or config.loss == "simple"):
        raise ValueError("variance 'learned' needs another prediction than 'levels', and a loss that trains it")
    if config.loss == "hybrid" and config.variance != "learned":
        raise ValueError("loss 'hybrid' is there for variance 'learned'")
    if config.schedule == "learned" and config.loss in ("simple", "hybrid"):
        raise ValueError(f"schedule 'learned' is trained by the bound, not by loss {config.loss!r}")
    if config.network == "mlp" and config.prediction == "levels" and config.dataset != "digits":
        raise ValueError("prediction 'levels' and network 'mlp' are for digits: 784 x 256 outputs are too many")
    if not 0 < config.null_rate <= 1:
        raise ValueError(f"null_rate must lie in (0, 1]: the bound is that of no class, got {config.null_rate}")
    if not config.guidance or not all(-1 <= w < math.inf for w in config.guidance):
        raise ValueError(f"guidance must be one or more finite weights of at least -1, got {config.guidance}")
    if not config.conditional and (config.null_rate, config.guidance) != (start.null_rate, start.guidance):
        raise ValueError("null_rate and guidance are read with conditional only")
    if config.sampler_steps > config.timesteps:
        raise ValueError(f"sampler_steps must be at most timesteps, {config.timesteps}, got {config.sampler_steps}")
    if config.eval_times > config.timesteps:
        raise ValueError(f"eval_times must be at most timesteps, {config.timesteps}, got {config.eval_times}")
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)
    schedules.discretise(make_gamma(config), config.timesteps)
    shape, levels = ((8, 8), 17) if config.dataset == "digits" else ((28, 28), 256)
    build(config, shape, levels)


def make_gamma(config: Config) -> Gamma:
    """γ(t) as configured; a learned one starts near the uniform one, a linear one is the limit of many steps."""
    if config.schedule == "linear":
        return schedules.vp_gamma(start=1e-3)
    ends = (config.gamma_low, config.gamma_high)
    match config.schedule:
        case "cosine":
            return schedules.cosine_gamma(*ends)
        case "sigmoid":
            return schedules.sigmoid_gamma(*ends)
    return schedules.linear_gamma(*ends)


def make_optimizer(config: Config):
    """Adam as configured; a learned schedule does not decay, and a history of losses is carried along."""
    adam = partial(
        training.make_optimizer,
        learning_rate=config.learning_rate,
        schedule="cosine",
        steps=config.steps,
        clip_norm=100.0,
    )
    return training.each(
        {"network": adam(weight_decay=config.weight_decay), "schedule": adam(), "history": training.CARRIED}
    )


def build(config: Config, shape: tuple[int, ...], levels: int, log_prior=None) -> DenoiserNetworks:
    """The networks for such images."""
    make = {"mlp": partial(mlp_denoiser, width=config.width), "unet": partial(unet_denoiser, channels=config.width)}
    of_levels: dict[str, Any] = {"levels": levels, "log_prior": log_prior} if config.prediction == "levels" else {}
    return make[config.network](
        shape,
        prediction=config.prediction,
        blocks=config.blocks,
        dropout=config.dropout,
        classes=CLASSES if config.conditional else 0,
        learned_variance=config.variance == "learned",
        **of_levels,
    )


def make_loss(setup: Setup):
    """The loss on a batch `(images, labels)`, in nats per image where it is the bound."""
    config = setup.config
    if config.variance == "optimal":
        # it follows from the law that the mean is of: nothing of it is left to train
        setup = setup._replace(config=dataclasses.replace(config, variance="posterior"))

    def one(key, params, schedule, image, label, t):
        key_dropout, key_noise = jax.random.split(key)
        denoiser, model = setup.bind(params, label, key_dropout)
        if config.loss == "simple":
            return losses.denoising_loss(key_noise, denoiser, setup.embed(image), schedule.at(t))
        if config.loss == "hybrid":
            return losses.hybrid_loss(key_noise, denoiser, model, schedule, image, t)
        x_t = marginal(setup.embed(image), schedule.at(t)).sample(key_noise)
        return bound_term(model, schedule, image, x_t, t)

    def loss(key, params, batch):
        images, labels = batch
        count = len(images)
        key_times, key_labels, key_each = jax.random.split(key, 3)
        schedule, law = setup.schedule(params), times.uniform_law(config.timesteps)
        if config.loss == "importance":
            # the weights must not move the history, whose gradient is what it records
            law = jax.lax.stop_gradient(history_of(params).law(uniform_part=0.1))
        drawn = times.stratified_times(key_times, law, count)
        # strata are in order, and so is an epoch: neither may know of the other
        withheld = jax.random.bernoulli(key_labels, config.null_rate, (count,))
        labels = jnp.where(withheld, CLASSES, labels) if config.conditional else None
        keys = jax.random.split(key_each, count)
        in_axes = (0, None, None, 0, 0 if config.conditional else None, 0)
        values = jax.vmap(one, in_axes)(keys, params, schedule, images, labels, drawn.t)
        if config.loss in ("simple", "hybrid"):
            return values.mean(), {}
        bound = (drawn.weight * values).mean()
        terms = {"bits_per_dim": bound / (images[0].size * math.log(2))}
        if config.loss == "importance":
            bound = bound + remembered(params, drawn.t, jax.lax.stop_gradient(values))
        return bound, terms

    return loss


def history_of(params) -> times.LossHistory:
    """The losses seen so far; parameters are floats."""
    return times.LossHistory(params["history"]["squares"], params["history"]["counts"].astype(jnp.int32))


def remembered(params, t, values):
    """Zero, with the gradient whose plain descent of rate one records these losses (`training.carry`)."""
    new = history_of(params).record(t, values)
    new = {"squares": new.squares, "counts": new.counts.astype(jnp.float32)}

    def step(old, new):
        fixed = jax.lax.stop_gradient(old)
        return jnp.vdot(old - fixed, fixed - new)

    return sum(jax.tree.leaves(jax.tree.map(step, params["history"], new)))


def measure_bound(key, setup: Setup, params, images, labels=None) -> DiffusionBound:
    """The bound of each image, `(n,)` and `(n, T-1)` or `(n,)`, in nats; labels: the classes that the model is told."""
    times_each = setup.config.eval_times

    @jax.jit
    def measure(params, images, labels):
        schedule = setup.schedule(params)

        def one(example):
            key, image, label = example
            _, model = setup.bind(params, label)
            if not times_each:
                return diffusion_bound(key, model, schedule, image)
            key_times, key_draws = jax.random.split(key)
            drawn = times.stratified_times(key_times, times.uniform_law(schedule.steps), times_each)
            keys = jax.random.split(key_draws, times_each)
            bounds = jax.lax.map(lambda pair: sampled_bound(pair[0], model, schedule, image, pair[1]), (keys, drawn))
            return jax.tree.map(lambda terms: terms.mean(0), bounds)

        return jax.lax.map(one, (jax.random.split(key, len(images)), images, labels), batch_size=BATCH)

    return measure(params, images, labels)


def measure_continuous(key, setup: Setup, params, images):
    """The bound of each image were there infinitely many steps, `(n,)` in nats, from times spread evenly."""

    @jax.jit
    def measure(params, images):
        gamma, (denoiser, model) = setup.gamma(params), setup.bind(params)
        continuous = ContinuousModel(model.embed, denoiser, model.decode)

        def one(example):
            key, image = example
            key_times, key_draws = jax.random.split(key)
            ts = times.stratified_uniforms(key_times, setup.config.eval_times or CONTINUOUS_TIMES)
            keys = jax.random.split(key_draws, len(ts))
            bounds = jax.lax.map(lambda pair: continuous_bound(pair[0], continuous, gamma, image, pair[1]), (keys, ts))
            return bounds.prior[0] + bounds.diffusion.mean() + bounds.reconstruction.mean()

        return jax.lax.map(one, (jax.random.split(key, len(images)), images), batch_size=BATCH)

    return measure(params, images)


def likelihoods(key, setup: Setup, params, images, labels) -> tuple[dict[str, cards.Number], DiffusionBound]:
    """The bound and its terms with standard errors over images; and what they are made of."""
    key_bound, key_given, key_continuous = jax.random.split(key, 3)
    bound = measure_bound(key_bound, setup, params, images)
    diffusion = bound.diffusion.reshape(len(images), -1).sum(1)
    total = bound.prior + diffusion + bound.reconstruction
    in_bits = {
        "bits_per_dim": total,
        "prior": bound.prior,
        "diffusion": diffusion,
        "reconstruction": bound.reconstruction,
        "bits_per_dim_continuous": measure_continuous(key_continuous, setup, params, images),
    }
    if setup.config.conditional:
        given = measure_bound(key_given, setup, params, images, labels)
        in_bits["bits_per_dim_given_class"] = jax.vmap(DiffusionBound.total)(given)
    unit = images[0].size * math.log(2)
    estimates = {name: (evaluation.over_examples(nats / unit), "bits/dim") for name, nats in in_bits.items()}
    estimates["nll_bound"] = (evaluation.over_examples(total), "nats")
    return {name: cards.number(e.value, e.standard_error, unit=unit) for name, (e, unit) in estimates.items()}, bound


def sampler_steps(config: Config) -> int:
    """How many steps the sampler takes."""
    return config.sampler_steps or min(30 if config.sampler == "dpm_solver" else 250, config.timesteps)


def draw(key, setup: Setup, params, label=None, w=0.0):
    """One image by the configured sampler, as stored; of a class at guidance weight w, or of any."""
    schedule = setup.schedule(params)
    key_start, key_chain = jax.random.split(key)
    start = jax.random.normal(key_start, setup.networks.shape)
    denoiser, _ = setup.bind(params, label)
    if label is not None:
        denoiser = guidance.guided(denoiser, setup.bind(params)[0], w)
    ladder = samplers.descent(schedule, sampler_steps(setup.config))
    match setup.config.sampler:
        case "ancestral":
            kernel = reverse_kernel(denoiser, setup.variance(params["network"], label))
            x0 = samplers.ancestral(key_chain, kernel, ladder, start)
        case "ddim":
            x0 = samplers.ancestral(key_chain, samplers.ddim_kernel(denoiser), ladder, start)
        case "heun":
            x0 = samplers.heun(denoiser, ladder, start)
        case "dpm_solver":
            x0 = samplers.dpm_solver(denoiser, ladder, start)
    return setup.stored(x0)


def guided_samples(key, setup: Setup, params):
    """`(weights, classes, PER_CLASS, *shape)`; the same noise at every weight."""
    keys = jax.random.split(key, (CLASSES, PER_CLASS))

    @jax.jit
    def block(params, w):
        one = jax.vmap(lambda key, label: draw(key, setup, params, label, w), (0, None))
        return jax.vmap(one)(keys, jnp.arange(CLASSES))

    return jnp.stack([block(params, jnp.float32(w)) for w in setup.config.guidance])


def of_class(setup: Setup, drawn) -> dict[str, cards.Number]:
    """How many guided samples the nearest training image says are of the class asked for, and how many test images."""
    data = setup.data
    known, known_labels = jnp.asarray(data.train_images[:10_000], jnp.float32), jnp.asarray(data.train_labels[:10_000])
    test, asked = jnp.asarray(data.test_images[:1000], jnp.float32), jnp.repeat(jnp.arange(CLASSES), PER_CLASS)

    def right(images, labels) -> cards.Number:
        found = conditional.nearest_label(known, known_labels, images.reshape(-1, *test.shape[1:])) == labels
        estimate = evaluation.over_examples(found.astype(jnp.float32))
        return cards.number(estimate.value, estimate.standard_error, unit="fraction")

    numbers = {f"of_class_w{w:g}": right(block, asked) for w, block in zip(setup.config.guidance, drawn, strict=True)}
    return numbers | {"nearest_accuracy": right(test, data.test_labels[:1000])}


def draw_figures(key, setup: Setup, params, guided, bound: DiffusionBound) -> dict[str, Any]:
    """The run's pictures by name."""
    key_samples, key_both, key_known = jax.random.split(key, 3)
    config, data, schedule = setup.config, setup.data, setup.schedule(params)
    denoiser, model = setup.bind(params)
    test = jnp.asarray(data.test_images[:12], jnp.float32)
    train = jnp.asarray(data.train_images[:10_000], jnp.float32)
    drawn = jax.jit(jax.vmap(lambda key: draw(key, setup, params)))(jax.random.split(key_samples, 60))
    nearest = train[conditional.nearest_label(train, jnp.arange(len(train)), drawn)]
    figures = {
        "samples": diffusion_pictures.samples(drawn, nearest),
        "both_ways": diffusion_pictures.both_ways(key_both, denoiser, model.reverse, schedule, setup.embed(test[0])),
        "inpainting": diffusion_pictures.inpainting(key_known, model, schedule, test, setup.stored),
    }
    if guided is not None:
        figures["guidance"] = diffusion_pictures.guidance(guided[:, :, :4], config.guidance, data.class_names)
    if not config.eval_times:
        figures["terms"] = diffusion_pictures.terms(bound, schedule, test[0].size)
    return figures


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        data = load_data(config.dataset, run, batch_size=config.batch_size, validation=config.validation).on_device()
        if config.eval_images > len(data.test_images):
            raise ValueError(f"eval_images must be at most the {len(data.test_images)} test images")
        log_prior = (
            log_frequencies(jnp.asarray(data.train_images), levels=data.levels)
            if config.prediction == "levels"
            else None
        )
        setup = Setup(config, data, build(config, data.train_images.shape[1:], data.levels, log_prior))
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        optimizer = make_optimizer(config)
        state = training.init_state(jax.jit(setup.init)(key_init), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open(f"ddpm-{config.dataset}", config, run, state, begin=begin)

    with experiment.running():
        batch = datasets.batches(key_data, (data.train_images, data.train_labels), config.batch_size)
        state = experiment.train(
            key_train, make_loss(setup), batch, optimizer, state, steps=config.steps, ema_decay=config.ema_decay
        )
        key_bound, key_guided, key_pictures = jax.random.split(key_test, 3)
        params, count = state.averaged, config.eval_images or len(data.test_images)
        numbers, bound = likelihoods(key_bound, setup, params, data.test_images[:count], data.test_labels[:count])
        guided = guided_samples(key_guided, setup, params) if config.conditional else None
        if guided is not None:
            numbers |= of_class(setup, guided)
        return experiment.finish(numbers, draw_figures(key_pictures, setup, params, guided, bound))


if __name__ == "__main__":
    main(*command_line(__doc__, Config(), by_dataset=DEFAULTS))
