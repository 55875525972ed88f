"""Masks: a class number at each pixel, and the names of these numbers.

A source that has them offers ``segments(index)``, uint8 or uint16 [H, W] as the upright image;
``segment_classes``, names from 0 on; and ``segmented``, bool [images]. Number 255 is no class.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jepa_vl.config import ConfigError
from jepa_vl.data import transforms
from jepa_vl.shapes import Array

IGNORED = 255
_NUMBERS = ("P", "L", "1", "I", "I;16")  # modes of Pillow whose pixels are numbers, not colours


class Wrapped:
    """Hands on the masks of ``source``; a source that has none names no class."""

    source: Any

    @property
    def segment_classes(self) -> tuple[str, ...]:
        """Those of the source."""
        return getattr(self.source, "segment_classes", ())

    @property
    def segmented(self) -> Array:
        """bool [images]: which have a mask."""
        found = getattr(self.source, "segmented", None)
        return np.zeros(len(self.source), bool) if found is None else found

    def segments(self, index: int) -> Array:
        """Of the source; only where ``segmented`` says so."""
        return self.source.segments(index)


def class_names(root: Path, names: Sequence[str], key: str) -> tuple[str, ...]:
    """Names of class numbers, from 0 on.

    The first file that is there: JSON ``{"0": "background", ...}`` (255 names what is ignored), or
    text with a name a line, the first that of number 0.

    Raises:
      ConfigError: none of the files is there, or it holds something else.
    """
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        raise ConfigError(key, str(root), f"holds no {' or '.join(names)}, the names of classes")
    try:
        text = file.read_text()
        found: Any = json.loads(text) if file.suffix == ".json" else None
    except ValueError as error:
        raise ConfigError(key, str(file), f"is no JSON: {error}") from error
    if file.suffix != ".json":
        found = {str(number): line.strip() for number, line in enumerate(text.splitlines())}
    numbered = isinstance(found, dict) and all(map(str.isdecimal, found))
    if not numbered or not all(isinstance(name, str) for name in found.values()):
        raise ConfigError(key, str(file), 'names classes: {"0": "background", "1": ...}')
    by_number = {int(number): name for number, name in found.items() if int(number) != IGNORED}
    if not by_number:
        raise ConfigError(key, str(file), "names no class")
    return tuple(by_number.get(i, f"class {i}") for i in range(max(by_number) + 1))


def present(masks: Sequence[str]) -> Array:
    """Which masks have a name: bool [images]."""
    return np.array([bool(mask) for mask in masks])


def read(content: bytes, key: str, where: str) -> Array:
    """The numbers of an image file, palettes as their indices: uint8 or uint16 [H, W].

    Raises:
      ConfigError: it is damaged, or holds colours.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if image.mode not in _NUMBERS:
            rule = f"holds colours ({image.mode}); a mask holds class numbers, grey or by a palette"
            raise ConfigError(key, where, rule)
        found = np.array(image)
    except ConfigError:
        raise
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise ConfigError(key, where, f"is no mask that can be read: {error}") from error
    return found.astype(np.uint8 if found.max(initial=0) < 256 else np.uint16)


def check(mask: Array, image: bytes, classes: int, key: str, where: str) -> None:
    """Refuses a mask that does not fit its image, or numbers that have no name.

    Raises:
      ConfigError: names the mask.
    """
    width, height = transforms.upright_size(image, where)
    if mask.shape != (height, width):
        rule = f"is {mask.shape[1]} x {mask.shape[0]} and its image {width} x {height}"
        raise ConfigError(key, where, rule)
    unknown = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
    if len(unknown):
        rule = f"holds number {unknown[0]}, but classes are named up to {classes - 1} alone"
        raise ConfigError(key, where, rule)
