"""Promises about bad samples: a run goes on, every other row stays, and what was bad is told."""

import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa_vl.config import ConfigError
from jepa_vl.data import faults, pipeline
from jepa_vl.data.folder import FolderSource
from jepa_vl.data.tar import TarSource
from tests import tars
from tests.test_pipeline import assert_equal, make_config

SHARDS, EACH = 4, 10
STEPS = 12  # of 8 images: more than two epochs of 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def opened(path: Path) -> TarSource:
    return TarSource(str(path), tars.KEYS, "label")


def take(source, log=None, host: int = 0, hosts: int = 1, **values) -> list[dict]:
    config = make_config(**{"data.max_bad_share": 1.0, **values})
    with pipeline.make_batches(config, source, 0, host, hosts, log) as stream:
        return [next(stream) for _ in range(STEPS)]


def listed(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def damage_image(folder: Path) -> set[int]:
    path = folder / "000.tar"
    half = len(tars.jpeg(7)) // 2
    tars.overwrite(path, "s003.jpg", b"<html>404</html>")
    with path.open("r+b") as file:  # a photograph that ends in the middle
        file.seek(tars.offset_of(path, "s007.jpg") + half)
        file.write(bytes(half))
    return {3, 7}


def damage_json(folder: Path) -> set[int]:
    tars.overwrite(folder / "001.tar", "s012.json", b'{"captions": [}')
    tars.overwrite(folder / "001.tar", "s013.json", b'{"captions": {{')
    return {12, 13}


def remove_shard(folder: Path) -> set[int]:
    (folder / "001.tar").unlink()
    return set(range(10, 20))


def cut_shard(folder: Path) -> set[int]:
    path = folder / "002.tar"
    os.truncate(path, tars.offset_of(path, "s026.json") + 5)
    return set(range(26, 30))


def break_disk(folder: Path) -> set[int]:
    (folder / "003.tar").unlink()
    (folder / "003.tar").mkdir()  # opens, and fails when it is read
    return set(range(30, 40))


DAMAGES: dict[str, Callable[[Path], set[int]]] = {
    "image": damage_image,
    "json": damage_json,
    "vanished": remove_shard,
    "truncated": cut_shard,
    "disk": break_disk,
}


def stand_in(index: int, bad: set[int], size: int) -> int:
    return next(i for i in faults.candidates(index, size) if i not in bad)


def assert_only_bad_rows_differ(batches, clean, bad: set[int], size: int, part=slice(None)) -> int:
    """Returns how many rows were replaced."""
    replaced = 0
    for batch, whole in zip(batches, clean, strict=True):
        expected = whole["index"][part]
        drawn_bad = np.isin(expected, list(bad))
        replaced += int(drawn_bad.sum())
        for name in batch:
            good = ~drawn_bad
            np.testing.assert_array_equal(batch[name][good], whole[name][part][good], err_msg=name)
        used = [stand_in(int(i), bad, size) for i in expected]
        assert batch["index"].tolist() == used
        assert batch["position"].tolist() == whole["position"][part].tolist()
    return replaced


@pytest.mark.parametrize("cause", DAMAGES)
def test_a_bad_sample_is_replaced_and_no_other_row_changes(tmp_path, cause):
    source = opened(tars.shards(tmp_path / "d", SHARDS, EACH))
    clean = take(source)
    bad = DAMAGES[cause](tmp_path / "d")
    log = faults.Log(1.0, tmp_path / "bad.jsonl")
    batches = take(source, log)
    replaced = assert_only_bad_rows_differ(batches, clean, bad, len(source))
    assert replaced and log.counts == {cause: replaced}
    counts = {"data/bad": replaced, f"data/bad/{cause}": replaced, "data/left_out": 0}
    assert log.metrics() == counts
    rows = listed(tmp_path / "bad.jsonl")
    assert {row["key"] for row in rows} == {f"s{index:03}" for index in bad}
    assert len(rows) == len(bad)  # each once, in more than two epochs
    assert all(row["index"] in bad and row["cause"] == cause and row["message"] for row in rows)
    for one, other in zip(take(source), batches, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(("hosts", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_hosts_and_workers_replace_alike_and_count_what_they_read(tmp_path, hosts, workers):
    source = opened(tars.shards(tmp_path / "d", SHARDS, EACH))
    clean = take(source)
    bad = set().union(*(DAMAGES[cause](tmp_path / "d") for cause in ("image", "vanished", "disk")))
    alone = faults.Log(1.0, tmp_path / "alone.jsonl")
    take(source, alone)
    counts, rows = faults.collections.Counter(), []
    for host in range(hosts):
        log = faults.Log(1.0, tmp_path / f"host{host}.jsonl")
        batches = take(source, log, host, hosts, **{"data.workers": workers})
        part = slice(host, None, hosts)
        replaced = assert_only_bad_rows_differ(batches, clean, bad, len(source), part)
        assert replaced == log.counts.total()
        counts += log.counts
        rows += listed(tmp_path / f"host{host}.jsonl")
    assert counts == alone.counts and set(counts) == {"image", "vanished", "disk"}
    assert {row["key"] for row in rows} == {f"s{index:03}" for index in bad}


def test_an_image_without_captions_is_bad_where_text_is_read_and_captions_are_required(tmp_path):
    members = [m for i in range(20) for m in tars.sample(f"s{i:03}", i)]
    members += [*tars.sample("none", captions=[]), ("text.jpg", tars.jpeg(9)), ("text.txt", b" ,")]
    tars.write(tmp_path / "d/0.tar", members)
    source = opened(tmp_path / "d")
    log = faults.Log(1.0, tmp_path / "bad.jsonl")
    batches = take(source, log)
    assert set(log.counts) == {"caption"}
    assert sorted(row["key"] for row in listed(tmp_path / "bad.jsonl")) == ["none", "text"]
    assert all(batch["caption_mask"].any(axis=1).all() for batch in batches)
    for values in (
        {"data.require_captions": False}, {"data.captions": "empty"}, {"objective": "ijepa"},
    ):  # fmt: skip
        log = faults.Log(1.0)
        used = np.concatenate([batch["index"] for batch in take(source, log, **values)])
        assert not log.counts and {20, 21} < set(used.tolist())


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    bombs = {"bomb": (60_000, 60_000), "large": (9000, 9000), "wide": (2**31 - 1, 1)}
    members = [m for i in range(20) for m in tars.sample(f"s{i:03}", i)]
    for name, size in bombs.items():
        members += [(f"{name}.png", png_header(*size)), *tars.sample(name)[1:]]
    tars.write(tmp_path / "d/0.tar", members)
    source = opened(tmp_path / "d")
    log = faults.Log(1.0, tmp_path / "bad.jsonl")
    began = time.perf_counter()
    take(source, log)
    assert time.perf_counter() - began < 5
    rows = listed(tmp_path / "bad.jsonl")
    assert set(log.counts) == {"pixels"} and {row["key"] for row in rows} == set(bombs)
    assert "9000 x 9000 pixels" in next(row["message"] for row in rows if row["key"] == "large")
    few = faults.Log(1.0)
    with pytest.raises(ConfigError, match=r"data\.max_pixels = 1000"):  # all have 40 x 36
        take(source, few, **{"data.max_pixels": 1000})


def test_files_of_a_folder_that_are_empty_or_gone_are_replaced(tmp_path):
    lines = []
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(tars.jpeg(i))
        lines.append(json.dumps({"image": f"{i}.jpg", "captions": [f"number {i}"]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    source = FolderSource(str(tmp_path), tars.KEYS, "label")
    clean = take(source)
    (tmp_path / "3.jpg").write_bytes(b"")
    (tmp_path / "4.jpg").unlink()
    log = faults.Log(1.0)
    assert_only_bad_rows_differ(take(source, log), clean, {3, 4}, 20)
    assert set(log.counts) == {"empty", "vanished"}


class Broken:
    """A source of which so many records are bad; the system's own errors are let through."""

    classes, fingerprint, name = ("x",), "0" * 16, "broken"

    def __init__(self, size: int, bad: int):
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if index < self.bad:
            raise OSError(5, "Input/output error", f"/disk/{index}")
        image = np.full((40, 40, 3), index % 250, np.uint8)
        return {"image": image, "captions": ["a dog"], "label": 0, "key": str(index)}


def test_where_nothing_can_be_read_the_first_image_ends_the_run_and_is_named():
    with pytest.raises(ConfigError, match="nor can any of 16 images") as caught:
        take(Broken(40, 40))
    assert "Input/output error" in str(caught.value) and "/disk/" in str(caught.value.value)
    assert [b["index"].min() for b in take(Broken(12, 11))] == [11] * STEPS  # the last good one


@pytest.mark.parametrize(("bad", "share", "stops"), [(20, 0.01, True), (20, 0.03, False),
                                                     (1, 0.0, True), (0, 0.0, False)])  # fmt: skip
def test_a_share_of_bad_images_above_the_limit_stops(tmp_path, bad, share, stops):
    log = faults.Log(share, tmp_path / "bad.jsonl")
    config = make_config(**{"train.batch_size": 100})
    with pipeline.make_batches(config, Broken(1000, bad), 0, log=log) as stream:
        if not stops:
            for _ in range(10):
                next(stream)
            assert log.counts.total() == bad
            return
        with pytest.raises(ConfigError, match="most often by 'disk'") as caught:
            for _ in range(10):
                next(stream)
    assert caught.value.key == "data.max_bad_share"
    assert str(tmp_path / "bad.jsonl") in str(caught.value)
    assert len(listed(tmp_path / "bad.jsonl")) > share * 1000


def test_the_share_is_of_the_last_images_not_of_the_whole_run():
    fault = faults.Fault(1, "k", "disk", "gone")
    log = faults.Log(0.01)
    for _ in range(100):
        log.note(10_000, [], "s")
    log.note(1000, [fault] * 90, "s")
    with pytest.raises(ConfigError, match=r"121 images of the last 12,000 read"):
        log.note(1000, [fault] * 31, "s")
    healed = faults.Log(0.01)
    healed.note(1000, [fault] * 10, "s")
    for _ in range(11):
        healed.note(1000, [], "s")
    healed.note(1000, [fault] * 100, "s")  # the ten lie behind the window
    assert healed.counts == {"disk": 110}


def test_a_list_that_a_kill_tore_is_mended_and_nothing_is_listed_twice(tmp_path):
    path = tmp_path / "bad.jsonl"
    two = [faults.Fault(i, f"k{i}", "image", "bad\nbytes") for i in range(2)]
    faults.Log(1.0, path).write(two, "s")
    whole = path.read_bytes()
    for cut in (1, 10, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        log = faults.Log(1.0, path)
        log.write(two, "s")
        log.write(two, "s")
        assert path.read_bytes() == whole


def test_a_fault_travels_as_an_array_and_long_texts_are_cut():
    found = faults.Fault(2**40, "ü" * 200, "json", "nötig " * 100)
    packed = np.stack([faults.pack(None), faults.pack(found), faults.pack(None)])
    (back,) = faults.unpack(packed)
    assert (back.index, back.cause) == (found.index, found.cause)
    assert found.key.startswith(back.key) and found.message.startswith(back.message)
    assert len(back.key) == 80 and len(back.message) > 200


def test_a_partner_that_cannot_be_read_is_a_bad_sample_too():
    log = faults.Log(1.0)
    batches = take(Broken(40, 4), log, **{"data.captions": "shuffled"})
    assert log.counts["disk"] > 4 * STEPS * 8 // 40 and set(log.counts) == {"disk"}
    assert all(batch["caption_mask"].any(axis=1).all() for batch in batches)


def test_evaluation_replaces_and_lists_but_counts_for_no_limit(tmp_path):
    source = opened(tars.shards(tmp_path / "d", SHARDS, EACH))
    bad = damage_image(tmp_path / "d") | remove_shard(tmp_path / "d")
    log = faults.Log(0.0, tmp_path / "bad.jsonl")
    batches = list(pipeline.eval_batches(make_config(), source, np.arange(40), 8, log))
    used = np.concatenate([batch["index"] for batch in batches])
    assert used.tolist() == [stand_in(i, bad, 40) for i in range(40)]
    assert {row["index"] for row in listed(tmp_path / "bad.jsonl")} == bad and not log.counts
