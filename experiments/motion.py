"""Predict the motion of a skeleton by diffusion, with noise that follows the skeleton and with white noise.

    python experiments/motion.py                 # some minutes on two cores; needs no data
    python experiments/motion.py --resume        # go on after an interruption

Two diffusion models of the future given the past, trained on the same batches, times and noise by the same network
from the same start; only the covariance of the noise over the joints differs. Their reverse variances are measured on
fresh motions, one for each mode and time. The motions are synthetic, of a known law: so the card holds, beside each
model's bound on -log p(future|past), the exact value, and beside its sets of futures those of the exact law.

Everything is repeated for several seeds in one run, and the differences are paired: `gain_...` is white less
anisotropic, positive where noise along the skeleton wins (for apd: where it is less diverse), with an interval over
seeds and test motions. `white_prior_...` starts the anisotropic model from white noise, the usual mistake.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import stats

from vbjax import cards, motion, training
from vbjax.datasets import motion as walking
from vbjax.diffusion import anisotropic
from vbjax.diffusion.schedules import Schedule
from vbjax.distributions import Normal
from vbjax.experiment import Experiment, Run, check_counts, command_line, preparing
from vbjax.networks.motion import MotionNetworks, motion_networks
from vbjax.reports import motion_pictures

NOISES = ("isotropic", "anisotropic")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed. Two runs with the same configuration give the same bits on the same machine."""

    past: int = 4
    """Frames that are seen."""
    future: int = 8
    """Frames that are predicted."""
    mixing: float = 0.5
    """Share of the skeleton's covariance in the noise, in (0, 1); the rest is white."""
    diffusion_steps: int = 40
    """Steps T of the diffusion, equally spaced in the noise level γ."""
    gamma_first: float = -8.0
    """γ_1 = log((1-ᾱ_1)/ᾱ_1); data have variance one."""
    gamma_last: float = 7.0
    """γ_T."""
    hidden: int = 256
    """Width of the network."""
    blocks: int = 3
    """Residual blocks of the network."""
    steps: int = 3000
    """Training steps."""
    batch_size: int = 64
    """Fresh motions per step and seed."""
    learning_rate: float = 3e-3
    """Peak learning rate of Adam, which falls to zero along a cosine."""
    ema_decay: float = 0.998
    """Decay of the moving average of the parameters, which is what gets evaluated; 0 switches it off."""
    seeds: int = 3
    """Independent repetitions: start, batches, times and noise."""
    futures: int = 16
    """K, futures drawn for each past."""
    test_motions: int = 256
    """Test motions for the bound; a quarter of them, at least two, for the sets of futures."""
    seed: int = 0
    """Everything random follows from it."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever can be refused without work."""
    check_counts(config, run, diffusion_steps=2, futures=2, test_motions=2)
    if not 0 < config.mixing < 1:
        raise ValueError(f"mixing must lie in (0, 1): 0 is the white noise it is compared with; got {config.mixing}")
    if not -30 < config.gamma_first < config.gamma_last < 30:
        raise ValueError(
            "gamma_first must be below gamma_last, and both between -30 and 30, "
            f"got {config.gamma_first} and {config.gamma_last}"
        )
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)


def make_optimizer(config: Config):
    """Adam as configured; nothing in it couples the models, which are trained side by side."""
    return training.make_optimizer(learning_rate=config.learning_rate, schedule="cosine", steps=config.steps)


def build(config: Config) -> MotionNetworks:
    """The network, the same for all noises."""
    joints = len(walking.PARENTS)
    return motion_networks(
        past=config.past, future=config.future, joints=joints, hidden=config.hidden, blocks=config.blocks
    )


def init(key, config: Config, networks: MotionNetworks):
    """Parameters of all models, with a leading axis for the noises, which start alike, and one for the seeds."""

    @jax.jit
    def fresh(key):
        seeds = jax.vmap(networks.init)(jax.random.split(key, config.seeds))
        return jax.tree.map(lambda v: jnp.stack([v] * len(NOISES)), seeds)

    return fresh(key)


