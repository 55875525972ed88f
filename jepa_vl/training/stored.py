"""Checkpoints as they lie on disk: found and read to the host, whatever wrote them.

Nothing here builds an objective or a mesh: names, shapes and dtypes are those of the files, so that
one CPU reads what a pod has written, and a run whose frozen towers are gone. Nothing is written.
"""

import contextlib
import datetime
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jepa_vl import tree
from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array
from jepa_vl.training.checkpoint import ASIDE, FOLDER, reading
from jepa_vl.training.rebatch import SET_ASIDE

READ_BYTES = 2**28  # at a time
_FINISHED = re.compile(r"\d+(\.\d+)?")  # of damaged ones with the number of the move


class Stored:
    """One checkpoint: ``meta`` and ``data`` are its JSON items, arrays are read when asked for."""

    def __init__(self, folder: Path):
        """Takes the folder of a step; nothing is read yet."""
        self.folder, self.step = folder.absolute(), int(folder.name.partition(".")[0])
        self._handler, self._state = ocp.PyTreeCheckpointHandler(), epath.Path(self.folder, "state")

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """Resolved configuration, its hash, commit, versions, spent time, checksums.

        Raises:
          Damaged: it cannot be read.
        """
        return self._json("meta")

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """Where the data stood: seed, fingerprint, global batch.

        Raises:
          Damaged: it cannot be read.
        """
        return self._json("data")

    def _json(self, item: str) -> dict[str, Any]:
        with self._reading():
            found = json.loads((self.folder / item / "metadata").read_text())
            if not isinstance(found, dict):
                raise ValueError(f"{item} is no object")
            return found

    @functools.cached_property
    def _tree(self) -> Any:
        with self._reading():
            return self._handler.metadata(self._state).tree

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """Name -> what has its shape, dtype and sharding, of all arrays of the state.

        Raises:
          Damaged: what describes them cannot be read.
        """
        return tree.flatten(self._tree)

    def nbytes(self, name: str) -> int:
        """Bytes of an array in memory."""
        found = self.arrays[name]
        return int(np.prod(found.shape, dtype=np.int64)) * np.dtype(found.dtype).itemsize

    def bundles(self, wanted: Iterable[Sequence[str]]) -> Iterator[dict[str, Array]]:
        """For each list of names its arrays; as many are read at a time as fit into memory.

        Raises:
          Damaged: one of them cannot be read.
        """
        for batch in self._batches(wanted):
            found = self.read(name for names in batch for name in names)
            for names in batch:
                yield {name: found[name] for name in names}

    def _batches(self, wanted: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
        batch: list[Sequence[str]] = []
        total = 0
        for names in wanted:
            size = sum(map(self.nbytes, names))
            if batch and total + size > READ_BYTES:
                yield batch
                batch, total = [], 0
            batch.append(names)
            total += size
        if batch:
            yield batch

    def read(self, names: Iterable[str]) -> dict[str, Array]:
        """Arrays by name, numpy, as they were saved: whole, of whatever mesh.

        Raises:
          Damaged: one of them cannot be read.
        """
        wanted = set(names)
        like = tree.map_named(
            lambda name, _: np.zeros(()) if name in wanted else ocp.PLACEHOLDER, self._tree
        )
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        args = ocp.args.PyTreeRestore(item=like, restore_args=how)  # pyright: ignore[reportCallIssue]
        with self._reading():
            found = tree.flatten(self._handler.restore(self._state, args=args))
        return {name: np.asarray(found[name]) for name in self.arrays if name in wanted}

    def scalar(self, name: str) -> int:
        """An array of one number.

        Raises:
          Damaged: it cannot be read.
        """
        return int(self.read([name])[name])

    def mesh(self) -> str:
        """The mesh that wrote it, as in ``data 4 x fsdp 2``; empty where that is not known."""
        for found in self.arrays.values():
            sharding = getattr(found, "sharding", None)
            names, sizes = getattr(sharding, "axis_names", None), getattr(sharding, "shape", None)
            if names is not None and sizes is not None and len(names) == len(sizes):
                axes = zip(names, np.asarray(sizes).tolist(), strict=True)
                return " x ".join(f"{n} {s}" for n, s in axes if s > 1) or "one device"
        return ""

    def size(self) -> int:
        """Bytes on disk."""
        total = 0
        for file in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # the run may be deleting it
                total += file.stat().st_size if file.is_file() else 0
        return total

    def written(self) -> datetime.datetime | None:
        """When its save was finished, local time; None where that is not known."""
        try:
            found = json.loads((self.folder / "_CHECKPOINT_METADATA").read_text())
            seconds = found["commit_timestamp_nsecs"] / 1e9
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return datetime.datetime.fromtimestamp(seconds).astimezone()

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return reading(f"{self.folder.parent.name}/{self.folder.name}")


def _steps(folder: Path) -> list[Stored]:
    """The finished checkpoints of a folder, by step."""
    if not folder.is_dir():
        return []
    found = [Stored(path) for path in folder.iterdir() if _FINISHED.fullmatch(path.name)]
    return sorted(found, key=lambda stored: (stored.step, stored.folder.name))


def current(workdir: Path) -> list[Stored]:
    """The checkpoints that a run would go on from, the newest last.

    Raises:
      ConfigError: the folder holds none.
    """
    found = [stored for stored in _steps(workdir / FOLDER) if stored.folder.name.isdecimal()]
    if not found:
        raise ConfigError("workdir", str(workdir), "holds no finished checkpoint; train first")
    return found


def aside(workdir: Path) -> list[Stored]:
    """Checkpoints that were moved out of the way: damaged ones, and those of an earlier batch."""
    folders = [*sorted(workdir.glob(f"{SET_ASIDE}*")), workdir / ASIDE]
    return [stored for folder in folders for stored in _steps(folder)]


def find(workdir: Path, step: int | None = None) -> Stored:
    """The checkpoint of a step.

    Args:
      workdir: of the run.
      step: None: the newest.

    Raises:
      ConfigError: there is none; names those that there are.
    """
    there = {stored.step: stored for stored in current(workdir)}
    if step is None:
        return there[max(there)]
    if step not in there:
        rule = f"{workdir} has checkpoints of steps {', '.join(map(str, there))}"
        raise ConfigError("step", step, rule)
    return there[step]
