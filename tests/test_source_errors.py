"""Bad data of every kind: one error that names the key, the value and the rule."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jepa_vl.config import Config, ConfigError, config_hash
from jepa_vl.data import array_record, sources
from jepa_vl.kinds import KINDS, MIXTURE
from tests import image_sets
from tests.image_sets import Item, picture, some, write_table
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def refused(kind: str, path: Path, *words: str, key: str = "data.path", **values: Any) -> None:
    """Opening the data, or reading all of it, fails with one line that holds the words."""
    with pytest.raises(ConfigError) as caught:
        config = tiny(**{"data.kind": kind, "data.path": str(path), **values})
        for part in sources.open_sources(config):
            for index in range(len(part)):
                part[index]
    assert caught.value.key == key
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def record(**changes: Any) -> bytes:
    header = {"key": "a", "captions": ["x"], "label": "y"}
    header.update({name: value for name, value in changes.items() if name != "image"})
    return array_record.encode(header, changes.get("image", picture()))


def shard(path: Path, *records: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    array_record.write_shard(path / "0.array_record", [record(key="good"), *records])
    return path


def test_array_record_errors_name_the_shard_and_the_record(tmp_path):
    kind = "array_record"
    refused(kind, tmp_path / "absent", "absent", "No such file")
    (tmp_path / "none").mkdir()
    refused(kind, tmp_path / "none", "holds no .array_record file")
    array_record.write_shard(tmp_path / "none/0.array_record", [])
    refused(kind, tmp_path / "none", "no record")
    nested = shard(tmp_path / "nested/train")
    refused(kind, nested.parent, "give one of its folders: train")
    bad = {
        "magic": (b"\x0a\x10tf.train.Example", "JVL1"),
        "short": (b"JV", "JVL1"),
        "header": (record()[:20], "no JSON"),
        "list": (b"JVL1\x02\x00\x00\x00[]image", "not an object"),
        "image": (record(image=b""), "no image"),
        "key": (record(key=3), '"key"'),
        "captions": (record(captions=[1]), "'captions'"),
        "label": (record(label=1.5), "'label'"),
        "twice": (record(key="good"), "same key 'good'"),
    }
    for name, (content, word) in bad.items():
        where = "" if name == "twice" else "0.array_record: record 1"
        refused(kind, shard(tmp_path / name, content), where, word)


def test_damaged_array_records_are_refused_wherever_the_damage_is(tmp_path):
    image_sets.write_array_record(tmp_path / "good", some(40), shard=40)
    whole = (tmp_path / "good/00000.array_record").read_bytes()
    holes = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "html": b"<html>404</html>" * 5000,
        "flipped": whole[:4000] + bytes(500) + whole[4500:],
    }
    for name, content in holes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "7.array_record").write_bytes(content)
        refused("array_record", tmp_path / name, "7.array_record", "read")
    # Damage after the index was made: found when the record is read.
    sources.open_sources(tiny(**{"data.kind": "array_record", "data.path": str(tmp_path / "good")}))
    path = tmp_path / "good/00000.array_record"
    times = path.stat()
    path.write_bytes(holes["flipped"])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused("array_record", tmp_path / "good", "00000.array_record: record", "cannot be read")


def table(count: int = 6, **columns: Any) -> dict[str, Any]:
    found = {
        "image": [picture(i) for i in range(count)],
        "caption": [f"caption {i}" for i in range(count)],
        "label": ["x", "y"] * (count // 2),
    }
    return {k: v for k, v in {**found, **columns}.items() if v is not None}


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("columns", "words", "key"),
    [
        (table(image=None), ("data.parquet, which has caption, label",), "data.image_keys"),
        (table(image=[1] * 6), ("'image' is int64",), "data.path"),
        (table(image=[{"a": 1}] * 6), ("'image' is struct",), "data.path"),
        (table(image=[*table()["image"][:5], None]), ("1 row(s) hold no image",), "data.path"),
        (table(image=pa.array([{"bytes": None}] * 6, STRUCT)), ("row", "no image"), "data.path"),
        (table(image=[b""] * 6), ("row", "no image"), "data.path"),
        (table(image=["../x.jpg"] * 6), ("row 0", "leaves the folder"), "data.path"),
        (table(image=["/etc/passwd"] * 6), ("row 0", "leaves the folder"), "data.path"),
        (table(image=[f"{i}.jpg" for i in range(6)]), ("'0.jpg'", "not there"), "data.path"),
        (table(caption=[1] * 6), ("row 0", "'caption' is neither"), "data.path"),
        (table(caption=[["a", None]] * 6), ("row 0", "'caption' is neither"), "data.path"),
        (table(caption=None), ("no image has one", "label"), "data.caption_keys"),
        (table(caption=None, said=[[{"raw": "x"}]] * 6), ("said.raw",), "data.caption_keys"),
        (table(label=[0.5] * 6), ("row 0", "'label' is neither"), "data.path"),
        (table(key=["same"] * 6), ("0 and 1", "same key 'same'"), "data.path"),
        (table(0), ("no row",), "data.path"),
    ],
)  # fmt: skip
def test_parquet_errors_name_the_file_and_the_column_or_row(tmp_path, columns, words, key):
    kinds = {"image": pa.binary(), "caption": pa.string(), "label": pa.string()}
    schema = None if columns["caption" if "caption" in columns else "label"] else kinds
    how = {"schema": pa.schema(schema)} if schema else {}
    write_table(tmp_path / "d/data.parquet", columns, **how)
    refused("parquet", tmp_path / "d", *words, key=key)


def test_parquet_files_that_are_none_are_refused(tmp_path):
    whole = write_table(tmp_path / "good/train.parquet", table()).read_bytes()
    refused("parquet", tmp_path / "absent", "No such file")
    (tmp_path / "none").mkdir()
    refused("parquet", tmp_path / "none", "holds no .parquet file")
    refused("parquet", tmp_path / "good", "there are: train.parquet", key="data.split",
            **{"data.split": "test"})  # fmt: skip
    for name, content in {"cut": whole[:-50], "zero": b"", "html": b"<html>" * 100}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "7.parquet").write_bytes(content)
        refused("parquet", tmp_path / name, "7.parquet", "Parquet file")
    image_sets.write_images(tmp_path / "paths", some(2))
    write_table(tmp_path / "paths/a.parquet", {"image": ["000.jpg", "001.jpg", "000.jpg"],
                                               "caption": ["a", "b", "c"]})  # fmt: skip
    refused("parquet", tmp_path / "paths", "0 and 2", "same key '000.jpg'")


def test_class_folder_errors_name_the_folder(tmp_path):
    ijepa = {"objective": "ijepa"}
    refused("class_folder", tmp_path / "absent", "no folder", **ijepa)
    (tmp_path / "d/dog").mkdir(parents=True)
    refused("class_folder", tmp_path / "d", "no subfolder", "jpg", **ijepa)
    for name in ("x.jpg", "dog/x.txt"):
        (tmp_path / "d" / name).write_bytes(picture())
    refused("class_folder", tmp_path / "d", "no subfolder", **ijepa)
    image_sets.write_images(tmp_path / "d", [Item("dog/a.jpg", picture(), [], None)])
    refused("class_folder", tmp_path / "d", "one image", **ijepa)
    image_sets.write_images(tmp_path / "d", [Item("dog/b.jpg", picture(), [], None)])
    refused("class_folder", tmp_path / "d", "no folder", key="data.split",
            **ijepa, **{"data.split": "val"})  # fmt: skip
    refused("class_folder", tmp_path / "d", "leaves the folder", key="eval.split",
            **ijepa, **{"eval.split": "../d"})  # fmt: skip
    refused("class_folder", tmp_path / "d", "no image has one", key="data.caption_keys")


@pytest.mark.parametrize(
    ("text", "words", "key"),
    [
        ("", ("lists no image",), "data.path"),
        ("image,caption\n", ("lists no image",), "data.path"),
        ("file,caption\n000.jpg,x\n", ("file, caption",), "data.image_keys"),
        ("image,image\n000.jpg,x\n", ("each once",), "data.path"),
        ("image,caption\n000.jpg\n", (":2", "2 cells"), "data.path"),
        ("image,caption\n000.jpg,a,b\n", (":2", "2 cells"), "data.path"),
        ('image,caption\n000.jpg,"open\n', ("no row of a table",), "data.path"),
        ("image,caption\n,x\n", (":2", "'image'"), "data.path"),
        ("image,caption\n../x.jpg,x\n", (":2", "leaves the folder"), "data.path"),
        ("image,caption\n009.jpg,x\n", ("'009.jpg'", "not there"), "data.path"),
        ("image,label\n000.jpg,x\n000.jpg,y\n", (":3", "'y'", "'x'", ":2"), "data.path"),
        ("image,text\n000.jpg,x\n001.jpg,x\n", ("image, text",), "data.caption_keys"),
    ],
)
def test_table_errors_name_the_line(tmp_path, text, words, key):
    image_sets.write_images(tmp_path / "d", some(2))
    (tmp_path / "d/captions.csv").write_text(text)
    refused("folder", tmp_path / "d", *words, key=key)


def test_a_folder_is_told_which_list_counts(tmp_path):
    image_sets.write_csv(tmp_path / "d", some(2))
    (tmp_path / "d/captions.jsonl").write_text('{"image": "000.jpg"}')
    refused("folder", tmp_path / "d", "captions.jsonl and captions.csv", "give one")
    (tmp_path / "d/list.txt").write_text("000.jpg")
    refused("folder", tmp_path / "d/list.txt", ".csv")
    lines = [json.dumps({"image": "000.jpg", "captions": [text]}) for text in "ab"]
    (tmp_path / "d/twice.jsonl").write_text("\n".join(lines))
    refused("folder", tmp_path / "d/twice.jsonl", "same key '000.jpg'")


@pytest.mark.parametrize(
    ("values", "key", "word"),
    [
        ({"data.kind": "parket"}, "data.kind", "did you mean 'parquet'"),
        ({"data.kind": "parquet"}, "data.path", "needs the folder"),
        ({"data.kind": "tfds", "data.path": "x"}, "data.name", "needs the name"),
        ({"data.name": "coco"}, "data.name", "for tfds alone"),
        (
            {"data.split": "train"},
            "data.split",
            "for folder, class_folder, mask_folder, parquet, tfds, coco_captions, vqa alone",
        ),
        ({"data.kind": "tar", "data.path": "x", "eval.split": "v"}, "eval.split", "kind 'tar'"),
        ({"data.caption_pool": "all"}, "data.caption_pool", "'synthetic'"),
        ({"data.caption_pool": "synthetic"}, "data.caption_pool", "data.captions_file"),
        ({"data.caption_keys": ()}, "data.caption_keys", "one name or more"),
        ({"data.image_keys": ("a", 3)}, "data.image_keys", "each a string"),
    ],
)
def test_keys_that_a_kind_does_not_read_or_needs_are_refused_before_data_are_touched(
    values, key, word
):
    with pytest.raises(ConfigError) as caught:
        tiny(**values)
    assert caught.value.key == key and word in str(caught.value)


def test_each_kind_that_a_configuration_may_name_can_be_opened():
    assert KINDS.keys() - {MIXTURE} == sources.SOURCES.keys()


def test_new_keys_are_part_of_the_configuration_hash():
    def hash_of(**values: Any) -> str:
        config: Config = tiny(**{"data.kind": "parquet", "data.path": "x", **values})
        return config_hash(config)

    assert hash_of() != hash_of(**{"data.split": "train"})
    assert hash_of() != hash_of(**{"data.captions_file": "x.jsonl"})
