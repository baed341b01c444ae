"""Chapter 11: attention as an index with a derivative, why its logits are scaled, and what a transformer sees.

Left sides ask `vbjax.attention` and `vbjax.networks.transformer`, right sides loops, quadrature and finite differences.
Start with `scaled_dot_product_attention`.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from vbjax import attention
from vbjax.derivations.families import normals
from vbjax.derivations.identity import Agreement, Control, Identity, Statistical, entry, mean_estimate
from vbjax.derivations.oracles import central_difference, normal_expectation
from vbjax.derivations.shapes import random_params
from vbjax.networks.transformer import TransformerEncoder


class Lookup(NamedTuple):
    """Queries `(n, d)`, keys `(m, d)`, values `(m, c)`, and which of the keys each query may look at."""

    queries: tuple
    keys: tuple
    values: tuple
    mask: tuple


class Entries(NamedTuple):
    """The width of queries and keys, whose entries are independent draws of a law of mean 0 and variance 1."""

    width: int
    law: Literal["normal", "rademacher"]


class Softmax(NamedTuple):
    """The width of queries and keys, and some logits with the factor by which they grow."""

    width: int
    logits: tuple
    factor: float


class Index(NamedTuple):
    """Scores of the keys, the largest of which is one alone, their values, and inverse temperatures."""

    scores: tuple
    values: tuple
    sharpness: tuple


class Sequence(NamedTuple):
    """A random transformer without positions, a random sequence, and the place of a token that is changed."""

    length: int
    width: int
    heads: int
    changed: int
    seed: int


def random_lookup(random: np.random.Generator) -> Lookup:
    """Up to 32 queries and keys; two keys at least, or a softmax over queries could not be told apart."""
    n, m, d, c = random.integers((1, 2, 1, 1), (33, 33, 9, 4)).tolist()
    mask: Any = random.random((n, m)) < 0.8
    mask[0] = True
    return Lookup(normals(random, n, d), normals(random, m, d), normals(random, m, c), mask)


def random_index(random: np.random.Generator) -> Index:
    """Between two and ten keys, the best of which leads by a tenth."""
    count = int(random.integers(2, 11))
    scores = normals(random, count)
    scores[scores.argmax()] += 0.1
    values: Any = random.permutation(count) + random.random(count) / 2
    return Index(scores, values, (0.0, 1.0, 3.0, 1e4))


def random_sequence(random: np.random.Generator) -> Sequence:
    """Two to twelve tokens, one to four heads."""
    length, heads = int(random.integers(2, 13)), int(random.integers(1, 5))
    changed, seed = random.integers((length, 2**31)).tolist()
    return Sequence(length, heads * int(random.integers(2, 5)), heads, changed, seed)


@entry(11)
def scaled_dot_product_attention():
    """Also that no output leaves the values' range, and that keys may come in any order with their values."""

    def answer(weights, values):
        outputs = weights @ values
        outside = jnp.maximum(outputs - values.max(0)[None], values.min(0)[None] - outputs)
        seen = weights.sum(1) > 0  # who may look at nothing gets zeros
        return {
            "attention": outputs,
            "sums of the weights": weights.sum(1),
            "outputs beyond the values by": jnp.max(jnp.where(seen[:, None], jnp.maximum(outside, 0), 0)),
        }

    @jax.jit
    def found(queries, keys, values, mask):
        outputs = attention.attention(queries, keys, values, mask)
        shuffled = attention.attention(queries, keys[::-1], values[::-1], mask[:, ::-1])
        answers = answer(attention.attention_weights(queries, keys, mask), values)
        return answers | {"attention": outputs, "with keys and values reversed": shuffled}

    def lhs(case):
        return found(*map(jnp.array, case))

    def rhs(case):
        rows, sums = [], []
        for query, allowed in zip(case.queries, case.mask, strict=True):
            weights = [
                np.exp(sum(q * k for q, k in zip(query, key, strict=True)) / np.sqrt(len(query))) if may else 0.0
                for key, may in zip(case.keys, allowed, strict=True)
            ]
            total = sum(weights)
            sums.append(float(total > 0))
            columns = zip(*case.values, strict=True)
            rows.append([sum(w * v for w, v in zip(weights, c, strict=True)) / (total or 1.0) for c in columns])
        return {
            "attention": np.array(rows),
            "sums of the weights": np.array(sums),
            "outputs beyond the values by": 0.0,
            "with keys and values reversed": np.array(rows),
        }

    def over_queries(case):
        queries, keys, values, mask = map(jnp.array, case)
        weights = jax.nn.softmax(attention.attention_logits(queries, keys), axis=0, where=mask)
        answers = answer(weights, values)
        return answers | {"with keys and values reversed": answers["attention"]}

    return Identity(
        title="Attention takes, for each query, a mean of the values",
        statement=r"\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V, \qquad "
        r"w_{ij} \geq 0, \quad \sum_j w_{ij} = 1",
        lecture="001",
        slide="Attention",
        kind="identity",
        instance=Lookup(
            queries=((1.0, 0.0), (0.5, -1.0)),
            keys=((1.0, 1.0), (0.0, 2.0), (-1.0, 0.5)),
            values=((1.0, 0.0), (0.0, 1.0), (2.0, -1.0)),
            mask=((True, True, True), (True, True, False)),
        ),
        family=random_lookup,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-12),
        control=Control("The softmax runs over the queries.", lhs=over_queries),
        correction="“Multiply queries with keys” leaves out the softmax over the *keys*, the scale, and "
        "that a query that may look at no key has no mean: here it gets zeros.",
    )


