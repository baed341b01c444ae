"""Every entry holds, every control is rejected, and a fault in the library turns entries red."""

import functools
import io
import json
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from vbjax import autoencoders, bounds, distributions
from vbjax.derivations import (
    CHAPTERS,
    LECTURES,
    Agreement,
    AtLeast,
    AtMost,
    Control,
    Identity,
    Statistical,
    UnknownEntry,
    Verdict,
    adversarial,
    check,
    command,
    identities,
    select,
)
from vbjax.derivations.command import reproduction, run_checks, verdicts_of
from vbjax.derivations.identity import Numbers, draw
from vbjax.diffusion import process
from vbjax.distributions import Categorical, MultivariateNormal, Normal
from vbjax.divergences import families, kullback_leibler
from vbjax.gan import values
from vbjax.types import Estimate

ENTRIES = {identity.id: identity for identity in identities()}
SAMPLED = [name for name, identity in ENTRIES.items() if isinstance(identity.test, Statistical)]


@functools.cache
def verdict(name):
    return check(ENTRIES[name])


def some(names, every):
    """All the names, but most of them in the long set: `make demo` checks every entry, and CI runs it."""
    return [name if i % every == 0 else pytest.param(name, marks=pytest.mark.long) for i, name in enumerate(names)]


@pytest.mark.parametrize("name", some(ENTRIES, 12))
def test_statement_holds_and_control_is_rejected(name):
    found = verdict(name)
    assert found.failure is None
    assert found.holds, (found.error, found.limit, found.lhs, found.rhs)
    assert found.control_rejected, (found.control_error, found.control_limit)


def library_called(side, *args):
    """Whether a function of the library, derivations apart, runs while the side does."""
    called = []

    def profile(frame, event, arg):
        if event == "call":
            name = frame.f_globals.get("__name__", "")
            if name.startswith("vbjax.") and not name.startswith("vbjax.derivations"):
                called.append(name)

    sys.setprofile(profile)
    try:
        side(*args)
    finally:
        sys.setprofile(None)
    return called


@pytest.mark.parametrize("name", ENTRIES)
def test_right_side_never_calls_the_library(name):
    assert library_called(ENTRIES[name].rhs, ENTRIES[name].instance) == []


def test_left_side_calls_the_library():
    names = ["elbo-decomposition", "gaussian-kl-closed-form", "rloo-variance", "bits-back-compression"]
    assert all(library_called(ENTRIES[name].lhs, ENTRIES[name].instance) for name in names)


def test_catalogue_is_complete_and_consistent():
    assert len(identities()) == len(ENTRIES) == 119
    assert {identity.chapter for identity in ENTRIES.values()} == set(CHAPTERS)
    assert {identity.lecture for identity in ENTRIES.values()} <= set(LECTURES)
    assert all(identity.title and identity.slide and identity.control.claim for identity in ENTRIES.values())


@pytest.mark.parametrize("name", ENTRIES)
def test_instances_print_as_the_code_that_rebuilds_them(name):
    """The printed reproduction, without its check: imports, then the instance."""
    for instance in (ENTRIES[name].instance, draw(ENTRIES[name], seed=0, index=1)):
        imports, call = reproduction(verdict_on(name, instance)).split("verdict = ")
        scope = {}
        exec(imports, scope)
        scope["check"] = lambda _, *, seed, instance: instance
        scope["select"] = lambda _: [None]
        assert eval(call.splitlines()[0], scope) == instance


def verdict_on(name, instance):
    """A verdict that nothing computed."""
    nothing = Numbers((), np.zeros(0), np.zeros(0))
    return Verdict(ENTRIES[name], instance, 0, nothing, nothing, nothing, 0.0, 1.0, 2.0, 1.0, 0.0)


