"""Promises of the index about damaged shards: the rest is used, and what is not is told."""

from pathlib import Path

import pytest

from jepa_vl.config import ConfigError
from jepa_vl.data import faults
from jepa_vl.data.sources import Subset
from jepa_vl.data.tar import TarSource
from tests import tars


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def opened(path: Path) -> TarSource:
    return TarSource(str(path), tars.KEYS, "label")


def causes(source: TarSource) -> list[tuple[str, str]]:
    return [(fault.cause, Path(fault.key).name) for fault in source.faults]


def three(path: Path) -> Path:
    return tars.write(path, [m for key in "abc" for m in tars.sample(key)])


def used(source: TarSource) -> list[str]:
    """Keys of the samples, all of which can be read."""
    return [source[i]["key"] for i in range(len(source)) if source[i]["captions"]]


def test_of_a_truncated_shard_the_samples_before_the_cut_are_used(tmp_path):
    whole = three(tmp_path / "w/0.tar").read_bytes()
    at = {name: tars.offset_of(tmp_path / "w/0.tar", name) for name in ("c.jpg", "c.json")}
    cuts = {
        "inside an image": at["c.jpg"] + 9,
        "inside a caption": at["c.json"] + 9,
        "before a caption": at["c.json"] - 512,
        "inside a header": at["c.json"] - 300,
    }
    for number, cut in enumerate(cuts.values()):
        folder = tmp_path / str(number)
        three(folder / "0.tar").write_bytes(whole[:cut])
        tars.write(folder / "1.tar", tars.sample("z"))
        source = opened(folder)
        assert used(source) == ["a", "b", "z"] == source.keys.tolist()
        assert causes(source) == [("truncated", "0.tar")]


def test_behind_a_damaged_header_the_samples_are_found_again(tmp_path):
    path = tars.write(tmp_path / "d/0.tar", [m for key in "abcde" for m in tars.sample(key)])
    with path.open("r+b") as file:
        file.seek(tars.offset_of(path, "c.jpg") - 512)
        file.write(b"\xff" * 100)
    source = opened(tmp_path / "d")
    # b, before it, and c, after it, may have lost files.
    assert used(source) == ["a", "d", "e"] and causes(source) == [("archive", "0.tar")]


def test_of_files_of_one_name_the_first_counts(tmp_path):
    members = [*tars.sample("a", 1), *tars.sample("b"), ("a.jpg", tars.jpeg(200))]
    tars.write(tmp_path / "d/0.tar", members)
    source = opened(tmp_path / "d")
    assert used(source) == ["a", "b"] and causes(source) == [("duplicate", "a")]
    assert source[0]["image"] == tars.jpeg(1)
    tars.write(tmp_path / "d/1.tar", tars.sample("a", 5))  # in another shard it is another sample
    assert used(opened(tmp_path / "d")) == ["a", "b", "a"]


@pytest.mark.parametrize(
    "text", [b"{", b"[1]", b'{"captions": 3}', b'{"captions": ["x"], "label": []}', b"\xff\xfe{}"]
)
def test_a_sample_of_wrong_json_is_left_out(tmp_path, text):
    members = [*tars.sample("a"), ("b.jpg", tars.jpeg()), ("b.json", text), *tars.sample("c")]
    tars.write(tmp_path / "d/0.tar", members)
    source = opened(tmp_path / "d")
    assert used(source) == ["a", "c"] and causes(source) == [("json", "b")]
    assert "0.tar: b.json" in source.faults[0].message


def test_an_image_of_no_bytes_is_left_out(tmp_path):
    tars.write(tmp_path / "d/0.tar", [*tars.sample("a"), ("b.jpg", b""), tars.sample("b")[1]])
    source = opened(tmp_path / "d")
    assert used(source) == ["a"] and causes(source) == [("empty", "b")]


@pytest.mark.parametrize("name", ["../b.jpg", "/b.jpg", "x/../../b.jpg", "C:/b.jpg", "\\b.jpg"])
def test_a_member_whose_path_leaves_the_archive_is_refused(tmp_path, name):
    tars.write(tmp_path / "d/0.tar", [*tars.sample("a"), (name, tars.jpeg()), *tars.sample("c")])
    source = opened(tmp_path / "d")
    assert used(source) == ["a", "c"] and [fault.cause for fault in source.faults] == ["path"]
    assert f"{name!r} leaves the archive" in source.faults[0].message
    tars.write(tmp_path / "alone/0.tar", [(name, tars.jpeg())])
    with pytest.raises(ConfigError, match="leaves the archive"):
        opened(tmp_path / "alone")


def test_a_shard_that_is_no_tar_or_cannot_be_read_leaves_the_others(tmp_path, monkeypatch):
    tars.write(tmp_path / "d/1.tar", tars.sample("a"))
    (tmp_path / "d/0.tar").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "d/2.tar").write_bytes(b"")
    source = opened(tmp_path / "d")
    assert used(source) == ["a"]
    assert causes(source) == [("archive", "0.tar"), ("archive", "2.tar")]
    again = opened(tmp_path / "d")  # out of the cache
    assert again.faults == source.faults and again.fingerprint == source.fingerprint


def test_a_shard_that_could_not_be_read_once_is_looked_at_again(tmp_path, monkeypatch):
    folder = tars.shards(tmp_path / "d", 2, 2)
    from jepa_vl.data import storage

    def fail(self, offset, size):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(storage.Reader, "read", fail)
        with pytest.raises(ConfigError, match="Input/output error"):
            opened(folder)
    assert len(opened(folder)) == 4 and opened(folder).faults == ()


def test_what_an_index_left_out_is_listed_and_limited(tmp_path):
    bad = [(f"bad{i}.json", b"{") for i in range(11)] + [(f"bad{i}.jpg", b"x") for i in range(11)]
    tars.write(tmp_path / "d/0.tar", [*tars.sample("a"), *tars.sample("c"), *bad])
    part = Subset(opened(tmp_path / "d"), [1])
    log = faults.Log(0.02, tmp_path / "bad.jsonl")
    log.check_index(part)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 11
    strict = faults.Log(0.01, tmp_path / "bad.jsonl")
    with pytest.raises(ConfigError, match="11 images in the index are bad, most often by 'json'"):
        strict.check_index(part)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 11
