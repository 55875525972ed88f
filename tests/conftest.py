"""Eight CPU devices for every test, set before jax is imported."""

import os
import shutil
import sys
import tempfile
from types import SimpleNamespace

import pytest

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before conftest could ask for 8 CPU devices")
os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of a BLAS that wait by spinning take the cores of the other test process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# What one test has compiled the next ones read, and the processes that they start: most of what
# tests did was to compile the same steps again. A folder that is already named stays as it is.
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jepa_vl_tests_")


def pytest_unconfigure():
    """The process that made the folder of compilations takes it away."""
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def _quickly_compiled():
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def quick_compilation():
    """For promises that no optimisation of the compiler could break."""
    yield from _quickly_compiled()


@pytest.fixture(scope="module")
def quick_module():
    """The same for all of a module, fixtures of its own included."""
    yield from _quickly_compiled()


@pytest.fixture(scope="session")
def compilations():
    """The folder of compilations, as ``train.compile_cache`` names it."""
    return os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture
def no_evaluation(monkeypatch):
    """Runs without diagnostics and kNN, which are most of a tiny run."""
    from jepa_vl.training import loop

    health = SimpleNamespace(run=lambda state: {}, indices=list)
    monkeypatch.setattr(loop, "Health", lambda *args: health)
    monkeypatch.setattr(loop.data_health, "measure", lambda *args: {})
    quiet = SimpleNamespace(run=lambda *args: {}, describe=lambda: None, tested=lambda: 0)
    monkeypatch.setattr(loop, "Online", lambda *args: quiet)


@pytest.fixture
def one_device(monkeypatch):
    """For what any mesh would show: eight devices on two cores compile and run far slower."""
    import jax

    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *args: devices(*args)[:1])
