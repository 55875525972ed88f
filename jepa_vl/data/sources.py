"""Where images and captions come from: the protocol, and the split into two parts."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jepa_vl.config import Config, ConfigError, one_of, reads_text
from jepa_vl.data import mixture, segments, storage
from jepa_vl.data.records import class_names
from jepa_vl.data.registry import SOURCES as SOURCES
from jepa_vl.data.registry import Place as Place
from jepa_vl.data.sidecar import CaptionsFile, Joined
from jepa_vl.kinds import KINDS, MIXTURE, Portion, batch_counts, read_mixture
from jepa_vl.shapes import Array

NO_LABEL = -1
MIXED_ORDER = 0x68656C64  # of a mixture's held-out images: whatever the seed, as they are the data

# image: uint8 [H, W, 3] or encoded bytes; captions: list[str]; label: int, -1 for none; key: str
Record = dict[str, Any]


class Source(Protocol):
    """Random access to records. Sources are picklable: data workers receive a copy."""

    @property
    def keys(self) -> Sequence[str] | Array:
        """Names of the records, in their order; known without reading them."""
        ...

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


class Subset(segments.Wrapped):
    """Some records of a source, in the order of the indices."""

    def __init__(self, source: Source, indices: Sequence[int] | Array, part: str = "subset"):
        self.source, self.part = source, part
        self.indices = np.asarray(indices, np.int64)
        labels = getattr(source, "labels", None)
        if labels is not None:
            self.labels = labels[self.indices]

    @property
    def keys(self) -> Array:
        """Those of the source at the indices."""
        return np.asarray(self.source.keys)[self.indices]

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

    @property
    def segmented(self) -> Array:
        """Of these records."""
        return super().segmented[self.indices]

    def segments(self, index: int) -> Array:
        """Of a record of these."""
        return super().segments(int(self.indices[index]))


class Relabelled(segments.Wrapped):
    """A source whose labels count in another, larger tuple of classes."""

    def __init__(self, source: Source, classes: tuple[str, ...]):
        self.source, self.classes = source, classes
        table = [classes.index(name) for name in source.classes]
        self._table = np.array([*table, NO_LABEL], np.int32)  # [-1] is the record without label
        labels = getattr(source, "labels", None)
        if labels is not None:
            self.labels = self._table[labels]

    @property
    def keys(self) -> Sequence[str] | Array:
        """Unchanged."""
        return self.source.keys

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


def open_sources(config: Config) -> tuple[Source, Source]:
    """The training source and the held-out one, their captions split if ``data.split_sentences``.

    Raises:
      ConfigError: see :func:`_open_parts`; or there is nothing to split.
    """
    train, held_out = _open_parts(config)
    if not config.data.split_sentences:
        return train, held_out
    if config.data.kind == "shapes_world":
        rule = "False with data.kind 'shapes_world', whose captions are sentences"
        raise ConfigError("data.split_sentences", True, rule)
    from jepa_vl.data.sentences import Sentences  # loads its library, which few runs need

    return Sentences(train), Sentences(held_out)


def _open_parts(config: Config) -> tuple[Source, Source]:
    """The training source and the held-out one, with labels that agree.

    Held out is, in this order: ``eval.path`` and ``eval.split``; ``val`` beside a ``data.path``
    whose last component is ``train``; a share ``data.holdout`` of the images, by the hash of their
    keys. Of a mixture it is ``eval.path``, else what each source alone would hold out, in one fixed
    mixed order. Where the objective reads captions, those of ``data.captions_file`` are joined to
    both.

    Raises:
      ConfigError: names ``data.*`` or ``eval.*``, the path and what is wrong there.
    """
    data = config.data
    added = None
    if data.captions_file and data.caption_pool != "raw" and reads_text(config):
        added = CaptionsFile(data.captions_file)
    if data.kind == MIXTURE:
        return _open_mixture(config, added)
    train, *others = [_join(part, config, added) for part in _open_places(config)]
    if reads_text(config):
        _check_captions(config, train)
    if not others:
        return split_source(train, data.holdout)
    if data.kind == "shapes_world":  # its classes are known, whatever the scenes
        return train, others[0]
    classes = class_names([*train.classes, *others[0].classes])
    return _relabel(train, classes), _relabel(others[0], classes)


def _open_places(config: Config) -> list[Source]:
    """The training source and, where it lies apart, the held-out one."""
    one_of("data.kind", config.data.kind, SOURCES)
    return [SOURCES[config.data.kind](config, place) for place in places(config)]


def _open_mixture(config: Config, added: CaptionsFile | None) -> tuple[Source, Source]:
    data, portions = config.data, read_mixture(config.data.mixture)
    alone = [_alone(config, portion) for portion in portions]
    opened = [_open_places(single) for single in alone]
    if reads_text(config) and added is None:
        for single, parts in zip(alone, opened, strict=True):
            if single.data.kind != "class_folder":  # the one kind that never has captions
                _check_captions(single, parts[0])
    if config.eval.path:
        trains, held_out = [parts[0] for parts in opened], [_open_eval(alone[0], config)]
    else:
        pairs = [p if len(p) > 1 else split_source(p[0], data.holdout) for p in opened]
        trains, held_out = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    names = mixture.short_names(portions)
    classes = class_names([name for part in (*trains, *held_out) for name in part.classes])
    prefix = mixture.share_keys(trains) or mixture.share_keys([*held_out])
    chains = [
        mixture.Chain([_relabel(part, classes) for part in parts], names[: len(parts)], prefix)
        for parts in (trains, held_out)
    ]
    train, held = [_join(chain, config, added) for chain in chains]
    if isinstance(train, Joined):
        _check_captions(config, train)
    # Whoever takes the first held-out images takes some of each source.
    order = np.random.default_rng(MIXED_ORDER).permutation(len(held))
    counts = batch_counts(portions, config.train.batch_size)
    return mixture.Mixture(train, chains[0].lengths, counts, names), Subset(held, order, "held-out")


def _alone(config: Config, portion: Portion) -> Config:
    """The configuration of one source of a mixture, as if there were no other."""
    reads = KINDS[portion.kind]
    change: dict[str, Any] = {"kind": portion.kind, "path": portion.path, "mixture": ()}
    change |= {key: "" for key in ("name", "split") if key not in reads}
    data = dataclasses.replace(config.data, **change)
    split = config.eval.split if "split" in reads and not config.eval.path else ""
    evaluation = dataclasses.replace(config.eval, path="", split=split)
    return dataclasses.replace(config, data=data, eval=evaluation)


def _open_eval(first: Config, config: Config) -> Source:
    place = Place(config.eval.path, "eval.path", config.eval.split, "val")
    return SOURCES[first.data.kind](first, place)


def _join(source: Source, config: Config, added: CaptionsFile | None) -> Source:
    return source if added is None else Joined(source, added, config.data.caption_pool)


def places(config: Config) -> list[Place]:
    """Where the training images lie and, unless they are a share of these, the held-out ones."""
    data, split = config.data, config.eval.split
    train = Place(data.path, "data.path", data.split, "train")
    if data.kind == "shapes_world":
        return [train, Place("", "", "", "val")]
    if config.eval.path or split:
        return [train, Place(config.eval.path or data.path, "eval.path", split, "val")]
    folder, name = storage.split(storage.expand(data.path))
    sibling = storage.join(folder, "val")
    if name == "train" and storage.is_folder(sibling):
        return [train, Place(sibling, "data.path", "", "val")]
    return [train]


def _check_captions(config: Config, source: Any) -> None:
    """Refuses a training source none of whose images has a caption of the pool."""
    data = config.data
    if isinstance(source, Joined) and not source.matched:
        rule = f"has captions of no image: none of its keys is a key of {source.name}, as "
        raise ConfigError("data.captions_file", data.captions_file, rule + repr(source.keys[0]))
    if not getattr(source, "captioned", True):
        seen = ", ".join(source.json_keys) or "none"
        where = f"in {data.path} no image has one (keys: {seen})"
        raise ConfigError("data.caption_keys", data.caption_keys, f"names the captions; {where}")


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
