"""Where images and captions come from: the protocol, the registry and the split into two parts."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from jepa_vl.config import Config, ConfigError, one_of, reads_text
from jepa_vl.data import storage
from jepa_vl.data.folder import FolderSource
from jepa_vl.data.records import class_names
from jepa_vl.data.shapes_world import ShapesWorld
from jepa_vl.data.tar import TarSource
from jepa_vl.shapes import Array

WORLD_SEED = 0  # the built-in world is a data set: runs of any seed see the same scenes
NO_LABEL = -1

# image: uint8 [H, W, 3] or encoded bytes; captions: list[str]; label: int, -1 for none; key: str
Record = dict[str, Any]


class Source(Protocol):
    """Random access to records. Sources are picklable: data workers receive a copy."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in their order."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the content or order of the source."""
        ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Subset:
    """Some records of a source, in the order of the indices."""

    def __init__(self, source: Source, indices: Sequence[int] | Array, part: str = "subset"):
        self.source, self.part = source, part
        self.indices = np.asarray(indices, np.int64)
        labels = getattr(source, "labels", None)
        if labels is not None:
            self.labels = labels[self.indices]

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the whole source."""
        return self.source.classes

    @property
    def fingerprint(self) -> str:
        """Of the source and the indices."""
        text = self.source.fingerprint.encode() + self.indices.tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The source's, and the part."""
        return f"{self.source.name}#{self.part}"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]


class Relabelled:
    """A source whose labels count in another, larger tuple of classes."""

    def __init__(self, source: Source, classes: tuple[str, ...]):
        self.source, self.classes = source, classes
        table = [classes.index(name) for name in source.classes]
        self._table = np.array([*table, NO_LABEL], np.int32)  # [-1] is the record without label
        labels = getattr(source, "labels", None)
        if labels is not None:
            self.labels = self._table[labels]

    @property
    def fingerprint(self) -> str:
        """Unchanged: it names the images and their order."""
        return self.source.fingerprint

    @property
    def name(self) -> str:
        """Unchanged."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        return {**record, "label": int(self._table[record["label"]])}


def _from_files(kind: type[TarSource] | type[FolderSource]) -> Callable[..., Source]:
    def make(config: Config, path: str, key: str, split: str) -> Source:
        data = config.data
        source = kind(path, data.caption_keys, data.label_key, key=key)
        if split == "train" and reads_text(config) and not source.captioned:
            seen = ", ".join(source.json_keys) or "none"
            rule = f"names the JSON key of the captions; in {path} no image has one (keys: {seen})"
            raise ConfigError("data.caption_keys", data.caption_keys, rule)
        return source

    return make


def _world(config: Config, path: str, key: str, split: str) -> Source:
    del path, key
    length = config.data.train_size if split == "train" else config.eval.val_images
    return ShapesWorld(WORLD_SEED, length, config.encoder.image_size, split)


SOURCES: dict[str, Callable[..., Source]] = {
    "shapes_world": _world,
    "tar": _from_files(TarSource),
    "folder": _from_files(FolderSource),
}


def open_sources(config: Config) -> tuple[Source, Source]:
    """The training source and the held-out one, with labels that agree.

    Held out is, in this order: ``eval.path``; ``val`` beside a ``data.path`` whose last component
    is ``train``; a share ``data.holdout`` of the images, by the hash of their keys.

    Raises:
      ConfigError: names ``data.*`` or ``eval.path``, the path and what is wrong there.
    """
    one_of("data.kind", config.data.kind, SOURCES)
    make = SOURCES[config.data.kind]
    train = make(config, config.data.path, "data.path", "train")
    if config.data.kind == "shapes_world":
        return train, make(config, "", "", "val")
    path, key = held_out_path(config)
    if not path:
        return split_source(train, config.data.holdout)
    held_out = make(config, path, key, "val")
    classes = class_names([*train.classes, *held_out.classes])
    return _relabel(train, classes), _relabel(held_out, classes)


def held_out_path(config: Config) -> tuple[str, str]:
    """Where the held-out images lie and the key that says so; empty: a share of the others."""
    if config.eval.path:
        return config.eval.path, "eval.path"
    folder, name = storage.split(storage.expand(config.data.path))
    sibling = storage.join(folder, "val")
    found = name == "train" and storage.is_folder(sibling)
    return (sibling, "data.path") if found else ("", "")


def _relabel(source: Source, classes: tuple[str, ...]) -> Source:
    return source if source.classes == classes else Relabelled(source, classes)


def split_source(source: Source, share: float) -> tuple[Source, Source]:
    """Splits by the hash of each key: an image stays on its side when others are added.

    Args:
      source: with an attribute ``keys``, or its indices serve as keys.
      share: of the second part, in (0, 1). Each part has at least one image.

    Raises:
      ConfigError: fewer than two images.
    """
    count = len(source)
    if count < 2:
        raise ConfigError("data.path", source.name, "has one image; two parts need at least two")
    hashes = _unit_hashes(source)
    order = np.argsort(hashes, kind="stable")
    held = min(max(int((hashes < share).sum()), 1), count - 1)
    train, held_out = np.sort(order[held:]), np.sort(order[:held])
    return Subset(source, train, "train"), Subset(source, held_out, "held-out")


def _unit_hashes(source: Source) -> Array:
    """Of the keys: float64 [images], in [0, 1]. A source that has many brings ``key_hashes``."""
    stored = getattr(source, "key_hashes", None)
    if stored is None:
        keys = getattr(source, "keys", None)
        texts = map(str, range(len(source)) if keys is None else keys)
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
        stored = np.frombuffer(digests, ">u8")
    return stored.astype(np.float64) / 2.0**64


def labelled_indices(source: Source, count: int, seed: int = 0) -> Array:
    """Indices of labelled images, drawn without replacement and sorted.

    Args:
      source: read record by record where it has no attribute ``labels``.
      count: as many as this, or all there are.
      seed: of the draw.

    Returns:
      int64 [<= count].
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(source))
    labels = getattr(source, "labels", None)
    if labels is not None:
        return np.sort(order[labels[order] != NO_LABEL][:count])
    found: list[int] = []
    for index in order.tolist():
        if len(found) == count:
            break
        if source[index]["label"] != NO_LABEL:
            found.append(index)
    return np.sort(np.array(found, np.int64))
