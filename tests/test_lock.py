"""Two runs never write to one workdir, and no crash leaves it locked."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jepa_vl.config import ConfigError
from jepa_vl.training import lock, loop
from tests.tiny import tiny

HOLD = """
import sys, time
from pathlib import Path
from jepa_vl.training.lock import Lock
held = Lock(Path(sys.argv[1]))
assert held.take() == ""
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the workdir."""
    root = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_told_who_trains_there(other, tmp_path):
    with pytest.raises(ConfigError, match=f"another run trains here: process {other.pid} on "):
        loop.train(tiny(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {lock.FILE}


def test_kill_9_releases_it(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with lock.Lock(tmp_path) as mine:
        assert mine.take() == ""


def test_it_waits_for_one_that_is_about_to_end_where_it_is_asked_to(other, tmp_path, monkeypatch):
    monkeypatch.setenv(lock.PATIENCE, "30")
    threading.Timer(0.5, other.kill).start()
    began = time.monotonic()
    with lock.Lock(tmp_path) as mine:
        assert mine.take() == ""
    assert 0.3 < time.monotonic() - began < 25


def test_it_ends_with_the_run_also_where_that_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(ConfigError, match="max_bad"), lock.Lock(tmp_path) as mine:
            mine.take()
            raise ConfigError("data.max_bad_share", 1, "fails")


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.Lock(tmp_path) as mine:
        assert "nothing keeps a second run out" in mine.take()
