"""A folder of images with ``captions.jsonl``: one JSON object a line (image, captions, label)."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.data.records import number_labels, parse_object, read_captions, read_label

LIST = "captions.jsonl"


class FolderSource:
    """Random access to the images that ``captions.jsonl`` lists, in its order.

    Attributes:
      keys: relative path of each image.
      labels: int32 [images], -1 for none.
      classes: names of the labels, sorted.
      captioned: number of images with a caption.
      json_keys: keys seen in the list.
    """

    def __init__(
        self, path: str, caption_keys: Sequence[str], label_key: str, key: str = "data.path"
    ):
        """Reads the list and checks that its images are there.

        Args:
          path: the folder.
          caption_keys: JSON keys of the captions; the first that is present counts.
          label_key: JSON key of the class name.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: names the path, or the file and its line, and the rule.
        """
        self.root = Path(path).expanduser()
        self.key, self.captioned = key, 0
        raw = self._read_list()
        self.keys: list[str] = []
        self._captions: list[list[str]] = []
        names: list[str | None] = []
        seen: dict[str, None] = {}
        for number, line in enumerate(raw.decode("utf-8-sig", "replace").split("\n"), 1):
            if not line.strip():
                continue
            where = f"{self.root / LIST}:{number}"
            item = parse_object(line, key, where)
            seen.update(dict.fromkeys(item))
            self.keys.append(self._image_path(item, where))
            self._captions.append(read_captions(item, caption_keys, key, where))
            names.append(read_label(item, label_key, key, where))
        if not self.keys:
            raise ConfigError(key, path, f"{LIST} lists no image")
        self.json_keys = tuple(seen)
        self.captioned = sum(map(any, self._captions))
        self.classes, self.labels = number_labels(names)
        digest = hashlib.sha256(raw + repr((tuple(caption_keys), label_key)).encode())
        self.fingerprint = digest.hexdigest()[:16]
        self._check_images()

    @property
    def name(self) -> str:
        """Kind and last component of the path."""
        return f"folder/{self.root.name}"

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          ConfigError: the image cannot be read.
        """
        path = self.root / self.keys[index]
        try:
            image = path.read_bytes()
        except OSError as error:
            raise ConfigError(self.key, str(path), f"cannot be read: {error.strerror}") from error
        return {
            "image": image,
            "captions": self._captions[index],
            "label": int(self.labels[index]),
            "key": self.keys[index],
        }

    def _read_list(self) -> bytes:
        if not self.root.is_dir():
            raise ConfigError(self.key, str(self.root), "is no folder that can be read")
        try:
            return (self.root / LIST).read_bytes()
        except OSError as error:
            rule = f"a folder with {LIST}, which cannot be read: {error.strerror}"
            raise ConfigError(self.key, str(self.root), rule) from error

    def _image_path(self, item: dict[str, Any], where: str) -> str:
        image = item.get("image")
        if not isinstance(image, str) or not image:
            raise ConfigError(self.key, where, 'each line has "image", a path inside the folder')
        # By its letters: a link that the user made inside the folder is followed.
        parts = PurePosixPath(image.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or Path(image).is_absolute():
            raise ConfigError(self.key, where, f"image {image!r} leaves the folder")
        return image

    def _check_images(self) -> None:
        listed: dict[Path, set[str]] = {}
        for number, image in enumerate(self.keys, 1):
            path = self.root / image
            if path.parent not in listed:
                listed[path.parent] = (
                    set(os.listdir(path.parent)) if path.parent.is_dir() else set()
                )
            if path.name not in listed[path.parent]:
                rule = f"image {image!r} (number {number} of {LIST}) is not there"
                raise ConfigError(self.key, str(self.root), rule)
