"""ArrayRecord shards of images and captions: what ``jepa-vl data convert`` writes.

Each record says all that belongs to its image, and nothing but this page is needed to read it:

    4 bytes    b"JVL1"
    4 bytes    size of the header, little-endian unsigned
    header     one JSON object in UTF-8: {"key": ..., "captions": [...], "label": ...}
    the rest   the image file, as it was

``key`` is a string that no other record has; captions and label stand under the names that
``data.caption_keys`` and ``data.label_key`` tell, as in a WebDataset sample. Other names are free.
``index.npz`` beside the shards saves the first scan; shards without it are read just the same.
"""

import functools
import importlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import catalogue, files
from jepa_vl.data.catalogue import Arrays, Catalogue, Catalogued
from jepa_vl.data.records import first_line, parse_object, read_captions
from jepa_vl.data.storage import local
from jepa_vl.shapes import Array

SUFFIX, INDEX = ".array_record", "index.npz"
MAGIC = b"JVL1"
VERSION = 1  # of the index
_START = struct.Struct("<4sI")
_BLOCK = 64  # records read at once while scanning


def encode(header: dict[str, Any], image: bytes) -> bytes:
    """One record."""
    text = json.dumps(header, ensure_ascii=False).encode()
    return _START.pack(MAGIC, len(text)) + text + image


def decode(record: bytes, key: str, where: str) -> tuple[dict[str, Any], bytes]:
    """Header and image of a record.

    Raises:
      ConfigError: it has another encoding, or no key or image; names ``where``.
    """
    magic, size = _START.unpack_from(record) if len(record) >= _START.size else (b"", 0)
    if magic != MAGIC:
        rule = "is no record of `jepa-vl data convert` (those begin with JVL1)"
        raise ConfigError(key, where, rule)
    header = parse_object(record[_START.size : _START.size + size], key, where)
    if not isinstance(header.get("key"), str) or not header["key"]:
        raise ConfigError(key, where, 'each header has "key", a string')
    image = record[_START.size + size :]
    if not image:
        raise ConfigError(key, where, f"holds no image behind its header (key {header['key']!r})")
    return header, image


def write_shard(path: Path, records: Iterable[bytes]) -> None:
    """Writes a shard under another name and then renames it: what has its name is whole.

    Raises:
      OSError: it cannot be written, the disk being full, say.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Images are compressed already. One record a group: each is read alone.
        writer = module().ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:
        raise OSError(first_line(error)) from error
    os.replace(temporary, path)


class Shards:
    """ArrayRecord files, opened where they are read.

    Attributes:
      files: their paths.
    """

    def __init__(self, root: Path, key: str):
        """Finds the files; ``key`` is the configuration key that gave the root, for errors."""
        self.files, self.root, self.key = files.find_files(root, SUFFIX, key), root, key
        self._readers: dict[int, Any] = {}

    def read(self, shard: int, places: list[int]) -> list[bytes]:
        """Some records of a shard.

        Raises:
          ConfigError: they cannot be read.
        """
        try:
            return self._reader(shard).read(places)
        except (RuntimeError, IndexError, ValueError) as error:
            rule = f"cannot be read: {first_line(error)}"
            raise ConfigError(self.key, self.where(shard, places[0]), rule) from error

    def where(self, shard: int, place: int) -> str:
        """Names a record in errors."""
        return f"{self.files[shard]}: record {place}"

    def stamp(self, *names: object) -> str:
        """What the index beside the shards must say to be theirs."""
        return repr((VERSION, catalogue.identity_of(self.files), names))

    def scan(self, caption_keys: Sequence[str], label_key: str) -> Arrays:
        """Reads every record: its catalogue, and ``ends`` int64 [shards], records up to each end.

        Raises:
          ConfigError: names the record and the rule.
        """
        found = Catalogue(caption_keys, label_key, self.key)
        ends = []
        for shard in range(len(self.files)):
            count = self._reader(shard).num_records()
            for start in range(0, count, _BLOCK):
                places = list(range(start, min(start + _BLOCK, count)))
                for place, record in zip(places, self.read(shard, places), strict=True):
                    where = self.where(shard, place)
                    header, _ = decode(record, self.key, where)
                    found.add(header["key"], header, where)
            ends.append(len(found.keys))
        if not found.keys:
            raise ConfigError(self.key, str(self.root), f"holds no record in its {SUFFIX} files")
        catalogue.check_distinct(found.keys, self.key, str(self.root))
        return {**found.arrays(), "ends": np.array(ends, np.int64)}

    def _reader(self, shard: int) -> Any:
        reader = self._readers.get(shard)
        if reader is None:  # two threads may both open: setdefault keeps one
            path = str(self.files[shard])
            reader = module().ArrayRecordReader(path, "readahead_buffer_size:0")
            if not reader.ok():  # damaged, cut short or something else
                rule = "cannot be read as an ArrayRecord file: damaged, or cut short"
                raise ConfigError(self.key, path, rule)
            reader = self._readers.setdefault(shard, reader)
        return reader


def write_index(folder: Path, caption_keys: Sequence[str], label_key: str, key: str) -> Arrays:
    """Reads all records of a folder and writes their index beside them; returns it.

    Raises:
      ConfigError: see :meth:`Shards.scan`.
      OSError: the folder cannot be written.
    """
    shards = Shards(folder, key)
    found = shards.scan(caption_keys, label_key)
    stamp = np.array(shards.stamp(tuple(caption_keys), label_key))
    catalogue.store(folder / INDEX, {**found, "stamp": stamp})
    return found


class ArrayRecordSource(Catalogued):
    """Random access to the records of a folder of ``*.array_record`` files, by name and place."""

    def __init__(
        self, path: str, caption_keys: Sequence[str], label_key: str, key: str = "data.path"
    ):
        """Loads the index of the records, or scans them.

        Args:
          path: folder of the shards, or one of them.
          caption_keys: header keys of the captions; the first that is present counts.
          label_key: header key of the class name.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: names the path, or the shard and its record, and the rule.
        """
        self.root, self.key = local(path), key
        self.caption_keys, self.label_key = tuple(caption_keys), label_key
        self._shards = Shards(self.root, key)
        stamp = self._shards.stamp(self.caption_keys, label_key)
        found = catalogue.load(self.root / INDEX) if self.root.is_dir() else None
        if found is None or str(found.get("stamp")) != stamp:
            found = catalogue.load_or_make(self._shards.files, stamp, self._scan)
        self._adopt(found, stamp)
        self._ends: Array = found["ends"]

    def __reduce__(self) -> tuple:
        # A worker loads the index; it may be large, and open files do not travel.
        return ArrayRecordSource, (str(self.root), self.caption_keys, self.label_key, self.key)

    @property
    def shards(self) -> list[Path]:
        """The files."""
        return self._shards.files

    @property
    def name(self) -> str:
        """Kind and last components of the path."""
        return "array_record/" + "/".join(self.root.parts[-2:])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          IndexError: there is no such record.
          ConfigError: the record cannot be read.
        """
        if index >= len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = int(index) - (int(self._ends[shard - 1]) if shard else 0)
        where = self._shards.where(shard, place)
        header, image = decode(self._shards.read(shard, [place])[0], self.key, where)
        captions = read_captions(header, self.caption_keys, self.key, where)
        return self._record(index, image, captions)

    def _scan(self) -> Arrays:
        return self._shards.scan(self.caption_keys, self.label_key)


@functools.cache
def module() -> Any:
    """A compiled module; loaded where it is used, like all that training can do without."""
    return importlib.import_module("array_record.python.array_record_module")
