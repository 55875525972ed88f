"""The models that are shipped load by name, and their cards tell what they reach."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa_vl import pretrained, tree
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.models import intake
from jepa_vl.report import grounding, pictures
from jepa_vl.training import whole
from jepa_vl.training.checksum import tree_hash
from tests import exports
from tests.test_cli import refused
from tests.test_intake import written

NAME = "zoo:tcjepa-shapes"


def card(name=NAME):
    return (pretrained.locate(name, "--model") / "README.md").read_text()


def measured(tmp_path, *words):
    out = tmp_path / "card.json"
    argv = ["eval", "--model", NAME, "--task", "knn", "--no-cache", "--json", str(out), *words]
    assert main(argv) == 0
    results = json.loads(out.read_text())["results"]
    return {result["features"]: result["metrics"] for result in results}


def test_a_subset_of_the_images_of_the_card_is_classified_far_above_pixels(tmp_path):
    few = ["--config.eval.train_images=400", "--config.eval.val_images=200"]
    found = measured(tmp_path, *few)
    assert found["encoder"]["k10"] > 0.85 and found["pixels"]["k10"] < 0.3
    assert found["pixels"]["k10"] < found["untrained"]["k10"] < 0.7  # random features see something


@pytest.mark.slow
def test_the_numbers_of_the_card_are_those_that_its_command_measures(tmp_path):
    found = measured(tmp_path)
    for k in (20, 200):
        told = re.search(rf"kNN, k = {k} \| ([\d.]+) .*\| ([\d.]+) \|", card())
        assert told
        assert abs(found["encoder"][f"k{k}"] - float(told[1])) < 0.005
        assert abs(found["pixels"][f"k{k}"] - float(told[2])) < 0.005


def test_what_is_shipped_is_small_and_says_what_it_is():
    for folder in pretrained.SHIPPED.iterdir():
        files = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert files.keys() == {"README.md", "config.json", "model.safetensors"}
        assert sum(files.values()) < 7.5e6
        name = f"zoo:{folder.name}"
        source = intake.open_source(name, "--model")
        model = whole.load(source, "the card")  # all arrays of its configuration, no others
        assert f"{tree.count(model.params) / 1e6:.2f} M parameters" in card(name)
        weights = intake.load(source, intake.build(source))
        assert np.isfinite(weights["position"]).all() and source.branch == "target"
        for promise in (f"`{name}`", "jepa-vl train", "jepa-vl eval", "seed", "licence"):
            assert promise in card(name), promise


def test_the_target_encoder_has_the_bits_of_the_run_and_differs_from_the_context_encoder():
    hashes = [tree_hash(encoder(branch)) for branch in ("target", "context")]
    assert hashes[0] == "4419c288cd39f122" and f"{hashes[0]}" in card()
    assert hashes[1] != hashes[0]


def encoder(branch):
    source = intake.open_source(NAME, "--model", branch)
    return intake.load(source, intake.build(source))


@pytest.mark.slow
def test_beside_it_stands_what_its_training_began_with():
    model = whole.load(intake.open_source(NAME, "--model"), "the test")
    first = whole.untrained(model)
    assert tree.diff(first.params, tree.flatten(model.params)) == []
    kernel, learnt = (m.params["encoder"]["patch_kernel"] for m in (first, model))
    assert np.std(kernel) == pytest.approx(192**-0.5, rel=0.05)  # train.init=fan_in
    np.testing.assert_array_equal(kernel, first.target["patch_kernel"])  # a copy
    assert not np.allclose(kernel, learnt)


def test_words_of_the_shipped_model_are_held_to_what_they_name_beside_their_floors(tmp_path):
    out = tmp_path / "card.json"
    few = ["--config.eval.train_images=64", "--config.eval.val_images=8"]
    few += ["--config.eval.batch_size=8", "--no-cache", "--json", str(out)]
    assert main(["eval", "--model", NAME, "--task", "grounding", *few]) == 0
    page = json.loads(out.read_text())
    (result,) = page["results"]
    assert page["kind"] == "a model of ours" and result["protocol"]["images"] == 8
    assert 0 < result["metrics"]["pointing"] < 1 and result["protocol"]["words"] > 20
    assert {"centre", "another_image", "shuffled_captions"} <= result["baselines"].keys()


def test_the_report_draws_the_shipped_model_and_says_what_it_cannot_show(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for room, name, count in (
        (pictures, "MASKED_IMAGES", 2), (pictures, "QUERIES", 2), (pictures, "SEARCHED", 16),
        (grounding, "IMAGES", 2), (grounding, "DRAWS", 2), (grounding, "POINTED", 8),
    ):  # fmt: skip
        monkeypatch.setattr(room, name, count)
    assert main(["report", "--model", NAME]) == 0
    html = Path("report_tcjepa-shapes.html").read_text()
    assert re.findall(r"<h2>(.+?)</h2>", html) == [
        "Masks", "Words on patches", "Pointing game", "Patch features as colours",
        "Nearest neighbours", "Left out", "Configuration",
    ]  # fmt: skip
    masks, stills, of_words, of_patches, neighbours = 1, 4, 2, 1, 1
    drawn = masks + stills + of_words + of_patches + neighbours
    assert html.count("data:image/png;base64,") == drawn
    data = json.loads(re.search(r'id="run">(.+?)</script>', html).group(1))
    assert data["model"] == NAME and 0 < data["pointing"]["all"]["maps"] < 1
    said = capsys.readouterr().out
    assert "left out: Result, Curves and Time" in said and "report_tcjepa-shapes.html" in said


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["eval", "--model", "HF", "--task", "knn,grounding"], "grounding needs a whole model"),
        (["report", "--model", "HF"], "(ijepa of transformers); the report needs a whole model"),
        (["report"], "give DIR, a run, or --model PATH"),
        (["report", "--model", NAME, "--workdir", "x"], "give DIR, a run, or --model PATH"),
        (["report", "--model", NAME, "--proof"], "--proof = '': of runs, not of --model"),
        (["report", "--model", "TORN"], "missing params/predictor/mask_token"),
    ],
)
def test_what_is_no_whole_model_is_refused_in_one_line(words, rule, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"HF": tmp_path / "hf", "TORN": tmp_path / "torn"}
    written(places["HF"], exports.encoder(), "hf")
    shutil.copytree(pretrained.locate(NAME, "--model"), places["TORN"])
    weights = places["TORN"] / "model.safetensors"
    kept = {n: x for n, x in load_file(weights).items() if n != "params/predictor/mask_token"}
    save_file(kept, weights)
    line = refused(capsys, *(str(places.get(word, word)) for word in words))
    assert rule in line
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob("*.json"))


def test_a_name_that_is_not_shipped_is_refused_with_those_that_are(capsys):
    with pytest.raises(ConfigError, match="did you mean 'zoo:tcjepa-shapes'"):
        pretrained.locate("zoo:tcjepa-shape", "init_from")
    assert "one of 'zoo:tcjepa-shapes'" in refused(capsys, "eval", "--model", "zoo:../data")
