"""Named arrays as one safetensors file, which appears when it is known to be right."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array


def write(path: Path, tensors: dict[str, Array], metadata: dict[str, str], key: str) -> None:
    """Writes beside the file, reads it again, compares bit by bit, and renames.

    Args:
      path: of the file; its folder exists.
      tensors: numpy arrays by name.
      metadata: text by name.
      key: option that names the file, for errors.

    Raises:
      ConfigError: it cannot be written, or what is read again is something else. No file is left,
        one that was there before stays.
    """
    # Not ascontiguousarray, which makes vectors of scalars; safetensors takes the buffer as it is.
    tensors = {name: np.array(x, order="C", copy=None) for name, x in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata=metadata)
        _sort(temporary)
        _compare(temporary, tensors, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(key, str(path), f"cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sort(path: Path) -> None:
    """Puts the metadata in the order of their names, or no two files had the same bytes."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise OSError("its header is not written as expected")
        file.seek(8)
        file.write(text.ljust(size))


def _compare(path: Path, tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    """Raises OSError where a file does not hold these tensors."""
    with safe_open(path, "np") as opened:
        same = set(opened.keys()) == tensors.keys() and opened.metadata() == metadata
        for name in tensors if same else ():
            found = opened.get_tensor(name)
            same &= found.dtype == tensors[name].dtype and found.shape == tensors[name].shape
            same &= found.tobytes() == tensors[name].tobytes()
    if not same:
        raise OSError("what is read back is not what was written")
