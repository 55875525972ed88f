"""SIGTERM and SIGINT as a request to save and leave."""

import signal
import threading
from typing import Any


class Stop:
    """While open, SIGTERM and SIGINT are a request to save and leave; a second SIGINT interrupts.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """

    def __init__(self):
        self.requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python

    def _request(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
