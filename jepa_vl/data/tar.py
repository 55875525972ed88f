"""WebDataset tar shards with random access: headers are scanned once, then offsets are read."""

import hashlib
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data.records import number_labels, parse_object, read_captions, read_label
from jepa_vl.shapes import Array

IMAGES = ("jpg", "jpeg", "png", "webp")
VERSION = 1  # of the index files
_PARTS = ("image", "json", "txt")
_INDEX = ("keys", "labels", "classes", "json_keys", "captioned", "shard", "spans")


class TarSource:
    """Random access to the samples of a folder of ``*.tar`` files, in the order of the shards.

    A sample is all files of one shard that share path and base name up to the first dot: an image,
    and its captions in ``.json`` or ``.txt``. The index lies in a user cache folder, never beside
    the data.

    Attributes:
      keys: str [images], of each sample.
      labels: int32 [images], -1 for none.
      classes: names of the labels, sorted.
      captioned: number of images with a caption.
      json_keys: JSON keys seen.
    """

    def __init__(
        self, path: str, caption_keys: Sequence[str], label_key: str, key: str = "data.path"
    ):
        """Loads the index, or makes it.

        Args:
          path: folder of the shards, or one tar file.
          caption_keys: JSON keys of the captions; the first that is present counts.
          label_key: JSON key of the class name.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: names the path, or the shard and its member, and the rule.
        """
        self.root, self.key = Path(path).expanduser(), key
        self.caption_keys, self.label_key = tuple(caption_keys), label_key
        self._fds: dict[int, int] = {}
        self.shards = self._find_shards()
        index = self._load_or_scan()
        self.keys, self.labels = index["keys"], index["labels"]
        self.classes = tuple(index["classes"].tolist())
        self.json_keys = tuple(index["json_keys"].tolist())
        self.captioned = int(index["captioned"])
        self._shard = index["shard"]  # int32 [images]
        self._spans = index["spans"]  # int64 [images, parts, (offset, size)]; size -1 when absent
        # Names and sizes, not times: a copy on another machine is the same data.
        text = [(s.name, s.stat().st_size) for s in self.shards], self.caption_keys, label_key
        digest = hashlib.sha256(repr(text).encode())
        digest.update("\n".join(self.keys.tolist()).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __reduce__(self) -> tuple:
        # A worker loads the index from the cache; it may be large, and descriptors do not travel.
        return TarSource, (str(self.root), self.caption_keys, self.label_key, self.key)

    @property
    def name(self) -> str:
        """Kind and last components of the path."""
        return "tar/" + "/".join(self.root.parts[-2:])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          ConfigError: the shard cannot be read, or has changed.
        """
        captions: list[str] = []
        if (text := self._read(index, 1)) is not None:
            where = f"{self.shards[self._shard[index]]}: {self.keys[index]}.json"
            item = parse_object(text, self.key, where)
            captions = read_captions(item, self.caption_keys, self.key, where)
        if not captions and (text := self._read(index, 2)) is not None:
            captions = [text.decode("utf-8", "replace").strip()]
        return {
            "image": self._read(index, 0) or b"",
            "captions": captions,
            "label": int(self.labels[index]),
            "key": str(self.keys[index]),
        }

    def _read(self, index: int, part: int) -> bytes | None:
        offset, size = self._spans[index, part].tolist()
        if size < 0:
            return None
        shard = int(self._shard[index])
        try:
            fd = self._fds.get(shard)
            if fd is None:  # two threads may both open: setdefault keeps one, the other is closed
                mine = os.open(self.shards[shard], os.O_RDONLY)
                fd = self._fds.setdefault(shard, mine)
                if fd != mine:
                    os.close(mine)
            data = os.pread(fd, size, offset)
        except OSError as error:
            rule = f"cannot be read: {error.strerror}"
            raise ConfigError(self.key, str(self.shards[shard]), rule) from error
        if len(data) != size:
            rule = f"is shorter than when it was indexed (sample {self.keys[index]})"
            raise ConfigError(self.key, str(self.shards[shard]), rule)
        return data

    def _find_shards(self) -> list[Path]:
        if self.root.is_file():
            return [self.root]
        try:
            names = sorted(os.listdir(self.root))
        except OSError as error:
            rule = f"is no folder that can be read: {error.strerror}"
            raise ConfigError(self.key, str(self.root), rule) from error
        shards = [self.root / n for n in names if n.endswith(".tar") and not n.startswith(".")]
        if not shards:
            inside = [n for n in names if any((self.root / n).glob("*.tar"))]
            hint = f"; give one of its folders: {', '.join(inside[:4])}" if inside else ""
            raise ConfigError(self.key, str(self.root), f"holds no .tar file{hint}")
        return shards

    def _load_or_scan(self) -> dict[str, Array]:
        stats = [(s.name, s.stat().st_size, s.stat().st_mtime_ns) for s in self.shards]
        text = repr((VERSION, str(self.root.resolve()), stats, self.caption_keys, self.label_key))
        path = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in _INDEX}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            pass  # absent or damaged: made anew
        index = self._scan()
        _store(path, index)
        return index

    def _scan(self) -> dict[str, Array]:
        keys: list[str] = []
        shard_of: list[int] = []
        spans: list[Array] = []
        names: list[str | None] = []
        json_keys: dict[str, None] = {}
        captioned = 0
        for number, shard in enumerate(self.shards):
            with open(shard, "rb") as file:
                for key, parts in scan_tar(shard, self.key).items():
                    if parts[0, 1] < 0:
                        continue
                    item: dict[str, Any] = {}
                    if parts[1, 1] >= 0:
                        where = f"{shard}: {key}.json"
                        text = os.pread(file.fileno(), int(parts[1, 1]), int(parts[1, 0]))
                        item = parse_object(text, self.key, where)
                        captions = read_captions(item, self.caption_keys, self.key, where)
                        captioned += bool(any(captions) or parts[2, 1] > 0)
                        names.append(read_label(item, self.label_key, self.key, where))
                    else:
                        captioned += bool(parts[2, 1] > 0)
                        names.append(None)
                    json_keys.update(dict.fromkeys(item))
                    keys.append(key)
                    shard_of.append(number)
                    spans.append(parts)
        if not keys:
            rule = f"its {len(self.shards)} tar file(s) hold no image ({', '.join(IMAGES)})"
            raise ConfigError(self.key, str(self.root), rule)
        classes, labels = number_labels(names)
        return {
            "keys": np.array(keys),
            "labels": labels,
            "classes": np.array(classes, dtype=np.str_),
            "json_keys": np.array(list(json_keys), dtype=np.str_),
            "captioned": np.array(captioned),
            "shard": np.array(shard_of, np.int32),
            "spans": np.stack(spans),
        }


def scan_tar(shard: Path, key: str) -> dict[str, Array]:
    """Samples of one shard, in the order of their first member.

    Args:
      shard: an uncompressed tar file.
      key: configuration key that gave the path, for errors.

    Returns:
      For each sample: int64 [3, 2], offset and size of image, JSON and text, size -1 when absent.

    Raises:
      ConfigError: no tar, a truncated one, or two members of the same name.
    """
    samples: dict[str, Array] = {}
    rank: dict[str, int] = {}  # of the image's extension
    seen: set[str] = set()
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stem, extension = split_name(member.name)
                if not member.isfile() or not stem:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} reaches beyond the end of the file")
                if member.name in seen:
                    raise ConfigError(key, str(shard), f"holds two files {member.name!r}")
                seen.add(member.name)
                spans = samples.setdefault(stem, np.full((3, 2), -1, np.int64))
                part = 0 if extension in IMAGES else _PARTS.index(extension)
                # A photograph beside a drawing of the same name (a mask, say) is the image.
                if part or IMAGES.index(extension) < rank.get(stem, len(IMAGES)):
                    spans[part] = member.offset_data, member.size
                if not part:
                    rank[stem] = min(IMAGES.index(extension), rank.get(stem, len(IMAGES)))
            end = tar.offset
        # tarfile takes a damaged header in the middle for the end: the true end is a zero block.
        with open(shard, "rb") as file:
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end-of-archive block at byte {end}: truncated?")
    except (OSError, tarfile.TarError) as error:
        rule = f"cannot be read as an uncompressed tar file ({error})"
        raise ConfigError(key, str(shard), rule) from error
    return samples


def split_name(name: str) -> tuple[str, str]:
    """Sample key (folder and base name up to the first dot) and part: image extension, json or txt.

    Both are empty for members that belong to no sample.
    """
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    extension = extension.lower()
    if not stem or re.fullmatch(r"__.*__", stem) or extension not in (*IMAGES, "json", "txt"):
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension


def cache_folder() -> Path:
    """$JEPA_VL_CACHE, or a folder in the user's cache."""
    given = os.environ.get("JEPA_VL_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "jepa_vl"


def _store(path: Path, index: dict[str, Array]) -> None:
    """Writes to a file of its own, then renames: other writers and readers see all or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    except OSError:
        return  # a cache that cannot be written costs a scan in each process, nothing else
    try:
        with os.fdopen(fd, "wb") as file:
            np.savez(file, **index)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
