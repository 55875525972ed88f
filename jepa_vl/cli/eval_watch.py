"""``jepa-vl eval --watch``: each checkpoint of a run, once, as it appears."""

import json
import time
from pathlib import Path
from typing import Any

from jepa_vl.cli.eval_session import Request, Session
from jepa_vl.config import ConfigError

PAUSE = 10.0  # seconds between looks at the folder


def run(request: Request) -> int:
    """Evaluates until the run is over and its last checkpoint is measured.

    Raises:
      ConfigError: as ``jepa-vl eval`` does; a checkpoint that goes away meanwhile is no error.
    """
    workdir, session, looked = request.workdir.resolve(), None, set[int]()
    while True:
        over = _is_over(workdir)  # before looking: nothing comes after
        new = [step for step in _steps(workdir) if step not in looked]
        looked.update(new)
        for step in new:
            loaded = _load(workdir, step)
            if loaded is None:
                print(f"step {step}: its checkpoint was removed before it was read", flush=True)
                continue
            session = session or Session(loaded[0], request)
            card = session.evaluate(loaded[1], step, request.tasks)
            print(*card.told(), sep="\n", flush=True)
        if not new:
            if over:
                return 0
            time.sleep(PAUSE)


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
