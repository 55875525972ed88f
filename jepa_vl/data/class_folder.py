"""Images in one subfolder a class, without captions; ``data.captions_file`` may bring some."""

import os
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.data import files
from jepa_vl.data.catalogue import Catalogue, Catalogued
from jepa_vl.data.storage import local
from jepa_vl.data.tar_scan import IMAGES


class ClassFolderSource(Catalogued):
    """Random access to ``CLASS/.../NAME.jpg``, in the order of these paths.

    The label is the first folder's name. Folders without an image make no class, and what begins
    with a dot is passed over. The key of an image is its path.
    """

    def __init__(self, path: str, split: str = "", key: str = "data.path"):
        """Lists the files.

        Args:
          path: folder of the class folders, or of the split.
          split: subfolder that holds the class folders; empty: the path itself does.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: no such folder, or no image in its subfolders.
        """
        self.root, self.key = local(path), key
        if split:
            self.root = self.root / files.inside(split, key.replace("path", "split"), split)
        if not self.root.is_dir():
            given = (key.replace("path", "split"), split) if split else (key, path)
            raise ConfigError(*given, f"{self.root} is no folder that can be read")
        found = Catalogue((), "label", key)
        for folder in sorted(os.listdir(self.root)):
            if not folder.startswith("."):
                for image in images_below(self.root / folder):
                    name = f"{folder}/{image}"
                    found.add(name, {"label": folder}, name)
        if not found.keys:
            rule = f"holds no subfolder (one a class) with an image ({', '.join(IMAGES)})"
            raise ConfigError(key, str(self.root), rule)
        self._adopt(found.arrays(), "class_folder")

    @property
    def name(self) -> str:
        """Kind and last components of the path."""
        return "class_folder/" + "/".join(self.root.parts[-2:])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, no ``captions``, ``label`` and ``key``.

        Raises:
          ConfigError: the image cannot be read.
        """
        image = files.read_bytes(self.root / str(self.keys[index]), self.key)
        return self._record(index, image, [])


def images_below(folder: Path) -> list[str]:
    """Relative paths of the images in a folder and below, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        images = [n for n in names if n.lower().endswith(tuple(f".{kind}" for kind in IMAGES))]
        found += [(below / name).as_posix() for name in images if not name.startswith(".")]
    return sorted(found)
