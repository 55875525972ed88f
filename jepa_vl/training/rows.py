"""The rows of metrics.jsonl, written one step late, so that no step waits for its own metrics."""

from typing import Any

import jax

from jepa_vl.training.console import Reporter
from jepa_vl.training.goodput import Clock
from jepa_vl.training.metrics import MetricsWriter
from jepa_vl.training.speed import Speed
from jepa_vl.training.step import Metrics


class LateRows:
    """Holds the row of a step until the next one has been started.

    It is fetched while that one runs. A checkpoint of a step must not be older than its row: a run
    that resumes there would never write it. So :meth:`write` comes before a save as well.
    """

    def __init__(self, writer: MetricsWriter, reporter: Reporter, clock: Clock, speed: Speed):
        """All of one run."""
        self.writer, self.reporter, self.clock, self.speed = writer, reporter, clock, speed
        self._held: tuple[int, float, Metrics, dict[str, Any]] | None = None

    def hold(self, step: int, metrics: Metrics, more: dict[str, Any]) -> None:
        """Keeps the row of a step that has been started.

        Args:
          step: its number.
          metrics: of the step, still on the devices; {} where it is not logged.
          more: what the host knows of this step already; with neither there is no row.
        """
        if metrics or more:
            self._held = step, self.speed.waited(), metrics, more

    def write(self) -> None:
        """Writes the row that is held, if one is, when its step is done."""
        if self._held is None:
            return
        (step, waited, metrics, more), self._held = self._held, None
        row: dict[str, Any] = {}
        if metrics:
            with self.clock.part("step"):
                fetched = jax.device_get(metrics)
            row = {**self.speed.row(step, waited), **fetched}
        written = self.writer.write(step, row | more)
        if written:  # empty in processes that write nothing
            self.reporter.step(step, written)