@pytest.mark.parametrize("name", ENTRIES)
def test_draws_follow_the_seed_and_differ(name):
    drawn = [draw(ENTRIES[name], seed=seed, index=index) for seed, index in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("name", list(ENTRIES)[3::20])
def test_statement_holds_on_a_draw_of_its_family(name):
    """Every twentieth entry; all of them on several draws in the long set."""
    assert check(ENTRIES[name], instance=draw(ENTRIES[name], seed=5, index=1)).passed


@pytest.mark.long
@pytest.mark.parametrize("name", ENTRIES)
def test_statement_holds_on_many_draws(name):
    failed = [v for v in verdicts_of([ENTRIES[name]], seed=11, instances=20) if not v.passed]
    assert not failed, reproduction(failed[0])


def doubled(function):
    return lambda *args, **kwargs: 2 * function(*args, **kwargs)


def kl_without_its_half(patch):
    for pair in ((Normal, Normal), (MultivariateNormal, MultivariateNormal), (MultivariateNormal, Normal)):
        patch.setitem(kullback_leibler._CLOSED_FORMS, pair, doubled(kullback_leibler._CLOSED_FORMS[pair]))


def density_without_its_scale(patch):
    def log_prob(self, x):
        return jnp.sum(-0.5 * ((x - self.loc) / self.scale) ** 2 - 0.5 * np.log(2 * np.pi))

    patch.setattr(Normal, "log_prob", log_prob)


def iwae_without_its_count(patch):
    patch.setattr(bounds, "iwae", lambda log_weights: jnp.log(jnp.sum(jnp.exp(log_weights))))


def transposed_cholesky(patch):
    patch.setattr(MultivariateNormal, "transport", lambda self, noise: self.loc + self.scale_tril.T @ noise)


def variance_for_scale(patch):
    patch.setattr(distributions.LogNormal, "transport", lambda self, e: jnp.exp(self.loc + self.scale**2 * e))


def elbo_plus_kl(patch):
    patch.setattr(bounds.ELBO, "total", property(lambda self: self.reconstruction + self.kl))


def renyi_without_its_shift(patch):
    def shiftless(q, p, alpha):
        return original(Normal(p.loc, q.scale), p, alpha)

    original = families._renyi_normal
    patch.setattr(families, "_renyi_normal", shiftless)


def reversed_categorical(patch):
    original = kullback_leibler._CLOSED_FORMS[Categorical, Categorical]
    patch.setitem(kullback_leibler._CLOSED_FORMS, (Categorical, Categorical), lambda q, p: original(p, q))


def forward_step_without_its_root(patch):
    original = process.forward_variance
    patch.setattr(process, "forward_variance", lambda x, s, t: original(x, s, t) ** 2)


def mean_squared_error(patch):
    original = autoencoders.reconstruction_error
    patch.setattr(autoencoders, "reconstruction_error", lambda pair, x: original(pair, x) / len(x))


def game_without_its_half(patch):
    patch.setattr(adversarial, "minimax", values.scaled(values.minimax, 2))


FAULTS = {
    forward_step_without_its_root: ["ddpm-forward-kernel-and-joint", "anisotropic-recap-sqrt", "ddpm-noise-merging"],
    mean_squared_error: ["autoencoder-reconstruction-loss", "recurrent-and-stacked-ae"],
    game_without_its_half: ["gan-discriminator-bce", "gan-value-jsd", "gan-nonsaturating"],
    kl_without_its_half: ["gaussian-kl-closed-form", "gaussian-kl-full-covariance", "elbo-reconstruction-minus-kl"],
    density_without_its_scale: ["elbo-decomposition", "vae-diagonal-decoder", "vae-normalised-density"],
    iwae_without_its_count: ["naive-mc-marginal-likelihood", "iwae-bound-monotone"],
    transposed_cholesky: ["gaussian-affine-reparameterisation", "reparameterisation-gradient"],
    variance_for_scale: ["reparameterisation-lotus"],
    elbo_plus_kl: ["dataset-elbo-bracketing", "bits-back-compression", "vae-objective"],
    renyi_without_its_shift: ["naive-mc-variance-dimension"],
    reversed_categorical: ["hierarchical-vae-elbo", "elbo-ascent-vs-evidence"],
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_turns_entries_red(fault, monkeypatch):
    fault(monkeypatch)
    survivors = [name for name in FAULTS[fault] if check(ENTRIES[name]).holds]
    assert survivors == []


@pytest.mark.parametrize("name", some(SAMPLED, 4))
def test_sampled_entry_holds_at_another_seed(name):
    found = check(ENTRIES[name], seed=1)
    assert found.passed
    assert not np.array_equal(found.lhs.values, verdict(name).lhs.values)


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_entry_holds_at_many_seeds(name):
    scores = [check(ENTRIES[name], seed=seed).error for seed in range(2, 22)]
    assert max(scores) < ENTRIES[name].test.limit(len(verdict(name).lhs.values))
    # were the standard errors too large, |z| would never leave zero
    assert max(scores) > 0.5


def toy(test=Agreement(1e-9), lhs=None, rhs=None, control=None, **fields):  # noqa: B008 - a named tuple
    return Identity(
        title="toy",
        statement="1 = 1",
        lecture="000",
        slide="none",
        kind="identity",
        instance=None,
        family=lambda random: random.normal(),
        lhs=lhs or (lambda _: {"a": 1.0}),
        rhs=rhs or (lambda _: {"a": 1.0}),
        test=test,
        control=control or Control("two", rhs=lambda _: {"a": 2.0}),
        **fields,
    )


def test_control_that_passes_fails_the_check():
    found = check(toy(control=Control("the same", rhs=lambda _: {"a": 1.0})))
    assert found.holds
    assert not found.control_rejected
    assert not found.passed


def test_exception_in_a_side_is_a_verdict_that_does_not_hold():
    found = check(toy(lhs=lambda _: {"a": 1 / 0}))
    assert found.failure == "ZeroDivisionError: division by zero"
    assert not found.holds
    assert not found.control_rejected


def test_sides_must_answer_the_same_questions():
    assert "different questions" in check(toy(lhs=lambda _: {"b": 1.0})).failure
    assert "different shapes" in check(toy(lhs=lambda _: {"a": np.ones(2)})).failure


def test_nan_neither_holds_nor_rejects():
    assert not check(toy(lhs=lambda _: {"a": np.nan})).holds
    assert not check(toy(control=Control("nan", rhs=lambda _: {"a": np.nan}))).control_rejected


def test_equal_infinities_agree_and_opposite_ones_do_not():
    assert check(toy(lhs=lambda _: {"a": np.inf}, rhs=lambda _: {"a": np.inf})).holds
    assert not check(toy(lhs=lambda _: {"a": -np.inf}, rhs=lambda _: {"a": np.inf})).holds


@pytest.mark.parametrize(("test", "lhs", "holds"), [
    (AtMost(1e-9), 0.5, True),
    (AtMost(1e-9), 1.5, False),
    (AtLeast(1e-9), 1.5, True),
    (AtLeast(1e-9), 0.5, False),
])  # fmt: skip
def test_inequalities_look_in_their_own_direction(test, lhs, holds):
    assert check(toy(test, lhs=lambda _: {"a": lhs})).holds == holds


def test_statistical_limit_shares_its_error_rate():
    test = Statistical(0.05)
    assert test.limit(1) == pytest.approx(1.959964, abs=1e-6)
    assert test.limit(5) == pytest.approx(2.575829, abs=1e-6)  # a two-sided level of 0.01 each

    def estimate(value):
        return lambda key, _: {"a": Estimate(jnp.array(value), jnp.array(0.1), 10)}

    assert check(toy(test, lhs=estimate(1.19))).holds
    assert not check(toy(test, lhs=estimate(1.21))).holds


def test_control_replaces_exactly_one_side():
    with pytest.raises(ValueError, match="one side"):
        toy(control=Control("nothing"))


def test_selection_by_id_chapter_and_lecture():
    assert [i.id for i in select(["bonnet-price", "elbo-tightness"])] == ["bonnet-price", "elbo-tightness"]
    assert {i.chapter for i in select(chapter=2)} == {2}
    assert {i.lecture for i in select(lecture="004")} == {"004"}
    assert select() == identities()


@pytest.mark.parametrize(("selection", "message"), [
    ({"ids": ["elbo-decompositon"]}, "did you mean elbo-decomposition"),
    ({"chapter": 99}, "chapter '99'"),
    ({"lecture": "01"}, "did you mean 001"),
    ({"chapter": 2, "lecture": "004"}, "both"),
])  # fmt: skip
def test_unknown_selection_names_the_closest(selection, message):
    with pytest.raises(UnknownEntry, match=message):
        select(**selection)


def silent():
    return Console(file=io.StringIO(), width=160)


def test_command_exits_zero_when_everything_holds():
    console = silent()
    assert run_checks(["gaussian-kl-full-covariance"], console=console) == 0
    assert "1 of 1 statements hold, 1 of 1 controls are rejected" in console.file.getvalue()


def test_command_exits_one_and_says_why(monkeypatch):
    kl_without_its_half(monkeypatch)
    console = silent()
    assert run_checks(["gaussian-kl-full-covariance"], console=console) == 1
    assert "the sides differ: KL(q‖p) = " in console.file.getvalue()
    assert "instance=Gaussians(" in console.file.getvalue()


def test_command_exits_two_on_an_unknown_id(capsys):
    assert run_checks(["elbo-thightness"], console=silent()) == 2
    assert "did you mean elbo-tightness" in capsys.readouterr().err


def test_an_interrupted_command_waits_for_the_checks_in_progress_alone(monkeypatch):
    begun, interrupted = [], threading.Event()

    def slow(identity, *, seed, instance):
        begun.append(identity)
        if len(begun) > 1:
            interrupted.wait(60)
        return check(ENTRIES["gaussian-kl-full-covariance"])

    class Interrupted(Console):
        def print(self, *objects, **options):
            threading.Timer(0.5, interrupted.set).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "check", slow)
    with pytest.raises(KeyboardInterrupt):
        run_checks(chapter=2, console=Interrupted(force_terminal=True, file=io.StringIO()))
    assert len(begun) <= 3 < len(select(chapter=2))


def test_one_check_needs_no_threads(monkeypatch):
    monkeypatch.setattr(command, "ThreadPoolExecutor", None)
    assert run_checks(["gaussian-kl-full-covariance"], console=silent()) == 0


def test_command_writes_strict_json(capsys):
    assert run_checks(["elbo-support-condition"], as_json=True, seed=3, console=silent()) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["id"] == "elbo-support-condition"
    assert row["seed"] == 3
    assert row["lhs"]["value"][:2] == ["-inf", "inf"]
    assert row["holds"] is row["control_rejected"] is True


def test_command_draws_instances_and_prints_the_failing_one_as_code(monkeypatch, capsys):
    console = silent()
    assert run_checks(["gaussian-kl-full-covariance"], instances=2, console=console) == 0
    assert "3/3" in console.file.getvalue()
    kl_without_its_half(monkeypatch)
    console = silent()
    assert run_checks(["gaussian-kl-full-covariance"], instances=1, console=console) == 1
    printed = console.file.getvalue()
    lines = printed[printed.rindex("from vbjax.derivations import") :].splitlines()
    code = [line for line in lines if line.startswith(("from ", "verdict", "print"))]
    exec("\n".join(code))
    assert capsys.readouterr().out.startswith("False True")


def test_command_publishes_own_instances_and_failures(monkeypatch):
    kl_without_its_half(monkeypatch)
    published = []
    run_checks(
        ["gaussian-kl-full-covariance", "bits-back-compression"],
        instances=1, console=silent(), publish=published.extend,
    )  # fmt: skip
    assert [v.passed for v in published] == [False, False, True]


def test_command_lists_without_checking():
    console = silent()
    assert run_checks(chapter=3, list_only=True, console=console) == 0
    assert "linear-vae-ppca" in console.file.getvalue()
    assert "rloo-variance" not in console.file.getvalue()
