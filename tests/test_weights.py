"""Folders, names and shapes of foreign weights: what fits is read, what does not is listed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa_vl import pretrained, sharding
from jepa_vl.config import ConfigError
from jepa_vl.models import bert, frozen_vit, gte, t5, weights
from jepa_vl.models.weights import Rule, dense, norm
from jepa_vl.schema import MeshConfig

WHERE = ("text.path", "folder")
RULES = [
    *dense(r"layer\.(\d+)\.qkv", *(rf"block_\1/{name}" for name in "qkv")),
    *norm(r"layer\.(\d+)\.ln", r"block_\1/norm"),
    Rule("positions", ("position",), weights.flat),
    Rule("pooler.*"),
]


def tensors():
    rng = np.random.default_rng(0)
    names = {"layer.0.qkv.weight": (12, 3), "layer.0.qkv.bias": (12,), "layer.0.ln.gamma": (3,),
             "layer.0.ln.bias": (3,), "positions": (1, 5, 3), "pooler.weight": (2,)}  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}


def like():
    part = {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}
    scaled = {"scale": np.zeros(3), "bias": np.zeros(3)}
    block = {"q": part, "k": part, "v": part, "norm": scaled}
    return {"block_0": block, "position": np.zeros((5, 3))}


def load(folder, dtype=np.float32):
    return weights.load(folder, RULES, like(), WHERE, dtype)


def test_packed_and_transposed_tensors_arrive_where_they_belong(tmp_path):
    given = tensors()
    save_file(given, tmp_path / "model.safetensors")
    found = load(tmp_path)
    for i, name in enumerate("qkv"):
        rows = slice(4 * i, 4 * i + 4)
        part = found["block_0"][name]
        np.testing.assert_array_equal(part["kernel"], given["layer.0.qkv.weight"][rows].T)
        np.testing.assert_array_equal(part["bias"], given["layer.0.qkv.bias"][rows])
    np.testing.assert_array_equal(found["block_0"]["norm"]["scale"], given["layer.0.ln.gamma"])
    np.testing.assert_array_equal(found["position"], given["positions"][0])


def test_shards_are_read_by_their_index(tmp_path):
    given = tensors()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(given)}
    for file in set(files.values()):
        save_file({n: given[n] for n in given if files[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    save_file(given, tmp_path / "one.safetensors")
    sharded = load(tmp_path)
    (tmp_path / "one.safetensors").rename(tmp_path / "model.safetensors")
    index.unlink()
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(load(tmp_path)), strict=True)
    )


def test_bfloat16_files_and_bfloat16_storage(tmp_path):
    given = {name: x.astype(jnp.bfloat16) for name, x in tensors().items()}
    save_file(given, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")["positions"].dtype == jnp.bfloat16
    whole, half = load(tmp_path), load(tmp_path, jnp.bfloat16)
    assert whole["position"].dtype == np.float32 and half["position"].dtype == jnp.bfloat16
    assert half["block_0"]["q"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(whole["position"], half["position"].astype(np.float32))


def test_missing_unexpected_and_misshapen_tensors_are_listed_and_refused(tmp_path):
    given = tensors()
    given["stranger"] = given.pop("layer.0.ln.gamma")
    given["layer.7.qkv.weight"] = given["layer.0.qkv.weight"]
    given["positions"] = given["positions"][:, :4]
    save_file(given, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as error:
        load(tmp_path)
    text = str(error.value)
    assert "text.path = 'folder'" in text
    assert "missing block_0/norm/scale" in text
    assert "unexpected stranger" in text
    assert "unexpected layer.7.qkv.weight (would be block_7/q/kernel)" in text
    assert "misshapen positions: position is (5, 3), not (4, 3)" in text
    assert "missing position" not in text


def test_folders_without_weights_and_broken_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds neither"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("nowhere", "no such folder"),
        ("package:no_such_package_here", "no such Python package"),
        ("package:json", "must hold one folder with config.json"),
    ],
)
def test_paths_that_lead_nowhere_name_the_key_and_the_rule(path, rule):
    with pytest.raises(ConfigError, match=rule) as error:
        pretrained.locate(path, "text.path")
    assert error.value.key == "text.path"


def test_of_the_hub_a_shape_takes_the_configuration_alone(monkeypatch, tmp_path):
    asked = []

    def cached_file(name, file, **_):
        asked.append((name, file))
        (tmp_path / file).write_text("{}")
        return str(tmp_path / file)

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    assert pretrained.locate("hub:a/b", "text.path", weights=False) == tmp_path
    assert asked == [("a/b", "config.json")]
    pretrained.locate("hub:a/b", "text.path")
    assert ("a/b", "model.safetensors") in asked


def test_every_parameter_of_the_towers_has_one_row_in_the_table_of_shardings():
    sizes = {"width": 8, "depth": 1, "heads": 2, "hidden": 16}
    shapes = {
        t5.T5Encoder: t5.T5Shape(9, 8, 1, 2, 4, 16, "gated-gelu", 8, 16, 1e-6),
        bert.BertEncoder: bert.BertShape(9, **sizes, positions=6, types=2, eps=1e-6),
        gte.GteEncoder: gte.GteShape(
            9, **sizes, positions=6, types=1, eps=1e-6, theta=9, stretch=1
        ),
    }
    ids, mask = np.zeros((1, 1, 6), np.int32), np.ones((1, 1, 6), bool)
    trees = [weights.expected(module(shape), ids, mask) for module, shape in shapes.items()]
    eye = frozen_vit.VitShape(2, 4, **sizes, eps=1e-6, cls=1, layer_scale=True)
    trees.append(weights.expected(frozen_vit.FrozenViT(eye), np.zeros((1, 8, 8, 3), np.uint8)))
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    for parameters in trees:
        specs = jax.tree.leaves(sharding.state_shardings({"tower": parameters}, mesh))
        assert len(specs) == len(jax.tree.leaves(parameters))


def test_the_hub_is_asked_only_when_spelled_so_and_its_absence_is_one_clear_line(monkeypatch):
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
    with pytest.raises(ConfigError, match="cannot be had from the hub") as error:
        pretrained.locate("hub:nobody/no-such-model-at-all", "text.path")
    assert "\n" not in str(error.value) and "offline, give a folder" in str(error.value)


def test_a_fingerprint_follows_the_bytes_and_not_the_place(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, value in zip(folders, (1, 1, 2), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text(folder.name)
        save_file({"x": np.full(3, value, np.float32)}, folder / "model.safetensors")
    a, b, c = (pretrained.fingerprint(str(folder), "text.path") for folder in folders)
    assert a == b != c
