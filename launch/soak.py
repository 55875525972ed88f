"""Does a run survive what a pod does to it? Kills it at random moments, then compares the ends.

Command:    python launch/soak.py --config configs/quickstart.py --workdir runs/soak --minutes 1 \
                --config.train.steps=60 --config.checkpoint.every=10
            Two runs of one configuration: DIR/unbroken to its end, DIR/killed under
            `jepa-vl train --supervise` while its training processes meet SIGKILL again and again,
            for so many minutes or kills. Then each step of both must have seen the same images,
            captions and masks (`--proof`), and their last checkpoints must hold the same bits.
            --processes 1,2,1 goes on with another number of processes after a third of the time:
            then only what the steps saw is compared, as sums over other devices round otherwise.
Hardware:   what the configuration takes, and twice its time; a laptop for the line above.
Exit code:  0 the same, 1 not, or nothing shown, 5 bad input.

A soak counts if a kill met a run that had saved: every other kill, the first one too, waits for a
checkpoint newer than that of the kill before, however long start and compilation take; --minutes
must hold several of these. When the time is over nothing is killed any more. An equal --seed gives
the same pauses.
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PREEMPTED = 3
BAD_INPUT = 5
# How the run that is killed is started; more restarts than any soak brings.
KILLED = ("--supervise", "--proof", "--max-restarts", "1000")


def command(args: argparse.Namespace, words: Sequence[str], name: str, *more: str) -> list[str]:
    """``jepa-vl train`` of one of the two runs."""
    train = ["jepa-vl", "train", "--config", args.config]
    return [*train, "--workdir", str(Path(args.workdir, name)), *words, *more]


def start(words: Sequence[str], log: Path) -> subprocess.Popen:
    """The command in a process of its own, by this interpreter; its output goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        python = [sys.executable, "-m", "jepa_vl"]
        return subprocess.Popen([*python, *words[1:]], stdout=file, stderr=subprocess.STDOUT)


def children(process: int) -> list[int]:
    """Processes that this one started and that live."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return [int(pid) for pid, parent, state in rows
            if int(parent) == process and not state.startswith("Z")]  # fmt: skip


def saved(workdir: Path) -> int:
    """Step of the newest checkpoint, 0 for none."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max([int(name) for name in names if name.isdecimal()], default=0)


def await_checkpoint(
    process: subprocess.Popen, workdir: Path, before: int, over: Callable[[], bool]
) -> None:
    """Returns when there is a newer checkpoint, the process has ended, or the time is over."""
    while saved(workdir) <= before and process.poll() is None and not over():
        time.sleep(0.05)


def soak(args: argparse.Namespace, words: Sequence[str]) -> tuple[int, list[int]]:
    """Runs to the end through kills; the exit code, and the newest checkpoint at each kill.

    Every other kill, the first one too, waits for a new checkpoint, by no clock: so there is
    something to lose wherever a start takes longer than a pause.
    """
    log, began = Path(args.workdir, "killed.log"), time.monotonic()
    pauses, kills = random.Random(args.seed), list[int]()
    for phase, processes in enumerate(args.processes, start=1):
        share = phase / len(args.processes)
        until = began + 60 * args.minutes * share

        def over(share: float = share, until: float = until) -> bool:
            return len(kills) >= args.kills * share if args.kills else time.monotonic() > until

        more = ["--local-processes", str(processes)] if processes > 1 else []
        process = start(command(args, words, "killed", *KILLED, *more), log)
        code = _kill(process, args, pauses, kills, over)
        if code is None and phase < len(args.processes):
            process.terminate()
            code = process.wait()
            print(f"asked to stop after {len(kills)} kills: exit code {code}", flush=True)
        if code != PREEMPTED:
            return process.wait() if code is None else code, kills
    return process.wait(), kills


def _kill(
    process: subprocess.Popen, args: argparse.Namespace, pauses: random.Random,
    kills: list[int], over: Callable[[], bool],
) -> int | None:  # fmt: skip
    """Until it is over: None; or the exit code of a supervisor that ended before."""
    workdir = Path(args.workdir, "killed")
    while not over():
        pause = pauses.uniform(args.shortest, args.longest)
        if len(kills) % 2 == 0:
            await_checkpoint(process, workdir, kills[-1] if kills else 0, over)
            pause = pauses.uniform(0.0, min(1.0, args.shortest))
        try:
            return process.wait(pause)
        except subprocess.TimeoutExpired:
            victims = children(process.pid)
        if victims and not over():
            kills.append(saved(workdir))
            os.kill(pauses.choice(victims), signal.SIGKILL)
            print(f"kill {len(kills)} after {pause:.1f} s, saved: {kills[-1]}", flush=True)
    return None


