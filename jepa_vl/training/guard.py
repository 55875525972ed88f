"""May a run go on as it does? Steps skipped in a row and the alarm end it, or turn it back."""

from typing import Any, NamedTuple

from jepa_vl.config import Config
from jepa_vl.training.alarm import Alarm
from jepa_vl.training.events import Events
from jepa_vl.training.keeper import Keeper


class Verdict(NamedTuple):
    """What is to be done after a step.

    Attributes:
      keep: write its checkpoint, and never delete it for its age.
      back: newest step whose checkpoint the run may return to; None: it does not.
      lr_scale: of the learning rate after the return.
      status: of result.json where the run ends here; empty: it does not.
    """

    keep: bool = False
    back: int | None = None
    lr_scale: float = 1.0
    status: str = ""

    @property
    def ends(self) -> bool:
        """Is this the last step?"""
        return bool(self.status)


class Guard:
    """Of one run, or of what follows a rewind. It judges alike in all processes."""

    def __init__(self, config: Config, keeper: Keeper, events: Events):
        """Goes on from where the checkpoint left the alarm."""
        self.config, self.keeper, self.events = config, keeper, events
        self.alarm = Alarm(config.health, keeper.meta.get("alarm"))
        self._remember()

    def _remember(self) -> None:
        """The alarm's state goes into later checkpoints."""
        self.keeper.more["alarm"] = self.alarm.to_dict()

    def skipped(self, step: int) -> Verdict:
        """Too many steps were skipped in a row, the step before this one the last."""
        last_good = max(step - 1 - self.config.train.max_bad_steps, 0)
        return self._back_or_end(last_good, 1.0, "not finite")

    def diagnosed(self, step: int, found: dict[str, Any]) -> Verdict:
        """What the alarm makes of a step's diagnostics.

        Args:
          step: done.
          found: of it, as metrics.jsonl gets them; {}: none were due.
        """
        if not found:
            return Verdict()
        troubles = self.alarm.judge({"step": step, **found})
        self._remember()
        for trouble in troubles:
            message = f"alarm: {trouble.message}"
            self.events.tell(step, "alarm", message, rule=trouble.name, **trouble.numbers)
        action = self.config.health.action
        if not troubles or action == "warn":
            return Verdict()
        if action == "keep":
            return Verdict(keep=True)
        status, since = f"alarm: {troubles[0].name}", min(trouble.since for trouble in troubles)
        if action == "stop":
            return Verdict(status=status)
        return self._back_or_end(max(since - 1, 0), self.config.health.rewind_lr, status)

    def _back_or_end(self, back: int, lr_scale: float, status: str) -> Verdict:
        if self.keeper.course.rewinds < self.config.train.max_rewinds:
            return Verdict(back=back, lr_scale=lr_scale)
        return Verdict(status=status)
