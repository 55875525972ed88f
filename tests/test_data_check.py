"""Promises of `jepa-vl data check` and `data show`: what they say of a data set is so."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_vl.cli import data_check
from jepa_vl.cli.main import main
from jepa_vl.data import sources, survey
from tests import image_sets
from tests.image_sets import Item, picture, some
from tests.shared import shared
from tests.test_cli import TINY, refused
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words_for(path: Path, kind: str = "folder") -> list[str]:
    return ["--config", TINY, f"--config.data.kind={kind}", f"--config.data.path={path}"]


def check(capsys, tmp_path: Path, *words: str, code: int = 0) -> tuple[str, dict]:
    out = tmp_path / "found/check.json"
    assert main(["data", "check", *words, "--json", str(out)]) == code
    return capsys.readouterr().out, json.loads(out.read_text())


@pytest.fixture
def flawed(tmp_path) -> Path:
    """Eight images to train on and three held out, with one flaw of each sort."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG")
    items = [
        *some(4),
        Item("twin.jpg", some(1)[0].image, ["once more"], None),
        Item("cut.jpg", out.getvalue()[:-900], ["a torn file"], "a"),
        Item("empty.jpg", b"no image", ["no file at all"], "a"),
        Item("big.png", picture(kind="PNG", size=(70, 50)), ["one", "w " * 40], "b"),
    ]
    image_sets.write_folder(tmp_path / "d/train", items)
    new = [Item(f"v{i}.jpg", picture((9, i * 90, 200)), ["a new picture"], "a") for i in (1, 2)]
    held = [*new, Item("leak.jpg", some(3)[2].image, [], "c")]
    image_sets.write_folder(tmp_path / "d/val", held)
    return tmp_path / "d/train"


def test_counts_sizes_captions_and_flaws_are_those_of_the_data(tmp_path, capsys, flawed):
    text, page = check(capsys, tmp_path, *words_for(flawed), code=1)
    train, held_out = page["groups"]["train"], page["groups"]["held-out"]
    assert (train["images"], train["checked"], held_out["images"]) == (8, 8, 3)
    assert train["width"] == {"min": 20, "median": 20.0, "max": 70}
    assert train["height"] == {"min": 16, "median": 16.0, "max": 50}
    assert train["smaller_than_image_size"] == 5  # of 32 pixels
    assert train["formats"] == {"JPEG RGB": 5, "PNG RGB": 1}
    assert (train["labelled"], train["classes"]) == (5, 2)
    assert train["captions"] == 4 * 2 + 1 + 2
    assert train["captions_an_image"] == {"min": 1, "median": 2.0, "max": 2}
    assert train["near_empty_captions"] == 1 and train["repeated_captions"] == 3
    assert (train["images_without_caption"], held_out["images_without_caption"]) == (0, 1)
    assert train["duplicate_images"] == {"count": 1, "examples": [["000.jpg", "twin.jpg"]]}
    causes = {cause: found["examples"] for cause, found in train["unreadable"].items()}
    assert sorted(causes.values()) == [["cut.jpg"], ["empty.jpg"]]
    assert any("truncated" in cause for cause in causes) and not any("bytes; " in c for c in causes)
    pair = {"groups": ["train", "held-out"], "images": 1, "example": ["002.jpg", "leak.jpg"]}
    assert page["in_common"] == [pair]
    for word in ("truncated", "cut.jpg", "have", "leak.jpg"):
        assert word in text


def test_token_lengths_are_whole_and_the_share_that_is_cut_is_right(tmp_path, capsys, flawed):
    text, page = check(capsys, tmp_path, *words_for(flawed), "--config.text.words=12", code=1)
    tokens = page["groups"]["train"]["tokens"]
    assert (tokens["words"], tokens["cut"], tokens["min"], tokens["max"]) == (12, 1, 1, 40)
    bins = tokens["histogram"]
    assert sum(count for *_, count in bins) == page["groups"]["train"]["captions"]
    assert bins[-1] == [25, 40, 1] and any(last == 12 for _, last, _ in bins)
    assert re.search(r"^25-40 +1 +#+ +cut$", text, re.M)


