"""A run that is killed and started again ends as the unbroken one, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jepa_vl import tree
from jepa_vl.cli.main import main
from jepa_vl.config import resume_diff, to_dict
from jepa_vl.training import lock, loop
from jepa_vl.training.checkpoint import load
from jepa_vl.training.speed import CLOCKED
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "tests/configs_tiny.py"
TEN = ("--config.train.steps=10", "--config.checkpoint.every=5")
# One device; the runs are compared with each other alone, so compilation may be quick.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

# A whole command line that sends a signal to itself after a step, its last checkpoint finished.
SIGNALLED = """
import os, sys
from jepa_vl.cli.main import main
from jepa_vl.training.loop import Run

number, after, *words = sys.argv[1:]
examine = Run.examine

def signalled(self, step):
    if step == int(after):
        self.keeper.wait()
        os.kill(os.getpid(), int(number))
    return examine(self, step)

Run.examine = signalled
sys.exit(main(words))
"""


# Signals the data workers after a step, as a scheduler does that signals a whole process group.
WORKERS_SIGNALLED = SIGNALLED.replace(
    "os.kill(os.getpid(), int(number))",
    "found = multiprocessing.active_children()\n"
    "        print(len(found), 'workers signalled')\n"
    "        [os.kill(child.pid, int(number)) for child in found]",
).replace("import os, sys", "import multiprocessing, os, sys")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command to its end in a process of its own; returns exit code and output."""
    cache = f"--config.train.compile_cache={tmp_path_factory.mktemp('cache')}"

    def start(workdir, *words, program=("-m", "jepa_vl")):
        words = ["train", "--config", CONFIG, "--workdir", str(workdir), *TEN, cache, *words]
        done = subprocess.run(
            [sys.executable, *program, *words],
            cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    return start


def interrupted(number, after):
    return {"program": ("-c", SIGNALLED, str(int(number)), str(after))}


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    assert run(workdir, "--config.data.workers=1")[0] == 0
    return workdir


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def assert_same_end(a, b):
    """State bit-identical; one row a logged step, with equal numbers."""
    (_, left, steps), (_, right, _) = load(a), load(b)
    assert steps == 10
    flat_left, flat_right = tree.flatten(left), tree.flatten(right)
    assert flat_left.keys() == flat_right.keys()
    for name in flat_left:
        np.testing.assert_array_equal(flat_left[name], flat_right[name], err_msg=name)
    numbers = [
        [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows(w)] for w in (a, b)
    ]
    assert numbers[0] == numbers[1]
    assert [row["step"] for row in numbers[0]] == list(range(11))


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_five_steps_sigkill_and_five_more_equal_ten(run, unbroken, tmp_path, workers):
    words = f"--config.data.workers={workers}"
    assert run(tmp_path, words, **interrupted(signal.SIGKILL, 7))[0] == -signal.SIGKILL
    assert saved(tmp_path) == {5} and not (tmp_path / "result.json").exists()
    code, said = run(tmp_path, words, "--config.log.progress=lines")
    assert code == 0 and "resumed from the checkpoint of step 5" in said
    assert_same_end(unbroken, tmp_path)
    assert (result(tmp_path)["status"], result(tmp_path)["compiles"]) == ("done", 1)


def test_sigterm_saves_and_exits_3_and_the_run_goes_on(run, unbroken, tmp_path):
    # Logged rarely: what is saved and told is the step that was done, not the last one logged.
    words = ("--config.log.every=5", "--config.log.diagnostics_every=5", "--config.eval.every=5")
    assert run(tmp_path, *words, **interrupted(signal.SIGTERM, 3))[0] == 3
    assert (result(tmp_path)["status"], result(tmp_path)["steps"]) == ("preempted", 3)
    assert saved(tmp_path) == {3}
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]
    assert run(tmp_path)[0] == 0
    left, right = load(unbroken)[1], load(tmp_path)[1]
    for name, leaf in tree.flatten(left).items():
        np.testing.assert_array_equal(leaf, tree.flatten(right)[name], err_msg=name)


