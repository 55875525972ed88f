"""Promises of `jepa-vl data convert`: nothing changes but the form, and never half of it."""

import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_vl.cli.main import main
from jepa_vl.config import Config, ConfigError, resolve
from jepa_vl.data import array_record, convert, pipeline, sources
from jepa_vl.data.array_record import ArrayRecordSource
from tests import image_sets
from tests.image_sets import WRITERS, some
from tests.shared import shared
from tests.test_cli import ROOT, TINY, refused
from tests.tiny import tiny, tiny_config

KEYS = ("captions", "caption")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def command(kind: str, path: Path, out: Path, *words: str) -> list[str]:
    data = [f"--config.data.kind={kind}", f"--config.data.path={path}"]
    return ["data", "convert", "--config", TINY, *data, "--out", str(out), *words]


def printed_config(text: str, **values) -> Config:
    """The tiny configuration with the flags that the command ended with."""
    flags = text.strip().splitlines()[-1].split()
    pairs = [flag.removeprefix("--config.").partition("=")[::2] for flag in flags]
    return resolve(tiny_config(**{**values, **dict(pairs)}))


def records_of(config: Config) -> list[list[dict]]:
    parts = sources.open_sources(config)
    return [[part[i] for i in range(len(part))] for part in parts]


def first_batches(config: Config) -> list[pipeline.Batch]:
    with pipeline.make_batches(config, sources.open_sources(config)[0], 0) as stream:
        return list(itertools.islice(stream, 4))


@pytest.mark.parametrize("kind", [*WRITERS])
def test_records_splits_and_batches_are_those_of_the_source(tmp_path, capsys, kind):
    WRITERS[kind](tmp_path / "d", some(40))
    assert main(command(kind, tmp_path / "d", tmp_path / "out", "--config.data.holdout=0.2")) == 0
    text = capsys.readouterr().out
    before = tiny(**{"data.kind": kind, "data.path": str(tmp_path / "d"), "data.holdout": 0.2})
    after = printed_config(text)
    assert records_of(after) == records_of(before)
    for one, other in zip(first_batches(before), first_batches(after), strict=True):
        names = one.keys() - {"index"}  # of a part in the whole; here the part is the whole
        assert all(one[name].tobytes() == other[name].tobytes() for name in names)
    train, held_out = sources.open_sources(after)
    assert f"train: {len(train)} images, {len(train)} with captions" in text
    assert f"val: {len(held_out)} images" in text


def test_real_images_come_through_byte_for_byte(tmp_path, capsys):
    root = shared("data/coco")
    assert main(command("folder", root, tmp_path / "out")) == 0
    # Read by what the module's docstring says of the encoding, not by its decoder.
    reader = array_record.module().ArrayRecordReader
    found = {}
    for shard in (tmp_path / "out").rglob("*.array_record"):
        for record in reader(str(shard)).read_all():
            size = int.from_bytes(record[4:8], "little")
            header = json.loads(record[8 : 8 + size])
            assert record[:4] == b"JVL1" and len(header["captions"]) == 5
            found[header["key"]] = record[8 + size :]
    assert len(found) == 108
    assert all((root / name).read_bytes() == image for name, image in found.items())


def test_scenes_become_png_without_loss_and_keep_their_class_names(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command("shapes_world", Path(), out)) == 0
    before, after = tiny(), printed_config(capsys.readouterr().out)
    for old, new in zip(sources.open_sources(before), sources.open_sources(after), strict=True):
        assert len(old) == len(new)
        for i in range(0, len(old), 5):
            assert new[i]["image"].startswith(b"\x89PNG")
            image = np.asarray(Image.open(io.BytesIO(new[i]["image"])))
            np.testing.assert_array_equal(image, old[i]["image"])
            assert new[i]["captions"] == old[i]["captions"] and new[i]["key"] == old[i]["key"]
            assert new.classes[new[i]["label"]] == old.classes[old[i]["label"]]


