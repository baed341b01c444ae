"""Pixels that look back: the product rule by enumeration, draws by chi-squared, weights that must not look ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import FALSE_ALARM, holds_only_for
from scipy import stats

from vbjax.distributions import Autoregressive, Bernoulli, Categorical, DiscretisedLogisticMixture

pytestmark = pytest.mark.usefixtures("x64")

WEIGHTS = np.random.default_rng(0).normal(size=(4, 4))


def coins():
    return Bernoulli(jnp.asarray([[0.3, -1.0], [0.2, 0.8]]))


def greys():
    draw = np.random.default_rng(1).normal
    return DiscretisedLogisticMixture(draw(size=(2, 2, 3)), draw(size=(2, 2, 3)), np.exp(draw(size=(2, 2, 3))), 3)


@pytest.mark.parametrize("pixels", [coins, greys], ids=["coins", "greys"])
def test_log_probs_sum_to_one_and_are_products_of_conditional_laws(pixels):
    law = Autoregressive(pixels(), WEIGHTS)
    events = pixels().enumerate()
    log_probs = jax.jit(jax.vmap(law.log_prob))(events)
    assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-12)

    # pixel by pixel, from the law's definition, in NumPy
    def product(event, seen):
        levels = 2 if isinstance(law.pixels, Bernoulli) else 3
        position = np.asarray(event).ravel() * (2 / (levels - 1)) - 1
        total = 0.0
        for i in range(4):
            shift = sum(WEIGHTS[i, j] * position[j] for j in seen(i))
            row, column = divmod(i, 2)
            moved = jnp.zeros((2, 2)).at[row, column].set(shift)
            if levels == 2:
                probs = jax.nn.sigmoid(law.pixels.logits + moved)
                total += stats.bernoulli.logpmf(int(event[row, column]), float(probs[row, column]))
            else:
                at = DiscretisedLogisticMixture(
                    law.pixels.logits, law.pixels.loc + moved[..., None], law.pixels.scale, 3
                )
                total += float(at.level_log_prob(jnp.asarray(event))[row, column])
        return total

    some = np.asarray(events)[::7]
    holds_only_for(
        lambda seen: assert_allclose(log_probs[::7], [product(event, seen) for event in some], rtol=1e-10),
        lambda i: range(i),
        lambda i: range(i + 1),  # looks at itself
        lambda i: range(i + 1, 4),  # looks ahead
    )


def test_draws_have_the_enumerated_law():
    law = Autoregressive(coins(), WEIGHTS)
    events = coins().enumerate()
    probs = np.exp(jax.vmap(law.log_prob)(events))
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(0))).reshape(-1, 4)
    number = draws @ [8, 4, 2, 1]
    expected = np.zeros(16)
    expected[(np.asarray(events).reshape(-1, 4) @ [8, 4, 2, 1]).astype(int)] = probs

    def check(law_of_events):
        counts = np.bincount(number.astype(int), minlength=16)
        assert stats.chisquare(counts, law_of_events * len(draws)).pvalue > FALSE_ALARM

    without_weights = np.exp(jax.vmap(coins().log_prob)(events))
    holds_only_for(check, expected, without_weights)


def test_without_weights_it_is_the_law_of_its_pixels_and_the_upper_triangle_does_not_count():
    event = jnp.asarray([[1.0, 0.0], [1.0, 1.0]])
    assert_allclose(Autoregressive(coins(), jnp.zeros((4, 4))).log_prob(event), coins().log_prob(event), rtol=1e-12)
    upper = np.triu(np.full((4, 4), 7.0))
    both = [Autoregressive(coins(), w).log_prob(event) for w in (WEIGHTS, WEIGHTS + upper)]
    assert_allclose(*both, rtol=1e-12)
    assert_allclose(Autoregressive(greys(), jnp.zeros((4, 4))).centre(), greys().mean(), rtol=1e-12)


def test_other_laws_and_other_sizes_are_refused():
    with pytest.raises(TypeError, match="Bernoulli or DiscretisedLogisticMixture"):
        Autoregressive(Categorical(jnp.zeros((4, 2))), WEIGHTS)
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        Autoregressive(coins(), jnp.zeros((3, 3)))
