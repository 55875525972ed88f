"""The step that compiles beside a run's first evaluation: once, in its thread, and its faults."""

import logging
import threading
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jepa_vl import sharding
from jepa_vl.training import ahead, loop
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
RUN = {"train.steps": 2, "objective": "tcjepa", "predictor.depth": 1, "train.compile_cache": "off"}


@pytest.fixture
def compiled():
    """Of each program that is compiled: its name and that of the thread."""
    found = []

    class Listener(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Finished XLA compilation of jit("):
                found.append((message.split("(")[1].split(")")[0], record.threadName))

    listener, logger = Listener(), logging.getLogger("jax")
    logger.addHandler(listener)
    jax.config.update("jax_log_compiles", True)
    yield found
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(listener)


def test_the_first_step_of_a_run_finds_what_the_thread_has_compiled(tmp_path, compiled):
    assert loop.train(tiny(**RUN), tmp_path) == loop.DONE
    [thread] = [thread for name, thread in compiled if name == "step"]
    assert thread.startswith(ahead.THREAD)
    assert threading.main_thread().name in {thread for name, thread in compiled}


def test_a_step_that_does_not_compile_ends_the_run_before_its_first_step(tmp_path, monkeypatch):
    make = loop.make_step

    def broken(*args):
        step = make(*args)

        def lower(*args):
            raise RuntimeError("the program is too large")

        return SimpleNamespace(lower=lower, _cache_size=step._cache_size)

    monkeypatch.setattr(loop, "make_step", broken)
    with pytest.raises(RuntimeError, match="the program is too large"):
        loop.train(tiny(**RUN), tmp_path)


@pytest.mark.parametrize(("platform", "lowered"), [("gpu", 0), ("tpu", 1), ("cpu", 1)])
def test_beside_an_evaluation_only_compilers_that_leave_the_device_alone(
    platform, lowered, monkeypatch
):
    asked = []
    step = SimpleNamespace(lower=lambda *args: asked.append(args) or SimpleNamespace(compile=list))
    device = SimpleNamespace(platform=platform)
    monkeypatch.setattr(sharding, "batch_sharding", lambda _: None)
    monkeypatch.setattr(jax, "set_mesh", lambda _: memoryview(b""))  # any context
    fake: Any = SimpleNamespace(devices=np.array([device], object))
    spec = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), "uint8")}
    state: Any = None
    ahead.compile_step(step, state, {}, spec, fake).result()
    assert len(asked) == lowered
