"""``jepa-vl eval --watch``: each checkpoint of a run, once, as it appears."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jepa_vl.cli.eval_session import Request, Session
from jepa_vl.config import ConfigError

PAUSE = 10.0  # seconds between looks at the folder
WAITS = (1.0, 4.0, 16.0, 64.0)  # seconds before trying again what could not be read
UNMEASURED = 1  # exit code: a checkpoint was set aside
sleep = time.sleep
T = TypeVar("T")


def run(request: Request) -> int:
    """Evaluates until the run is over and its last checkpoint is measured.

    What cannot be read is tried again; then a checkpoint is set aside, and the watch goes on.

    Returns:
      0; 1 where a checkpoint was set aside.

    Raises:
      ConfigError: as ``jepa-vl eval`` does; a checkpoint that goes away meanwhile is no error.
    """
    watch, looked, aside = _Watch(request), set[int](), list[int]()
    while True:
        over = _is_over(watch.workdir)  # before looking: nothing comes after
        try:
            there = watch.patiently("its checkpoints", watch.steps)
        except OSError:
            over, there = False, []  # said already; who knows what is there
        new = [step for step in there if step not in looked]
        looked.update(new)
        for step in new:
            try:
                watch.patiently(f"step {step}", lambda step=step: watch.measure(step))
            except Exception as error:
                if not _may_pass(error):
                    raise
                print(f"step {step}: set aside, not measured", flush=True)
                aside.append(step)
        if not new:
            if over and aside:
                print(f"not measured: steps {', '.join(map(str, aside))}")
            if over:
                return UNMEASURED if aside else 0
            sleep(PAUSE)


class _Watch:
    """One run that is watched."""

    def __init__(self, request: Request):
        self.request, self.workdir = request, request.workdir.resolve()
        self._session: Session | None = None
        self._said = set[str]()

    def steps(self) -> list[int]:
        """See :func:`_steps`."""
        return _steps(self.workdir)

    def measure(self, step: int) -> None:
        """Evaluates a checkpoint, if it is still there; what its card has is not measured again."""
        loaded = _load(self.workdir, step)
        if loaded is None:
            print(f"step {step}: its checkpoint was removed before it was read", flush=True)
            return
        self._session = self._session or Session(loaded[0], self.request)
        card = self._session.evaluate(loaded[1], step, self.request.tasks)
        print(*card.told(), sep="\n", flush=True)

    def patiently(self, what: str, do: Callable[[], T]) -> T:
        """What ``do`` returns; tried again after errors that may pass, which one line tells.

        Raises:
          Exception: the last one, after all waits; one that will not pass at once.
        """
        for wait in WAITS:
            try:
                return do()
            except Exception as error:
                if not _may_pass(error):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                line = f"{what}: cannot be read: {reason}; trying again"
                if line not in self._said:
                    print(line, flush=True)
                self._said.add(line)
            sleep(wait)
        return do()


def _may_pass(error: Exception) -> bool:
    """May it be gone when tried again, as of a network file system?"""
    from jepa_vl.training.checkpoint import Damaged

    return isinstance(error, OSError) or isinstance(error.__cause__, Damaged)


def _load(workdir: Path, step: int) -> tuple[Any, Any, int] | None:
    """A checkpoint; None: it has gone away, as older ones do while a run goes on."""
    from jepa_vl.training import checkpoint

    try:
        return checkpoint.load(workdir, step)
    except ConfigError:
        if step in _steps(workdir):
            raise
        return None


def _steps(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints, the oldest first."""
    from jepa_vl.training.checkpoint import FOLDER, Checkpoints

    if not (workdir / FOLDER).is_dir():
        return []
    opened = Checkpoints(workdir, read_only=True)
    try:
        return opened.steps()
    finally:
        opened.close()


def _is_over(workdir: Path) -> bool:
    """Did the run end, and not to be started again?"""
    try:
        return json.loads((workdir / "result.json").read_text())["status"] != "preempted"
    except (OSError, ValueError, KeyError):
        return False
