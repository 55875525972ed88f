"""Promises of the turbo decoder: it is Pillow's picture to one level of 255, sooner."""

import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import pipeline, transforms, turbo
from tests.shared import shared
from tests.tiny import tiny

for library in ("cykooz_resizer", "simplejpeg"):
    pytest.importorskip(library, reason="no wheel for this platform")

SCALE, RATIO = (0.3, 1.0), (0.75, 4 / 3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise of all sizes, as photographs have it."""
    layers = [
        Image.fromarray(rng(n).integers(0, 256, (n, n, 3), np.uint8)).resize((width, height), 3)
        for n in (2, 8, 32, 128)
    ]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def crops(data, size: int, seed: int) -> list[np.ndarray]:
    return [
        transforms.random_crop(data, size, SCALE, RATIO, rng(seed), "k", decoder)
        for decoder in ("pillow", "turbo")
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_pillows_to_one_level_at_every_orientation_and_reduction(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = ({}, {"subsampling": 0}, {"progressive": True})
    for seed, more in enumerate(options):
        data = encode(photograph(331, 253), exif=exif, **more)
        for size in (224, 96, 48, 20):
            pillow, fast = crops(data, size, seed)
            assert fast.shape == (size, size, 3) and fast.dtype == np.uint8
            assert abs(pillow.astype(int) - fast).max() <= 1


def test_it_is_turbo_that_reads_jpegs_and_pillow_that_reads_the_rest(monkeypatch):
    asked = []
    crop = turbo.crop
    monkeypatch.setattr(turbo, "crop", lambda *args: asked.append(crop(*args)) or asked[-1])
    for mode, kind, fast in (
        ("RGB", "JPEG", True),
        ("L", "JPEG", True),
        ("CMYK", "JPEG", False),
        ("RGB", "PNG", False),
        ("RGB", "WEBP", False),
    ):
        asked.clear()
        pillow, found = crops(encode(photograph(64, 48, mode), kind), 16, 1)
        assert abs(pillow.astype(int) - found).max() <= (1 if fast else 0)
        assert len(asked) == fast and all(found is one for one in asked)


def test_what_libjpeg_objects_to_is_left_to_pillow():
    data = encode(photograph(96, 64))
    noisy = data[:2] + b"\xff\xfe\x00\x04ab\0\0" + data[2:]  # two stray bytes between markers
    assert turbo.crop(noisy, (96, 64), 1, 1, (0, 0, 96, 64), (0, 0, 96, 64), 16) is None
    pillow, fast = crops(noisy, 16, 0)
    np.testing.assert_array_equal(pillow, fast)
    for broken in (data[: len(data) // 2], data[:300]):
        with pytest.raises(ConfigError, match=r"data\.path = 'k'"):
            transforms.random_crop(broken, 16, SCALE, RATIO, rng(), "k", "turbo")


def test_pictures_of_a_few_pixels_are_read():
    for width, height in ((1, 1), (3, 5), (17, 2)):
        for size in (1, 2, 8):
            pillow, fast = crops(encode(photograph(width, height)), size, 0)
            assert abs(pillow.astype(int) - fast).max() <= 1


def test_every_processor_gets_the_same_crop():
    import cykooz_resizer as lib

    part = np.asarray(photograph(173, 131))
    alg = lib.ResizeAlg.convolution(lib.FilterType.bilinear)
    found = []
    for extensions in (lib.Resizer().cpu_extensions, lib.CpuExtensions.none):
        resizer = lib.Resizer()
        resizer.cpu_extensions = extensions
        pixels = lib.ImageData(173, 131, lib.PixelType.U8x3, part.tobytes())
        result = lib.ImageData(64, 64, lib.PixelType.U8x3)
        resizer.resize(pixels, result, lib.ResizeOptions(alg, use_alpha=False))
        found.append(result.get_buffer())
    assert found[0] == found[1]


class Photographs:
    """JPEGs without captions."""

    classes, fingerprint, name, captioned = ("one",), "0" * 16, "photographs", 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        image = encode(photograph(90 + index, 70))
        return {"image": image, "captions": ["a photograph"], "label": 0, "key": str(index)}


def test_the_key_changes_training_crops_by_one_level_and_nothing_else():
    batches = {}
    for decoder in ("pillow", "turbo"):
        config = tiny(**{"data.decoder": decoder})
        with pipeline.make_batches(config, Photographs(), 0) as stream:
            batches[decoder] = next(stream)
        batches[decoder, "eval"] = next(pipeline.eval_batches(config, Photographs(), range(8), 8))
    for name, array in batches["pillow"].items():
        allowed = 1 if name == "image" else 0
        assert abs(array.astype(int) - batches["turbo"][name]).max() <= allowed
    assert (batches["pillow"]["image"] != batches["turbo"]["image"]).any()
    for name, array in batches["pillow", "eval"].items():
        np.testing.assert_array_equal(array, batches["turbo", "eval"][name])


def test_a_missing_library_is_named_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    config = tiny(**{"data.decoder": "turbo"})
    with pytest.raises(ConfigError, match=r"data\.decoder = 'turbo': needs cykooz_resizer: pip"):
        pipeline.make_batches(config, Photographs(), 0)
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, decoder="pillow"))
    pipeline.make_batches(plain, Photographs(), 0).close()


def test_photographs_differ_by_one_level_at_most():
    folder = shared("data/coco/images")
    for number, path in enumerate(sorted(folder.iterdir())[:20]):
        for size in (224, 96):
            pillow, fast = crops(path.read_bytes(), size, number)
            assert abs(pillow.astype(int) - fast).max() <= 1
