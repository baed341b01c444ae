"""Monte-Carlo gradient estimators, each a `types.GradientEstimator`: pure functions of explicit noise.

`value_and_grad` draws one estimate; `exact.exact_moments` integrates an estimator's noise instead of drawing it;
`moments.replicate` repeats it. Read `score_function` first: it shows the whole contract on one page.
"""

from vbjax.estimators.baselines import nvil, score_function_moving_average, score_function_optimal_baseline
from vbjax.estimators.binary import arm, arms, disarm
from vbjax.estimators.combination import cross_fitted
from vbjax.estimators.control_variates import muprop, taylor
from vbjax.estimators.discontinuity import continuous, require_continuous
from vbjax.estimators.doubly_reparameterised import (
    doubly_reparameterised,
    generalised_doubly_reparameterised,
    sticking_the_landing,
)
from vbjax.estimators.estimate import value_and_grad
from vbjax.estimators.measure_valued import measure_valued, measure_valued_independent
from vbjax.estimators.mixed import mixed, nested
from vbjax.estimators.multi_sample import reweighted_wake_sleep, tvo_covariance, vimco
from vbjax.estimators.pathwise import antithetic, pathwise, quasi_monte_carlo
from vbjax.estimators.rebar import rebar, relax, tuned_rebar
from vbjax.estimators.relaxed import (
    gumbel_rao,
    gumbel_softmax,
    reinmax,
    relaxed_log_prob,
    straight_through,
    straight_through_gumbel_softmax,
)
from vbjax.estimators.score_function import Baseline, constant, leave_one_out, no_baseline, score_function
from vbjax.estimators.without_replacement import (
    enumeration,
    sum_and_sample,
    unordered_set,
    unordered_set_with_baseline,
)

__all__ = [
    "Baseline",
    "antithetic",
    "arm",
    "arms",
    "constant",
    "continuous",
    "cross_fitted",
    "disarm",
    "doubly_reparameterised",
    "enumeration",
    "generalised_doubly_reparameterised",
    "gumbel_rao",
    "gumbel_softmax",
    "leave_one_out",
    "measure_valued",
    "measure_valued_independent",
    "mixed",
    "muprop",
    "nested",
    "no_baseline",
    "nvil",
    "pathwise",
    "quasi_monte_carlo",
    "rebar",
    "reinmax",
    "relax",
    "relaxed_log_prob",
    "require_continuous",
    "reweighted_wake_sleep",
    "score_function",
    "score_function_moving_average",
    "score_function_optimal_baseline",
    "sticking_the_landing",
    "straight_through",
    "straight_through_gumbel_softmax",
    "sum_and_sample",
    "taylor",
    "tuned_rebar",
    "tvo_covariance",
    "unordered_set",
    "unordered_set_with_baseline",
    "value_and_grad",
    "vimco",
]
