"""Encoders that come in: every kind of folder and file gives the features that it was given."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa_vl.config import ConfigError
from jepa_vl.export import base, huggingface, safetensors, timm
from jepa_vl.models import intake
from jepa_vl.models.intake.source import HEADS
from tests import exports

KEY = "frozen.image"
FORMATS = {"hf": huggingface, "timm": timm, "safetensors": safetensors}


@pytest.fixture(scope="module")
def encoder():
    return exports.encoder()


def written(folder, encoder, form):
    folder.mkdir(parents=True, exist_ok=True)
    FORMATS[form].write(encoder, folder)
    return folder


def features(path, size=32, **how):
    source = intake.open_source(str(path), KEY, **how)
    module = intake.build(source, size)
    images = exports.images(size=size)
    return np.asarray(module.apply({"params": intake.load(source, module)}, images))


def refused(path, **how):
    with pytest.raises(ConfigError) as error:
        features(path, **how)
    assert error.value.key == KEY
    return str(error.value)


@pytest.mark.parametrize("form", FORMATS)
def test_each_folder_gives_the_features_that_left(form, encoder, tmp_path):
    found = features(written(tmp_path / form, encoder, form))
    expected = encoder.features(exports.images())
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    # The one file of it stands for the folder.
    np.testing.assert_array_equal(features(tmp_path / form / "model.safetensors"), found)


def test_a_file_of_weights_alone_is_read_with_the_heads_that_are_told(encoder, tmp_path):
    written(tmp_path / "timm", encoder, "timm")
    file = tmp_path / "weights.safetensors"
    tensors = load_file(tmp_path / "timm" / "model.safetensors")
    tensors |= {"head.weight": np.zeros((5, 32), np.float32), "head.bias": np.zeros(5, np.float32)}
    save_file(tensors, file)
    assert 32 not in HEADS  # the width of no preset
    assert "its width of 32 has is not known" in refused(file)
    expected = encoder.features(exports.images())
    assert np.abs(features(file, heads=2) - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(features(file, heads=4) - expected).max() > 1e-2  # as wrong as it can be


def test_positions_follow_the_image_size(encoder, tmp_path):
    hub, ours = (written(tmp_path / form, encoder, form) for form in ("hf", "safetensors"))
    larger = features(hub, 48)
    assert larger.shape == (3, 36, 32)
    np.testing.assert_allclose(features(ours, 48), larger, atol=1e-5)
    assert "33 px is no multiple of its patch 8" in refused(hub, size=33)


def test_of_timm_the_trap_of_sixteen_heads_is_known(encoder, tmp_path):
    folder = written(tmp_path / "timm", encoder, "timm")
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]
    heads = {"vit_base_patch16_gap_224": 16, "vit_base_patch16_224": 12, "vit_tiny_patch8_32": 3,
             "vit_small_patch14_dinov2": 6, "vit_giant_patch16_gap_224": 16}  # fmt: skip
    for name, wanted in heads.items():
        told = json.dumps({**config, "architecture": name})
        (folder / "config.json").write_text(told)
        if 32 % wanted:
            assert "how many heads" in refused(folder)
        else:
            assert intake.open_source(str(folder), KEY).shape.heads == wanted
    told = json.dumps({**config, "architecture": "vit_base_patch16_clip_224"})
    (folder / "config.json").write_text(told)
    assert "'vit_base_patch16_clip_224' is not covered" in refused(folder)


def test_class_tokens_and_layer_scale_of_timm_are_read_as_those_of_transformers(tmp_path):
    rng = np.random.default_rng(0)
    encoder = exports.encoder()
    written(tmp_path / "timm", encoder, "timm")
    tensors = load_file(tmp_path / "timm" / "model.safetensors")
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tensors |= {"cls_token": draw(1, 1, 32), "pos_embed": draw(1, 17, 32)}
    tensors |= {f"blocks.{i}.ls{k}.gamma": draw(32) for i in range(2) for k in (1, 2)}
    save_file(tensors, tmp_path / "dino.safetensors")
    source = intake.open_source(str(tmp_path / "dino.safetensors"), KEY, heads=2)
    assert source.shape.cls == 1 and source.shape.layer_scale
    params = intake.load(source, intake.build(source))
    np.testing.assert_array_equal(params["position"], tensors["pos_embed"][0])
    np.testing.assert_array_equal(params["cls"], tensors["cls_token"][0, 0])
    ls2 = params["block_1"]["scale2"]["scale"]
    np.testing.assert_array_equal(ls2, tensors["blocks.1.ls2.gamma"])


@pytest.mark.parametrize(
    ("branch", "start"), [("target", "target/"), ("context", "params/encoder/")]
)
def test_either_branch_of_a_run_comes_out_of_its_checkpoint(branch, start, tmp_path, monkeypatch):
    from jepa_vl.training import checkpoint, stored

    monkeypatch.setattr(checkpoint, "checksums", exports.by_numpy)
    workdir = exports.save_run(tmp_path / "run")
    one = stored.find(workdir)
    arrays = one.read(name for name in one.arrays if name.startswith(start))
    params = {name.removeprefix(start): x for name, x in arrays.items()}
    expected = base.Encoder(exports.config(), params, exports.FACTS).features(exports.images())
    found = features(workdir, branch=branch)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    for file in (workdir / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[:200])
    assert "its checkpoint 6 cannot be read" in refused(workdir, branch=branch)


def broken(folder, name):
    """A folder or file with one thing wrong, and what is said of it."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    told = json.loads(config.read_text())
    if name == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        return folder, "cannot be read"
    if name == "empty":
        weights.write_bytes(b"")
        return folder, "cannot be read"
    if name == "no weights":
        weights.unlink()
        return folder, "holds neither model.safetensors nor"
    if name == "index of nothing":
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
        return folder, "names no files of weights"
    if name == "broken config":
        config.write_text("{")
        return folder, "cannot be read"
    if name == "another architecture":
        config.write_text(json.dumps({**told, "model_type": "bert"}))
        return folder, "model_type = 'bert'; covered: 'vit' or"
    if name == "no sizes":
        config.write_text('{"model_type": "vit"}')
        return folder, "lacks or distorts 'hidden_size'"
    if name == "no kind":
        config.write_text("{}")
        return folder, "none of transformers"
    if name == "other sizes":
        config.write_text(json.dumps({**told, "hidden_size": 64}))
        return folder, "misshapen embeddings.patch_embeddings.projection.bias"
    if name == "fewer blocks":
        config.write_text(json.dumps({**told, "num_hidden_layers": 1}))
        return folder, "unexpected encoder.layer.1.attention.attention.key.bias (would be block_1/"
    file = folder.parent / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, file)
    return file, "holds no patch_embed.proj.weight"


