"""Training with a pretrained text tower: frozen beside the state, trained further, or cached."""

import dataclasses
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jepa_vl import objectives, sharding, tree
from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import captions, embeddings, pipeline, sources
from jepa_vl.models import intake
from jepa_vl.training import state as train_state
from jepa_vl.training.checkpoint import load
from jepa_vl.training.health import to_device
from jepa_vl.training.step import make_step
from tests import towers
from tests.tiny import tiny

# Runs are compared with each other; no promise here hangs on the compiler's optimisations.
pytestmark = pytest.mark.usefixtures("quick_module")

CONFIG = ("--config", "tests/configs_tiny.py")


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A random BERT with the tokenizer for it; needs torch to be made."""
    folder = tmp_path_factory.mktemp("bert")
    towers.bert(folder)
    return folder


def config_of(tower, **overrides):
    keys = {"text.kind": "bert", "text.path": str(tower), "text.words": 14, "mesh.data": 1}
    return tiny(**{**keys, **overrides})


class Bench:
    """A state, its frozen weights and step on some devices."""

    def __init__(self, config, devices=1):
        self.config, self.objective = config, objectives.build(config)
        self.mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
        spec = train_state.batch_spec(config)
        self.like = train_state.abstract(config, self.objective, spec, self.mesh)
        self.state = train_state.create(config, self.objective, spec, self.mesh)
        self.frozen = sharding.place(self.objective.load_frozen(), self.mesh)
        self.step = make_step(config, self.objective, self.mesh, self.like)

    def losses(self, steps):
        out, source = [], sources.open_sources(self.config)[0]
        with pipeline.make_batches(self.config, source, 0) as stream, jax.set_mesh(self.mesh):
            for _ in range(steps):
                batch = to_device(next(stream), self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, batch)
                out.append(float(metrics["loss"]))
        return out


@pytest.fixture(scope="module")
def computed(tower):
    """Losses of three steps with the tower in the step, on one device."""
    return Bench(config_of(tower)).losses(3)


def test_a_frozen_tower_is_in_no_part_of_the_state_and_never_changes(tower):
    bench = Bench(config_of(tower))
    names = tree.flatten(bench.state)
    assert not any("text" in name or "word_" in name for name in names)
    before = jax.tree.map(np.array, bench.frozen)
    bench.losses(2)
    for name, leaf in tree.flatten(bench.frozen).items():
        np.testing.assert_array_equal(leaf, tree.flatten(before)[name])
    assert tree.flatten(bench.frozen)["text/block_1/attn/q/kernel"].shape == (32, 32)
    assert bench.step._cache_size() == 1


def test_frozen_weights_are_sharded_by_the_same_table(tower, computed):
    bench = Bench(config_of(tower, **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}), 8)
    spec = tree.flatten(bench.frozen)["text/block_0/attn/q/kernel"].sharding.spec
    assert spec == PartitionSpec("fsdp", "tensor")
    np.testing.assert_allclose(bench.losses(3), computed, rtol=2e-4)


def test_captions_read_without_their_padding_train_the_same(tower, computed):
    """On a mesh, all of which must agree on the branch: at 28 words all fit, at 14 few."""
    for room in (28, 14):
        keys = {"text.packed": room, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
        bench = Bench(config_of(tower, **keys), 8)
        np.testing.assert_allclose(bench.losses(3), computed, rtol=2e-4)


def test_a_tower_that_is_trained_starts_from_its_files_and_moves(tower, computed):
    bench = Bench(config_of(tower, **{"text.frozen": "no"}))
    assert bench.frozen == {}
    frozen = tree.flatten(Bench(config_of(tower)).frozen)
    for name, leaf in tree.flatten({"text": bench.state.params["text"]}).items():
        np.testing.assert_array_equal(leaf, frozen[name], err_msg=name)
    losses = bench.losses(3)
    np.testing.assert_allclose(losses[0], computed[0], rtol=1e-5)
    moved = bench.state.params["text"]["block_0"]["attn"]["q"]["kernel"]
    assert not np.array_equal(moved, frozen["text/block_0/attn/q/kernel"])


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_training_from_the_cache_is_training_with_the_tower(
    tower, computed, tmp_path, capsys, dtype, rtol
):
    keys = {"kind": "bert", "path": tower, "words": 14, "cache_dtype": dtype}
    words = [f"--config.text.{name}={value}" for name, value in keys.items()]
    assert main(["data", "embed", *CONFIG, "--out", str(tmp_path), *words]) == 0
    assert "--config.text.kind=cached" in capsys.readouterr().out
    cached = {"text.kind": "cached", "text.path": str(tmp_path)}
    bench = Bench(config_of(tower, **cached))
    assert bench.frozen == {} and "text" not in bench.state.params
    np.testing.assert_allclose(bench.losses(3), computed, rtol=rtol)
    one = dataclasses.replace(bench.config, data=dataclasses.replace(bench.config.data, workers=1))
    source = sources.open_sources(one)[0]
    with pipeline.make_batches(one, source, 0) as stream:
        batch = next(stream)
    assert batch["word_states"].dtype == embeddings.DTYPES[dtype]
    assert captions.build(one.text).piece_words("a red circle")[1:4] == ["a", "red", "circle"]


@pytest.mark.parametrize("dtype", list(embeddings.DTYPES))
def test_a_cache_gives_back_what_was_written_to_its_precision(tower, tmp_path, dtype):
    text = config_of(tower, **{"text.cache_dtype": dtype}).text
    rng = np.random.default_rng(0)
    rows = {f"caption {i}": rng.normal(size=(3 + i % 5, 32)) for i in range(20)}
    spec = captions.build(text).tokenize.spec
    embeddings.write(tmp_path, text, spec, rows.items())
    cached = dataclasses.replace(text, kind="cached", path=str(tmp_path))
    cache = pickle.loads(pickle.dumps(embeddings.EmbeddingCache(cached)))
    for caption, states in rows.items():
        expected = states.astype(embeddings.DTYPES[dtype])
        np.testing.assert_array_equal(cache.states(caption), expected)


def test_a_cache_that_does_not_fit_is_refused(tower, tmp_path, capsys):
    folder = tmp_path / "cache"
    copy = tmp_path / "tower"
    shutil.copytree(tower, copy)
    text = config_of(copy).text
    reader = captions.build(text)
    rows = [("a red circle", np.ones((5, 32), np.float32))]
    embeddings.write(folder, text, reader.tokenize.spec, rows)
    cached = dataclasses.replace(text, kind="cached", path=str(folder))
    cache = embeddings.EmbeddingCache(cached)
    assert cache.states("a red circle").shape == (5, 32)
    with pytest.raises(ConfigError, match="no embedding of the caption 'a blue circle'"):
        cache.states("a blue circle")
    with pytest.raises(ConfigError, match="made with 14 words"):
        embeddings.read_meta(dataclasses.replace(cached, words=9))
    with open(copy / "model.safetensors", "ab") as stream:
        stream.write(b"changed")
    embeddings.fingerprint.cache_clear()
    with pytest.raises(ConfigError, match="has changed since"):
        embeddings.read_meta(cached)
    shutil.rmtree(copy)
    embeddings.fingerprint.cache_clear()
    embeddings.locate.cache_clear()
    assert embeddings.read_meta(cached)["captions"] == 1  # the tower itself is not needed
    with open(folder / "tokenizer.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not the one"):
        embeddings.read_meta(cached)
    assert main(["data", "embed", *CONFIG, "--out", str(folder)]) == 5
    assert "text.kind = 'hashed'" in capsys.readouterr().err


def test_a_run_resumes_with_the_same_tower_alone_wherever_it_lies(tower, tmp_path, capsys):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(tower, moved)
    words = ["train", *CONFIG, "--workdir", str(workdir), "--config.text.words=14"]
    words += ["--config.text.kind=bert", "--config.train.steps=2", "--config.checkpoint.every=1"]
    assert main([*words, f"--config.text.path={tower}"]) == 0
    assert json.loads((workdir / "result.json").read_text())["text_gain"] is not None
    (workdir / "result.json").unlink()
    assert main([*words, f"--config.text.path={moved}"]) == 0
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    embeddings.fingerprint.cache_clear()
    assert main([*words, f"--config.text.path={moved}"]) == 5
    assert "trained on other data" in capsys.readouterr().err
    assert main(["report", "--workdir", str(workdir)]) == 0
    assert "Words on patches" in (workdir / "report.html").read_text()

    _, state, _ = load(workdir)
    source = intake.open_source(str(workdir), "image.path")
    module = intake.build(source, 32)
    params = intake.load(source, module)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    expected = objectives.build(config_of(tower)).encoder.apply({"params": state.target}, pixels)
    np.testing.assert_allclose(module.apply({"params": params}, pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"text.kind": "t5"}, "text.path = '': kind 't5' needs it"),
        ({"text.path": "x"}, "text.path = 'x': kind 'hashed' reads no files; leave it empty"),
        ({"text.frozen": "yes"}, "text.frozen = 'yes': kind 'hashed' allows 'no' alone"),
        (
            {"text.kind": "cached", "text.path": "x", "text.frozen": "no"},
            "text.frozen = 'no': kind 'cached' allows 'yes' alone",
        ),
    ],
)
def test_combinations_without_meaning_are_refused(keys, rule):
    with pytest.raises(ConfigError) as error:
        tiny(**keys)
    assert str(error.value) == rule


def test_more_words_than_positions_are_refused(tower):
    with pytest.raises(ConfigError, match=r"text\.words = 41: at most 40"):
        objectives.build(config_of(tower, **{"text.words": 41}))
