"""From the bytes of an image to the uint8 square that the model sees."""

import io
import math
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the upright image
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_BUFFER = re.compile(r" ?<_io\.BytesIO[^>]*>")  # where Pillow would name a file


def decode(image: bytes | Array, key: str) -> Array:
    """The whole image, upright, in colour.

    Args:
      image: encoded bytes (whatever Pillow reads) or uint8 [H, W, 3].
      key: of the sample, for the error.

    Returns:
      uint8 [H, W, 3]; transparent pixels are composited on white.

    Raises:
      ConfigError: the bytes are no image, or a damaged one.
    """
    return _crop(image, key, lambda width, height: (0, 0, width, height), None)


def random_crop(
    image: bytes | Array,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    key: str = "",
) -> Array:
    """Random resized crop: torchvision's boxes, Pillow's antialiased bilinear resize, no flip.

    Args:
      image: encoded bytes or uint8 [H, W, 3].
      size: S, side of the result.
      scale: range of the crop's area over the image's.
      ratio: range of width over height, drawn log-uniformly.
      rng: the image's own generator.
      key: of the sample, for the error.

    Returns:
      uint8 [S, S, 3].

    Raises:
      ConfigError: the bytes are no image, or a damaged one.
    """
    return _crop(image, key, lambda w, h: random_box(w, h, scale, ratio, rng), size)


def centre_crop(image: bytes | Array, size: int, key: str = "") -> Array:
    """The deterministic transform of evaluation: the short side becomes S, then the centre square.

    The whole centre square is kept at any image size. (ImageNet's usual "resize to 8/7 of S, crop
    S" would throw away the border, which matters on small images.)

    Args:
      image: encoded bytes or uint8 [H, W, 3].
      size: S, side of the result.
      key: of the sample, for the error.

    Returns:
      uint8 [S, S, 3].

    Raises:
      ConfigError: the bytes are no image, or a damaged one.
    """
    return _crop(image, key, centre_box, size)


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


def _crop(
    image: bytes | Array, key: str, choose: Callable[[int, int], Box], size: int | None
) -> Array:
    if isinstance(image, np.ndarray):
        return _resize(Image.fromarray(image), choose(image.shape[1], image.shape[0]), size)
    try:
        opened = Image.open(io.BytesIO(image))
        orientation = opened.getexif().get(_ORIENTATION, 1)
        width, height = opened.size if orientation not in _SIDEWAYS else opened.size[::-1]
        box = choose(width, height)
        if size is not None and opened.format == "JPEG":
            _draft(opened, box, size)
        upright = _rgb(opened if orientation == 1 else ImageOps.exif_transpose(opened))
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        why = _BUFFER.sub("", f"{type(error).__name__}: {error}")
        rule = f"the image of this record cannot be decoded ({len(image)} bytes; {why})"
        raise ConfigError("data.path", key, rule) from error
    # The decoder may have halved the image (rounding up): the box follows.
    fx, fy = upright.width / width, upright.height / height
    return _resize(upright, (box[0] * fx, box[1] * fy, box[2] * fx, box[3] * fy), size)


def _draft(opened: Image.Image, box: Box, size: int) -> None:
    """Lets the JPEG decoder skip detail, as long as the crop keeps at least S pixels a side."""
    short = min(box[2] - box[0], box[3] - box[1])
    factor = next((f for f in (8, 4, 2) if short >= f * size), 1)
    if factor > 1:
        opened.draft(None, (opened.width // factor, opened.height // factor))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey: Pillow would clip instead of scale
        values = np.asarray(image, np.float64)
        top = 257.0 if values.max(initial=0) > 255 else 1.0
        image = Image.fromarray(np.clip(values / top, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _resize(image: Image.Image, box: tuple[float, float, float, float], size: int | None) -> Array:
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.array(image)
