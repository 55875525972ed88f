"""``jepa-vl eval --model`` and ``export --model``: encoders without a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jepa_vl.cli.main import main
from tests import exports
from tests.test_cli import refused
from tests.test_intake import written

# These are all compilation.
pytestmark = pytest.mark.usefixtures("quick_module")

FEW = ["--task", "knn", "--config.eval.train_images=32", "--config.eval.val_images=16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One encoder under the names of transformers and of ours."""
    root = tmp_path_factory.mktemp("models")
    encoder = exports.encoder()
    return {form: written(root / form, encoder, form) for form in ("hf", "safetensors")}


def test_one_encoder_reaches_the_same_under_whatever_names(folders, tmp_path, capsys):
    cards = []
    for form, folder in folders.items():
        out = tmp_path / f"{form}.json"
        assert main(["eval", "--model", str(folder), "--json", str(out), "--no-cache", *FEW]) == 0
        cards.append(json.loads(out.read_text()))
        assert "hits" in cards[-1]["results"][0] and out.with_suffix(".html").exists()
    first, second = ({r["features"]: r["metrics"] for r in card["results"]} for card in cards)
    assert first == second and first.keys() == {"encoder", "untrained", "pixels"}
    assert cards[0]["kind"] == "ijepa of transformers" and cards[1]["branch"] == "target"
    assert cards[0]["checkpoint_hash"] == cards[1]["checkpoint_hash"]
    assert cards[0]["fingerprint"] != cards[1]["fingerprint"]
    assert f"{folders['hf']}, ijepa of transformers, only encoder" in capsys.readouterr().out


def test_a_card_without_a_name_lies_where_the_command_runs(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "--model", str(folders["hf"]), "--no-cache", *FEW]) == 0
    assert Path("eval_hf.json").exists()


@pytest.mark.slow
def test_floors_stand_beside_heads_of_a_model_without_a_run(folders, tmp_path):
    out = tmp_path / "card.json"
    tasks = ["--task", "ijepa_vissl,finetune", "--floor", "all", "--layers", "2"]
    short = ["--config.eval.probe_steps=2", "--config.eval.crops=0", *FEW[2:]]
    argv = ["eval", "--model", str(folders["hf"]), "--json", str(out), "--no-cache", *tasks]
    assert main([*argv, *short]) == 0
    results = json.loads(out.read_text())["results"]
    beside = {r["task"]: r["baselines"] for r in results if r["features"] == "encoder"}
    heads = {"majority", "untrained", "pixels"}
    assert {task: set(floors) for task, floors in beside.items()} == {
        "ijepa_vissl": heads, "finetune": heads - {"pixels"}
    }  # fmt: skip
    read = {r["features"]: r["protocol"] for r in results if r["task"] == "ijepa_vissl"}
    layers = {features: protocol["layers"] for features, protocol in read.items()}
    assert layers == {"encoder": [1, 2], "untrained": [1, 2], "pixels": [1]}  # of two blocks


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ([], "give DIR, a run, or --model PATH"),
        (["--model", "x", "--workdir", "y"], "give DIR, a run, or --model PATH"),
        (["--model", "x", "--step", "3"], "--step = '3': of runs, not of --model"),
        (["--model", "nowhere"], "--model = 'nowhere': no such folder"),
        (["--model", "HF", "--task", "retrieval"], "retrieval needs a whole model"),
        (["--model", "HF", "--layers", "3"], "--layers = 3: at most 2"),
    ],
)
def test_bad_input_is_one_line(words, rule, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(folders["hf"]) if word == "HF" else word for word in words]
    assert rule in refused(capsys, "eval", *words)


def test_what_came_in_leaves_again_bit_by_bit_with_a_card_of_its_own(folders, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["export", "--model", str(folders["hf"]), "--format", "safetensors", "--out", str(out)]
    assert main(argv) == 0
    found, ours = (load_file(f / "model.safetensors") for f in (out, folders["safetensors"]))
    assert found.keys() == ours.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    told = (out / "README.md").read_text()
    assert "written from hf (ijepa of transformers), fingerprint" in told
    assert str(tmp_path) not in told and "## Configuration" not in told
    assert "unknown encoder, safetensors" in capsys.readouterr().out  # of whichever branch it was
    line = refused(capsys, *argv, "--workdir", "x")
    assert "give DIR, a run, or --model PATH" in line
