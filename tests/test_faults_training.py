"""A run on damaged data: it goes on, tells what was bad, and stops where it is too much."""

import json
import os

import numpy as np
import pytest

from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import faults, sources
from jepa_vl.evaluators import features
from tests import tars
from tests.tiny import tiny

# Of 60 images 57 are trained on at 8 a step, so that 6 steps see 48 different ones.
STEPS, BAD = 6, 20


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch, quick_compilation):
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def train(tmp_path, *words: str) -> int:
    settings = {
        "data.kind": "tar",
        "data.path": tmp_path / "d",
        "data.crop_scale": "(0.9, 1.0)",
        "log.diagnostics_every": 100,
        "eval.every": 100,
        "checkpoint.every": 100,
    }
    shared = [f"--config.{key}={value}" for key, value in settings.items()]
    workdir = ["--workdir", str(tmp_path / "run")]
    return main(["train", "--config", "tests/configs_tiny.py:objective=ijepa", *workdir, *shared,
                 *words])  # fmt: skip


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_on_damaged_data_stops_at_the_limit_and_goes_on_to_its_end_above_it(tmp_path, capsys):
    folder = tars.shards(tmp_path / "d", 3, 20)
    tars.write(folder / "003.tar", [("x.jpg", tars.jpeg()), ("x.json", b"{")])
    assert main(["data", "index", "--config", "tests/configs_tiny.py", "--config.data.kind=tar",
                 f"--config.data.path={folder}"]) == 0  # fmt: skip
    for index in range(BAD):
        tars.overwrite(folder / "000.tar", f"s{index:03}.jpg", os.urandom(40))
    run, listed = tmp_path / "run", tmp_path / "run/bad_samples.jsonl"
    capsys.readouterr()
    assert train(tmp_path, "--config.data.max_bad_share=0.005") == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.max_bad_share = 0.005" in line and "most often by 'image'" in line
    assert str(listed) in line
    stopped = rows(run / "metrics.jsonl")[-1]
    assert 0 < stopped["step"] < STEPS and stopped["data/bad"] <= 5
    assert {path.name for path in (run / "checkpoints").iterdir()} == {str(stopped["step"])}

    assert train(tmp_path, "--config.data.max_bad_share=0.5") == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("done", STEPS)
    metrics = rows(run / "metrics.jsonl")
    counts = [row["data/bad"] for row in metrics if "data/bad" in row]
    assert [row["step"] for row in metrics] == list(range(STEPS + 1))
    assert all(row["data/left_out"] == 1 for row in metrics if "data/bad" in row)
    assert counts == sorted(counts) and result["bad_samples"] == {"image": counts[-1]}
    assert counts[-1] == metrics[-1]["data/bad/image"] > 5

    told = rows(listed)
    assert len({(row["source"], row["index"], row["cause"]) for row in told}) == len(told)
    assert {row["cause"] for row in told} == {"image", "json"}
    assert [row["key"] for row in told if row["cause"] == "json"] == ["x"]
    drawn = [row for row in told if row["source"].endswith("#train") and row["index"] >= 0]
    assert {row["key"] for row in told if row["cause"] == "image"} <= {
        f"s{index:03}" for index in range(BAD)
    }
    # Each epoch sees an image once: what was trained on in the place of another is as many.
    assert len(drawn) >= counts[-1]


def test_evaluation_leaves_out_what_cannot_be_read_and_says_how_many_remain(tmp_path):
    tars.shards(tmp_path / "d/train", 1, 20)
    tars.shards(tmp_path / "d/val", 1, 9)
    values = {"data.kind": "tar", "data.path": str(tmp_path / "d/train"), "objective": "ijepa"}
    config = tiny(**values)
    parts = sources.open_sources(config)
    whole = features.Reader(config, *parts).read(features.pixels)
    for index in range(8):  # a whole batch of the held-out part, and three of the other
        tars.overwrite(tmp_path / "d/val/000.tar", f"s{index:03}.jpg", b"<html>")
        if index < 3:
            tars.overwrite(tmp_path / "d/train/000.tar", f"s{index:03}.jpg", b"<html>")
    log = faults.Log(0.0, tmp_path / "bad.jsonl")
    reader = features.Reader(config, *parts, log)
    for _ in range(2):
        found = reader.read(features.pixels)
        np.testing.assert_array_equal(found.train, whole.train[3:])
        np.testing.assert_array_equal(found.train_labels, whole.train_labels[3:])
        np.testing.assert_array_equal(found.held_out, whole.held_out[8:])
    described = reader.describe()
    assert (described["train"]["images"], described["held_out"]["images"]) == (17, 1)
    assert len(rows(tmp_path / "bad.jsonl")) == 11 and not log.counts
    tars.overwrite(tmp_path / "d/val/000.tar", "s008.jpg", b"<html>")
    with pytest.raises(ConfigError, match="nor can any other of 9 labelled images"):
        features.Reader(config, *parts).keep_images()


def test_data_of_which_nothing_can_be_read_is_refused_before_a_step(tmp_path, capsys):
    folder = tars.shards(tmp_path / "d", 1, 12)
    (folder / "000.tar").write_bytes(b"<html>404</html>" * 64)
    assert train(tmp_path) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.path" in line and "hold no image" in line and "000.tar" in line
    assert not (tmp_path / "run").exists()
