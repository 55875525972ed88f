"""The persistent compilation cache: the second start of a run compiles nothing."""

import os
from pathlib import Path

import jax

SHORTEST = 0.1  # seconds of compiling that are worth a file; JAX itself keeps nothing below 1


def enable(setting: str) -> None:
    """Points XLA to a cache folder.

    Args:
      setting: a folder; empty for a user cache folder; ``off`` for none. A folder that
        ``JAX_COMPILATION_CACHE_DIR`` names stays as it is.
    """
    if setting == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    base = os.environ.get("JEPA_VL_CACHE") or Path.home() / ".cache" / "jepa_vl"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    jax.config.update("jax_compilation_cache_dir", str(setting or Path(base) / "xla"))
