"""Masks of every layout, and what is said of those that do not fit."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import sources
from jepa_vl.data.scenes import SHAPES
from jepa_vl.data.shapes_world import ShapesWorld
from tests.image_sets import picture
from tests.shared import shared
from tests.tiny import tiny


def png(mask: np.ndarray, palette: bool = False) -> bytes:
    image, out = Image.fromarray(mask), io.BytesIO()
    if palette:  # as VOC's: colours for people, indices for us
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(out, "PNG")
    return out.getvalue()


def masks(count: int) -> list[np.ndarray]:
    """Different ones of 16 rows and 20 columns; the last column of each is ignored."""
    rng = np.random.default_rng(1)
    found = [rng.integers(0, 3, (16, 20)).astype(np.uint8) for _ in range(count)]
    for mask in found:
        mask[:, -1] = 255
    return found


def write(root, folders=("images", "masks"), below="", count=4, **how):
    """Images 000.jpg and their masks; class names beside them."""
    made = masks(count)
    for i, mask in enumerate(made):
        for folder, name, content in (
            (folders[0], f"{i:03d}.jpg", picture((i * 20, 99, 3))),
            (folders[1], f"{i:03d}.png", png(mask, **how)),
        ):
            (root / folder / below).mkdir(parents=True, exist_ok=True)
            (root / folder / below / name).write_bytes(content)
    (root / "mask_classes.txt").write_text("background\ncat\ndog\n")
    return made


def opened(root, **values):
    config = tiny(**{"data.kind": "mask_folder", "data.path": str(root), **values})
    return sources.open_sources(config)


IMAGES_ALONE = {"objective": "ijepa"}


def test_both_parts_hand_on_the_masks_of_their_images(tmp_path):
    made = write(tmp_path)
    parts = opened(tmp_path, **IMAGES_ALONE, **{"data.holdout": 0.4})
    seen = 0
    for part in parts:
        assert part.segment_classes == ("background", "cat", "dog")
        assert part.segmented.all() and len(part.segmented) == len(part)
        for index in range(len(part)):
            record = part[index]
            number = int(record["key"].split("/")[1][:3])
            np.testing.assert_array_equal(part.segments(index), made[number])
            assert (record["label"], record["captions"]) == (-1, [])
            seen += 1
    assert seen == 4


@pytest.mark.parametrize("palette", [False, True])
def test_the_layouts_of_voc_and_ade_are_read_by_their_splits(tmp_path, palette):
    made = write(tmp_path / "voc", ("JPEGImages", "SegmentationClass"), palette=palette)
    lists = tmp_path / "voc/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n002\n003\n")
    (lists / "val.txt").write_text("001\n")
    splits = {"data.split": "train", "eval.split": "val"}
    train, held_out = opened(tmp_path / "voc", **IMAGES_ALONE, **splits)
    assert (len(train), len(held_out)) == (3, 1)
    np.testing.assert_array_equal(held_out.segments(0), made[1])
    write(tmp_path / "ade", ("images", "annotations"), "train")
    write(tmp_path / "ade", ("images", "annotations"), "val", 2)
    train, held_out = opened(tmp_path / "ade", **IMAGES_ALONE, **splits)
    assert (len(train), len(held_out)) == (4, 2)
    assert train.keys[0] == "images/train/000.jpg"


def test_a_list_brings_captions_and_labels_and_images_without_a_mask_stay(tmp_path):
    made = write(tmp_path)
    lines = [
        {"image": f"images/{i:03d}.jpg", "captions": [f"picture {i}"], "label": "ab"[i % 2]}
        for i in range(4)
    ]
    lines[2]["mask"] = "masks/000.png"
    (tmp_path / "masks/001.png").unlink()
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = sources.SOURCES["mask_folder"](
        tiny(), sources.Place(str(tmp_path), "data.path", "", "train")
    )
    assert source.segmented.tolist() == [True, False, True, True] and source.captioned == 4
    np.testing.assert_array_equal(source.segments(2), made[0])
    with pytest.raises(ConfigError, match="has no mask"):
        source.segments(1)
    train, held_out = opened(tmp_path)  # the objective reads captions
    assert len(train) + len(held_out) == 4 and train.classes == ("a", "b")
    assert train[0]["captions"] == [f"picture {train[0]['key'][-5]}"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    np.testing.assert_array_equal(copy.segments(3), made[3])


def test_scenes_tell_the_shape_at_each_pixel():
    world = ShapesWorld(0, 5, 32)
    assert world.segment_classes == ("background", *SHAPES)
    assert world.segmented.tolist() == [True] * 5
    for index in range(5):
        item, found = world.annotate(index), world.segments(index)
        assert found.dtype == np.uint8 and found.shape == (32, 32)
        for number, thing in enumerate(item["objects"], 1):
            said = set(found[item["mask"] == number].tolist())
            assert said <= {world.segment_classes.index(thing.shape)}
        assert not found[item["mask"] == 0].any()


def damaged(root, how: str) -> None:
    write(root)
    mask = root / "masks/000.png"
    if how == "size":
        mask.write_bytes(png(np.zeros((16, 16), np.uint8)))
    elif how == "number":
        mask.write_bytes(png(np.full((16, 20), 7, np.uint8)))
    elif how == "colours":
        mask.write_bytes(picture(kind="PNG"))
    elif how == "cut":
        mask.write_bytes(mask.read_bytes()[:60])
    elif how == "no masks":
        for file in (root / "masks").iterdir():
            file.unlink()
    elif how == "no names":
        (root / "mask_classes.txt").unlink()
    elif how == "names":
        (root / "mask_classes.json").write_text("[1]")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("size", "is 16 x 16 and its image 20 x 16"),
        ("number", "holds number 7, but classes are named up to 2"),
        ("colours", "holds colours (RGB)"),
        ("cut", "is no mask that can be read"),
        ("no masks", "no image has a mask"),
        ("no names", "the names of classes"),
        ("names", "names classes:"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_line(tmp_path, how, words):
    damaged(tmp_path, how)
    with pytest.raises(ConfigError) as caught:
        for part in opened(tmp_path, **IMAGES_ALONE):
            for index in range(len(part)):
                part.segments(index)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.key == "data.path"


def test_a_split_that_is_nowhere_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match="neither a subfolder"):
        opened(tmp_path, **IMAGES_ALONE, **{"data.split": "test"})
    (tmp_path / "captions.jsonl").write_text('{"image": "images/000.jpg"}')
    with pytest.raises(ConfigError, match=r"of .*captions\.jsonl has: none"):
        opened(tmp_path, **IMAGES_ALONE, **{"data.split": "test"})


def test_real_masks_fit_their_photographs():
    parts = opened(shared("data/coco"))
    assert sum(map(len, parts)) == 108 and sum(part.segmented.sum() for part in parts) == 83
    assert parts[0].segment_classes[:2] == ("background", "person")
    assert [len(part.segment_classes) for part in parts] == [81, 81]
    seen = set()
    for part in parts:
        for index in np.flatnonzero(part.segmented):
            seen |= set(np.unique(part.segments(index)).tolist())
    assert {0, 1, 255} <= seen and len(seen) > 40
