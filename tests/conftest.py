"""Eight CPU devices for every test, set before jax is imported."""

import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before conftest could ask for 8 CPU devices")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
