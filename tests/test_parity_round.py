"""Exports on real photographs at 224 pixels and another size, and weights that come and go."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from jepa_vl.cli.main import main
from jepa_vl.export import write
from tests import exports, towers
from tests.shared import photographs

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [224, 160])
@pytest.mark.parametrize("form", ["hf", "stablehlo", "onnx"])
def test_features_of_photographs_are_the_same_in_every_library(form, size, tmp_path):
    if form == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="pip install -e '.[export]'")
    encoder = exports.encoder(**{"encoder.image_size": size, "encoder.patch_size": 16})
    told = write.export(encoder, form, tmp_path / "out", photographs(size))
    assert told.largest < 1e-4 < told.scale


def test_what_transformers_wrote_comes_in_and_leaves_bit_by_bit(tmp_path):
    model = towers.ijepa()  # its positions are its own
    model.save_pretrained(tmp_path / "theirs")
    pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(str(pixels).replace("'", '"'))
    out = tmp_path / "ours"
    argv = ["export", "--model", str(tmp_path / "theirs"), "--format", "hf", "--out", str(out)]
    assert main(argv) == 0
    first, second = (load_file(f / "model.safetensors") for f in (tmp_path / "theirs", out))
    assert first.keys() == second.keys() and len(first) > 30
    for name, x in first.items():
        assert x.dtype == second[name].dtype
        np.testing.assert_array_equal(x, second[name], err_msg=name)
