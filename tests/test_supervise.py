"""What a supervisor promises, with small programs in place of the training."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jepa_vl.cli import configs, supervise
from jepa_vl.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["train", "--config", "tests/configs_tiny.py", "--workdir"]

# Words: what each process does at its first, second, ... launch, joined by commas; the last one
# again and again. `save` makes a checkpoint and dies.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

run = Path(sys.argv[1])
process = int(os.environ.get("JEPA_VL_PROCESS", "0"))
launches = run / f"launches.{process}"
launch = len(launches.read_text()) if launches.exists() else 0
launches.write_text("." * (launch + 1))
plan = sys.argv[2 + process].split(",")
act = plan[min(launch, len(plan) - 1)]
if act == "save":
    (run / "checkpoints" / str(launch)).mkdir(parents=True)
    (run / "metrics.jsonl").open("a").write('{"step": %d}\\n{"st' % launch)
    os.kill(os.getpid(), signal.SIGKILL)
elif act == "abort":
    print("Terminating: JAX distributed service detected fatal errors", file=sys.stderr)
    os.abort()
elif act == "abort-after-1":  # as jax.distributed does, once the supervisor has seen the death
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run / "ready").touch()
    while not (run / "pid").exists() or os.path.exists(f"/proc/{(run / 'pid').read_text()}"):
        time.sleep(0.01)
    os.abort()
elif act == "die-told":
    while not (run / "ready").exists():
        time.sleep(0.01)
    (run / "pid.tmp").write_text(str(os.getpid()))
    (run / "pid.tmp").rename(run / "pid")
    os.kill(os.getpid(), signal.SIGKILL)
elif act == "save-on-term":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    (run / f"ready.{process}").touch()
    time.sleep(60)
elif act == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run / "ready").touch()
    time.sleep(60)
elif act.startswith("SIG"):
    while len(plan) > 1 and plan[1] == "wait" and not (run / "ready").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.Signals[act])
else:
    sys.exit(int(act))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setenv(supervise.GRACE, "0")
    monkeypatch.setattr(supervise, "LONGEST_PAUSE", 0.02)
    for name in supervise.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def watched(workdir: Path, *plans: str, restarts: int = 2) -> tuple[int, list[dict], list[int]]:
    """Exit code, lines of the log, and launches of each process."""
    command = [sys.executable, "-c", PROGRAM, str(workdir), *plans]
    workdir.mkdir(exist_ok=True)
    code = supervise.Supervisor(command, workdir, len(plans), restarts, {}).run()
    log = workdir / "restarts.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    launches = [len((workdir / f"launches.{k}").read_text()) for k in range(len(plans))]
    return code, rows, launches


@pytest.mark.parametrize("code", [0, 4, 5])
def test_done_not_finite_and_bad_input_end_it(tmp_path, code):
    ended, rows, launches = watched(tmp_path, str(code))
    assert (ended, launches) == (code, [1])
    assert [row["exit"] for row in rows] == ([] if code == 0 else [code])


def test_what_was_preempted_or_killed_is_started_again(tmp_path, capfd):
    code, rows, launches = watched(tmp_path, "3,save,SIGSEGV,1,0", restarts=3)
    assert (code, launches) == (0, [5])
    assert [row["cause"] for row in rows] == [
        "exit code 3", "SIGKILL", "SIGSEGV", "exit code 1", "exit code 0",
    ]  # fmt: skip
    assert [row["restart"] for row in rows] == [1, 2, 3, 4, None]
    assert [row["step"] for row in rows] == [None, 1, 1, 1, 1]  # a torn last line is left out
    assert {row["host"] for row in rows} == {os.uname().nodename} and rows[-1]["exit"] == 0
    said = capfd.readouterr().err
    assert "SIGKILL; last logged step 1" in said and "restart 4" in said


def test_restarts_that_bring_no_checkpoint_end_and_one_that_does_starts_the_count_again(tmp_path):
    code, rows, launches = watched(tmp_path / "a", "SIGKILL", restarts=2)
    assert (code, launches) == (supervise.GAVE_UP, [3]) and rows[-1]["exit"] == code
    code, _, launches = watched(tmp_path / "b", "SIGKILL,SIGKILL,save,SIGKILL", restarts=2)
    assert (code, launches) == (supervise.GAVE_UP, [6])
    assert watched(tmp_path / "c", "SIGKILL", restarts=0)[2] == [1]


def test_the_first_to_die_is_the_cause_and_the_others_its_victims(tmp_path, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv(supervise.GRACE, "60")
        code, rows, _ = watched(tmp_path / "a", "abort-after-1,0", "die-told,0")
    causes = {row["process"]: row["cause"] for row in rows if row["restart"] == 1}
    assert code == 0 and causes == {1: "SIGKILL", 0: "SIGABRT, as process 1 had died"}
    # One that neither dies of it nor listens is killed after the grace.
    (tmp_path / "b").mkdir()
    code, rows, _ = watched(tmp_path / "b", "deaf,0", "SIGSEGV,wait,0", restarts=5)
    assert [row["cause"] for row in rows[:2]] == ["SIGSEGV", "SIGKILL, as process 1 had died"]
    assert [row["process"] for row in rows[:2]] == [1, 0]
    # On a host whose only process was aborted, what it said tells.
    code, rows, _ = watched(tmp_path / "c", "abort,0")
    assert code == 0 and rows[0]["cause"] == "SIGABRT, as another process of the run had died"
    assert rows[0]["process"] is None
    assert "JAX distributed service detected" in capfd.readouterr().err  # passed on


def test_an_error_is_of_others_where_it_or_their_supervisor_says_so(tmp_path):
    def cause(code: int, line: bytes, *elsewhere: str) -> str:
        end: Any = SimpleNamespace(poll=lambda: code, returncode=code)
        supervisor = supervise.Supervisor([], tmp_path, 1, 0, {})
        ended = supervisor._wait([supervise.Child(0, end, deque([line]))])
        supervisor._blame(ended, list(elsewhere))
        return ended[0].cause

    other = supervise.OF_OTHERS
    assert cause(1, b"ValueError: no", "exit code 3", f"exit code 1{other}") == "exit code 1"
    assert cause(1, b"ValueError: no", "SIGKILL") == f"exit code 1{other}"
    assert cause(1, b"UNKNOWN: Connection closed by peer") == f"exit code 1{other}"
    assert cause(-signal.SIGSEGV, b"", "SIGKILL") == "SIGSEGV"  # that is its own
    assert cause(3, b"coordination", "SIGKILL") == "exit code 3"


def test_of_several_deaths_at_once_an_abort_or_an_error_is_not_the_cause(tmp_path):
    supervisor = supervise.Supervisor([], tmp_path, 3, 0, {})
    codes = (-signal.SIGABRT, 1, -signal.SIGKILL)
    ends = [SimpleNamespace(poll=lambda code=code: code, returncode=code) for code in codes]
    children: Any = [supervise.Child(k, end, deque()) for k, end in enumerate(ends)]
    ended = supervisor._wait(children)
    supervisor._blame(ended, [])
    assert [(child.number, child.cause) for child in ended] == [
        (2, "SIGKILL"), (1, "exit code 1, as process 2 had died"),
        (0, "SIGABRT, as process 2 had died"),
    ]  # fmt: skip


def test_sigterm_is_passed_on_and_the_end_waited_for(tmp_path):
    def ask():
        while len(list(tmp_path.glob("ready.*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    code, rows, launches = watched(tmp_path, "save-on-term", "save-on-term")
    thread.join()
    assert (code, launches) == (3, [1, 1])
    assert rows[0]["cause"] == "exit code 3" and rows[0]["exit"] == 3


def test_bad_input_on_another_host_ends_this_one_too(tmp_path):
    (tmp_path / "restarts.jsonl").write_text('{"exit": 5}\n')  # of an earlier attempt
    assert watched(tmp_path, "SIGKILL,0")[0] == 0
    row = json.dumps({"host": "other", "cause": "exit code 4", "exit": 4})
    program = f"""
