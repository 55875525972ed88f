"""Promises of captions in a file of their own: joined by key, pools, and what is refused."""

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import pipeline, sources
from tests import image_sets
from tests.image_sets import WRITERS, Item, some
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def write_captions(path: Path, captions: dict[str, Any]) -> Path:
    lines = [json.dumps({"key": key, "captions": said}) for key, said in captions.items()]
    path.write_text("\n".join(lines))
    return path


def config_of(path: Path, file: Path, kind: str = "folder", **values: Any) -> Config:
    given = {"data.kind": kind, "data.path": str(path), "data.captions_file": str(file)}
    return tiny(**{**given, **values})


def captions_of(*parts: sources.Source) -> dict[str, list[str]]:
    records = [part[i] for part in parts for i in range(len(part))]
    return {record["key"]: record["captions"] for record in records}


@pytest.mark.parametrize("kind", [*WRITERS])
def test_pools_are_raw_synthetic_or_both_for_every_kind(tmp_path, kind):
    items = some(12)
    WRITERS[kind](tmp_path / "d", items)
    key = (lambda name: name.removesuffix(".jpg")) if kind == "tar" else str
    added = {key(item.key): [f"a model saw {i}"] for i, item in enumerate(items) if i % 3}
    file = write_captions(tmp_path / "s.jsonl", {**added, "stranger": ["of no image"]})
    found = {}
    for pool in ("raw", "synthetic", "both"):
        config = config_of(tmp_path / "d", file, kind, **{"data.caption_pool": pool})
        parts = sources.open_sources(config)
        found[pool] = captions_of(*parts)
        assert pool == "raw" or "s.jsonl (8 of 12 images)" in parts[0].name
    raw = {key(item.key): item.captions for item in items}
    assert found["raw"] == raw
    assert found["synthetic"] == {name: added.get(name, []) for name in raw}
    assert found["both"] == {name: said + added.get(name, []) for name, said in raw.items()}


def test_the_fingerprint_follows_the_file_the_pool_and_the_images(tmp_path):
    image_sets.write_folder(tmp_path / "d", some(6))
    file = write_captions(tmp_path / "s.jsonl", {"001.jpg": ["one"]})
    seen = []
    for pool in ("raw", "synthetic", "both"):
        config = config_of(tmp_path / "d", file, **{"data.caption_pool": pool})
        seen.append(sources.open_sources(config)[0].fingerprint)
    write_captions(file, {"001.jpg": ["another"]})
    seen.append(sources.open_sources(config_of(tmp_path / "d", file))[0].fingerprint)
    assert len(set(seen)) == 4


def test_joined_captions_train_images_that_have_none_and_reach_workers(tmp_path):
    items = [item._replace(key=f"{item.label}/{item.key}") for item in some(24)]
    image_sets.write_images(tmp_path / "d", items)
    said = {item.key: [f"word{i} {item.label}"] for i, item in enumerate(items)}
    file = write_captions(tmp_path / "s.jsonl", said)
    batches = []
    for workers in (0, 1):
        config = config_of(tmp_path / "d", file, "class_folder", **{"data.workers": workers})
        train, held_out = sources.open_sources(config)
        with pipeline.make_batches(config, train, 0) as stream:
            batches.append(list(itertools.islice(stream, 2)))
    assert captions_of(train, held_out) == said
    assert all(batch["caption_mask"][:, 0].all() for batch in batches[0])
    for a, b in zip(*batches, strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    copy = pickle.loads(pickle.dumps(train))
    assert [copy[i] for i in range(len(copy))] == [train[i] for i in range(len(train))]


def test_scenes_of_the_built_in_world_take_captions_too(tmp_path):
    file = write_captions(tmp_path / "s.jsonl", {"train-00000003": ["mine"]})
    train, held_out = sources.open_sources(tiny(**{"data.captions_file": str(file)}))
    assert train[3]["captions"][-1] == "mine" and train[2]["captions"][-1] != "mine"
    assert "1 of 64" in train.name and "0 of 16" in held_out.name


def test_an_objective_that_reads_no_captions_does_not_open_them(tmp_path):
    image_sets.write_folder(tmp_path / "d", some(6))
    config = config_of(tmp_path / "d", tmp_path / "absent.jsonl", objective="ijepa")
    assert len(sources.open_sources(config)[0]) + len(sources.open_sources(config)[1]) == 6


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{}"], (":1", '"key"')),
        (['{"key": "000.jpg"}'], (":1", '"captions"')),
        (['{"key": 1, "captions": []}'], (":1", '"key"')),
        (['{"key": "000.jpg", "captions": [2]}'], (":1", "'captions'")),
        (['{"key": "000.jpg", "captions": "x"}', "[1]"], (":2", "not an object")),
        (["not JSON"], (":1", "no JSON")),
        (['{"key": "a", "captions": "x"}'] * 2, (":2", "the key of line 1")),
        (['{"key": "a/000.jpg", "captions": "x"}'], ("no image", "'000.jpg'")),
        ([""], ("no image", "'000.jpg'")),
    ],
)
def test_a_captions_file_that_does_not_fit_is_refused_by_its_line(tmp_path, lines, words):
    image_sets.write_folder(tmp_path / "d", some(4))
    file = tmp_path / "s.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        sources.open_sources(config_of(tmp_path / "d", file))
    assert caught.value.key == "data.captions_file" and "\n" not in str(caught.value)
    for word in ("s.jsonl", *words):
        assert word in str(caught.value)


def test_files_that_are_absent_or_change_and_keys_that_repeat_are_refused(tmp_path):
    image_sets.write_folder(tmp_path / "d", some(4))
    with pytest.raises(ConfigError, match="no file") as caught:
        sources.open_sources(config_of(tmp_path / "d", tmp_path / "absent"))
    assert caught.value.key == "data.captions_file"
    said = {item.key: ["something"] for item in some(4)}
    file = write_captions(tmp_path / "s.jsonl", said)
    train = sources.open_sources(config_of(tmp_path / "d", file))[0]
    file.write_text("x" * file.stat().st_size)
    with pytest.raises(ConfigError, match=r"s\.jsonl: key 00"):
        train[0]
    write_captions(file, said)
    for shard in ("0", "1"):  # each numbers its samples anew, as some tools do
        image_sets.write_tar(tmp_path / shard, [Item("000.jpg", image_sets.picture(), [], None)])
        (tmp_path / shard / "00000.tar").rename(tmp_path / f"{shard}.tar")
    with pytest.raises(ConfigError, match="same key"):
        sources.open_sources(config_of(tmp_path, file, "tar"))
