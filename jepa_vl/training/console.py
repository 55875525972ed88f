"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 15.0  # between two plain lines


class Reporter:
    """Step, loss, images a second and time to go."""

    def __init__(self, mode: str, total: int, start: int):
        """Starts the display.

        Args:
          mode: auto, lines or off (``log.progress``).
          total: steps of the run.
          start: steps already done.
        """
        self.total = total
        self._console = Console(highlight=False)
        self._quiet = mode == "off"
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
        """One line that stays."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows a logged step; plain lines come first, at most every 15 s, and at the end."""
        loss, rate = row.get("loss"), row.get("images_per_second")
        status = f"loss {_number(loss)}  {_number(rate)} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or step == self.total:
            self._last_line = now
            self.say(f"step {step}/{self.total}  {status}{self._time_left(now, step)}")

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
