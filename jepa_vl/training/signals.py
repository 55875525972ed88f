"""SIGTERM and SIGINT as a request to save and leave."""

import os
import signal
import threading
from typing import Any

from jax.experimental import multihost_utils


class Stop:
    """While open, SIGTERM and SIGINT are a request to save and leave; a second SIGINT interrupts.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """

    numbers = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers:
                self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python

    def _request(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def reached(self, step: int) -> bool:
        """Is this step, which is done, the last one? To be asked after each."""
        del step
        return self.requested


class SharedStop(Stop):
    """The same among several processes: a signal to any of them ends all after the same step.

    jax.distributed catches SIGTERM, tells all processes and agrees on a step in the background; to
    ask costs nothing. SIGINT is passed on as one.
    """

    numbers = (signal.SIGINT,)

    def _request(self, number: int, frame: Any) -> None:
        super()._request(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """As of :class:`Stop`; the same in all processes."""
        return multihost_utils.reached_preemption_sync_point(step)
