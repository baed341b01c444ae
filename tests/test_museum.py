"""The museum of wrong gradients: every mutant is found biased, exactly and by draws; no corrected twin is."""

import jax
import numpy as np
import pytest
from museum import BUDGET, EXHIBITS, Case, arm_with, bits, exact_bias, gaussian, iwae_by_laplace, truth, verdict

from vbjax import bounds, testing
from vbjax.estimators.binary import arm

# The probability that the sequential test refuses one twin or more, shared among the exhibits; keys are fixed.
FALSE_ALARM = 1e-6

# What every run checks; the others compile more, and are slow on a busy machine.
QUICK = {
    "guide without gradient",
    "moving average, one sample",
    "population baseline, two samples",
    "own-sample baseline",
    "DiCE forgotten",
    "DisARM",
}
# The slow set rejects all of them by draws; of this route it takes every third
EXACT = [
    pytest.param(
        exhibit,
        id=exhibit.name,
        marks=[] if exhibit.name in QUICK else pytest.mark.long if i % 3 else pytest.mark.slow,
    )
    for i, exhibit in enumerate(EXHIBITS)
    if not exhibit.draws_only
]
BY_NAME = {exhibit.name: exhibit for exhibit in EXHIBITS}


def test_names_differ_and_the_collection_is_large():
    assert len(BY_NAME) == len(EXHIBITS) >= 20


@pytest.mark.parametrize("exhibit", EXACT)
def test_exact_route_finds_the_mutant_biased_by_what_theory_says_and_its_twin_unbiased(exhibit):
    mutant, twin = (exact_bias(exhibit, estimator) for estimator in (exhibit.mutant, exhibit.twin))
    assert max(twin.gradient.values()) < 1e-8
    assert twin.value < 1e-8
    assert max(mutant.gradient.values()) > 0.05
    for entry, effect in exhibit.effect.items():
        assert mutant.gradient[entry] == pytest.approx(effect, abs=1e-6)


@pytest.mark.slow
def test_laplace_identity_gives_the_gradient_that_the_nodes_give():
    """At K = 2, where both routes exist; the wrong number of samples must fail."""
    case = Case(gaussian, {"q": np.array([0.3, 0.8]), "model": np.array([0.4, 0.9])}, 2, bounds.iwae)
    with jax.enable_x64(True):
        exact = testing.flat(truth(case).gradient)
        for samples, right in ((2, True), (3, False)):
            gradient = testing.flat(jax.jit(jax.grad(iwae_by_laplace, 1), static_argnums=0)(samples, case.at()))
            assert np.allclose(gradient, exact, rtol=1e-9, atol=1e-11) == right


@pytest.mark.slow
def test_squared_weights_push_the_prior_the_wrong_way():
    """TFP at K = 10: the mean of the mutant's gradient has the other sign, by 10 standard errors."""
    exhibit = BY_NAME["doubly reparameterised, wrong sign"]
    draws = testing.gradient_draws(jax.random.key(0), exhibit.mutant, exhibit.case.problem, exhibit.case.at())
    sample = next(draws)[:, 0]  # the model's first parameter, in the tree's order
    exact = testing.flat(truth(exhibit.case).gradient)[0]
    standard_error = sample.std() / len(sample) ** 0.5
    assert sample.mean() * exact < 0
    assert abs(sample.mean()) > 10 * standard_error


def test_arm_with_a_wrong_looking_shift_is_no_mutant():
    """E[f(b) - f(b̃)] = 0, so any shift of u is unbiased and only varies more: the museum must not reject it."""
    case = Case(bits, {"q": np.array([-0.8, 0.5]), "model": 0.9})
    with jax.enable_x64(True):
        for estimator in (arm_with(1.0, 1.0), arm(1)):
            bias = testing.exact_bias(estimator, case.problem, case.at(), truth=truth(case))
            assert max(bias.gradient.values()) < 1e-9


def test_own_sample_baseline_is_rejected_within_the_budget_and_leave_one_out_certified():
    exhibit = BY_NAME["own-sample baseline"]
    mutant, twin = (verdict(exhibit, e, error_rate=FALSE_ALARM) for e in (exhibit.mutant, exhibit.twin))
    assert mutant.outcome == "reject"
    assert mutant.draws <= BUDGET
    assert twin.outcome == "certify"


def test_clipping_is_invisible_to_draws():
    """Why the exact route comes first: the bias of 1e-7 is all of the gradient, and no draw ever shows it."""
    exhibit = BY_NAME["clipped probabilities"]
    assert exact_bias(exhibit, exhibit.mutant).gradient["q"] == pytest.approx(1, abs=1e-6)
    assert verdict(exhibit, exhibit.mutant, error_rate=FALSE_ALARM).outcome != "reject"


@pytest.mark.slow
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_sequential_test_rejects_the_mutant_within_the_budget_and_never_its_twin(exhibit):
    rate = FALSE_ALARM / len(EXHIBITS)
    if not exhibit.rare:
        assert verdict(exhibit, exhibit.mutant, error_rate=rate).outcome == "reject"
    assert verdict(exhibit, exhibit.twin, error_rate=rate).outcome in ("certify", "inconclusive")