import os, signal
open({str(tmp_path / "restarts.jsonl")!r}, "a").write({row!r} + "\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
    supervisor = supervise.Supervisor([sys.executable, "-c", program], tmp_path, 1, 9, {})
    assert supervisor.run() == 4


def test_a_training_whose_supervisor_is_killed_is_asked_to_save_and_leave(tmp_path):
    program = """
import os, signal, sys, time
from pathlib import Path
from jepa_vl.cli import supervise

def leave(*_):
    Path(sys.argv[1], "left").touch()
    sys.exit(3)

signal.signal(signal.SIGTERM, leave)
supervise.end_with_supervisor()
Path(sys.argv[1], "ready").touch()
while True:
    time.sleep(0.05)
"""
    outer = f"""
from pathlib import Path
from jepa_vl.cli import supervise
command = {[sys.executable, "-c", program, str(tmp_path)]!r}
supervise.Supervisor(command, Path({str(tmp_path)!r}), 1, 0, {{}}).run()
"""
    process = subprocess.Popen([sys.executable, "-c", outer], cwd=ROOT)
    for name in ("ready", "left"):
        until = time.monotonic() + 30
        while not (tmp_path / name).exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
    process.wait()


def test_the_training_gets_the_command_line_without_what_is_the_supervisors():
    args = argparse.Namespace(
        verb="train", config="a.py:x=1", workdir="runs/a b", supervise=True, local_processes="2",
        max_restarts=None, coordinator="h:1", processes="2", process="0", profile="3:5", quiet=True,
    )  # fmt: skip
    overrides = [configs.Override("train.steps", "9"), configs.Override("log.tensorboard", None)]
    assert supervise.command(args, overrides)[1:] == [
        "-m", "jepa_vl", "train", "--config=a.py:x=1", "--workdir=runs/a b", "--profile=3:5",
        "--quiet", "--config.train.steps=9", "--config.log.tensorboard",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--local-processes", "2"], "--local-processes = '2': add --supervise"),
        (["--supervise", "--local-processes", "no"], "--local-processes = 'no': a whole number"),
        (["--supervise", "--max-restarts", "-1"], "--max-restarts = '-1': a whole number"),
        (["--supervise", "--local-processes", "2", "--process", "1"], "leave out --coordinator"),
        (["--supervise", "--config.train.steps=no"], "train.steps"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, words, rule):
    assert main([*TRAIN, str(tmp_path / "run"), *words]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert rule in line and not (tmp_path / "run").exists()


def test_bad_input_of_the_training_is_told_once_and_leaves_no_folder(tmp_path):
    words = [*TRAIN, str(tmp_path / "run"), "--supervise", "--config.data.kind=folder"]
    words.append(f"--config.data.path={tmp_path / 'none'}")
    done = subprocess.run(
        [sys.executable, "-m", "jepa_vl", *words],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 5 and done.stderr.count("jepa-vl: error: data.path") == 1
    assert not (tmp_path / "run").exists()


def test_the_supervisor_does_without_jax():
    code = "import sys, jepa_vl.cli.train, jepa_vl.cli.supervise; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_its_handlers_serve_a_second_signal_by_killing(tmp_path):
    def ask():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    thread = threading.Thread(target=ask)
    thread.start()
    with contextlib.suppress(KeyboardInterrupt):
        assert watched(tmp_path, "deaf")[0] == 3
    thread.join()
