"""Is a gradient estimator biased? A sequential test with stated error rates, and the exact answer where one exists.

Start with `bias_test`; `sequential_test` is the same for a black box that only supplies arrays of draws. It looks at
the growing sample as often as it likes, because its confidence sequence holds at all sizes at once; a t-test looked
at repeatedly rejects correct estimators far more often than it says. `exact_bias` needs no draws and has no error
rate: prefer it wherever the noise has nodes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vbjax import bounds, tails
from vbjax.estimators.estimate import value_and_grad_at
from vbjax.exact import exact_gradient, exact_moments, exact_objective
from vbjax.types import Bound, GradientEstimator, Params, PRNGKey, Problem

CHUNK = 4096
"""Draws held in memory at once, fewer where the gradient is long."""

_TAIL = 192
"""Largest deviations kept for the tail index: 3 √4096."""

ROUNDING = 1e-6
"""Deviations below this share of the draws' size are float32 rounding, as are those below a thousandth of delta."""


class Verdict(NamedTuple):
    """What a test of bias found.

    outcome: "reject" (biased), "certify" (no tested direction is off by delta), "inconclusive" or "heavy tails" (no
    variance to judge by). draws: used in all. direction: the worst one, by name; deviation: of the mean of the draws
    from the truth along it; half_width: what chance alone may do there. explanation: all of it in a sentence.
    """

    outcome: str
    draws: int
    direction: str
    deviation: float
    half_width: float
    explanation: str


class Truth(NamedTuple):
    """The objective and its gradient, a pytree like the parameters; error: the certificate of the quadrature."""

    value: Any
    gradient: Any
    error: float


class ExactBias(NamedTuple):
    """Relative biases, exact: |mean - truth| over |truth|, the largest coordinate of each.

    value: of the objective. gradient: one number for each entry of a dictionary of parameters, such as "q" and
    "model"; for other trees one for each leaf. error: the certificate of the quadrature (0: enumerated).
    """

    value: float
    gradient: Any
    error: float


def bias_test(
    key: PRNGKey,
    estimator: GradientEstimator,
    problem: Problem,
    params: Params,
    *,
    truth: Any,
    delta: int | float,
    reference: GradientEstimator | None = None,
    error_rate: int | float = 1e-6,
    state: Any = None,
    first_look: int = 4096,
    growth: int | float = math.sqrt(2),
    last_look: int = 2**18,
) -> Verdict:
    """Draw gradients until their mean is surely not the truth, or surely within delta of it.

    truth: the exact gradient, a pytree like params. delta: the largest bias that does not matter: absolute, or, with
    a reference estimator, in units of the standard deviation of one of its draws along each direction. Directions:
    every coordinate, the exact gradient's, and eight random ones drawn from the key, so choose the key *after* the
    estimator. The rest as in `sequential_test`; the state stays as it is given. *Not for second derivatives, nor for
    a bias that only rare events show* (a clipped probability): there `exact_bias`. Raises as `value_and_grad`, and
    ValueError if the reference never varies.
    """
    key_projections, key_draws, key_reference = jax.random.split(key, 3)
    target = flat(truth)
    projections, names = _directions(key_projections, target)
    scale = 1.0
    if reference is not None:
        sample = next(gradient_draws(key_reference, reference, problem, params, chunk=CHUNK))
        scale = _project(sample, projections).std(0)
        if not np.all(np.isfinite(scale)) or not scale.any():
            raise ValueError("the reference estimator must have a finite, positive variance; use an absolute delta")
        scale = np.maximum(scale, 1e-3 * scale.max())  # a coordinate without variance still needs a unit
    return sequential_test(
        gradient_draws(key_draws, estimator, problem, params, state=state),
        target,
        delta=delta * scale,
        projections=projections,
        names=(*coordinate_names(truth), *names),
        error_rate=error_rate,
        first_look=first_look,
        growth=growth,
        last_look=last_look,
    )


