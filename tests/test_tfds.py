"""Promises of TensorFlow Datasets as a source: read by name, at random, without TensorFlow."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import pipeline, sources, transforms
from jepa_vl.data.shapes_world import ShapesWorld
from tests.shapes_tfds import CLASSES, prepare
from tests.tiny import tiny


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def config_of(data_dir: Path, **values: Any) -> Config:
    given = {
        "data.kind": "tfds", "data.path": str(data_dir), "data.name": "shapes_tfds",
        "data.caption_keys": ("captions.text",), "eval.split": "validation",
    }  # fmt: skip
    return tiny(**{**given, **values})


def test_a_dataset_is_read_by_its_name_with_nested_captions_and_class_names(data_dir):
    train, held_out = sources.open_sources(config_of(data_dir))
    assert (len(train), len(held_out)) == (24, 8)
    assert train.classes == tuple(sorted(CLASSES)) == held_out.classes
    for part, split in ((train, "train"), (held_out, "val")):
        world = ShapesWorld(0, len(part), 32, split)
        truth = {record["key"]: record for record in map(world.__getitem__, range(len(part)))}
        for index in range(len(part)):
            record = part[index]
            true = truth.pop(record["key"])
            assert record["captions"] == true["captions"]
            assert part.classes[record["label"]] == world.classes[true["label"]]
            assert (transforms.decode(record["image"], "k") == true["image"]).all()
        assert not truth
    assert train.name == "tfds/shapes_tfds/train"


def test_workers_read_the_same_batches_and_slices_are_splits(data_dir):
    batches = []
    for workers in (0, 1):
        config = config_of(data_dir, **{"data.workers": workers})
        with pipeline.make_batches(config, sources.open_sources(config)[0], 0) as stream:
            batches.append(list(itertools.islice(stream, 3)))
    for a, b in zip(*batches, strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    parts = {"data.split": "train[:16]", "eval.split": "train[16:]"}
    train, held_out = sources.open_sources(config_of(data_dir, **parts))
    keys = [{part[i]["key"] for i in range(len(part))} for part in (train, held_out)]
    assert [len(part) for part in keys] == [16, 8] and not keys[0] & keys[1]
    copy = pickle.loads(pickle.dumps(train))
    assert copy.fingerprint == train.fingerprint != held_out.fingerprint and copy[3] == train[3]


def test_reading_needs_neither_tensorflow_nor_jax(data_dir):
    code = f"""
import sys
from jepa_vl.data.tfds import TfdsSource
source = TfdsSource({str(data_dir)!r}, "shapes_tfds", ("captions.text",), "label")
print(len(source), len(source[0]["captions"]) > 1)
print({{"jax", "tensorflow", "torch"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "True", "set()"]


@pytest.mark.parametrize(
    ("values", "key", "word"),
    [
        ({"data.name": "nothing_here"}, "data.name", "tfds build nothing_here"),
        ({"data.name": "coco_captions"}, "data.name", "tfds build coco_captions"),
        ({"data.name": "shapes_tfds:9.9.9"}, "data.name", "no dataset of this name"),
        ({"data.path": "/nowhere"}, "data.path", "no folder"),
        ({"data.split": "test"}, "data.split", "train, validation"),
        ({"eval.split": "test"}, "eval.split", "train, validation"),
        ({"data.split": "train[:0]"}, "data.split", "no record"),
        ({"data.split": "train[x"}, "data.split", "parsing split"),
        ({"data.image_keys": ("photo",)}, "data.image_keys", "image features are: image"),
        ({"data.caption_keys": ("captions",)}, "data.path", "'captions' is neither"),
        ({"data.caption_keys": ("text",)}, "data.caption_keys", "captions.text"),
        ({"data.label_key": "captions.text"}, "data.path", "'captions.text' is neither"),
    ],
)
def test_errors_name_the_dataset_split_or_feature(data_dir, values, key, word):
    with pytest.raises(ConfigError) as caught:
        sources.open_sources(config_of(data_dir, **values))
    assert caught.value.key == key and word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_of_sequential_files_or_with_damage_is_refused(tmp_path):
    prepare(tmp_path / "good")
    for file in (tmp_path / "good").rglob("*-train.array_record*"):
        whole = file.read_bytes()
        file.write_bytes(whole[:3000] + bytes(2000) + whole[5000:])
    with pytest.raises(ConfigError, match=r"shapes_tfds: record \d+ of split train") as caught:
        sources.open_sources(config_of(tmp_path / "good"))
    assert caught.value.key == "data.path"
    info = next((tmp_path / "good").rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ConfigError, match="array_record") as caught:
        sources.open_sources(config_of(tmp_path / "good"))
    assert caught.value.key == "data.name"
