"""What `jepa-vl scaling run` promises: each point once, through stops, kills and other runners."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jepa_vl.cli import scaling_points, scaling_run
from jepa_vl.cli.main import main
from jepa_vl.config import to_dict
from jepa_vl.scaling import family, ledger, plan, runner, table
from tests.test_scaling_plan import ROOT, write
from tests.tiny import tiny

# A training and an evaluation of no time. FAIL, KILL and WAIT in FOLDER say what happens to a size.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder, verb, *words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2])) if verb == "eval" else {}
work = Path(words[words.index("--workdir") + 1])
values = dict(w.removeprefix("--config.").split("=", 1) for w in words if w.startswith("--config."))
with open(Path(folder) / "calls", "a") as file:
    file.write(f"{verb} {work.name} {os.getpid()}\\n")
if verb == "eval":
    error = 0.1 + len(work.name) / 1000
    result = {"task": "knn", "features": "encoder", "metrics": {"k20": 1 - error}, "hits": [1]}
    Path(given["--json"]).write_text(json.dumps({"results": [result], "checkpoint_hash": "c"}))
    sys.exit(0)
def asked(name):
    file = Path(folder) / name
    return file.exists() and file.read_text() in work.name
if asked("FAIL"):
    print("jepa-vl: error: train.steps = 1: too few")
    sys.exit(5)
if asked("NAN"):
    (work / "result.json").write_text(json.dumps({"status": "not finite", "steps": 1}))
    sys.exit(4)
if asked("KILL") and not (work / "killed").exists():
    (work / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if asked("WAIT"):
    signal.signal(signal.SIGTERM, lambda *_: ((work / "saved").touch(), sys.exit(3)))
    (work / "ready").touch()
    time.sleep(600)
row = {"step": int(values["train.steps"]), "loss": 0.5}
(work / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
result = {"status": "done", "steps": row["step"], "seconds": 7200.0, "devices": 2}
(work / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A study of 3 sizes x 2 budgets x 2 seeds, and its plan; FLOPs are made up."""

    def cost(study, arm, name, on):
        del study, arm, on
        width = family.size(name).width
        return plan.Cost({"encoder": 12 * width**2}, {"encoder_forward": 1000 * width**2})

    folder = tmp_path_factory.mktemp("planned")
    file = write(
        folder, sizes=("16x1", "32x1", "48x1"), budgets=(2e8, 4e8), seeds=(0, 1), grid="full"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling_points, "_cost", cost)
        assert main(["scaling", "plan", "--study", file, "--out", str(folder)]) == 0
    return file, (folder / "plan.json").read_text()


@pytest.fixture
def study(planned, tmp_path, monkeypatch):
    """The command of that study in a folder of its own, with a fake jepa-vl."""
    file, text = planned
    (tmp_path / "plan.json").write_text(text)
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(runner.Runner, "program", (sys.executable, str(fake), str(tmp_path)))
    monkeypatch.setattr(runner.Runner, "pause", 0.02)
    return ["scaling", "run", "--study", file, "--out", str(tmp_path)]


def calls(folder, verb):
    lines = (folder / "calls").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith(verb)]


def rows(folder):
    return ledger.read(folder / "ledger.jsonl")


def test_each_point_trains_once_is_evaluated_and_has_a_row(study, tmp_path, capsys):
    assert main([*study, "--parallel", "4"]) == 0
    assert "12 done" in capsys.readouterr().out
    assert len(calls(tmp_path, "train")) == len(calls(tmp_path, "eval")) == 12
    found = rows(tmp_path)
    assert len({row["id"] for row in found}) == len(found) == 12
    (row,) = [r for r in found if (r["size"], r["budget"], r["seed"]) == ("32x1", 4e8, 1)]
    assert row["images"] == row["steps"] * 8 and row["unique_images"] <= 64
    assert (row["status"], row["reason"], row["chip_hours"]) == ("done", "", 4.0)
    assert row["mfu"] is None and "not known" in row["mfu_missing"]
    assert row["train"]["loss"] == 0.5 and row["flops"]["run"] <= 4e8
    assert row["evals"][0]["metrics"]["k20"] < 1 and "hits" not in row["evals"][0]
    assert main(study) == 0 and len(calls(tmp_path, "train")) == 12
    assert "0 points are open" in capsys.readouterr().out

    points = tmp_path / "points.csv"
    assert main(["scaling", "ledger", "--ledger", str(tmp_path), "--csv", str(points)]) == 0
    assert "12 done; 48.00 chip-hours" in capsys.readouterr().out
    assert len(list(csv.DictReader(points.open()))) == 12
    assert len(table.points(found, "knn_error").loss) == 12


