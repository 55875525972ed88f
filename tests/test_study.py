"""Promises of studies/rsicd.py: what it runs, how it goes on after a stop, what it tabulates."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from jepa_vl.cli.main import main
from jepa_vl.config import flat, resolve, to_dict
from jepa_vl.training.loop import Run
from studies import rsicd
from tests.test_sources import cache as cache
from tests.test_sources import sample, write_tar

# These runs are all compilation; no number of theirs is compared.
pytestmark = pytest.mark.usefixtures("quick_module")

SMALL = (
    "--config.encoder.image_size=32", "--config.encoder.depth=1", "--config.predictor.depth=1",
    "--config.masks.context_tokens=0", "--config.train.batch_size=8", "--config.text.captions=1",
    "--config.data.workers=0", "--config.log.diagnostics_images=8", "--config.eval.every=2",
    "--config.checkpoint.every=1", "--config.log.progress=off", "--config.log.tensorboard=false",
    "--config.train.compile_cache=off", "--config.eval.k=3",
)  # fmt: skip


def write_data(folder):
    for part in ("train", "val"):
        members = {}
        for number in range(12):
            members |= sample(f"{part}{number}", "ab"[number % 2])
        write_tar(folder / part / "0.tar", members)
    return folder


def study_of(tmp_path, arms=None, seeds="0", steps=2, *overrides):
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    words += ["--seeds", seeds, "--steps", str(steps), *(["--arms", arms] if arms else [])]
    rest, changed = rsicd.configs.take_overrides([*words, *overrides])
    return rsicd.Study(rsicd._parser().parse_args(rest), changed)


@pytest.mark.parametrize("arm", rsicd.ARMS)
def test_an_arm_is_the_quickstarts_recipe_but_for_what_it_names(arm):
    def values(file, arg):
        tree = file["get_config"](arg)
        tree.data.path = "somewhere"
        return flat(to_dict(resolve(tree)))

    quickstart, own = values(rsicd.FILE["QUICKSTART"], "data=tar"), values(rsicd.FILE, "arm=own")
    given = {"text.captions", "train.steps", "log.diagnostics_every", "checkpoint.every"}
    derived = {
        "optim.warmup_steps",
        "loss.ramp_steps",
        "eval.every",
        "health.lull",
    }  # from the steps
    assert {key for key in own if own[key] != quickstart[key]} == given | derived
    found = values(rsicd.FILE, f"arm={arm}")
    # What an objective without captions derives.
    derived = {"conditioner.kind", "loss.distance"} if arm.startswith("ijepa") else set()
    assert {key for key in own if found[key] != own[key]} <= rsicd.ARMS[arm].keys() | derived
    assert rsicd.ARMS[arm].items() <= found.items()
    assert (found["train.steps"], own["text.captions"]) == (1000, 5)


def test_the_main_arms_come_first_and_arms_of_the_same_values_share_a_run(tmp_path):
    study = study_of(tmp_path, "n5,empty,shuffled,off,ijepa", "3,4")
    assert [job.workdir.name for job in study.queue()] == [
        "own-3", "ijepa-3", "shuffled-3", "own-4", "ijepa-4", "shuffled-4", "empty-3", "empty-4",
    ]  # fmt: skip
    every = study_of(tmp_path).arms
    assert set(rsicd.ARMS) - set(every) == {"off", "n5"} and every[:3] == list(rsicd.MAIN)
    job = study.job("shuffled", 4)
    assert (job.config.seed, job.config.train.steps) == (4, 2)
    assert job.config.data.captions == "shuffled"


@pytest.fixture
def started(monkeypatch):
    """Trainings that were started, by workdir; commands run in this process."""
    trained = []

    def run(self, words):
        if words[0] == "train":
            trained.append(os.path.basename(words[words.index("--workdir") + 1]))
        return main(words)

    monkeypatch.setattr(rsicd.Commands, "run", run)
    return trained


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_and_starts_nothing_twice(
    tmp_path, monkeypatch, started, capsys
):
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    words = ["--data", str(data), "--out", str(out), "--steps", "2", "--arms", "ijepa,own"]
    own = study_of(tmp_path, None, "0", 2, *SMALL).job("own", 0)
    finish(own, linear=0.75)  # to be left alone
    examine = Run.examine

    def stopped(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return examine(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "examine", stopped)
        assert rsicd.main([*words, *SMALL]) == 3
    assert started == ["ijepa-0"]
    assert "| `ijepa` |" not in (out / "RESULTS.md").read_text()

    assert rsicd.main([*words, *SMALL]) == 0
    assert started == ["ijepa-0", "ijepa-0"]
    lines = (out / "ijepa-0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    table = (out / "RESULTS.md").read_text()
    knn = json.loads((out / "ijepa-0/result.json").read_text())["knn"]
    assert f"| `ijepa` | 0 | {knn['target']:.3f} |" in table and "| `own` | 0 | 0.500 |" in table
    assert "--arms ijepa,own" in table and "tar/data/train" in table and "2 steps" in table

    assert rsicd.main([*words, *SMALL]) == 0
    assert len(started) == 2 and (out / "RESULTS.md").read_text() == table
    words[5], words[7] = "3", "ijepa"
    capsys.readouterr()
    assert rsicd.main([*words, *SMALL]) == 5
    assert "train.steps: 2 -> 3" in capsys.readouterr().err


def finish(job, status="done", knn=0.5, gain=0.25, linear=None):
    """Leaves the files of a finished run."""
    job.workdir.mkdir(parents=True)
    result = {
        "status": status, "steps": 2, "data": "tar/x", "seed": job.seed, "images_per_second": 99.6,
        "knn": {"target": knn, "untrained": 0.25, "pixels": 0.125}, "text_gain": gain,
        "dead_share": 0.0, "rankme": {"start": 19.0, "end": 12.0},
    }  # fmt: skip
    (job.workdir / "result.json").write_text(json.dumps(result))
    (job.workdir / "config.json").write_text(json.dumps({"config": to_dict(job.config)}))
    if linear is not None:
        one = {"task": "fast", "features": "encoder", "metrics": {"accuracy": linear}}
        page = {"results": [{**one, "task": "knn"}, {**one, "features": "pixels"}, one]}
        (job.workdir / rsicd.PROBES).write_text(json.dumps(page))


def cells(table, arm):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| `{arm}`")]
    return dict(zip(rsicd.COLUMNS, [cell.strip() for cell in line.split("|")[1:-1]], strict=True))


def test_the_table_has_mean_and_spread_of_what_has_finished(tmp_path):
    study = study_of(tmp_path, "own,off,empty,ijepa,random", "0,1,2")
    finish(study.job("own", 0), knn=0.5)
    finish(study.job("own", 1), knn=0.625)
    finish(study.job("own", 2), status="preempted")
    finish(study.job("empty", 0), gain=0.0, linear=0.75)
    finish(study.job("ijepa", 0), status="not finite")
    finish(study.job("ijepa", 1), gain=None)

    table = study.table("the command")
    own = cells(table, "own")
    assert own == {
        "arm": "`own`", "seeds": "0, 1", "kNN": "0.562 ± 0.088", "linear": "",
        "text gain": "+0.250 ± 0.000", "dead share": "0.000 ± 0.000",
        "RankMe, start": "19.0 ± 0.0", "RankMe, end": "12.0 ± 0.0", "images/s": "100 ± 0",
    }  # fmt: skip
    assert cells(table, "off") == {**own, "arm": "`off`"}
    empty = cells(table, "empty")
    assert (empty["dead share"], empty["text gain"]) == ("", "+0.000")
    assert (empty["linear"], empty["seeds"]) == ("0.750", "0")
    ijepa = cells(table, "ijepa")
    assert (ijepa["seeds"], ijepa["text gain"]) == ("1", "")
    assert "ijepa, seed 0: not finite, left out." in table and "`random`" not in table
    assert "    the command\n" in table and "untrained network 0.250 ± 0.000" in table


def test_a_run_of_other_values_is_not_taken_for_a_finished_one(tmp_path):
    finish(study_of(tmp_path, "own").job("own", 0))
    assert study_of(tmp_path, "own").job("own", 0).result() is not None
    assert study_of(tmp_path, "own", "0", 3).job("own", 0).result() is None
    other = study_of(tmp_path, "own", "0", 2, "--config.optim.lr=0.1")
    assert other.job("own", 0).result() is None


def test_bad_input_is_one_line_and_exit_code_5(tmp_path, capsys):
    words = ["--data", "x", "--out", str(tmp_path)]
    assert rsicd.main([*words, "--arms", "own,shufled"]) == 5
    assert "did you mean 'shuffled'" in capsys.readouterr().err
    assert rsicd.main([*words, "--arms", "own", "--config.train.stepz=1"]) == 5
    assert "train.stepz" in capsys.readouterr().err


WAITING = """
import signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_command_save_and_starts_no_other(tmp_path, number):
    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    with rsicd.Commands() as commands:
        commands.program = (sys.executable, "-c", WAITING)
        thread.start()
        assert commands.run([str(tmp_path / "ready")]) == 3
        assert commands.run([str(tmp_path / "other")]) == 3
    assert not (tmp_path / "other").exists()
    assert rsicd.Commands().run(["--version"]) == 0
