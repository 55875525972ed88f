"""What a run writes down: metrics.jsonl, TensorBoard events, result.json."""

import contextlib
import errno
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Writes a file in one piece: a kill leaves the old one or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file in one piece."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a torn last line (a kill while writing) is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def first(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The earliest value of a metric; None if there is none."""
    return next((row[name] for row in rows if row.get(name) is not None), None)


def last(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The latest value of a metric; None if there is none."""
    return first(rows[::-1], name)


def speed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Images a second: the median over the logged windows but the first, which compiles.

    That of the first where there is no other; None where nothing is logged.
    """
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return statistics.median(rates[1:] or rates) if rates else None


def _plain(value: Any) -> Any:
    """A JSON number, counts as integers; NaN and infinities become null, since JSON has none."""
    if isinstance(value, str | int | bool) or value is None:
        return value
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.integer):
        return int(array)
    number = float(array)
    return number if math.isfinite(number) else None


class MetricsWriter:
    """Appends rows; a resumed run first drops the rows that lie after its checkpoint.

    A full disk costs no row: those that cannot be written are kept, and written with the next one.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        tensorboard: bool,
        say: Callable[[str], None] = lambda line: None,
        also: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ):
        """Opens the files of a workdir.

        Args:
          workdir: exists.
          start_step: step of the checkpoint resumed from; -1 for a new run.
          tensorboard: also write events.
          say: is told when rows cannot be written, and when they can be again.
          also: gets each row that is written.
        """
        self.path, self.say, self.also = workdir / "metrics.jsonl", say, also
        kept = [row for row in read_rows(self.path) if row["step"] <= start_step]
        write_rows(self.path, kept)
        self.rows = kept
        self._file = self.path.open("ab", buffering=0)
        self._whole, self._unwritten = self.path.stat().st_size, b""
        self._failing = False
        self._events = None
        if tensorboard:
            from jepa_vl.training.tensorboard import Events

            self._events = Events(workdir / "tensorboard", start_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one row: ``{"step": ..., name: number or null}``; returns it."""
        row = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        self.rows.append(row)
        self._unwritten += json.dumps(row).encode() + b"\n"
        self._append()
        self.also(row)
        if self._events is not None:
            try:
                self._events.write(step, {name: row[name] for name in values})
            except OSError as error:
                self._events = None
                self.say(f"warning: no more TensorBoard events from step {step} on: {error}")
        return row

    def _append(self) -> None:
        try:
            self._file.truncate(self._whole)  # half a row of the last try
            written = self._file.write(self._unwritten)
            if written < len(self._unwritten):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                self.say(f"warning: {self.path} cannot be written, its rows are kept: {error}")
            self._failing = True
            return
        self._whole += len(self._unwritten)
        self._unwritten = b""
        if self._failing:
            self.say(f"{self.path} can be written again")
        self._failing = False

    def first(self, name: str) -> Any:
        """The earliest value of a metric over the whole run; None if there is none."""
        return first(self.rows, name)

    def last(self, name: str) -> Any:
        """The latest value of a metric; None if there is none."""
        return last(self.rows, name)

    def speed(self) -> float | None:
        """See :func:`speed`, over the whole run, restarts included."""
        return speed(self.rows)

    def close(self) -> None:
        """Writes what is left, and closes."""
        if self._unwritten:
            self._append()
        self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
