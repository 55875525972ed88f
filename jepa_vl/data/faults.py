"""Single samples that cannot be used: replaced by a neighbour, counted, listed, and limited.

A fault of one sample is no reason to stop a run of days; many of them are. What is replaced, and by
what, is a function of the drawn index and the data alone, so that no other batch changes, on any
number of hosts and workers.
"""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

CAUSES = (
    "image",  # the bytes are no image, or a damaged one
    "empty",  # a file of zero bytes
    "pixels",  # more of them than data.max_pixels
    "json",  # what describes the image cannot be read, or means nothing
    "caption",  # none with a word, where the objective reads text
    "duplicate",  # a second file of the same name in one tar file
    "path",  # a member of a tar file whose path leaves it
    "archive",  # no tar file, or a damaged one
    "truncated",  # a file is shorter than it says, or than when it was indexed
    "vanished",  # a file is not there any more
    "disk",  # the system cannot read it
    "other",  # what a source reports without a cause
)
TRIES = 16  # images that are tried in place of one that is bad
WINDOW, LEAST = 10_000, 1_000  # images that the share is measured over, at most and at least
FIELD = "fault"  # of an element on its way to the training process
_RECORD = np.dtype([("index", "i8"), ("cause", "i1"), ("key", "S160"), ("message", "S320")])
_NONE = np.zeros((), _RECORD)
_NONE["index"] = -1


class BadSample(ConfigError):
    """One sample cannot be used. Where nothing replaces it, it is bad input like any other."""

    def __init__(self, cause: str, key: str, value: Any, rule: str):
        """``cause``: one of CAUSES; the rest as of a ConfigError."""
        super().__init__(key, value, rule)
        self.cause = cause

    def __reduce__(self) -> tuple:
        return BadSample, (self.cause, self.key, self.value, self.rule)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A bad sample, for people.

    Attributes:
      index: in the source; -1 for what was left out when the source was indexed.
      key: of the sample, or the file.
      cause: one of CAUSES.
      message: what is wrong.
    """

    index: int
    key: str
    cause: str
    message: str


def of(error: BadSample, index: int) -> Fault:
    """The fault that an error tells of."""
    return Fault(index, str(error.value), error.cause, error.rule)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What a source raises while it reads one record is about that record: a BadSample."""
    try:
        yield
    except BadSample:
        raise
    except ConfigError as error:
        cause = system_cause(error.__cause__)
        raise BadSample(cause, error.key, error.value, error.rule) from error
    except OSError as error:
        name, rule = error.filename or "", f"cannot be read: {error.strerror or error}"
        raise BadSample(system_cause(error), "data.path", name, rule) from error


def system_cause(error: BaseException | None) -> str:
    """Why the system could not read: one of CAUSES."""
    if isinstance(error, FileNotFoundError):
        return "vanished"
    return "disk" if isinstance(error, OSError) else "other"


def candidates(index: int, size: int) -> Iterator[int]:
    """An index and those that stand in for it: the next one, then steps through the whole source.

    Bad samples often come in a row, as of a file that is gone; the steps soon leave it.
    """
    yield index
    step = max(1, size // TRIES)
    for number in range(TRIES):
        yield (index + 1 + number * step) % size


def first_usable(
    index: int, size: int, make: Callable[[int], dict[str, Array]]
) -> tuple[dict[str, Array], Fault | None]:
    """What is made of an index or, where that is bad, of the first that stands in for it.

    Args:
      index: that was drawn.
      size: of the source.
      make: raises BadSample where it cannot.

    Returns:
      What was made, and the fault of the drawn one. Others that are bad too are told of when they
      are drawn themselves.

    Raises:
      ConfigError: none of those that are tried can be used.
    """
    fault: Fault | None = None
    for candidate in candidates(index, size):
        try:
            return make(candidate), fault
        except BadSample as error:
            fault = fault or of(error, candidate)
    assert fault is not None
    rule = f"{fault.message}; nor can any of {TRIES} images that were tried in its place be used"
    raise ConfigError("data.path", fault.key, rule)


def pack(fault: Fault | None) -> Array:
    """A fault as an array without dimensions, which travels between processes; None: no fault."""
    if fault is None:
        return _NONE
    texts = (text.encode("utf-8", "replace") for text in (fault.key, fault.message))
    return np.array((fault.index, CAUSES.index(fault.cause), *texts), _RECORD)


def unpack(packed: Array) -> list[Fault]:
    """The faults in a batch of packed ones, in its order."""
    return [
        Fault(int(index), _text(key), CAUSES[cause], _text(message))
        for index, cause, key, message in packed[packed["index"] >= 0].tolist()
    ]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "ignore")  # the last character may be cut


