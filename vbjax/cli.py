"""The command `vbjax`. Start-up is instant: JAX is imported by the command that needs it, never by `--help`.

Experiments use two things from here: `start_jax`, before they import JAX, and `exit_with`, which turns a refusal
into one clear line and an exit status.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

BAD_INPUT = 2
"""Exit status for what cannot be done as asked; nothing has been written then."""


def start_jax(devices: int | None = None) -> None:
    """Settle what JAX reads at import: a persistent compilation cache, and no C++ log lines between ours.

    devices: of the host, None for JAX's own choice, one. The cache (VBJAX_CACHE, default ~/.cache/vbjax) halves the
    time to a second run's first step. XLA's CPU loader logs an error line per cached program for two pseudo-features
    that every machine lacks; level 3 hides them.
    """
    if devices is not None and "jax" not in sys.modules:  # JAX reads it once
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(devices))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cache = Path(os.environ.get("VBJAX_CACHE") or Path.home() / ".cache" / "vbjax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@contextlib.contextmanager
def exit_with(status: int, *errors: type[Exception]) -> Iterator[None]:
    """Turn these errors into one line on standard error and this exit status: `BAD_INPUT` for what was asked for."""
    try:
        yield
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(status) from error


def main(arguments: list[str] | None = None) -> None:
    """Run one command; returns normally for exit status 0, raises SystemExit otherwise."""
    options = _parser().parse_args(arguments)
    start_jax(getattr(options, "devices", None))
    if not getattr(options, "list", False):
        _ask_the_canary()
    raise SystemExit(options.run(options))


def _ask_the_canary() -> None:
    """Leave with `BAD_INPUT` before a JAX that computes wrong numbers is asked for any."""
    from vbjax import canary

    if why := canary.refusal():
        print(f"error: nothing was done, for {why}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vbjax",
        description="Variational Bayes and its neighbours in JAX, every formula next to its oracle.",
        epilog="Exit status 2: nothing was done, for bad input or a JAX that computes wrong numbers. Experiments are "
        "scripts of their own: python experiments/vae.py --help",
    )
    from vbjax import __version__

    parser.add_argument("--version", action="version", version=f"vbjax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    tour = commands.add_parser(
        "tour",
        help="run the derivation checks, a gradient-variance study and a VAE, and write one page about them",
        description="Checks the derivations of variational Bayes, studies gradient estimators exactly and by Monte "
        "Carlo, trains VAEs and a diffusion model on the digits, and writes it all to OUT/index.html. A few minutes on "
        "two cores.",
    )
    tour.add_argument("--out", type=Path, default=Path("runs/tour"), help="folder for the page (default: runs/tour)")
    tour.add_argument("--seed", type=_seed, default=0, help="everything random follows from it (default: 0)")
    tour.set_defaults(run=_tour)

    check = commands.add_parser(
        "check",
        help="check derivations: both sides by independent routes, an error bar, a verdict, a rejected control",
        description="Checks entries of the lectures numerically. Exit status 0 only if every identity holds and "
        "every wrong variant (control) is rejected, 1 if not, 2 if nothing was checked: an entry that there is not, or "
        "a JAX that computes wrong numbers.",
    )
    check.add_argument("ids", nargs="*", metavar="ID", help="entries to check (default: all)")
    check.add_argument("--chapter", type=int, help="only this chapter")
    check.add_argument("--lecture", help="only entries of this lecture, e.g. 000")
    check.add_argument("--list", action="store_true", help="list the entries and check nothing")
    check.add_argument("--seed", type=_seed, default=0, help="seed of the statistical checks (default: 0)")
    check.add_argument(
        "--instances",
        type=_count,
        default=0,
        metavar="N",
        help="also check N random instances of each entry; one that fails is printed as code that repeats it",
    )
    check.add_argument("--report", type=Path, metavar="DIR", help="also write a page about them: DIR/index.html")
    check.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    check.set_defaults(run=_check)

    study = commands.add_parser(
        "study",
        help="study gradient estimators: bias, variance and cost, exactly where possible, with intervals elsewhere",
        description="Studies every estimator on every problem: exact moments by integrating its noise where that is "
        "possible, Monte-Carlo moments with intervals elsewhere, a verdict on its bias, its cost, and who is on the "
        "front of bias, variance and cost.",
        epilog=_STUDY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument(
        "problems", nargs="*", metavar="PROBLEM|FILE.py", help="problems by name (--list), or Python files with yours"
    )
    study.add_argument(
        "--estimators",
        nargs="+",
        default=(),
        metavar="NAME",
        help="names (--list), FILE.py, or FILE.py:FUNCTION (default: score rloo pathwise, and those in your files)",
    )
    study.add_argument(
        "--reference",
        metavar="NAME",
        help="the estimator that the others are compared with (default: the first that serves)",
    )
    study.add_argument("--samples", nargs="+", type=_count, default=(1,), metavar="K", help="samples each (default: 1)")
    study.add_argument(
        "--sweep",
        nargs="*",
        dest="sweeps",
        metavar="NAME=lo:hi:n",
        help="vary a parameter: NAME=lo:hi:n, NAME=lo:hi:n:log or NAME=1,2,5; alone: the sweep the problem comes with",
    )
    study.add_argument(
        "--replications", type=_count, default=100_000, metavar="N", help="draws of each estimator (default: 1e5)"
    )
    study.add_argument("--seed", type=_seed, default=0, help="everything random follows from it (default: 0)")
    study.add_argument(
        "--delta",
        type=_positive,
        default=0.05,
        help="certify any bias below this many standard deviations of one estimate (default: 0.05)",
    )
    study.add_argument(
        "--cost",
        choices=("evaluations", "flops", "microseconds"),
        default="evaluations",
        help="what efficiency and front are measured in (default: evaluations, the calls of f)",
    )
    study.add_argument("--quick", action="store_true", help="1e4 replications at most, no exact moments: a first look")
    study.add_argument(
        "--out", type=Path, help="folder for rows, page and what --resume needs (default: write nothing)"
    )
    study.add_argument("--format", choices=("csv", "parquet"), default="csv", help="of the rows (default: csv)")
    study.add_argument("--resume", action="store_true", help="go on with the study in --out, to the same bits")
    study.add_argument("--overwrite", action="store_true", help="delete the study in --out and start again")
    study.add_argument(
        "--devices",
        type=_count,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="host devices (default: one a core; same numbers)",
    )
    study.add_argument("--json", action="store_true", help="print the rows as JSON")
    study.add_argument("--list", action="store_true", help="list problems and estimators and study nothing")
    study.set_defaults(run=_study)

    conformance = commands.add_parser(
        "conformance",
        help="judge every estimator on every family of laws and kind of objective, exactly where it can be",
        description="Fills the conformance matrix: every estimator, law and objective, in the value, the gradient in q "
        "and the gradient in the model. Exact by integration of all noise where a rule serves, else by a sequential "
        "test. Exit status 1 if an estimator is biased that promises not to be. All of it takes most of an hour on two "
        "cores.",
    )
    conformance.add_argument("--methods", nargs="+", default=(), metavar="NAME", help="estimators (default: all)")
    conformance.add_argument("--laws", nargs="+", default=(), metavar="NAME", help="families of laws (default: all)")
    conformance.add_argument("--no-tests", action="store_true", help="only what is exact; the rest stays open")
    conformance.add_argument("--seed", type=_seed, default=0, help="seed of the tests (default: 0)")
    conformance.add_argument("--markdown", type=Path, metavar="FILE", help="also write the matrix to FILE, law by law")
    conformance.add_argument("--json", action="store_true", help="print every cell as JSON")
    conformance.set_defaults(run=_conformance)

    published = commands.add_parser(
        "published",
        help="reproduce published results on gradient estimators, each with a verdict",
        description="Recomputes results of the literature: the claim, our table, and which findings hold. Exit status "
        "1 if one does not. Without names all of them, in some minutes.",
    )
    published.add_argument("names", nargs="*", metavar="CASE", help="cases (default: all)")
    published.add_argument("--quick", action="store_true", help="fewer draws, the same rules")
    published.add_argument("--out", type=Path, help="folder for a page with all of it (default: write nothing)")
    published.add_argument("--list", action="store_true", help="list the cases and compute nothing")
    published.add_argument("--json", action="store_true", help="print tables and findings as JSON")
    published.set_defaults(run=_published)
    return parser


_STUDY_EXAMPLES = """examples:
  vbjax study --list                                  what there is
  vbjax study square coin --samples 1 4               three estimators on a square and three coins, in a table
  vbjax study square --estimators score rloo pathwise --sweep loc=-2:2:9 --out runs/square
                                                      variance against a parameter, as a page and CSV
  vbjax study my_problem.py --samples 1 4 16 --replications 1e6 --out runs/mine
                                                      your own problem; killed? the same with --resume
  vbjax study coin --estimators rloo my_estimator.py:mine

