"""Promises of the sources: random access to what users have, and errors that say what is wrong."""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_vl.config import Config, ConfigError, defaults, from_dict
from jepa_vl.data import sources, tar, tar_index, transforms
from jepa_vl.data.folder import FolderSource
from tests.shared import shared

KEYS = ("captions", "caption")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_config(kind: str, path: object = "", **values) -> Config:
    tree = defaults()
    tree.data.kind, tree.data.path = kind, str(path)
    tree.update_from_flattened_dict(values)
    return from_dict(tree)


def encoded(color: object = (200, 0, 0), kind: str = "JPEG", size=(20, 16), mode="RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, kind)
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            raw = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            out.addfile(info, io.BytesIO(raw))
    return path


def sample(key: str, label: object = None, **extra) -> dict[str, bytes | str]:
    item = {"captions": [f"a picture of {key}"], "label": label, **extra}
    return {f"{key}.jpg": encoded(), f"{key}.json": json.dumps(item)}


def write_folder(path: Path, lines: list[str], images: int = 3) -> Path:
    (path / "images").mkdir(parents=True)
    for i in range(images):
        (path / f"images/{i}.png").write_bytes(encoded(i, "PNG", mode="L"))
    (path / "captions.jsonl").write_text("\n".join(lines))
    return path


def test_a_tar_sample_is_what_webdataset_would_group(tmp_path):
    write_tar(
        tmp_path / "d/0.tar",
        {
            "a/x.jpg": encoded(),
            "a/x.json": '{"caption": "one", "label": "cat"}',
            "a/x.seg.png": b"not the image",
            "b/x.PNG": encoded(kind="PNG"),
            "b/x.txt": "two\n",
            "c.jpeg": encoded(),
            "c.cls": "3",
            "._c.jpg": b"left by a Mac",
            "d.json": '{"caption": "no image"}',
            "e.png": b"mask of e",
            "e.jpg": encoded(),
        },
    )
    source = tar.TarSource(str(tmp_path / "d"), KEYS, "label")
    assert [record["key"] for record in map(source.__getitem__, range(4))] == [
        "a/x", "b/x", "c", "e",
    ]  # fmt: skip
    assert [source[i]["captions"] for i in range(4)] == [["one"], ["two"], [], []]
    assert [source[i]["label"] for i in range(4)] == [1, -1, 0, -1]
    assert source.classes == ("3", "cat")
    for i in range(4):
        assert transforms.decode(source[i]["image"], "k").shape == (16, 20, 3)


def test_tar_bytes_are_those_of_the_files():
    root = shared("data/rsicd/val")
    source = tar.TarSource(str(root), KEYS, "label")
    assert len(source) == 900 and len(source.classes) == 30
    number = 0
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as file:
            for member in file.getmembers()[:8]:
                if member.name.endswith(".jpg"):
                    index = source.keys.tolist().index(member.name[:-4])
                    extracted = file.extractfile(member)
                    assert extracted and source[index]["image"] == extracted.read()
                    assert len(source[index]["captions"]) == 5
                    number += 1
    assert number


def test_the_index_is_made_once_outside_the_data_and_anew_when_shards_change(
    tmp_path, cache, monkeypatch
):
    path = write_tar(tmp_path / "d/0.tar", {**sample("a", "x"), **sample("b", "y")})
    before = sorted(os.listdir(path.parent))
    first = tar.TarSource(str(path.parent), KEYS, "label")
    assert sorted(os.listdir(path.parent)) == before and len(os.listdir(cache)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_scan", None)
        again = tar.TarSource(str(path.parent), KEYS, "label")
        copy = pickle.loads(pickle.dumps(first))
    for other in (again, copy):
        assert other.fingerprint == first.fingerprint and other.classes == ("x", "y")
        assert [other[i] for i in range(2)] == [first[i] for i in range(2)]
    write_tar(path, {**sample("a", "x"), **sample("b", "y"), **sample("c")})
    changed = tar.TarSource(str(path.parent), KEYS, "label")
    assert len(changed) == 3 and changed.fingerprint != first.fingerprint
    assert not [file for file in cache.rglob("*") if file.name.endswith(".tmp")]


def test_a_damaged_index_is_made_anew_and_a_copied_source_is_the_same(tmp_path, cache):
    path = write_tar(tmp_path / "d/0.tar", sample("a"))
    first = tar.TarSource(str(path.parent), KEYS, "label")
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert len(files) == 8  # six arrays and a description of the folder; what the shard holds
    for file in files:
        for junk in (b"", b"PK\x03\x04 junk", file.read_bytes()[:-3]):
            file.write_bytes(junk)
            assert tar.TarSource(str(path.parent), KEYS, "label")[0] == first[0]
    copy = tmp_path / "elsewhere/0.tar"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (1, 1))
    assert tar.TarSource(str(copy.parent), KEYS, "label").fingerprint == first.fingerprint


def _open_in_process(path: str, queue) -> None:
    queue.put(tar.TarSource(path, KEYS, "label").fingerprint)


def test_concurrent_writers_of_an_index_do_not_disturb_each_other(tmp_path, cache):
    path = write_tar(
        tmp_path / "d/0.tar", {k: v for i in range(50) for k, v in sample(str(i)).items()}
    )
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_open_in_process, args=(str(path.parent), queue)) for _ in range(6)
    ]
    for process in processes:
        process.start()
    found = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    assert len(found) == 1
    assert not [name for name in cache.rglob("*") if name.name.endswith(".tmp")]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("JEPA_VL_CACHE", str(blocker / "below"))
    path = write_tar(tmp_path / "d/0.tar", sample("a"))
    assert len(tar.TarSource(str(path.parent), KEYS, "label")) == 1


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_tar_errors_name_the_file_and_the_rule(tmp_path):
    good = {**sample("a"), **sample("b")}

    def refused(name: str, *words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            tar.TarSource(str(tmp_path / name), KEYS, "label", key="eval.path")
        assert caught.value.key == "eval.path"
        for word in words:
            assert word in str(caught.value), caught.value

    refused("absent", "absent", "No such file")
    (tmp_path / "empty").mkdir()
    refused("empty", "no .tar file")
    write_tar(tmp_path / "nested/train/0.tar", good)
    refused("nested", "no .tar file", "train")
    write_tar(tmp_path / "texts/0.tar", {"a.txt": "no image"})
    refused("texts", "no image", "jpg")
    (tmp_path / "html").mkdir()
    (tmp_path / "html/0.tar").write_text("<html>404</html>" * 100)
    refused("html", "html/0.tar", "tar file")
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero/0.tar").write_bytes(b"")
    refused("zero", "zero/0.tar", "tar file")
    for size in (600, 700, 1024, 1024 + 300, 2100):  # inside data, at and inside headers
        path = write_tar(tmp_path / f"cut{size}/7.tar", good)
        truncate(path, size)
        refused(f"cut{size}", "7.tar", "tar file")
    write_tar(tmp_path / "json/0.tar", {"a.jpg": encoded(), "a.json": '{"captions": ['})
    refused("json", "json/0.tar: a.json", "no JSON")
    write_tar(tmp_path / "list/0.tar", {"a.jpg": encoded(), "a.json": "[1]"})
    refused("list", "a.json", "not an object")
    write_tar(tmp_path / "type/0.tar", {"a.jpg": encoded(), "a.json": '{"captions": [1]}'})
    refused("type", "a.json", "captions")


def test_missing_captions_are_an_error_only_if_all_are_and_the_objective_reads_text(tmp_path):
    items = {}
    for i in range(8):
        items.update({f"{i}.jpg": encoded(), f"{i}.json": '{"text": "a dog", "id": 1}'})
    path = write_tar(tmp_path / "d/0.tar", items).parent
    with pytest.raises(ConfigError, match="text, id") as caught:
        sources.open_sources(make_config("tar", path))
    assert caught.value.key == "data.caption_keys"
    sources.open_sources(make_config("tar", path, objective="ijepa"))
    fixed = {"data.caption_keys": ("captions", "text")}
    train, _ = sources.open_sources(make_config("tar", path, **fixed))
    assert train[0]["captions"] == ["a dog"]
    write_tar(path / "1.tar", sample("captioned"))
    train, held_out = sources.open_sources(make_config("tar", path))
    assert (
        sum(len(part[i]["captions"]) for part in (train, held_out) for i in range(len(part))) == 1
    )


def test_folder_reads_list_and_string_captions_and_labels_of_any_kind(tmp_path):
    lines = [
        '{"image": "images/0.png", "captions": ["a", "b"], "label": 10}',
        "",
        '{"image": "images/1.png", "caption": "c", "label": 9}',
        '{"image": "images/2.png", "label": null}',
    ]
    source = FolderSource(str(write_folder(tmp_path / "d", lines)), KEYS, "label")
    assert [source[i]["captions"] for i in range(3)] == [["a", "b"], ["c"], []]
    assert source.classes == ("9", "10") and source.labels.tolist() == [1, 0, -1]
    assert source[0]["key"] == "images/0.png"
    copy = pickle.loads(pickle.dumps(source))
    assert copy[1] == source[1] and copy.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{'image': 1}", ":2"),
        ('{"image": "../secret.png"}', "leaves the folder"),
        ('{"image": "/etc/passwd"}', "leaves the folder"),
        ('{"image": "images/../../x.png"}', "leaves the folder"),
        ('{"image": "images/9.png"}', "not there"),
        ('{"captions": []}', ":2"),
        ('{"image": "images/1.png", "captions": {"en": "x"}}', "captions"),
        ('{"image": "images/1.png", "label": ["x"]}', "label"),
    ],
)
def test_folder_errors_name_the_line_and_the_rule(tmp_path, line, word):
    path = write_folder(tmp_path / "d", ['{"image": "images/0.png"}', line])
    with pytest.raises(ConfigError, match=r"captions\.jsonl") as caught:
        FolderSource(str(path), KEYS, "label")
    assert word in str(caught.value)


