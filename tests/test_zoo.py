"""The models that are shipped load by name, and their cards tell what they reach."""

import json
import re

import numpy as np
import pytest

from jepa_vl import pretrained
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.models import intake
from tests.test_cli import refused

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
        assert sum(files.values()) < 3e6
        name = f"zoo:{folder.name}"
        source = intake.open_source(name, "--model")
        weights = intake.load(source, intake.build(source))
        assert np.isfinite(weights["position"]).all() and source.branch == "target"
        for promise in (f"`{name}`", "jepa-vl train", "jepa-vl eval", "seed", "licence"):
            assert promise in card(name), promise


def test_a_name_that_is_not_shipped_is_refused_with_those_that_are(capsys):
    with pytest.raises(ConfigError, match="did you mean 'zoo:tcjepa-shapes'"):
        pretrained.locate("zoo:tcjepa-shape", "init_from")
    assert "one of 'zoo:tcjepa-shapes'" in refused(capsys, "eval", "--model", "zoo:../data")
