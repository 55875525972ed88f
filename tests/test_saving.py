"""Checkpoints that cannot be written, that are written by the clock, and that are worth keeping."""

import json
import resource
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.evaluators.knn import OnlineKnn
from jepa_vl.schema import CheckpointConfig
from jepa_vl.training import keeper, lock, loop, result
from jepa_vl.training.checkpoint import Checkpoints, load
from jepa_vl.training.metrics import MetricsWriter, read_rows
from jepa_vl.training.state import TrainState
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation", "one_device")
SMALLEST_FILE = 30_000  # bytes; the arrays of the tiny model need more, its metrics less


class Disk:
    """Where no file can grow beyond a few bytes: as a full disk does, for every writer there is."""

    def __init__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, size=SMALLEST_FILE):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

    def empty(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture
def disk():
    disk = Disk()
    yield disk
    disk.empty()


@pytest.fixture
def run(monkeypatch, compilations, no_evaluation):
    """Trains six steps, a checkpoint every second; ``at`` is called after each step."""
    monkeypatch.setattr(keeper, "FIRST_PAUSE", 0.0)

    def start(workdir, at=lambda step: None, **values):
        examine = loop.Run.examine

        def examined(self, step):
            while self.keeper._checkpoints._manager.is_saving_in_progress():
                time.sleep(0.01)  # so that what has failed is known at the same step each time
            at(step)
            return examine(self, step)

        config = tiny(
            objective="ijepa",
            **{"checkpoint.every": 2, "log.progress": "lines", "log.diagnostics_every": 100}
            | {"train.compile_cache": compilations}
            | values,
        )
        with monkeypatch.context() as patched:
            patched.setattr(loop.Run, "examine", examined)
            return loop.train(config, workdir)

    return start


def same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, load(a)[1], load(b)[1])


def test_a_full_disk_is_said_and_the_run_goes_on_until_there_is_room(run, disk, tmp_path, capsys):
    assert run(tmp_path / "whole") == loop.DONE

    def at(step):
        if step == 2:
            disk.fill()
        if step == 5:
            disk.empty()

    capsys.readouterr()
    assert run(tmp_path / "full", at) == loop.DONE
    said = capsys.readouterr().out
    assert f"no checkpoint could be written to {tmp_path / 'full' / 'checkpoints'}" in said
    assert "File too large" in said and "the next try is in 0 s" in said
    assert "checkpoints can be written again" in said
    same_state(tmp_path / "full", tmp_path / "whole")
    names = {path.name for path in (tmp_path / "full" / "checkpoints").iterdir()}
    assert "2" not in names and "6" in names and not [n for n in names if "tmp" in n]


def test_a_last_checkpoint_that_fails_is_tried_until_it_is_whole(run, disk, tmp_path, monkeypatch):
    waited = []

    def emptied(seconds):
        waited.append(seconds)
        disk.empty()

    monkeypatch.setattr(keeper, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(keeper, "time", SimpleNamespace(
        sleep=emptied, monotonic=keeper.time.monotonic))  # fmt: skip
    full = lambda step: disk.fill() if step == 6 else None  # noqa: E731
    assert run(tmp_path, full, **{"checkpoint.every": 100}) == loop.DONE
    assert waited and load(tmp_path)[2] == 6


def test_where_saves_fail_for_too_long_the_run_stops_with_one_line(run, disk, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--workdir = .*written there for 0 minutes: .*too large"
    ):
        run(tmp_path, lambda step: disk.fill(), **{"checkpoint.patience_minutes": 0.0})


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"),
                                   OSError(30, "Read-only file system"),
                                   ConnectionError("bucket gone")])  # fmt: skip
def test_other_errors_of_a_save_are_told_by_name_and_outlived(
    error, run, tmp_path, monkeypatch, capsys
):
    save, failures = Checkpoints.save, [error, error]

    def refused(self, *args):
        if failures:
            raise failures.pop()
        save(self, *args)

    monkeypatch.setattr(Checkpoints, "save", refused)
    assert run(tmp_path, **{"train.steps": 4, "checkpoint.every": 1}) == loop.DONE
    said = capsys.readouterr().out
    assert said.count(f"{type(error).__name__}: {error}") == 2
    assert said.count("can be written again") == 1 and load(tmp_path)[2] == 4


def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_training(run, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ConfigError, match=r"--workdir = .*its checkpoints cannot be opened"):
        run(tmp_path)


def test_a_workdir_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    def refused(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("jepa_vl.training.lock.Path.open", refused)
    with pytest.raises(ConfigError, match="cannot be written: Read-only file system"):
        lock.Lock(tmp_path).take()


def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path, disk):
    said = []
    writer = MetricsWriter(tmp_path, -1, True, said.append)
    for step in range(30):
        if step == 10:
            disk.fill(400)
        if step == 20:
            disk.empty()
        writer.write(step, {"loss": 0.5 * step, "count": step})
    writer.close()
    assert [row["step"] for row in read_rows(writer.path)] == list(range(30))
    assert len(said) == 3 and "cannot be written, its rows are kept" in said[0]
    assert "no more TensorBoard events from step 10 on" in said[1] and "written again" in said[2]