class Setting(NamedTuple):
    """The law of the motions and what follows from it. noises: the schedules of `NOISES`; scale: metres per unit."""

    law: walking.MotionLaw
    exact: motion.Conditional
    noises: tuple[anisotropic.AnisotropicSchedule, ...]
    scale: float
    past: int
    future: int

    @classmethod
    def of(cls, config: Config) -> "Setting":
        """As configured; raises ValueError for a mixing out of range."""
        law = walking.walker()
        frames = config.past + config.future
        variance = np.einsum("g,gii->i", law.weights, law.covariances(frames)).mean()
        scale = float(np.sqrt(variance))
        gammas = Schedule(jnp.linspace(config.gamma_first, config.gamma_last, config.diffusion_steps))
        graph = walking.adjacency(walking.PARENTS)
        noises = tuple(anisotropic.anisotropic(gammas, graph, mixing) for mixing in (0.0, config.mixing))
        exact = motion.conditional(law, past=config.past, future=config.future, scale=scale)
        return cls(law, exact, noises, scale, config.past, config.future)

    def motions(self, keys):
        """A past and its future for each key, centred on the pose and of variance one."""
        pose = jnp.asarray(self.law.pose, jnp.float32)[None]

        def one(key):
            drawn = (self.law.sample(key, self.past + self.future) - pose) / self.scale
            return walking.split(drawn, self.past, self.future)

        return jax.vmap(one)(keys)

    def in_metres(self, motions):
        """Positions again."""
        return np.asarray(motions) * self.scale + self.law.pose


def make_batch(key, config: Config, setting: Setting) -> Partial:
    """`step -> (pasts, futures)`, each `(batch, seeds, frames, joints, 3)`: fresh motions at every step."""

    def batch(step):
        keys = jax.random.split(jax.random.fold_in(key, step), config.batch_size * config.seeds)
        drawn = setting.motions(keys)
        return jax.tree.map(lambda v: v.reshape(config.batch_size, config.seeds, *v.shape[1:]), drawn)

    return Partial(batch)


def make_loss(config: Config, networks: MotionNetworks, setting: Setting):
    """Sum over all models of the mean error of ε̂: each model's gradient is its own.

    All noises see the same motions, times and keys.
    """
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *setting.noises)

    def one(params, noise, key, past, future):
        key_time, key_noise = jax.random.split(key)
        t = jax.random.randint(key_time, (), 1, noise.steps + 1)
        return anisotropic.noise_error(key_noise, networks.bind(params)(past), noise, future, t)

    examples = jax.vmap(one, (None, None, 0, 0, 0))
    seeds = jax.vmap(examples, (0, None, 1, 1, 1))
    models = jax.vmap(seeds, (0, 0, None, None, None))

    def loss(key, params, batch):
        pasts, futures = batch
        keys = jax.random.split(key, pasts.shape[:2])
        errors = models(params, stacked, keys, pasts, futures).mean(2)
        return errors.sum(), dict(zip(NOISES, errors.mean(1), strict=True))

    return loss


