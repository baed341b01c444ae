"""The tour: derivations checked, gradient estimators studied, models trained, and one page that shows it all.

`tour` runs the parts in turn and writes `index.html`; each part is a function that returns a section of the page.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from vbjax import cards, runs, studies
from vbjax.derivations import command, registry
from vbjax.estimators import catalogue
from vbjax.reports import Section, page, section, stat_tiles
from vbjax.reports.derivations import derivations_section
from vbjax.reports.evidence import conformance_section
from vbjax.reports.leaderboard import leaderboard_section
from vbjax.reports.studies import tour_section
from vbjax.studies.conformance import conformance
from vbjax.studies.toy_problems import toy_problems
from vbjax.tour import vae
from vbjax.tour.conditional import conditional_section
from vbjax.tour.diffusion import diffusion_section
from vbjax.tour.games import games_section
from vbjax.types import Estimate

ESTIMATORS = ("pathwise", "score", "rloo")
SAMPLES = (1, 2)
REPLICATIONS = 100_000
STEPS = 1500
CONDITIONAL_STEPS, DIFFUSION_STEPS = 600, 800


def tour(
    out: Path,
    *,
    seed: int = 0,
    ids: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    replications: int = REPLICATIONS,
    steps: int = STEPS,
) -> int:
    """Run everything and write `out/index.html`; returns 0 if every statement held and every control was rejected.

    ids: derivations to check, none means all. methods: estimators to judge, None means all. replications: of each
    estimator studied. steps: of the VAE's training, and at most so many of the others'. Raises RunError, before any
    work, if the folder cannot be written.
    """
    begin, provenance = time.perf_counter(), cards.provenance()
    target = runs.writable_folder(out) / "index.html"
    key_vae, key_conditional, key_rows, key_diffusion = jax.random.split(jax.random.key(seed), 4)

    with _part("checking derivations"):
        verdicts = list(command.verdicts_of(registry.select(ids), seed=seed))
    passed = sum(verdict.passed for verdict in verdicts)
    print(f"   {passed} of {len(verdicts)} hold with their control rejected", file=sys.stderr)
    with _part("studying gradient estimators"):
        problems = toy_problems()
        compared = {name: catalogue.METHODS[name] for name in ESTIMATORS}
        cells = studies.grid(problems, compared, samples=SAMPLES)
        results = studies.study(cells, replications=replications, seed=seed)
    with _part("judging every estimator on one bit, by enumeration"):
        judged = list(conformance(jax.random.key(seed), methods=methods, laws=["Bernoulli"], tests=False))
    kept = sum(cell.kept for cell in judged)
    print(f"   {kept} of {len(judged)} promises kept", file=sys.stderr)
    with _part("training a VAE on the 8x8 digits"):
        trained = vae.train(key_vae, steps=steps)
    with _part("measuring its test likelihood and drawing"):
        vae_section, entry = vae.describe(trained)
    with _part("training a class-conditional VAE"):
        given_the_class = conditional_section(key_conditional, steps=min(steps, CONDITIONAL_STEPS))
    with _part("training a diffusion model"):
        diffused, diffusion_entry = diffusion_section(key_diffusion, steps=min(steps, DIFFUSION_STEPS))
    with _part("fitting mixtures by EM for the leaderboard"):
        entries = [*vae.quick_rows(key_rows, trained.data), diffusion_entry, entry]
    with _part("playing the smallest GAN"):
        played = games_section()
    bits = entry.likelihood.bits_per_dim

    seconds = time.perf_counter() - begin
    document = page(
        "Variational Bayes, checked",
        [
            _summary(verdicts, results, bits, seconds),
            derivations_section(verdicts),
            tour_section(problems, results, replications=replications),
            conformance_section(judged, title="Every estimator on one bit"),
            vae_section,
            given_the_class,
            diffused,
            leaderboard_section(
                entries, title="One leaderboard", about="The last 450 of scikit-learn's 8×8 digits, 17 levels a pixel."
            ),
            played,
        ],
        subtitle="Derivations with both sides computed by independent routes, gradient estimators integrated exactly "
        "and sampled, variational auto-encoders and a diffusion model measured on held-out digits, a game predicted.",
        provenance={
            "command": provenance["command"],
            "seed": seed,
            "commit": (provenance["commit"] or {}).get("hash", "not in a checkout"),
            "device": provenance["device"]["kind"],
            "started": provenance["started"],
            "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        },
    )
    runs.write_atomically(target, document)
    print(f"test bits/dim {bits.value:.3f} ± {1.96 * bits.standard_error:.3f}; {seconds:.0f} s; page: {target}")
    return 0 if passed == len(verdicts) and kept == len(judged) else 1


def _summary(verdicts, results, bits: Estimate, seconds: float) -> Section:
    held, rejected = sum(v.holds for v in verdicts), sum(v.control_rejected for v in verdicts)
    tiles = [
        (f"{held} / {len(verdicts)}", "statements hold"),
        (f"{rejected} / {len(verdicts)}", "wrong variants rejected"),
        (f"{sum(not result.refusal for result in results)}", "gradient estimates studied, exactly where possible"),
        (f"{bits.value:.3f}", "bits/dim on test digits"),
        (f"{seconds:.0f} s", "for all of it"),
    ]
    return section("At a glance", stat_tiles(tiles), id="summary")


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    print(f"-- {name} ...", file=sys.stderr, flush=True)
    yield
    print(f"   done in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
