"""The checkpoints of a run: which it goes on from, when one is written, what if it cannot be."""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jepa_vl.config import Config, ConfigError, resume_diff
from jepa_vl.data import pipeline
from jepa_vl.training import checkpoint, distributed, rebatch
from jepa_vl.training.checkpoint import Checkpoints, Damaged
from jepa_vl.training.course import Course
from jepa_vl.training.goodput import Clock
from jepa_vl.training.state import TrainState

NOTHING_WHOLE = (
    f"no checkpoint is whole (the damaged ones lie in {checkpoint.ASIDE}/); take a new workdir"
)
BEGAN = "init"  # in the meta item: what parameters started from
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds before a save that failed is tried again


class Keeper:
    """Of one run. Attributes that others read:

    start: step to go on from, 0 for a new run. saved_as: the number that this step has in its
    checkpoint, another one after a change of batch. meta: of that checkpoint, {} for a new run.
    course: of the run so far.
    """

    def __init__(
        self, config: Config, workdir: Path, clock: Clock, data: dict[str, Any], meta: dict
    ):
        """Opens the checkpoints of a workdir and finds the one to go on from.

        Args:
          config: resolved.
          workdir: of the run.
          clock: takes over what was spent before that checkpoint.
          data: of ``pipeline.describe``; meta: of ``checkpoint.provenance``.

        Raises:
          ConfigError: the folder cannot be written, the checkpoint is of another run, or all are
            damaged.
        """
        self.config, self.workdir, self.clock = config, workdir, clock
        self._data, self._provenance = data, meta
        self.say: Callable[[str], None] = self._later
        self._unsaid: list[str] = []
        self.batch_before, self.saved_as = config.train.batch_size, 0
        self.meta: dict[str, Any] = {}
        self.course = Course()
        self._checkpoints = self._open()
        self.start = self._find()
        self._last_save = time.monotonic()
        self.more = {k: x for k, x in self.meta.items() if k == BEGAN}  # goes into meta too
        self._error: Exception | None = None
        self._failing: float | None = None  # since when
        self._pause, self._try_at = FIRST_PAUSE, 0.0

    def _later(self, line: str) -> None:
        self._unsaid.append(line)

    def speak(self, say: Callable[[str], None]) -> None:
        """From now on lines go there; those that had to wait come first."""
        for line in self._unsaid:
            say(line)
        self.say, self._unsaid = say, []

    def _open(self) -> Checkpoints:
        try:
            (self.workdir / checkpoint.FOLDER).mkdir(exist_ok=True)  # Orbax would find out later
            return Checkpoints(self.workdir, self.config.checkpoint)
        except OSError as error:
            rule = f"its {checkpoint.FOLDER} cannot be opened: {error.strerror or error}"
            raise ConfigError("--workdir", str(self.workdir), rule) from error

    def _find(self) -> int:
        """Step that the newest checkpoint stands for, 0 for a new run."""
        step = self._checkpoints.latest()
        if step is None:
            rebatch.check_whole(self.workdir)
            self.clock.start_over(self.workdir, self._provenance["config_hash"])
            self.saved_as, self.meta, self.course = 0, {}, Course()
            return 0
        try:
            data, meta = self._checkpoints.describe(step)
        except Damaged as error:
            self._set_aside(step, error)
            if self._checkpoints.latest() is None:
                raise ConfigError("workdir", str(self.workdir), NOTHING_WHOLE) from error
            return self._find()
        self._check_same_run(data, meta)
        self.saved_as, self.batch_before, self.meta = step, data["global_batch"], meta
        self.clock.resume(meta["spent"])
        batch = self.config.train.batch_size
        self.course = Course.of(meta).rebatched(self.batch_before, batch)
        return rebatch.continue_at(step, self.batch_before, batch)

    def _check_same_run(self, data: dict[str, Any], meta: dict[str, Any]) -> None:
        changed = resume_diff(rebatch.saved_as(meta["config"], self.config), self.config)
        if changed:
            rule = "holds a run of another configuration; take a new workdir, or undo:\n  "
            raise ConfigError("workdir", str(self.workdir), rule + "\n  ".join(changed))
        batch = self.config.train.batch_size
        pipeline.check_resume(data | {"global_batch": batch}, self._data)

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint that is whole; damaged ones before it are set aside.

        Raises:
          ConfigError: none is, or it does not fit.
        """
        while True:
            try:
                return self._checkpoints.restore(self.saved_as, like)
            except Damaged as error:
                self._set_aside(self.saved_as, error)
            self.start = self._find()
            if not self.start:
                raise ConfigError("workdir", str(self.workdir), NOTHING_WHOLE)

    def _set_aside(self, step: int, error: Damaged) -> None:
        self.say(f"warning: {error}")
        if distributed.leads():
            self.say(f"warning: it was moved to {self._checkpoints.set_aside(step)}")
        else:
            self._checkpoints.close()
        distributed.wait("set aside")
        self._checkpoints = self._open()

    def change_batch(self, state: TrainState) -> TrainState:
        """The restored state under its number with the new batch; the old folder is set aside."""
        old, new = self.batch_before, self.config.train.batch_size
        self._checkpoints.close()
        distributed.wait("all have closed the checkpoints")
        if distributed.leads():
            rebatch.set_aside(self.workdir, self.saved_as, old, new)
        distributed.wait("they are out of the way")
        self._checkpoints = self._open()
        self.say(f"batch {old} -> {new}: step {self.saved_as} is step {self.start} now")
        return rebatch.renumber(state, self.start)

    def began_from(self, told: dict[str, Any]) -> None:
        """Says, and keeps in each checkpoint, what parameters started from (``intake.start``)."""
        self.more[BEGAN] = told
        branch = f", {told['branch']} branch" if told["branch"] else ""
        parts = " and ".join(told["parts"])
        self.say(f"{parts} of {told['path']} ({told['kind']}{branch}): {told['arrays']} arrays")
        for line in told["allowed"]:
            self.say(f"allowed: {line}")

    def due(self, step: int) -> bool:
        """Is a checkpoint to be written after this step? The same in all processes."""
        keep = self.config.checkpoint
        if step % keep.every == 0 or step == self.config.train.steps:
            return True
        if not distributed.alone() and step % self.config.log.every:
            return False  # clocks differ, and to agree costs a message
        now, minutes = time.monotonic(), keep.every_minutes
        late = minutes > 0 and now - self._last_save >= 60 * minutes
        again = self._failing is not None and now >= self._try_at
        return distributed.first_says(late or again)

    def save(
        self, state: TrainState, step: int, spent: dict[str, Any], score: float | None = None
    ) -> None:
        """Starts a save; whether it succeeds is found out by :meth:`check`.

        Args:
          state: of the step, done.
          step: its number.
          spent: by the run so far.
          score: see :meth:`Checkpoints.save`.
        """
        meta = self._provenance | {"spent": spent, "course": vars(self.course), **self.more}
        self._last_save = time.monotonic()
        try:
            self._checkpoints.save(state, step, self._data, meta, score)
        except Exception as error:  # of many kinds: the system's, TensorStore's, Orbax's own
            self._error = error

    def check(self, step: int) -> None:
        """To be asked after each step: says, without waiting, if a save has failed.

        It is tried again with a later step, see :meth:`due`. What was trained is in memory still.

        Raises:
          ConfigError: saves have failed for ``checkpoint.patience_minutes``.
        """
        if distributed.alone() or step % self.config.log.every == 0:  # to agree costs a message
            self._learn(self._checkpoints.check, step)

    def _learn(self, ended: Callable[[], bool], step: int) -> bool:
        """Has the newest save not failed, in any process? If it has ended, what it means is said.

        Args:
          ended: has it? Raises what it failed with.
          step: at which this is asked.
        """
        whole = False
        try:
            whole = ended()
        except Exception as error:
            self._error = error
        if distributed.any_says(self._error is not None):
            self._failed(self._error or RuntimeError("in another process"), step)
            return False
        if whole and self._failing is not None:
            self.say(f"step {step}: checkpoints can be written again")
        if whole:
            self._failing, self._pause = None, FIRST_PAUSE
        return True

    def _wait(self, step: int) -> bool:
        """As :meth:`_learn`, of a save that is waited for."""

        def ended() -> bool:
            self.wait()
            return True

        return self._learn(ended, step)

    def _failed(self, error: Exception, step: int) -> None:
        now = time.monotonic()
        self._failing = now if self._failing is None else self._failing
        reason, minutes = _reason(error), self.config.checkpoint.patience_minutes
        self._reopen()
        if now - self._failing >= 60 * minutes:
            rule = f"no checkpoint could be written there for {minutes:g} minutes: {reason}"
            raise ConfigError("--workdir", str(self.workdir), rule)
        self.say(
            f"warning: step {step}: no checkpoint could be written to {self._checkpoints.folder}: "
            f"{reason}; the next try is in {self._pause:.0f} s"
        )
        self._try_at, self._pause = now + self._pause, min(2 * self._pause, LONGEST_PAUSE)

    def _reopen(self) -> None:
        """A manager that has failed once fails on; a new one clears what was left half written."""
        self._error = None
        with contextlib.suppress(Exception):  # that of the save once more
            self._checkpoints.close()
        self._checkpoints = self._open()

    def insist(self, save: Callable[[], None], step: int) -> None:
        """Returns when the save of the last step is whole; where it fails, it is tried again.

        Args:
          save: starts it again.
          step: its number.

        Raises:
          ConfigError: see :meth:`check`.
        """
        while not self._wait(step):
            while time.monotonic() < self._try_at:
                time.sleep(0.1)
            save()

    def return_to(self, before: int) -> int:
        """Makes the newest checkpoint up to a step that to go on from; deletes later ones.

        Returns:
          Its step; 0: there is none, the run begins again.
        """
        self._wait(before)
        back = max((step for step in self._checkpoints.steps() if step <= before), default=0)
        self._checkpoints.delete_after(back)
        self.start = self.saved_as = back
        self.meta = self._checkpoints.describe(back)[1] if back else {}
        return back

    def pin(self, step: int) -> None:
        """Keeps a checkpoint, which may be being written, for ever."""
        self._checkpoints.pin(step)

    def best(self) -> tuple[int, float] | None:
        """See :meth:`Checkpoints.best`."""
        return self._checkpoints.best()

    def wait(self) -> None:
        """Returns when the save in the background is done; raises what it failed with."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Waits for the save in the background and frees the manager."""
        self._checkpoints.close()


def _reason(error: Exception) -> str:
    """What went wrong, in few words: what the system said, where it said something."""
    lines = str(error).strip().splitlines() or [""]
    said = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore, at the end of a page
    text = f"[Errno {said[1]}] {os.strerror(int(said[1]))}" if said else lines[0][:200]
    return f"{type(error).__name__}: {text}"
