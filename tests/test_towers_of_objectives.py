"""Each objective with pretrained towers: T5 for its captions, I-JEPA or DINOv2 for TI-JEPA."""

import json
import shutil

import jax
import numpy as np
import pytest

from jepa_vl import objectives, tree
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import embeddings, pipeline, sources
from jepa_vl.evaluators import features
from jepa_vl.models import intake, text
from tests import towers
from tests.test_step import Bench, batches
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
METHODS = ("tcjepa", "tijepa", "crossmodal", "contrastive")
TRAINED = ("crossmodal", "contrastive")
# What the image towers of tests/towers.py are.
VIT = {
    "encoder.width": 48, "encoder.depth": 2, "encoder.heads": 3, "encoder.mlp_width": 96,
}  # fmt: skip


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A random T5 with the tokenizer for it."""
    folder = tmp_path_factory.mktemp("t5")
    towers.t5(folder)
    return folder


def saved(folder, kind):
    """The folder of a random image tower; needs torch to be made."""
    towers.IMAGE_MAKERS[kind]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["ijepa", "dinov2"])
def image_tower(request, tmp_path_factory):
    return saved(tmp_path_factory.mktemp(request.param), request.param)


def config_of(method, t5, **overrides):
    keys = {"text.kind": "t5", "text.path": str(t5), "text.words": 14, "mesh.data": 1}
    return tiny(objective=method, **{**keys, "tijepa.width": 16, **overrides})


@pytest.mark.parametrize("method", METHODS)
def test_each_objective_takes_two_steps_with_a_t5_trained_or_frozen_as_is_its_own(method, t5):
    bench = Bench(config_of(method, t5))
    trained = method in TRAINED
    assert ("text" in bench.state.params, "text" in bench.frozen) == (trained, not trained)
    files = tree.flatten(text.load(bench.config.text))
    parts = [bench.state.params if trained else bench.frozen]
    parts += [bench.state.target] if method == "crossmodal" else []
    for part in parts:
        for name, leaf in tree.flatten(part["text"]).items():
            np.testing.assert_array_equal(leaf, files[name], err_msg=name)
    metrics = bench.run(batches(bench.config, 2))
    assert all(np.isfinite(m["loss"]) and m["bad_steps"] == 0 for m in metrics)
    now = (bench.state.params if trained else bench.frozen)["text"]["block_0"]["attn"]["q"]
    same = np.array_equal(now["kernel"], files["block_0/attn/q/kernel"])
    assert same is not trained and bench.step._cache_size() == 1


@pytest.mark.parametrize("method", ["tijepa", "crossmodal", "contrastive"])
def test_a_frozen_tower_is_in_no_part_of_the_state_and_may_be_a_cache(method, t5, tmp_path):
    keys = {"kind": "t5", "path": t5, "words": 14, "cache_dtype": "float32"}
    flags = [f"--config.text.{name}={value}" for name, value in keys.items()]
    embed = ["data", "embed", "--config", "tests/configs_tiny.py", "--out", str(tmp_path)]
    assert main([*embed, *flags, "--config.data.train_size=16"]) == 0
    few = {"data.train_size": 16, "text.frozen": "yes"}
    computed = Bench(config_of(method, t5, **few))
    assert not any("relative_bias" in name for name in tree.flatten(computed.state))
    cached = {"text.kind": "cached", "text.path": str(tmp_path)}
    read = Bench(config_of(method, t5, **few, **cached))
    assert "text" not in read.frozen
    losses = [[m["loss"] for m in b.run(batches(b.config, 2))] for b in (computed, read)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_crossmodal_hides_words_from_a_frozen_tower_too(t5):
    keys = {"text.frozen": "yes", "crossmodal.context_fraction": 0.5, "train.batch_size": 4}
    objective = objectives.build(config_of("crossmodal", t5, **keys))
    batch, frozen = batches(objective.config, 1)[0], objective.load_frozen()
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    sides = jax.jit(objective.sides)
    target, key = objective.target_of(params), jax.random.key(1)
    assert set(target) == {"image"}
    own = sides(params, target, frozen, batch, key)[1]
    asked = np.asarray(own.tgt_valid).reshape(batch["word_ids"].shape)
    words = np.where(asked, batch["word_ids"] % 50 + 3, batch["word_ids"])
    other = sides(params, target, frozen, batch | {"word_ids": words}, key)[1]
    shown = np.asarray(own.own.valid)
    assert shown.any() and asked.any()
    np.testing.assert_array_equal(own.own.states[shown], other.own.states[shown])
    assert not np.array_equal(own.targets, other.targets)


def behind(image_tower, **overrides):
    keys = VIT | {"frozen.image": str(image_tower), "mesh.data": 1}
    return tiny(objective="tijepa", **{**keys, **overrides})


def test_tijepa_trains_and_is_evaluated_behind_a_pretrained_image_tower(image_tower):
    bench = Bench(behind(image_tower))
    metrics = bench.run(batches(bench.config, 2))
    assert all(np.isfinite(m["loss"]) and m["bad_steps"] == 0 for m in metrics)
    assert metrics[0]["target_std"] > 0
    image = bench.objective.image
    source = intake.open_source(str(image_tower), "frozen.image")
    module = intake.build(source, 32)
    params = intake.load(source, module)
    held_out = sources.open_sources(bench.config)[1]
    pixels = next(pipeline.eval_batches(bench.config, held_out, np.arange(4), 4))["image"]
    found = image.all_patches(bench.frozen, {"image": pixels})
    np.testing.assert_array_equal(found, module.apply({"params": params}, pixels))
    encode = features.make_encode(bench.objective.encoder, bench.mesh)
    pooled = encode(bench.objective.encoder_params(bench.state.target, bench.frozen), pixels)
    assert pooled.shape == (4, 16) and np.std(pooled, axis=0).max() > 1e-4


def test_what_a_frozen_image_tower_sees_of_visible_patches_is_nothing_but_these(image_tower):
    config = behind(image_tower, **{"masks.mode": "reference",
                                                         "masks.min_keep": 0})  # fmt: skip
    image = objectives.build(config).image
    frozen, batch = image.load_frozen(), batches(config, 1)[0]
    index, valid = batch["ctx_idx"], batch["ctx_valid"]
    hidden = np.ones((len(index), 16), bool)
    for row, (i, v) in enumerate(zip(index, valid, strict=True)):
        hidden[row, i[v]] = False
    pixels = hidden.reshape(-1, 4, 4).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    other = batch | {"image": np.where(pixels, 255 - batch["image"], batch["image"])}
    seen, again = (np.asarray(image.visible_patches(frozen, b)) for b in (batch, other))
    np.testing.assert_array_equal(seen[valid], again[valid])
    everything = np.broadcast_to(np.arange(16, dtype=np.int32)[::-1], (len(index), 16))
    turned = image.visible_patches(frozen, {"image": batch["image"], "ctx_idx": everything})
    whole = np.asarray(image.all_patches(frozen, batch))
    np.testing.assert_allclose(turned, whole[:, ::-1], atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("changed", "gap"),
    [
        ({"encoder.width": 96, "encoder.mlp_width": 96}, "encoder.width = 96 (there: 48)"),
        ({"encoder.patch_size": 4}, "encoder.patch_size = 4 (there: 8)"),
        ({"encoder.image_size": 64}, "encoder.image_size = 64 (there: 32)"),
    ],
)
def test_an_encoder_that_describes_another_image_tower_is_refused(image_tower, changed, gap):
    with pytest.raises(ConfigError) as error:
        objectives.build(behind(image_tower, **changed))
    assert (error.value.key, error.value.value) == ("frozen.image", str(image_tower))
    assert error.value.rule == f"encoder must describe this tower, but {gap}"


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("tijepa", {"tijepa.width": 0}, r"tijepa.width = 0: to be given with text.kind 't5'"),
        ("tijepa", {"tijepa.parity": True}, r"tijepa.width = 16: 32, that of the words"),
        ("tijepa", {"frozen.text": "run"}, r"frozen.text = 'run': for text.kind 'hashed' alone"),
        ("tijepa", {"text.frozen": "no"}, r"text.frozen = 'no': objective 'tijepa' allows 'yes'"),
        ("contrastive", {"text.kind": "bert"}, r"model_type = 't5'; covered: 'bert'"),
        (
            "crossmodal",
            {"text.kind": "cached", "crossmodal.context_fraction": 0.5},
            r"crossmodal.context_fraction = 0.5: 0 with text.kind 'cached'",
        ),
    ],
)
def test_towers_that_an_objective_cannot_use_are_refused(method, keys, message, t5):
    with pytest.raises(ConfigError, match=message):
        objectives.build(config_of(method, t5, **keys))


def test_a_run_resumes_with_the_same_image_tower_alone(tmp_path, capsys):
    moved, workdir = tmp_path / "moved", tmp_path / "run"
    tower = saved(tmp_path / "tower", "ijepa")
    shutil.copytree(tower, moved)
    options = VIT | {"train.steps": 2, "checkpoint.every": 1, "mesh.data": 8}
    words = ["train", "--config", "tests/configs_tiny.py:objective=tijepa", "--workdir"]
    words += [str(workdir), *(f"--config.{name}={value}" for name, value in options.items())]
    assert main([*words, f"--config.frozen.image={tower}"]) == 0
    result = json.loads((workdir / "result.json").read_text())
    assert isinstance(result["knn"]["target"], float)
    (workdir / "result.json").unlink()
    assert main([*words, f"--config.frozen.image={moved}"]) == 0
    with open(moved / "model.safetensors", "ab") as stream:
        stream.write(b"changed")
    embeddings.fingerprint.cache_clear()
    assert main([*words, f"--config.frozen.image={moved}"]) == 5
    assert "frozen.image: " in capsys.readouterr().err
