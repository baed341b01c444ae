"""The conformance matrix: no estimator is biased where it promises not to be, and every biased one is found out.

The default tests show that it can fail; the slow ones run it on a bit and a normal law, `vbjax conformance` on all.
"""

import functools

import jax
import numpy as np
import pytest

from vbjax import bounds
from vbjax.distributions import Normal
from vbjax.estimators import catalogue
from vbjax.estimators.estimate import inject
from vbjax.studies import conformance as matrix
from vbjax.studies import families, oracles


def judged(laws, methods=None, *, tests=True):
    with jax.enable_x64(True):
        return list(matrix.conformance(jax.random.key(20), laws=laws, methods=methods, tests=tests))


def assert_kept_and_found_out(cells):
    broken = [cell for cell in cells if not cell.kept]
    assert not broken, broken
    judged_methods = {cell.method for cell in cells if cell.verdict != "refused"}
    for method in judged_methods:
        mine = [cell for cell in cells if cell.method == method and cell.verdict != "refused"]
        if not all(cell.promised for cell in mine):
            assert any(cell.verdict == "biased" for cell in mine), f"{method} says it is biased, and nothing shows it"


@pytest.mark.long  # `make demo` judges these, and CI runs it
def test_every_estimator_on_one_bit():
    cells = judged(["Bernoulli"], tests=False)
    assert {cell.method for cell in cells} == set(catalogue.METHODS)
    assert {cell.how for cell in cells if cell.verdict in ("biased", "unbiased")} == {"exact"}
    assert_kept_and_found_out(cells)


@pytest.mark.slow
def test_estimators_of_every_kind_on_a_normal_law():
    cells = judged(["Normal"], ["rloo", "pathwise", "qmc", "measure_valued", "iwae_stl"])
    assert {cell.objective for cell in cells} == set(families.OBJECTIVES)
    assert_kept_and_found_out(cells)


def test_a_wrong_estimator_breaks_its_promise(monkeypatch):
    """RLOO whose baseline contains the own sample halves the gradient, and its spec does not know."""
    right = catalogue.make("rloo", 2)

    def wrong(samples):
        def surrogate(state, noise, f, q):
            values = jax.vmap(f)(noise)
            scores = jax.vmap(lambda z: jax.grad(lambda q: q.log_prob(z))(q))(noise)
            centred = values - values.mean()
            gradient = jax.tree.map(lambda s: (centred @ s.reshape(samples, -1)).reshape(s.shape[1:]) / samples, scores)
            return values.mean() + inject(q, gradient, estimator="wrong")

        return right._replace(surrogate=surrogate)

    monkeypatch.setitem(catalogue.METHODS, "rloo", catalogue.METHODS["rloo"]._replace(make=wrong))
    cells = judged(["Bernoulli"], ["rloo"])
    assert any(not cell.kept and cell.group == "q" for cell in cells)
    assert {str(mark) for mark in matrix.marks(cells).values()} == {matrix.BROKEN}


@pytest.mark.parametrize(("constant", "verdict"), [(0.0, "unbiased"), (7.0, "biased")])
def test_a_coordinate_that_never_varies_is_judged_with_those_that_do(constant, verdict):
    """No test of a mean says anything of a constant; the gradient in the location is one here."""
    right = catalogue.make("score", 1)

    def surrogate(state, noise, f, q):
        held = jax.lax.stop_gradient(q.loc)
        return right.surrogate(state, noise, f, Normal(held, q.scale)) + constant * (q.loc - held)

    with jax.enable_x64(True):
        family = families.families()[0]
        truth = oracles._jump_truth(family)
        truth = truth | {"q": np.asarray([0.0, truth["q"][1]])}  # the parameters of q are loc and scale
        accepted = {"discontinuous": functools.partial(matrix.Cell, "score", 1, "Normal", "discontinuous")}
        estimator = right._replace(surrogate=surrogate)
        cells = matrix._tested_cells(jax.random.key(0), estimator, family, accepted, {"discontinuous": truth})
        assert {cell.group: cell.verdict for cell in cells}["q"] == verdict


def test_the_laplace_transform_of_the_weights_gives_the_bound_of_two_samples():
    with jax.enable_x64(True):
        family = next(f for f in families.families() if f.name == "Bernoulli(2)")
        params = families.arrays(family)
        z, q = family.law(params["q"]).enumerate(), family.law(params["q"])
        log_w = np.asarray(jax.vmap(families.problem(family, "log-weight")(params)[1])(z))
        mass = np.exp(np.asarray(jax.vmap(q.log_prob)(z)))
        pairs = np.log((np.exp(log_w)[:, None] + np.exp(log_w)[None]) / 2)
        truth = oracles.truth(family, "log-weight", 2, bounds.iwae)
        np.testing.assert_allclose(truth["value"], [mass @ pairs @ mass], rtol=1e-12)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no law 'Norml'"):
        judged(["Norml"])
    with pytest.raises(ValueError, match="no estimator 'rlo'"):
        judged(["Normal"], ["rlo"])
