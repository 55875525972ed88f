"""Captions that lie in a file of their own, joined to the records of any source by their keys."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data.records import parse_object, read_captions
from jepa_vl.shapes import Array

KEY, CAPTIONS = "data.captions_file", "captions"


class CaptionsFile:
    """JSON lines ``{"key": ..., "captions": [...]}``, read one at a time where they are wanted.

    Attributes:
      path: of the file.
      digest: hex, of its content.
      spans: key -> (offset, size) of its line; lines without a caption are left out.
    """

    def __init__(self, path: str):
        """Reads and checks every line, and remembers where it stands.

        Raises:
          ConfigError: names the file, the line and the rule.
        """
        self.path = Path(path).expanduser()
        self.spans: dict[str, tuple[int, int]] = {}
        digest, offset, seen = hashlib.sha256(), 0, set[str]()
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, 1):
                    digest.update(line)
                    if line.strip():
                        where = f"{self.path}:{number}"
                        name, captions = _parse(line, where)
                        if name in seen:
                            raise ConfigError(KEY, where, f"the key {name!r} stands twice")
                        seen.add(name)
                        if any(captions):
                            self.spans[name] = offset, len(line)
                    offset += len(line)
        except OSError as error:
            raise ConfigError(KEY, path, f"cannot be read: {error.strerror}") from error
        self.digest = digest.hexdigest()


class Joined:
    """A source whose images have the captions of a file, beside their own or in their place.

    Attributes:
      matched: number of images that the file has captions of.
      captioned: number of images with a caption of either kind, at least.
      keys, labels: of the source.
    """

    def __init__(self, source: Any, file: CaptionsFile, pool: str):
        """Looks up each record's key.

        Args:
          source: with distinct ``keys``; a source without them is read for its keys.
          file: of the captions.
          pool: ``synthetic`` (those of the file alone) or ``both``.

        Raises:
          ConfigError: two records have the same key.
        """
        self.source, self.path, self.pool = source, file.path, pool
        keys = getattr(source, "keys", None)
        keys = [source[i]["key"] for i in range(len(source))] if keys is None else keys
        names = [str(name) for name in keys]
        if len(set(names)) < len(names):
            rule = f"joins by keys, which must be distinct; some of {source.name} are the same"
            raise ConfigError(KEY, str(file.path), rule)
        absent = (0, -1)
        # int64 [images, (offset, size)]; size -1 where the file has none
        self._spans: Array = np.array([file.spans.get(name, absent) for name in names], np.int64)
        self.keys, self.labels = keys, getattr(source, "labels", None)
        self.matched = int((self._spans[:, 1] >= 0).sum())
        own = getattr(source, "captioned", len(source)) if pool == "both" else 0
        self.captioned = max(own, self.matched)
        self.json_keys = (*getattr(source, "json_keys", ()), CAPTIONS)
        text = source.fingerprint + file.digest + pool
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._fd = _open(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fd"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fd = _open(self.path)  # descriptors do not travel to workers

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self.source.classes

    @property
    def name(self) -> str:
        """The source's, and what was joined to it."""
        return f"{self.source.name} + {self.path.name} ({self.matched} of {len(self)} images)"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The source's record with the captions of the pool: its own first.

        Raises:
          ConfigError: the record cannot be read, or the file has changed.
        """
        record = self.source[index]
        own = record["captions"] if self.pool == "both" else []
        return {**record, "captions": [*own, *self._added(index, record["key"])]}

    def _added(self, index: int, key: str) -> list[str]:
        offset, size = self._spans[index].tolist()
        if size < 0:
            return []
        where = f"{self.path}: key {key}"
        name, captions = _parse(os.pread(self._fd, size, offset), where)
        if name != key:
            raise ConfigError(KEY, where, "the file has changed since it was opened")
        return captions


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(KEY, str(path), f"cannot be read: {error.strerror}") from error


def _parse(line: bytes, where: str) -> tuple[str, list[str]]:
    item = parse_object(line, KEY, where)
    name = item.get("key")
    if not isinstance(name, str) or item.get(CAPTIONS) is None:
        raise ConfigError(KEY, where, 'each line has "key", a string, and "captions"')
    return name, read_captions(item, (CAPTIONS,), KEY, where)