@entry(11)
def attention_dot_product_variance():
    """Widths from 2: at one, both divisors are the same. Fewer draws than the 200,000 where vectors are wide."""

    def scores(key, case):
        """q·k/√d and q·q/√d, a row for each draw."""
        sample = {"normal": jax.random.normal, "rademacher": jax.random.rademacher}[case.law]
        draws = min(200_000, 3_200_000 // case.width)

        @jax.jit
        def run(key):
            q, k = sample(key, (2, draws, case.width), dtype=jnp.float32).astype(float)
            return jax.vmap(lambda q, k: attention.attention_logits(q[None], jnp.stack([k, q]))[0])(q, k)

        return np.asarray(run(key))

    def moments(case, independent, same):
        of_same = np.round(same * np.sqrt(case.width), 9) - case.width  # of signs it is zero, and not nearly so
        return {
            "E (q·k/√d)²": mean_estimate(independent**2),
            "E (q·k/√d)⁴": mean_estimate(independent**4),
            "Var(q·q)/d": mean_estimate(of_same**2 / case.width),
        }

    def lhs(key, case):
        return moments(case, *scores(key, case).T)

    def by_width(key, case):
        independent, same = scores(key, case).T
        return moments(case, independent / np.sqrt(case.width), same)

    def rhs(case):
        excess, of_squares = {"normal": (6, 2.0), "rademacher": (-2, 0.0)}[case.law]
        return {"E (q·k/√d)²": 1.0, "E (q·k/√d)⁴": 3 + excess / case.width, "Var(q·q)/d": of_squares}

    return Identity(
        title="The logits of attention have unit variance at every width",
        statement=r"q_i, k_i \text{ i.i.d., } E = 0,\, \mathrm{Var} = 1: \qquad \mathrm{Var}(q^\top k) = d_k, \quad "
        r"\mathrm{Var}\left(\frac{q^\top k}{\sqrt{d_k}}\right) = 1, \quad \text{kurtosis of normals } 3 + "
        r"\frac{6}{d_k}",
        lecture="001",
        slide="Attention",
        kind="identity",
        instance=Entries(width=64, law="normal"),
        family=lambda random: Entries(
            int(np.exp(random.uniform(np.log(2), np.log(1025)))), ("normal", "rademacher")[random.integers(2)]
        ),
        lhs=lhs,
        rhs=rhs,
        test=Statistical(1e-5),
        control=Control("The dot product is divided by its width, and not by the root.", lhs=by_width),
        correction="“Dot product grows large”: as $\\sqrt{d_k}$, not “probably” but exactly, for independent q and k. "
        "A vector with itself gives $d_k$ on average: $q^\\top q / \\sqrt{d_k}$ still grows.",
    )


@entry(11)
def softmax_saturation():
    """The mean slope's oracle integrates over the query's length and the logits' difference, not over a frequency.

    That p = uniform has the largest gradient is true of the Jacobian's trace, 1 - Σp²; its norm is larger where two
    keys share all: tests/test_attention.py.
    """

    def lhs(case):
        logits = jnp.array(case.logits)

        @jax.jit
        def sides():
            return {
                "E p(1 - p), q·k/√d": attention.two_key_slope(case.width, divisor=case.width**0.5),
                "E p(1 - p), q·k": attention.two_key_slope(case.width, divisor=1),
                "‖J‖": jnp.linalg.norm(attention.softmax_jacobian(logits)),
                "‖J‖, logits multiplied": jnp.linalg.norm(attention.softmax_jacobian(case.factor * logits)),
            }

        return sides()

    def mean_slope(case, divisor):
        """E over ‖q‖, which has a χ law; given it, the difference of the two logits is normal."""
        root = np.sqrt(case.width)
        low, high = max(root - 10, 0), root + 10
        points, weights = np.polynomial.legendre.leggauss(300)
        lengths = low + (high - low) * (points + 1) / 2
        inner = [
            normal_expectation(lambda s: special.expit(s) * special.expit(-s), 0.0, np.sqrt(2) * length / divisor)
            for length in lengths
        ]
        return (high - low) / 2 * np.sum(weights * stats.chi.pdf(lengths, case.width) * inner)

    def norm(logits):
        slopes = [central_difference(lambda x, i=i: special.softmax(x)[i], logits) for i in range(len(logits))]
        return np.linalg.norm(slopes)

    def rhs(case):
        return {
            "E p(1 - p), q·k/√d": mean_slope(case, case.width**0.5),
            "E p(1 - p), q·k": mean_slope(case, 1),
            "‖J‖": norm(np.array(case.logits)),
            "‖J‖, logits multiplied": norm(case.factor * np.array(case.logits)),
        }

    def indifferent(case):
        return rhs(case) | {"E p(1 - p), q·k": mean_slope(case, case.width**0.5)}

    return Identity(
        title="Large logits leave the softmax without a gradient",
        statement=r"J = \mathrm{diag}(p) - p p^\top, \qquad E\, p (1 - p) = \int_0^\infty \frac{w}{\sinh \pi w} "
        r"\left(1 + \frac{2 w^2}{c^2}\right)^{-d/2} dw \quad \text{for the logits } \frac{q^\top k_1}{c}, "
        r"\frac{q^\top k_2}{c}",
        lecture="001",
        slide="Attention",
        kind="limit",
        instance=Softmax(width=48, logits=(0.3, -0.6, 1.1, 0.2), factor=9.0),
        family=lambda random: Softmax(
            int(np.exp(random.uniform(np.log(2), np.log(1025)))), normals(random, 5), random.uniform(4, 12)
        ),
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("The slope without the divisor is as large as with it.", rhs=indifferent),
        correction="“Extremely small gradients” are those of the softmax. Gradients vanish as well where the values "
        "are equal, whatever the logits.",
    )


@entry(11)
def attention_soft_indexing():
    def lhs(case):
        scores, values = jnp.array(case.scores)[:, None], jnp.array(case.values)[:, None]

        def indexed(sharpness, scores, values):
            return attention.attention(jnp.reshape(sharpness, (1, 1)), scores, values)[0, 0]

        @jax.jit
        def sides():
            best = jnp.argmax(scores)
            tied = jnp.concatenate([scores, scores[best][None]]), jnp.concatenate([values, values[best][None] + 2])
            return {f"β = {b:g}": indexed(jnp.array(b), scores, values) for b in case.sharpness} | {
                "slope in β, at 1": jax.grad(indexed)(jnp.array(1.0), scores, values),
                "the best key twice": indexed(jnp.array(case.sharpness[-1]), *tied),
            }

        return sides()

    def rhs(case):
        scores, values = np.array(case.scores), np.array(case.values)

        def indexed(sharpness):
            return special.softmax(sharpness * scores) @ values

        found = {f"β = {b:g}": indexed(b) for b in case.sharpness}
        best = values[scores.argmax()]
        found[f"β = {case.sharpness[-1]:g}"] = best
        return found | {
            "slope in β, at 1": central_difference(lambda b: indexed(b[0]), np.ones(1))[0],
            "the best key twice": best + 1,  # half way to the second one's value
        }

    def first_of_both(case):
        found = rhs(case)
        return found | {"the best key twice": found["the best key twice"] - 1}

    return Identity(
        title="As the temperature falls, attention becomes an index",
        statement=r"\sum_j \mathrm{softmax}(\beta s)_j\, v_j \;\to\; v_{\arg\max s} \quad (\beta \to \infty), "
        r"\qquad \frac{d}{d\beta} = \mathrm{Cov}_p(s, v)",
        lecture="001",
        slide="Attention",
        kind="limit",
        instance=Index(scores=(0.4, -0.5, 1.2, 0.1), values=(1.0, 2.0, 4.0, -1.0), sharpness=(0.0, 1.0, 10.0, 100.0)),
        family=random_index,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-9),
        control=Control("Of two keys that are equally good, one is taken.", rhs=first_of_both),
        correction="“Index the values via a differentiable operator”: it is an index in the limit only, where its "
        "derivative is gone, and with a tie it is a mean.",
    )


