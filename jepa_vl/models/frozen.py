"""Weights of towers that nothing updates: out of a checkpoint of ours, or untrained."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.shapes import PyTree

RANDOM = "random"  # in place of a workdir
# Where the state of a run may hold a tower; the EMA comes before what is trained.
PLACES = {
    "image": ("target", "target/image"),
    "text": ("target/text", "params/text"),
}


def from_workdir(workdir: str, tower: str, like: PyTree) -> PyTree:
    """Reads one tower from the newest checkpoint of a run.

    Args:
      workdir: of the run.
      tower: image (its target encoder) or text.
      like: abstract parameters of the tower.

    Returns:
      float32 arrays, shaped as ``like``.

    Raises:
      ConfigError: no checkpoint, or none of its parts is such a tower; lists how the likeliest
        one differs.
    """
    steps = sorted(int(p.name) for p in Path(workdir).glob("checkpoints/*") if p.name.isdigit())
    if not steps:
        raise ConfigError(f"frozen.{tower}", workdir, "holds no checkpoint; train first")
    folder = Path(workdir).resolve() / "checkpoints" / str(steps[-1]) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(folder).item_metadata.tree
        problems = {
            place: tree.diff(like, part)
            for place in PLACES[tower]
            if (part := _at(stored, place)) is not None
        }
        place = next((place for place, found in problems.items() if not found), None)
        if place is None:
            nearest = min(problems.values(), key=len, default=[f"no {tower} tower"])
            rule = "the checkpoint does not fit this configuration:\n  " + "\n  ".join(nearest[:20])
            raise ConfigError(f"frozen.{tower}", str(folder), rule)
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
