"""What a data set holds: one pass over its records, counted and timed as training reads them."""

import dataclasses
import functools
import hashlib
import io
import itertools
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jepa_vl.config import Config, ConfigError, reads_text
from jepa_vl.data import faults, tokenizers
from jepa_vl.data.embeddings import text_hash
from jepa_vl.data.mixture import Chain, Mixture
from jepa_vl.data.pipeline import TrainElement
from jepa_vl.data.sources import NO_LABEL, Record, Source
from jepa_vl.shapes import Array

EXAMPLES = 3  # keys named of each finding
FEW_WORDS = 2  # captions of fewer say next to nothing
WHOLE = 1 << 20  # tokens: no caption is cut
HALF_BINS = 8  # of the histogram of token lengths, up to text.words
_DECODER = re.compile(r"\(\d+ bytes; (.*)\)$")  # what transforms says of a damaged image
STEPS = ("read", "crop", "rest")  # of preparing an image: what is timed


class Group(NamedTuple):
    """Some records of a source that are counted together."""

    source: Source
    indices: Array  # looked at
    total: int  # records that these stand for
    weight: float  # share of the training images; 0: held out


def groups(train: Source, held_out: Source, limit: int | None) -> dict[str, Group]:
    """The training part (of a mixture, that of each source) and the held-out part.

    Args:
      train: the training source.
      held_out: the held-out one.
      limit: records looked at of each group, evenly spread; None: all.
    """
    ranges: list[tuple[str, Source, int, int, float]] = [("train", train, 0, len(train), 1.0)]
    if isinstance(train, Mixture):
        stops = np.cumsum([share.images for share in train.shares]).tolist()
        batch = sum(share.count for share in train.shares)
        ranges = [
            (f"train: {share.name}", train, stop - share.images, stop, share.count / batch)
            for share, stop in zip(train.shares, stops, strict=True)
        ]
    ranges.append(("held-out", held_out, 0, len(held_out), 0.0))
    return {
        name: Group(source, start + spread(stop - start, limit), stop - start, weight)
        for name, source, start, stop, weight in ranges
    }


def spread(total: int, limit: int | None) -> Array:
    """At most ``limit`` of 0 .. total - 1, evenly spread and always the same: int64."""
    count = total if limit is None else min(limit, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


class Survey:
    """What was found in a group."""

    def __init__(self, config: Config, group: Group):
        """Opens the tokenizer.

        Raises:
          ConfigError: there is none, or the captions' embeddings do not fit.
        """
        self.group, self.limit = group, config.text.words
        self.size, self.seed = config.encoder.image_size, config.seed
        self.prepare = TrainElement(config, group.source)
        self.prepare.needs_captions = False  # those without are counted here
        text = dataclasses.replace(config.text, words=WHOLE)
        self.tokenize = tokenizers.build(text) if reads_text(config) else None
        self.formats: Counter[str] = Counter()
        self.labels: Counter[int] = Counter()
        self.bad: dict[str, list[str]] = {}  # cause -> keys
        self.widths, self.heights = array("q"), array("q")
        self.seen, self.images = array("q"), array("Q")  # records, hashes of their bytes
        self.captions, self.texts = array("q"), array("Q")  # of an image, hashes of all
        self.words, self.tokens = array("q"), array("q")  # of each caption
        self.seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)

    def run(self, tell: Callable[[int], object] = lambda done: None) -> None:
        """Looks at each record; ``tell`` is given the number done.

        Raises:
          ConfigError: captions have no embeddings in the cache, which is no fault of the record.
        """
        for done, index in enumerate(self.group.indices.tolist(), 1):
            try:
                self._look(index)
            except ConfigError as error:
                if error.key.startswith("text."):
                    raise
                self.bad.setdefault(_cause(error), []).append(self.key(index))
            tell(done)

    def _look(self, index: int) -> None:
        rng = np.random.default_rng([self.seed, index])
        began = time.perf_counter()
        with faults.reading():
            record = self.group.source[index]
        read = time.perf_counter() - began
        began = time.thread_time()
        crop = self.prepare.crop(record, rng)
        cropped = time.thread_time()
        self.prepare.complete(index, record, crop, rng)
        spent = (read, cropped - began, time.thread_time() - cropped)
        for step, seconds in zip(STEPS, spent, strict=True):
            self.seconds[step] += seconds
        self._count(index, record)

    def _count(self, index: int, record: Record) -> None:
        kind, width, height, content = _header(record["image"])
        self.formats[kind] += 1
        self.widths.append(width)
        self.heights.append(height)
        self.seen.append(index)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self.images.append(int.from_bytes(digest, "little"))
        if record["label"] != NO_LABEL:
            self.labels[record["label"]] += 1
        present = [text for text in record["captions"] if text]
        self.captions.append(len(present))
        for text in present:
            self.texts.append(text_hash(text))
            self.words.append(len(tokenizers.words(text)))
            if self.tokenize is not None:
                self.tokens.append(len(self.tokenize(text)))

    def twins(self) -> list[tuple[int, int]]:
        """Pairs of records with the same bytes: an image and an earlier one."""
        hashes, seen = np.array(self.images, np.uint64), np.array(self.seen, np.int64)
        order = np.argsort(hashes, kind="stable")
        starts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order][:1]))
        first = np.repeat(starts, np.diff(starts, append=len(order)))
        again = np.flatnonzero(first != np.arange(len(order)))
        pairs = np.stack([seen[order[first[again]]], seen[order[again]]], axis=1)
        return [(a, b) for a, b in pairs.tolist()]

    @functools.cached_property
    def _keys(self) -> Any:
        return self.group.source.keys  # some sources put them together each time

    def key(self, index: int) -> str:
        """Of a record."""
        return str(self._keys[index])

    def summary(self) -> dict[str, Any]:
        """The numbers, fit for JSON."""
        checked, readable = len(self.group.indices), len(self.seen)
        short = np.minimum(self.widths, self.heights)
        twins, texts = self.twins(), len(self.texts)
        out: dict[str, Any] = {
            "images": self.group.total,
            "checked": checked,
            "unreadable": {
                cause: {"count": len(keys), "examples": keys[:EXAMPLES]}
                for cause, keys in sorted(self.bad.items(), key=lambda item: -len(item[1]))
            },
            "formats": dict(self.formats.most_common()),
            "width": middle(self.widths),
            "height": middle(self.heights),
            "smaller_than_image_size": int((short < self.size).sum()),
            "labelled": self.labels.total(),
            "classes": len(self.labels),
            "duplicate_images": {
                "count": len(twins),
                "examples": [[self.key(a), self.key(b)] for a, b in twins[:EXAMPLES]],
            },
            "captions": texts,
            "captions_an_image": middle(self.captions),
            "images_without_caption": readable - int(np.count_nonzero(self.captions)),
            "near_empty_captions": int((np.array(self.words) < FEW_WORDS).sum()),
            "repeated_captions": texts - len(np.unique(np.array(self.texts, np.uint64))),
        }
        if self.tokenize is not None:
            out["tokens"] = {"words": self.limit, **middle(self.tokens), **self._token_lengths()}
        return out

    def _token_lengths(self) -> dict[str, Any]:
        tokens = np.array(self.tokens, np.int64)
        # One edge is the limit; what is longer than twice the limit is counted together.
        steps = np.linspace(0, 2 * self.limit, 2 * HALF_BINS + 1).astype(int).tolist()
        edges = sorted({*steps, max(steps[-1], int(tokens.max(initial=0)))} - {0})
        bins, first = [], 0
        for last in edges:
            bins.append([first, last, int(((tokens >= first) & (tokens <= last)).sum())])
            first = last + 1
        while bins and not bins[-1][2]:
            bins.pop()
        return {"cut": int((tokens > self.limit).sum()), "histogram": bins}