@entry(11)
def transformer_permutation():
    def lhs(case, positions=False):
        random = np.random.default_rng(case.seed)
        x, order = random.normal(size=(case.length, 3)), random.permutation(case.length)
        while (order == np.arange(case.length)).all():
            order = random.permutation(case.length)
        changed = x + (np.arange(case.length) == case.changed)[:, None]
        network = TransformerEncoder(width=case.width, heads=case.heads, positions=positions)
        params = random_params(random, network, x.shape)
        anywhere, causal = jnp.ones((case.length, case.length), bool), attention.causal_mask(case.length)
        sequences, masks = jnp.stack([x, x[order], changed, x, changed]), jnp.stack([anywhere] * 3 + [causal] * 2)
        features = jax.jit(jax.vmap(network.apply, (None, 0, 0)))
        plain, permuted, moved, seen, moved_seen = features(params, sequences, masks)
        return {
            "f(PX) - P f(X)": jnp.abs(permuted - plain[order]).max(),
            "moved without a mask": jnp.abs(moved - plain).max(1) > 1e-9,
            "moved under a causal mask": jnp.abs(moved_seen - seen).max(1) > 0,
        }

    def rhs(case):
        return {
            "f(PX) - P f(X)": 0.0,
            "moved without a mask": np.ones(case.length),
            "moved under a causal mask": np.arange(case.length) >= case.changed,
        }

    def with_positions(case):
        return lhs(case, positions=True)

    return Identity(
        title="Without positions a transformer reads a set, and a causal mask hides the future",
        statement=r"f(P X) = P f(X) \text{ for every permutation } P; \qquad \text{causal: } "
        r"\frac{\partial f_i}{\partial x_j} = 0 \text{ for } j > i",
        lecture="001",
        slide="Transformers",
        kind="identity",
        instance=Sequence(length=7, width=8, heads=2, changed=4, seed=3),
        family=random_sequence,
        lhs=lhs,
        rhs=rhs,
        test=Agreement(1e-11),
        control=Control("The same, with the sinusoids of the tokens' places added.", lhs=with_positions),
        correction="The slide shows the figure only: it is the positional encoding in it that makes order count.",
    )
