"""What happened to a run beside its steps: ``events.jsonl``, which a rewind does not shorten."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

from jepa_vl.training import distributed

FILE = "events.jsonl"


class Events:
    """Says and writes down what a person should know later."""

    def __init__(self, workdir: Path, say: Callable[[str], None]):
        """Opens nothing before something happens."""
        self.path, self.say = workdir / FILE, say

    def tell(self, step: int, event: str, message: str, **numbers: float | int | str | None):
        """One event.

        Args:
          step: at which it happened.
          event: rewind, alarm, stop or keep.
          message: one line.
          **numbers: that belong to it.
        """
        self.say(f"step {step}: {message}")
        if not distributed.leads():
            return
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        row = {"time": now, "step": step, "event": event, "message": message, **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