def test_what_fails_is_recorded_and_tried_again_only_when_asked(study, tmp_path, capsys):
    (tmp_path / "FAIL").write_text("16x1_2e+08_0")
    (tmp_path / "NAN").write_text("48x1_4e+08_1")
    assert main(study) == 0
    assert "10 done, 1 failed, 1 not finite" in capsys.readouterr().out
    (failed,) = [row for row in rows(tmp_path) if row["status"] == "failed"]
    assert failed["reason"] == "jepa-vl: error: train.steps = 1: too few"
    assert main(study) == 0 and len(rows(tmp_path)) == 12
    (tmp_path / "FAIL").unlink()
    assert main([*study, "--retry"]) == 0
    assert len(rows(tmp_path)) == 14 and len(table.finished(rows(tmp_path))) == 11


def test_a_killed_point_is_started_again(study, tmp_path, capsys):
    (tmp_path / "KILL").write_text("32x1_2e+08_0")
    assert main(study) == 0
    assert "12 done" in capsys.readouterr().out
    again = [name for name in calls(tmp_path, "train") if "32x1_2e+08_0" in name]
    assert len(again) == 2 and len(calls(tmp_path, "train")) == 13


def test_two_runners_share_the_work_and_no_point_runs_twice(study, tmp_path):
    both = [subprocess.Popen(runner_of(study, tmp_path), cwd=ROOT) for _ in range(2)]
    codes = [process.wait() for process in both]
    assert set(codes) <= {0, 3} and 0 in codes
    assert len(calls(tmp_path, "train")) == len(rows(tmp_path)) == 12
    assert len(table.finished(rows(tmp_path))) == 12


def runner_of(study, folder):
    """The command as a process of its own, with the same fake."""
    code = (
        "import sys\nfrom jepa_vl.cli.main import main\nfrom jepa_vl.scaling.runner import Runner\n"
        f"Runner.program = {(sys.executable, str(folder / 'fake.py'), str(folder))!r}\n"
        f"Runner.pause = 0.02\nsys.exit(main({study!r}))"
    )
    return [sys.executable, "-c", code]


def wait_for(*files: Path) -> None:
    until = time.monotonic() + 300
    while not all(file.exists() for file in files):
        assert time.monotonic() < until, files
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_points_save_and_the_same_command_goes_on(study, tmp_path, number):
    (tmp_path / "WAIT").write_text("2e+08_0")
    process = subprocess.Popen(runner_of([*study, "--parallel", "3"], tmp_path), cwd=ROOT)
    names = [job.workdir for job in jobs_of(study, tmp_path) if "2e+08_0" in job.workdir.name]
    assert len(names) == 3
    wait_for(*(work / "ready" for work in names))
    os.kill(process.pid, number)
    assert process.wait() == 3
    assert all((work / "saved").exists() for work in names)
    assert not (tmp_path / "ledger.jsonl").exists()
    (tmp_path / "WAIT").unlink()
    assert main(study) == 0 and len(table.finished(rows(tmp_path))) == 12


def jobs_of(study, folder):
    from jepa_vl.scaling import study as files

    asked = files.load(study[3])
    points = json.loads((folder / "plan.json").read_text())["points"]
    return [scaling_run._job(asked, point, folder) for point in points]


def test_a_point_whose_runner_was_killed_is_not_started_beside_it(study, tmp_path, capsys):
    (tmp_path / "WAIT").write_text("16x1_2e+08_0")
    process = subprocess.Popen(runner_of(study, tmp_path), cwd=ROOT)
    (job,) = [job for job in jobs_of(study, tmp_path) if "16x1_2e+08_0" in job.workdir.name]
    wait_for(job.workdir / "ready")
    process.kill()
    process.wait()
    orphan = int((tmp_path / "calls").read_text().split()[-1])
    (tmp_path / "WAIT").unlink()
    assert main(study) == 3
    assert "11 done" in capsys.readouterr().out and len(rows(tmp_path)) == 11
    os.kill(orphan, signal.SIGTERM)
    wait_for(job.workdir / "saved")
    until = time.monotonic() + 300
    while main(study) != 0:  # the orphan leaves in its own time
        assert time.monotonic() < until
        time.sleep(0.05)
    assert len(table.finished(rows(tmp_path))) == 12


