"""JPEG crops without Pillow: libjpeg-turbo into an array, and a vectorised resize.

Decoded pixels are Pillow's, bit for bit. The resize rounds differently: values of a crop lie at
most one of 255 levels from Pillow's, the same ones on every processor. What this brings is measured
by ``benchmarks/decoders.py``.
"""

import functools
import importlib
from typing import Any

import numpy as np
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

LIBRARIES, PACKAGES = ("simplejpeg", "cykooz_resizer"), ("simplejpeg", "cykooz-resizer")
# EXIF orientations: that swap width and height; whose upright left column is stored last; whose
# upright top row is.
SIDEWAYS, LEFT_IS_LAST, TOP_IS_LAST = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
_COLOURS = ("RGB", "L")  # four-colour JPEGs stay with Pillow


def require() -> None:
    """Checks that the libraries are there.

    Raises:
      ConfigError: one is not.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            rule = f"needs {name}: pip install 'jepa-vl[turbo]' ({error})"
            raise ConfigError("data.decoder", "turbo", rule) from error


def reads(opened: Image.Image) -> bool:
    """Is this an image for :func:`crop`? All others are Pillow's."""
    return opened.format == "JPEG" and opened.mode in _COLOURS


def crop(
    data: bytes,
    whole: tuple[int, int],
    orientation: int,
    factor: int,
    outer: tuple[int, int, int, int],
    inner: tuple[float, float, float, float],
    size: int,
) -> Array | None:
    """Decodes, cuts out and resizes.

    Args:
      data: of a grey or RGB JPEG.
      whole: its width and height as stored.
      orientation: EXIF's.
      factor: 1, 2, 4 or 8: the decoder shrinks the image by it.
      outer: box to cut out of the shrunk, upright image.
      inner: box within that one which becomes the result.
      size: S, side of the result.

    Returns:
      uint8 [S, S, 3]; None where libjpeg-turbo has something to object: Pillow, which lets some
      damage pass, then decides.
    """
    decode, lib = jpeg().decode_jpeg, _resizer()
    width, height = (-(-side // factor) for side in whole)
    try:
        stored = decode(data, min_height=height, min_width=width, min_factor=factor)
    except ValueError:
        return None
    if stored.shape[:2] != (height, width):  # fewer than 8 pixels a side: scales run together
        return None
    left, top, right, bottom = outer
    part = _upright(stored, orientation)[top:bottom, left:right]
    pixels = lib.ImageData(right - left, bottom - top, lib.PixelType.U8x3, part.tobytes())
    result = lib.ImageData(size, size, lib.PixelType.U8x3)
    convolution = lib.ResizeAlg.convolution(lib.FilterType.bilinear)
    edges = lib.CropBox(inner[0], inner[1], inner[2] - inner[0], inner[3] - inner[1])
    options = lib.ResizeOptions(convolution, use_alpha=False, crop_box=edges)
    lib.Resizer().resize(pixels, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)


@functools.cache
def jpeg() -> Any:
    """The library that decodes."""
    return importlib.import_module("simplejpeg")


@functools.cache
def _resizer() -> Any:
    return importlib.import_module("cykooz_resizer")


def _upright(stored: Array, orientation: int) -> Array:
    """A view."""
    turned = stored.swapaxes(0, 1) if orientation in SIDEWAYS else stored
    turned = turned[:, ::-1] if orientation in LEFT_IS_LAST else turned
    return turned[::-1] if orientation in TOP_IS_LAST else turned