def sequential_test(
    draws: Iterable[Any],
    truth: Any,
    *,
    delta: Any,
    projections: Any = None,
    names: Sequence[str] | None = None,
    error_rate: int | float = 1e-6,
    first_look: int = 4096,
    growth: int | float = math.sqrt(2),
    last_look: int = 2**18,
) -> Verdict:
    """Test whether independent draws have the given mean, whoever made them.

    draws: arrays `(n, d)`, of any n, in any order of sizes; truth: `(d,)`; delta: absolute, one or one a direction.
    projections: `(m, d)` unit vectors to test besides the coordinates; names: of all d + m directions. At each look
    an asymptotic confidence sequence gives every direction a half-width h, its error rate split evenly:
    h = s √(2 (t r² + 1)/(t² r²) log(√(t r² + 1)/α)). Rejects when |mean - truth| > h somewhere *and* the draws that
    follow, tested afresh, reject again; certifies when |mean - truth| + h < delta everywhere; each is wrong with
    probability at most error_rate, asymptotically in first_look and for a finite variance: draws whose Pareto tail
    index exceeds 1/2 are not judged at all. A NaN or an infinity rejects at once. Memory: one array of draws.
    Raises ValueError for bad arguments. Source: Waudby-Smith et al. (2024), theorem 2.2 and eq. 30.
    """
    truth = np.asarray(truth, np.float64)
    projections = np.zeros((0, truth.size)) if projections is None else np.asarray(projections, np.float64)
    size = truth.size + len(projections)
    names = tuple(names or (*(f"coordinate {i}" for i in range(truth.size)),
                            *(f"projection {i}" for i in range(len(projections)))))  # fmt: skip
    delta = np.broadcast_to(np.asarray(delta, np.float64), (size,))
    if truth.ndim != 1 or projections.shape[1:] != truth.shape or len(names) != size:
        raise ValueError(f"truth must be (d,), projections (m, d), names d + m; got {truth.shape}, "
                         f"{projections.shape}, {len(names)} names")  # fmt: skip
    if not (np.all(delta > 0) and 0 < error_rate < 1 and growth > 1 and 2 <= first_look <= last_look):
        raise ValueError("needs delta > 0, 0 < error_rate < 1, growth > 1 and 2 <= first_look <= last_look")
    looks = _Looks(truth, projections, delta, error_rate / size, first_look, growth, last_look)
    stream = iter(draws)
    found = _run(stream, looks)
    if found.outcome != "reject" or not np.isfinite(found.deviation):
        return _verdict(found, found.draws, names, delta)
    again = _run(stream, looks)
    used = found.draws + again.draws
    if again.outcome in ("certify", "inconclusive"):
        return _verdict(again._replace(outcome="inconclusive"), used, names, delta, once=True)
    return _verdict(again, used, names, delta)


def half_width(count: Any, deviation: Any, alpha: Any, best_at: int | float) -> Any:
    """Half-width of the confidence sequence of a mean, which covers at all counts at once but with probability α.

    count: draws so far; deviation: their standard deviation; best_at: the count for which it is tuned. Two-sided.
    Source: Waudby-Smith et al. (2024), eq. 7 and 30.
    """
    size = -2 * np.log(alpha)
    r2 = (size + np.log(size) + 1) / best_at
    spread = count * r2 + 1
    return deviation * np.sqrt(2 * spread / (count**2 * r2) * (np.log(spread) / 2 - np.log(alpha)))


def exact_truth(
    problem: Problem, params: Params, *, samples: int = 1, bound: Bound = bounds.mean, rtol: float | None = None
) -> Truth:
    """What an unbiased estimator of `E B(f(z_1), …, f(z_K))` must average to. Raises as `exact_gradient`."""
    objective = exact_objective(problem, params, samples=samples, bound=bound, rtol=rtol)
    gradient = exact_gradient(problem, params, samples=samples, bound=bound, rtol=rtol)
    return Truth(objective.value, gradient.value, max(objective.error, gradient.error))


def exact_bias(
    estimator: GradientEstimator,
    problem: Problem,
    params: Params,
    *,
    samples: int = 1,
    bound: Bound = bounds.mean,
    truth: Truth | None = None,
    state: Any = None,
    rtol: float | None = None,
) -> ExactBias:
    """The estimator's exact bias for `E B(f(z_1), …, f(z_K))`, in its value and in its gradient.

    samples, bound: K and B, of the objective that the estimator says it estimates. truth: from `exact_truth`, to
    judge many estimators by one integration. Where the truth is zero the bias is relative to the size of one draw.
    Raises as `exact_moments`. Meant for float64.
    """
    if truth is None:
        truth = exact_truth(problem, params, samples=samples, bound=bound, rtol=rtol)
    moments = exact_moments(estimator, problem, params, state=state, rtol=rtol)

    def relative(mean, truth, variance):
        mean, truth, deviation = flat(mean), flat(truth), np.sqrt(np.maximum(flat(variance), 0))
        size, draw = np.max(np.abs(truth), initial=0), np.max(np.hypot(mean, deviation), initial=0)
        bias = np.max(np.abs(mean - truth), initial=0)
        return float(bias / (size if size > 1e-9 * draw else draw)) if bias else 0.0

    trees = (moments.mean, truth.gradient, moments.variance)
    if isinstance(params, dict):
        biases = {name: relative(*(tree[name] for tree in trees)) for name in params}
    else:
        biases = jax.tree.map(relative, *trees)
    value = relative(moments.value, truth.value, np.zeros(()))
    return ExactBias(value, biases, max(moments.error, truth.error))


