"""A run that hangs says where and ends, for whoever relaunches it."""

import subprocess
import sys
import time

import numpy as np

from jepa_vl.evaluators import fast, progress, spread
from jepa_vl.training.watchdog import Watchdog

HANG = """
import sys, time
from jepa_vl.training import watchdog

watchdog.GRACE = 0.5

def hang_here():
    {hang}

with watchdog.Watchdog(0.01) as dog:
    dog.alive()
    hang_here()
"""


def hung(hang):
    return subprocess.run(
        [sys.executable, "-c", HANG.format(hang=hang)], capture_output=True, text=True, timeout=60
    )


def test_a_hang_ends_the_process_and_tells_where_all_threads_stand():
    done = hung("time.sleep(50)")
    assert done.returncode == 1 and "in hang_here" in done.stderr
    line = "jepa-vl: error: no step for 0.01 minutes (train.watchdog_minutes); all threads stand"
    assert line in done.stderr


def test_even_one_that_holds_pythons_lock():
    done = hung("__import__('ctypes').PyDLL(None).sleep(50)")
    assert done.returncode == 1 and "in hang_here" in done.stderr


def test_signs_of_life_and_the_end_keep_it_quiet():
    with Watchdog(0.01) as dog:
        for _ in range(10):
            dog.alive()
            time.sleep(0.1)
    time.sleep(0.8)  # it is closed; else this process would end
    with Watchdog(0.0):
        time.sleep(0.1)
    with Watchdog(0.001):  # before the first sign, as while the step is compiled
        time.sleep(0.2)


def test_progress_between_steps_is_a_sign_of_life_but_begins_no_watch():
    with Watchdog(60.0) as dog, progress.heard_by(dog.working):
        progress.beat()
        assert dog._last is None  # else compiling the first step would be watched
        dog.alive()
        dog._last = 0.0
        progress.beat()
        assert dog._last > 0.0
    dog._last = 0.0
    progress.beat()
    assert dog._last == 0.0  # nobody listens any more


def test_loops_of_evaluators_tell_of_each_part_that_is_done():
    heard = []
    with progress.heard_by(lambda: heard.append(1)):
        parts = [np.ones((2, 3), np.float32)] * 3
        found = spread.scan(lambda now, _, batch: now + batch.sum(), np.float32(0), (), parts, None)
        assert found == 18 and len(heard) == 3
        x = np.random.default_rng(0).normal(size=(20, 3))
        fast.fit(x, np.arange(20) % 2, 2, 1.0)
    assert len(heard) > 4
