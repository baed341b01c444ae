"""Every estimator by the name that commands and tables use, with what a reader wants to know before choosing one.

`METHODS` is the list; `make("rloo", samples=4)` builds one. A method's `bound` is the bound that it estimates.
"""

import difflib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from vbjax import bounds
from vbjax.estimators.baselines import nvil, score_function_moving_average, score_function_optimal_baseline
from vbjax.estimators.binary import arm, arms, disarm
from vbjax.estimators.combination import cross_fitted
from vbjax.estimators.control_variates import muprop, taylor
from vbjax.estimators.doubly_reparameterised import (
    doubly_reparameterised,
    generalised_doubly_reparameterised,
    sticking_the_landing,
)
from vbjax.estimators.measure_valued import measure_valued, measure_valued_independent
from vbjax.estimators.mixed import mixed
from vbjax.estimators.multi_sample import reweighted_wake_sleep, tvo_covariance, vimco
from vbjax.estimators.pathwise import antithetic, pathwise, quasi_monte_carlo
from vbjax.estimators.rebar import rebar, relax, tuned_rebar
from vbjax.estimators.relaxed import (
    gumbel_rao,
    gumbel_softmax,
    reinmax,
    straight_through,
    straight_through_gumbel_softmax,
)
from vbjax.estimators.score_function import leave_one_out, score_function
from vbjax.estimators.without_replacement import (
    enumeration,
    sum_and_sample,
    unordered_set,
    unordered_set_with_baseline,
)
from vbjax.types import Bound, GradientEstimator

TEMPERATURE = 0.5
BETAS = (0.0, 0.1, 0.4)


class Method(NamedTuple):
    """One way to estimate a gradient.

    name: as commands take it. family: the heading it is listed under. make: (samples, options) -> estimator.
    summary: half a line. source: the paper. min_samples: the fewest samples. bound: of the samples' values, what it
    estimates. learns: whether it takes an `optimizer` for parameters of its own.
    """

    name: str
    family: str
    make: Callable[..., GradientEstimator]
    summary: str
    source: str
    min_samples: int = 1
    bound: Bound = bounds.mean
    learns: bool = False


_with = functools.partial


def _of_discrete_sums(samples: int) -> GradientEstimator:
    """All samples but one are spent on the most probable outcomes."""
    return sum_and_sample(samples - 1, 1)


def _score_and_taylor(samples: int) -> GradientEstimator:
    members = (score_function(2, baseline=leave_one_out), taylor(1, order=1))
    return cross_fitted(members, draws=samples)


def _rloo_beside_pathwise(samples: int) -> GradientEstimator:
    return mixed(score_function(2, baseline=leave_one_out), pathwise(1), samples=samples)


