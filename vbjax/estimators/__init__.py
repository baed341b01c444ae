"""Monte-Carlo gradient estimators, each a `types.GradientEstimator`: pure functions of explicit noise.

`value_and_grad` draws one estimate; `exact.exact_moments` integrates an estimator's noise instead of drawing it;
`moments.replicate` repeats it. Read `score_function` first: it shows the whole contract on one page.
"""

from vbjax.estimators.estimate import value_and_grad
from vbjax.estimators.pathwise import pathwise
from vbjax.estimators.score_function import Baseline, constant, leave_one_out, no_baseline, score_function

__all__ = [
    "Baseline",
    "constant",
    "leave_one_out",
    "no_baseline",
    "pathwise",
    "score_function",
    "value_and_grad",
]