def same_samples(left: Path, right: Path) -> tuple[int, list[int]]:
    """Steps of both proofs that were compared, repeated ones too, and those that differ."""
    from jepa_vl.training import proof

    wanted = {row["step"]: row["sample_hash"] for row in proof.read(left) if "step" in row}
    rows = [row for row in proof.read(right) if "step" in row]
    other = [row["step"] for row in rows if wanted.get(row["step"]) != row["sample_hash"]]
    other += sorted(wanted.keys() - {row["step"] for row in rows})
    return len(rows), other


def differences(left: Path, right: Path) -> list[str]:
    """Leaves of the two last states that differ in a bit, and other steps; empty if none."""
    import numpy as np

    from jepa_vl import tree
    from jepa_vl.training.checkpoint import load

    (_, a, a_step), (_, b, b_step) = load(left), load(right)
    found = [] if a_step == b_step else [f"step {a_step} and {b_step}"]
    flat_a, flat_b = tree.flatten(a), tree.flatten(b)
    found += [f"only in one: {name}" for name in flat_a.keys() ^ flat_b.keys()]
    for name in flat_a.keys() & flat_b.keys():
        x, y = np.asarray(flat_a[name]), np.asarray(flat_b[name])
        if x.shape != y.shape or x.tobytes() != y.tobytes():
            found.append(name)
    return sorted(found)


def _counts(text: str) -> list[int]:
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers from 1 on, joined by commas")
    return [int(word) for word in text.split(",")]


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=how, allow_abbrev=False, exit_on_error=False
    )
    add = parser.add_argument
    add("--config", help="file of the run; --config.KEY=VALUE changes a value")
    add("--workdir", help="new folder for both runs")
    add("--minutes", type=float, default=1.0, help="time of the kills (default: 1)")
    add("--kills", type=int, default=0, help="so many, however long that takes")
    add("--processes", type=_counts, default=[1], help="of the run, as in 1,2,1 (default: 1)")
    add("--shortest", type=float, default=5.0, help="seconds between two kills, at least (5)")
    add("--longest", type=float, default=30.0, help="seconds between two kills, at most (30)")
    add("--seed", type=int, default=0, help="of the pauses (default: 0)")
    add("--dry-run", action="store_true", help="print the commands, run nothing")
    own = [word for word in argv if not word.startswith("--config.")]
    words = [word for word in argv if word.startswith("--config.")]
    args, rest = parser.parse_known_args(own)
    if rest:
        raise argparse.ArgumentError(None, f"{rest[0]}: unknown (write --config.KEY=VALUE)")
    for name in ("config", "workdir"):
        if not getattr(args, name):
            raise argparse.ArgumentError(None, f"--{name} needs a value")
    if not 0 < args.shortest <= args.longest:
        raise argparse.ArgumentError(None, "0 < --shortest <= --longest")
    return args, words


def main(argv: list[str]) -> int:
    """Soaks; returns the exit code."""
    try:
        args, words = _parse(argv)
        taken = [p for p in ("unbroken", "killed") if Path(args.workdir, p).exists()]
        if taken and not args.dry_run:
            raise argparse.ArgumentError(None, f"--workdir {args.workdir}: holds runs already")
    except argparse.ArgumentError as error:
        print(f"soak.py: error: {error}", file=sys.stderr)
        return BAD_INPUT
    if args.dry_run:
        print(shlex.join(command(args, words, "unbroken", "--proof")))
        print(shlex.join(command(args, words, "killed", *KILLED)))
        span = f"for {args.minutes:g} minutes" if not args.kills else f"{args.kills} times"
        print(f"# kill -9 of a training process every {args.shortest:g} to {args.longest:g} s, "
              f"{span}")  # fmt: skip
        return 0
    code, kills = soak(args, words)
    if not code:
        line = command(args, words, "unbroken", "--proof")
        code = start(line, Path(args.workdir, "unbroken.log")).wait()
    if code:
        print(f"soak.py: error: a run ended with {code}; see the logs in {args.workdir}")
        return BAD_INPUT if code == BAD_INPUT else 1
    return 0 if judge(args, kills) else 1


def judge(args: argparse.Namespace, kills: Sequence[int]) -> bool:
    """Compares the two runs and says what came of it; True: nothing was lost."""
    unbroken, killed = Path(args.workdir, "unbroken"), Path(args.workdir, "killed")
    steps, other = same_samples(unbroken, killed)
    if other:
        print(f"soak.py: error: {len(kills)} kills, {len(other)} steps saw other samples, "
              f"first step {other[0]}")  # fmt: skip
        return False
    one = len(set(args.processes)) == 1
    found = differences(unbroken, killed) if one else []
    if found:
        print(f"soak.py: error: {len(kills)} kills, {len(found)} leaves differ, first {found[0]}")
        return False
    counted = sum(step > 0 for step in kills)
    same = ", and the same bits as without" if one else "; bits are not compared"
    print(f"{len(kills)} kills, {counted} of a run that had saved: {steps} steps saw the same "
          f"samples{same}")  # fmt: skip
    if not counted or len(kills) < args.kills:
        print("soak.py: error: too few kills met a run that had saved; raise --minutes or "
              "train.steps")  # fmt: skip
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