_SCORE = (
    ("score", score_function, "no baseline (REINFORCE)", "Williams 1992"),
    ("rloo", _with(score_function, baseline=leave_one_out), "leave-one-out baseline", "Kool et al. 2019", 2),
    ("score_optimal", score_function_optimal_baseline, "best baseline of each parameter", "Greensmith et al. 2004", 2),
    ("score_moving_average", score_function_moving_average, "moving average of f", "Williams 1992"),
    ("nvil", nvil, "learned baseline", "Mnih & Gregor 2014", 1, bounds.mean, True),
    ("taylor", taylor, "first-order expansion of f as control variate", "Paisley et al. 2012"),
    ("taylor2", _with(taylor, order=2), "second-order expansion of f as control variate", "Paisley et al. 2012"),
    ("muprop", muprop, "expansion around the mean, discrete laws", "Gu et al. 2016"),
    ("cross_fitted", _score_and_taylor, "rloo and taylor by held-out weights", "Geffner & Domke 2018", 3),
)
_PATHWISE = (
    ("pathwise", pathwise, "through the sample", "Kingma & Welling 2014"),
    ("stl", sticking_the_landing, "sticking the landing: without the score", "Roeder et al. 2017"),
    ("antithetic", antithetic, "noise in mirrored pairs", "Hammersley & Morton 1956", 2),
    ("qmc", quasi_monte_carlo, "scrambled Sobol noise", "Buchholz et al. 2018"),
)
_MEASURE_VALUED = (
    ("measure_valued", measure_valued, "weak derivative, coupled", "Pflug 1989"),
    ("measure_valued_independent", measure_valued_independent, "weak derivative, uncoupled", "Mohamed et al. 2020"),
)
_COUPLED = (
    ("arm", arm, "antithetic uniforms", "Yin & Zhou 2019"),
    ("disarm", disarm, "ARM without its uniforms (U2G)", "Dong et al. 2020", 2),
    ("arms", arms, "n antithetic draws by a copula", "Dimitriev & Zhou 2021", 2),
)
_FEW_OUTCOMES = (
    ("enumeration", enumeration, "exact sum, samples = outcomes", "—"),
    ("sum_and_sample", _of_discrete_sums, "exact over the top, one draw of the rest", "Liu et al. 2019", 2),
    ("unordered_set", unordered_set, "without replacement", "Kool et al. 2020", 2),
    ("unordered_set_baseline", unordered_set_with_baseline, "without replacement, baseline", "Kool et al. 2020", 2),
)
_RELAXED = (
    ("gumbel_softmax", _with(gumbel_softmax, temperature=TEMPERATURE), "relaxed samples, λ = 1/2", "Jang et al. 2017"),
    ("straight_through", straight_through, "gradient of the mean", "Bengio et al. 2013"),
    (
        "st_gumbel_softmax",
        _with(straight_through_gumbel_softmax, temperature=TEMPERATURE),
        "hard forward, relaxed backward, λ = 1/2",
        "Jang et al. 2017",
    ),
    ("gumbel_rao", _with(gumbel_rao, temperature=TEMPERATURE), "the same, Rao-Blackwellised", "Paulus et al. 2021"),
    ("reinmax", reinmax, "straight-through of second order", "Liu et al. 2023"),
)
_BY_RELAXATION = (
    ("rebar", _with(rebar, temperature=TEMPERATURE), "relaxed control variate, λ = 1/2", "Tucker et al. 2017"),
    ("tuned_rebar", tuned_rebar, "learned temperature and scale", "Tucker et al. 2017", 1, bounds.mean, True),
    ("relax", relax, "learned free-form control variate", "Grathwohl et al. 2018", 1, bounds.mean, True),
)
IWAE, RENYI, CUBO, TVO = bounds.iwae, bounds.renyi(0.5), bounds.cubo(2), bounds.tvo(BETAS)
_MULTI_SAMPLE = (
    ("iwae_score", _with(score_function, bound=IWAE), "IWAE by score", "Burda et al. 2016", 1, IWAE),
    ("iwae_path", _with(pathwise, bound=IWAE), "IWAE by path", "Burda et al. 2016", 1, IWAE),
    (
        "iwae_stl",
        _with(sticking_the_landing, bound=IWAE),
        "without the score, biased",
        "Roeder et al. 2017",
        1,
        IWAE,
    ),
    ("vimco", vimco, "IWAE, leave-one-out signals", "Mnih & Rezende 2016", 2, IWAE),
    ("dreg", doubly_reparameterised, "IWAE, doubly reparameterised", "Tucker et al. 2019", 1, IWAE),
    ("gdreg", generalised_doubly_reparameterised, "the same for the prior too", "Bauer & Mnih 2021", 1, IWAE),
    ("rws", reweighted_wake_sleep, "reweighted wake-sleep", "Bornschein & Bengio 2015", 2, IWAE),
    ("renyi_score", _with(score_function, bound=RENYI), "Rényi α = 1/2 by score", "Li & Turner 2016", 1, RENYI),
    ("renyi_path", _with(pathwise, bound=RENYI), "Rényi α = 1/2 by path", "Li & Turner 2016", 1, RENYI),
    ("cubo_score", _with(score_function, bound=CUBO), "CUBO n = 2 by score", "Dieng et al. 2017", 1, CUBO),
    ("cubo_path", _with(pathwise, bound=CUBO), "CUBO n = 2 by path", "Dieng et al. 2017", 1, CUBO),
    ("tvo_vimco", _with(vimco, bound=TVO), "TVO, leave-one-out signals", "Masrani et al. 2019", 2, TVO),
    ("tvo", _with(tvo_covariance, betas=BETAS), "TVO by covariance, biased", "Masrani et al. 2019", 2, TVO),
)
_SITES = (("mixed", _rloo_beside_pathwise, "two sites: rloo, then pathwise", "Titsias & Lázaro-Gredilla 2015"),)
_FAMILIES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "score function": _SCORE,
    "pathwise": _PATHWISE,
    "measure-valued": _MEASURE_VALUED,
    "coupled bits": _COUPLED,
    "few outcomes": _FEW_OUTCOMES,
    "relaxed (biased)": _RELAXED,
    "control variate by relaxation": _BY_RELAXATION,
    "multi-sample bounds": _MULTI_SAMPLE,
    "several sites": _SITES,
}

METHODS: dict[str, Method] = {
    row[0]: Method(row[0], family, *row[1:]) for family, rows in _FAMILIES.items() for row in rows
}


def make(name: str, samples: int, **options: Any) -> GradientEstimator:
    """Build an estimator by name; options go to its factory.

    Raises ValueError for an unknown name, with the nearest ones, and for too few samples.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(METHODS)}"
        raise ValueError(f"there is no estimator {name!r}{hint}")
    method = METHODS[name]
    if samples < method.min_samples:
        raise ValueError(f"{name} needs samples >= {method.min_samples}, got {samples}")
    return method.make(samples, **options)
