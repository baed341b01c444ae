"""Training a discrete VAE with different gradient estimators, at equal steps and at equal time.

    python benchmarks/discrete_vae.py --dataset fashion_mnist --out runs/estimators     # tens of minutes on two cores

Runs `experiments/discrete_vae.py` for every estimator and seed, two at a time and in turn, so that all meet the same
load; a run that has its card is not repeated. Prints a table with intervals over seeds (Student's t), writes
results.json and curves.svg. Time is processor time, one core a run; equal time is that of the fastest run, at which a
slower one has done fewer steps.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]

ESTIMATORS = {
    "score": 2,
    "score_moving_average": 2,
    "nvil": 2,
    "rloo": 2,
    "arm": 1,
    "disarm": 2,
    "rebar": 1,
    "relax": 1,
    "muprop": 1,
    "straight_through": 1,
    "gumbel_softmax": 1,
    "reinmax": 1,
}
"""Samples of each, for two calls of the decoder a step where that is possible (three for REBAR and RELAX)."""


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/estimators"), help="folder of the runs")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), help=f"default: {' '.join(ESTIMATORS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--experiment", nargs=argparse.REMAINDER, default=[], help="options of the experiment")
    options = parser.parse_args(arguments)
    runs = [(name, seed) for seed in range(options.seeds) for name in options.estimators]
    with ThreadPoolExecutor(options.jobs) as pool:
        cards = list(pool.map(lambda run: train(options, *run), runs))
    results = collect(options, dict(zip(runs, cards, strict=True)))
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results))
    draw(results, options.out / "curves.svg")


def train(options: argparse.Namespace, name: str, seed: int) -> dict:
    """The result card of one run, made if there is none."""
    folder = options.out / f"{name}-{seed}"
    if not (folder / "card.json").exists():
        command = [sys.executable, str(ROOT / "experiments" / "discrete_vae.py"), "--dataset", options.dataset]
        command += ["--estimator", name, "--samples", str(ESTIMATORS.get(name, 2)), "--seed", str(seed)]
        command += ["--steps", str(options.steps), "--out", str(folder), "--overwrite", "--quiet", *options.experiment]
        # one core each, or the runs would fight for all of them
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: {done.stderr.strip().splitlines()[-1]}")
        print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    card = json.loads((folder / "card.json").read_text())
    asked = {"dataset": options.dataset, "estimator": name, "seed": seed, "steps": options.steps}
    if asked != {key: card["config"].get(key) for key in asked}:
        raise SystemExit(f"{folder} holds a run of another configuration; delete it, or give another --out")
    return card


def collect(options: argparse.Namespace, cards: dict) -> dict:
    """Curves of every run, and the bounds at equal steps and at equal time."""
    curves = {}
    for name, seed in cards:
        lines = (options.out / f"{name}-{seed}" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        curves[name, seed] = {
            "steps": [row["step"] for row in rows],
            "seconds": [row["cpu_seconds"] for row in rows],
            **{key: [row[key] for row in rows] for key in ("train_elbo", "gradient_variance", "gradient_snr")},
        }
    clock = min(curve["seconds"][-1] for curve in curves.values())
    results = {"dataset": options.dataset, "steps": options.steps, "seconds": clock, "estimators": {}}
    for name in options.estimators:
        mine = [curves[name, seed] for seed in range(options.seeds)]
        nll = next(key for key in cards[name, 0]["numbers"] if key.startswith("iwae"))
        results["estimators"][name] = {
            "curves": mine,
            "train_elbo_at_equal_steps": [curve["train_elbo"][-1] for curve in mine],
            "train_elbo_at_equal_time": [
                float(np.interp(clock, curve["seconds"], curve["train_elbo"])) for curve in mine
            ],
            "test_nll": [cards[name, seed]["numbers"][nll]["value"] for seed in range(options.seeds)],
            "steps_per_second": [curve["steps"][-1] / curve["seconds"][-1] for curve in mine],
            "gradient_variance": [float(np.median(curve["gradient_variance"])) for curve in mine],
        }
    return results


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95% interval."""
    spread = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(stats.t.ppf(0.975, max(len(values) - 1, 1)) * spread)


def table(results: dict) -> str:
    """A row for each estimator, the best bound at equal steps first."""
    columns = ("train_elbo_at_equal_steps", "train_elbo_at_equal_time", "test_nll", "steps_per_second")
    heads = ("ELBO, equal steps", "ELBO, equal time", "test NLL", "steps/s")
    head = f"{'estimator':22}{''.join(f'{head:>19}' for head in heads)}{'variance':>12}"
    rows = sorted(results["estimators"].items(), key=lambda row: -np.mean(row[1][columns[0]]))
    lines = [f"{results['steps']} steps; equal time: {results['seconds']:.0f} s", head]
    for name, row in rows:
        cells = "".join(f"{mean:>12.2f} ± {half:4.2f}" for mean, half in (interval(row[column]) for column in columns))
        lines.append(f"{name:22}{cells}{np.median(row['gradient_variance']):>12.3g}")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """The training bound against steps and against time, and the gradient's variance against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    labels = (("steps", "train_elbo"), ("seconds", "train_elbo"), ("steps", "gradient_variance"))
    for axes, (x, y) in zip(panels, labels, strict=True):
        for i, (name, row) in enumerate(results["estimators"].items()):
            for curve in row["curves"]:
                style = "-" if i < 10 else "--"
                first = curve is row["curves"][0]
                axes.plot(curve[x], curve[y], style, color=f"C{i % 10}", linewidth=1, label=name if first else None)
        axes.set(xlabel=x, ylabel=y.replace("_", " "))
    panels[2].set_yscale("log")
    ends = [curve["train_elbo"][-1] for row in results["estimators"].values() for curve in row["curves"]]
    for axes in panels[:2]:
        axes.set_ylim(min(ends) - 10, max(ends) + 5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path)


if __name__ == "__main__":
    main()