a file of your own:
  import jax.numpy as jnp
  from vbjax.distributions import Normal
  from vbjax.estimators import score_function
  params = {"loc": 0.5, "scale": 1.0}                 # where the gradient is taken
  def problem(p): return Normal(p["loc"], p["scale"]), lambda z: jnp.cosh(z)      # a law, and f of its events
  def mine(samples): return score_function(samples)   # an estimator

exit status: 0; 1 if an estimator that claims to be unbiased was found biased; 2 for bad input or a JAX that
computes wrong numbers, nothing written.
Rows do not depend on --devices, on the other cells, or on an interruption. The same seed gives the same noise to
every estimator with the same law of noise."""


def _count(text: str) -> int:
    """A whole positive number, also as 1e6."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (1 <= number < 2**31 and number == int(number)):
        raise argparse.ArgumentTypeError(f"a whole number from 1 to 2^31 - 1 is wanted (1e6 will do), got {text!r}")
    return int(number)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number is wanted, got {text!r}")
    return number


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to 2^31 - 1, got {text!r}")
    return int(text)


def _tour(options: argparse.Namespace) -> int:
    from vbjax.runs import RunError
    from vbjax.tour import tour

    with exit_with(BAD_INPUT, RunError):
        return tour(options.out, seed=options.seed)


