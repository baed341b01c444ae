"""The problems that come with `vbjax study`: the toys, and problems of the size and shape that people meet.

`bundled_problems()` lists them by name and builds none: data are loaded and checkpoints trained when `make` is called.
"""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from vbjax.studies import toy_problems as toys
from vbjax.studies.toy_problems import ToyProblem


class BundledProblem(NamedTuple):
    """A problem by the name that commands use. summary: half a line; source: the paper; make: builds it."""

    name: str
    summary: str
    source: str
    make: Callable[[], ToyProblem]


def bundled_problems() -> dict[str, BundledProblem]:
    """All problems by name, in the order of a list: costs of a normal number, coins, counts, ELBOs, the larger ones."""
    return {problem.name: problem for problem in _PROBLEMS}


def make_problem(name: str) -> ToyProblem:
    """Build one problem. Raises ValueError for an unknown name, with the nearest ones."""
    known = bundled_problems()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise ValueError(f"there is no problem {name!r}; did you mean {', '.join(near)}?")
    return known[name].make()


def _logistic(at_optimum: bool) -> ToyProblem:
    from vbjax.studies.logistic_regression import logistic_regression

    return logistic_regression(at_optimum=at_optimum)


def _digits(discrete: bool) -> ToyProblem:
    from vbjax.studies.digits_gradients import digits_vae

    return digits_vae(discrete=discrete)


def _diffusion(kind: str) -> ToyProblem:
    from vbjax.studies.diffusion_times import diffusion_bound

    return diffusion_bound(kind)


def _bandit(noisy: bool) -> ToyProblem:
    from vbjax.studies.bandit import bandit, noisy_bandit

    return noisy_bandit() if noisy else bandit()


def _bits() -> ToyProblem:
    from vbjax.studies.binary_programmes import polynomial_programme

    return polynomial_programme()


_MOHAMED = "Mohamed et al. (2020), section 3"
_REGRESSION = "Mohamed et al. (2020), section 8"
_VAE = "Kingma and Welling (2014); Mnih and Gregor (2014)"
_TIMES = "Ho et al. (2020); Nichol and Dhariwal (2021), section 3.3"

_PROBLEMS = (
    BundledProblem("square", "(z - a)² under a normal law", _MOHAMED, toys.square),
    BundledProblem("exponential", "exp(-k z²) under a normal law", _MOHAMED, toys.bump),
    BundledProblem("cosine", "cos ωz under a normal law", _MOHAMED, toys.cosine),
    BundledProblem("coin-rebar", "(b - 0.45)², one bit", "Tucker et al. (2017)", lambda: toys.coin(0.45)),
    BundledProblem("coin-relax", "(b - 0.499)², one bit", "Grathwohl et al. (2018)", lambda: toys.coin(0.499)),
    BundledProblem("coin-arm", "(b - 0.51)², one bit", "Yin and Zhou (2019)", lambda: toys.coin(0.51)),
    BundledProblem("polynomial", "mean |b - 0.45|³ of four bits", "Liu et al. (2023), section 5.1", _bits),
    BundledProblem("poisson", "(z - t)² of a Poisson count", "", toys.counts),
    BundledProblem(
        "bandit", "expected reward of a softmax policy, four arms", "Williams (1992)", lambda: _bandit(False)
    ),
    BundledProblem("noisy-bandit", "the same with noisy rewards", "Williams (1992)", lambda: _bandit(True)),
    BundledProblem("linear-elbo", "ELBO of a linear-Gaussian model", "", toys.linear_gaussian_elbo),
    BundledProblem("diffusion-uniform", "a diffusion bound, one uniform time", _TIMES, lambda: _diffusion("uniform")),
    BundledProblem("diffusion-importance", "the same, times ∝ √E loss²", _TIMES, lambda: _diffusion("loss")),
    BundledProblem("logistic-start", "logistic regression of 31 weights, early", _REGRESSION, lambda: _logistic(False)),
    BundledProblem("logistic-optimum", "the same at its optimum", _REGRESSION, lambda: _logistic(True)),
    BundledProblem("digits-normal", "a digit's VAE, normal latent: trains for seconds", _VAE, lambda: _digits(False)),
    BundledProblem("digits-bits", "a digit's VAE, ten bits: trains for seconds", _VAE, lambda: _digits(True)),
)
