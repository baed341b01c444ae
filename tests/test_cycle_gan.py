"""experiments/cycle_gan.py: its second ring, its loss, a short run, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused

from experiments import cycle_gan
from vbjax import cards, runs
from vbjax.gan import values

TINY = cycle_gan.Config(hidden=(8,), batch_size=16, steps=20, eval_samples=60)


def run_in(folder, **options):
    return cycle_gan.Run(out=folder, quiet=True, **options)


def test_the_second_ring_is_the_first_one_turned_and_shrunk():
    config = cycle_gan.Config(turn=30.0, shrink=0.5)
    found = cycle_gan.second_ring(config, jnp.array([[2.0, 0.0], [0.0, 2.0]]))
    as_complex = 0.5 * np.exp(1j * np.pi / 6) * np.array([2, 2j])
    np.testing.assert_allclose(found, np.stack([as_complex.real, as_complex.imag], 1), atol=1e-6)


def test_discriminators_learn_from_their_own_game_and_generators_from_all_but_the_penalty():
    players = cycle_gan.Players(TINY)
    key_init, key_x, key_y = jax.random.split(jax.random.key(0), 3)
    params = jax.jit(players.init)(key_init)
    x, y = jax.random.normal(key_x, (5, 2)), jax.random.normal(key_y, (5, 2))

    def gradient(config, params):
        loss = cycle_gan.make_loss(config, players)
        return jax.grad(lambda params: loss(jax.random.key(1), params, ((x, y), jnp.int32(0)))[0])(params)

    def judging(params):
        pair, game = players.pair(jax.lax.stop_gradient(params)), values.non_saturating
        judges = [jax.vmap(judge) for judge in players.judges(params)]
        there, back = (jax.vmap(m) for m in pair)
        seen = game.real(judges[0](y)) + game.fake(judges[0](there(x)))
        return (seen + game.real(judges[1](x)) + game.fake(judges[1](back(y)))).mean()

    @jax.jit
    def gradients(params):
        bare = dataclasses.replace(TINY, r1=0.0, cycle=0.0, identity=0.0)
        tied = dataclasses.replace(bare, cycle=3.0, identity=2.0)
        return gradient(bare, params), gradient(tied, params), jax.grad(judging)(params)

    bare, tied, own = gradients(params)
    for a, b in ((bare, own), (tied, own)):
        pairs = jax.tree.leaves(jax.tree.map(jnp.subtract, a["discriminator"], b["discriminator"]))
        np.testing.assert_allclose(np.concatenate([np.ravel(leaf) for leaf in pairs]), 0, atol=1e-6)
    moved = jax.tree.leaves(jax.tree.map(jnp.subtract, bare["generator"], tied["generator"]))
    assert max(float(jnp.abs(leaf).max()) for leaf in moved) > 0.1


@pytest.mark.long
def test_a_run_leaves_a_card_a_picture_and_all_terms(tmp_path):
    card = cycle_gan.main(TINY, run_in(tmp_path / "run"))
    assert cards.load_card(tmp_path / "run" / "card.json") == card
    assert {"forward_modes_covered", "backward_and_back", "modes_matched", "turned", "moved"} <= set(card.numbers)
    (row,) = runs.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"discriminator", "generator", "r1", "cycle", "identity"} <= set(row)
    assert [path.stem for path in (tmp_path / "run" / "pictures").iterdir()] == ["pair"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"cycle": -1.0}, "cycle"), ({"shrink": 0.0}, "shrink"), ({"hidden": ()}, "hidden"), ({"steps": 0}, "steps")],
)
def test_bad_input_leaves_with_code_2_one_line_and_no_folder(changes, said, tmp_path, capsys):
    assert_refused(cycle_gan.main, dataclasses.replace(TINY, **changes), run_in(tmp_path / "run"), said, capsys)
