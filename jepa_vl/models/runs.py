"""Towers out of the checkpoints of our own runs."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError, resolve
from jepa_vl.pretrained import newest_checkpoint
from jepa_vl.shapes import PyTree

# Where the state of a run may hold a tower; the EMA comes before what is trained.
PLACES = {
    "image": ("target", "target/image"),
    "text": ("target/text", "params/text"),
}


def read_config(workdir: Path, where: tuple[str, str]) -> Config:
    """The configuration that the newest checkpoint of a run was trained with.

    Args:
      workdir: of the run.
      where: configuration key and path, for errors.

    Raises:
      ConfigError: no checkpoint.
    """
    meta = newest_checkpoint(workdir, where) / "meta" / "metadata"
    return resolve(json.loads(meta.read_text())["config"])


def read(workdir: Path, tower: str, like: PyTree, where: tuple[str, str]) -> PyTree:
    """One tower from the newest checkpoint of a run; nothing else of the state is read.

    Args:
      workdir: of the run.
      tower: image (its target encoder) or text.
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
        wanted: Any = like
        for name in reversed(place.split("/")):
            wanted = {name: wanted}
        # To the host: the run's devices need not be these.
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restore = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)  # pyright: ignore[reportCallIssue]
        return _at(reader.restore(folder, restore), place)


def _at(found: Any, place: str) -> Any:
    """The subtree under a path of names; None where there is none."""
    for name in place.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