def test_a_folder_without_list_or_images_is_refused(tmp_path):
    for name, text in (("none", None), ("blank", "\n")):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "captions.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=r"captions\.jsonl"):
            FolderSource(str(tmp_path / name), KEYS, "label")
    with pytest.raises(ConfigError, match="no folder"):
        FolderSource(str(tmp_path / "absent"), KEYS, "label")


def test_held_out_is_the_given_path_then_val_beside_train_then_a_share(tmp_path):
    write_tar(
        tmp_path / "d/train/0.tar",
        {k: v for i in range(40) for k, v in sample(f"t{i}", "b").items()},
    )
    write_tar(tmp_path / "d/val/0.tar", {**sample("v", "a"), **sample("w")})
    write_tar(tmp_path / "other/0.tar", sample("o", "c"))
    given = {"eval.path": str(tmp_path / "other")}
    train, held_out = sources.open_sources(make_config("tar", tmp_path / "d/train", **given))
    assert (len(train), held_out[0]["key"]) == (40, "o") and train.classes == ("b", "c")
    train, held_out = sources.open_sources(make_config("tar", tmp_path / "d/train"))
    assert [held_out[i]["key"] for i in range(2)] == ["v", "w"]
    assert train.classes == held_out.classes == ("a", "b")
    assert train[0]["label"] == 1 and [held_out[i]["label"] for i in range(2)] == [0, -1]
    (tmp_path / "d/val").rename(tmp_path / "d/test")
    share = {"data.holdout": 0.25}
    train, held_out = sources.open_sources(make_config("tar", tmp_path / "d/train", **share))
    keys = [{part[i]["key"] for i in range(len(part))} for part in (train, held_out)]
    assert len(keys[0] | keys[1]) == 40 and not keys[0] & keys[1] and 3 <= len(keys[1]) <= 18
    assert train.fingerprint != held_out.fingerprint


