"""The sections of a study of gradient estimators: for each problem its formula, its pictures and its tables."""

import math
from collections.abc import Sequence

from vbjax import tails
from vbjax.reports.figures import figure, figure_style
from vbjax.reports.html import Html, badge, element, formula, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.page import Section, details, section, stat_tiles, subsection, table
from vbjax.studies import bias, plots, rows
from vbjax.studies.cells import Result
from vbjax.studies.collection import slug
from vbjax.studies.pairs import Pair
from vbjax.studies.toy_problems import ToyProblem

_COST = {"evaluations": "calls of f", "flops": "FLOPs", "microseconds": "µs"}


def study_sections(
    problems: Sequence[ToyProblem],
    results: Sequence[Result],
    *,
    cost: str = "evaluations",
    delta: int | float = 0.05,
    pairs: Sequence[Pair] = (),
) -> list[Section]:
    """How to read it, then a section for each problem; pairs: comparisons with a reference."""
    sections = [problem_section(problem, results, cost=cost, pairs=pairs) for problem in problems]
    return [_guide(results, cost, delta), *sections]


def problem_section(
    problem: ToyProblem, results: Sequence[Result], *, cost: str = "evaluations", pairs: Sequence[Pair] = ()
) -> Section:
    """A problem with its formula, its figures and tables at every point; refusals are lines that say why."""
    mine = [result for result in results if result.problem == problem.name]
    name = slug(problem.name).replace(".", "-").replace("+", "-").replace("_", "-")
    with figure_style():
        drawn = [
            figure(drawing, name=f"{name}-{i}", alt=f"{title} on {problem.name}", caption=_caption(title))
            for i, (title, drawing) in enumerate(plots.figures(mine, cost=cost).items())
        ]
    tables, count = [], 0
    for group in rows.by_setting(mine).values():
        point = ", ".join(f"{key} = {number(value)}" for key, value in group[0].point.items())
        tables.append(results_table(group, caption=f"{problem.name}{': ' if point else ''}{point}", cost=cost))
        here = {id(result) for result in group}
        beside = [pair for pair in pairs if id(pair.result) in here]
        if beside:
            tables.append(pairs_table(beside, caption=f"The same against {beside[0].reference.estimator}", cost=cost))
        count += 1
    if count > 3:
        tables = [details(f"Tables for all {count} points", *tables)]
    return section(
        problem.name,
        prose(problem.summary) if problem.summary else None,
        formula(problem.statement) if problem.statement else None,
        prose(f"Source: {problem.source}") if problem.source and not problem.source.endswith(".py") else None,
        [_alarm(result) for result in mine if result.mismatch],
        drawn,
        tables,
        [_refusal(name, why) for name, why in rows.refusals(mine).items()],
        id=f"problem-{name}",
    )


def results_table(results: Sequence[Result], *, caption: str, cost: str = "evaluations") -> Html:
    """The results at one point beside each other."""
    header = ("estimator", "K", "bias", "variance", "95%", "calls", "FLOPs", "µs", "efficiency", "front")
    body = []
    for place in rows.standings(results, cost=cost):
        result = place.result
        body.append(
            (
                result.estimator,
                str(result.samples or "–"),
                _bias(place),
                _variance(place),
                "exact" if result.exact else _interval(place),
                number(result.evaluations),
                "" if math.isnan(result.flops) else number(result.flops, 3),
                "" if math.isnan(result.microseconds) else number(result.microseconds, 2),
                "" if math.isnan(place.efficiency) else number(place.efficiency, 2),
                "★" if place.front else "",
            )
        )
    return table(header, body, caption=caption, align="lrllrrrrrl")


def pairs_table(pairs: Sequence[Pair], *, caption: str, cost: str = "evaluations") -> Html:
    """Ratios of total variances to the reference's, and of variance times cost."""
    header = ("estimator", "K", "reference's K", "variance ratio", "95%", f"ratio of variance × {_COST[cost]}")
    body = [
        (
            pair.result.estimator,
            *(str(r.samples or "–") for r in (pair.result, pair.reference)),
            number(pair.ratio, 3),
            "exact" if pair.exact else f"{number(pair.low, 3)} to {number(pair.high, 3)}",
            number(pair.work(cost), 3),
        )
        for pair in pairs
    ]
    return table(header, body, caption=caption, align="lrrrrr")


