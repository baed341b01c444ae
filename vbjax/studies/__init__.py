"""Studies of gradient estimators: the same variance exactly and by Monte Carlo, problem by problem.

`variance_study(key, toy_problems(), estimators, replications=...)` returns rows; `variance_figure(rows)` draws them.
"""

from vbjax.studies.plots import variance_figure
from vbjax.studies.toy_problems import ToyProblem, toy_problems
from vbjax.studies.variance import Row, variance_study

__all__ = ["Row", "ToyProblem", "toy_problems", "variance_figure", "variance_study"]
