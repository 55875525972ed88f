"""What one tar file holds: its headers and captions are read once, its images not at all."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.data import storage
from jepa_vl.data.faults import Fault, system_cause
from jepa_vl.data.records import parse_object, read_captions, read_label
from jepa_vl.shapes import Array

IMAGES = ("jpg", "jpeg", "png", "webp")
PARTS = ("image", "json", "txt", "cls")  # columns of ``spans``
_BLOCK = tarfile.BLOCKSIZE
# Bytes a read: enough for a header, the JSON that follows an image, and the next header; behind a
# URL a request costs as much as megabytes.
_LOCAL_READ, _URL_READ = 32 << 10, 8 << 20


@dataclass
class Part:
    """The samples of one shard.

    Attributes:
      arrays: ``keys`` uint8, the keys joined by newlines; ``ends`` int64 [n], where each ends in
        it; ``hashes`` uint64 [n], of the keys; ``spans`` int64 [n, 4, 2], offset and size of image,
        JSON, text and class, size -1 when absent; ``labels`` int32 [n], into ``names``, -1: none.
      names: of the labels, distinct.
      json_keys: seen in the shard.
      captioned: number of samples with a caption.
      faults: what was left out.
      final: False where a later look at the same file may find more.
    """

    arrays: dict[str, Array]
    names: list[str]
    json_keys: list[str]
    captioned: int
    faults: list[Fault]
    final: bool = True


@dataclass
class _Sample:
    spans: list[int] = field(default_factory=lambda: [-1] * (2 * len(PARTS)))
    rank: int = len(IMAGES)  # of the image's extension
    label: str | None = None
    class_file: str | None = None
    captioned: bool = False


class _Damaged(Exception):
    """An archive that ends, or becomes unreadable, where it should not."""

    def __init__(self, cause: str, message: str, member: str = ""):
        """``member``: name of the one that is cut; empty: what stands there cannot be known."""
        self.cause, self.member = cause, member
        super().__init__(message)


class _View:
    """A file for tarfile, read in blocks: what is asked for in order costs few reads."""

    def __init__(self, reader: storage.Reader, size: int, block: int):
        self._reader, self.size, self._block = reader, size, block
        self._start, self._data, self._position = 0, b"", 0

    def at(self, offset: int, size: int) -> bytes:
        """These bytes, fewer at the end of the file."""
        size = max(0, min(size, self.size - offset))
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            self._data = self._reader.read(offset, min(max(size, self._block), self.size - offset))
            self._start, begin = offset, 0
        return self._data[begin : begin + size]

    def read(self, size: int) -> bytes:
        data = self.at(self._position, size)
        self._position += len(data)
        return data

    def seek(self, offset: int) -> None:
        self._position = offset

    def tell(self) -> int:
        return self._position


def scan(path: str, size: int, key: str, caption_keys: Sequence[str], label_key: str) -> Part:
    """Finds the samples of a shard, in the order of their first member.

    A fault in one sample, or of the archive from some byte on, leaves the rest as it is.

    Args:
      path: an uncompressed tar file, or its URL.
      size: bytes.
      key: configuration key that gave the path.
      caption_keys: JSON keys of the captions; the first that is present counts.
      label_key: JSON key of the class name.
    """
    scanner = _Scanner(path, key, caption_keys, label_key)
    final = True
    try:
        with storage.Reader(path) as reader:
            block = _URL_READ if storage.is_url(path) else _LOCAL_READ
            scanner.run(_View(reader, size, block))
    except OSError as error:
        scanner.samples.clear()  # of a shard that is there tomorrow all is there
        rule = f"{path} cannot be read: {error.strerror or error}"
        scanner.blame(path, system_cause(error), rule)
        final = False
    return scanner.part(final)


class _Scanner:
    def __init__(self, path: str, key: str, caption_keys: Sequence[str], label_key: str):
        self.path, self.key = path, key
        self.caption_keys, self.label_key = caption_keys, label_key
        self.samples: dict[str, _Sample] = {}
        self.faults: list[Fault] = []
        self.json_keys: dict[str, None] = {}
        self.bad: set[str] = set()  # samples that are left out

    def blame(self, name: str, cause: str, message: str) -> None:
        self.faults.append(Fault(-1, name, cause, message))

    def run(self, view: _View) -> None:
        seen: set[str] = set()
        last, after_damage = "", False
        for member in _members(view):
            if isinstance(member, _Damaged):
                # The other files of the sample before, and of the one after, may be lost.
                cut = split_name(member.member)[0] if member.member else last
                self.bad.add(cut)
                after_damage = True
                left_out = f"; sample {cut!r} is left out" if cut else ""
                message = f"{self.path} cannot be read as an uncompressed tar file: {member}"
                self.blame(self.path, member.cause, message + left_out)
                continue
            stem, extension = split_name(member.name)
            if not member.isfile() or not stem:
                continue
            if leaves(member.name):
                rule = f"{self.path}: the path of member {member.name!r} leaves the archive"
                self.blame(member.name, "path", rule)
                continue
            if after_damage:
                self.bad.add(stem)
                after_damage = False
            last = stem
            if member.name in seen:
                rule = f"{self.path} holds two files {member.name!r}; the first counts"
                self.blame(stem, "duplicate", rule)
                continue
            seen.add(member.name)
            self.take(view, stem, extension, member)

    def take(self, view: _View, stem: str, extension: str, member: tarfile.TarInfo) -> None:
        sample = self.samples.setdefault(stem, _Sample())
        part, span = 0, [member.offset_data, member.size]
        if extension in IMAGES:
            # A photograph beside a drawing of the same name (a mask, say) is the image.
            rank = IMAGES.index(extension)
            if rank >= sample.rank:
                return
            sample.rank = rank
        else:
            part = PARTS.index(extension)
            if extension == "txt":
                sample.captioned |= member.size > 0
            elif extension == "cls":
                text = view.at(*span).decode("utf-8", "replace").strip()
                sample.class_file = text or None
            else:
                self.describe(view.at(*span), stem, sample)
        sample.spans[2 * part : 2 * part + 2] = span

    def describe(self, text: bytes, stem: str, sample: _Sample) -> None:
        where = f"{self.path}: {stem}.json"
        try:
            item = parse_object(text, self.key, where)
            sample.captioned |= any(read_captions(item, self.caption_keys, self.key, where))
            sample.label = read_label(item, self.label_key, self.key, where)
        except ConfigError as error:
            self.bad.add(stem)
            self.blame(stem, "json", f"{where}: {error.rule}")
        else:
            self.json_keys.update(dict.fromkeys(item))

    def part(self, final: bool) -> Part:
        kept: dict[str, _Sample] = {}
        for stem, sample in self.samples.items():
            if stem in self.bad or sample.spans[1] < 0:
                continue
            if sample.spans[1] == 0:
                self.blame(stem, "empty", f"{self.path}: the image of {stem} has no bytes")
                continue
            kept[stem] = sample
        raw = [stem.encode("utf-8", "surrogateescape") for stem in kept]
        labels = [s.label if s.label is not None else s.class_file for s in kept.values()]
        names = {
            name: i for i, name in enumerate(dict.fromkeys(n for n in labels if n is not None))
        }
        spans = np.array([s.spans for s in kept.values()], np.int64)
        lengths = np.array([len(stem) + 1 for stem in raw], np.int64)
        digests = b"".join(blake2b(stem, digest_size=8).digest() for stem in raw)
        arrays = {
            "keys": np.frombuffer(b"\n".join(raw), np.uint8),
            "ends": np.cumsum(lengths) - 1,
            "hashes": np.frombuffer(digests, ">u8").astype(np.uint64),
            "spans": spans.reshape(-1, len(PARTS), 2),
            "labels": np.array([-1 if n is None else names[n] for n in labels], np.int32),
        }
        captioned = sum(sample.captioned for sample in kept.values())
        return Part(arrays, list(names), list(self.json_keys), captioned, self.faults, final)


def _members(view: _View) -> Iterator[tarfile.TarInfo | _Damaged]:
    """All members that lie whole in the file; what is damaged between them is told of."""
    try:
        tar: Any = tarfile.TarFile(fileobj=view)  # pyright: ignore[reportArgumentType]
    except tarfile.TarError as error:
        yield _Damaged("archive", str(error))
        return
    while True:
        try:
            member = tar.next()
        except tarfile.TarError as error:
            yield _Damaged("truncated", str(error))
            return
        tar.members.clear()  # it would keep them all
        if member is not None:
            if member.offset_data + member.size > view.size:
                rule = f"{member.name} reaches beyond the end of the file"
                yield _Damaged("truncated", rule, member.name)
                return
            yield member
            continue
        # tarfile takes a damaged header in the middle for the end: the true end is a zero block.
        found = view.at(tar.offset, _BLOCK)
        if found == bytes(_BLOCK):
            return
        if len(found) < _BLOCK:
            yield _Damaged("truncated", f"no end-of-archive block at byte {tar.offset}: truncated?")
            return
        yield _Damaged("archive", f"damaged header at byte {tar.offset}")
        following = _next_header(view, tar.offset + _BLOCK)
        if following is None:
            return
        tar.offset, tar._loaded = following, False


def _next_header(view: _View, offset: int) -> int | None:
    """The first byte from an offset on where a header with a right checksum stands."""
    while len(block := view.at(offset, _BLOCK)) == _BLOCK:
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return offset
            except tarfile.TarError:
                pass
        offset += _BLOCK
    return None


_HIDDEN = re.compile(r"__.*__")


def split_name(name: str) -> tuple[str, str]:
    """Sample key (folder and base name up to the first dot) and the extension, in small letters.

    Both are empty for members that belong to no sample.
    """
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    extension = extension.lower()
    if not stem or extension not in (*IMAGES, *PARTS[1:]) or _HIDDEN.fullmatch(stem):
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension


def leaves(name: str) -> bool:
    """Would this path of a member lie outside the folder that the archive is unpacked in?"""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or parts[0].endswith(":") or ".." in parts


def to_bytes(part: Part) -> dict[str, Array]:
    """A part as arrays alone."""
    faults = [(fault.key, fault.cause, fault.message) for fault in part.faults]
    about = (part.names, part.json_keys, part.captioned, faults)
    return {**part.arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}


def from_bytes(arrays: dict[str, Array]) -> Part:
    """The reverse of :func:`to_bytes`."""
    names, json_keys, captioned, faults = json.loads(arrays.pop("about").tobytes())
    return Part(arrays, names, json_keys, captioned, [Fault(-1, *fault) for fault in faults])
