"""Train a cycle-consistent pair of GANs between two rings of Gaussians, and say which map it found.

    python experiments/cycle_gan.py                 # a minute or two
    python experiments/cycle_gan.py --identity 0    # nothing prefers the map that moves points least
    python experiments/cycle_gan.py --cycle 0       # two GANs that need not undo each other
    python experiments/cycle_gan.py --resume        # go on after an interruption

The second ring is the first one, turned and shrunk. No pairs are shown. Each generator maps one law onto the other,
and the cycle loss asks that they undo each other; but any matching of the modes will do, sixteen turns and reflections
of the ring among them, and neither loss prefers one: the identity loss does. The card says whether the modes are
matched one to one, how far from its start a round trip ends, and how far points are moved. Look at pictures/pair.png
first.
"""

import dataclasses
import functools
import math

from vbjax.cli import start_jax

start_jax()

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from vbjax import cards, datasets, evaluation, objectives, sample_quality, training
from vbjax.experiment import Experiment, Run, check_counts, command_line, preparing
from vbjax.gan import cycle, penalties, values
from vbjax.networks.gan import mlp_gan
from vbjax.reports import gan_pictures

MODES, RADIUS, SCALE = 8, 2.0, 0.05
DIRECTIONS = ("forward", "backward")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed. Two runs with the same configuration give the same bits on the same machine."""

    turn: float = 15.0
    """By how many degrees the second ring is turned; modes are 45 apart."""
    shrink: float = 0.75
    """Its size, of the first one's."""
    cycle: float = 5.0
    """Weight of the cycle loss, the mean absolute difference of a coordinate after a round trip."""
    identity: float = 5.0
    """Weight of the identity loss at first: points that are in a generator's range are to stay. It falls to zero
    half-way, because the true maps do not leave them alone."""
    r1: float = 0.02
    """Weight of the squared slope of the discriminators at the data."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of all four perceptrons."""
    steps: int = 4000
    """Training steps of all players, who move at once."""
    batch_size: int = 128
    """Points of each ring per step."""
    learning_rate: float = 2e-3
    """Of the discriminators' Adam; it falls to zero along a cosine."""
    generator_rate: float = 1e-3
    """Of the generators' Adam, likewise."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated; 0 switches it off."""
    seed: int = 0
    """Everything random follows from it."""
    eval_samples: int = 2000
    """Points of each ring that are mapped and compared."""


