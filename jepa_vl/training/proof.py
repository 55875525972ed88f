"""Proof of an exact resume: hashes of what each step saw and made, in ``proof.jsonl``.

A run that was killed repeats the steps since its last checkpoint. Their rows stand twice in the
file, and must be equal; so must those of two runs of one configuration.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jepa_vl.config import Config
from jepa_vl.data.pipeline import Batch
from jepa_vl.training import distributed
from jepa_vl.training.checksum import tree_hash
from jepa_vl.training.state import TrainState

FILE = "proof.jsonl"


def row_hashes(batch: Batch) -> np.ndarray:
    """A hash of each row, over all its arrays, names included: uint64 [b].

    The rows of a batch are summed up, whichever process holds them: ``position``, which is in them,
    tells where in the order each belongs.
    """
    names = sorted(batch)
    head = json.dumps([(n, str(batch[n].dtype), batch[n].shape[1:]) for n in names]).encode()
    out = np.zeros(len(batch[names[0]]), np.uint64)
    for row in range(len(out)):
        digest = hashlib.blake2b(head, digest_size=8)
        for name in names:
            digest.update(np.ascontiguousarray(batch[name][row]).tobytes())
        out[row] = int.from_bytes(digest.digest(), "little")
    return out


class Proof:
    """Appends a row a step: step, sample_hash and, every so often, param_hash and target_hash.

    Each start of a process, and each rewind, leaves a row of its own: from which step, with how
    many processes and devices.
    """

    def __init__(
        self, workdir: Path, config: Config, start: int, skipped: int, part: tuple[int, int]
    ):
        """Opens the file of a workdir.

        Args:
          workdir: of the run.
          config: tells how often parameters are hashed, and the last step.
          start: step that is gone on from.
          skipped: batches that the data is ahead of the steps.
          part: of each batch that this process reads; several may read the same.
        """
        self.every, self.total = config.log.proof_every, config.train.steps
        self._part, self._sample = part[0], ""
        self._file = None
        if distributed.leads():
            path = workdir / FILE
            torn = path.exists() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a", buffering=1)
            if torn:  # by a kill
                self._file.write("\n")
            devices = {"processes": jax.process_count(), "devices": jax.device_count()}
            self._write({"start": start, "skipped": skipped, **devices})

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")

    def batch(self, batch: Batch) -> None:
        """Takes the batch of the next step, as the pipeline made it; all processes must."""
        own = row_hashes(batch).sum(dtype=np.uint64)
        words = np.array([own], np.uint64).view(np.int32)
        found = distributed.gather([self._part, *words.tolist()])
        parts = {int(part): words for part, *words in found.tolist()}
        whole = np.array(list(parts.values()), np.int32).view(np.uint64).sum(dtype=np.uint64)
        self._sample = f"{int(whole):016x}"

    def step(self, step: int, state: TrainState) -> None:
        """Writes the row of a step; waits for it where parameters are due."""
        row = {"step": step, "sample_hash": self._sample}
        if step % self.every == 0 or step == self.total:
            row["param_hash"] = tree_hash(state.params)
            row["target_hash"] = tree_hash(state.target)
        self._write(row)


class NoProof(Proof):
    """Where none is asked for."""

    def __init__(self, *_: Any):
        """Opens nothing."""

    def batch(self, batch: Batch) -> None:
        """Nothing."""

    def step(self, step: int, state: TrainState) -> None:
        """Nothing."""


def read(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a workdir; one that a kill has torn is left out."""
    path, rows = workdir / FILE, []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