def test_a_checkpoint_is_due_by_steps_by_minutes_and_when_a_save_has_failed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now[0])
    values = {"train.steps": 100, "checkpoint.every": 40, "checkpoint.every_minutes": 1.0}
    own = keeper.Keeper.__new__(keeper.Keeper)
    own.config, own._last_save, own._failing, own._try_at = tiny(**values), 0.0, None, 0.0
    assert [step for step in range(1, 101) if own.due(step)] == [40, 80, 100]
    now[0] = 59.9
    assert not own.due(3)
    now[0] = 60.0
    assert own.due(3)
    own._last_save, own._failing, own._try_at = 60.0, 60.0, 70.0
    now[0] = 69.0
    assert not own.due(3)
    now[0] = 70.0
    assert own.due(3)


def state(step):
    scalar, ones = jnp.int32(step), jnp.ones(3)
    return TrainState(scalar, {"a": ones * step}, {"a": ones}, {"m": ones}, scalar, scalar, scalar,
                      ones)  # fmt: skip


def filled(workdir, scores, pinned=(), **keep):
    checkpoints = Checkpoints(workdir, CheckpointConfig(**keep))
    for step, score in enumerate(scores, start=1):
        checkpoints.save(state(step), step, {}, {}, score)
        if step in pinned:
            checkpoints.pin(step)
    checkpoints.wait()
    return checkpoints


def test_the_newest_the_best_the_multiples_and_the_pinned_are_kept_over_restarts(tmp_path):
    scores = [0.1, 0.9, None, 0.3, None, 0.9, None, 0.2, None]
    checkpoints = filled(tmp_path, scores, pinned=[3], keep_last=2, keep_every=4, keep_best=1)
    assert checkpoints.steps() == [3, 4, 6, 8, 9] and checkpoints.best() == (6, 0.9)
    checkpoints.close()
    again = Checkpoints(tmp_path, CheckpointConfig(keep_last=1, keep_best=1))
    again.save(state(10), 10, {}, {}, 0.5)
    again.wait()
    assert again.steps() == [3, 6, 10] and again.best() == (6, 0.9)
    again.delete_after(3)
    assert again.steps() == [3] and again.best() is None
    again.close()


def writer(*scores):
    return SimpleNamespace(rows=[{"step": k, "knn/target": v} for k, v in scores])


def test_the_end_says_where_the_final_checkpoint_is_not_the_best():
    told = writer((0, 0.2), (50, 0.8), (100, 0.5))
    found = result.best((50, 0.8), told, 1000)
    assert found["beyond_chance"] and found["final"]["step"] == 100
    low, high = found["interval"]
    assert (low, high) == pytest.approx((0.774, 0.824), abs=1e-3)  # Wilson's, by hand
    said = []
    result._tell_best(said.append, found)
    assert said == [
        "final != best: the best checkpoint is that of step 50, kNN 0.800 (0.774 to 0.824), the "
        "final one that of step 100, kNN 0.500 (0.469 to 0.531), 95 % of 1000 images"
    ]
    result._tell_best(said.append, result.best((50, 0.52), told, 100))
    assert said[1].endswith("95 % of 100 images; by this many images that may be chance")
    result._tell_best(said.append, result.best((100, 0.5), told, 100))
    assert len(said) == 2 and result.best(None, told, 100) == {}


def test_a_run_keeps_and_names_the_best_checkpoint_by_the_online_evaluation(
    tmp_path, monkeypatch, compilations, capsys
):
    scores = iter([0.1, 0.2, 0.9, 0.4, 0.3])
    monkeypatch.setattr(OnlineKnn, "run", lambda self, weights: {"knn": next(scores)})
    values = {
        "checkpoint.every": 3,
        "eval.every": 2,
        "train.steps": 8,
        "checkpoint.keep_last": 1,
        "checkpoint.keep_best": 1,
    }
    values |= {"log.progress": "lines", "train.compile_cache": compilations}
    assert loop.train(tiny(objective="ijepa", **values), tmp_path) == loop.DONE
    told = json.loads((tmp_path / "result.json").read_text())["best"]
    assert (told["step"], told["score"], told["images"]) == (4, 0.9, 16)
    assert told["final"]["step"] == 8 and told["beyond_chance"]
    assert "final != best: the best checkpoint is that of step 4" in capsys.readouterr().out
    assert load(tmp_path, 4)[2] == 4 and load(tmp_path)[2] == 8