def test_captions_files_other_names_and_splits_go_on_as_before(tmp_path, capsys):
    columns = {
        "image": [item.image for item in some(12)], "key": [item.key for item in some(12)],
        "text": [item.captions for item in some(12)], "kind": ["x", "y"] * 6,
    }  # fmt: skip
    for split in ("train", "test"):
        image_sets.write_table(tmp_path / f"d/{split}-0.parquet", columns)
    added = tmp_path / "s.jsonl"
    added.write_text(json.dumps({"key": "003.jpg", "captions": ["by a model"]}))
    values = {
        "data.caption_keys": ("text",), "data.label_key": "kind", "data.split": "train",
        "eval.split": "test", "data.captions_file": str(added),
    }  # fmt: skip
    words = [
        f"--config.{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in values.items()
    ]
    assert main(command("parquet", tmp_path / "d", tmp_path / "out", *words)) == 0
    before = tiny(**values, **{"data.kind": "parquet", "data.path": str(tmp_path / "d")})
    after = printed_config(capsys.readouterr().out, **values)
    assert (after.data.split, after.eval.split) == ("", "")
    assert records_of(after) == records_of(before)
    assert records_of(after)[0][3]["captions"] == ["picture 3", "said too", "by a model"]


def test_labelled_images_without_captions_are_converted_too(tmp_path, capsys):
    items = [item._replace(key=f"{item.label}/{item.key}") for item in some(10)]
    image_sets.write_images(tmp_path / "d", items)
    assert main(command("class_folder", tmp_path / "d", tmp_path / "out")) == 0
    text = capsys.readouterr().out
    assert " 0 with captions" in text
    train = sources.open_sources(printed_config(text, objective="ijepa"))[0]
    assert train.classes == ("a", "b") and train[0]["captions"] == []


def parts_of(path: Path) -> dict[str, sources.Source]:
    config = tiny(**{"data.kind": "folder", "data.path": str(path)})
    return dict(zip(("train", "val"), sources.open_sources(config), strict=True))


class Dies:
    """A source whose reader is killed at one record."""

    def __init__(self, source: sources.Source, at: int):
        self.source, self.at, self.read = source, at, 0
        self.classes, self.fingerprint, self.name = source.classes, source.fingerprint, "dies"
        self.keys = source.keys

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        if self.read == self.at:
            raise KeyboardInterrupt
        self.read += 1
        return self.source[index]


def test_a_conversion_that_is_stopped_goes_on_and_is_never_taken_for_a_whole_one(tmp_path):
    image_sets.write_folder(tmp_path / "d", some(40))
    parts, out, said = parts_of(tmp_path / "d"), tmp_path / "out", []

    def go(at: int | None = None) -> None:
        train = parts["train"] if at is None else Dies(parts["train"], at)
        convert.convert({**parts, "train": train}, out, KEYS, "label", 8, said.append)

    for at in (3, 8, 17):
        with pytest.raises(KeyboardInterrupt):
            go(at)
        assert not out.exists()
    shards = sorted((tmp_path / "out.partial/train").glob("*.array_record"))
    assert len(shards) == 3  # 0, then 1, then 2 more; those begun are not there
    times = [shard.stat().st_mtime_ns for shard in shards]
    go()
    assert not (tmp_path / "out.partial").exists()
    kept = [(out / "train" / shard.name).stat().st_mtime_ns for shard in shards]
    assert kept == times
    whole = ArrayRecordSource(str(out / "train"), KEYS, "label")
    assert [whole[i] for i in range(len(whole))] == [
        parts["train"][i] for i in range(len(parts["train"]))
    ]
    said.clear()
    go()
    assert said == [f"{out} is this conversion already"]


