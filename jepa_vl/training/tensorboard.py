"""TensorBoard events, written where they are made.

``tensorboardX.SummaryWriter`` hands them to a thread over a queue of ten: where the disk is full
the thread dies, and the training then waits for ever for room in the queue.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """One event file a process; of one that resumed, later steps of earlier files do not count."""

    def __init__(self, folder: Path, first_step: int):
        """Opens a new file in a folder.

        Raises:
          OSError: it cannot be written.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._file = EventsWriter(str(folder / "events"))
        log: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        start = log(status=log.START)
        self._file.write_event(
            self._event(step=first_step, wall_time=time.time(), session_log=start)
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers among the values of a step.

        Raises:
          OSError: they cannot be written.
        """
        from tensorboardX.summary import scalar

        for name, value in values.items():
            if isinstance(value, int | float):
                told = scalar(name, value)
                self._file.write_event(self._event(step=step, wall_time=time.time(), summary=told))
        self._file.flush()

    def close(self) -> None:
        """Closes the file.

        Raises:
          OSError: what was left cannot be written.
        """
        self._file.close()