def test_a_workdir_of_another_configuration_is_refused_with_the_difference(unbroken, capsys):
    words = ["train", "--config", CONFIG, "--workdir", str(unbroken), *TEN]
    assert main([*words, "--config.optim.lr=0.5"]) == 5
    error = capsys.readouterr().err
    assert "optim.lr: 0.001 -> 0.5" in error and "Traceback" not in error


def test_a_finished_run_says_so_and_leaves_every_file_alone(run, unbroken):
    def files():
        found = {path: path.stat() for path in unbroken.rglob("*") if path.name != lock.FILE}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}

    before = files()
    code, said = run(unbroken, "--config.log.progress=lines")
    assert code == 0
    assert said == f"{unbroken}: done already at step 10; nothing to do\n"
    assert files() == before


def test_a_run_killed_between_its_last_checkpoint_and_its_result_writes_it(run, unbroken):
    before = result(unbroken)
    (unbroken / "result.json").unlink()
    assert run(unbroken, "--config.data.workers=1")[0] == 0
    after = result(unbroken)
    assert after.pop("seconds") >= before.pop("seconds")
    assert after.pop("goodput")["seconds"]["lost"] > before.pop("goodput")["seconds"]["lost"]
    assert after == before and after["compiles"] == 1


def test_signal_handlers_are_put_back_and_other_threads_do_without():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with loop.Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    seen = []

    def elsewhere():
        with loop.Stop() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_key_that_has_come_since_a_run_began_counts_as_its_default():
    config = tiny(**{"loss.contrast": 1.0})
    saved = to_dict(config)
    assert resume_diff(saved, config) == []
    older = {**saved, "loss": {k: v for k, v in saved["loss"].items() if k != "contrast"}}
    assert resume_diff(older, tiny()) == []
    assert resume_diff(older, config) == ["loss.contrast: 0.0 -> 1.0"]
    newer = {**saved, "fusion": 3}  # of a version to come: not known here
    assert resume_diff(newer, config) == ["fusion: 3 -> 'absent'"]


@pytest.mark.slow
def test_data_workers_leave_it_to_the_trainer_what_a_signal_means(run, tmp_path):
    program = ("-c", WORKERS_SIGNALLED, str(int(signal.SIGTERM)), "5")
    code, said = run(
        tmp_path, "--config.data.workers=1", "--config.data.prefetch=1", program=program
    )
    assert code == 0 and "1 workers signalled" in said
    assert result(tmp_path)["steps"] == 10


@pytest.mark.slow
def test_sigterm_in_any_phase_saves_and_leaves_and_nothing_is_lost(
    tmp_path, monkeypatch, compilations, no_evaluation, quick_compilation, one_device
):
    """In the middle of it; what is left in the workdir goes on to the same bits."""
    config = tiny(objective="ijepa", **{"train.compile_cache": compilations, "checkpoint.every": 2})
    loop.train(config, tmp_path / "whole")
    whole = tree.flatten(load(tmp_path / "whole")[1])

    def signalling(inner, at):
        calls = []

        def signalled(*args, **kwargs):
            calls.append(args)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(*args, **kwargs)

        return signalled

    for phase, owner, name, at in (
        ("state", loop.train_state, "create", 1), ("compile", loop, "make_step", 1),
        ("step", loop, "to_device", 2), ("save", loop.Keeper, "save", 2),
        ("evaluation", loop.Run, "examine", 2),
    ):  # fmt: skip
        workdir = tmp_path / phase
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, signalling(getattr(owner, name), at))
            assert loop.train(config, workdir) == loop.PREEMPTED, phase
        state, step = load(workdir)[1:]
        assert 1 <= step == int(state.step) < 6, phase
        assert loop.train(config, workdir) == loop.DONE, phase
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
        for leaf, value in tree.flatten(load(workdir)[1]).items():
            np.testing.assert_array_equal(value, whole[leaf], err_msg=f"{phase}: {leaf}")
