"""The installed JAX computes what NumPy computes, and the canary would say so if it did not."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vbjax import canary

ONE_SIZE = "from vbjax import canary; canary.BATCH_SIZES = (40_000,); raise SystemExit(canary.main())"


def test_the_canary_is_green_where_it_would_be_red():
    """In a process of its own: the default tests compile without the optimisations that go wrong."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_SIZE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert "GREEN" in done.stdout


def miscompiled(x):
    # the signature of jax 0.10.2: some rows wrong, most of them right
    return jnp.where(x[0] > 2, 0.5, 1) * jnp.sum(x**2)


@pytest.mark.parametrize("function", [miscompiled, lambda x: jnp.where(x[0] > 2, jnp.nan, jnp.sum(x**2))])
def test_a_few_wrong_or_missing_rows_turn_the_canary_red(function, monkeypatch, capsys):
    def rows(rng, n):
        return (rng.normal(size=(n, 3)),)

    def reference(x):
        return np.sum(x**2, -1)

    right = canary.Probe("right", rows, lambda x: jnp.sum(x**2), reference)
    wrong = right._replace(name="wrong", function=function)
    monkeypatch.setattr(canary, "BATCH_SIZES", (2**10,))
    monkeypatch.setattr(canary, "PROBES", (right,))
    assert canary.main() == 0
    assert "GREEN" in capsys.readouterr().out
    monkeypatch.setattr(canary, "PROBES", (right, wrong))
    assert canary.main() == 1
    assert "RED: jax" in (out := capsys.readouterr().out)
    assert "in 1 of 2 probes: wrong." in out


@pytest.fixture
def fresh_refusal():
    canary.refusal.cache_clear()
    yield canary.refusal
    canary.refusal.cache_clear()


def test_a_healthy_jax_is_not_refused(fresh_refusal):
    assert fresh_refusal() is None


def test_the_row_that_bad_releases_fail_refuses_them(fresh_refusal, monkeypatch):
    monkeypatch.setattr(canary, "PROBES", (canary.PROBES[0]._replace(function=miscompiled), *canary.PROBES[1:]))
    assert "of 40,000 compiled rows of the squared norm of L x disagree with NumPy" in fresh_refusal()
    assert f'pip install "{canary.REQUIREMENT}"' in fresh_refusal()


def test_a_release_that_crashes_is_refused_unasked(fresh_refusal, monkeypatch):
    monkeypatch.setattr(canary.jax, "__version__", canary.CRASHING[0])
    monkeypatch.setattr(canary, "PROBES", ())
    assert "crashes" in fresh_refusal()


def test_what_to_install_is_what_the_project_requires():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert canary.REQUIREMENT in project["project"]["dependencies"]
