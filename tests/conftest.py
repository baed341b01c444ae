"""Strict by default: no silent promotion of rank or dtype, no reused key, shapes and types checked at run time."""

import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are kept between runs, also for the subprocesses that tests start; XLA's loader logs a line for
# each of them, at a level that only 3 hides.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

install_import_hook("vbjax", "beartype.beartype")


def pytest_configure(config):
    """Compile the tests without optimisation: their time is the compiler's, and halves. XLA reads the flags when it
    first compiles, so it is not too late; the long set, the canary and `make demo` run what users run.
    """
    if "not long" in config.option.markexpr and "XLA_FLAGS" not in os.environ:
        flags = "--xla_backend_optimization_level=0"
        if importlib.metadata.version("jax").startswith("0.10."):  # newer ones do not know the flag, and abort
            flags += " --xla_cpu_use_fusion_emitters=false"
        os.environ["XLA_FLAGS"] = flags


@pytest.fixture(scope="module")
def x64():
    """Float64 for the tests of a module: oracles are compared to rounding error."""
    with jax.enable_x64(True):
        yield
