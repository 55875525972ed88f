"""Exports against transformers and ONNX Runtime, each in a process of its own."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from jepa_vl.data.transforms import centre_crop
from jepa_vl.export import write
from jepa_vl.models import frozen_vit, intake, vit
from tests import exports

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def encoder():
    return exports.encoder()


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    """The Hugging Face export; that it exists says that its features were the same."""
    out = tmp_path_factory.mktemp("hf") / "out"
    told = write.export(encoder, "hf", out, exports.images())
    assert told.largest < 1e-5 < told.scale and set(told.versions) == {"transformers", "torch"}
    return out


def test_the_files_of_a_hub_model_say_what_was_trained(folder, encoder):
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert (config["layer_norm_eps"], config["num_attention_heads"]) == (1e-6, 2)
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    assert tuple(pixels["image_mean"]) == vit.IMAGENET_MEAN
    assert tuple(pixels["image_std"]) == vit.IMAGENET_STD
    with safe_open(folder / "model.safetensors", "np") as opened:
        names = set(opened.keys())
        assert opened.metadata() == {"format": "pt"}
    assert "encoder.layer.1.attention.attention.query.weight" in names
    assert len(names) == len(encoder.params) + 1  # and the positions


def test_what_leaves_to_transformers_comes_back_bit_by_bit(folder, encoder):
    source = intake.open_source(str(folder), "image.path")
    module = intake.build(source, 32)
    params = intake.load(source, module)
    back = frozen_vit.as_vit(params, encoder.config.encoder.grid, ("image.path", str(folder)))
    found = exports.tree.flatten(back)
    assert found.keys() == encoder.params.keys()
    for name, x in encoder.params.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_whole_photographs_are_cropped_as_our_evaluation_crops_them(folder):
    from transformers import AutoImageProcessor

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 12, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(small).resize((192, 96), Image.Resampling.BICUBIC))
    processor = AutoImageProcessor.from_pretrained(folder)
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = np.asarray(vit.normalise(centre_crop(image, 32)[None]))[0]
    assert theirs.shape == ours.shape
    # A crop of a rounded resize, and a resize of the crop: a level or two of 255 apart.
    assert np.abs(theirs - ours).mean() < 0.02 < np.abs(ours).mean()


def test_onnx_gives_the_same_features(encoder, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="pip install -e '.[export]'")
    told = write.export(encoder, "onnx", tmp_path / "out", exports.images())
    assert told.largest < 1e-5 < told.scale and set(told.versions) == {"onnxruntime"}
    assert b".py" not in (tmp_path / "out" / "encoder.onnx").read_bytes()  # whose paths are ours
