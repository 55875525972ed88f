"""The ledger of a study: ``ledger.jsonl``, a row an attempt at a point, only ever added to.

Writers take turns by a lock of the file system, and each row is one write, on the disk before
:meth:`Ledger.append` returns. What a kill or a power cut leaves of a row that was being written is
cut off by the next writer; nobody was told that it is there.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError

FILE = "ledger.jsonl"
NAME = ("study", "arm", "size", "budget", "seed", "config_hash")  # together they name a point
DONE = "done"
Row = dict[str, Any]


def point_id(row: Mapping[str, Any]) -> str:
    """12 hex digits that name the point of a row, or of whatever has the keys of :data:`NAME`."""
    named = json.dumps([row[key] for key in NAME])
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def read(path: Path) -> list[Row]:
    """The rows, oldest first; a last line without its end is left out.

    Raises:
      ConfigError: there is no such file, or a line that is no row.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError("--ledger", str(path), f"a ledger to read: {error.strerror}") from error
    return _rows(data, path)


def _rows(data: bytes, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            point_id(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"line {number} of {path}", _shown(line), "a row of a ledger") from (
                error
            )
        rows.append(row)
    return rows


def _shown(line: bytes) -> str:
    return line[:60].decode(errors="replace")


def latest(rows: list[Row]) -> dict[str, Row]:
    """What counts of each point, by its name: the row that says done, else the last one."""
    out: dict[str, Row] = {}
    for row in rows:
        name = point_id(row)
        if out.get(name, {}).get("status") != DONE:
            out[name] = row
    return out


class Ledger:
    """The file of one study; any number of processes may hold one and write."""

    def __init__(self, path: Path):
        """Nothing is opened yet; the folder is made by the first row."""
        self.path = path

    def rows(self) -> list[Row]:
        """See :func:`read`; none where nothing was written yet."""
        return read(self.path) if self.path.exists() else []

    def append(self, row: Mapping[str, Any]) -> bool:
        """Adds a row, unless its point is done already. On the disk when this returns.

        Args:
          row: fit for JSON, without NaN; holds ``status`` and the keys of :data:`NAME`.

        Returns:
          Was it added?

        Raises:
          ConfigError: the file cannot be read.
          OSError: it cannot be written; nothing of the row stays.
          KeyError: a key is missing.
        """
        name, line = point_id(row), json.dumps(row, allow_nan=False).encode() + b"\n"
        row["status"]  # a row without one says nothing
        with self._locked() as file:
            size = _heal(file)
            known = latest(_rows(os.pread(file, size, 0), self.path))
            if known.get(name, {}).get("status") == DONE:
                return False
            try:
                if os.write(file, line) != len(line):
                    raise OSError("half a row was written: the disk is full")
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
        return True

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the descriptor, however the process ends
            if new:
                _sync_folder(self.path.parent)
            yield file
        finally:
            os.close(file)


def _heal(file: int) -> int:
    """Cuts off what follows the last whole line; returns the size that stays."""
    size = os.fstat(file).st_size
    whole = os.pread(file, size, 0).rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(file, whole)
    return whole


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
