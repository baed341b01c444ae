"""The section of a gradient-variance study: a picture, and a table a problem with exact and sampled variances."""

import math
from collections.abc import Sequence

from vbjax.reports.figures import figure, figure_style
from vbjax.reports.html import Html, formula, prose
from vbjax.reports.numbers import number, uncertain
from vbjax.reports.page import Section, section, subsection, table
from vbjax.studies import Row, ToyProblem, variance_figure

HEADER = ("estimator", "parameter", "exact variance", "sampled variance", "z", "bias, z", "f calls", "variance × calls")


def study_section(
    problems: Sequence[ToyProblem], rows: Sequence[Row], *, replications: int, title: str = "Gradient estimators"
) -> Section:
    """The figure over all problems, then each problem with its formula and its rows; refusals are rows that say why."""
    with figure_style():
        drawing = variance_figure(rows)
    deviations = [abs(z) for row in rows for z in (row.z_mean, row.z_variance) if math.isfinite(z)]
    return section(
        title,
        prose(
            "The variance of one gradient estimate, integrated over the estimator's noise where that is possible and "
            f"sampled by {replications:,} replications. The bias is judged against the exact gradient, in standard "
            f"errors. Largest deviation of {len(deviations)}: $|z| = {max(deviations, default=0):.1f}$."
        ),
        figure(drawing, name="variances", alt="Variance of each gradient estimator on each toy problem, log scale"),
        *(_problem(problem, [row for row in rows if row.problem == problem.name]) for problem in problems),
        id="estimators",
    )


def _problem(problem: ToyProblem, rows: Sequence[Row]) -> Html:
    served = [row for row in rows if not row.refusal]
    refusals = dict.fromkeys((row.estimator, row.refusal) for row in rows if row.refusal)
    return subsection(
        problem.name,
        formula(problem.statement),
        table(HEADER, [_cells(row) for row in served], caption=f"Estimators on the problem {problem.name}"),
        [prose(f"`{estimator}` refuses: {refusal}") for estimator, refusal in refusals],
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.estimator,
        row.parameter,
        _shown(row.exact_variance) if math.isfinite(row.exact_variance) else f"none: {row.no_exact}",
        uncertain(row.variance, row.variance_standard_error),
        _shown(row.z_variance, 2),
        _shown(row.z_mean, 2),
        str(row.evaluations),
        _shown(row.work_normalised_variance, 4),
    )


def _shown(value: float, digits: int = 6) -> str:
    return "" if math.isnan(value) else number(value, digits)
