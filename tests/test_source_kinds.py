"""Promises that every kind of source keeps: the same images give the same batches."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import parquet, pipeline, sources
from jepa_vl.data.class_folder import ClassFolderSource
from jepa_vl.data.folder import FolderSource
from jepa_vl.data.parquet import ParquetSource
from jepa_vl.data.tar import TarSource
from tests import image_sets
from tests.image_sets import WRITERS, Item, some
from tests.shared import shared
from tests.tiny import tiny

KEYS = ("captions", "caption")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_of(kind: str, path: object, **values) -> Config:
    return tiny(**{"data.kind": kind, "data.path": str(path), **values})


def take(config: Config, source: sources.Source, count: int) -> list[pipeline.Batch]:
    with pipeline.make_batches(config, source, 0) as stream:
        return list(itertools.islice(stream, count))


def assert_same(one: list[pipeline.Batch], other: list[pipeline.Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() and {"image", "word_ids", "label", "index"} <= a.keys()
        for name in a:
            assert a[name].tobytes() == b[name].tobytes() and a[name].dtype == b[name].dtype


def real(name: str, tmp_path: Path) -> tuple[list[Item], list[Item]]:
    """Training and held-out items of real data."""
    root = shared(f"data/{name}")
    if name == "rsicd":
        parts = [TarSource(str(root / part), KEYS, "label") for part in ("train", "val")]
        return image_sets.of_source(parts[0], 50), image_sets.of_source(parts[1], 10)
    items = image_sets.of_source(FolderSource(str(root), KEYS, "label"), 40)
    return items[:32], items[32:]


@pytest.mark.parametrize("name", ["rsicd", "coco"])
def test_the_same_images_give_the_same_batches_whatever_they_lie_in(tmp_path, name):
    parts = dict(zip(("train", "val"), real(name, tmp_path), strict=True))
    found = {}
    for kind, write in {**WRITERS, "csv": image_sets.write_csv}.items():
        for part, items in parts.items():
            write(tmp_path / kind / part, items)
        config = config_of("folder" if kind == "csv" else kind, tmp_path / kind / "train")
        train, held_out = sources.open_sources(config)
        assert (len(train), len(held_out)) == (len(parts["train"]), len(parts["val"]))
        held = list(pipeline.eval_batches(config, held_out, range(len(held_out)), 4))
        found[kind] = take(config, train, 9), held, train.classes, held_out.classes
    batches, held, *classes = found.pop("tar")
    assert classes[0] == classes[1] and any(batch["caption_mask"].any() for batch in batches)
    assert len({batch["image"].tobytes() for batch in batches}) == 9
    for other_batches, other_held, *other_classes in found.values():
        assert_same(batches, other_batches)
        assert_same(held, other_held)
        assert classes == other_classes


@pytest.mark.parametrize("kind", ["array_record", "parquet", "class_folder"])
def test_workers_read_what_the_training_process_would(tmp_path, kind):
    if kind == "class_folder":
        items = [item._replace(key=f"{item.label}/{item.key}") for item in some(24)]
        image_sets.write_images(tmp_path / "d", items)
        how = {"objective": "ijepa"}
    else:
        WRITERS[kind](tmp_path / "d", some(24))
        how = {}
    one = config_of(kind, tmp_path / "d", **how)
    two = config_of(kind, tmp_path / "d", **how, **{"data.workers": 1})
    source = sources.open_sources(one)[0]
    for a, b in zip(take(one, source, 3), take(two, source, 3), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", [*WRITERS])
def test_a_pickled_source_is_the_same(tmp_path, kind):
    WRITERS[kind](tmp_path / "d", some(30))
    source = sources.SOURCES[kind](
        config_of(kind, tmp_path / "d"),
        sources.Place(str(tmp_path / "d"), "data.path", "", "train"),
    )
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.fingerprint, copy.classes) == (source.fingerprint, ("a", "b"))
    assert [copy[i] for i in range(30)] == [source[i] for i in range(30)]
    assert source.captioned == 30 and source.labels.tolist() == [0, 1] * 15
    assert len(set(source.keys)) == 30 and source.name.startswith(kind)


@pytest.mark.parametrize("kind", ["array_record", "parquet"])
def test_an_index_is_made_once_and_names_the_data_wherever_they_lie(
    tmp_path, cache, monkeypatch, kind
):
    WRITERS[kind](tmp_path / "one/d", some(30))
    place = sources.Place(str(tmp_path / "one/d"), "data.path", "", "train")
    first = sources.SOURCES[kind](config_of(kind, place.path), place)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(type(first), "_scan", None)
        again = sources.SOURCES[kind](config_of(kind, place.path), place)
    assert again.fingerprint == first.fingerprint and again[29] == first[29]
    (tmp_path / "one").rename(tmp_path / "two")
    moved = place._replace(path=str(tmp_path / "two/d"))
    assert sources.SOURCES[kind](config_of(kind, moved.path), moved).fingerprint == (
        first.fingerprint
    )
    WRITERS[kind](tmp_path / "three/d", some(31))
    other = place._replace(path=str(tmp_path / "three/d"))
    assert sources.SOURCES[kind](config_of(kind, other.path), other).fingerprint != (
        first.fingerprint
    )


@pytest.mark.parametrize("form", ["binary", "large_binary", "struct", "paths", "struct paths"])
def test_parquet_images_are_bytes_or_structs_or_paths(tmp_path, form):
    items, folder = some(12), tmp_path / "d"
    image_sets.write_images(folder, items)
    files = [item.image for item in items]
    names = [item.key for item in items]
    columns = {
        "binary": pa.array(files, pa.binary()),
        "large_binary": pa.array(files, pa.large_binary()),
        "struct": pa.array([{"bytes": f, "path": None} for f in files]),
        "paths": pa.array(names),
        "struct paths": pa.array([{"bytes": None, "path": name} for name in names]),
    }
    table = {"jpg": columns[form], "caption": pa.array([i.captions[0] for i in items])}
    image_sets.write_table(folder / "a.parquet", table, group=5)
    source = ParquetSource(str(folder), KEYS, "label")
    assert [source[i]["image"] for i in range(12)] == files
    assert [source[i]["captions"] for i in range(12)] == [[i.captions[0]] for i in items]
    with_paths = form.endswith("paths")
    assert list(source.keys) == (names if with_paths else [f"a.parquet:{i}" for i in range(12)])
    assert source.classes == () and set(source.labels) == {-1}


def test_parquet_keys_splits_nested_captions_and_class_names_are_those_of_the_file(tmp_path):
    items = some(8)
    table = {
        "image": [{"bytes": item.image, "path": "same.jpg"} for item in items],
        "sentences": [[{"raw": text, "id": 1} for text in item.captions] for item in items],
        "label": pa.array([0, 1, -1, None] * 2),
    }
    features = '{"info": {"features": {"label": {"names": ["zebra", "ant"], "_type": "x"}}}}'
    schema = pa.table(table).schema.with_metadata({"huggingface": features})
    image_sets.write_table(tmp_path / "train-0.parquet", table, schema=schema)
    image_sets.write_table(tmp_path / "train-1.parquet", {**table, "key": [*"abcdefgh"]})
    image_sets.write_table(tmp_path / "test-0.parquet", table)
    config = config_of(
        "parquet", tmp_path,
        **{"data.split": "train-0", "eval.split": "test", "data.caption_keys": ("sentences.raw",)},
    )  # fmt: skip
    train, held_out = sources.open_sources(config)
    assert train[1]["captions"] == items[1].captions
    assert [train.classes[train[i]["label"]] for i in (0, 1)] == ["zebra", "ant"]
    assert [train[i]["label"] for i in (2, 3)] == [-1, -1]
    assert [train[0]["key"], held_out[7]["key"]] == ["train-0.parquet:0", "test-0.parquet:7"]
    named = ParquetSource(str(tmp_path / "train-1.parquet"), KEYS, "label")
    assert "".join(named.keys) == "abcdefgh" and len(named) == 8
    assert named.classes == ("-1", "0", "1")  # without names the numbers are names


def test_parquet_keeps_few_row_groups_in_memory(tmp_path):
    for number in range(3):
        items = some(60, f"{number}/")
        image_sets.write_parquet(tmp_path / f"d{number}", items, shard=60)
        source = ParquetSource(str(tmp_path / f"d{number}"), KEYS, "label")
        order = np.random.default_rng(0).permutation(60)
        assert [source[i]["image"] for i in order.tolist()] == [items[i].image for i in order]
    info = parquet._read_group.cache_info()
    assert info.currsize <= parquet.OPEN_GROUPS < info.misses


def test_class_folders_give_labels_and_keys_by_their_paths(tmp_path):
    images = {"dog/b.JPEG": 1, "dog/deep/a.png": 2, "cat/c.jpg": 3, ".thumbs/x.jpg": 4}
    for name, color in images.items():
        kind = "PNG" if name.endswith("png") else "JPEG"
        item = Item(name, image_sets.picture(color, kind), [], None)
        image_sets.write_images(tmp_path / "train", [item])
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    image_sets.write_images(tmp_path / "test", [Item("eel/x.jpg", image_sets.picture(), [], None)])
    source = ClassFolderSource(str(tmp_path / "train"))
    assert source.keys.tolist() == ["cat/c.jpg", "dog/b.JPEG", "dog/deep/a.png"]
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 1, 1]
    assert source[2]["image"] == (tmp_path / "train/dog/deep/a.png").read_bytes()
    how = {"data.split": "train", "eval.split": "test", "objective": "ijepa"}
    train, held_out = sources.open_sources(config_of("class_folder", tmp_path, **how))
    assert train.classes == held_out.classes == ("cat", "dog", "eel")
    assert (train[1]["label"], held_out[0]["label"]) == (1, 2)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_list_may_say_which_images_are_of_which_split(form, tmp_path):
    items = some(5)
    image_sets.write_images(tmp_path / "d", items)
    splits = ["train", "test", "train", "test", "extra"]
    rows = [(f"{i:03d}.jpg", f"caption {i}", split) for i, split in enumerate(splits)]
    if form == "csv":
        lines = ["image,caption,split", *(",".join(row) for row in rows)]
    else:
        names = ("image", "caption", "split")
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (tmp_path / f"d/captions.{form}").write_text("\n".join(lines))
    how = {"data.split": "train", "eval.split": "test", "objective": "ijepa"}
    train, held_out = sources.open_sources(config_of("folder", tmp_path / "d", **how))
    assert train.keys == ["000.jpg", "002.jpg"] and held_out.keys == ["001.jpg", "003.jpg"]
    assert held_out[1]["captions"] == ["caption 3"] and held_out.name == "folder/d:test"
    whole = FolderSource(str(tmp_path / "d"), KEYS, "label")
    assert len(whole) == 5
    assert len({part.fingerprint for part in (whole, train, held_out)}) == 3
    with pytest.raises(ConfigError, match=r"eval.split = 'val': .* has: extra, test, train"):
        sources.open_sources(config_of("folder", tmp_path / "d", **{**how, "eval.split": "val"}))


def test_rows_of_a_table_that_name_the_same_image_are_its_captions(tmp_path):
    items = some(3)
    image_sets.write_images(tmp_path / "d", items)
    rows = [
        "file_name,text,label",
        '000.jpg,"one, with a comma",7',
        "001.jpg,two,",
        '000.jpg,"three ""quoted""\nand broken",7',
        "002.jpg,,9",
    ]
    (tmp_path / "d/mine.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    source = FolderSource(str(tmp_path / "d/mine.csv"), ("text",), "label")
    assert source.keys == ["000.jpg", "001.jpg", "002.jpg"]
    assert [source[i]["captions"] for i in range(3)] == [
        ["one, with a comma", 'three "quoted"\nand broken'], ["two"], [],
    ]  # fmt: skip
    assert source.classes == ("7", "9") and source.labels.tolist() == [0, -1, 1]
    assert source.captioned == 2 and source.name == "folder/d/mine.csv"
    tabs = "\n".join(["image\tcaption", "002.jpg\ta, b", "000.jpg\tc"])
    (tmp_path / "d/captions.tsv").write_text(tabs)
    source = FolderSource(str(tmp_path / "d"), KEYS, "label")
    assert [source[i]["captions"] for i in range(2)] == [["a, b"], ["c"]]
    assert source[0]["image"] == items[2].image
