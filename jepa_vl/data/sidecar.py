"""Captions that lie in a file of their own, joined to the records of any source by their keys."""

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import catalogue
from jepa_vl.data.embeddings import text_hash
from jepa_vl.data.records import parse_object, read_captions
from jepa_vl.data.segments import Wrapped
from jepa_vl.data.storage import local
from jepa_vl.shapes import Array

KEY, CAPTIONS = "data.captions_file", "captions"
VERSION = 1  # of the index


class CaptionsFile:
    """JSON lines ``{"key": ..., "captions": [...]}``, read one at a time where they are wanted.

    24 bytes a line are kept of it; every line is read and checked once, like an index of images.

    Attributes:
      path: of the file.
      digest: hex, of its content.
    """

    def __init__(self, path: str):
        """Finds out where each key's line stands.

        Raises:
          ConfigError: names the file, the line and the rule.
        """
        self.path = local(path)
        if not self.path.is_file():
            raise ConfigError(KEY, path, "is no file that can be read")
        found = catalogue.load_or_make([self.path], ("captions_file", VERSION), self._scan)
        self.digest = str(found["digest"])
        self._hashes, self._spans = found["hashes"], found["spans"]

    def spans_of(self, keys: Sequence[str]) -> Array:
        """Where the lines of some keys stand.

        Returns:
          int64 [keys, (offset, size)]; size -1 for keys without a caption in the file.
        """
        wanted = np.array([text_hash(name) for name in keys], np.uint64)
        spans = np.full((len(keys), 2), (0, -1), np.int64)
        if len(self._hashes):
            places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
            known = self._hashes[places] == wanted
            spans[known] = self._spans[places[known]]
        return spans

    def _scan(self) -> dict[str, Array]:
        digest, offset = hashlib.sha256(), 0
        hashes, spans, numbers = array("Q"), array("q"), array("q")
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    name, captions = _parse(line, f"{self.path}:{number}")
                    hashes.append(text_hash(name))
                    spans.extend((offset, len(line) if any(captions) else -1))
                    numbers.append(number)
                offset += len(line)
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")
        ranked = np.array(hashes, np.uint64)[order]
        if (same := np.flatnonzero(ranked[1:] == ranked[:-1])).size:
            first, second = (numbers[order[same[0] + i]] for i in range(2))
            rule = f"has the key of line {first}; give all captions of an image in one line"
            raise ConfigError(KEY, f"{self.path}:{second}", rule)
        places = np.array(spans, np.int64).reshape(-1, 2)[order]
        return {"digest": np.array(digest.hexdigest()), "hashes": ranked, "spans": places}


class Joined(Wrapped):
    """A source whose images have the captions of a file, beside their own or in their place.

    Attributes:
      matched: number of images that the file has captions of.
      captioned: number of images with a caption of the pool, at least.
    """

    def __init__(self, source: Any, file: CaptionsFile, pool: str):
        """Looks up each record's key.

        Args:
          source: whose keys are distinct.
          file: of the captions.
          pool: ``synthetic`` (those of the file alone) or ``both``.

        Raises:
          ConfigError: two records have the same key.
        """
        self.source, self.path, self.pool = source, file.path, pool
        names = list(map(str, source.keys))
        catalogue.check_distinct(names, KEY, f"{file.path}, joined to {source.name}")
        self._spans = file.spans_of(names)
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
    def keys(self) -> Any:
        """Those of the source."""
        return self.source.keys

    @property
    def labels(self) -> Any:
        """Those of the source, None where it knows them by its records alone."""
        return getattr(self.source, "labels", None)

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
