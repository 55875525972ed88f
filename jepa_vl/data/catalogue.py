"""What one scan of a large source finds out: made once, kept in the user's cache folder."""

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data.files import cache_folder, write_whole
from jepa_vl.data.records import leaf_names, number_labels, read_captions, read_label
from jepa_vl.shapes import Array

Arrays = dict[str, Array]


class Catalogue:
    """Collects the records of a source in their order.

    Attributes:
      keys: of the records so far.
      captioned: how many of them have a caption.
    """

    def __init__(self, caption_keys: Sequence[str], label_key: str, key: str):
        """``key`` is the configuration key that gave the source, for errors."""
        self.caption_keys, self.label_key, self.key = tuple(caption_keys), label_key, key
        self.keys: list[str] = []
        self.captioned = 0
        self._labels: list[str | None] = []
        self._json_keys: dict[str, None] = {}

    def add(self, name: str, item: dict[str, Any], where: str) -> list[str]:
        """Adds a record by its key and its JSON object or row; returns its captions.

        Raises:
          ConfigError: captions or label are of another type; names ``where``.
        """
        captions = read_captions(item, self.caption_keys, self.key, where)
        self._labels.append(read_label(item, self.label_key, self.key, where))
        self._json_keys.update(dict.fromkeys(leaf_names(item)))
        self.captioned += any(captions)
        self.keys.append(name)
        return captions

    def arrays(self) -> Arrays:
        """The catalogue as arrays.

        Returns:
          ``keys`` str [records]; ``labels`` int32 [records], -1 for none; ``classes`` str [C], by
          :func:`number_labels`; ``json_keys`` str; ``captioned``, a number.
        """
        classes, labels = number_labels(self._labels)
        return {
            "keys": np.array(self.keys, dtype=np.str_),
            "labels": labels,
            "classes": np.array(classes, dtype=np.str_),
            "json_keys": np.array(list(self._json_keys), dtype=np.str_),
            "captioned": np.array(self.captioned),
        }


class Catalogued:
    """A source that knows its records by a catalogue.

    Attributes:
      keys: str [records].
      labels: int32 [records], -1 for none.
      classes: names of the labels, sorted.
      captioned: number of records with a caption.
      json_keys: JSON keys or columns seen.
      fingerprint: 16 hex digits of the keys and of what the source names beside them.
    """

    def _adopt(self, found: Arrays, identity: object) -> None:
        """Takes over a catalogue; ``identity`` goes into the fingerprint beside the keys."""
        self.keys, self.labels = found["keys"], found["labels"]
        self.classes: tuple[str, ...] = tuple(found["classes"].tolist())
        self.json_keys: tuple[str, ...] = tuple(found["json_keys"].tolist())
        self.captioned = int(found["captioned"])
        digest = hashlib.sha256(repr(identity).encode())
        digest.update("\n".join(self.keys.tolist()).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def _record(self, index: int, image: bytes, captions: list[str]) -> dict[str, Any]:
        """A record, with the label and key that the catalogue knows."""
        label, key = int(self.labels[index]), str(self.keys[index])
        return {"image": image, "captions": captions, "label": label, "key": key}

    def __len__(self) -> int:
        return len(self.keys)


def check_distinct(keys: Sequence[str], key: str, where: str) -> None:
    """Refuses keys of which two are the same.

    Raises:
      ConfigError: names the key, and the numbers of the first two records that have it.
    """
    seen: dict[str, int] = {}
    for number, name in enumerate(keys):
        if (first := seen.setdefault(name, number)) != number:
            rule = f"records {first} and {number} have the same key {name!r}; keys must be distinct"
            raise ConfigError(key, where, rule)


def choose_keys(
    candidates: Sequence[tuple[Sequence[Any], bool]], numbered: list[str], key: str, where: str
) -> list[str]:
    """The first candidate that names every record, each by another name; else the numbered names.

    Args:
      candidates: names of all records, None where a record has none, each with: must they differ?
      numbered: distinct names that are always there.
      key: configuration key that gave the source, for errors.
      where: the source.

    Raises:
      ConfigError: two records have the same name of a candidate that must be distinct.
    """
    for names, must_differ in candidates:
        if names and all(isinstance(name, str | int) and name != "" for name in names):
            chosen = list(map(str, names))
            if must_differ:
                check_distinct(chosen, key, where)
            if len(set(chosen)) == len(chosen):
                return chosen
    return numbered


def identity_of(files: Sequence[Path]) -> list[tuple[str, int]]:
    """Names and sizes, not times: a copy on another machine is the same data."""
    return [(file.name, file.stat().st_size) for file in files]


def load_or_make(files: Sequence[Path], settings: object, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``make`` found when the files were what they are now.

    Args:
      files: that the arrays depend on, by path, size and time.
      settings: what else they depend on; its ``repr`` counts.
      make: scans the files.
    """
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    name = hashlib.sha256(repr((stats, settings)).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}.npz"
    if (stored := load(path)) is not None:
        return stored
    found = make()
    with contextlib.suppress(OSError):  # without it a scan in each process is lost, nothing else
        store(path, found)
    return found


def load(path: Path) -> Arrays | None:
    """The arrays of a file that :func:`store` wrote; None where it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def store(path: Path, arrays: Arrays) -> None:
    """Writes arrays in one piece.

    Raises:
      OSError: the folder cannot be written.
    """
    write_whole(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]
