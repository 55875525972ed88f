"""The clock of a run: each moment in one part, and what restarts cost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jepa_vl.training import goodput
from jepa_vl.training.goodput import Clock

ROOT = Path(__file__).resolve().parents[1]


def test_a_part_within_another_interrupts_it_and_is_charged_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    clock = Clock()
    now[0] += 2
    clock.enter("other")
    with clock.part("checkpoint"):
        now[0] += 3
        with pytest.raises(ValueError), clock.part("step"):
            now[0] += 5
            raise ValueError
        now[0] += 7
    now[0] += 11
    found = {part: value for part, value in clock.seconds().items() if value}
    assert found == {"init": 2, "checkpoint": 10, "step": 5, "other": 11}
    assert (clock.share(), clock.running()) == (5 / 28, 28)
    words = goodput.in_words(clock.summary())
    assert words == "goodput 18% of 28 s: other 39%, checkpoint 36%, step 18%, init 7%"


def test_what_a_restart_costs_is_lost_from_the_checkpoint_to_the_first_step(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(goodput.time, "time", lambda: now[0])
    first = Clock()
    now[0] += 10
    with first.part("step"):
        now[0] += 40
    saved = {"seconds": first.running(), "goodput": json.loads(json.dumps(first.to_save()))}
    with first.part("step"):
        now[0] += 20  # thrown away by a kill
    now[0] += 100  # nothing runs
    second = Clock()
    second.resume(saved)
    now[0] += 5
    with second.part("compile"):
        now[0] += 3
    with second.part("step"):
        now[0] += 30
    found = {part: value for part, value in second.seconds().items() if value}
    assert found == {"init": 10, "step": 70, "lost": 20 + 100 + 5 + 3}
    assert sum(found.values()) == now[0] - 1000
    assert (second.running(), second.began) == (50 + 38, 1000)
    older = Clock()  # a checkpoint of before there was a clock
    older.resume({"seconds": 50.0})
    assert older.seconds()["other"] == 50 and older.running() == 50


def test_a_run_without_a_checkpoint_loses_all_that_went_before_unless_it_is_another_one(tmp_path):
    left = {"config_hash": "a", "began": time.time() - 60}
    (tmp_path / "config.json").write_text(json.dumps(left))
    lost = {}
    for name in ("a", "b"):
        clock = Clock()
        clock.start_over(tmp_path, name)
        lost[name] = clock.seconds()["lost"]
        assert clock.began == pytest.approx(time.time() - lost[name], abs=1)
    assert lost == {"a": pytest.approx(60, abs=1), "b": 0}
    (tmp_path / "result.json").write_text("{}")  # ended, and its checkpoints were taken away
    clock = Clock()
    clock.start_over(tmp_path, "a")
    assert clock.seconds()["lost"] == 0


# Without diagnostics; a number is that of the step that it is killed after.
KILLED = """
import os, signal, sys, time
from jepa_vl.cli.main import main
from jepa_vl.training.loop import Run

def killed(self, step):
    if step == int(sys.argv[1]):
        self.keeper.wait()
        time.sleep(1.5)  # work of two steps, which the checkpoint of step 3 does not hold
        os.kill(os.getpid(), signal.SIGKILL)
    return {}

Run.examine = killed
sys.exit(main(sys.argv[2:]))
"""


def test_what_a_kill_throws_away_is_counted_as_lost(tmp_path):
    settings = {"checkpoint.every": 3, "train.compile_cache": tmp_path / "cache"}
    settings |= {"predictor.depth": 1, "eval.train_images": 8, "eval.val_images": 8}
    words = [f"--config.{key}={value}" for key, value in settings.items()]
    words = ["train", "--config", "tests/configs_tiny.py:objective=ijepa",
             "--workdir", str(tmp_path / "run"), *words]  # fmt: skip
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def run(kill):
        command = [sys.executable, "-c", KILLED, str(kill), *words]
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=120).returncode

    began = time.time()
    assert run(5) == -signal.SIGKILL
    time.sleep(1)
    assert run(-1) == 0
    wall = time.time() - began
    result = json.loads((tmp_path / "run/result.json").read_text())
    seconds = result["goodput"]["seconds"]
    assert 2.5 < seconds["lost"] < wall
    assert sum(seconds.values()) < wall  # Python's own start is in no clock
    assert seconds["init"] > 0 and seconds["compile"] > 0  # those of the first process
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(7))
    share = seconds["step"] / sum(seconds.values())
    assert result["goodput"]["share"] == pytest.approx(share, rel=0.02)
