"""What a run says while it goes on, and what it writes down."""

import json

import jax.numpy as jnp
import numpy as np

from jepa_vl.training import console, metrics, result
from jepa_vl.training.metrics import MetricsWriter


def test_the_time_left_is_estimated_from_the_second_logged_step_on(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    reporter = console.Reporter("lines", total=101, start=0)
    for seconds, step in ((60, 1), (1, 2), (19, 21), (80, 101)):
        now[0] += seconds
        reporter.step(step, {"loss": 0.5, "images_per_second": 32.0})
    first, third, last = capsys.readouterr().out.splitlines()
    assert first == "step 1/101  loss 0.5  32 images/s"  # the minute of compilation counts nowhere
    assert third == "step 21/101  loss 0.5  32 images/s  1:20 left"  # 20 steps took 20 s
    assert last == "step 101/101  loss 0.5  32 images/s"


def test_counts_are_written_as_integers_and_what_is_not_finite_as_null(tmp_path):
    writer = MetricsWriter(tmp_path, -1, tensorboard=False)
    counts = {"bad_steps": jnp.int32(2), "rankme_images": np.int64(64), "loss": jnp.float32(3)}
    writer.write(1, {**counts, "norm": jnp.float32(np.nan)})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "bad_steps": 2, "rankme_images": 64, "loss": 3.0, "norm": null}\n'
    assert json.loads(line)["norm"] is None


def test_the_speed_of_a_run_is_the_median_without_the_window_that_compiles():
    rates = (1.0, 100.0, 90.0, 5.0, 110.0)  # the slow window shared the machine with an evaluation
    rows = [{"images_per_second": rate} for rate in rates]
    assert metrics.speed([{"step": 0}, *rows]) == 95.0
    assert metrics.speed(rows[:1]) == 1.0
    assert metrics.speed([{"step": 0}]) is None


def test_the_end_of_a_run_says_what_its_numbers_mean(tmp_path, capsys):
    knn = {"target": 0.5, "untrained": 0.25, "pixels": 0.125, "k": 20, "classes": 8}
    told = {
        "status": "done", "steps": 3, "seconds": 1.0, "knn": knn, "seed": 0, "best": {},
        "goodput": {"share": 0.5, "seconds": {"step": 1.0}}, "text_gain": 0.25, "dead_share": 0.5,
        "rankme": {"start": 2.0, "end": 3.0, "images": 64},
    }  # fmt: skip
    result.summarise(console.Reporter("lines", total=3, start=0), told, tmp_path)
    scratch = capsys.readouterr().out
    for words in ("(0: captions are not read)", "(1: no patch finds a word)", "is collapse)"):
        assert words in scratch
    assert "at step 0" not in scratch
    result.summarise(console.Reporter("lines", total=3, start=0), told, tmp_path, "public")
    assert (
        "untrained: by this run; at step 0 it had the weights of public" in capsys.readouterr().out
    )