def middle(values: Sequence[int]) -> dict[str, float]:
    """Least, median and greatest; empty where there is none."""
    if not len(values):
        return {}
    found = np.array(values)
    return {"min": int(found.min()), "median": float(np.median(found)), "max": int(found.max())}


def overlaps(surveys: dict[str, Survey]) -> list[dict[str, Any]]:
    """Groups that have images in common, byte for byte, among those that were looked at."""
    found = []
    for (first, a), (second, b) in itertools.combinations(surveys.items(), 2):
        common, in_a, in_b = np.intersect1d(
            np.array(a.images, np.uint64), np.array(b.images, np.uint64), return_indices=True
        )
        if len(common):
            example = [a.key(a.seen[int(in_a[0])]), b.key(b.seen[int(in_b[0])])]
            found.append({"groups": [first, second], "images": len(common), "example": example})
    return found


def speed(surveys: Sequence[Survey]) -> dict[str, float]:
    """Images a second of one worker: decoding and cropping alone, and all that a worker does.

    Of training images, each source of a mixture by its share of a batch. Reading counts by the
    clock, computing by the time of one core, so that other programs on the machine do not count.
    Empty where no training image of some source was readable.
    """
    trained = [survey for survey in surveys if survey.group.weight]
    if not all(len(survey.seen) for survey in trained):
        return {}
    cost = {  # seconds an image
        step: sum(s.group.weight * s.seconds[step] / len(s.seen) for s in trained) for step in STEPS
    }
    if not cost["crop"]:
        return {}
    return {
        "decode_images_per_second": 1 / cost["crop"],
        "worker_images_per_second": 1 / sum(cost.values()),
        "read_share": cost["read"] / sum(cost.values()),
    }


def shards(source: Any) -> int | None:
    """Files that a source is spread over; None for folders of images and built-in pictures."""
    if isinstance(source, Chain):
        counts = [shards(part) for part in source.parts]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None
    if hasattr(source, "source"):
        return shards(source.source)
    return len(source.shards) if hasattr(source, "shards") else None


def _header(image: bytes | Array) -> tuple[str, int, int, bytes]:
    """Format and mode, width and height by the header alone, and the bytes."""
    if isinstance(image, np.ndarray):
        return "array", image.shape[1], image.shape[0], image.tobytes()
    with Image.open(io.BytesIO(image)) as opened:
        return f"{opened.format} {opened.mode}", *opened.size, image


def _cause(error: ConfigError) -> str:
    """Why a record is unreadable, without what names this one record."""
    damaged = _DECODER.search(error.rule)
    text = damaged.group(1) if damaged else re.split(r" ?[(:;]", error.rule)[0]
    return re.sub(r"'[^']*'", "...", re.sub(r"\d+", "N", text))
