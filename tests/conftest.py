"""Strict by default: no silent promotion of rank or dtype, no reused key, shapes and types checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

install_import_hook("vbjax", "beartype.beartype")
