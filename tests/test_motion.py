"""Synthetic motion against a Kalman filter, scores of futures against loops, the script as users run it."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from experiments import motion as script
from tests.oracles import holds_only_for, z_threshold
from vbjax import cards, motion
from vbjax.datasets import motion as walking
from vbjax.diffusion import anisotropic
from vbjax.experiment import Run
from vbjax.networks.motion import motion_networks
from vbjax.reports import motion_pictures

PAST, FUTURE = 3, 2


@pytest.fixture
def float64():
    """For one test: networks and script run as they are, in float32."""
    with jax.enable_x64(True):
        yield


def kalman(law, motions, scale):
    """log p(motion, gait) of centred motions `(n, frames, 3 joints)`, `(n, G)`: a filter, frame by frame."""
    result = np.tile(np.log(law.weights), (len(motions), 1))
    for g, (A, H, start, noise) in enumerate(
        zip(law.transition, law.observation / scale, law.stationary, law.state_scale, strict=True)
    ):
        for n, moved in enumerate(motions):
            mean, covariance = np.zeros(len(A)), np.diag(start**2)
            for x in moved:
                innovation = H @ covariance @ H.T + (law.jitter / scale) ** 2 * np.eye(len(H))
                result[n, g] += stats.multivariate_normal(H @ mean, innovation).logpdf(x)
                gain = np.linalg.solve(innovation, H @ covariance).T
                mean, covariance = mean + gain @ (x - H @ mean), covariance - gain @ H @ covariance
                mean, covariance = A @ mean, A @ covariance @ A.T + np.diag(noise**2)
    return result


def test_the_exact_conditional_is_that_of_a_kalman_filter(float64):
    law, scale = walking.walker(), 0.2
    # a short past and small motions, so that no gait is certain
    motions = 0.3 * np.random.default_rng(0).normal(size=(3, PAST + FUTURE, 33))
    joint, seen = kalman(law, motions, scale), kalman(law, motions[:, :PAST], scale)
    given = jnp.asarray(motions).reshape(3, PAST + FUTURE, 11, 3)

    def agrees(weights):
        exact = motion.conditional(law._replace(weights=weights), past=PAST, future=FUTURE, scale=scale)
        nats = jax.jit(jax.vmap(lambda m: exact.law(m[:PAST]).log_prob(m[PAST:].ravel())))(given)
        gaits = jax.jit(jax.vmap(lambda m: exact.gait(m[:PAST])))(given)
        np.testing.assert_allclose(special.log_softmax(gaits, 1), special.log_softmax(seen, 1), atol=1e-8)
        np.testing.assert_allclose(nats, special.logsumexp(joint, 1) - special.logsumexp(seen, 1), rtol=1e-9)

    holds_only_for(agrees, law.weights, np.array([0.3, 0.4, 0.3]))


def test_drawn_motions_have_the_laws_mean_and_covariance():
    law, frames, count = walking.walker(), 3, 4000
    drawn = jax.jit(jax.vmap(lambda key: law.sample(key, frames)))(jax.random.split(jax.random.key(0), count))
    directions = np.random.default_rng(1).normal(size=(40, frames * 33)) / 10
    centred = (np.asarray(drawn, np.float64) - law.pose).reshape(count, -1) @ directions.T

    def agrees(covariances):
        assert np.abs(centred.mean(0) / (centred.std(0) / math.sqrt(count))).max() < z_threshold(80)
        variance = np.einsum("g,di,gij,dj->d", law.weights, directions, covariances, directions, optimize=True)
        square = centred**2
        assert np.abs((square.mean(0) - variance) / (square.std(0) / math.sqrt(count))).max() < z_threshold(80)

    holds_only_for(agrees, law.covariances(frames), walking.walker(jitter=0.04).covariances(frames))


def test_past_and_future_do_not_swap_and_trees_are_trees():
    moved = jnp.zeros((5, 11, 3))
    past, future = walking.split(moved, 3, 2)
    assert (past.shape, future.shape) == ((3, 11, 3), (2, 11, 3))
    for frames in [(3, 3), (0, 5), (5, 0)]:
        with pytest.raises(ValueError, match="frames of joints"):
            walking.split(moved, *frames)
    exact = motion.conditional(walking.walker(), past=3, future=2)
    with pytest.raises(ValueError, match="swapped"):
        exact.law(future)
    denoiser = motion_networks(past=3, future=2, joints=11, hidden=4, blocks=1).bind({})
    with pytest.raises(ValueError, match="past must have shape"):
        denoiser(future)
    with pytest.raises(ValueError, match="before their joints"):
        walking.adjacency((-1, 2, 1))
    np.testing.assert_array_equal(walking.adjacency((-1, 0, 1)), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_scores_of_futures_are_those_of_loops_and_order_the_diverse_and_the_collapsed(float64):
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(4, 5, 3))
    diverse = truth + rng.normal(size=(8, 4, 5, 3)) * np.linspace(0.2, 1, 8)[:, None, None, None]
    collapsed = np.repeat(truth[None] + 0.4 * rng.normal(size=(1, 4, 5, 3)), 8, 0)

    def by_loops(futures):
        distances = [[np.linalg.norm(f - t) for f, t in zip(future, truth, strict=True)] for future in futures]
        pairs = [np.linalg.norm(a - b) for a, b in itertools.permutations(futures, 2)]
        whole = np.mean([np.linalg.norm(future - truth) for future in futures])
        final = min(d[-1] for d in distances)
        return min(map(np.mean, distances)), final, np.mean(pairs), whole - np.mean(pairs) / 2

    def scores(futures):
        errors = motion.best_of(jnp.asarray(futures), jnp.asarray(truth))
        apd = motion.diversity(jnp.asarray(futures))
        return *errors, apd, motion.energy_score(jnp.asarray(futures), jnp.asarray(truth))

    for futures in (diverse, collapsed):
        np.testing.assert_allclose(scores(futures), by_loops(futures), rtol=1e-12, atol=1e-12)
    assert scores(diverse)[0] < scores(collapsed)[0]
    assert scores(diverse)[2] > scores(collapsed)[2] == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        motion.best_of(jnp.asarray(diverse), jnp.asarray(truth[:3]))
    for needs_two in (motion.diversity, lambda futures: motion.energy_score(futures, jnp.asarray(truth))):
        with pytest.raises(ValueError, match="at least two"):
            needs_two(jnp.asarray(diverse[:1]))


def test_the_energy_score_of_exact_futures_is_unbiased_and_the_least():
    """Standard normal in three dimensions: E‖X - Y‖ = 4/√π, of which the exact law scores one half."""
    truth, noise = (jax.random.normal(jax.random.key(i), (20_000, *k, 1, 1, 3)) for i, k in enumerate([(), (3,)]))
    score = jax.jit(jax.vmap(motion.energy_score))

    def exact(scores):
        z = (scores.mean() - 2 / math.sqrt(math.pi)) / (scores.std() / math.sqrt(20_000))
        assert abs(z) < z_threshold(1)

    # counting a future's distance to itself; futures too narrow, which the best of K alone would not tell
    of_itself = score(noise, truth) + jax.vmap(motion.diversity)(noise) / 2 * (1 - 2 / 3)
    holds_only_for(exact, score(noise, truth), of_itself, score(0.7 * noise, truth))
    assert score(0.7 * noise, truth).mean() > score(noise, truth).mean()


def test_the_interval_is_students_over_seeds_and_over_motions():
    seeds = np.array([1.0, 1.4, 0.7])
    number = script.number(np.repeat(seeds[:, None], 50, 1), unit="m")
    np.testing.assert_allclose(number.interval, stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds)))
    motions = np.random.default_rng(3).normal(size=30)
    number = script.number(motions[None], unit="m")
    np.testing.assert_allclose(number.interval, stats.t.interval(0.95, 29, motions.mean(), stats.sem(motions)))


TINY = script.Config(
    past=2,
    future=3,
    diffusion_steps=4,
    hidden=8,
    blocks=1,
    steps=4,
    batch_size=4,
    seeds=2,
    futures=5,
    test_motions=8,
)


@pytest.mark.long
def test_the_script_writes_a_card_with_paired_gains_and_resumes_to_the_same_numbers(tmp_path):
    run, folder = Run(out=tmp_path / "run", quiet=True), tmp_path / "run"
    # JAX takes the keys of a scan under vmap for consumed
    with jax.debug_key_reuse(False):
        card = script.main(TINY, run)
        assert cards.load_card(folder / "card.json").numbers == card.numbers
        pictures = {path.name for path in folder.rglob("*.png")}
        assert pictures == {"futures_1.png", "futures_2.png", "diffusion.png", "spectra.png"}
        for score in ("bound", "ade", "apd"):
            gain = card.numbers[f"gain_{score}"]
            white, along = (card.numbers[f"{noise}_{score}"].value for noise in script.NOISES)
            assert math.isclose(gain.value, white - along, rel_tol=1e-4, abs_tol=1e-6)
            assert gain.interval[0] < gain.value < gain.interval[1]
        again = script.main(TINY, dataclasses.replace(run, resume=True))
    assert again.numbers == card.numbers


@pytest.mark.slow
def test_models_trained_side_by_side_have_the_gradients_of_each_alone():
    setting, networks = script.Setting.of(TINY), script.build(TINY)
    params = script.init(jax.random.key(0), TINY, networks)
    batch = script.make_batch(jax.random.key(1), TINY, setting)(jnp.int32(0))

    @jax.jit
    def gradient(params):
        loss = script.make_loss(TINY, networks, setting)
        return jax.grad(lambda p: loss(jax.random.key(2), p, batch)[0])(params)

    # both noises see the same keys, on purpose
    with jax.debug_key_reuse(False):
        together = gradient(params)
        # all but one model are moved
        moved = jax.tree.map(lambda v: (v + 0.1).at[0, 0].set(v[0, 0]), params)
        elsewhere = gradient(moved)
    for kept, alone in zip(jax.tree.leaves(together), jax.tree.leaves(elsewhere), strict=True):
        np.testing.assert_allclose(kept[0, 0], alone[0, 0], rtol=1e-5, atol=1e-7)
    leaves = jax.tree.leaves(together)
    assert any(np.abs(v[0] - v[1]).max() > 1e-4 for v in leaves), "the noises differ"
    np.testing.assert_array_equal(*(jax.tree.leaves(params)[1][w] for w in range(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing": 0.0}, "mixing"),
        ({"mixing": 1.0}, "mixing"),
        ({"gamma_first": 8.0}, "gamma_first"),
        ({"diffusion_steps": 1}, "diffusion_steps"),
        ({"futures": 1}, "futures"),
        ({"past": 0}, "past"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as status:
        script.main(dataclasses.replace(TINY, **changes), Run(out=tmp_path / "run", quiet=True))
    assert status.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pictures_show_a_past_a_truth_and_every_model():
    rng = np.random.default_rng(4)
    past, truth, drawn = rng.normal(size=(2, 11, 3)), rng.normal(size=(3, 11, 3)), rng.normal(size=(4, 3, 11, 3))
    figure = motion_pictures.futures(past, truth, {"exact": drawn}, walking.PARENTS)
    lines = [len(cell.lines) for cell in figure.axes]
    # ten bones and a head for each skeleton
    assert lines == [11, 11, 11, 11, 11, 11, 11, 44, 44, 44]


def test_an_untrained_network_takes_the_data_for_white_noise_of_variance_one():
    """x̂_0 = √ᾱ x_t, whose ε̂ = σ x_t needs no training where the data are such."""
    networks = motion_networks(past=2, future=3, joints=11, hidden=4, blocks=1)
    noise, x_t = script.Setting.of(TINY).noises[0], jax.random.normal(jax.random.key(1), (3, 11, 3))
    params = networks.init(jax.random.key(0))
    x0 = networks.bind(params)(jnp.zeros((2, 11, 3)))(x_t, noise.at(2))
    np.testing.assert_allclose(x0, anisotropic.signal(noise.at(2)) * x_t, rtol=1e-6)
