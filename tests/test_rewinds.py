"""A run that cannot go on returns to its last good checkpoint and takes other images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.training import loop, spikes
from jepa_vl.training.checkpoint import load
from jepa_vl.training.course import Course
from jepa_vl.training.events import FILE
from jepa_vl.training.goodput import Clock
from tests.test_traps_training import leaves, toy
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation", "one_device")
BATCH = 8


@pytest.fixture
def run(monkeypatch, compilations, no_evaluation):
    """Trains 8 steps; batches of these numbers, in the order of the data, are NaN."""
    seen: list[int] = []

    def start(workdir, poisoned, stop_after=None, **values):
        place = loop.to_device

        def poison(batch, mesh):
            number = int(batch["position"][0]) // BATCH
            seen.append(number)
            value = np.nan if number in poisoned else 1.0
            return place(batch | {"image": (batch["image"] * value).astype(np.float32)}, mesh)

        config = tiny(
            objective="ijepa",
            **{"train.steps": 8, "train.max_bad_steps": 2, "checkpoint.every": 2}
            | {"train.compile_cache": compilations, "log.diagnostics_every": 100}
            | values,
        )
        seen.clear()
        with monkeypatch.context() as patched, loop.Stop() as stop, loop.Lock(workdir) as lock:
            patched.setattr(loop, "to_device", poison)
            own = loop.Run(config, workdir, lock)
            own.begin()
            stop.reached = lambda step: len(seen) == stop_after
            code = own.train(stop)
            own.finish(code)
        return code, list(seen)

    return start


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_after_skipped_steps_in_a_row_the_run_goes_back_and_the_data_goes_on(run, tmp_path):
    whole = tmp_path / "whole"
    code, seen = run(whole, {5, 6, 7, 8, 9})
    assert code == loop.DONE
    # Steps 6 and 7 fail, which is known at step 8; steps 5 and 6 then see batches 8 and 9: again.
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    told = rows(whole / FILE)
    assert [(row["event"], row["step"], row["back"], row["skipped"]) for row in told] == [
        ("rewind", 8, 4, 4), ("rewind", 7, 4, 7),
    ]  # fmt: skip
    metrics = rows(whole / "metrics.jsonl")
    assert [row["step"] for row in metrics if "loss" in row] == list(range(1, 9))
    assert all(row["bad_steps"] == 0 for row in metrics if "loss" in row)
    result = json.loads((whole / "result.json").read_text())
    assert result["rewinds"] == 2 and result["status"] == "done" and result["bad_steps"] == 0

    # A run that leaves after it has rewound, and is started again, ends with the same bits.
    broken = tmp_path / "broken"
    assert run(broken, {5, 6, 7, 8, 9}, stop_after=13)[0] == loop.PREEMPTED
    code, seen = run(broken, {5, 6, 7, 8, 9})
    assert (code, seen) == (loop.DONE, [13, 14])
    jax.tree.map(np.testing.assert_array_equal, load(broken)[1], load(whole)[1])


def test_where_rewinds_do_not_help_the_run_stops_and_says_so(run, tmp_path):
    code, seen = run(tmp_path, set(range(3, 99)), **{"train.max_rewinds": 1})
    assert code == loop.STOPPED
    assert [row["back"] for row in rows(tmp_path / FILE)] == [2]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "not finite"
    assert seen[:6] == [0, 1, 2, 3, 4, 5] and seen[6] == 6


def test_without_a_checkpoint_the_run_begins_again_with_other_images(run, tmp_path):
    code, seen = run(tmp_path, {0, 1, 2, 3, 4}, **{"checkpoint.every": 100})
    assert code == loop.DONE and len(seen) == 3 + 3 + 8
    assert [row["back"] for row in rows(tmp_path / FILE)] == [0, 0]
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(9))
    assert int(load(tmp_path)[1].step) == 8


def test_a_course_counts_what_was_passed_over_and_survives_another_batch():
    course = Course().rewound(8, 4).rewound(7, 4, lr_scale=0.5)
    assert course == Course(rewinds=2, skipped=7, lr_scale=0.5)
    assert Course.of({"course": vars(course)}) == course and Course.of({}) == Course()
    assert course.rebatched(8, 4).skipped == 14
    with pytest.raises(ConfigError, match=r"train\.batch_size = 16: rewinds have passed over 56"):
        course.rebatched(8, 16)


def test_what_a_rewind_throws_away_is_lost_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jepa_vl.training.goodput.time.monotonic", lambda: now[0])
    clock = Clock()
    with clock.part("step"):
        now[0] += 10
    saved = {"goodput": clock.to_save()}
    with clock.part("step"):
        now[0] += 4
    with clock.part("evaluation"):
        now[0] += 3
    clock.rewind(saved)
    assert {k: v for k, v in clock.seconds().items() if v} == {"step": 10, "lost": 7}
    clock.rewind({})
    assert {k: v for k, v in clock.seconds().items() if v} == {"lost": 17}


def test_a_lower_learning_rate_is_that_of_the_step():
    (plain, before), (lower, box) = toy(), toy(lr_scale=0.25)
    start = leaves(before.state.params)
    rates = plain(1.0)["lr"], lower(1.0)["lr"]
    assert rates[1] == pytest.approx(0.25 * rates[0])
    full, quarter = leaves(before.state.params), leaves(box.state.params)
    for name, x in start.items():
        np.testing.assert_allclose(quarter[name] - x, 0.25 * (full[name] - x), rtol=1e-4, atol=1e-7)


def losses(count, last):
    values = np.random.default_rng(0).normal(2.0, 0.1, count)
    recent = spikes.no_losses()
    for value in values:
        recent = spikes.remember(jnp.float32(value), recent)
    return values[-spikes.WINDOW :], float(spikes.score(jnp.float32(last), recent)), recent


def test_the_score_of_a_spike_is_the_robust_z_score_of_the_last_64_losses():
    for count in (32, 64, 200):
        kept, found, recent = losses(count, 3.0)
        median = np.median(kept)
        wanted = (3.0 - median) / (1.4826 * np.median(np.abs(kept - median)))
        assert found == pytest.approx(wanted, rel=1e-3)
        assert int(np.isfinite(recent).sum()) == len(kept)
    assert losses(31, 1e9)[1] == 0
    unmoved = spikes.remember(jnp.float32(np.nan), recent)
    np.testing.assert_array_equal(unmoved, recent)


def test_a_spike_is_skipped_counted_and_in_a_row_with_others_until_its_level_is_usual():
    advance, box = toy(**{"train.spike_z": 8.0, "train.steps": 200})
    for _ in range(spikes.LEAST):
        assert advance(1.0)["spikes"] == 0
    before = leaves(box.state.params)
    metrics = advance(1e4)
    assert (metrics["spikes"], metrics["bad_steps"], metrics["bad_in_a_row"]) == (1, 0, 1)
    assert metrics["loss_z"] > 8
    for name, x in leaves(box.state.params).items():
        np.testing.assert_array_equal(x, before[name])
    assert advance(1.0)["bad_in_a_row"] == 0 and advance(np.nan)["bad_steps"] == 1
    for _ in range(spikes.WINDOW):
        metrics = advance(1e4)
    assert metrics["bad_in_a_row"] == 0 and metrics["loss_z"] < 8


def test_without_a_limit_no_spike_is_skipped():
    advance, _ = toy()
    for _ in range(spikes.LEAST):
        advance(1.0)
    metrics = advance(1e4)
    assert metrics["loss_z"] > 100 and metrics["spikes"] == metrics["bad_in_a_row"] == 0
