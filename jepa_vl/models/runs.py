"""Towers out of the checkpoints of our own runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError, resolve
from jepa_vl.pretrained import newest_checkpoint, read_json
from jepa_vl.shapes import PyTree

# Where the state of a run may hold a tower; the EMA comes before what is trained.
PLACES = {"text": ("target/text", "params/text")}
# Where it holds the image encoder of a branch; each has patches, which nothing else has.
BRANCHES = {
    "target": ("target", "target/image"),
    "context": ("params/encoder", "params/image"),
}
MARK = "patch_kernel"


def read_config(workdir: Path, where: tuple[str, str]) -> Config:
    """The configuration that the newest checkpoint of a run was trained with.

    Args:
      workdir: of the run.
      where: configuration key and path, for errors.

    Raises:
      ConfigError: no checkpoint.
    """
    meta = newest_checkpoint(workdir, where) / "meta"
    return resolve(read_json(meta, "metadata", where[0])["config"])


def read(workdir: Path, tower: str, like: PyTree, where: tuple[str, str]) -> PyTree:
    """One tower from the newest checkpoint of a run; nothing else of the state is read.

    Args:
      workdir: of the run.
      tower: of :data:`PLACES`.
      like: abstract parameters of the tower.
      where: configuration key and path, for errors.

    Returns:
      float32 numpy arrays, shaped as ``like``.

    Raises:
      ConfigError: no checkpoint, or none of its parts is such a tower; lists how the likeliest
        one differs.
    """
    folder = newest_checkpoint(workdir, where) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(folder).item_metadata.tree
        problems = {
            place: tree.diff(like, part)
            for place in PLACES[tower]
            if (part := _at(stored, place)) is not None
        }
        place = next((place for place, found in problems.items() if not found), None)
        if place is None:
            nearest = min(problems.values(), key=len, default=["no such part"])
            rule = f"its run has no {tower} tower that fits:\n  " + "\n  ".join(nearest[:12])
            raise ConfigError(*where, rule)
        return _restore(reader, folder, place, like)


def arrays(workdir: Path, places: Sequence[str], mark: str, where: tuple[str, str]) -> PyTree:
    """A part of the newest checkpoint of a run, whatever it holds.

    Args:
      workdir: of the run.
      places: where the part may be; the first counts that has ``mark``.
      mark: a name right below the part; empty: any.
      where: configuration key and path, for errors.

    Returns:
      Nested dictionaries of numpy arrays, as they were saved.

    Raises:
      ConfigError: no checkpoint, no such part, or it cannot be read.
    """
    folder = newest_checkpoint(workdir, where) / "state"
    try:
        with ocp.PyTreeCheckpointer() as reader:
            stored = reader.metadata(folder).item_metadata.tree
            there = {p: x for p in places if isinstance(x := _at(stored, p), dict)}
            place = next((p for p, x in there.items() if not mark or mark in x), None)
            if place is None:
                rule = f"its run holds no {' or '.join(places)}" + (f" with {mark}" if mark else "")
                raise ConfigError(*where, rule)
            return _restore(reader, folder, place, _at(stored, place))
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, TensorStore's own among them
        line = (str(error).strip().splitlines() or [""])[0]
        rule = f"its checkpoint {folder.parent.name} cannot be read: {type(error).__name__}: {line}"
        raise ConfigError(*where, rule) from error


def _restore(reader: ocp.PyTreeCheckpointer, folder: Path, place: str, like: PyTree) -> PyTree:
    """The arrays at a place, on the host: the run's devices need not be these."""
    wanted: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    for name in reversed(place.split("/")):
        wanted = {name: wanted}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    restore = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)  # pyright: ignore[reportCallIssue]
    return _at(reader.restore(folder, restore), place)


def _at(found: Any, place: str) -> Any:
    """The subtree under a path of names; None where there is none."""
    for name in place.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
