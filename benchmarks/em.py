"""EM on normal mixtures (16 components, 100,000 data of 64 dimensions, a fixed number of updates), as ratios.

`vbjax.em.fit` and scikit-learn's `GaussianMixture` take turns in one process, from the same start, without a floor or
a ridge, in equal dtypes; both make one density pass more than updates. `python benchmarks/em.py`.
"""

import argparse
import json
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from vbjax import em
from vbjax.distributions import MultivariateNormal, Normal

TARGET = 1.0


def overlapping_clouds(n: int, d: int, components: int, dtype: np.dtype) -> np.ndarray:
    """Data whose responsibilities are spread out."""
    rng = np.random.default_rng(0)
    centres = 0.5 * rng.normal(size=(components, d))
    return (centres[rng.integers(components, size=n)] + rng.normal(size=(n, d))).astype(dtype)


def contestants(kind: str, data: np.ndarray, components: int, updates: int) -> dict:
    """Both as functions without arguments that return (means, mean log-likelihood)."""
    d, dtype = data.shape[1], data.dtype
    means, weights = data[:components].copy(), np.full(components, 1 / components, dtype)
    unit = np.ones((components, d), dtype) if kind == "diag" else np.tile(np.eye(d, dtype=dtype), (components, 1, 1))
    law, family = {
        "diag": (Normal, em.diagonal_gaussians),
        "full": (MultivariateNormal, em.full_gaussians),
    }[kind]
    initial = em.MixtureModel(jnp.log(jnp.asarray(weights)), law(jnp.asarray(means), jnp.asarray(unit)))

    def with_vbjax():
        found = em.fit(
            jax.random.key(0), family(components), data, initial=initial, tolerance=0, max_iterations=updates
        )
        return np.asarray(found.model.components.loc), float(found.log_likelihood[-1])

    def with_sklearn():
        peer = GaussianMixture(
            components, covariance_type=kind, reg_covar=0, tol=0, max_iter=updates, weights_init=weights,
            means_init=means, precisions_init=unit, init_params="random",
        ).fit(data)  # fmt: skip
        return peer.means_, float(peer.lower_bound_)

    return {"vbjax": with_vbjax, "scikit-learn": with_sklearn}


def measure(kind: str, dtype: str, arguments: argparse.Namespace) -> dict:
    """Let the two take turns; one unmeasured run each compiles and warms up."""
    with jax.enable_x64(dtype == "float64"):
        data = overlapping_clouds(arguments.data, arguments.dimensions, arguments.components, np.dtype(dtype))
        runs = contestants(kind, data, arguments.components, arguments.updates)
        ends = {name: run()[0] for name, run in runs.items()}
        seconds = {name: [] for name in runs}
        for turn in range(arguments.rounds):
            for name in runs if turn % 2 == 0 else reversed(runs):
                begin = time.perf_counter()
                runs[name]()
                seconds[name].append(time.perf_counter() - begin)
    difference = float(np.abs(ends["vbjax"] - ends["scikit-learn"]).max())
    return {"kind": kind, "dtype": dtype, "seconds": seconds, "difference_of_means": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["diag", "full"], choices=["diag", "full"])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"], choices=["float64", "float32"])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = [measure(kind, dtype, arguments) for kind in arguments.kinds for dtype in arguments.dtypes]
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        ours, theirs = (statistics.median(row["seconds"][name]) for name in ("vbjax", "scikit-learn"))
        ratio = theirs / ours
        verdict = "met" if ratio >= TARGET else "MISSED"
        print(f"{row['kind']:5} {row['dtype']}: vbjax {ours:.2f} s, scikit-learn {theirs:.2f} s; vbjax is {ratio:.2f} "
              f"x as fast; target {TARGET:g}: {verdict}; means differ by {row['difference_of_means']:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
