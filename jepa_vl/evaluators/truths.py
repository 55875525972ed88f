"""Held-out images with the objects that words of their captions name: what grounding is held to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import captions, faults, naming, pipeline, shapes_world
from jepa_vl.data.segments import IGNORED
from jepa_vl.data.sources import Source
from jepa_vl.data.transforms import centre_box
from jepa_vl.evaluators.wordmaps import captions_shown, own_patches
from jepa_vl.shapes import Array


class Word(NamedTuple):
    """A word, or a run of words, that names something that is seen.

    Attributes:
      row: of the caption, among those that are encoded.
      places: of the words in their caption.
      kind: what it names, for tables: an attribute or a class.
      own: bool [G, G], the patches of what it names.
    """

    row: int
    places: tuple[int, ...]
    kind: str
    own: Array


class Scene(NamedTuple):
    """An image, uint8 [H, W, 3], the captions that are encoded, and the words that name objects."""

    index: int
    image: Array
    texts: list[str]
    words: list[Word]


def scenes(
    config: Config, source: Source, indices: Sequence[int] | Array, log: faults.Log | None = None
) -> list[Scene]:
    """Images in which a word names an object that is seen; others are left out.

    Args:
      config: reads the grid and the number of captions.
      source: knows ``annotate`` (words and objects), or masks of classes.
      indices: of the images.
      log: lists those that cannot be read.

    Raises:
      ConfigError: the source knows neither, a mask does not fit, or no image is left.
    """
    known: Any = source
    tells = _annotated if hasattr(source, "annotate") else _segmented
    if tells is _segmented and not getattr(source, "segment_classes", ()):
        rule = "grounding needs masks of what captions name: shapes_world, or mask_folder with a"
        raise ConfigError("data.kind", config.data.kind, f"{rule} list of captions")
    found, bad = [], []
    for index in np.asarray(indices).tolist():
        try:
            record, image = pipeline.centred(config, source, index)
        except faults.BadSample as error:
            bad.append(faults.of(error, index))
            continue
        shown = captions_shown(record["captions"], config.text.captions)
        texts = [record["captions"][i] for i in shown]
        words = tells(known, index, shown, texts, config.encoder.grid)
        if words:
            found.append(Scene(index, image, texts, words))
    if log is not None:
        log.write(bad, source.name)
    if len(found) < 2:
        rule = "grounding needs two images whose captions name something that has a mask; "
        raise ConfigError("data.path", source.name, f"{rule}{len(found)} of {len(indices)} do")
    return found


def _annotated(
    source: Any, index: int, shown: list[int], texts: list[str], grid: int
) -> list[Word]:
    """Words of shapes_world, each of which knows its object."""
    record, out = source.annotate(index), []
    for row, (caption, text) in enumerate(zip(shown, texts, strict=True)):
        for place, number in enumerate(record["word_objects"][caption]):
            mask = record["mask"] == number
            if number and mask.any():
                word = captions.words(text)[place]
                kind = shapes_world.attribute(word, record["objects"][number - 1])
                out.append(Word(row, (place,), kind, own_patches(mask, grid)))
    return out


def _segmented(
    source: Any, index: int, shown: list[int], texts: list[str], grid: int
) -> list[Word]:
    """Words that name a class that is seen in the centre square."""
    del shown
    if not source.segmented[index]:
        return []
    names = ["" if name == "background" else name for name in source.segment_classes]
    mask, out = source.segments(index), []
    left, top, right, bottom = centre_box(mask.shape[1], mask.shape[0])
    mask = mask[top:bottom, left:right]
    for row, text in enumerate(texts):
        for number, places in naming.named(text, names):
            own = (mask == number) & (mask != IGNORED)
            if own.any():
                out.append(Word(row, places, names[number], own_patches(own, grid)))
    return out
