"""The transformer equals Flax's modules and NumPy's formulas, and sees order and future only where it is told to.

Rounding is bounded by 1e-12 in float64, where results are of order one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn

from vbjax.attention import causal_mask
from vbjax.networks.transformer import LayerNorm, MultiHeadAttention, TransformerBlock, TransformerEncoder


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def random_params(module, x):
    """Parameters of order one over the square root of what they sum, and no vector that is zero or one."""
    x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    leaves, structure = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), x))
    scaled = [draw(seed, *v.shape) / np.sqrt(max(np.prod(v.shape[:-1]), 1)) for seed, v in enumerate(leaves)]
    return jax.tree.unflatten(structure, scaled)


def test_attention_in_several_heads_equals_flax_with_the_same_parameters(x64):
    ours, x = MultiHeadAttention(3), draw(0, 5, 12)
    params = random_params(ours, x)["params"]
    merged, split = params["Dense_0"], {}
    for i, name in enumerate(("query", "key", "value")):
        # a head's query, key and value stand side by side
        kernel, bias = merged["kernel"].reshape(12, 3, 3, 4), merged["bias"].reshape(3, 3, 4)
        split[name] = {"kernel": kernel[:, :, i], "bias": bias[:, i]}
    split["out"] = {"kernel": params["outputs"]["kernel"].reshape(3, 4, 12), "bias": params["outputs"]["bias"]}
    stock = nn.MultiHeadDotProductAttention(num_heads=3, dtype=jnp.float64)
    mask = causal_mask(5)
    for given, theirs in ((None, None), (mask, mask[None])):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            expected = stock.apply({"params": split}, x, mask=theirs)
        np.testing.assert_allclose(ours.apply({"params": params}, x, given), expected, atol=1e-12)


def numpy_block(params, x, heads, mask):
    """Xiong et al. (2020, figure 1b), one head at a time."""

    def normed(leaves, x):
        centred = x - x.mean(1, keepdims=True)
        return centred / np.sqrt(centred.var(1, keepdims=True) + 1e-6) * leaves["scale"] + leaves["bias"]

    def dense(leaves, x):
        return x @ leaves["kernel"] + leaves["bias"]

    attention = params["MultiHeadAttention_0"]
    parts = dense(attention["Dense_0"], normed(params["LayerNorm_0"], x)).reshape(len(x), heads, 3, -1)
    seen = []
    for q, k, v in ((parts[:, head, i] for i in range(3)) for head in range(heads)):
        logits = np.where(mask, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
        seen.append(scipy.special.softmax(logits, 1) @ v)
    x = x + dense(attention["outputs"], np.concatenate(seen, 1))
    h = dense(params["hidden"], normed(params["LayerNorm_1"], x))
    h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + dense(params["outputs"], h)


def test_a_block_is_the_papers_formula_with_the_normalisation_first(x64):
    block, x = TransformerBlock(2, 7), draw(0, 4, 6)
    params = random_params(block, x)
    mask = np.array(causal_mask(4))
    ours = block.apply(params, x, jnp.array(mask))
    plain = jax.tree.map(np.array, params["params"])
    np.testing.assert_allclose(ours, numpy_block(plain, np.array(x), 2, mask), atol=1e-12)
    # the controls: heads of another width, no mask
    assert np.abs(ours - numpy_block(plain, np.array(x), 1, mask)).max() > 1e-2
    assert np.abs(ours - numpy_block(plain, np.array(x), 2, mask | True)).max() > 1e-2


def test_the_normalisation_equals_flax_and_keeps_its_digits_far_from_zero():
    x = draw(0, 3, 8).astype(jnp.float32)
    params = {"params": {"scale": draw(1, 8).astype(jnp.float32), "bias": draw(2, 8).astype(jnp.float32)}}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        stock = nn.LayerNorm().apply(params, x)
    ours = LayerNorm().apply(params, x)
    np.testing.assert_allclose(ours, stock, atol=3e-6)
    # 4096 ± 1 has 2^-11 of rounding in float32, but its sum of squares would have lost the variance
    np.testing.assert_allclose(LayerNorm().apply(params, x + 4096), ours, atol=1e-2)


def test_the_normalisation_in_bfloat16_is_the_formula_in_float64_rounded_once(x64):
    x = (draw(0, 3, 8) + 64).astype(jnp.bfloat16)
    leaves = {"scale": draw(1, 8), "bias": draw(2, 8)}

    def formula(x):
        centred = x - x.mean(1, keepdims=True)
        return centred / np.sqrt(x.var(1, keepdims=True) + 1e-6) * np.array(leaves["scale"]) + np.array(leaves["bias"])

    for dtype in (jnp.float32, jnp.bfloat16):  # of the parameters
        params = {"params": jax.tree.map(lambda v, dtype=dtype: v.astype(dtype), leaves)}
        leaves = jax.tree.map(lambda v: v.astype(jnp.float64), params["params"])
        ours = LayerNorm().apply(params, x)
        assert ours.dtype == jnp.bfloat16
        exact = formula(np.asarray(x, np.float64))
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=1.01 * 2.0**-8, atol=1e-6)
    # the control: the mean rounded to bfloat16
    rounded = np.asarray(x - x.mean(1, keepdims=True), np.float64)
    assert np.abs(rounded - (x.astype(float) - x.astype(float).mean(1, keepdims=True))).max() > 2.0**-6


@functools.cache
def encoder(positions):
    module = TransformerEncoder(width=8, heads=2, layers=2, hidden=10, positions=positions)
    with jax.enable_x64(True):
        return module, random_params(module, draw(0, 6, 3)), jax.jit(module.apply)


def test_the_encoder_is_embedding_positions_blocks_and_a_last_normalisation(x64):
    x = draw(1, 6, 3)
    for positions in (False, True):
        _, params, apply = encoder(positions)
        leaves = jax.tree.map(np.array, params["params"])
        h = np.array(x) @ leaves["embedding"]["kernel"] + leaves["embedding"]["bias"]
        if positions:
            h = h + [[(np.sin, np.cos)[i % 2](t / 10_000 ** (2 * (i // 2) / 8)) for i in range(8)] for t in range(6)]
        for i in range(2):
            h = numpy_block(leaves[f"TransformerBlock_{i}"], h, 2, np.ones((6, 6), bool))
        norm = leaves["LayerNorm_0"]
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(apply(params, x), h, atol=1e-12)


def test_without_positions_permuted_tokens_give_permuted_features_and_with_them_they_do_not(x64):
    x, order = draw(1, 6, 3), np.array([3, 0, 5, 1, 4, 2])
    for positions in (False, True):
        _, params, apply = encoder(positions)
        difference = float(jnp.abs(apply(params, x[order]) - apply(params, x)[order]).max())
        assert difference > 1e-2 if positions else difference < 1e-13


def test_a_causal_mask_keeps_the_past_from_every_later_token(x64):
    _, params, apply = encoder(True)
    x = draw(1, 6, 3)
    for mask, moved in ((causal_mask(6), [False] * 4 + [True] * 2), (None, [True] * 6)):
        difference = jnp.abs(apply(params, x.at[4].add(1.0), mask) - apply(params, x, mask)).max(1)
        assert (difference > 1e-6).tolist() == moved
        assert all(difference[i] == 0 for i in range(6) if not moved[i])


def test_the_shapes_follow_the_sequence_and_the_hidden_width_has_a_default():
    module = TransformerEncoder(width=12, heads=3, layers=1)
    for length in (1, 9):
        tokens = jnp.zeros((length, 5), jnp.float32)
        features, params = jax.eval_shape(module.init_with_output, jax.random.key(0), tokens)
        assert features.shape == (length, 12)
        assert params["params"]["TransformerBlock_0"]["hidden"]["kernel"].shape == (12, 48)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: TransformerEncoder(width=0), "width must be at least 1"),
        (lambda: TransformerEncoder(hidden=0), "hidden must be at least 1"),
        (lambda: TransformerEncoder(layers=0), "layers must be at least 1"),
        (lambda: TransformerEncoder(width=6, heads=4), "heads must divide the width 6, got 4"),
        (lambda: MultiHeadAttention(4).init(jax.random.key(0), jnp.zeros((2, 6))), "heads must divide the width 6"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
