"""A checkpoint as one safetensors file under our own names."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.models import tensors
from jepa_vl.training.inspect import PARAMS, TARGET
from jepa_vl.training.stored import Stored
from jepa_vl.training.verify import read_whole

BRANCHES = {"params": PARAMS, "target": TARGET, "all": ""}  # how the names begin
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FORMAT = "jepa_vl checkpoint 1"


def convert(stored: Stored, out: Path, branch: str, dtype: str) -> dict[str, Any]:
    """Writes arrays of a checkpoint; names are those of its state, as in ``target/norm/scale``.

    The metadata, text each, are ``format``, ``step``, ``branch``, ``config`` (resolved, JSON) and
    ``config_hash``, ``git``, ``versions`` of the run.

    Args:
      stored: the checkpoint; its arrays are compared with their checksums where it has some.
      out: file to write.
      branch: of :data:`BRANCHES`; all: moments and counters too.
      dtype: of :data:`DTYPES`, of floating-point arrays; counters stay integers.

    Returns:
      ``arrays`` (their number), ``bytes`` and ``checked`` (were there checksums?).

    Raises:
      ConfigError: the file cannot be written.
      Damaged: arrays cannot be read, or are not what was written.
    """
    names = [name for name in stored.arrays if name.startswith(BRANCHES[branch])]
    if not names:
        raise ConfigError("--branch", branch, f"the checkpoint of step {stored.step} has none")
    arrays = {
        name: x.astype(DTYPES[dtype]) if x.dtype == np.float32 else x
        for name, x in read_whole(stored, names).items()
    }
    meta = stored.meta
    metadata = {
        "format": FORMAT,
        "step": str(stored.step),
        "branch": branch,
        "config": json.dumps(meta["config"]),
        "config_hash": meta["config_hash"],
        "git": meta["git"],
        "versions": json.dumps(meta["versions"]),
    }
    tensors.write(out, arrays, metadata, "--out")
    size = sum(x.nbytes for x in arrays.values())
    return {"arrays": len(arrays), "bytes": size, "checked": "checksums" in meta}
