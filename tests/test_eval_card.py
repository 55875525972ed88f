"""The card of ``jepa-vl eval``: it grows, goes on after a kill, is a page; --watch; the cache."""

import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jepa_vl.cli import eval_card, eval_watch
from jepa_vl.cli.main import main
from jepa_vl.evaluators import base, features
from jepa_vl.evaluators.cache import FOLDER
from jepa_vl.report.card import render
from tests.test_cli import SPREAD, TRAIN, refused

# These runs are all compilation.
pytestmark = pytest.mark.usefixtures("quick_module")

KEYS = {"task", "protocol", "metrics", "ci", "baselines", "data_hash", "checkpoint_hash", "seed"}
TRAINING = ("--config.eval.k=10", "--config.eval.train_images=64", "--config.train.steps=3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    often = ("--config.checkpoint.every=1", "--config.checkpoint.keep_last=3")
    assert main([*TRAIN, str(folder), SPREAD, *TRAINING, *often]) == 0
    return folder


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the run, and a cache of its own."""
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Grows by one when a reader of labelled images reads them."""
    times, original = [], features.Reader.read

    def counted(self, embed):
        times.append(1)
        return original(self, embed)

    monkeypatch.setattr(features.Reader, "read", counted)
    return times


def evaluate(workdir: Path, *words: str) -> int:
    return main(["eval", "--workdir", str(workdir), *words])


def card(workdir: Path, step: int = 3) -> dict:
    return json.loads((workdir / f"eval_{step}_target.json").read_text())


def test_a_card_grows_and_measures_nothing_twice(workdir, read, capsys):
    assert evaluate(workdir, "--task", "knn", "--floor", "none") == 0
    first = card(workdir)
    assert [r["task"] for r in first["results"]] == ["knn"] and len(read) == 1
    assert first["results"][0].keys() >= KEYS
    assert evaluate(workdir, "--task", "fewshot,knn", "--floor", "none") == 0
    grown = card(workdir)
    assert [r["task"] for r in grown["results"]] == ["knn", "fewshot"]
    assert grown["results"][0] == first["results"][0]
    assert len(read) == 1  # the features of the second came out of the cache
    out = capsys.readouterr().out
    assert re.search(r"^fewshot +5shot ", out, re.M) and "eval_3_target.html" in out
    assert evaluate(workdir, "--task", "knn", "--floor", "none", "--no-cache") == 0
    assert len(read) == 1
    assert evaluate(workdir, "--task", "knn", "--floor", "none", "--no-cache", "--again") == 0
    assert len(read) == 2 and card(workdir)["results"][-1] == first["results"][0]
    # A setting that kNN does not read: measured again, and in the place of what was there.
    capsys.readouterr()
    assert evaluate(workdir, "--task", "knn", "--floor", "none", "--config.eval.beam=2") == 0
    assert [r["task"] for r in card(workdir)["results"]] == ["fewshot", "knn"]
    assert "fewshot" not in capsys.readouterr().out and len(read) == 2


def test_floors_come_later_and_stand_beside_what_is_there(workdir):
    assert evaluate(workdir, "--task", "knn", "--floor", "none") == 0
    assert card(workdir)["results"][0]["baselines"].keys() == {"majority"}
    assert evaluate(workdir, "--task", "knn") == 0
    encoder, *floors = card(workdir)["results"]
    assert encoder["baselines"].keys() == {"majority", "untrained", "pixels"}
    for floor in floors:
        assert encoder["baselines"][floor["features"]] == floor["metrics"]


def test_what_was_interrupted_goes_on_where_it_was(workdir, read, monkeypatch, capsys):
    def dies(self, params):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(base.REGISTRY["fewshot"], "measure", dies)
        assert evaluate(workdir, "--task", "knn,fewshot", "--floor", "none") == 130
    assert [r["task"] for r in card(workdir)["results"]] == ["knn"]

    def never(self, params):
        raise AssertionError("measured again")

    monkeypatch.setattr(base.REGISTRY["knn"], "measure", never)
    assert evaluate(workdir, "--task", "knn,fewshot", "--floor", "none") == 0
    assert [r["task"] for r in card(workdir)["results"]] == ["knn", "fewshot"]


def test_results_of_other_weights_do_not_stay(workdir):
    assert evaluate(workdir, "--task", "knn", "--floor", "none") == 0
    page = card(workdir)
    page["checkpoint_hash"] = "0" * 16
    (workdir / "eval_3_target.json").write_text(json.dumps(page))
    facts = {"checkpoint_hash": "1" * 16, "branch": "target", "layers": 1}
    assert eval_card.Card(workdir / "eval_3_target.json", facts).page["results"] == []
    facts["checkpoint_hash"] = "0" * 16
    assert len(eval_card.Card(workdir / "eval_3_target.json", facts).page["results"]) == 1


def test_what_is_odd_about_the_images_stands_under_the_table(tmp_path):
    made = eval_card.Card(tmp_path / "card.json", {"checkpoint_hash": "0", "branch": "target",
                                                   "layers": 1, "step": 3})  # fmt: skip
    told = {"seed": 0, "absent": "1 of 3 classes have no held-out image"}
    made.put({"key": "k", "task": "knn", "features": "encoder", "metrics": {"k10": 0.5}, "ci": {},
              "baselines": {}, "protocol": told, "data_hash": "", "seed": 0})  # fmt: skip
    assert "(1 of 3 classes have no held-out image)" in made.told()


def test_damaged_features_are_computed_again_and_bad_images_stay_out(workdir, read, tmp_path):
    words = ("--task", "knn", "--floor", "none", "--again")
    assert evaluate(workdir, *words) == 0
    (stored,) = (tmp_path / "cache" / FOLDER).iterdir()
    first, content = card(workdir), stored.read_bytes()
    stored.write_bytes(content[: len(content) // 2])
    assert evaluate(workdir, *words) == 0
    assert len(read) == 2 and card(workdir)["results"] == first["results"]
    assert stored.read_bytes() == content
    with np.load(stored) as arrays:
        changed = dict(arrays)
    changed["bad_held_out"] = np.array([0, 5])
    for name in ("held_out", "held_out_labels"):
        changed[name] = changed[name][2:]
    with stored.open("wb") as file:
        np.savez(file, **changed)
    assert evaluate(workdir, *words) == 0
    assert card(workdir)["results"][0]["protocol"]["held_out"]["images"] == 14


def test_the_page_is_whole_and_loads_nothing(workdir):
    assert evaluate(workdir, "--task", "knn,lidar") == 0
    page = (workdir / "eval_3_target.html").read_text()
    assert page == render(card(workdir))
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    encoder = card(workdir)["results"][0]
    assert f"{encoder['metrics']['k10']:.4g}" in page and encoder["data_hash"] in page
    for words in ("temperature", "short side to image_size", "untrained", "majority"):
        assert words in page


def test_watch_evaluates_each_checkpoint_once_until_the_run_is_over(workdir, monkeypatch, capsys):
    monkeypatch.setattr(eval_watch, "PAUSE", 0.05)
    result, newest = workdir / "result.json", workdir / "checkpoints" / "3"
    hidden = [path.rename(workdir.parent / path.name) for path in (result, newest)]

    def finish():
        while not (workdir / "eval_2_target.html").exists():
            time.sleep(0.05)
        hidden[1].rename(newest)
        hidden[0].rename(result)

    later = threading.Thread(target=finish)
    later.start()
    assert evaluate(workdir, "--watch", "--task", "knn", "--floor", "none") == 0
    later.join()
    heads = re.findall(r"^step (\d), target encoder", capsys.readouterr().out, re.M)
    assert heads == ["1", "2", "3"]
    hashes = {card(workdir, step)["checkpoint_hash"] for step in (1, 2, 3)}
    assert len(hashes) == 3


def test_a_checkpoint_that_goes_away_is_told_and_no_error(workdir, monkeypatch, capsys):
    original = eval_watch._load

    def load(folder, step):
        if step == 2:
            shutil.rmtree(workdir / "checkpoints" / "2")
        return original(folder, step)

    monkeypatch.setattr(eval_watch, "_load", load)
    assert evaluate(workdir, "--watch", "--task", "knn", "--floor", "none") == 0
    out = capsys.readouterr().out
    assert "step 2: its checkpoint was removed before it was read" in out
    assert re.findall(r"^step (\d), target encoder", out, re.M) == ["1", "3"]


def fails(monkeypatch, name, times):
    """Plants an OSError into the first calls of a function of the watch; returns its waits."""
    original, calls, waits = getattr(eval_watch, name), [], []

    def failing(*args):
        calls.append(args)
        if times(args) and len(calls) <= times(args):
            raise OSError(116, "Stale file handle")
        return original(*args)

    monkeypatch.setattr(eval_watch, name, failing)
    monkeypatch.setattr(eval_watch, "sleep", waits.append)
    return waits


def test_a_checkpoint_that_stays_unreadable_is_set_aside_and_the_rest_measured(
    workdir, monkeypatch, capsys
):
    waits = fails(monkeypatch, "_load", lambda args: 99 if args[1] == 2 else 0)
    for array in (workdir / "checkpoints" / "1" / "state").rglob("*"):
        if array.is_file():
            array.write_bytes(b"")  # on the disk itself
    assert evaluate(workdir, "--watch", "--task", "knn", "--floor", "none") == 1
    out = capsys.readouterr().out
    assert re.findall(r"^step (\d), target encoder", out, re.M) == ["3"]
    assert out.count("step 2: cannot be read: [Errno 116]") == 1
    assert out.count("step 1: cannot be read: workdir = ") == 1
    assert "step 2: set aside, not measured" in out and "not measured: steps 1, 2" in out
    assert waits == 2 * list(eval_watch.WAITS)


def test_a_folder_that_cannot_be_listed_for_long_does_not_end_the_watch(
    workdir, monkeypatch, capsys
):
    waits = fails(monkeypatch, "_steps", lambda args: 7)  # more than one round of attempts
    assert evaluate(workdir, "--watch", "--task", "knn", "--floor", "none") == 0
    out = capsys.readouterr().out
    assert out.count("its checkpoints: cannot be read: [Errno 116] Stale file handle") == 1
    assert waits[:5] == [*eval_watch.WAITS, eval_watch.PAUSE]
    assert re.findall(r"^step (\d), target encoder", out, re.M) == ["1", "2", "3"]


def test_what_no_waiting_mends_ends_the_watch_at_once(workdir, monkeypatch, capsys):
    waits = fails(monkeypatch, "_steps", lambda args: 0)
    words = ("--watch", "--task", "knn", "--layers", "9")
    assert "--layers = 9" in refused(capsys, "eval", "--workdir", str(workdir), *words)
    assert waits == []


def test_other_data_are_named_in_one_word(workdir, tmp_path, capsys):
    words = ("--task", "knn", "--floor", "none")
    assert evaluate(workdir, *words, "--data", "shapes_world") == 0
    capsys.readouterr()
    missing = ("--data", f"folder:{tmp_path / 'no'}")
    assert "data.path" in refused(capsys, "eval", "--workdir", str(workdir), *words, *missing)
