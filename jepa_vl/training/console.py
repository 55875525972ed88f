"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere; or JSON."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 15.0  # between two plain lines
SILENT = "silent"  # no choice of the user's: of processes that others speak for


class _Console(Console):
    """A run outlives who reads it: `jepa-vl train ... | head`."""

    def on_broken_pipe(self) -> None:
        """Says nothing more."""
        self.quiet = True
        _close_stdout()


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """Step, loss, images a second and time to go."""

    def __init__(self, mode: str, total: int, start: int):
        """Starts the display.

        Args:
          mode: auto, lines, json or off (``log.progress``); or :data:`SILENT`.
          total: steps of the run.
          start: steps already done.
        """
        self.total = total
        self.mode, self._heard = mode, True
        self._console = _Console(highlight=False, stderr=mode in ("json", "off"))
        self._quiet = mode in ("off", SILENT)
        self._bar = None
        self._last_line = -math.inf
        self._first: tuple[float, int] | None = None  # when and where the compilation was over
        if mode == "auto" and sys.stdout.isatty():
            columns = (
                TextColumn("step"), MofNCompleteColumn(), BarColumn(),
                TextColumn("{task.fields[status]}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("train", total=total, completed=start, status="")
            self._bar.start()

    def say(self, text: str) -> None:
        """One line that stays; with json it goes to stderr, since stdout holds rows alone."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def end(self, text: str) -> None:
        """The line that says how a run ended; off does not hide it, but keeps it from stdout."""
        if self.mode != SILENT:
            self._console.print(text, markup=False, soft_wrap=True)

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows a row of metrics.jsonl; with json all of it.

        Else the row of a step that was logged: the first plain line at once, others at most every
        15 s, and the last.
        """
        if self.mode == "json":
            if self._heard:
                self._print(row)
            return
        if "loss" not in row:
            return
        loss, rate = row.get("loss"), row.get("images_per_second")
        status = f"loss {_number(loss)}  {_number(rate)} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or step == self.total:
            self._last_line = now
            self.say(f"step {step}/{self.total}  {status}{self._time_left(now, step)}")

    def _print(self, row: Mapping[str, Any]) -> None:
        try:
            print(json.dumps(row), flush=True)
        except BrokenPipeError:
            _close_stdout()
            self._heard = False

    def _time_left(self, now: float, step: int) -> str:
        """From the second logged step on: the first one bears the compilation."""
        if self._first is None:
            self._first = now, step
        began, first = self._first
        if not first < step < self.total:
            return ""
        return f"  {_clock((now - began) / (step - first) * (self.total - step))} left"

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
