"""The compiler canary: does this JAX compute the project's densities, divergences and bounds correctly?

`python -m vbjax.canary` evaluates public functions in float32 by `jit(vmap)`, without `jit`, and in NumPy float64,
at batch sizes where XLA's fusions change, and exits with status 1 if any row disagrees. Some releases of JAX
miscompile vmapped matrix products on CPU in silence (jax-ml/jax#39103): run it after an upgrade and on new hardware.
`vbjax check` asks `refusal`, the one row of it that those releases fail, before it trusts anything.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import bounds
from vbjax.distributions import Categorical, DiscretisedLogistic, MultivariateNormal, Normal
from vbjax.divergences import kl_divergence

BATCH_SIZES = (2**14, 40_000, 2**17)
"""jax 0.10.2 is wrong between 2**15 and about 43,000 rows of three numbers, and right on either side."""

REQUIREMENT = "jax>=0.10.1,!=0.10.2,!=0.11.0"
"""What to install: the project's own requirement."""

CRASHING = ("0.11.0",)
"""Releases that end the process where 0.10.2 is wrong, and so cannot be asked."""

TOLERANCE = 1e-3
"""Largest deviation that float32 explains, relative to one plus the size of the reference."""


class Probe(NamedTuple):
    """One public function and its NumPy twin.

    rows: (generator, n) -> arrays with leading axis n; function: one row -> scalar, in JAX; reference: all rows ->
    `(n,)` float64, in NumPy, written from the definition.
    """

    name: str
    rows: Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]
    function: Callable[..., jax.Array]
    reference: Callable[..., np.ndarray]


class Finding(NamedTuple):
    """Rows of one probe that disagree at one batch size; error: the largest deviation, on TOLERANCE's scale."""

    name: str
    batch_size: int
    compiled_rows: int
    eager_rows: int
    error: float

    @property
    def red(self) -> bool:
        """Whether this JAX computed something else than NumPy."""
        return self.compiled_rows > 0 or self.eager_rows > 0


def examine(probe: Probe, batch_size: int, seed: int = 0) -> Finding:
    """Compare `jit(vmap)`, eager `vmap` and NumPy on one batch; NaN counts as a disagreement."""
    arrays, reference = _posed(probe, batch_size, seed)
    mapped = jax.vmap(probe.function)
    compiled, eager = (_deviation(f(*arrays), reference) for f in (jax.jit(mapped), mapped))
    wrong = [int(np.sum(error > TOLERANCE)) for error in (compiled, eager)]
    return Finding(probe.name, batch_size, *wrong, error=float(max(compiled.max(), eager.max())))


def _posed(probe: Probe, batch_size: int, seed: int = 0) -> tuple[tuple[jax.Array, ...], np.ndarray]:
    """The rows in float32, and what NumPy makes of them in float64."""
    rows = probe.rows(np.random.default_rng(seed), batch_size)
    rows = tuple(row.astype(np.float32) if row.dtype.kind == "f" else row for row in rows)
    reference = probe.reference(*(row.astype(np.float64) if row.dtype.kind == "f" else row for row in rows))
    return tuple(jnp.asarray(row) for row in rows), reference


def _deviation(values: Any, reference: np.ndarray) -> np.ndarray:
    error = np.abs(np.asarray(values, np.float64) - reference) / (1 + np.abs(reference))
    return np.where(np.isnan(error), np.inf, error)


@functools.cache
def refusal() -> str | None:
    """Why no result of this JAX can be trusted and what to install, None if nothing speaks against it: one product."""
    version = f"jax {jax.__version__} on {jax.default_backend()}"
    advice = f'install another: pip install "{REQUIREMENT}"'
    if jax.__version__ in CRASHING:
        return f"{version} crashes on compiled matrix products; {advice}"
    probe, batch_size = PROBES[0], 40_000
    arrays, reference = _posed(probe, batch_size)
    wrong = int(np.sum(_deviation(jax.jit(jax.vmap(probe.function))(*arrays), reference) > TOLERANCE))
    if wrong:
        rows = f"{wrong:,} of {batch_size:,} compiled rows of the {probe.name}"
        return f"{version} computes wrong numbers in silence: {rows} disagree with NumPy; {advice}"
    return None


def examine_all() -> list[Finding]:
    """Every probe at every batch size."""
    return [examine(probe, batch_size) for probe in PROBES for batch_size in BATCH_SIZES]


def main() -> int:
    """Print one line per probe and a verdict; return the exit status, 1 if anything is red."""
    findings = examine_all()
    for f in findings:
        verdict = f"RED: {f.compiled_rows} rows wrong compiled, {f.eager_rows} eager" if f.red else "green"
        print(f"{f.name:<34} batch {f.batch_size:>7}  largest error {f.error:8.1e}  {verdict}")
    version = f"jax {jax.__version__} on {jax.default_backend()}"
    red = sorted({f.name for f in findings if f.red})
    if red:
        print(f"RED: {version} computes wrong numbers in {len(red)} of {len(PROBES)} probes: {', '.join(red)}.")
        print(f'Do not use this JAX for results; install a release that passes: pip install "{REQUIREMENT}"')
        return 1
    print(f"GREEN: {version} agrees with NumPy in all {len(PROBES)} probes.")
    return 0


_FACTOR = np.array([[1.0, 0.0, 0.0], [0.5, 1.2, 0.0], [-0.3, 0.4, 0.8]])
_FACTOR32 = _FACTOR.astype(np.float32)
_LOC = np.array([0.2, -0.1, 0.4])
_LOG_2PI = np.log(2 * np.pi)


