"""``jepa-vl train --supervise``: starts the training, sees it die, and starts it again.

Where a host dies, jax.distributed aborts the processes of the others: no exception could be caught
there, so that only a process of its own can put the run together again. On a cluster each host has
a supervisor; those of one run share the workdir, and tell in ``restarts.jsonl`` what they saw.
Nothing here imports jax.
"""

import argparse
import collections
import dataclasses
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli.configs import Override
from jepa_vl.cli.numbers import whole
from jepa_vl.config import ConfigError
from jepa_vl.training import run_files

DONE, GAVE_UP, PREEMPTED, STOPPED, BAD_INPUT, INTERRUPTED = 0, 1, 3, 4, 5, 130
AGREED = (DONE, PREEMPTED, STOPPED)  # all processes of a run leave with these together
FINAL = (STOPPED, BAD_INPUT, GAVE_UP)
RESTARTS = 5
POLL, LONGEST_PAUSE = 0.05, 60.0  # seconds
GRACE = "JEPA_VL_GRACE_SECONDS"  # that the others have to end when one has died
LOG = run_files.RESTARTS
OF_OTHERS = ", as another process of the run had died"
LOSS = (b"oordination", b"JAX distributed", b"by peer")  # on stderr
PARENT = "JEPA_VL_SUPERVISOR"
PATIENCE = "JEPA_VL_LOCK_SECONDS"  # of training.lock
OWN = (
    "verb",
    "supervise",
    "local_processes",
    "max_restarts",
    "coordinator",
    "processes",
    "process",
)
# What tells the number of a process; the training itself asks JAX.
NUMBERS = ("JEPA_VL_PROCESS", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX",
           "TPU_WORKER_ID")  # fmt: skip


def run(args: argparse.Namespace, overrides: Sequence[Override], workdir: Path) -> int:
    """Supervises the training that these arguments ask for; returns its last exit code.

    Raises:
      ConfigError: numbers that are none, or options that exclude each other.
    """
    local = whole("--local-processes", args.local_processes or "1", 1)
    restarts = whole("--max-restarts", args.max_restarts or str(RESTARTS), 0)
    told = {
        f"JEPA_VL_{name.upper()}": getattr(args, name)
        for name in ("coordinator", "processes", "process")
        if getattr(args, name)
    }
    if local > 1 and told:
        rule = "processes of this machine alone; leave out --coordinator, --processes, --process"
        raise ConfigError("--local-processes", local, rule)
    return Supervisor(command(args, overrides), workdir, local, restarts, told).run()


def refuse_without(args: argparse.Namespace) -> None:
    """Without a supervisor, what is told to it has no meaning.

    Raises:
      ConfigError: something is.
    """
    for name in ("local_processes", "max_restarts"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(args, name), "add --supervise")


def command(args: argparse.Namespace, overrides: Sequence[Override]) -> list[str]:
    """The command line of the training itself."""
    words = [sys.executable, "-m", "jepa_vl", args.verb]
    for name, value in vars(args).items():
        if name not in OWN and value:
            option = f"--{name.replace('_', '-')}"
            words.append(option if value is True else f"{option}={value}")
    for key, value in overrides:
        words.append(f"--config.{key}" if value is None else f"--config.{key}={value}")
    return words


def end_with_supervisor() -> None:
    """A training whose supervisor was killed saves and leaves, lest the next one meet it."""
    parent = int(os.environ.get(PARENT, "0"))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass
class Child:
    """One process of the training.

    Attributes:
      number: of the process in the run, as far as it is known here.
      process: of the system.
      tail: its last lines on stderr.
      code: of its end, below 0 that of a signal; None while it runs.
      cause: of its end, for people.
    """

    number: int | None
    process: subprocess.Popen
    tail: collections.deque[bytes]
    code: int | None = None
    cause: str = ""