def tour_section(
    problems: Sequence[ToyProblem], results: Sequence[Result], *, replications: int, title: str = "Gradient estimators"
) -> Section:
    """All problems of a small study as one section: formula and table each."""
    served = [result for result in results if not result.refusal]
    exact = sum(result.exact for result in served)
    parts = []
    for problem in problems:
        mine = [result for result in results if result.problem == problem.name]
        parts.append(
            subsection(
                problem.name,
                formula(problem.statement),
                results_table(mine, caption=f"Estimators on the problem {problem.name}"),
                [_refusal(name, why) for name, why in rows.refusals(mine).items()],
            )
        )
    return section(
        title,
        prose(
            f"Bias, variance and cost of one gradient estimate, integrated over all of the noise for {exact} of "
            f"{len(served)} estimators, sampled by {replications:,} replications for all. The bias is the norm over "
            "all coordinates, the variance their sum, the efficiency $1/(\\text{variance} \\times \\text{calls})$ "
            "relative to the best unbiased estimator; a star marks the front: nothing is better in bias, variance and "
            "calls of f at once."
        ),
        *parts,
        id="estimators",
    )


def _guide(results: Sequence[Result], cost: str, delta: int | float) -> Section:
    served = [result for result in results if not result.refusal]
    tiles = [
        (len(served), "estimates studied"),
        (sum(result.exact for result in served), "integrated exactly"),
        (
            sum(result.outcome in (bias.UNBIASED, bias.CERTIFIED) for result in served),
            "without bias, proved or certified",
        ),
        (sum(result.outcome == bias.BIASED for result in served), "biased"),
        (sum(result.mismatch for result in served), "contradict their specification"),
    ]
    replications = max((result.replications for result in served), default=0)
    return section(
        "How to read this",
        stat_tiles(tiles),
        prose(
            "*Bias* is the norm, over all coordinates, of the estimator's mean minus the exact gradient. `0 exactly`: "
            "its mean over all of its noise is the exact gradient, to rounding. `none seen`: sampled, and any bias is "
            f"below {delta:g} standard deviations of one estimate; that is wrong with probability $10^{{-6}}$, however "
            "often one looks. A number: biased by so much. `says biased`: by its specification, not yet measured."
        ),
        prose(
            "*Variance* is that of one estimate, summed over the coordinates; `exact` where it was integrated, else "
            f"with a 95% interval from {replications:,} replications that takes the kurtosis into account. Where the "
            "tail of the draws says that there is no variance, it says `not finite`; a question mark says that the "
            "interval cannot be trusted, because there is no fourth moment."
        ),
        prose(
            "*Cost*: calls of f are counted, FLOPs are XLA's, microseconds were measured here, noise and gradient "
            f"included. *Efficiency* is $1/(\\text{{variance}} \\times \\text{{cost}})$ in {_COST[cost]}, relative to "
            "the best estimator without bias. A star marks the *front*: no other is as good in bias, variance and "
            "cost, and better in one. Estimators with the same law of noise saw the same noise."
        ),
        prose(
            "*Against the reference*: the ratio of total variances, below 1 for less than the reference's, with a 95% "
            "interval from draws on common keys whose pairing it takes into account; `exact` where both variances are. "
            "Only estimators of the same gradient that are not biased are compared."
        ),
        id="guide",
    )


def _refusal(estimator: str, why: str) -> Html:
    return element("p", element("code", estimator), f" refuses: {why}")


def _alarm(result: Result) -> Html:
    text = f" {result.call} says that it is unbiased; at {result.setting} {result.explanation}."
    return element("p", badge("contradicts its specification", "bad"), text)


def _bias(place: rows.Standing) -> Html | str:
    result = place.result
    if result.outcome == bias.BIASED:
        size = number(place.bias, 3) if result.exact else uncertain(place.bias, place.bias_error)
        return badge(size, "bad" if result.mismatch else "neutral")
    if result.outcome == bias.UNBIASED:
        return badge("0 exactly", "good")
    return badge("none seen", "good") if result.outcome == bias.CERTIFIED else rows.outcome_text(result)


def _variance(place: rows.Standing) -> str:
    if math.isinf(place.variance):
        return "not finite"
    doubt = " ?" if not place.result.exact and place.result.tail == tails.UNRELIABLE else ""
    return number(place.variance, 6 if place.result.exact else 4) + doubt


def _interval(place: rows.Standing) -> str:
    if not math.isfinite(place.low):
        return ""
    return f"{number(place.low, 4)} to {number(place.high, 4)}"


def _caption(title: str) -> str:
    notes = {
        "signal": "The norm of the gradient over the standard deviation of one estimate. Independent samples gain "
        "$\\sqrt{K}$.",
        "variance against calls of f": "Each point is one number of samples; hollow ones are biased. The dashed line "
        "is the front.",
    }
    for start, note in notes.items():
        if title.startswith(start):
            return note
    return f"{title[0].upper()}{title[1:]}; the band is the 95% interval where the variance was sampled."
