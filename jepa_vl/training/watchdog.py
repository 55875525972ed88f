"""A run that hangs says where, and dies: whoever relaunches it cannot see a hang."""

import faulthandler
import os
import sys
import threading
import time

GRACE = 60.0  # seconds, for when Python itself cannot run: a hang that holds its lock
EXIT = 1


class Watchdog:
    """While open, no sign of life for so long ends the process; it starts with the first sign."""

    def __init__(self, minutes: float):
        """``minutes``: 0 for none."""
        self.seconds = 60 * minutes
        self._last: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._error = sys.__stderr__ or sys.stderr

    def alive(self) -> None:
        """A sign of life; costs nothing."""
        if self._last is None and self.seconds:
            self._arm(self.seconds)
        self._last = time.monotonic()

    def working(self) -> None:
        """A sign of life between steps; unlike :meth:`alive` it does not begin the watch."""
        if self._last is not None:
            self._last = time.monotonic()

    def _arm(self, seconds: float) -> None:
        """Of the C library: it needs no lock of Python's."""
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=self._error)

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self.seconds:
            self._thread.join()  # or it might arm it once more
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(10.0, self.seconds / 4)):
            if self._last is None:
                continue
            left = self._last + self.seconds - time.monotonic()
            if left <= 0:
                minutes = self.seconds / 60
                print(
                    f"jepa-vl: error: no step for {minutes:g} minutes (train.watchdog_minutes); "
                    "all threads stand here:",
                    file=self._error,
                    flush=True,
                )
                faulthandler.dump_traceback(self._error)
                os._exit(EXIT)
            self._arm(left)
