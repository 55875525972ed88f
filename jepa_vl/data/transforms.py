"""From the bytes of an image to the uint8 square that the model sees."""

import io
import math
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from jepa_vl.data import turbo
from jepa_vl.data.faults import BadSample
from jepa_vl.shapes import Array

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the upright image
_ORIENTATION = 0x0112
_WHITE_16 = 65535
_BUFFER = re.compile(r" ?<_io\.BytesIO[^>]*>")  # where Pillow would name a file


def decode(image: bytes | Array, key: str, most: int | None = None) -> Array:
    """The whole image, upright, in colour.

    Args:
      image: encoded bytes (whatever Pillow reads) or uint8 [H, W, 3].
      key: of the sample, for the error.
      most: pixels that it may have; None: any number.

    Returns:
      uint8 [H, W, 3]; transparent pixels are composited on white.

    Raises:
      BadSample: the bytes are no image, or a damaged one.
    """
    return _crop(image, key, lambda width, height: (0, 0, width, height), None, most=most)


def random_crop(
    image: bytes | Array,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    key: str = "",
    decoder: str = "pillow",
    most: int | None = None,
) -> Array:
    """Random resized crop: torchvision's boxes, cut out, then antialiased bilinear; no flip.

    JPEGs whose crop is at least twice S are decoded at a half, a quarter or an eighth.

    Args:
      image: encoded bytes or uint8 [H, W, 3].
      size: S, side of the result.
      scale: range of the crop's area over the image's.
      ratio: range of width over height, drawn log-uniformly.
      rng: the image's own generator.
      key: of the sample, for the error.
      decoder: pillow; or turbo, which takes JPEGs through :mod:`jepa_vl.data.turbo`.
      most: pixels that an image may have; None: any number.

    Returns:
      uint8 [S, S, 3].

    Raises:
      BadSample: no bytes, no image, a damaged one, or too many pixels, which are not decoded.
    """
    return _crop(image, key, lambda w, h: random_box(w, h, scale, ratio, rng), size, decoder, most)


def centre_crop(image: bytes | Array, size: int, key: str = "", most: int | None = None) -> Array:
    """The deterministic transform of evaluation: the short side becomes S, then the centre square.

    The whole centre square is kept at any image size. (ImageNet's usual "resize to 8/7 of S, crop
    S" would throw away the border, which matters on small images.)

    Args:
      image: encoded bytes or uint8 [H, W, 3].
      size: S, side of the result.
      key: of the sample, for the error.
      most: pixels that an image may have; None: any number.

    Returns:
      uint8 [S, S, 3].

    Raises:
      BadSample: as of :func:`random_crop`.
    """
    return _crop(image, key, centre_box, size, most=most)


def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """The box of a random resized crop; after ten misfits the largest centred one that fits."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_TRIES):
        draws = rng.random(4)
        area = width * height * (scale[0] + draws[0] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[2] * (width - w + 1)), int(draws[3] * (height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - max(w, 1)) // 2, (height - max(h, 1)) // 2
    return left, top, left + max(w, 1), top + max(h, 1)


def centre_box(width: int, height: int) -> Box:
    """The centred square of the short side."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def upright_size(image: bytes, key: str = "") -> tuple[int, int]:
    """Width and height as people see it; only the header is read.

    Raises:
      BadSample: the bytes are no image.
    """
    try:
        opened = Image.open(io.BytesIO(image))
        sideways = opened.getexif().get(_ORIENTATION, 1) in turbo.SIDEWAYS
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        why = _BUFFER.sub("", f"{type(error).__name__}: {error}")
        raise BadSample(
            "image", "data.path", key, f"is no image that can be read: {why}"
        ) from error
    width, height = opened.size
    return (height, width) if sideways else (width, height)


def _crop(
    image: bytes | Array,
    key: str,
    choose: Callable[[int, int], Box],
    size: int | None,
    decoder: str = "pillow",
    most: int | None = None,
) -> Array:
    """Cuts a box out, then resizes: no pixel of the result has seen one outside its box."""
    if isinstance(image, np.ndarray):
        _check_pixels(image.shape[1], image.shape[0], most, key)
        left, top, right, bottom = choose(image.shape[1], image.shape[0])
        return _resize(Image.fromarray(image[top:bottom, left:right]), size)
    if not image:
        raise BadSample("empty", "data.path", key, "the image of this record has no bytes")
    try:
        opened = Image.open(io.BytesIO(image))
        _check_pixels(*opened.size, most, key)  # only the header has been read
        orientation = opened.getexif().get(_ORIENTATION, 1)
        width, height = opened.size if orientation not in turbo.SIDEWAYS else opened.size[::-1]
        box = choose(width, height)
        factor = _reduction(box, size) if opened.format == "JPEG" else 1
        outer, inner = _reduced(box, (width, height), factor, orientation)
        if decoder == "turbo" and size is not None and turbo.reads(opened):
            crop = turbo.crop(image, opened.size, orientation, factor, outer, inner, size)
            if crop is not None:
                return crop
        if factor > 1:
            opened.draft(None, (opened.width // factor, opened.height // factor))
        upright = opened if orientation == 1 else ImageOps.exif_transpose(opened)
        part = _rgb(upright.crop(outer))
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("pixels", "data.path", key, f"{error}") from error
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        why = _BUFFER.sub("", f"{type(error).__name__}: {error}")
        rule = f"the image of this record cannot be decoded ({len(image)} bytes; {why})"
        raise BadSample("image", "data.path", key, rule) from error
    return _resize(part, size, inner)


def _check_pixels(width: int, height: int, most: int | None, key: str) -> None:
    if most is not None and width * height > most:
        rule = f"{width} x {height} pixels are more than data.max_pixels = {most}"
        raise BadSample("pixels", "data.path", key, rule)


def _reduction(box: Box, size: int | None) -> int:
    """How much the JPEG decoder may shrink an image whose crop keeps at least S pixels a side."""
    short = min(box[2] - box[0], box[3] - box[1])
    return next((f for f in (8, 4, 2) if size is not None and short >= f * size), 1)


def _reduced(
    box: Box, whole: tuple[int, int], factor: int, orientation: int
) -> tuple[Box, tuple[float, float, float, float]]:
    """Where a box lies in the upright image once the decoder has shrunk it.

    A pixel of the shrunk image stands for factor x factor pixels from the stored top left corner
    on; the last ones are filled up, and lie at the start where the image is turned or mirrored.

    Args:
      box: in pixels of the upright image.
      whole: width and height of that image.
      factor: 1, 2, 4 or 8.
      orientation: EXIF's.

    Returns:
      The smallest box of shrunk pixels that holds all of it, and its exact edges in there.
    """
    fills = [
        -side % factor / factor if orientation in turned else 0
        for side, turned in zip(whole, (turbo.LEFT_IS_LAST, turbo.TOP_IS_LAST), strict=True)
    ]
    left, top, right, bottom = (edge / factor + fills[i % 2] for i, edge in enumerate(box))
    outer = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    inner = left - outer[0], top - outer[1], right - outer[0], bottom - outer[1]
    return outer, inner


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, also as 32-bit: Pillow would clip, not scale
        values = np.asarray(image, np.float64)
        hole = image.info.get("transparency")
        values = values if hole is None else np.where(values == hole, _WHITE_16, values)
        scaled = np.clip(np.rint(values * (255 / _WHITE_16)), 0, 255)
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its numbers are floating-point: nothing says which of them is white")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize(
    image: Image.Image,
    size: int | None,
    box: tuple[float, float, float, float] | None = None,
) -> Array:
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.array(image)
