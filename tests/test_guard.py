"""What the alarm's actions do to a run."""

import json
from types import SimpleNamespace

import pytest

from jepa_vl.training import loop
from jepa_vl.training.checkpoint import PINS, load
from jepa_vl.training.events import FILE
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation", "one_device")


@pytest.fixture
def run(monkeypatch, compilations):
    """Trains 8 steps; diagnostics of every second step say that features have become narrow."""

    def start(workdir, stop_after=None, narrow=(4, 6), **values):
        def diagnose(state):
            wide = int(state.step) not in narrow
            return {"held_out_loss": 1.0, "rankme/target": 8.0 if wide else 1.0}

        health = SimpleNamespace(run=diagnose, indices=list)
        config = tiny(
            objective="ijepa",
            **{"train.steps": 8, "log.diagnostics_every": 2, "checkpoint.every": 1}
            | {"train.compile_cache": compilations, "checkpoint.keep_last": 8}
            | values,
        )
        with monkeypatch.context() as patched, loop.Stop() as stop, loop.Lock(workdir) as lock:
            patched.setattr(loop, "Health", lambda *args: health)
            quiet = SimpleNamespace(run=lambda *args: {}, describe=lambda: None, tested=lambda: 0)
            patched.setattr(loop, "Online", lambda *args: quiet)
            own = loop.Run(config, workdir, lock)
            own.begin()
            stop.reached = lambda step: step == stop_after
            code = own.train(stop)
            own.finish(code)
        events = (workdir / FILE).read_text().splitlines() if (workdir / FILE).exists() else []
        result = json.loads((workdir / "result.json").read_text())
        return code, [json.loads(line) for line in events], result

    return start


def test_a_warning_is_said_once_with_its_numbers_and_survives_a_restart(run, tmp_path):
    code, events, result = run(tmp_path)
    assert code == loop.DONE and result["status"] == "done"
    (event,) = events
    assert (event["step"], event["event"], event["rule"]) == (6, "alarm", "rank")
    assert event["rankme/target"] == 1.0 and event["best rankme/target"] == 8.0
    assert event["message"].startswith("alarm: rank: ") and "what helps" in event["message"]

    # The first bad diagnostics lie before the restart, the second after it.
    assert run(tmp_path / "broken", stop_after=5)[:2] == (loop.PREEMPTED, [])
    assert [event["step"] for event in run(tmp_path / "broken")[1]] == [6]


def test_keep_saves_the_step_and_pins_it(run, tmp_path):
    values = {"checkpoint.every": 100, "checkpoint.keep_last": 1, "health.action": "keep"}
    code, events, _ = run(tmp_path, **values)
    assert code == loop.DONE and [event["event"] for event in events] == ["alarm"]
    assert json.loads((tmp_path / PINS).read_text()) == [6]
    assert load(tmp_path, 6)[2] == 6 and load(tmp_path)[2] == 8


def test_stop_saves_and_leaves_with_4(run, tmp_path):
    code, _, result = run(tmp_path, **{"health.action": "stop", "checkpoint.every": 100})
    assert code == loop.STOPPED and result["status"] == "alarm: rank" and result["steps"] == 6
    assert load(tmp_path)[2] == 6


def test_rewind_goes_back_before_the_first_bad_diagnostics_with_a_lower_rate(run, tmp_path):
    def rates():
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row["lr"] for row in map(json.loads, lines) if "lr" in row}

    assert run(tmp_path, narrow=())[0] == loop.DONE
    before = rates()
    for path in [*tmp_path.iterdir()]:
        path.rename(tmp_path.parent / f"{tmp_path.name}.{path.name}")
    values = {"health.action": "rewind", "health.rewind_lr": 0.25, "train.max_rewinds": 1}
    code, events, result = run(tmp_path, **values)
    assert code == loop.STOPPED and result["status"] == "alarm: rank" and result["rewinds"] == 1
    assert [(event["event"], event["step"]) for event in events] == [
        ("alarm", 6), ("rewind", 6), ("alarm", 6),
    ]  # fmt: skip
    assert (events[1]["back"], events[1]["skipped"], events[1]["lr_scale"]) == (3, 3, 0.25)
    after = rates()
    for step in range(1, 7):
        wanted = before[step] * (0.25 if step > 3 else 1.0)
        assert after[step] == pytest.approx(wanted, rel=1e-6), step
