"""What a run shows while it goes on: rows for programs, next to nothing, or rows elsewhere too."""

import importlib.machinery
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.training import console, loop
from jepa_vl.training.weights_biases import Tracker
from tests.test_cli import ROOT, SPREAD, TRAIN, refused
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Weights:
    """Stands for the library: remembers what it is told."""

    def __init__(self):
        self.started, self.rows, self.ended, self.fails = [], [], [], None
        self.steps, self.summary = [], {}
        self.module = ModuleType("wandb")
        self.module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.module.init, self.module.Settings = self.init, SimpleNamespace

    def init(self, **how):
        if self.fails:
            raise self.fails
        self.started.append(how)
        return self

    def define_metric(self, name, step_metric):
        self.steps.append((name, step_metric))

    def log(self, row):
        if self.fails:
            raise self.fails
        self.rows.append(row)

    def finish(self, code):
        self.ended.append(code)


@pytest.fixture
def weights(monkeypatch):
    found = Weights()
    monkeypatch.setitem(sys.modules, "wandb", found.module)
    return found


def small(compilations, **values):
    bare = {"objective": "ijepa", "predictor.depth": 1, "train.compile_cache": compilations}
    return tiny(**{**bare, "train.steps": 3, "optim.warmup_steps": 1, **values})


def test_json_puts_the_rows_and_nothing_else_on_stdout_and_they_go_to_weights_and_biases(
    tmp_path, compilations, one_device, no_evaluation, weights, capsys
):
    workdir = tmp_path / "mine"
    values = {"log.progress": "json", "log.wandb": "scenes"}
    assert loop.train(small(compilations, **values), workdir) == loop.DONE
    out, err = capsys.readouterr()
    assert out == (workdir / "metrics.jsonl").read_text() and out.count("\n") == 4
    assert "ijepa on shapes_world" in err and "done: 3 steps" in err
    (how,) = weights.started
    told = json.loads((workdir / "wandb.json").read_text())
    assert (how["project"], how["name"], how["id"]) == ("scenes", "mine", told["id"])
    assert how["config"]["train"]["steps"] == 3 and how["resume"] == "allow"
    rows = [json.loads(line) for line in out.splitlines()]
    assert weights.rows == [{k: v for k, v in row.items() if v is not None} for row in rows]
    assert weights.steps == [("*", "step")] and weights.ended == [loop.DONE]
    result = json.loads((workdir / "result.json").read_text())
    assert json.loads(json.dumps(weights.summary["result"])) == result


def test_off_leaves_one_line_on_stderr_that_says_how_it_ended(
    tmp_path, compilations, one_device, no_evaluation, capsys
):
    config = small(compilations)
    assert loop.train(config, tmp_path / "run") == loop.DONE
    out, err = capsys.readouterr()
    assert not out and err.startswith("done: 3 steps in ") and err.count("\n") == 1
    assert loop.train(config, tmp_path / "run") == loop.DONE
    out, err = capsys.readouterr()
    assert not out and "done already at step 3" in err and err.count("\n") == 1


def test_processes_that_others_speak_for_say_nothing(capfd):
    reporter = console.Reporter(console.SILENT, total=2, start=0)
    reporter.say("a")
    reporter.step(1, {"step": 1, "loss": 1.0})
    reporter.end("done")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["json", "lines"])
def test_a_run_outlives_who_reads_what_it_says(mode):
    code = f"""
import sys
from jepa_vl.training.console import Reporter
reporter = Reporter({mode!r}, total=9999, start=0)
for step in range(1, 10000):
    reporter.step(step, {{"step": step, "loss": 1.0}})
    reporter.say("x" * 100) if {mode!r} == "lines" else None
print("still here", file=sys.stderr)
"""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "still here\n")


def test_a_restarted_run_goes_on_there_and_a_failed_one_says_so(tmp_path, weights):
    for code in (3, 1):
        tracker = Tracker("p", tmp_path)
        tracker.start({"seed": 0}, print)
        tracker.close(code)
        tracker.close(9)  # of no effect
    assert weights.ended == [3, 1]
    assert len({how["id"] for how in weights.started}) == 1 and len(weights.started) == 2


def test_what_fails_there_does_not_stop_the_training(tmp_path, weights):
    said, tracker = [], Tracker("p", tmp_path)
    tracker.start({}, said.append)
    weights.fails = OSError("no route")
    for step in (1, 2):
        tracker.write({"step": step})
    tracker.close(0)
    assert said == ["warning: no more rows for Weights & Biases: no route"]
    assert weights.rows == weights.ended == []


def test_what_cannot_start_there_is_one_line(tmp_path, weights):
    weights.fails = RuntimeError("No API key configured.\nmore")
    with pytest.raises(ConfigError, match=r"log.wandb = 'p': .*key configured\.; .*=offline$"):
        Tracker("p", tmp_path).start({}, print)


def test_without_the_library_a_run_is_refused_and_leaves_no_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    words = [*TRAIN, str(tmp_path / "run"), SPREAD]
    line = refused(capsys, *words, "--config.log.wandb=scenes")
    assert "log.wandb = 'scenes': needs wandb: pip install 'jepa-vl[wandb]'" in line
    assert "none of" in refused(capsys, *words, "--config.log.wandb=a/b")
    assert not (tmp_path / "run").exists()
    assert main(["preview", *words[1:3], "--what", "config", "--config.log.wandb=scenes"]) == 0