def test_what_the_index_had_to_leave_out_is_told(tmp_path, capsys):
    image_sets.write_tar(tmp_path / "d/train", some(6))
    image_sets.write_tar(tmp_path / "d/val", some(2, "v"))
    shard = next((tmp_path / "d/train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])  # as by a broken copy
    text, page = check(capsys, tmp_path, *words_for(tmp_path / "d/train", "tar"), code=1)
    assert page["left_out"] and 0 < page["groups"]["train"]["images"] < 6
    assert "left out of the index" in text and shard.name in text


def test_a_limit_looks_at_a_fixed_even_spread_and_states_its_share(tmp_path, capsys):
    image_sets.write_tar(tmp_path / "d/train", some(40))
    image_sets.write_tar(tmp_path / "d/val", some(5, "v"))
    text, page = check(capsys, tmp_path, *words_for(tmp_path / "d/train", "tar"), "--limit", "10")
    assert page["groups"]["train"]["checked"] == 10 and "10 (25.0%)" in text
    assert page["groups"]["held-out"]["checked"] == 5
    assert survey.spread(40, 10).tolist() == list(range(0, 40, 4))
    assert survey.spread(3, 10).tolist() == [0, 1, 2] and survey.spread(0, 10).tolist() == []
    assert page["shards"] == 2


def test_hosts_and_workers_that_a_run_needs_are_told(tmp_path, capsys):
    image_sets.write_tar(tmp_path / "d", some(10))
    words = [*words_for(tmp_path / "d", "tar"), "--hosts", "4", "--step-seconds", "0.000001"]
    text, page = check(capsys, tmp_path, *words)
    speed, need = page["speed"], page["need"]
    assert speed["image_size"] == 32
    assert 0 < speed["worker_images_per_second"] < speed["decode_images_per_second"]
    assert need["images_per_second_a_host"] == pytest.approx(8 / 4 / 1e-6)
    assert need["workers"] == int(np.ceil(2e6 / speed["worker_images_per_second"]))
    assert f"set data.workers={need['workers']}" in text and "1 shards for 4 hosts" in text
    calm = data_check._need(tiny(**{"data.workers": 2}), 1, 2.0, 3.0)
    assert (calm["workers"], calm["images_per_second_a_host"]) == (2, 4.0)
    assert calm["input_bound_by"] == pytest.approx(2 / 3)


def test_a_mixture_is_checked_source_by_source_and_timed_by_its_shares(tmp_path, capsys):
    image_sets.write_tar(tmp_path / "a", some(20))
    image_sets.write_folder(tmp_path / "b", some(12, "b"))
    data = f"tar:{tmp_path}/a@3,folder:{tmp_path}/b@1"
    words = ["--config", TINY, "--config.data.kind=mixture", f"--config.data.mixture={data}"]
    text, page = check(capsys, tmp_path, *words)
    assert [*page["groups"]] == ["train: a", "train: b", "held-out"]
    assert [(row["source"], row["a_batch"]) for row in page["mixture"]] == [("a", 6), ("b", 2)]
    assert page["mixture"][1]["epochs"] == pytest.approx(6 * 2 / page["mixture"][1]["images"])
    assert re.search(r"^a +\d+ +6 ", text, re.M)
    config = tiny(**{"data.kind": "mixture", "data.mixture": tuple(data.split(","))})
    parts = survey.groups(*sources.open_sources(config), None)
    surveys = [survey.Survey(config, group) for group in parts.values()]
    for found, seconds in zip(surveys, (2.0, 6.0, 99.0), strict=True):
        found.run()
        found.seconds = {"read": 0.0, "crop": seconds * len(found.seen), "rest": 0.0}
    assert survey.speed(surveys)["worker_images_per_second"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["shapes_world", "ijepa"])
def test_built_in_pictures_and_objectives_without_text_are_checked_too(tmp_path, capsys, kind):
    image_sets.write_folder(tmp_path / "d", some(8))
    path = words_for(tmp_path / "d") if kind == "ijepa" else ["--config", TINY]
    words = [*path, *(["--config.objective=ijepa"] if kind == "ijepa" else [])]
    text, page = check(capsys, tmp_path, *words, "--limit", "4")
    group = page["groups"]["train"]
    assert ("tokens" in group) == (kind == "shapes_world") and group["checked"] == 4
    assert page["shards"] is None and "unreadable" in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--limit", "0"], "--limit = '0': a whole number"),
        (["--hosts", "3"], "--hosts = '3': a divisor of train.batch_size = 8"),
        (["--step-seconds", "-1"], "--step-seconds = '-1': a number above 0"),
        (["--step-seconds", "fast"], "a number above 0"),
        (["--json", "."], "--json = '.': name the file"),
        (["--step-second", "1"], "did you mean --step-seconds?"),
    ],
)
def test_bad_options_of_check_are_one_line(capsys, words, part):
    assert part in refused(capsys, "data", "check", "--config", TINY, *words)


def test_show_draws_images_with_captions_labels_and_keys(tmp_path, capsys, monkeypatch):
    from jepa_vl.report import figures

    drawn = {}
    sheet = figures.contact_sheet

    def keep(images, titles, captions, title):
        drawn.update(images=images, titles=titles, captions=captions)
        return sheet(images, titles, captions, title)

    monkeypatch.setattr(figures, "contact_sheet", keep)
    image_sets.write_folder(tmp_path / "d/train", some(9))
    image_sets.write_folder(tmp_path / "d/val", some(2, "v"))
    out = tmp_path / "new/sheet.png"
    words = [*words_for(tmp_path / "d/train"), "--limit", "3", "--out", str(out)]
    assert main(["data", "show", *words]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 100
    assert drawn["titles"] == [("000.jpg", "a"), ("003.jpg", "b"), ("006.jpg", "a")]
    assert drawn["captions"][1] == ["picture 3", "said too"]
    # 20 x 16 pixels in a square: white above and below, the picture's colour in the middle.
    assert drawn["images"].shape == (3, 320, 320, 3) and (drawn["images"][:, 0] == 255).all()
    np.testing.assert_allclose(drawn["images"][1, 160, 160], (21, 99, 3), atol=4)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--out = '': give FILE.png"),
        (["--out", "sheet.jpg"], "give FILE.png"),
        (["--out", "s.png", "--limit", "401"], "at most 400"),
    ],
)
def test_bad_options_of_show_are_one_line(capsys, words, part):
    assert part in refused(capsys, "data", "show", "--config", TINY, *words)


def test_real_photographs_pass_the_check(tmp_path, capsys):
    _, page = check(capsys, tmp_path, *words_for(shared("data/coco")), "--limit", "20")
    train = page["groups"]["train"]
    assert train["checked"] == 20 and not train["unreadable"]
    assert train["captions"] == 100 and 200 < train["height"]["median"] <= 640
