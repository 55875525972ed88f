"""Promises of the tar index: made once, shard by shard; opened at once at any size; behind URLs."""

import collections
import os
import pickle
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jepa_vl.cli.main import main
from jepa_vl.config import ConfigError
from jepa_vl.data import pipeline, sources, storage, tar_index, tar_scan
from jepa_vl.data.tar import TarSource
from tests import tars
from tests.test_pipeline import assert_equal, make_config, take


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    """A file system behind URLs, empty before and after."""
    system = fsspec.filesystem("memory")
    for store in (system.store, system.pseudo_dirs):
        store.clear()
    yield system
    for store in (system.store, system.pseudo_dirs):
        store.clear()


@pytest.fixture
def scanned(monkeypatch):
    """Names of the shards that are scanned in this process."""
    names, scan = [], tar_scan.scan

    def noted(path, *args):
        names.append(os.path.basename(path))
        return scan(path, *args)

    monkeypatch.setattr(tar_scan, "scan", noted)
    return names


def opened(path) -> TarSource:
    return TarSource(str(path), tars.KEYS, "label")


def records(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def test_a_scan_that_was_killed_goes_on_where_it_was(tmp_path, scanned, monkeypatch, cache):
    folder = tars.shards(tmp_path / "d", 5, 2)
    with monkeypatch.context() as patch:
        working = tar_scan.scan

        def killed(path, *args):
            if path.endswith("003.tar"):
                raise KeyboardInterrupt
            return working(path, *args)

        patch.setattr(tar_scan, "scan", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(folder)
    stored = len(list((cache / "tar/parts").iterdir()))
    assert stored >= 3 and not list((cache / "tar").glob("*/meta.json"))
    scanned.clear()
    assert len(opened(folder)) == 10
    assert "003.tar" in scanned and len(scanned) == 5 - stored


def test_only_new_and_changed_shards_are_scanned(tmp_path, scanned):
    folder = tars.shards(tmp_path / "d", 4, 2)
    first = opened(folder)
    scanned.clear()
    tars.write(folder / "001.tar", tars.sample("changed"))
    tars.write(folder / "009.tar", tars.sample("new", 7))
    second = opened(folder)
    assert sorted(scanned) == ["001.tar", "009.tar"]
    assert first.fingerprint != second.fingerprint
    keys = ["s000", "s001", "changed", "s004", "s005", "s006", "s007", "new"]
    assert second.keys.tolist() == keys == [record["key"] for record in records(second)]
    assert second.keys[-1] == "new" and second.keys[1:3] == ["s001", "changed"]
    (folder / "009.tar").unlink()
    scanned.clear()
    assert opened(folder).keys.tolist() == keys[:-1] and scanned == []


def test_processes_and_threads_find_the_same(tmp_path, monkeypatch, scanned):
    folder = tars.shards(tmp_path / "d", 2 * tar_index.SHARDS_A_PROCESS, 1)
    if len(os.sched_getaffinity(0)) > 1:
        several = opened(folder)
        assert scanned == []  # here
    else:
        several = opened(folder)
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(tar_index, "SHARDS_A_PROCESS", 10**6)
    alone = opened(folder)
    assert len(scanned) >= 2 * 16 and several.fingerprint == alone.fingerprint
    assert records(several) == records(alone)
    np.testing.assert_array_equal(several.index.spans, alone.index.spans)


def upload(memory, folder: Path, url: str) -> None:
    for path in folder.iterdir():
        memory.pipe_file(f"{url}/{path.name}", path.read_bytes())


def test_behind_a_url_lie_the_same_records_read_by_their_ranges_after_one_listing(
    tmp_path, memory, monkeypatch
):
    folder = tars.shards(tmp_path / "train", 3, 4)
    local = opened(folder)
    upload(memory, folder, "/bucket/train")
    calls = collections.Counter()
    for name in ("ls", "info", "open", "cat_file"):
        method = getattr(MemoryFileSystem, name)

        def counted(self, *args, _method=method, _name=name, **kwargs):
            calls[_name] += 1
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    remote = opened("memory://bucket/train/")
    assert calls["ls"] == 1 and calls["info"] <= 1
    assert remote.fingerprint == local.fingerprint and remote.name == "tar/bucket/train"
    assert records(remote) == records(local)
    asked = []
    method = MemoryFileSystem.cat_file

    def ranged(self, path, start=None, end=None, **kwargs):
        asked.append(end - start)
        return method(self, path, start, end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", ranged)
    size = len(remote[5]["image"])
    assert len(asked) == 1 and size < asked[0] < size + 3 * 512 + 200  # image, header and JSON
    assert len(opened("memory://bucket/train/001.tar")) == 4


def test_a_url_serves_workers_and_its_val_is_held_out(tmp_path):
    tars.shards(tmp_path / "d/train", 2, 20)
    tars.shards(tmp_path / "d/val", 1, 3)
    batches = []
    for path, workers in ((f"file://{tmp_path}/d/train", 1), (tmp_path / "d/train", 0)):
        values = {"data.kind": "tar", "data.path": str(path), "data.workers": workers}
        config = make_config(**values)
        train, held_out = sources.open_sources(config)
        assert (len(train), len(held_out)) == (40, 3)
        batches.append(take(config, train, 2, start=7))
    for one, other in zip(*batches, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("url", ["memory://bucket/absent", "nonsense://bucket/train"])
def test_a_url_that_cannot_be_opened_is_named(memory, url):
    with pytest.raises(ConfigError) as caught:
        TarSource(url, tars.KEYS, "label", key="eval.path")
    assert (caught.value.key, caught.value.value) == ("eval.path", url)


def test_a_backend_that_fails_in_its_own_way_is_a_disk_error(tmp_path, memory, monkeypatch):
    upload(memory, tars.shards(tmp_path / "d", 1, 2), "/b")
    source = opened("memory://b")

    def fail(*args, **kwargs):
        raise RuntimeError("503 try later")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(ConfigError, match="503 try later") as caught:
        source[1]
    assert (caught.value.cause, caught.value.value) == ("disk", "s001")


def test_ten_thousand_shards_are_one_listing(memory, monkeypatch):
    for number in range(10_000):
        memory.pipe_file(f"/many/{number:05}.tar", b"0" * 100)
    for name in ("info", "open", "cat_file"):
        monkeypatch.setattr(MemoryFileSystem, name, None)  # any other request fails
    files, folders = storage.list_folder("memory://many", ".tar")
    assert len(files) == 10_000 and folders == []
    assert files[123].name == "00123.tar" and files[123].size == 100 and files[123].stamp


def synthetic(shard: str, count: int) -> tar_scan.Part:
    keys = [f"{shard}/{i:08}" for i in range(count)]
    lengths = np.array([len(key) + 1 for key in keys])
    spans = np.full((count, 4, 2), -1, np.int64)
    spans[:, 0] = np.stack([np.arange(count) * 2048 + 512, np.full(count, 700)], axis=1)
    arrays = {
        "keys": np.frombuffer("\n".join(keys).encode(), np.uint8),
        "ends": np.cumsum(lengths) - 1,
        "hashes": np.random.default_rng(0).integers(2**64, size=count, dtype=np.uint64),
        "spans": spans,
        "labels": np.arange(count, dtype=np.int32) % 2,
    }
    return tar_scan.Part(arrays, ["a", "b"], ["captions"], count, [])


def test_a_million_images_open_in_a_second_and_any_step_is_sought_in_milliseconds(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        tar_scan, "scan", lambda path, *_: synthetic(os.path.basename(path), 62_500)
    )
    for number in range(16):
        tars.write(tmp_path / f"d/{number:02}.tar", [])
    opened(tmp_path / "d")
    monkeypatch.setattr(tar_index, "_scan", None)
    began = time.perf_counter()
    source = opened(tmp_path / "d")
    train = sources.split_source(source, 0.05)[0]
    assert time.perf_counter() - began < 1.0
    assert len(source) == 1_000_000 and 900_000 < len(train) < 960_000
    assert len(pickle.dumps(source)) < 2000  # a worker maps the same files
    began = time.perf_counter()
    for index in range(0, 1_000_000, 9973):
        key, shard = source.keys[index], source.index.shard[index]
        assert key == f"{shard:02}.tar/{index % 62_500:08}"
        assert source.index.spans[index, 0].tolist() == [index % 62_500 * 2048 + 512, 700]
    assert (time.perf_counter() - began) / 101 < 0.005
    config = make_config(objective="ijepa")
    pipeline.make_batches(config, source, 0).close()  # imports
    costs = []
    for step in (10, 10**5, 10**7):
        began = time.perf_counter()
        pipeline.make_batches(config, train, step).close()
        costs.append(time.perf_counter() - began)
    assert min(costs) < 0.005, costs


def test_a_worker_uses_the_index_of_its_trainer_whatever_became_of_the_shards(tmp_path):
    folder = tars.shards(tmp_path / "d", 2, 3)
    source = opened(folder)
    sent = pickle.dumps(source)
    (folder / "000.tar").unlink()
    copy = pickle.loads(sent)
    assert copy.keys.tolist() == source.keys.tolist() and copy[4] == source[4]


def test_an_index_without_a_cache_travels_as_a_whole(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "file/below"))
    source = opened(tars.shards(tmp_path / "d", 2, 3))
    copy = pickle.loads(pickle.dumps(source))
    assert source.index.folder is None and records(copy) == records(source)
    assert copy.fingerprint == source.fingerprint


def test_an_index_belongs_to_its_path_not_to_the_folder_it_was_made_from(tmp_path, monkeypatch):
    folder = tars.shards(tmp_path / "d", 1, 2)
    monkeypatch.chdir(tmp_path)
    first = opened("d")
    monkeypatch.chdir(folder)
    assert records(opened(folder)) == records(first)


def test_data_index_prints_what_it_made(tmp_path, capsys):
    tars.shards(tmp_path / "d/train", 3, 2)
    tars.shards(tmp_path / "d/val", 1, 1)
    twice = [*tars.sample("twice"), *tars.sample("twice")]
    tars.write(tmp_path / "d/train/damaged.tar", [*twice, ("../x.jpg", tars.jpeg())])
    words = ["data", "index", "--config", "tests/configs_tiny.py"]
    path = f"--config.data.path={tmp_path}/d/train"
    assert main([*words, "--config.data.kind=tar", path]) == 0
    first, *faults, last = capsys.readouterr().out.splitlines()
    assert "4 shards, 7 images, 7 with captions, 3 classes" in first
    stored = Path(first.rpartition(", ")[2])
    assert (stored / "meta.json").is_file()
    assert [line.split(":")[0].strip() for line in faults] == ["duplicate", "duplicate", "path"]
    assert "1 shards, 1 images" in last
    assert main([*words, path]) == 5
    assert "data.kind = 'shapes_world'" in capsys.readouterr().err
