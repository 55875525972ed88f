"""Several sources in one stream: each global batch holds a fixed number of images of each.

A position of the infinite order is slot ``position % B`` of step ``position // B``. The slots of
each source are the same in every batch, and a source's own images follow each other through them in
its own shuffled order, epoch after epoch. Where a step's images stand is thus arithmetic: any step
is reached at once, on any number of hosts and workers.
"""

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa_vl.data.faults import Fault, left_out
from jepa_vl.kinds import Portion
from jepa_vl.shapes import Array

ORDER_SEED = 0x6D697865  # keeps the seeds of the sources' orders apart from others


class Chain:
    """Sources one after the other, whose labels count in the same classes.

    Attributes:
      parts: the sources.
      names: of the sources.
      lengths: their numbers of images.
      captioned: number of images with a caption.
      json_keys: JSON keys or columns seen.
    """

    def __init__(self, parts: Sequence[Any], names: Sequence[str], prefix: bool):
        """``prefix``: keys begin with the source's name and a slash, as two sources share one."""
        self.parts, self.names, self.prefix = list(parts), list(names), prefix
        self.lengths = [len(part) for part in self.parts]
        self.classes: tuple[str, ...] = self.parts[0].classes
        self.captioned = sum(getattr(part, "captioned", len(part)) for part in self.parts)
        self.json_keys = tuple(
            dict.fromkeys(key for part in self.parts for key in getattr(part, "json_keys", ()))
        )
        self._starts = np.cumsum([0, *self.lengths])
        prints = [part.fingerprint for part in self.parts]
        text = repr((self.names, self.lengths, prints, prefix))
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def keys(self) -> list[str]:
        """Those of the sources."""
        pairs = zip(self.names, self.parts, strict=True)
        return [self._key(name, key) for name, part in pairs for key in part.keys]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What the sources could not take into their indexes."""
        return tuple(fault for part in self.parts for fault in left_out(part))

    @property
    def labels(self) -> Array | None:
        """int32 [images]; None where a source knows them by its records alone."""
        found = [getattr(part, "labels", None) for part in self.parts]
        known = [labels for labels in found if labels is not None]
        return np.concatenate(known) if len(known) == len(found) else None

    @property
    def name(self) -> str:
        """Those of the sources."""
        return " + ".join(part.name for part in self.parts)

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one of the sources.

        Raises:
          ConfigError: it cannot be read.
        """
        number = self.part_of(index)
        record = self.parts[number][int(index - self._starts[number])]
        return {**record, "key": self._key(self.names[number], record["key"])}

    def part_of(self, index: int) -> int:
        """Number of the source that an image is of."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _key(self, name: str, key: str) -> str:
        return f"{name}/{key}" if self.prefix else str(key)


class Share(NamedTuple):
    """What a mixture takes of one source."""

    name: str
    images: int  # in the source
    count: int  # of a global batch


class Mixture:
    """A chain of sources, captions of a file perhaps joined to it, and the order to draw it in.

    Attributes:
      shares: of the sources, in the order of the chain.
    """

    def __init__(self, source: Any, lengths: Sequence[int], counts: list[int], names: list[str]):
        """``counts``: images of each source in a global batch."""
        self.source = source
        self.shares = [Share(*share) for share in zip(names, lengths, counts, strict=True)]

    @property
    def keys(self) -> Sequence[str]:
        """Those of the chain."""
        return self.source.keys

    @property
    def labels(self) -> Array | None:
        """Those of the chain."""
        return self.source.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of all sources."""
        return self.source.classes

    @property
    def fingerprint(self) -> str:
        """Of the sources and of their counts."""
        text = self.source.fingerprint + repr(self.shares)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The sources and what a batch holds of each."""
        counts = [f"{share.count} of {share.name}" for share in self.shares]
        return f"mixture ({', '.join(counts)})"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record of the chain.

        Raises:
          ConfigError: it cannot be read.
        """
        return self.source[index]

    def order(self, seed: int) -> "Order":
        """Indices of the images, in the infinite order of a seed."""
        return Order(self.shares, seed)


class Order:
    """Position -> index in the chain. Picklable, for data workers."""

    def __init__(self, shares: Sequence[Share], seed: int):
        """Lays out the slots of a batch; each source is shuffled by a seed of its own."""
        import grain  # imports jax where that is installed: not before it is needed

        self.counts = [share.count for share in shares]
        self.slots = slots(tuple(self.counts))
        one_hot = self.slots[:, None] == np.arange(len(shares))
        self.ranks = (np.cumsum(one_hot, axis=0) - 1)[np.arange(len(self.slots)), self.slots]
        self.starts = np.cumsum([0] + [share.images for share in shares])
        seeds = [
            int(np.random.default_rng([ORDER_SEED, seed, number]).integers(2**32))
            for number in range(len(shares))
        ]
        self.shuffled: list[Any] = [
            grain.MapDataset.range(share.images).shuffle(seed=own).repeat()
            for share, own in zip(shares, seeds, strict=True)
        ]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        """Of the position ``index`` (as Grain calls it)."""
        step, slot = divmod(int(index), len(self.slots))
        source = int(self.slots[slot])
        seen = step * self.counts[source] + int(self.ranks[slot])
        return int(self.starts[source]) + int(self.shuffled[source][seen])


@functools.lru_cache(maxsize=8)
def slots(counts: tuple[int, ...]) -> Array:
    """Which source each slot of a batch belongs to.

    Hosts take every h-th slot, devices and micro-batches every h-th of those or blocks of them.
    So each slot in turn goes to the source that is most wanting in all slices ``i :: h`` and all
    blocks of h slots that it lies in, for each divisor h of the batch: a slice is then some images
    at most from its fair mix, where slots dealt at random would stray by their square root.

    Args:
      counts: slots of each source; their sum is B.

    Returns:
      int [B], read-only.
    """
    left = np.array(counts)
    batch = int(left.sum())
    share, slot = left / batch, np.arange(batch)
    steps = [h for h in range(1, batch) if batch % h == 0]
    groups = [slot % h for h in steps] + [slot // h for h in steps if h > 1]
    firsts = np.cumsum([0] + [int(group.max()) + 1 for group in groups])
    member = np.stack([group + first for group, first in zip(groups, firsts, strict=False)], axis=1)
    wanting = np.zeros((firsts[-1], len(counts)))  # of each slice: its fair share less what it has
    out = np.empty(batch, np.int64)
    for i, rows in enumerate(member):
        score = wanting[rows].sum(axis=0) + len(rows) * share
        out[i] = source = np.where(left > 0, score, -np.inf).argmax()
        left[source] -= 1
        wanting[rows] += share
        wanting[rows, source] -= 1
    out.flags.writeable = False
    return out


def short_names(portions: Sequence[Portion]) -> list[str]:
    """A distinct name for each source: the last folder of its path that is not called train."""
    names = [_short_name(portion) for portion in portions]
    often = {name for name, count in Counter(names).items() if count > 1}
    return [f"{x}-{i}" if x in often else x for i, x in enumerate(names, 1)]


def _short_name(portion: Portion) -> str:
    path = Path(portion.path)
    return (path.parent.name if path.name == "train" else path.stem) or portion.kind


def share_keys(parts: Sequence[Any]) -> bool:
    """Is a key of one source also a key of another?"""
    seen: set[str] = set()
    for part in parts:
        keys = set(map(str, part.keys))
        if not seen.isdisjoint(keys):
            return True
        seen |= keys
    return False
