"""The images that an export is compared on: given ones, held-out ones of the run, or scenes."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import faults, files, pipeline
from jepa_vl.data.class_folder import images_below
from jepa_vl.data.shapes_world import ShapesWorld
from jepa_vl.shapes import Array

COUNT = 8
OPTION = "--images"
SCENES = "drawn scenes (the built-in shapes_world)"


class Shown(NamedTuple):
    """Images by the transform of evaluation.

    Attributes:
      images: uint8 [n, H, W, 3].
      source: that they are of; indices: their places in it.
      words: which images these are, for the card.
    """

    images: Array
    source: Any
    indices: list[int]
    words: str


class Pictures:
    """The images in a folder and below; their captions, for what reads some, are of scenes."""

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path):
        """Lists the files.

        Raises:
          ConfigError: no such folder, or no image in it.
        """
        if not folder.is_dir():
            raise ConfigError(OPTION, str(folder), "no such folder")
        self.folder, self.keys = folder, images_below(folder)
        if not self.keys:
            raise ConfigError(OPTION, str(folder), "no image lies in it or below")
        self.name, self.fingerprint = folder.resolve().name, ""
        self._captions = ShapesWorld(0, len(self.keys), 8, "val")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions`` of a scene, no ``label``, and ``key``."""
        key = self.keys[index]
        image, scene = files.read_bytes(self.folder / key, OPTION), self._captions[index]
        return {"image": image, "captions": scene["captions"], "label": -1, "key": key}


def choose(config: Config, folder: str | None, held_out: Callable[[], Any] | None = None) -> Shown:
    """At most :data:`COUNT` images, evenly spread over their source.

    Args:
      config: resolved; of the size and of the limits on images.
      folder: that was asked for; None: the held-out images of the run, where they can be read,
        else scenes that are drawn everywhere alike.
      held_out: opens the run's held-out source; None: there is no run.

    Raises:
      ConfigError: the folder is absent, or none of its images can be read.
    """
    if folder:
        source = Pictures(Path(folder).expanduser())
        try:
            return _show(config, source, f"images of the folder {source.name}")
        except ConfigError as error:
            rule = f"none of its images can be read: {error.value}: {error.rule}"
            raise ConfigError(OPTION, folder, rule) from error
    why = ""
    if held_out is not None:
        try:
            source = held_out()
            return _show(config, source, f"held-out images of {source.name}")
        except (ConfigError, OSError) as error:
            reason = " ".join(str(error).split())
            print(f"jepa-vl: the run's images cannot be read: {reason}", file=sys.stderr)
            why = ", as the run's own images could not be read"
    size = config.encoder.image_size
    return _show(config, ShapesWorld(0, COUNT, size, "val"), f"{SCENES}{why}")


def _show(config: Config, source: Any, words: str) -> Shown:
    """The images that can be read.

    Raises:
      BadSample: none of them.
    """
    found: list[tuple[int, Array]] = []
    last: faults.BadSample | None = None
    for index in _spread(len(source)):
        try:
            found.append((index, pipeline.centred(config, source, index)[1]))
        except faults.BadSample as error:
            last = error
    if not found:
        raise last or ConfigError("data.path", source.name, "has no image")
    indices, images = zip(*found, strict=True)
    return Shown(np.stack(images), source, list(indices), f"{len(found)} of the {words}")


def _spread(count: int) -> Sequence[int]:
    """Places of at most COUNT records."""
    return np.linspace(0, count - 1, min(COUNT, count)).round().astype(int).tolist()