def _points(width: int):
    return lambda rng, n: (rng.normal(size=(n, width)),)


def _normals(width: int):
    return lambda rng, n: (rng.normal(size=(n, width)), np.exp(0.3 * rng.normal(size=(n, width))))


def _factors(rng, n):
    lower = np.tril(0.3 * rng.normal(size=(n, 3, 3)), -1)
    return rng.normal(size=(n, 3)), lower + np.exp(0.2 * rng.normal(size=(n, 3, 1))) * np.eye(3)


def _multivariate_reference(x):
    z = np.linalg.solve(_FACTOR, (x - _LOC).T)
    return -0.5 * (np.sum(z**2, 0) + 3 * _LOG_2PI) - np.log(np.diag(_FACTOR)).sum()


def _multivariate_kl_reference(loc, factor):
    covariance = factor @ np.swapaxes(factor, 1, 2)
    precision = np.linalg.inv(_FACTOR @ _FACTOR.T)
    trace = np.einsum("ij,nji->n", precision, covariance)
    distance = np.einsum("ni,ij,nj->n", loc - _LOC, precision, loc - _LOC)
    return 0.5 * (trace + distance - 3 + 2 * np.log(np.diag(_FACTOR)).sum() - np.linalg.slogdet(covariance)[1])


def _categorical_rows(rng, n):
    return rng.normal(size=(n, 10)) * 3, rng.integers(0, 10, n, dtype=np.int32)


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _discretised_reference(loc, scale):
    def cdf(x):
        return 1 / (1 + np.exp(-(x - loc) / scale))

    # level 100 of 256
    point, half = 200 / 255 - 1, 1 / 255
    return np.log(cdf(point + half) - cdf(point - half)).sum(-1)


def _multivariate() -> MultivariateNormal:
    return MultivariateNormal(jnp.asarray(_LOC, jnp.float32), jnp.asarray(_FACTOR, jnp.float32))


PROBES = (
    Probe(
        "squared norm of L x",
        _points(3),
        lambda x: jnp.sum((_FACTOR32 @ x) ** 2),
        lambda x: np.sum((x @ _FACTOR.T) ** 2, -1),
    ),
    Probe("MultivariateNormal.log_prob", _points(3), lambda x: _multivariate().log_prob(x), _multivariate_reference),
    Probe(
        "MultivariateNormal.transport",
        _points(3),
        lambda noise: jnp.sum(_multivariate().transport(noise) ** 2),
        lambda noise: np.sum((_LOC + noise @ _FACTOR.T) ** 2, -1),
    ),
    Probe(
        "KL of MultivariateNormal",
        _factors,
        lambda loc, tril: kl_divergence(MultivariateNormal(loc, tril), _multivariate()),
        _multivariate_kl_reference,
    ),
    Probe(
        "Normal.log_prob",
        _normals(8),
        lambda loc, scale: Normal(loc, scale).log_prob(jnp.full(8, 0.5, jnp.float32)),
        lambda loc, scale: np.sum(-0.5 * (((0.5 - loc) / scale) ** 2 + _LOG_2PI) - np.log(scale), -1),
    ),
    Probe(
        "KL of Normal",
        _normals(8),
        lambda loc, scale: kl_divergence(
            Normal(loc, scale), Normal(jnp.zeros(8, jnp.float32), jnp.ones(8, jnp.float32))
        ),
        lambda loc, scale: 0.5 * np.sum(scale**2 + loc**2 - 1 - 2 * np.log(scale), -1),
    ),
    Probe(
        "Categorical.log_prob",
        _categorical_rows,
        lambda logits, k: Categorical(logits).log_prob(k),
        lambda logits, k: np.take_along_axis(_log_softmax(logits), k[:, None], -1)[:, 0],
    ),
    Probe(
        "KL of Categorical",
        lambda rng, n: (rng.normal(size=(n, 10)), rng.normal(size=(n, 10))),
        lambda q, p: kl_divergence(Categorical(q), Categorical(p)),
        lambda q, p: np.sum(np.exp(_log_softmax(q)) * (_log_softmax(q) - _log_softmax(p)), -1),
    ),
    Probe(
        "Normal.log_prob, linear decoder",
        _points(3),
        lambda z: Normal(_FACTOR32 @ z, jnp.ones(3, jnp.float32)).log_prob(jnp.zeros(3, jnp.float32)),
        lambda z: -0.5 * np.sum((z @ _FACTOR.T) ** 2 + _LOG_2PI, -1),
    ),
    Probe(
        "DiscretisedLogistic.log_prob",
        lambda rng, n: (rng.normal(size=(n, 3)), np.exp(0.3 * rng.normal(size=(n, 3)))),
        lambda loc, scale: DiscretisedLogistic(loc, scale, 256).log_prob(jnp.full(3, 100.0, jnp.float32)),
        _discretised_reference,
    ),
    Probe(
        "IWAE bound of linear-Gaussian weights",
        lambda rng, n: (rng.normal(size=(n, 5, 3)),),
        lambda z: bounds.iwae(jax.vmap(_multivariate().log_prob)(z)),
        lambda z: np.log(np.exp(_multivariate_reference(z.reshape(-1, 3)).reshape(-1, 5)).mean(-1)),
    ),
)


if __name__ == "__main__":
    sys.exit(main())
