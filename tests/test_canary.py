"""The installed JAX computes what NumPy computes, and the canary would say so if it did not."""

import os
import subprocess
import sys

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
