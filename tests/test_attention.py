"""Attention equals NumPy's loops and JAX's own, and its logits are scaled for the reason that the paper gives.

Rounding is bounded by 1e-12 in float64, where results are of order one.
"""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.differentiate
import scipy.integrate
import scipy.special

from vbjax.attention import (
    attention,
    attention_logits,
    attention_weights,
    causal_mask,
    sinusoidal_positions,
    softmax_jacobian,
    two_key_slope,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def by_loops(queries, keys, values, mask):
    """One query at a time, one key at a time."""
    rows = []
    for i, q in enumerate(queries):
        weights = [np.exp(sum(q * k) / len(q) ** 0.5) if mask[i, j] else 0.0 for j, k in enumerate(keys)]
        rows.append(sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) or 1))
    return np.array(rows)


SIZES = ((1, 1, 1, 1), (2, 3, 2, 3), (5, 4, 7, 2), (3, 32, 4, 5), (32, 2, 8, 1))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_equals_loops_over_queries_and_keys(x64, sizes):
    n, m, d, c = sizes
    q, k, v = draw(0, n, d), draw(1, m, d), draw(2, m, c)
    mask = draw(3, n, m) > -0.5
    for allowed in (np.ones((n, m), bool), mask):
        ours = np.asarray(attention(jnp.array(q), jnp.array(k), jnp.array(v), jnp.array(allowed)))
        np.testing.assert_allclose(ours, by_loops(q, k, v, allowed), atol=1e-12)
    # the controls: a softmax over the queries, and no scale
    logits = q @ k.T / d**0.5
    assert n * m == 1 or np.abs(scipy.special.softmax(logits, 0) @ v - by_loops(q, k, v, mask | True)).max() > 1e-2
    assert m * d < 4 or np.abs(scipy.special.softmax(q @ k.T, 1) @ v - by_loops(q, k, v, mask | True)).max() > 1e-2


def test_no_mask_is_a_mask_that_hides_nothing(x64):
    q, k, v = (jnp.array(draw(seed, 4, 3)) for seed in range(3))
    np.testing.assert_array_equal(attention(q, k, v), attention(q, k, v, jnp.ones((4, 4), bool)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_equals_jax_in_the_types_of_networks(dtype):
    q, k, v = (jnp.array(draw(seed, 6, 3, 8), dtype) for seed in range(3))  # (position, head, channel)
    mask = causal_mask(6)
    ours = jax.vmap(attention, (1, 1, 1, None), 1)(q, k, v, mask)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        stock = jax.nn.dot_product_attention(q[None], k[None], v[None], mask=mask[None, None])[0]
    assert ours.dtype == dtype
    rounding = 1e-6 if dtype == jnp.float32 else 2.0**-6  # eight bits, of numbers up to two
    np.testing.assert_allclose(ours.astype(jnp.float32), stock.astype(jnp.float32), atol=rounding)


def test_weights_are_laws_over_the_keys_in_float32_or_better():
    q, k = jnp.array(draw(0, 5, 4), jnp.bfloat16), jnp.array(draw(1, 40, 4), jnp.bfloat16)
    weights = attention_weights(q, k)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(1), np.ones(5), rtol=1e-6)
    assert (weights >= 0).all()


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float16, 40.0), (jnp.bfloat16, 3.0)])
def test_weights_of_short_floats_are_those_of_unrounded_logits(dtype, size):
    """Logits of σ = 9 and of up to 12,800, where QKᵀ is beyond float16."""
    q, k = (jnp.array(size * draw(seed, 8, 64), dtype) for seed in (0, 1))
    k = k.at[0].set(q[0])
    logits = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T / 8
    with np.errstate(over="ignore"):
        rounded = np.asarray((np.asarray(logits * 8).astype(dtype) / np.asarray(8, dtype)).astype(np.float64))
    exact = scipy.special.softmax(logits, 1)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(logits).max()
    np.testing.assert_allclose(attention_weights(q, k), exact, atol=rounding)
    # the control: logits in the type of the inputs
    with np.errstate(invalid="ignore"):
        assert not np.abs(scipy.special.softmax(rounded, 1) - exact).max() < 5 * rounding
    slopes = jax.grad(lambda q, k: jnp.sum(attention_weights(q, k) ** 2), (0, 1))(q, k)
    assert all(slope.dtype == dtype and jnp.isfinite(slope).all() for slope in slopes)


