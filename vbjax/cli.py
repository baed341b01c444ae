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


def start_jax() -> None:
    """Settle what JAX reads at import: a persistent compilation cache, and no C++ log lines between ours.

    The cache (VBJAX_CACHE, default ~/.cache/vbjax) halves the time to a second run's first step. XLA's CPU loader
    logs an error line per cached program for two pseudo-features that every machine lacks; level 3 hides them.
    """
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
    start_jax()
    raise SystemExit(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vbjax",
        description="Variational Bayes and its neighbours in JAX, every formula next to its oracle.",
        epilog="Experiments are scripts of their own: python experiments/vae.py --help",
    )
    from vbjax import __version__

    parser.add_argument("--version", action="version", version=f"vbjax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    tour = commands.add_parser(
        "tour",
        help="run the derivation checks, a gradient-variance study and a VAE, and write one page about them",
        description="Checks the derivations of variational Bayes, studies gradient estimators exactly and by Monte "
        "Carlo, trains a VAE on the digits, and writes it all to OUT/index.html. A few minutes on two cores.",
    )
    tour.add_argument("--out", type=Path, default=Path("runs/tour"), help="folder for the page (default: runs/tour)")
    tour.add_argument("--seed", type=_seed, default=0, help="everything random follows from it (default: 0)")
    tour.set_defaults(run=_tour)

    check = commands.add_parser(
        "check",
        help="check derivations: both sides by independent routes, an error bar, a verdict, a rejected control",
        description="Checks entries of the lectures numerically. Exit status 0 only if every identity holds and "
        "every wrong variant (control) is rejected.",
    )
    check.add_argument("ids", nargs="*", metavar="ID", help="entries to check (default: all)")
    check.add_argument("--chapter", type=int, help="only this chapter")
    check.add_argument("--lecture", help="only entries of this lecture, e.g. 000")
    check.add_argument("--list", action="store_true", help="list the entries and check nothing")
    check.add_argument("--seed", type=_seed, default=0, help="seed of the statistical checks (default: 0)")
    check.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    check.set_defaults(run=_check)
    return parser


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

    return run_checks(
        options.ids,
        chapter=options.chapter,
        lecture=options.lecture,
        list_only=options.list,
        seed=options.seed,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