def measure_errors(key, networks: MotionNetworks, setting: Setting, params, *, motions: int):
    """Errors of every denoiser in its modes at every time, `(noises, seeds, T, joints)`, on fresh motions."""
    key_data, key_noise = jax.random.split(key)
    keys = jax.random.split(key_noise, motions)
    pasts, futures = jax.jit(setting.motions)(jax.random.split(key_data, motions))

    @jax.jit
    def errors(params, noise):
        def one(key, past, future):
            return anisotropic.mode_errors(key, networks.bind(params)(past), noise, future)

        return jax.vmap(one)(keys, pasts, futures).mean(0)

    seeds = range(jax.tree.leaves(params)[0].shape[1])
    rows = [
        [errors(jax.tree.map(lambda v, w=w, s=s: v[w, s], params), noise) for s in seeds]
        for w, noise in enumerate(setting.noises)
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


def evaluate(
    key, config: Config, networks: MotionNetworks, setting: Setting, params, errors
) -> tuple[dict[str, Any], Any]:
    """Scores `(seeds, motions)` of every noise, of the exact law and of the white prior; and futures of a few pasts."""
    key_data, key_bound, key_sample, key_exact = jax.random.split(key, 4)
    pasts, futures = jax.jit(setting.motions)(jax.random.split(key_data, config.test_motions))
    few = max(2, config.test_motions // 4)
    bound_keys = jax.random.split(key_bound, config.test_motions)
    sample_keys = jax.random.split(key_sample, (few, config.futures))

    def model_of(member, noise, past, white):
        params, errors = member
        variance = anisotropic.measured_variance(noise, errors)
        model = anisotropic.denoising_model(networks.bind(params)(past), noise, futures.shape[1:], variance=variance)
        unit = Normal(jnp.zeros(futures.shape[1:]), jnp.ones(futures.shape[1:]))
        return model._replace(prior=jax.tree.map(lambda a, b: jnp.where(white, a, b), unit, model.prior))

    @jax.jit
    def bounds(member, noise, white):
        def one(key, past, future):
            model = model_of(member, noise, past, white)
            return anisotropic.diffusion_bound(key, model, noise, future).total()

        return jax.vmap(one)(bound_keys, pasts, futures)

    @jax.jit
    def draw(member, noise, white):
        def one(keys, past):
            return jax.vmap(lambda key: anisotropic.sample(key, model_of(member, noise, past, white), noise))(keys)

        return jax.vmap(one)(sample_keys, pasts[:few])

    @jax.jit
    def exact():
        laws = lambda past: setting.exact.law(past)  # noqa: E731
        nll = jax.vmap(lambda past, future: -laws(past).log_prob(future.ravel()))(pasts, futures)
        keys = jax.random.split(key_exact, few)
        drawn = jax.vmap(lambda key, past: laws(past).sample(key, (config.futures,)))(keys, pasts[:few])
        return nll, drawn.reshape(few, config.futures, *futures.shape[1:])

    @jax.jit
    def scores(drawn):
        def one(drawn, truth):
            drawn, truth = drawn * setting.scale, truth * setting.scale
            errors = motion.best_of(drawn, truth)
            return {
                "ade": errors.average,
                "fde": errors.final,
                "apd": motion.diversity(drawn),
                "energy": motion.energy_score(drawn, truth),
            }

        return jax.vmap(one)(drawn, futures[:few])

    nll, drawn = exact()
    rows: dict[str, Any] = {"exact": {"nll": nll[None]} | {name: v[None] for name, v in scores(drawn).items()}}
    shown = {"exact": drawn}
    for name, which, white in [("isotropic", 0, False), ("anisotropic", 1, False), ("white_prior", 1, True)]:
        members = [jax.tree.map(lambda v, s=s, w=which: v[w, s], (params, errors)) for s in range(config.seeds)]
        noise = setting.noises[which]
        results = [bounds(member, noise, white) for member in members]
        samples = [draw(member, noise, white) for member in members]
        rows[name] = {"bound": jnp.stack(results)}
        rows[name] |= jax.tree.map(lambda *v: jnp.stack(v), *[scores(drawn) for drawn in samples])
        shown[name] = samples[0]
    return rows, (pasts, futures, shown)


def number(values, *, unit: str) -> cards.Number:
    """Mean of scores `(seeds, motions)`, with a 95% interval over both.

    Its variance is that between seeds plus that between motions; Student's t at the degrees of freedom of the fewer.
    One seed says nothing of others: the interval is over motions alone then.
    """
    values = np.asarray(values, np.float64)
    variance, freedom = values.mean(0).var(ddof=1) / values.shape[1], values.shape[1] - 1
    if len(values) > 1:
        variance += values.mean(1).var(ddof=1) / len(values)
        freedom = min(freedom, len(values) - 1)
    mean, error = float(values.mean()), math.sqrt(variance)
    half = float(stats.t.ppf(0.975, freedom)) * error
    return cards.Number(mean, error, (mean - half, mean + half), unit)


UNITS = {"bound": "nats", "ade": "m", "fde": "m", "apd": "m", "energy": "m"}


def numbers(rows: dict[str, Any]) -> dict[str, cards.Number]:
    """What the card holds: every model, its distance to the exact law, and the paired differences.

    excess_bound: bound less exact -log p(future|past), at least KL(exact || model) in mean. excess_energy: half the
    squared energy distance to the exact law, in mean. gain: of the noise along the skeleton over white noise; and of
    the right prior over a white one.
    """
    exact, result = rows["exact"], {}
    result["exact_nll"] = number(exact["nll"], unit="nats")
    result |= {f"exact_{name}": number(v, unit=UNITS[name]) for name, v in exact.items() if name != "nll"}
    for name in (*NOISES, "white_prior"):
        row = rows[name]
        result |= {f"{name}_{score}": number(v, unit=UNITS[score]) for score, v in row.items()}
        result[f"{name}_excess_bound"] = number(row["bound"] - exact["nll"], unit="nats")
        result[f"{name}_excess_energy"] = number(row["energy"] - exact["energy"], unit="m")
    for title, worse in [("gain", "isotropic"), ("gain_of_right_prior", "white_prior")]:
        for score, unit in UNITS.items():
            result[f"{title}_{score}"] = number(rows[worse][score] - rows["anisotropic"][score], unit=unit)
    return result


def pictures(
    key, config: Config, networks: MotionNetworks, setting: Setting, params, errors, evaluated
) -> dict[str, Any]:
    """Futures of one past; a pose through both diffusions, forwards and backwards; spectra in the skeleton's modes."""
    pasts, futures, shown = evaluated
    figures = {}
    for index in range(2):
        drawn = {name: setting.in_metres(shown[name][index, :3]) for name in ("exact", *NOISES)}
        past, truth = setting.in_metres(pasts[index]), setting.in_metres(futures[index])
        figures[f"futures_{index + 1}"] = motion_pictures.futures(past, truth, drawn, walking.PARENTS)

    columns = [round(1 + (config.diffusion_steps - 1) * share) for share in (0, 0.2, 0.35, 0.5, 0.65, 0.8, 1)]
    strip = {}
    for which, name in enumerate(NOISES):
        noise, member = setting.noises[which], jax.tree.map(lambda v, w=which: v[w, 0], params)
        variance = anisotropic.measured_variance(noise, errors[which, 0])
        denoiser = networks.bind(member)(pasts[0])
        model = anisotropic.denoising_model(denoiser, noise, futures.shape[1:], variance=variance)
        x_t = [
            noise.to_joints(anisotropic.marginal(noise.to_modes(futures[0]), noise.at(t)).sample(k))
            for t, k in zip(columns, jax.random.split(key, len(columns)), strict=True)
        ]
        down = jax.jit(lambda k, model=model, noise=noise: anisotropic.sample_path(k, model, noise))(key)
        strip[f"{name},\nforwards →"] = [setting.in_metres(x)[-1] for x in x_t]
        strip[f"{name},\nbackwards ←"] = [setting.in_metres(down[t])[-1] for t in columns]
    figures["diffusion"] = motion_pictures.strip(strip, [f"t = {t}" for t in columns], walking.PARENTS)

    noise, frames = setting.noises[1], setting.past + setting.future
    variances = np.einsum("g,gij->ij", setting.law.weights, setting.law.covariances(frames)) / setting.scale**2
    tril = np.asarray(setting.exact.scale_tril)
    unseen = np.einsum("g,gij,gkj->ik", setting.law.weights, tril, tril)
    eigenvalues = np.linalg.eigvalsh(anisotropic.skeleton_covariance(walking.adjacency(walking.PARENTS)))

    def in_modes(covariance, frames):
        joints = len(walking.PARENTS)
        over_joints = np.einsum("tiatja->ij", covariance.reshape(2 * (frames, joints, 3))) / (3 * frames)
        return np.diag(np.asarray(noise.basis).T @ over_joints @ np.asarray(noise.basis))

    some = [columns[1], columns[3], columns[-1]]
    levels = {
        name: np.stack([anisotropic.mode_variance(n.at(t)) for t in some])
        for name, n in zip(NOISES, setting.noises, strict=True)
    }
    data, left = in_modes(variances, frames), in_modes(unseen, setting.future)
    figures["spectra"] = motion_pictures.spectra(eigenvalues, data, left, levels, [f"t = {t}" for t in some])
    return figures


def main(config: Config, run: Run) -> cards.Card:
    """Train all models side by side, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        networks = build(config)
        setting, optimizer = Setting.of(config), make_optimizer(config)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(init(key_init, config, networks), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open("motion", config, run, state, begin=begin)

    with experiment.running():
        state = experiment.train(
            key_train,
            make_loss(config, networks, setting),
            make_batch(key_data, config, setting),
            optimizer,
            state,
            steps=config.steps,
            ema_decay=config.ema_decay,
        )
        key_errors, key_eval, key_pictures = jax.random.split(key_test, 3)
        errors = measure_errors(key_errors, networks, setting, state.averaged, motions=config.test_motions)
        rows, evaluated = evaluate(key_eval, config, networks, setting, state.averaged, errors)
        figures = pictures(key_pictures, config, networks, setting, state.averaged, errors, evaluated)
        return experiment.finish(numbers(rows), figures)


if __name__ == "__main__":
    main(*command_line(__doc__, Config()))
