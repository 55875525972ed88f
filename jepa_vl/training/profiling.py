"""Traces of a few steps, asked for on the command line or, of a run that goes on, by a file.

They lie in ``WORKDIR/profiles`` and are read by TensorBoard's profile plugin and by xprof.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from jepa_vl.config import ConfigError
from jepa_vl.training.goodput import Clock

OPTION = "--profile"
REQUEST = "profile"  # file in the workdir
STEPS = 5  # of a window that a file asks for without a number
EVENT = "train"  # name of the steps in the trace
EFFORT = 0.01  # share of the time that may go into looking for the file, which may be far away


class Window(NamedTuple):
    """Steps to trace, both ends included; ``everywhere``: by every process, not by the first."""

    first: int
    last: int
    everywhere: bool = False


def window(text: str, total: int) -> Window:
    """Reads ``FIRST:LAST`` or ``FIRST:LAST:all``.

    Args:
      text: of the command line.
      total: steps of the run.

    Raises:
      ConfigError: it is none, or lies outside the run.
    """
    first, *rest = text.split(":")
    everywhere = rest[1:] == ["all"]
    if len(rest) != 1 + everywhere or not (first.isdecimal() and rest[0].isdecimal()):
        rule = "FIRST:LAST, two steps, as in 100:110, or FIRST:LAST:all for all processes"
        raise ConfigError(OPTION, text, rule)
    found = Window(int(first), int(rest[0]), everywhere)
    if not 1 <= found.first <= found.last <= total:
        raise ConfigError(OPTION, text, f"1 <= FIRST <= LAST <= train.steps = {total}")
    return found


class Profiler:
    """Starts and ends traces around the steps of a run. What fails here is told, and no more."""

    def __init__(
        self,
        workdir: Path,
        asked: Window | None,
        clock: Clock,
        say: Callable[[str], None],
        wait: Callable[[], object],
    ):
        """Nothing is traced yet.

        Args:
          workdir: of the run.
          asked: steps to trace.
          clock: of the run.
          say: takes messages.
          wait: returns when the newest step is done.
        """
        self.workdir, self.clock, self.say, self.wait = workdir, clock, say, wait
        self.process = jax.process_index()
        mine = asked is not None and (asked.everywhere or self.process == 0)
        self._asked = asked if mine else None
        self._open: Window | None = None
        self._look_at = 0.0

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Encloses a step, from its batch to its start; traces it where that is asked for."""
        if self._open is None and (found := self._due(step)):
            self._begin(found)
        with jax.profiler.StepTraceAnnotation(EVENT, step_num=step):
            yield
        if self._open is not None and step >= self._open.last:
            with self.clock.part("step"):
                self.wait()
            self._end()

    def _due(self, step: int) -> Window | None:
        asked = self._asked
        if asked is not None and asked.first <= step <= asked.last:
            self._asked = None
            return asked._replace(first=step)  # a resumed run may begin within it
        return self._requested(step) if self.process == 0 else None

    def _requested(self, step: int) -> Window | None:
        """Looks for the file, more rarely where looking takes long."""
        began, path = time.monotonic(), self.workdir / REQUEST
        if began < self._look_at:
            return None
        there = path.is_file()
        ended = time.monotonic()
        self._look_at = ended + (ended - began) / EFFORT
        if not there:
            return None
        try:
            text = path.read_text().strip()
            path.unlink()
        except OSError as error:
            self._look_at = float("inf")  # it would be there at each step
            self.say(f"warning: no profile: {error}")
            return None
        if text and not (text.isdecimal() and int(text)):
            self.say(f"warning: no profile: {path} holds {text[:40]!r}, no number of steps")
            return None
        return Window(step, step + int(text or STEPS) - 1)

    def _begin(self, found: Window) -> None:
        folder = self.workdir / "profiles" / f"steps_{found.first}_{found.last}"
        if self.process:  # several on one machine would write one file
            folder = folder / f"process_{self.process}"
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # slows the steps down, and tells little about them
        with self.clock.part("profile"):
            try:
                jax.profiler.start_trace(folder, profiler_options=options)
            except (RuntimeError, OSError) as error:  # another trace is being taken, say
                self.say(f"warning: no profile: {error}")
                return
        self._open = found
        self.say(f"profile of steps {found.first} to {found.last} begins: {folder}")

    def _end(self) -> None:
        if self._open is None:
            return
        self._open = None
        with self.clock.part("profile"):
            try:
                jax.profiler.stop_trace()
                self.say("profile written")
            except (RuntimeError, OSError) as error:  # the disk is full, say
                self.say(f"warning: no profile: {error}")