def validate(config: Config, run: Run) -> None:
    """Raise ValueError, naming the field, for whatever cannot be done."""
    check_counts(config, run, eval_samples=10)
    for name in ("cycle", "identity", "r1"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be zero or a positive number, got {getattr(config, name)}")
    if not 0.1 <= config.shrink <= 10 or not math.isfinite(config.turn):
        raise ValueError(f"shrink must lie in [0.1, 10] and turn be finite, got {config.shrink} and {config.turn}")
    training.init_state({}, make_optimizer(config), ema_decay=config.ema_decay)


def make_optimizer(config: Config):
    """One Adam for both generators and one for both discriminators."""

    def adam(rate: float):
        return training.make_optimizer(learning_rate=rate, schedule="cosine", steps=config.steps, beta1=0.5, beta2=0.99)

    return training.each({"generator": adam(config.generator_rate), "discriminator": adam(config.learning_rate)})


def second_ring(config: Config, points):
    """The points of the first ring, turned and shrunk."""
    angle = math.radians(config.turn)
    rotation = jnp.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return config.shrink * points @ rotation.T


def least_move(first, second):
    """The mean distance from the modes of one ring to those of the other, matched by the turn that moves them least.

    No one-to-one matching moves them less: that turn leads every mode to a nearest one.
    """
    turned = jnp.stack([jnp.roll(second, -k, axis=0) for k in range(len(second))])
    return jnp.linalg.norm(turned - first[None], axis=-1).mean(1).min()


def draw(config: Config, key):
    """One point of each ring, independent of each other."""
    first, second = jax.vmap(
        functools.partial(datasets.gaussian_mixture_ring, components=MODES, radius=RADIUS, scale=SCALE)
    )(jax.random.split(key))
    return first, second_ring(config, second)


class Players:
    """The two generators and discriminators of `mlp_gan`, by direction: the discriminator judges where it leads."""

    def __init__(self, config: Config):
        self.networks = mlp_gan((2,), latent_dim=2, hidden=config.hidden)

    def init(self, key):
        """Fresh parameters: `{"generator": {"forward": ..., "backward": ...}, "discriminator": ...}`."""
        both = [self.networks.init(k) for k in jax.random.split(key)]
        return {
            player: dict(zip(DIRECTIONS, (p[player] for p in both), strict=True))
            for player in ("generator", "discriminator")
        }

    def pair(self, params) -> cycle.Pair:
        """The generators as maps. They do not start from the identity, which would choose a map by itself."""
        return cycle.Pair(*(self.networks.generate({"generator": params["generator"][d]}) for d in DIRECTIONS))

    def judges(self, params):
        """The discriminators, of the second ring and of the first."""
        return [self.networks.discriminate({"discriminator": params["discriminator"][d]}) for d in DIRECTIONS]


def make_loss(config: Config, players: Players):
    """What all players minimise on `((first, second), step)`, added up: each side is constant for the other."""
    game = values.non_saturating

    def example(params, identity, x, y):
        pair = players.pair(params)
        fixed = players.judges(jax.lax.stop_gradient(params))
        ways = zip(pair, players.judges(params), fixed, (x, y), (y, x), strict=True)
        games = [
            {
                "discriminator": values.discriminator_loss(game, judge, target, generator(source)),
                "generator": values.generator_loss(game, opponent, generator, source),
                "r1": config.r1 * penalties.r1(judge, target),
            }
            for generator, judge, opponent, source, target in ways
        ]
        return jax.tree.map(jnp.add, *games) | {
            "cycle": config.cycle * cycle.cycle_loss(pair, x, y).total(),
            "identity": identity * cycle.identity_loss(pair, x, y).total(),
        }

    def loss(key, params, batch):
        points, step = batch
        identity = config.identity * (1 - objectives.ramp(step, max(1, config.steps // 2)))
        terms = jax.vmap(example, (None, None, 0, 0))(params, identity, *points)
        terms = jax.tree.map(lambda v: v.mean(), terms)
        return jnp.stack([*terms.values()]).sum(), terms

    return loss


def evaluate(key, config: Config, players: Players, params):
    """The card's numbers and the picture."""
    pair = players.pair(params)
    modes = datasets.ring_modes(MODES, RADIUS)
    centres = (modes, second_ring(config, modes))

    @jax.jit
    def measure(key):
        points = jax.vmap(lambda k: draw(config, k))(jax.random.split(key, config.eval_samples))
        moved = [jax.vmap(m)(x) for m, x in zip(pair, points, strict=True)]
        back = [jax.vmap(m)(x) for m, x in zip(pair[::-1], moved, strict=True)]
        quality = []
        for landed, there, size in zip(moved, centres[::-1], (config.shrink, 1.0), strict=True):
            assigned, distance = jax.vmap(sample_quality.nearest_mode, (0, None))(landed, there)
            near = distance < 3 * SCALE * size
            quality.append((sample_quality.mode_coverage(assigned, near, modes=MODES), near.astype(jnp.float32)))
        home = [jnp.linalg.norm(b - x, axis=1) for b, x in zip(back, points, strict=True)]
        far = jnp.linalg.norm(moved[0] - points[0], axis=1)
        # where each mode's centre is sent
        sent = jax.vmap(lambda x: sample_quality.nearest_mode(pair.forward(x), centres[1])[0])(centres[0])
        return points, moved, quality, home, far, sent

    points, moved, quality, home, far, sent = measure(key)
    numbers = {}
    for name, (cover, near), gap in zip(DIRECTIONS, quality, home, strict=True):
        share, error = evaluation.over_examples(near), evaluation.over_examples(gap)
        numbers |= {
            f"{name}_modes_covered": cards.number(cover.covered, unit=f"of {MODES}"),
            f"{name}_high_quality": cards.number(share.value, share.standard_error, unit="fraction"),
            f"{name}_and_back": cards.number(error.value, error.standard_error, unit="mean distance"),
        }
    turns = jnp.bincount((sent - jnp.arange(MODES)) % MODES, length=MODES)
    moves = evaluation.over_examples(far)
    return numbers | {
        "modes_matched": cards.number(len(set(sent.tolist())), unit=f"of {MODES}, one to one"),
        "turned": cards.number(turns.argmax(), unit="modes further than the true turn, for most of them"),
        "turned_alike": cards.number(turns.max(), unit=f"of {MODES}; few for a reflection"),
        "moved": cards.number(moves.value, moves.standard_error, unit="mean distance"),
        "moved_least": cards.number(least_move(*centres), unit="mean distance of the modes, of the nearest turn"),
    }, {"pair": gan_pictures.pair(points[0], moved[0], points[1], moved[1])}


def main(config: Config, run: Run) -> cards.Card:
    """Train, evaluate, draw; returns the result card that the run folder holds."""
    with preparing() as begin:
        validate(config, run)
        players, optimizer = Players(config), make_optimizer(config)
        key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(config.seed), 4)
        state = training.init_state(jax.jit(players.init)(key_init), optimizer, ema_decay=config.ema_decay)
        experiment = Experiment.open("cycle-gan", config, run, state, begin=begin)

    with experiment.running():

        def batch(key, step):
            keys = jax.random.split(jax.random.fold_in(key, step), config.batch_size)
            return jax.vmap(lambda k: draw(config, k))(keys)

        state = experiment.train(
            key_train,
            make_loss(config, players),
            datasets.numbered(Partial(batch, key_data)),
            optimizer,
            state,
            steps=config.steps,
            ema_decay=config.ema_decay,
        )
        return experiment.finish(*evaluate(key_test, config, players, state.averaged))


if __name__ == "__main__":
    main(*command_line(__doc__, Config()))
