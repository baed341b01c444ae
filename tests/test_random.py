"""The generator: Random123's known answers, streams that never meet, and draws with the law they should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbjax.random import rekey, threefry2x32

FALSE_ALARM = 1e-6


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_cipher_gives_the_known_answers_of_random123(key, counter, answer):
    word = jnp.uint32
    got = threefry2x32((word(key[0]), word(key[1])), (word(counter[0]), word(counter[1])))
    assert tuple(int(x) for x in got) == answer


def key_of(data):
    """A key with chosen words."""
    like = rekey(jax.random.key(0))
    return jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32), impl=jax.random.key_impl(like))


def test_bits_are_both_words_of_the_cipher_in_the_order_of_the_counter():
    words = np.asarray(jax.random.bits(key_of([0, 0]), (7,), jnp.uint32))
    zero = jnp.zeros((), jnp.uint32)
    pairs = [threefry2x32((zero, zero), (jnp.uint32(i), zero)) for i in range(4)]
    np.testing.assert_array_equal(words, [int(a) for a, _ in pairs] + [int(b) for _, b in pairs[:3]])
    assert int(jax.random.bits(key_of([0, 0]), (), jnp.uint32)) == words[0]


def test_streams_of_one_key_do_not_meet():
    """Bits, 5,000 children by fold_in and 5,000 by split, and the children's bits: no 64-bit block occurs twice."""
    key = rekey(jax.random.key(3))
    folded = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(5000))
    split = jax.random.split(jax.random.clone(key), 5000)
    words = np.asarray(jax.random.bits(jax.random.clone(key), (10_000,), jnp.uint32), np.uint64)
    blocks = [words[:5000] << 32 | words[5000:]]
    for children in (folded, split):
        data = np.asarray(jax.random.key_data(children), np.uint64)
        bits = np.asarray(jax.vmap(lambda k: jax.random.bits(k, (4,), jnp.uint32))(children), np.uint64)
        blocks += [data[:, 0] << 32 | data[:, 1], bits[:, 0] << 32 | bits[:, 2], bits[:, 1] << 32 | bits[:, 3]]
    everything = np.concatenate(blocks)
    # by chance with probability 3e-11
    assert len(np.unique(everything)) == len(everything)


def test_words_are_uniform_and_independent_within_and_across_keys():
    """Chi-square of bytes and of pairs of nibbles: next in a stream, the two halves, and the next replication."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rekey(jax.random.key(5)), jnp.arange(1000))
    words = np.asarray(jax.jit(jax.vmap(lambda k: jax.random.bits(k, (512,), jnp.uint32)))(keys))
    counts = [np.bincount(words >> shift & 255 if shift else words & 255, minlength=256)
              for words in [words.ravel()] for shift in (0, 8, 16, 24)]  # fmt: skip
    neighbours = ((words[:, :-1], words[:, 1:]), (words[:, :256], words[:, 256:]), (words[:-1], words[1:]))
    counts += [np.bincount(((a >> 28) << 4 | b >> 28).ravel(), minlength=256) for a, b in neighbours]
    counts += [np.bincount(((a & 15) << 4 | b & 15).ravel(), minlength=256) for a, b in neighbours]
    p = np.asarray([stats.chisquare(c).pvalue for c in counts])
    assert p.min() * len(p) > FALSE_ALARM
    # a stream that repeats itself across replications is found
    stuck = np.bincount(((words[:-1] >> 28) << 4 | words[:-1] >> 28).ravel(), minlength=256)
    assert stats.chisquare(stuck).pvalue < 1e-100


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_normals_and_integers_of_every_width_have_their_law(width):
    with jax.enable_x64(width == 64):
        key = rekey(jax.random.key(7))
        bits = np.asarray(jax.random.bits(key, (20_001,), f"uint{width}"))
        assert bits.dtype == f"uint{width}"
        p_bits = stats.kstest(bits / 2.0**width + (0.5 / 2.0**width), "uniform").pvalue
        p_normal = stats.kstest(np.asarray(jax.random.normal(rekey(jax.random.key(8)), (20_000,))), "norm").pvalue
    assert min(p_bits if width > 8 else 1, p_normal) > FALSE_ALARM


def test_keys_of_every_kind_can_be_rekeyed_and_mapped():
    for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
        assert jax.random.normal(rekey(jax.random.key(0, impl=impl)), (3,)).shape == (3,)
    keys = jax.random.split(rekey(jax.random.key(1)), 4)
    one_by_one = np.asarray([jax.random.normal(jax.random.clone(k), (5, 3)) for k in keys])
    np.testing.assert_array_equal(jax.vmap(lambda k: jax.random.normal(k, (5, 3)))(keys), one_by_one)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda k: jax.random.normal(k) + jax.random.normal(k))(keys[0])