class Supervisor:
    """Of the processes of one run that this machine starts."""

    def __init__(
        self, command: list[str], workdir: Path, local: int, restarts: int, told: dict[str, str]
    ):
        """Nothing starts yet.

        Args:
          command: line of the training.
          workdir: of the run; others may write there too.
          local: processes to start; above 1 they are a run of their own, on CPU over loopback.
          restarts: in a row that may bring no new checkpoint.
          told: variables for the training.
        """
        self.command, self.workdir, self.local = command, workdir, local
        self.most, self.told = restarts, told
        self.asked = 0  # signals that asked to stop
        self.host, self.restart, self.fruitless = socket.gethostname(), 0, 0
        self.grace = whole(GRACE, os.environ.get(GRACE, "10"), 0)
        self._seen = self._size()  # of the log: what others wrote before does not concern us

    def run(self) -> int:
        """Launches until the run ends, is asked to stop, or gets nowhere; returns its exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        while True:
            before, logged = self._checkpoints(), self._size()
            children = self._launch()
            ended = self._wait(children)
            self._blame(ended, [row["cause"] for row in self._rows(logged)])
            code = self._verdict([child.code for child in children])
            advanced = bool(self._checkpoints() - before)
            self.fruitless = 0 if advanced else self.fruitless + 1
            if code is None:
                code = self._elsewhere()
            if code is None and self.fruitless > self.most:
                code = GAVE_UP
            self._tell(ended, code)
            if code is not None:
                return code
            if not self._pause():
                return PREEMPTED
            code = self._elsewhere()  # which may have taken a moment
            if code is not None:
                return code
            self.restart += 1

    def _ask(self, number: int, frame: Any) -> None:
        self.asked += 1

    def _launch(self) -> list[Child]:
        # What an earlier supervisor, or this one, had started may still be saving.
        patience = {PATIENCE: os.environ.get(PATIENCE, "60")}
        variables = os.environ | self.told | patience | {PARENT: str(os.getpid())}
        if self.local == 1:
            known = (variables.get(name, "") for name in NUMBERS)
            number = next((int(word) for word in known if word.isdecimal()), None)
            return [self._start(number, variables)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        variables |= {"JEPA_VL_COORDINATOR": address, "JEPA_VL_PROCESSES": str(self.local)}
        variables["JAX_PLATFORMS"] = "cpu"
        numbers = range(self.local)
        return [self._start(k, variables | {"JEPA_VL_PROCESS": str(k)}) for k in numbers]

    def _start(self, number: int | None, variables: dict[str, str]) -> Child:
        process = subprocess.Popen(self.command, env=variables, stderr=subprocess.PIPE)
        child = Child(number, process, collections.deque(maxlen=200))
        threading.Thread(target=_pass_on, args=(child,), daemon=True).start()
        return child

    def _wait(self, children: list[Child]) -> list[Child]:
        """Until all have ended; returns them in that order, those who died of others after them."""
        ended: list[Child] = []
        asked, deadline = 0, float("inf")
        while len(ended) < len(children):
            now = [c for c in children if c.code is None and c.process.poll() is not None]
            for child in now:
                child.code = child.process.returncode
            # Of several within a moment: an abort, or an error, is what a death does to others.
            ended += sorted(now, key=lambda c: (c.code == -signal.SIGABRT, (c.code or 0) > 0))
            running = [child for child in children if child.code is None]
            failed = any(child.code not in AGREED for child in ended)
            if self.asked > asked or (failed and deadline == float("inf")):
                for child in running:
                    child.process.kill() if asked else child.process.terminate()
                asked = self.asked
                deadline = time.monotonic() + self.grace if failed else deadline
            elif time.monotonic() > deadline:
                for child in running:
                    child.process.kill()
            time.sleep(POLL)
        return ended

    def _blame(self, ended: list[Child], elsewhere: list[str]) -> None:
        """Says of each what it died of.

        Args:
          ended: in that order.
          elsewhere: causes that the supervisors of other hosts have told since the launch.
        """
        ends = [_named(code) for code in AGREED]
        one_died = any(cause not in ends and OF_OTHERS not in cause for cause in elsewhere)
        died = [child for child in ended if child.code not in AGREED]
        for child in ended:
            child.cause = _named(child.code or 0)
            other = f"process {died[0].number}" if died else ""
            if child in died and child is not died[0]:
                child.cause += f", as {other} had died"
            elif child.code in (-signal.SIGABRT, GAVE_UP) and (one_died or _lost_others(child)):
                child.cause += OF_OTHERS

    def _verdict(self, codes: list[int | None]) -> int | None:
        """Exit code to end with; None: start again."""
        for final in (BAD_INPUT, STOPPED, INTERRUPTED):
            if final in codes:
                return final
        if set(codes) == {DONE}:
            return DONE
        return PREEMPTED if self.asked else None

    def _pause(self) -> bool:
        """Longer from restart to restart; False: asked to stop meanwhile."""
        until = time.monotonic() + min(2.0 ** max(0, self.fruitless - 1), LONGEST_PAUSE)
        while time.monotonic() < until and not self.asked:
            time.sleep(POLL)
        return not self.asked

    def _tell(self, ended: list[Child], code: int | None) -> None:
        """Of the processes that died: on stderr and, for all hosts and later, in the log."""
        told = [child for child in ended if child.code not in AGREED] or ended[:1]
        if code == DONE and not self._size():
            return
        now = datetime.datetime.now(datetime.UTC).astimezone()
        step, rows = last_step(self.workdir), []
        for child in told:
            row = {
                "time": now.isoformat(timespec="seconds"),
                "host": self.host,
                "process": child.number,
                "cause": child.cause,
                "step": step,
                "restart": None if code is not None else self.restart + 1,
            }
            rows.append(row | ({} if code is None else {"exit": code}))
            who = "the training" if child.number is None else f"process {child.number}"
            self._say(f"{who} on {self.host}: {child.cause}; last logged step {step}", now)
        if code is None:
            self._say(f"restart {self.restart + 1}", now)
        elif code == GAVE_UP:
            self._say(f"{self.most} restarts in a row brought no new checkpoint; giving up", now)
        if code is None or self.workdir.exists():
            self.workdir.mkdir(parents=True, exist_ok=True)
            with (self.workdir / LOG).open("a") as log:
                log.write("".join(json.dumps(row) + "\n" for row in rows))

    def _say(self, text: str, now: datetime.datetime) -> None:
        print(f"supervisor {now:%Y-%m-%d %H:%M:%S}: {text}", file=sys.stderr, flush=True)

    def _size(self) -> int:
        path = self.workdir / LOG
        return path.stat().st_size if path.exists() else 0

    def _elsewhere(self) -> int | None:
        """Exit code that the supervisor of another host has ended the run with."""
        ends = (row.get("exit") for row in self._rows(self._seen))
        return next((code for code in ends if code in FINAL), None)

    def _rows(self, since: int) -> list[dict[str, Any]]:
        """Of the log, from that byte on."""
        if self._size() <= since:
            return []
        with (self.workdir / LOG).open("rb") as log:
            log.seek(since)
            return [json.loads(line) for line in log if line.endswith(b"\n")]

    def _checkpoints(self) -> set[str]:
        folder = self.workdir / "checkpoints"
        names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
        return {name for name in names if name.isdecimal()}  # the others are being written


def _pass_on(child: Child) -> None:
    assert child.process.stderr is not None
    for line in child.process.stderr:
        child.tail.append(line)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def _lost_others(child: Child) -> bool:
    """jax.distributed says why it aborts; so does a collective whose peer is gone."""
    return any(word in line for line in child.tail for word in LOSS)


def _named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def last_step(workdir: Path) -> int | None:
    """Step of the last row of metrics.jsonl, as far as it is whole; None: no such row."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
    return None