def test_a_query_without_a_key_gets_zeros_and_passes_no_gradient(x64):
    q, k, v = (jnp.array(draw(seed, 3, 2)) for seed in range(3))
    mask = jnp.array([[True, False, True], [False, False, False], [False, True, False]])

    def run(q, k, v):
        return attention(q, k, v, mask)

    np.testing.assert_array_equal(run(q, k, v)[1], np.zeros(2))
    np.testing.assert_allclose(run(q, k, v)[2], v[1], rtol=1e-15)
    gradients = jax.grad(lambda *qkv: jnp.sum(run(*qkv) ** 2), (0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][1], np.zeros(2))
    assert (gradients[0][0] != 0).all()


@pytest.mark.parametrize("scale", [1e3, 1e15])
def test_huge_logits_index_the_best_key_with_a_finite_gradient(scale):
    q, k, v = jnp.array([[scale]]), jnp.array([[1.0], [2.0], [-3.0]]), jnp.array([[1.0], [5.0], [9.0]])
    np.testing.assert_array_equal(attention(q, k, v), [[5.0]])
    gradients = jax.grad(lambda q, k, v: attention(q, k, v).sum(), (0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[2], [[0.0], [1.0], [0.0]])


def test_the_order_of_keys_with_their_values_does_not_matter_and_that_of_queries_carries_over(x64):
    q, k, v = draw(0, 5, 3), draw(1, 7, 3), draw(2, 7, 2)
    whole = np.asarray(attention(*map(jnp.array, (q, k, v))))
    order, rows = np.random.default_rng(3).permutation(7), np.random.default_rng(4).permutation(5)
    np.testing.assert_allclose(attention(*map(jnp.array, (q[rows], k[order], v[order]))), whole[rows], atol=1e-14)
    # the control: the values stay where they were
    assert np.abs(np.asarray(attention(*map(jnp.array, (q, k[order], v)))) - whole).max() > 1e-2


def test_a_causal_mask_lets_a_position_see_itself_and_what_came_before():
    mask = np.asarray(causal_mask(4))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[j <= i for j in range(4)] for i in range(4)])


