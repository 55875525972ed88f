"""Promises of the transforms: any picture becomes an upright uint8 square in colour."""

import io

import numpy as np
import pytest
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import transforms


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "color", "kind", "expected"),
    [
        ("RGB", (200, 10, 30), "PNG", (200, 10, 30)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("L", 77, "JPEG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("I;16", 257 * 77, "PNG", (77, 77, 77)),
        ("RGBA", (200, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), "PNG", (200, 0, 0)),
        ("RGBA", (0, 0, 0, 51), "PNG", (204, 204, 204)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (200, 0, 0, 0), "WEBP", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "JPEG", (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), "JPEG", (255, 255, 255)),
    ],
)
def test_every_colour_mode_becomes_rgb_on_white(mode, color, kind, expected):
    data = encode(Image.new(mode, (24, 16), color), kind)
    image = transforms.decode(data, "k")
    assert image.shape == (16, 24, 3) and image.dtype == np.uint8
    assert abs(image.astype(int) - expected).max() <= 3


def test_palettes_with_and_without_transparency_are_resolved():
    plain = gradient(16, 16).convert("P")
    expected = np.asarray(plain.convert("RGB"))
    np.testing.assert_array_equal(transforms.decode(encode(plain, "PNG"), "k"), expected)
    see_through = Image.new("P", (8, 8), 0)
    see_through.putpalette([255, 0, 0, 0, 0, 255])
    data = encode(see_through, "PNG", transparency=0)
    assert (transforms.decode(data, "k") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_the_crop(orientation):
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    upright = gradient(160, 96)
    stored = upright if inverse is None else upright.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, "JPEG", quality=98, subsampling=0, exif=exif)
    image = transforms.decode(data, "k")
    assert image.shape == (96, 160, 3)
    assert abs(image.astype(int) - np.asarray(upright)).max() < 12
    crops = [
        transforms.random_crop(given, 16, (0.3, 1.0), (0.75, 4 / 3), rng(7))
        for given in (data, np.asarray(upright))
    ]
    assert abs(crops[0].astype(int) - crops[1]).max() < 12


def test_reduced_decoding_changes_neither_the_box_nor_the_picture_much():
    picture = gradient(403, 301)
    data = encode(picture, "JPEG", quality=95)
    for seed in range(10):
        args = (20, (0.3, 1.0), (0.75, 4 / 3))
        reduced = transforms.random_crop(data, *args, rng(seed))
        full = transforms.random_crop(transforms.decode(data, "k"), *args, rng(seed))
        assert reduced.shape == (20, 20, 3)
        assert abs(reduced.astype(int) - full).max() <= 8


def test_a_reduced_crop_lies_where_the_whole_one_does_to_a_fraction_of_a_pixel():
    """Seen by the place of a slanted edge: a box rounded to shrunk pixels would move it."""
    x, y = np.meshgrid(np.arange(643), np.arange(485))
    picture = Image.fromarray(np.clip(128 + 8 * (x + y - 560), 0, 255).astype(np.uint8))
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(picture, "JPEG", quality=98, exif=exif)
        upright = Image.fromarray(transforms.decode(data, "k"))
        for seed in range(12):
            args = (upright.width, upright.height, (0.3, 1.0), (0.75, 4 / 3))
            box = transforms.random_box(*args, rng(seed))
            crop = transforms.random_crop(data, 64, *args[2:], rng(seed))[..., 0]
            whole = upright.crop(box).resize((64, 64), Image.Resampling.BILINEAR)
            # Grey summed over a row is how far the edge lies from its end, in units of 255.
            moved = (crop.astype(float) - np.asarray(whole)[..., 0]).sum(1) / 255
            assert abs(moved).max() < 0.25 and abs(moved.mean()) < 0.05


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_reduced_crop_never_has_fewer_pixels_than_the_result(orientation):
    whole = (643, 485) if orientation < 5 else (485, 643)
    reductions = set()
    for seed in range(40):
        box = transforms.random_box(*whole, (0.01, 0.6), (0.75, 4 / 3), rng(seed))
        factor = transforms._reduction(box, 64)
        reductions.add(factor)
        outer, inner = transforms._reduced(box, whole, factor, orientation)
        sides = inner[2] - inner[0], inner[3] - inner[1]
        assert sides == pytest.approx(((box[2] - box[0]) / factor, (box[3] - box[1]) / factor))
        if min(box[2] - box[0], box[3] - box[1]) >= 64:
            assert min(sides) >= 64
        # Cut out is what holds the box, and not a pixel more.
        assert all(0 <= edge < 1 for edge in inner[:2])
        assert all(0 <= outer[i + 2] - outer[i] - inner[i + 2] < 1 for i in (0, 1))
        assert min(outer) >= 0 and all(
            far <= -(-side // factor) for far, side in zip(outer[2:], whole, strict=True)
        )
    assert reductions == {1, 2, 4}


def test_boxes_have_the_areas_and_ratios_asked_for():
    generator = rng()
    boxes = [
        transforms.random_box(600, 600, (0.3, 0.6), (0.75, 4 / 3), generator) for _ in range(4000)
    ]
    left, top, right, bottom = np.array(boxes).T
    width, height = right - left, bottom - top
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 600 and bottom.max() <= 600
    area, log_ratio = width * height / 600**2, np.log(width / height)
    assert area.min() > 0.295 and area.max() < 0.605 and abs(area.mean() - 0.45) < 0.01
    assert abs(log_ratio).max() < np.log(4 / 3) + 0.01 and abs(log_ratio.mean()) < 0.015


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1), (3, 2), (1, 500)])
def test_pictures_that_fit_no_box_get_the_largest_centred_one(width, height):
    box = transforms.random_box(width, height, (0.3, 1.0), (0.75, 4 / 3), rng())
    assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    image = np.zeros((height, width, 3), np.uint8)
    crop = transforms.random_crop(image, 8, (0.3, 1.0), (0.75, 4 / 3), rng())
    assert crop.shape == (8, 8, 3)
    if max(width, height) == 1000:
        assert min(box[2] - box[0], box[3] - box[1]) == 10
        assert sorted((box[2] - box[0], box[3] - box[1]))[1] == 13


def test_evaluation_keeps_the_whole_centre_square():
    image = np.asarray(gradient(300, 200))
    crop = transforms.centre_crop(image, 200)
    np.testing.assert_array_equal(crop, image[:, 50:250])
    assert transforms.centre_crop(image, 50).shape == (50, 50, 3)
    np.testing.assert_array_equal(
        transforms.centre_crop(image, 50), transforms.centre_crop(image, 50)
    )


@pytest.mark.parametrize("damage", ["empty", "junk", "cut jpeg", "cut png", "flipped png"])
def test_damaged_images_are_named(damage):
    jpeg, png = encode(gradient(64, 64), "JPEG"), encode(gradient(64, 64), "PNG")
    data = {
        "empty": b"",
        "junk": b"no image at all" * 10,
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "cut png": png[: len(png) // 2],
        "flipped png": png[:60] + bytes(b ^ 255 for b in png[60:120]) + png[120:],
    }[damage]
    for read in (
        lambda: transforms.decode(data, "shard/0042"),
        lambda: transforms.centre_crop(data, 16, "shard/0042"),
        lambda: transforms.random_crop(data, 16, (0.3, 1.0), (0.75, 1.3), rng(), "shard/0042"),
    ):
        with pytest.raises(ConfigError, match="shard/0042") as caught:
            read()
        assert caught.value.key == "data.path" and "BytesIO" not in str(caught.value)
