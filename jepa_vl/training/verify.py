"""Is a checkpoint what was written? Every array is read again, nothing is touched."""

from collections.abc import Iterator, Sequence
from typing import Any

from jepa_vl.shapes import Array
from jepa_vl.training.checkpoint import Damaged
from jepa_vl.training.checksum import differing, on_host
from jepa_vl.training.stored import Stored

WHOLE, DAMAGED, UNKNOWN = "whole", "damaged", "no checksums"


def verify(stored: Stored) -> dict[str, Any]:
    """Reads everything again and compares with the checksums that were saved beside it.

    Returns:
      ``step``, ``arrays`` (their number), ``bytes`` of them, ``verdict`` (:data:`WHOLE`,
      :data:`DAMAGED`, or :data:`UNKNOWN`: all can be read, nothing says what it was), ``damaged``:
      name -> what is wrong with it.
    """
    out = {"step": stored.step, "arrays": 0, "bytes": 0, "verdict": DAMAGED, "damaged": {}}
    damaged: dict[str, str] = out["damaged"]
    try:
        wanted, _, names = stored.meta.get("checksums", {}), stored.data, [*stored.arrays]
    except Damaged as error:
        return out | {"damaged": {"(all of it)": str(error)}}
    found: dict[str, str] = {}
    for name, array in _read_what_can_be(stored, names, damaged):
        found[name] = on_host(array)
        out["bytes"] += array.nbytes
    out["arrays"] = len(names)
    if wanted:
        for name in differing(wanted, found):
            damaged.setdefault(name, "is not what was written" if name in found else "is not there")
        for name in found.keys() - wanted.keys():
            damaged[name] = "has no checksum, other arrays have one"
    if not damaged:
        out["verdict"] = WHOLE if wanted else UNKNOWN
    return out


def _read_what_can_be(
    stored: Stored, names: list[str], damaged: dict[str, str]
) -> Iterator[tuple[str, Array]]:
    """Names and arrays; those that cannot be read are found by halving, entered in ``damaged``."""
    done = 0
    try:
        for found in stored.bundles([name] for name in names):
            yield from found.items()
            done += 1
    except Damaged as error:
        rest = names[done:]
        if len(rest) == 1:
            damaged[rest[0]] = f"cannot be read: {error}"
            return
        middle = len(rest) // 2
        for half in (rest[:middle], rest[middle:]):
            yield from _read_what_can_be(stored, half, damaged)


def read_whole(stored: Stored, names: Sequence[str]) -> dict[str, Array]:
    """Arrays by name, each compared with its checksum where the checkpoint has some.

    Raises:
      Damaged: one cannot be read, or is not what was written.
    """
    found: dict[str, Array] = {}
    for bundle in stored.bundles([name] for name in names):
        found |= bundle
    wanted = {n: x for n, x in stored.meta.get("checksums", {}).items() if n in found}
    other = differing(wanted, {name: on_host(found[name]) for name in wanted})
    if other:
        listed = ", ".join(other[:3])
        raise Damaged(f"{len(other)} of {len(found)} arrays are not what was written: {listed}")
    return found