def test_positions_are_the_papers_table(x64):
    for length, width in ((1, 1), (6, 5), (40, 8)):
        table = np.array(
            [
                [(np.cos if i % 2 else np.sin)(t / 10_000 ** (2 * (i // 2) / width)) for i in range(width)]
                for t in range(length)
            ]
        )
        np.testing.assert_allclose(sinusoidal_positions(length, width), table, atol=1e-12)


def test_shifted_positions_are_rotated_ones(x64):
    table = np.asarray(sinusoidal_positions(30, 6)).reshape(30, 3, 2)
    phases = table[..., 1] + 1j * table[..., 0]
    turns = phases[5:] / phases[:-5]
    np.testing.assert_allclose(turns, np.broadcast_to(turns[0], turns.shape), atol=1e-12)


def test_the_jacobian_of_the_softmax_is_its_derivative(x64):
    for n in (1, 2, 7):
        logits = 2 * draw(n, n)
        numeric = scipy.differentiate.jacobian(lambda x: scipy.special.softmax(x, 0), logits).df
        ours = np.asarray(softmax_jacobian(jnp.array(logits)))
        np.testing.assert_allclose(ours, numeric, atol=1e-9)
        np.testing.assert_allclose(ours.sum(1), np.zeros(n), atol=1e-15)


def test_the_jacobian_keeps_its_digits_where_the_softmax_is_saturated():
    for gap in (5.0, 20.0, 80.0):
        ours = np.asarray(softmax_jacobian(jnp.array([0.0, gap])))
        slope = scipy.special.expit(gap) * scipy.special.expit(-gap)
        np.testing.assert_allclose(ours, [[slope, -slope], [-slope, slope]], rtol=2e-5)  # the logarithm of float32
    # the control: p - p² in float32
    p = np.float32(scipy.special.expit(20.0))
    assert p - p * p == 0


def test_the_jacobian_is_largest_at_the_uniform_law_by_its_trace_but_not_by_its_norm(x64):
    """The norm is largest where two keys share all: a correction of «gradients are largest at uniform p»."""
    laws = np.concatenate([np.zeros((1, 3)), [[0, 0, -60]], 2 * draw(0, 200, 3)])
    jacobians = np.asarray(jax.vmap(softmax_jacobian)(jnp.array(laws)))
    trace, norm = np.trace(jacobians, axis1=1, axis2=2), np.linalg.norm(jacobians, axis=(1, 2))
    assert trace.argmax() == 0
    assert norm.argmax() == 1
    np.testing.assert_allclose(norm[:2], [2**0.5 / 3, 0.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("width", "divisor"),
    [(1, 1), (2, 1e-3), (3, 100.0), (64, 8), (64, 1), (1024, 32), (1024, 1e-2), (1, 1e-15), (1024, 3.2e-14)],
)
def test_the_slope_of_two_keys_equals_adaptive_quadrature(x64, width, divisor):
    def integrand(w):
        return w / np.sinh(np.pi * w) * (1 + 2 * w**2 / divisor**2) ** (-width / 2) if w else 1 / np.pi

    edges = [0, *(min(1, divisor / width**0.5) * 2.0 ** np.arange(-2, 60))]
    edges = [e for e in edges if e < 13] + [13]
    pieces = [scipy.integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-13) for a, b in itertools.pairwise(edges)]
    exact, error = np.sum(pieces, 0)
    assert error < 1e-13 * exact
    assert float(two_key_slope(width, divisor=divisor)) == pytest.approx(exact, rel=1e-12)
    with jax.enable_x64(False):
        assert float(two_key_slope(width, divisor=divisor)) == pytest.approx(exact, rel=2e-6)


def test_the_slope_of_two_keys_is_the_mean_over_drawn_queries_and_keys():
    """|z| < 4.9: a false alarm in a million per number."""
    for seed, (width, divisor) in enumerate(((4, 2.0), (4, 1.0), (100, 10.0), (100, 1.0))):
        draws = 20_000
        q, a, b = jnp.array(draw(seed, 3, draws, width), jnp.float32)
        slopes = []
        for scale in (width**0.5 / divisor, 1.0):
            keys = scale * jnp.stack([a, b], 1)
            weights = jax.vmap(attention_weights)(q[:, None], keys)[:, 0]
            slopes.append(np.asarray(weights[:, 0] * weights[:, 1], np.float64))
        z = (slopes[0].mean() - float(two_key_slope(width, divisor=divisor))) / (slopes[0].std() / draws**0.5)
        assert abs(z) < 4.9
        # the control: the paper's divisor where another is meant
        if divisor != width**0.5:
            z = (slopes[1].mean() - float(two_key_slope(width, divisor=divisor))) / (slopes[1].std() / draws**0.5)
            assert abs(z) > 20


def test_scaled_logits_keep_the_softmax_alive_of_eight_keys_at_every_width():
    """The mean trace of the Jacobian over drawn queries and keys: the divisor √d holds it, without it it is lost."""

    @jax.jit
    @jax.vmap
    def traces(q, keys):
        return [jnp.trace(softmax_jacobian(keys @ q / divisor)) for divisor in (len(q) ** 0.5, 1)]

    scaled, unscaled = [], []
    for width in (1, 16, 256):
        means = traces(*(jnp.array(draw(len(shape), 500, *shape, width), jnp.float32) for shape in ((), (8,))))
        scaled.append(means[0].mean())
        unscaled.append(means[1].mean())
    assert max(scaled) - min(scaled) < 0.25 * min(scaled)
    assert unscaled[2] < 0.2 * scaled[2]


ROWS = jnp.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: inspect.unwrap(attention_logits)(ROWS[None], ROWS), r"queries must be one sequence \(n, d\)"),
        (lambda: inspect.unwrap(attention_logits)(ROWS[:, :0], ROWS), "queries must be one sequence"),
        (lambda: inspect.unwrap(attention_logits)(ROWS, ROWS[:, :2]), r"keys must be \(m, 3\)"),
        (lambda: inspect.unwrap(attention)(ROWS, ROWS, ROWS[:1]), r"values must be \(2, c\)"),
        (lambda: inspect.unwrap(attention_weights)(ROWS, ROWS, jnp.ones((2, 3), bool)), "mask"),
        (lambda: inspect.unwrap(attention_weights)(ROWS, ROWS, jnp.ones((2, 2))), "mask must be B"),
        (lambda: sinusoidal_positions(0, 4), "length and width"),
        (lambda: two_key_slope(0, divisor=1), "width must be at least 1"),
        (lambda: two_key_slope(4, divisor=0.0), "divisor at least"),
        (lambda: two_key_slope(1, divisor=1e-20), "divisor at least 1e-15 √width, got 1 and 1e-20"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
