"""Keeps a training run on TPU VMs alive: creates the machines, starts the run, begins again.

Command:    python launch/babysit.py --name pod --zone Z --type v5e-256 --spot --git URL \
                --bucket B -- --config configs/tcjepa_in1k.py --workdir /mnt/B/runs/one
            All options of launch/tpu_vm.sh, which does the work, and those of --help here. The
            workdir must outlive the machines (a bucket): each start resumes from it.
Hardware:   any machine that stays on and has gcloud; the standard library is enough.

Ends with 0 when the run is done; with its 4 (diverged or collapsed) or 5 (bad input); with 1 after
too many losses in a row. Then the machines are given back, unless --keep. An interrupt leaves all
as it is.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TOOL = Path(__file__).with_name("tpu_vm.sh")
DONE, GIVEN_UP, STOPPED, BAD_INPUT, INTERRUPTED = 0, 1, 4, 5, 130
FINAL = {"exit 0": DONE, "exit 4": STOPPED, "exit 5": BAD_INPUT}
LOST = ("SUSPENDED", "FAILED")
LAST_LINES = 40


@dataclasses.dataclass(frozen=True)
class Patience:
    """When to look, and when to stop trying; times in seconds.

    Attributes:
      poll: between looks.
      max_attempts: losses in a row before it gives up.
      backoff: after a loss, doubled by each further one.
      max_backoff: its limit.
      failures: looks in a row that may fail before the machines count as lost.
      healthy: a run that lived this long makes earlier losses forgotten.
    """

    poll: float = 60.0
    max_attempts: int = 20
    backoff: float = 30.0
    max_backoff: float = 1800.0
    failures: int = 10
    healthy: float = 1800.0


class GaveUp(Exception):
    """Too many losses in a row, or input that no retry mends."""

    def __init__(self, code: int, why: str):
        self.code = code
        super().__init__(why)


class Babysitter:
    """The state machine. It sees the world through ``tool`` alone, and remembers little.

    Machines are absent, coming, lost or active; a run on active machines is idle, running or has
    ended. ABSENT -> create; lost -> create again, which deletes what is suspended; idle -> install
    and start; ended by 0, 4 or 5 -> over; ended otherwise -> start again.
    """

    def __init__(
        self,
        tool: Callable[[str], tuple[int, str]],
        patience: Patience,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        """``tool``: runs an action of tpu_vm.sh; its exit code and output."""
        self.tool, self.patience, self.sleep, self.clock = tool, patience, sleep, clock
        self.losses, self.failures, self.said = 0, 0, ""
        self.started = False  # by us, on the machines that are there
        self.running_since: float | None = None

    def watch(self) -> int:
        """Until the run is over; returns its exit code.

        Raises:
          GaveUp: it will not be.
        """
        while True:
            code, seen = self.tool("status")
            if code == BAD_INPUT:
                raise GaveUp(BAD_INPUT, seen)
            self.say(seen if code == 0 else f"no answer: {seen}")
            machines, _, run = seen.partition(" ") if code == 0 else ("", "", "unreachable")
            if run != "running":
                self.running_since = None
            if run in FINAL:
                return FINAL[run]
            self.act(machines, run)

    def act(self, machines: str, run: str) -> None:
        """One step from what was seen."""
        if run == "unreachable":
            self.failures += 1
            if self.failures < self.patience.failures:
                self.sleep(self.patience.poll)
            elif not machines:
                raise GaveUp(GIVEN_UP, f"{self.failures} looks in a row failed")
            else:
                self.lose("hosts do not answer", "delete", "create")
            return
        self.failures = 0
        if machines == "ABSENT":
            self.do("create")
        elif machines in LOST:
            self.lose(machines, "create")
        elif machines == "ACTIVE" and run == "running":
            self.keep_running()
        elif machines == "ACTIVE" and (self.started or run != "idle"):
            self.lose(f"the run: {run}", "setup", "run")
        elif machines == "ACTIVE":
            self.do("setup", "run")
        else:  # waiting, provisioning, suspending and what may come
            self.sleep(self.patience.poll)

    def keep_running(self) -> None:
        """The run goes on; after a while earlier losses are forgotten."""
        now = self.clock()
        self.running_since = now if self.running_since is None else self.running_since
        if self.losses and now - self.running_since >= self.patience.healthy:
            self.losses = 0
            self.say("healthy again")
        self.sleep(self.patience.poll)

    def lose(self, why: str, *actions: str) -> None:
        """Counts a loss, waits, and does what mends it.

        Raises:
          GaveUp: one loss too many.
        """
        self.losses += 1
        most = self.patience.max_attempts
        if self.losses > most:
            raise GaveUp(GIVEN_UP, f"{why}; {most} attempts in a row are used up")
        seconds = min(self.patience.backoff * 2 ** (self.losses - 1), self.patience.max_backoff)
        self.say(f"{why}; attempt {self.losses} of {most} in {seconds:g} s")
        self.sleep(seconds)
        self.do(*actions)

    def do(self, *actions: str) -> None:
        """Runs actions of the tool; where one fails, what is seen next decides."""
        for action in actions:
            self.say(action)
            code, said = self.tool(action)
            if code == BAD_INPUT:
                raise GaveUp(BAD_INPUT, said)
            if code:
                self.lose(f"{action} failed: {said}")
                return
        self.failures, self.started = 0, actions[-1:] == ("run",)

    def say(self, text: str) -> None:
        """One line with the time, where it is news."""
        if text != self.said:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
        self.said = text


def call(words: Sequence[str], action: str, *more: str) -> tuple[int, str]:
    """Runs an action of tpu_vm.sh; exit code and the last line that it said."""
    own, dashes, run = _split(words)
    command = [str(TOOL), action, *own, *more, *dashes, *run]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


def _split(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    at = list(words).index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at : at + 1]), list(words[at + 1 :])


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, exit_on_error=False,
    )  # fmt: skip
    for field in dataclasses.fields(Patience):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default)
    parser.add_argument("--keep", action="store_true", help="leave the machines when it is over")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of one round")
    own, dashes, run = _split(argv)
    args, rest = parser.parse_known_args(own)
    for field in dataclasses.fields(Patience):
        if getattr(args, field.name) < 0:
            raise argparse.ArgumentError(None, f"--{field.name.replace('_', '-')}: not below 0")
    return args, [*rest, *dashes, *run]


def main(argv: list[str]) -> int:
    """Watches over one run; returns its exit code."""
    try:
        args, words = _parse(argv)
    except argparse.ArgumentError as error:
        print(f"babysit.py: error: {error}", file=sys.stderr)
        return BAD_INPUT
    if args.dry_run:
        own, dashes, run = _split(words)
        for action in ("status", "create", "wait", "setup", "run", *["delete"] * (not args.keep)):
            print(f"# {action}", flush=True)
            command = [str(TOOL), action, *own, "--dry-run", *dashes, *run]
            if code := subprocess.run(command).returncode:
                return code
        return DONE
    for action in ("create", "setup", "run"):  # bad input shows before machines cost anything
        code, said = call(words, action, "--dry-run")
        if code:
            print(said, file=sys.stderr)
            return code
    names = [field.name for field in dataclasses.fields(Patience)]
    patience = Patience(**{name: getattr(args, name) for name in names})
    sitter = Babysitter(lambda action: call(words, action), patience)
    try:
        code = sitter.watch()
    except GaveUp as error:
        print(f"babysit.py: error: {error}", file=sys.stderr)
        code = error.code
    except KeyboardInterrupt:
        print("babysit.py: interrupted; machines and run stay as they are", file=sys.stderr)
        return INTERRUPTED
    if code:  # the log lies on a disk that goes with the machines
        own, _, _ = _split(words)
        subprocess.run([str(TOOL), "logs", *own, "--tail", str(LAST_LINES)])
    if not args.keep:
        failed, said = call(words, "delete")
        if failed:
            print(f"babysit.py: error: delete: {said}; look for machines left", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
