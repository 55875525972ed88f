"""A script that knows nothing of us finds the accuracy that our evaluator finds."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from jepa_vl.cli.main import main
from jepa_vl.evaluators.base import Features
from jepa_vl.evaluators.fast import Fast
from tests.shared import shared
from tests.tiny import tiny

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[1] / "examples" / "probe_hf.py"
SOME = 20  # classes


def some_classes(data, folder):
    """A list of the photographs of a fifth of the classes."""
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    names = sorted({row["label"] for row in rows})[::5][:SOME]
    rows = [{**row, "image": str(data / row["image"])} for row in rows if row["label"] in names]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("all_classes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stranger_to_us_classifies_photographs_as_our_evaluator_does(all_classes, tmp_path):
    assert "jepa_vl" not in SCRIPT.read_text().split('"""')[2]
    folder, kept = tmp_path / "hf", tmp_path / "features.npz"
    data = shared("data/caltech101")
    data = data if all_classes else some_classes(data, tmp_path)
    argv = ["export", "--model", "zoo:tcjepa-shapes", "--format", "hf", "--out", str(folder)]
    assert main(argv) == 0

    def probe(c):
        words = ["--model", folder, "--data", data, "--C", c]
        done = subprocess.run(
            [sys.executable, SCRIPT, *map(str, words), "--features", kept],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    told = probe(0.01)
    found = np.load(kept)
    names, labels = np.unique(found["labels"], return_inverse=True)
    train, held_out = ~found["test"], found["test"]
    assert told["train"] == train.sum() and len(names) == (101 if all_classes else SOME)
    known = np.isin(labels, labels[train])
    features = Features(
        found["features"][train], labels[train],
        found["features"][held_out & known], labels[held_out & known],
    )  # fmt: skip
    ours = Fast(tiny(), lambda params: features).measure(None)
    again = probe(ours.scores["C"])
    accuracy = ours.scores["accuracy"] * (held_out & known).sum() / held_out.sum()
    assert abs(again["accuracy"] - accuracy) <= 0.002
    assert accuracy > 3 / len(names)  # above chance: there is something to agree on
    print(f"\nscikit-learn {again['accuracy']:.4f}, ours {accuracy:.4f}, {again}")


def test_a_list_without_splits_has_each_fifth_image_for_testing(tmp_path):
    rows = [{"image": f"{i}.jpg", "label": "cat" if i % 2 else "dog"} for i in range(10)]
    lines = [json.dumps(row) for row in (*rows, {"image": "10.jpg", "label": None})]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    unread = ("torch", "transformers", "sklearn.linear_model", "sklearn.preprocessing")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in unread}):
        read = runpy.run_path(str(SCRIPT))["read"]
    paths, labels, test = read(tmp_path, 0)
    assert [path.stem for path in paths] == [*"12346789", *"05"]  # those for testing come last
    assert labels.tolist() == ["cat" if int(path.stem) % 2 else "dog" for path in paths]
    assert test.tolist() == [False] * 8 + [True] * 2
    (tmp_path / "captions.jsonl").write_text(lines[0])
    with pytest.raises(SystemExit, match="some to test"):
        read(tmp_path, 0)