def test_a_killed_process_leaves_no_folder_and_the_same_command_finishes(tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys; from jepa_vl.data import convert\n"
        "from jepa_vl.cli.main import main\n"
        "convert.SHARD_IMAGES = 20\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = command("shapes_world", Path(), out, "--config.data.train_size=600")
    argv = [sys.executable, "-c", code, *words]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
    partial, deadline = tmp_path / "out.partial/train", time.monotonic() + 60
    while len(list(partial.glob("images-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("images-*")}
    assert 2 <= len(done) < 30 and not out.exists()
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    source = ArrayRecordSource(str(out / "train"), KEYS, "label")
    assert len(source) == 600 and source[599]["key"] == "train-00000599"
    assert all((out / "train" / name).stat().st_mtime_ns == time for name, time in done.items())


def test_shards_begun_of_other_data_are_made_anew(tmp_path):
    image_sets.write_folder(tmp_path / "d", some(20))
    image_sets.write_folder(tmp_path / "e", some(20, "e"))
    parts, out = parts_of(tmp_path / "d"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert.convert({"train": Dies(parts["train"], 9)}, out, KEYS, "label", 4, str)
    assert len(list((tmp_path / "out.partial").rglob("images-*"))) == 2
    other = parts_of(tmp_path / "e")
    convert.convert(other, out, KEYS, "label", 4, str)
    for name, part in other.items():
        written = ArrayRecordSource(str(out / name), KEYS, "label")
        assert [written[i] for i in range(len(written))] == [part[i] for i in range(len(part))]


def test_what_lies_in_the_way_is_left_alone(tmp_path, capsys):
    for name, count in (("d", 6), ("e", 7)):
        image_sets.write_folder(tmp_path / name, some(count))
    words = command("folder", tmp_path / "d", tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert main(words) == 0  # an empty folder is not in the way
    capsys.readouterr()
    error = refused(capsys, *command("folder", tmp_path / "e", tmp_path / "out"))
    assert "--out" in error and "is not this conversion" in error
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.txt").write_text("precious")
    assert "out.partial" in refused(capsys, *words)
    assert (tmp_path / "out.partial/thesis.txt").read_text() == "precious"


def test_the_index_beside_the_shards_spares_the_scan_and_is_not_believed_when_stale(
    tmp_path, cache, monkeypatch
):
    image_sets.write_folder(tmp_path / "d", some(12))
    convert.convert(parts_of(tmp_path / "d"), tmp_path / "out", KEYS, "label", tell=str)
    folder = tmp_path / "out/train"
    with monkeypatch.context() as patch:
        patch.setattr(ArrayRecordSource, "_scan", None)
        first = ArrayRecordSource(str(folder), KEYS, "label")
    assert not cache.exists()
    scanned = ArrayRecordSource(str(folder), ("caption",), "label")  # other names: not that index
    assert (first.captioned, scanned.captioned) == (len(first), 0)
    image_sets.write_array_record(folder / "more", some(3, "new"))
    (folder / "more/00000.array_record").rename(folder / "zzz.array_record")
    grown = ArrayRecordSource(str(folder), KEYS, "label")
    assert len(grown) == len(first) + 3 and grown[len(first)]["key"] == "new000.jpg"
    (folder / "index.npz").write_bytes(b"junk")
    assert ArrayRecordSource(str(folder), KEYS, "label").fingerprint == grown.fingerprint


def test_bad_records_are_found_before_they_are_written(tmp_path):
    image_sets.write_folder(tmp_path / "d", some(6))
    parts = parts_of(tmp_path / "d")
    (tmp_path / "d/002.jpg").unlink()
    with pytest.raises(ConfigError, match=r"002\.jpg"):
        convert.convert(parts, tmp_path / "out", KEYS, "label", tell=str)
    (tmp_path / "d/002.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="no image"):
        convert.convert(parts, tmp_path / "out", KEYS, "label", tell=str)
    (tmp_path / "d/002.jpg").write_bytes(image_sets.picture())  # mended: nothing bad was kept
    convert.convert(parts, tmp_path / "out", KEYS, "label", tell=str)
    for shard in ("0", "1"):  # each numbers its samples anew, as some tools do
        image_sets.write_tar(tmp_path / shard, some(3))
        (tmp_path / shard / "00000.tar").rename(tmp_path / f"{shard}.tar")
    twice, _ = sources.open_sources(
        tiny(**{"data.kind": "tar", "data.path": str(tmp_path), "data.holdout": 0.01})
    )
    with pytest.raises(ConfigError, match="same key"):
        convert.convert({"train": twice}, tmp_path / "other", KEYS, "label", tell=str)
    assert not (tmp_path / "other.partial").exists()


def test_a_full_disk_ends_a_conversion_and_leaves_no_shard(tmp_path, monkeypatch):
    image_sets.write_folder(tmp_path / "d", some(6))
    writer, opened = array_record.module().ArrayRecordWriter, []

    def to_full_disk(path: str, options: str):
        opened.append(path)
        return writer("/dev/full", options)

    with monkeypatch.context() as patch:
        patch.setattr(array_record.module(), "ArrayRecordWriter", to_full_disk)
        with pytest.raises(ConfigError, match="No space left") as caught:
            convert.convert(parts_of(tmp_path / "d"), tmp_path / "out", KEYS, "label", tell=str)
    assert caught.value.key == "--out" and len(opened) == 1
    assert not list((tmp_path / "out.partial").rglob("*.array_record"))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--out", "x"], "--config"),
        (["--config", TINY], "--out"),
        (["--config", TINY, "--out", f"{TINY}/x"], "--out"),
        (["--config", TINY, "--out", "x", "--config.data.kind=folder"], "data.path"),
    ],
)
def test_the_command_says_what_is_missing(words, key, capsys):
    assert f"error: {key} = " in refused(capsys, "data", "convert", *words)