def test_commands_are_printed_and_what_they_left_is_collected(study, tmp_path, capsys):
    wanted = {
        "local": "jepa-vl train --config ", "slurm": "sbatch launch/slurm.sbatch --config ",
        "tpu_vm": "launch/tpu_vm.sh run --x 1 -- --config ",
        "xpk": "launch/xpk.sh run --workload s-", "jobset": "launch/jobset.sh --workload s-",
    }  # fmt: skip
    for where, start in wanted.items():
        options = ["--options", "--x 1"] if where == "tpu_vm" else []
        assert main([*study, "--commands", where, *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 12 and all(line.startswith(start) for line in lines)
        assert len({line.split("--workdir ")[1].split()[0] for line in lines}) == 12
    assert not (tmp_path / "calls").exists()
    (job, *_) = jobs_of(study, tmp_path)
    job.workdir.mkdir(parents=True)
    words = [sys.executable, str(tmp_path / "fake.py"), str(tmp_path), *job.commands[0]]
    subprocess.run(words, check=True)
    assert main([*study, "--collect"]) == 0
    assert [row["id"] for row in rows(tmp_path)] == [job.point["id"]]


def test_bad_options_are_one_line(study, tmp_path, capsys):
    for words, said in (
        (["--parallel", "0"], "--parallel = '0'"),
        (["--commands", "slrum"], "did you mean 'slurm'"),
        (["--options", "x"], "--options = 'x': of --commands"),
    ):
        assert main([*study, *words]) == 5
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and said in err
    other = write(tmp_path, sizes=("16x1",))
    assert main(["scaling", "run", "--study", other, "--out", str(tmp_path)]) == 5
    assert "--replan makes a new one" in capsys.readouterr().err
    assert main(["scaling", "ledger", "--ledger", str(tmp_path)]) == 5
    assert "--ledger = " in capsys.readouterr().err


def test_a_run_of_another_configuration_than_planned_is_no_result(study, tmp_path):
    job = jobs_of(study, tmp_path)[0]
    job.workdir.mkdir(parents=True)
    meta = {"config_hash": "other", "config": to_dict(tiny(objective="ijepa"))}
    (job.workdir / "config.json").write_text(json.dumps(meta))
    row = job.row(0, "")
    assert row["status"] == "failed" and "plan anew" in row["reason"]


def test_points_that_mean_something_else_by_now_are_not_trained(study, tmp_path, capsys):
    page = json.loads((tmp_path / "plan.json").read_text())
    page["points"][0]["config_hash"] = "0123456789ab"
    (tmp_path / "plan.json").write_text(json.dumps(page))
    assert main(study) == 5
    said = capsys.readouterr().err
    assert "1 of 12 open points mean another configuration now" in said and "--replan" in said
    assert not (tmp_path / "calls").exists() and not (tmp_path / "ledger.jsonl").exists()


def test_a_row_holds_null_where_a_number_is_none(study, tmp_path):
    job = jobs_of(study, tmp_path)[0]
    job.workdir.mkdir(parents=True)
    meta = {"config": to_dict(tiny(**{"data.kind": "tar", "data.path": str(tmp_path / "gone")}))}
    (job.workdir / "config.json").write_text(json.dumps(meta))
    result = {"task": "knn", "features": "encoder", "metrics": {"k20": 0.5, "spread": math.nan}}
    (job.workdir / "eval_scaling.json").write_text(json.dumps({"results": [result]}))
    row = job.row(0, "")
    assert row["evals"][0]["metrics"] == {"k20": 0.5, "spread": None}
    assert row["caption_tokens"] is None and row["chip_hours"] is None
    assert ledger.Ledger(tmp_path / "ledger.jsonl").append(row)


@pytest.mark.slow
def test_two_sizes_train_and_are_evaluated_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    file = write(
        tmp_path, arms={"t": {"objective": "tcjepa"}}, sizes=("16x1", "32x1"), budgets=(4e7,),
        grid="full", values={"data.train_size": 640},
    )  # fmt: skip
    out = tmp_path / "out"
    assert main(["scaling", "run", "--study", file, "--out", str(out), "--parallel", "2"]) == 0
    found = rows(out)
    assert [row["status"] for row in found] == ["done", "done"], found
    for row in found:
        assert {result["task"] for result in row["evals"]} == {"knn", "fewshot"}
        assert all(result["protocol"] for result in row["evals"])
        assert 0 <= table.quality(row, "knn_error") <= 1
        assert row["parameters"].keys() == {"encoder", "predictor", "conditioner", "text"}
        assert row["caption_tokens"] > row["images"] and row["chip_hours"] > 0
        meta = json.loads((scaling_points.workdir(out, row) / "config.json").read_text())
        assert meta["config_hash"] == row["config_hash"]
        assert row["versions"]["jax"]