def gradient_draws(
    key: PRNGKey, estimator: GradientEstimator, problem: Problem, params: Params, *, state: Any = None, chunk: int = 0
) -> Iterator[np.ndarray]:
    """Endless arrays `(n, d)` of flat gradients, draw r from the key `fold_in(key, r)`.

    n = chunk, by default `CHUNK` or fewer for long gradients.
    """
    q, _ = problem(params)
    state = estimator.init(q) if state is None else state
    size = sum(np.size(x) for x in jax.tree.leaves(params))
    chunk = chunk or max(1, min(CHUNK, 2**22 // max(size, 1)))

    @jax.jit
    def draw(start, key, params, state):
        def one(r):
            q, _ = problem(params)
            noise = estimator.noise(q).sample(jax.random.fold_in(key, r))
            return [x.ravel() for x in jax.tree.leaves(value_and_grad_at(noise, estimator, problem, params, state)[1])]

        return jax.vmap(one)(start + np.arange(chunk, dtype=np.uint32))

    start = 0
    while True:
        leaves = draw(np.uint32(start), key, params, state)
        yield np.concatenate([np.asarray(leaf, np.float64) for leaf in leaves], axis=1)
        start += chunk


def flat(tree: Any) -> np.ndarray:
    """The leaves of a pytree as one float64 vector, whatever JAX's precision."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def coordinate_names(tree: Any) -> tuple[str, ...]:
    """A name for each coordinate of `flat(tree)`: its path in the tree and its index in the leaf."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "gradient"
        names += [f"{name}{list(i)}" if i else name for i in np.ndindex(np.shape(leaf))]
    return tuple(names)


def tail_index(deviations: np.ndarray) -> float:
    """Pareto index k of the largest absolute deviations `(m,)`: moments exist below order 1/k.

    The least over all of them, the larger half and the largest quarter: where the estimate folds, as a cosine does,
    deviations pile up below a local maximum, and a threshold there makes a light tail look heavy. Minus infinity
    where the deviations are so few or so tied that the law looks bounded.
    """
    x = np.sort(deviations)
    return min(_pareto_shape(x[-len(x) // part :]) for part in (1, 2, 4))


def _pareto_shape(x: np.ndarray) -> float:
    """`tails.pareto_shape` with the prior of Vehtari et al. (2024), appendix C; x sorted, x[0] the threshold."""
    # atoms of a discrete law differ by float32 rounding: excesses that small would look like a huge spread
    x = (x[1:] - x[0])[x[1:] - x[0] > 1e-5 * x[-1]]
    if np.unique(np.round(x / np.max(x, initial=1e-300), 5)).size < 10:
        return -math.inf
    n, k = x.size, tails.pareto_shape(x[None])[0]
    return float((k * n + 0.5 * 10) / (n + 10))


class _Looks(NamedTuple):
    truth: np.ndarray
    projections: np.ndarray
    delta: np.ndarray
    alpha: float
    first: int
    growth: float
    last: int


class _Found(NamedTuple):
    """One pass over the draws; index: the worst direction."""

    outcome: str
    draws: int
    index: int
    deviation: float
    half_width: float
    tail: float = 0.0


def _run(stream: Iterator[Any], looks: _Looks) -> _Found:
    centre = _project(looks.truth[None], looks.projections)[0]
    count, mean, second = 0, np.zeros_like(centre), np.zeros_like(centre)
    largest = np.zeros((0, looks.truth.size))
    planned, best_at = looks.first, math.sqrt(looks.first * looks.last)
    found = _Found("inconclusive", 0, 0, math.nan, math.inf)
    for batch in stream:
        x = _project(np.asarray(batch, np.float64), looks.projections) - centre
        if not np.isfinite(x).all():
            return _Found("reject", count + len(x), int(np.argmin(np.isfinite(x).all(0))), math.nan, math.nan)
        if count < looks.first:
            largest = np.concatenate([largest, np.abs(x[:, : looks.truth.size])])
            if len(largest) > _TAIL:
                largest = np.partition(largest, len(largest) - _TAIL, axis=0)[-_TAIL:]
        count, mean, second = _merge(count, mean, second, x)
        if count < planned:
            continue
        if planned == looks.first:
            # projections have a variance if all coordinates do, and fold more
            tails = [tail_index(column) for column in largest.T]
            worst = int(np.argmax(tails))
            if tails[worst] > 0.5:
                deviation = np.sqrt(second[worst] / count)
                h = half_width(count, deviation, looks.alpha, best_at)
                return _Found("heavy tails", count, worst, float(mean[worst]), float(h), tails[worst])
        h = half_width(count, np.sqrt(second / count), looks.alpha, best_at)
        size = np.sqrt(second / count + mean**2).max() + np.abs(centre).max()
        allowed = h + np.maximum(ROUNDING * size, 1e-3 * looks.delta)
        worst = int(np.argmax(np.abs(mean) / allowed))
        found = _Found("inconclusive", count, worst, float(mean[worst]), float(h[worst]))
        if abs(mean[worst]) > allowed[worst]:
            return found._replace(outcome="reject")
        if np.all(np.abs(mean) + h < looks.delta):
            return found._replace(outcome="certify")
        if count >= looks.last:
            return found
        while planned <= count:
            planned = min(math.ceil(planned * looks.growth), looks.last)
    return found._replace(draws=count)


def _merge(count, mean, second, x):
    """Count, mean and central sum of squares of the union with new draws (Chan et al. 1983)."""
    new = x.mean(0)
    total = count + len(x)
    delta = new - mean
    second = second + ((x - new) ** 2).sum(0) + delta**2 * count * len(x) / total
    return total, mean + delta * len(x) / total, second


def _project(x: np.ndarray, projections: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x @ projections.T], axis=1)


def _directions(key: PRNGKey, truth: np.ndarray, count: int = 8) -> tuple[np.ndarray, tuple[str, ...]]:
    """The exact gradient's direction and random ones; none for a single coordinate, which is all there is."""
    if truth.size < 2:
        return np.zeros((0, truth.size)), ()
    random = np.asarray(jax.random.normal(key, (count, truth.size), np.float32), np.float64)
    names = [f"random projection {i + 1}" for i in range(count)]
    if truth.any():
        random, names = np.concatenate([truth[None], random]), ["the exact gradient's direction", *names]
    return random / np.linalg.norm(random, axis=1, keepdims=True), tuple(names)


def _verdict(found: _Found, used: int, names: Sequence[str], delta: np.ndarray, *, once: bool = False) -> Verdict:
    name, limit = names[found.index], delta[found.index]
    off = f"{abs(found.deviation):.3g} along {name}"
    if found.outcome == "reject" and not np.isfinite(found.deviation):
        text = f"A draw was not a finite number, in {name}: the estimator has no mean to compare."
    elif found.outcome == "reject":
        text = (
            f"The mean misses the exact gradient by {off}, where chance allows {found.half_width:.2g}, and did so "
            f"again on fresh draws: the estimator is biased ({used:,} draws)."
        )
    elif found.outcome == "certify":
        text = (
            f"After {used:,} draws the mean is nowhere off by more than delta; the worst is {off}, uncertain by "
            f"{found.half_width:.2g}, where delta is {limit:.2g}."
        )
    elif found.outcome == "heavy tails":
        text = (
            f"The draws have such heavy tails in {name} (Pareto index {found.tail:.2f} > 0.5) that their variance may "
            "not exist, so no error bar can be trusted: let a person look."
        )
    elif found.draws and np.isfinite(found.half_width):
        text = (
            f"{used:,} draws do not decide: the worst deviation is {off}, chance allows {found.half_width:.2g}, and "
            f"delta is {limit:.2g}; more draws or a larger delta would."
        )
    else:
        text = f"The draws ended after {used:,}, before the first look: nothing was tested."
    if once:
        text = "A first rejection was not confirmed on fresh draws. " + text
    return Verdict(found.outcome, used, name, found.deviation, found.half_width, text)
