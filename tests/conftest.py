"""Eight CPU devices for every test, set before jax is imported."""

import os
import sys

import pytest

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before conftest could ask for 8 CPU devices")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)


@pytest.fixture
def quick_compilation():
    """For promises that no optimisation of the compiler could break."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
