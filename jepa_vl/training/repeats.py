"""Steps that a run has made twice, or that two runs have made: were they the same, by hash?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

HASHES = ("sample_hash", "param_hash", "target_hash")
SAMPLES = HASHES[0]
# A step, and how many batches the data was ahead of it: after a rewind it sees other images.
Place = tuple[int, int]
Row = dict[str, Any]


class Start(NamedTuple):
    """What one start of a run has repeated.

    Attributes:
      start: the step that it went on from; processes, devices: that it ran on.
      steps: the first and the last one; None: none.
      repeated: how many of them had been made before.
      found: for each of :data:`HASHES` how many differ, and how many are equal.
    """

    start: int
    processes: int
    devices: int
    steps: tuple[int, int] | None
    repeated: int
    found: dict[str, tuple[int, int]]


class Repeats(NamedTuple):
    """All starts of a run; a line for each hash that differs; how many hashes were compared."""

    starts: list[Start]
    differing: list[str]
    compared: int


def last(rows: Sequence[Row]) -> dict[Place, Row]:
    """The row of each step that counts: of repeated ones the last."""
    devices: tuple = ()
    found = {}
    for start, steps in _starts(rows):
        devices = _moved(devices, start)
        for row in steps:
            found[row["step"], start["skipped"]] = row | {"devices": devices}
    return found


def compare(rows: Sequence[Row], wanted: dict[Place, Row]) -> Repeats:
    """Which steps of each start had been made before, and how they compare.

    Samples must be the same on any devices. Parameters are compared where both were made on the
    same devices from the first step on: sums over other devices round otherwise.

    Args:
      rows: of proof.jsonl.
      wanted: of another run, see :func:`last`; {}: none.
    """
    seen, compared, devices = dict(wanted), 0, ()
    starts: list[Start] = []
    differing: list[str] = []
    for start, steps in _starts(rows):
        devices = _moved(devices, start)
        counts = {name: [0, 0] for name in HASHES}
        repeated = 0
        for row in steps:
            place = row["step"], start["skipped"]
            before = seen.get(place, {})
            repeated += bool(before)
            for name in HASHES:
                if name not in before or name not in row:
                    continue
                if name == SAMPLES or before["devices"] == devices:
                    counts[name][before[name] == row[name]] += 1
                    if before[name] != row[name]:
                        differing.append(
                            f"step {row['step']}: {name} {before[name]} -> {row[name]}"
                        )
            seen[place] = before | row | {"devices": devices}
        compared += sum(map(sum, counts.values()))
        span = (steps[0]["step"], steps[-1]["step"]) if steps else None
        found = {name: (different, equal) for name, (different, equal) in counts.items()}
        where = start["start"], start["processes"], start["devices"]
        starts.append(Start(*where, span, repeated, found))
    return Repeats(starts, differing, compared)


def _moved(devices: tuple, start: Row) -> tuple:
    """The devices that a run has been on, one after the other, with those of one more start."""
    now = (start["processes"], start["devices"])
    return devices if devices and devices[-1] == now else (*devices, now)


def _starts(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    found: list[tuple[Row, list[Row]]] = []
    for row in rows:
        if "start" in row:
            found.append((row, []))
        elif found:
            found[-1][1].append(row)
    return found
