"""Promises of reading: each kind of file gives the pixels that its format says it holds.

Expectations are computed here from the numbers that go into a file, or the file is put together by
hand; the decoder under test is not asked what it would say.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import transforms

X, Y = np.meshgrid(np.arange(48), np.arange(32))
COLOURS = np.stack([5 * X, 8 * Y, 255 - 5 * X], -1).astype(np.uint8)  # smooth: JPEG keeps it
ALPHA = (8 * Y).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def assert_reads(data: bytes, expected: np.ndarray, tolerance: float = 0) -> None:
    """The whole image, and crops of it, are those of the expected pixels."""
    found = transforms.decode(data, "k")
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert abs(found - expected.astype(float)).max() <= tolerance
    rounded = np.rint(expected).astype(np.uint8)
    for size in (4, 16, 40):  # of JPEGs the first two are decoded smaller
        crops = [
            transforms.random_crop(given, size, (0.4, 1.0), (0.75, 4 / 3), np.random.default_rng(3))
            for given in (data, rounded)
        ]
        assert abs(crops[0].astype(int) - crops[1]).max() <= tolerance + 3 * (data[:1] == b"\xff")


def chunk(kind: bytes, content: bytes) -> bytes:
    code = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)


def png(samples: np.ndarray, depth: int, colour: int, *extra: bytes) -> bytes:
    """A PNG put together by hand; samples [H, W] or [H, W, C], uint8 or big-endian uint16."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_colours_come_back_exactly(kind):
    assert_reads(encode(Image.fromarray(COLOURS), kind, lossless=True), COLOURS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpegs_come_back_nearly(options):
    assert_reads(encode(Image.fromarray(COLOURS), "JPEG", quality=98, **options), COLOURS, 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(kind):
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    data = encode(image, kind, lossless=True, exact=True)
    assert_reads(data, on_white(COLOURS, ALPHA), 1)


def test_grey_of_1_8_and_16_bits_is_scaled_to_8():
    grey = COLOURS[..., 0]
    assert_reads(png(grey, 8, 0), np.repeat(grey[..., None], 3, -1))
    bits = np.packbits(grey > 100, axis=1)
    data = png(bits, 1, 0).replace(*wider(bits.shape[1], 48))
    assert_reads(data, np.repeat(255.0 * (grey > 100)[..., None], 3, -1))
    deep = (X * 1300 + Y * 100).astype(">u2")
    assert_reads(png(deep, 16, 0), np.repeat(deep[..., None] / 257.0, 3, -1), 0.5)


def wider(stored: int, width: int) -> tuple[bytes, bytes]:
    """The header of :func:`png` whose rows of bytes hold several pixels each."""
    headers = [struct.pack(">IIBBBBB", w, 32, 1, 0, 0, 0, 0) for w in (stored, width)]
    return chunk(b"IHDR", headers[0]), chunk(b"IHDR", headers[1])


def test_a_dark_16_bit_image_stays_dark():
    dark = np.full((32, 48), 200, ">u2")  # of 65535
    assert_reads(png(dark, 16, 0), np.ones((32, 48, 3)))


def test_grey_with_alpha_and_16_bit_colours_are_read():
    grey = COLOURS[..., 0]
    data = png(np.dstack([grey, ALPHA]), 8, 4)
    assert_reads(data, on_white(np.repeat(grey[..., None], 3, -1), ALPHA), 1)
    deep = (COLOURS.astype(np.uint32) * 257).astype(">u2")
    assert_reads(png(deep, 16, 2), COLOURS)
    assert_reads(
        png(np.dstack([deep, ALPHA * np.uint16(257)]).astype(">u2"), 16, 6),
        on_white(COLOURS, ALPHA),
        1,
    )


@pytest.mark.parametrize(("depth", "scale"), [(8, 1), (16, 257)])
def test_one_grey_or_colour_may_stand_for_transparent(depth, scale):
    grey = (COLOURS[..., 0].astype(np.uint32) * scale).astype(">u2" if depth == 16 else np.uint8)
    hole = chunk(b"tRNS", struct.pack(">H", 100 * scale))
    expected = np.where(COLOURS[..., :1] == 100, 255, COLOURS[..., :1]).repeat(3, -1)
    assert (expected != COLOURS[..., :1]).any()
    assert_reads(png(grey, depth, 0, hole), expected)
    if depth == 8:
        hole = chunk(b"tRNS", struct.pack(">3H", *COLOURS[4, 7].tolist()))
        expected = COLOURS.copy()
        expected[4, 7] = 255
        assert_reads(png(COLOURS, 8, 2, hole), expected)


def test_palettes_may_be_see_through_entry_by_entry():
    palette = np.array([[255, 0, 0], [0, 0, 255], [0, 200, 0]], np.uint8)
    alpha = np.array([255, 0, 102], np.uint8)
    indices = ((X // 4 + Y // 4) % 3).astype(np.uint8)
    plte = chunk(b"PLTE", palette.tobytes())
    assert_reads(png(indices, 8, 3, plte), palette[indices])
    trns = chunk(b"tRNS", alpha.tobytes())
    expected = on_white(palette[indices], alpha[indices])
    assert_reads(png(indices, 8, 3, plte, trns), expected, 1)


def cmyk_jpeg(samples: np.ndarray, *, ycck: bool) -> bytes:
    """An Adobe JPEG that stores 255 - ink; ``samples`` are C, M, Y, K inks, uint8 [H, W, 4]."""
    stored = 255.0 - samples
    if ycck:  # YCbCr of R, G, B = 255 - C, M, Y (as stored: inverted once more); K as it is
        r, g, b = np.moveaxis(255 - stored[..., :3], -1, 0)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        stored[..., 0] = luma
        stored[..., 1], stored[..., 2] = 128 + (b - luma) / 1.772, 128 + (r - luma) / 1.402
    given = Image.fromarray(255 - np.rint(stored.clip(0, 255)).astype(np.uint8), "CMYK")
    data = encode(given, "JPEG", quality=100, subsampling=0)  # Pillow stores 255 - what it is given
    marker = data.index(b"\xff\xee\x00\x0eAdobe") + 15
    assert data[marker] == 0
    return data[:marker] + (b"\x02" if ycck else b"\0") + data[marker + 1 :]


@pytest.mark.parametrize("ycck", [False, True])
def test_inverted_cmyk_and_ycck_of_adobe_become_colours(ycck):
    black = (2 * X).astype(np.uint8)
    inks = np.dstack([255 - COLOURS, black])
    expected = (255.0 - inks[..., :3]) * (255 - black[..., None]) / 255
    assert_reads(cmyk_jpeg(inks, ycck=ycck), expected, 6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_undone(kind, orientation):
    # EXIF: where the first stored row and the first stored column lie in the upright image.
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1),
        6: COLOURS.swapaxes(0, 1)[::-1],
        7: COLOURS.swapaxes(0, 1)[::-1, ::-1],
        8: COLOURS.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert_reads(data, COLOURS, 8 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:(Corrupt|Truncated)")
@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_a_damaged_exif_block_leaves_the_picture_as_it_is_stored(exif):
    assert_reads(encode(Image.fromarray(COLOURS), "JPEG", quality=98, exif=exif), COLOURS, 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_frame_counts(kind):
    flat = [Image.new("RGB", (48, 32), colour) for colour in ("red", "lime", "blue")]
    data = encode(flat[0], kind, save_all=True, append_images=flat[1:], duration=50, lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_reads(data, np.broadcast_to([255, 0, 0], (32, 48, 3)))


def test_floating_point_images_are_refused():
    data = encode(Image.fromarray(X.astype(np.float32)), "TIFF")
    with pytest.raises(ConfigError, match=r"k.*floating-point"):
        transforms.decode(data, "k")
