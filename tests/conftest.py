"""Eight CPU devices for every test, set before jax is imported."""

import os
import sys
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
def compilations(tmp_path_factory):
    """A persistent compilation cache, as ``train.compile_cache`` names it."""
    import jax

    yield str(tmp_path_factory.mktemp("compilations"))
    jax.config.update("jax_compilation_cache_dir", None)


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
