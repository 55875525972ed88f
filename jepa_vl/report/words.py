"""Words on patches as the reader chooses them: data of words.js, uint8 and base64."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from jepa_vl.report.figures import Box
from jepa_vl.report.page import Widget
from jepa_vl.shapes import Array

COLOURS = 64  # of magma, from which the page interpolates
SMALL = 160  # pixels a side up to which an image is kept as it is, not as JPEG
LIMIT = 1_500_000  # bytes of maps on a page, at most


class Caption(NamedTuple):
    """One caption over its image.

    Attributes:
      text: the caption.
      words: W strings.
      maps: [L, W, G, G] float, similarity of word and patch; a map of zeros means no patch.
      boxes: for each word None or where its object is: left, top, right, bottom in pixels.
    """

    text: str
    words: list[str]
    maps: Array
    boxes: list[Box | None]


def widget(shown: list[tuple[str, Array, list[Caption]]]) -> Widget | None:
    """The widget of images, as many as fit; None where no caption has a word.

    Args:
      shown: name, uint8 [H, W, 3] and captions of each image.
    """
    images, size, depth, grid = [], 0, 0, 0
    for name, image, captions in shown:
        kept = [caption for caption in captions if caption.words]
        size += sum((len(c.maps) + 1) * c.maps[0].size for c in kept)
        if images and size * 4 / 3 > LIMIT:
            break
        if kept:
            depth, grid = len(kept[0].maps), kept[0].maps.shape[-1]
            sides = {"width": image.shape[1], "height": image.shape[0]}
            told = [_caption(caption) for caption in kept]
            images.append({"name": name, "source": _source(image), **sides, "captions": told})
    if not images:
        return None
    layers = [f"all {depth}, averaged", *map(str, range(1, depth + 1))] if depth > 1 else ["1"]
    stops = colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3]
    colours = np.rint(255 * stops).astype(int).tolist()
    return Widget("words", {"grid": grid, "colours": colours, "layers": layers, "images": images})


def _caption(caption: Caption) -> dict[str, Any]:
    maps = caption.maps
    layers = [maps.mean(0), *maps] if len(maps) > 1 else [*maps]
    return {
        "text": caption.text, "words": caption.words, "boxes": caption.boxes,
        "layers": [quantised(layer) for layer in layers],
    }  # fmt: skip


def quantised(maps: Array) -> dict[str, Any]:
    """Maps on one scale, [W, G, G]: from ``low`` to ``high`` 1 to 255, and 0 where no patch is."""
    looking = maps[maps.any(axis=(1, 2))]
    low, high = (float(looking.min()), float(looking.max())) if len(looking) else (0.0, 1.0)
    if low == high:
        low = min(0.0, low - 1.0)
    levels = 1 + np.rint(254 * (maps - low) / (high - low))
    levels = np.where(maps.any(axis=(1, 2), keepdims=True), levels, 0).astype(np.uint8)
    return {"low": low, "high": high, "maps": base64.b64encode(levels.tobytes()).decode()}


def _source(image: Array) -> str:
    """An image as a data URI: small ones exactly."""
    kind = "PNG" if max(image.shape[:2]) <= SMALL else "JPEG"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=90)
    coded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{coded}"
