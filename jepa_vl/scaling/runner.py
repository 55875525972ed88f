"""Runs the open points of a plan as processes, a few at a time, beside other runners.

A point is claimed by a lock that its processes inherit: it is free again when the last of them has
gone, however it went, and while one that lost its runner still trains, nobody starts it twice.
"""

import fcntl
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from jepa_vl.scaling.ledger import DONE, Ledger, latest, point_id

FINISHED, PREEMPTED = 0, 3
LOG = "log.txt"  # of a workdir: what its processes have said
KILLS = 3  # how often a point is started again that something else kills
Point = Mapping[str, Any]


class Job(NamedTuple):
    """A point and what it takes.

    Attributes:
      point: of the plan; id names it.
      workdir: of its run.
      commands: after ``jepa-vl``, one after the other.
      row: makes the row of the ledger of the exit code and reason of what has ended.
    """

    point: Point
    workdir: Path
    commands: Sequence[Sequence[str]]
    row: Callable[[int, str], dict[str, Any]]


class _Active:
    """A job whose command is running; holds its claim."""

    def __init__(self, job: Job, claim: IO[str]):
        self.job, self.claim = job, claim
        self.number, self.kills = 0, 0
        self.process: subprocess.Popen | None = None

    def start(self, program: Sequence[str]) -> None:
        self.job.workdir.mkdir(parents=True, exist_ok=True)
        with (self.job.workdir / LOG).open("a") as log:
            self.process = subprocess.Popen(
                [*program, *self.job.commands[self.number]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                # Ctrl-C reaches the runner alone, which asks each child once to save and leave.
                start_new_session=True, pass_fds=[self.claim.fileno()],
            )  # fmt: skip

    def reason(self) -> str:
        """The last line that the processes have said."""
        lines = (self.job.workdir / LOG).read_text(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""


class Stoppable(ABC):
    """What starts processes. Inside ``with`` SIGINT and SIGTERM let them save and leave.

    Attributes:
      stopped: a signal has come; whoever starts a process then asks it to leave at once.
    """

    def __init__(self):
        self.stopped = False

    @abstractmethod
    def children(self) -> list[subprocess.Popen]:
        """Those that may be running."""

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._stop) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        for child in self.children():
            child.terminate()


class Runner(Stoppable):
    """Works through jobs."""

    program: Sequence[str] = (sys.executable, "-m", "jepa_vl")
    pause = 0.2  # seconds between looks at the children

    def __init__(self, out: Path, parallel: int, retry: bool, say: Callable[[str], None]):
        """Starts nothing yet.

        Args:
          out: folder of the study.
          parallel: points at a time.
          retry: start points anew that have failed before.
          say: is told what begins and ends.
        """
        super().__init__()
        self.ledger, self.claims = Ledger(out / "ledger.jsonl"), out / "claims"
        self.parallel, self.retry, self.say = parallel, retry, say
        self._active = list[_Active]()

    def children(self) -> list[subprocess.Popen]:
        """Of all points that are being worked on."""
        return [active.process for active in self._active if active.process is not None]

    def run(self, jobs: Sequence[Job]) -> int:
        """Runs what is open and not claimed by another runner.

        Returns:
          0: each of them has a row; 3: stopped, or others still work on some.
        """
        taken = self._through(jobs)
        while taken and not self.stopped:
            still, taken = taken, self._through(taken)
            if len(taken) == len(still):
                break
        return PREEMPTED if self.stopped or taken else FINISHED

    def _through(self, jobs: Sequence[Job]) -> list[Job]:
        """Runs what it can claim; returns what others had claimed and is open still."""
        waiting, taken = list(jobs), []
        while waiting or self._active:
            while waiting and len(self._active) < self.parallel and not self.stopped:
                job = waiting.pop(0)
                if not self._begin(job):
                    taken.append(job)
            if self.stopped:
                waiting.clear()
            for active in list(self._active):
                self._look_at(active)
            if self._active:
                time.sleep(self.pause)
        return [job for job in taken if self.is_open(job.point)]

    def is_open(self, point: Point) -> bool:
        """Has it no row yet, or one that may be tried again?"""
        row = latest(self.ledger.rows()).get(point["id"])
        return row is None or (self.retry and row["status"] != DONE)

    def _begin(self, job: Job) -> bool:
        """Claims and starts a job, if it is open; False: another runner has it."""
        self.claims.mkdir(parents=True, exist_ok=True)
        claim = (self.claims / f"{job.point['id']}.lock").open("a")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            return False
        if not self.is_open(job.point):  # asked with the claim: nobody else can have just ended it
            claim.close()
            return True
        active = _Active(job, claim)
        self._active.append(active)
        self.say(f"begins: {_named(job.point)}")
        self._start(active)
        return True

    def _start(self, active: _Active) -> None:
        active.start(self.program)
        if self.stopped and active.process is not None:  # in between
            active.process.terminate()

    def _look_at(self, active: _Active) -> None:
        """Goes on to the next command, or to the row, where the process has ended."""
        code = active.process.poll() if active.process is not None else None
        if code is None:
            return
        if self.stopped and code != FINISHED:
            self._leave(active, "stopped; it goes on when the study does")
        elif code == FINISHED and active.number + 1 < len(active.job.commands):
            active.number += 1
            if self.stopped:
                self._leave(active, "stopped; it goes on when the study does")
            else:
                self._start(active)
        elif (code < 0 or code == PREEMPTED) and active.kills < KILLS:
            active.kills += 1
            self.say(f"ended from outside ({code}), goes on: {_named(active.job.point)}")
            self._start(active)
        else:
            self._write(active, code)

    def _write(self, active: _Active, code: int) -> None:
        reason = f"ended by signal {-code}" if code < 0 else active.reason()
        row = active.job.row(code, "" if code == FINISHED else reason)
        assert point_id(row) == active.job.point["id"]
        self.ledger.append(row)
        self._leave(active, row["status"] + (f": {row['reason']}" if row.get("reason") else ""))

    def _leave(self, active: _Active, what: str) -> None:
        self._active.remove(active)
        active.claim.close()
        self.say(f"{what}: {_named(active.job.point)}")


def _named(point: Point) -> str:
    return (
        f"{point['arm']}, size {point['size']}, {point['budget']:.4g} FLOPs, seed {point['seed']}"
    )