def indexed(source: Any) -> Any:
    """The source that was indexed: the one itself, or that which it is a part of."""
    while hasattr(source, "source"):
        source = source.source
    return source


def left_out(source: Any) -> tuple[Fault, ...]:
    """What a source, or the one that it is a part of, could not take into its index."""
    return tuple(getattr(indexed(source), "faults", ()))


class Log:
    """The faults of a run: counted, listed once each, and stopped where they are too many."""

    def __init__(self, most: float, path: Path | None = None, counts: dict[str, int] | None = None):
        """Takes over a list that is there.

        Args:
          most: share of the images read that may be bad (``data.max_bad_share``).
          path: file of the list, made with the first fault; None: no list.
          counts: of earlier processes of this run, by cause.
        """
        self.most, self.path = most, path
        self.counts = collections.Counter(counts or {})
        self.elsewhere = collections.Counter[str]()  # as of other processes of this run
        self._left_out: dict[str, int] = {}  # name of an indexed source -> samples
        self._window: collections.deque[tuple[int, list[str]]] = collections.deque()
        self._listed: set[tuple] = set()
        if path is not None and path.exists():
            self._take_over(path)

    def _take_over(self, path: Path) -> None:
        whole = 0
        raw = path.read_bytes()
        for line in raw.splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._listed.add(_identity(row))
            whole += len(line)
        if whole < len(raw):  # torn by a kill while it was written
            with path.open("r+b") as file:
                file.truncate(whole)

    def write(self, faults: Sequence[Fault], source: str) -> None:
        """Writes down those that are new.

        Args:
          faults: any.
          source: name of the source that they are of.
        """
        if self.path is None:
            return
        rows = []
        for fault in faults:
            row = {"source": source, **dataclasses.asdict(fault)}
            if _identity(row) not in self._listed:
                self._listed.add(_identity(row))
                rows.append(json.dumps(row) + "\n")
        if rows:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(rows))

    def check_index(self, source: Any) -> None:
        """Lists what the index of a source left out.

        Raises:
          ConfigError: it is too large a share of the whole.
        """
        source, faults = indexed(source), left_out(source)
        self.write(faults, source.name)
        self._left_out[source.name] = len(faults)
        causes = [fault.cause for fault in faults]
        self._limit(len(source) + len(faults), causes, faults[:1], "in the index")

    def note(self, images: int, faults: Sequence[Fault], source: str) -> None:
        """Counts and lists the faults of a batch before it is trained on.

        Args:
          images: of the batch.
          faults: of those that were replaced.
          source: name of the source.

        Raises:
          ConfigError: too large a share of the last images was bad.
        """
        self.write(faults, source)
        causes = [fault.cause for fault in faults]
        self._window.append((images, causes))
        seen = sum(count for count, _ in self._window)
        while seen - self._window[0][0] >= WINDOW:
            seen -= self._window.popleft()[0]
        found = [cause for _, part in self._window for cause in part]
        self._limit(seen, found, faults[-1:], f"of the last {seen:,} read")
        self.counts.update(causes)  # a batch that ends the run is not trained on

    def _limit(self, images: int, causes: list[str], faults: Sequence[Fault], where: str) -> None:
        if len(causes) <= self.most * max(images, LEAST):
            return
        by_cause = collections.Counter(causes).most_common()
        told = ", ".join(f"{cause} {count}" for cause, count in by_cause)
        example = "".join(f"; such as {f.key}: {f.message}" for f in faults)
        listed = f"; see {self.path}" if self.path is not None else ""
        rule = (
            f"{len(causes)} images {where} are bad, most often by {by_cause[0][0]!r} ({told})"
            f"{example}{listed}"
        )
        raise ConfigError("data.max_bad_share", self.most, rule)

    def total(self) -> collections.Counter[str]:
        """Images replaced since the run began, by cause; of other processes those told of."""
        return self.counts + self.elsewhere

    def metrics(self) -> dict[str, int]:
        """``data/bad``, images replaced since the run began, and ``data/bad/CAUSE`` of each.

        ``data/left_out``: faults of the indices that were checked.
        """
        total = self.total()
        parts = {f"data/bad/{cause}": count for cause, count in sorted(total.items())}
        left_out = sum(self._left_out.values())
        return {"data/bad": total.total(), **parts, "data/left_out": left_out}


def _identity(row: dict[str, Any]) -> tuple:
    return tuple(row.get(name) for name in ("source", "index", "key", "cause"))