def _check(options: argparse.Namespace) -> int:
    from vbjax.derivations.command import run_checks
    from vbjax.runs import RunError

    publish = None
    with exit_with(BAD_INPUT, RunError):
        if options.report:
            from vbjax.reports.derivations import report_writer

            publish = report_writer(options.report)
        return run_checks(
            options.ids,
            chapter=options.chapter,
            lecture=options.lecture,
            list_only=options.list,
            seed=options.seed,
            instances=options.instances,
            as_json=options.json,
            publish=publish,
        )


def _conformance(options: argparse.Namespace) -> int:
    import jax

    from vbjax.evidence import run_conformance
    from vbjax.runs import RunError

    with exit_with(BAD_INPUT, RunError), jax.enable_x64(True):
        return run_conformance(
            options.methods,
            options.laws,
            seed=options.seed,
            tests=not options.no_tests,
            markdown=options.markdown,
            as_json=options.json,
        )


def _published(options: argparse.Namespace) -> int:
    from vbjax.runs import RunError

    if options.list:
        from vbjax.studies.published import CASES

        print(*CASES, sep="\n")
        return 0
    from vbjax.evidence import run_published

    with exit_with(BAD_INPUT, RunError):
        return run_published(options.names, quick=options.quick, out=options.out, as_json=options.json)


def _study(options: argparse.Namespace) -> int:
    from vbjax.runs import RunError

    with exit_with(BAD_INPUT, RunError):
        if options.replications < 2:
            raise RunError("--replications must be at least 2 for a variance")
        if options.resume and options.overwrite:
            raise RunError("--resume and --overwrite exclude each other: the one keeps what the other deletes")
        from vbjax import study

        if options.list:
            return study.list_all([name for name in options.problems if name.endswith(".py")], as_json=options.json)
        fields = {
            "problems",
            "estimators",
            "reference",
            "samples",
            "sweeps",
            "replications",
            "seed",
            "delta",
            "cost",
            "quick",
            "out",
        }
        fields |= {"format", "resume", "overwrite"}
        chosen = {name: value for name, value in vars(options).items() if name in fields}
        return study.run_study(study.Request(**chosen, as_json=options.json))


if __name__ == "__main__":
    main()