@pytest.mark.parametrize(
    "name",
    ["truncated", "empty", "no weights", "index of nothing", "broken config", "no sizes", "no kind",
     "another architecture", "other sizes", "fewer blocks", "a file of something else"],
)  # fmt: skip
def test_what_cannot_be_an_encoder_is_refused_with_its_reason(name, encoder, tmp_path):
    path, rule = broken(written(tmp_path / "hf", encoder, "hf"), name)
    assert rule in refused(path)


def test_tensors_of_odd_ranks_are_misshapen_and_no_traceback(encoder, tmp_path):
    written(tmp_path / "timm", encoder, "timm")
    tensors = load_file(tmp_path / "timm" / "model.safetensors")
    tensors["blocks.0.attn.qkv.bias"] = np.zeros(5, np.float32)
    tensors["blocks.1.attn.qkv.weight"] = np.zeros((), np.float32)
    save_file(tensors, tmp_path / "timm" / "model.safetensors")
    line = refused(tmp_path / "timm")
    assert "misshapen blocks.0.attn.qkv.bias: block_0/attn/k/bias is (32,), not (5,)" in line
    assert "misshapen blocks.1.attn.qkv.weight: block_1/attn/q/kernel is (32, 32), not ()" in line
    assert "missing" not in line
    tensors["patch_embed.proj.weight"] = np.zeros((3, 3), np.float32)
    save_file(tensors, tmp_path / "timm" / "model.safetensors")
    assert "patch_embed.proj.weight has shape (3, 3), not 4 axes" in refused(tmp_path / "timm")


def test_files_that_are_not_there_and_branches_that_do_not_exist_are_named(tmp_path):
    assert "no such file" in refused(tmp_path / "a.pth.tar")
    assert "no such folder" in refused(tmp_path / "a")
    with pytest.raises(ConfigError, match="one of 'target', 'context'"):
        intake.open_source(str(tmp_path), KEY, branch="ema")