def test_a_split_leaves_an_image_on_each_side_and_keeps_images_where_they_are(tmp_path):
    for count in (2, 3, 30, 31):
        path = tmp_path / str(count) / "0.tar"
        write_tar(path, {k: v for i in range(count) for k, v in sample(f"s{i}").items()})
    for share in (0.001, 0.999):
        for count in (2, 3):
            source = tar.TarSource(str(tmp_path / str(count)), KEYS, "label")
            assert all(map(len, sources.split_source(source, share)))
    held = []
    for count in (30, 31):
        source = tar.TarSource(str(tmp_path / str(count)), KEYS, "label")
        part = sources.split_source(source, 0.3)[1]
        held.append({part[i]["key"] for i in range(len(part))})
    assert held[0] <= held[1]
    with pytest.raises(ConfigError, match="one image"):
        write_tar(tmp_path / "1/0.tar", sample("alone"))
        sources.split_source(tar.TarSource(str(tmp_path / "1"), KEYS, "label"), 0.5)


def test_labelled_indices_are_labelled_distinct_and_repeatable():
    source = tar.TarSource(str(shared("data/rsicd/train")), KEYS, "label")
    assert int((source.labels < 0).sum()) == 788
    found = sources.labelled_indices(source, 200, seed=3)
    assert len(set(found.tolist())) == 200 and (source.labels[found] >= 0).all()
    np.testing.assert_array_equal(found, sources.labelled_indices(source, 200, seed=3))
    assert len(sources.labelled_indices(source, 10**6)) == 7834 - 788


def test_shapes_world_opens_with_disjoint_parts_of_the_given_lengths():
    config = make_config("shapes_world", **{"data.train_size": 50, "eval.val_images": 7})
    train, held_out = sources.open_sources(config)
    assert (len(train), len(held_out)) == (50, 7) and train.classes == held_out.classes
    assert train[0]["image"].shape == (224, 224, 3)
    assert train[0]["key"] != held_out[0]["key"]
    assert len(sources.labelled_indices(train, 5)) == 5


@pytest.mark.parametrize("name", ["coco", "emoji", "caltech101"])
def test_real_folders_decode(name):
    source = FolderSource(str(shared(f"data/{name}")), KEYS, "label")
    step = max(1, len(source) // 60)
    for index in range(0, len(source), step):
        record = source[index]
        image = transforms.centre_crop(record["image"], 64, record["key"])
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert source.captioned == len(source)
