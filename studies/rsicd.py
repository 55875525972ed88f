"""What do captions bring? Trains arms of configs/rsicd_study.py over seeds and tabulates them.

Command:    python studies/rsicd.py --data RSICD --out runs/rsicd --seeds 0,1,2
            RSICD holds WebDataset tars in its folders train and val. ``--config.KEY=VALUE``
            changes a value in all arms.
Hardware:   as configs/rsicd_study.py; one run after the other.

Each run lies in OUT/ARM-SEED. The same command goes on after any stop: what has finished stays, the
run that was stopped resumes. The table is written anew after each run.
"""

import argparse
import functools
import json
import runpy
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepa_vl.cli import configs
from jepa_vl.cli.main import VERBS, one_line
from jepa_vl.config import (
    Config,
    ConfigError,
    config_hash,
    from_dict,
    one_of,
    resolve,
    resume_diff,
    to_dict,
)
from jepa_vl.scaling.runner import Stoppable

CONFIG = Path(__file__).resolve().parents[1] / "configs/rsicd_study.py"
FILE = runpy.run_path(str(CONFIG))
ARMS: dict[str, dict[str, Any]] = FILE["ARMS"]
MAIN = ("own", "ijepa", "shuffled")  # all their seeds come before the other arms
PROBES = "eval_study.json"
DONE, STOPPED, NOT_FINITE, BAD_INPUT = 0, 3, 4, 5
INTERRUPTED = 130
FINISHED = ("done", "not finite")  # to start such a run again would change nothing


class Commands(Stoppable):
    """Runs ``jepa-vl`` in processes, one at a time; after a signal no other is started."""

    program = (sys.executable, "-m", "jepa_vl")

    def __init__(self):
        super().__init__()
        self._child: subprocess.Popen | None = None

    def children(self) -> list[subprocess.Popen]:
        """The one that was started last."""
        return [] if self._child is None else [self._child]

    def run(self, words: Sequence[str]) -> int:
        """Exit code of the command; STOPPED where a signal has ended it, or kept it from starting.

        Args:
          words: the command line after ``jepa-vl``.
        """
        if self.stopped:
            return STOPPED
        self._child = subprocess.Popen([*self.program, *words])
        if self.stopped:  # in between
            self._child.terminate()
        code = self._child.wait()
        if code < 0:
            print(f"{words[0]} was ended by signal {-code}", file=sys.stderr)
        return STOPPED if self.stopped or code < 0 or code == INTERRUPTED else code


class Job(NamedTuple):
    """One training run.

    Attributes:
      arm: its name in :data:`ARMS`, the first one where several mean the same values.
      seed: of the run.
      workdir: where it lies.
      words: the command line that trains it, after ``jepa-vl``.
      config: what that command line means.
    """

    arm: str
    seed: int
    workdir: Path
    words: list[str]
    config: Config

    def result(self) -> dict[str, Any] | None:
        """``result.json`` of a finished run of this very configuration."""
        files = [self.workdir / name for name in ("result.json", "config.json")]
        if not all(file.is_file() for file in files):
            return None
        result, meta = (json.loads(file.read_text()) for file in files)
        # Resolved, so that keys that have come since then stand at their defaults.
        other = resume_diff(to_dict(resolve(meta["config"])), self.config)
        return None if other or result["status"] not in FINISHED else result

    @property
    def probe(self) -> list[str]:
        """The command line that measures the linear probe, after ``jepa-vl``."""
        page = ["--task", "knn,fast", "--floor", "none", "--json", str(self.workdir / PROBES)]
        return ["eval", "--workdir", str(self.workdir), *page]

    def probed(self) -> bool:
        """Is there nothing left to measure?"""
        result = self.result() or {"status": ""}
        there = result["status"] != "done" or (self.workdir / PROBES).is_file()
        return there or "eval" not in VERBS

    def linear(self) -> float | None:
        """Accuracy of the linear probe; None where there is none."""
        file = self.workdir / PROBES
        results = json.loads(file.read_text())["results"] if file.is_file() else []
        found = [r for r in results if (r["task"], r["features"]) == ("fast", "encoder")]
        return found[0]["metrics"]["accuracy"] if found else None


class Study:
    """The runs of some arms and seeds."""

    def __init__(self, args: argparse.Namespace, overrides: Sequence[configs.Override]):
        """Trains nothing yet.

        Raises:
          ConfigError: an unknown arm.
        """
        data = Path(args.data).expanduser().resolve() / "train"
        given = [("data.path", str(data)), ("train.steps", str(args.steps))]
        self.overrides = [*(configs.Override(*pair) for pair in given), *overrides]
        self.out, self.seeds = Path(args.out).expanduser(), args.seeds
        for arm in args.arms or ():
            one_of("--arms", arm, ARMS)
        first: dict[str, str] = {}
        meaning = {arm: config_hash(from_dict(FILE["get_config"](f"arm={arm}"))) for arm in ARMS}
        self.same = {arm: first.setdefault(meaning[arm], arm) for arm in ARMS}
        self.arms: list[str] = args.arms or list(first.values())

    def job(self, arm: str, seed: int) -> Job:
        """The run of an arm; arms that mean the same values share it."""
        return self._job(self.same[arm], seed)

    @functools.cache  # noqa: B019  (a program has one study)
    def _job(self, arm: str, seed: int) -> Job:
        overrides = [*self.overrides, configs.Override("seed", str(seed))]
        changed = [
            f"--config.{key}" + (f"={value}" if value is not None else "")
            for key, value in overrides
        ]
        workdir = self.out / f"{arm}-{seed}"
        words = ["train", "--config", f"{CONFIG}:arm={arm}", "--workdir", str(workdir), *changed]
        return Job(arm, seed, workdir, words, configs.load(f"{CONFIG}:arm={arm}", overrides))

    def queue(self) -> list[Job]:
        """All runs: seed after seed the main arms, then seed after seed the others.

        Raises:
          ConfigError: values that do not fit.
        """
        chosen = list(dict.fromkeys(self.same[arm] for arm in self.arms))
        parts = [[a for a in MAIN if a in chosen], [a for a in chosen if a not in MAIN]]
        return [self.job(arm, seed) for part in parts for seed in self.seeds for arm in part]

    def run(self, report: Callable[[], None]) -> int:
        """Trains and measures what is missing; returns 0, or the exit code that ended the study.

        A run whose loss is not finite does not end it.
        """
        jobs = self.queue()
        with Commands() as commands:
            for number, job in enumerate(jobs, 1):
                print(f"[{number}/{len(jobs)}] {job.arm}, seed {job.seed}", flush=True)
                code = DONE if job.result() else commands.run(job.words)
                if code == DONE and not job.probed():
                    code = commands.run(job.probe)
                report()
                if code not in (DONE, NOT_FINITE):
                    return code
        return DONE

    def table(self, command: str) -> str:
        """Markdown: what was run, and a row for each arm with a finished run."""
        rows, notes, pages = [], [], []
        for arm in self.arms:
            jobs = [self.job(arm, seed) for seed in self.seeds]
            found = [(job, result) for job in jobs if (result := job.result())]
            done = [(job, result) for job, result in found if result["status"] == "done"]
            notes += [
                f"{arm}, seed {job.seed}: not finite, left out."
                for job, result in found
                if result["status"] != "done"
            ]
            if done:
                rows.append(_row(arm, done))
                pages += [result for _, result in done]
        return "\n".join([*_head(command, pages), "", *_markdown(rows), "", *notes])


COLUMNS = (
    "arm", "seeds", "kNN", "linear", "text gain", "dead share", "RankMe, start", "RankMe, end",
    "images/s",
)  # fmt: skip


def _row(arm: str, done: Sequence[tuple[Job, dict[str, Any]]]) -> list[str]:
    results = [result for _, result in done]
    # Without captions no word can be dead, which is not the same as none being dead.
    wordless = done[0][0].config.data.captions == "empty"
    return [
        f"`{arm}`",
        ", ".join(str(job.seed) for job, _ in done),
        spread([result["knn"]["target"] for result in results], ".3f"),
        spread([job.linear() for job, _ in done], ".3f"),
        spread([result["text_gain"] for result in results], "+.3f"),
        spread([None if wordless else result["dead_share"] for result in results], ".3f"),
        spread([result["rankme"]["start"] for result in results], ".1f"),
        spread([result["rankme"]["end"] for result in results], ".1f"),
        spread([result["images_per_second"] for result in results], ".0f"),
    ]


def spread(values: Sequence[float | None], style: str) -> str:
    """Mean and, of two values or more, sample standard deviation; empty if a value is missing."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return ""
    mean = format(statistics.fmean(there), style)
    if len(there) == 1:
        return mean
    return f"{mean} ± {format(statistics.stdev(there), style.replace('+', ''))}"


def _head(command: str, results: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["# Arms of the RSICD study", "", f"    {command}", ""]
    if not results:
        return [*lines, "No run has finished."]
    names = sorted({result["data"] for result in results})
    steps = sorted({result["steps"] for result in results})
    of_seed = {result["seed"]: result["knn"] for result in results}.values()
    floor = [
        f"{title} {spread([knn[name] for knn in of_seed], '.3f')}"
        for title, name in (("untrained network", "untrained"), ("raw pixels", "pixels"))
    ]
    return [
        *lines,
        f"{', '.join(names)}; {', '.join(map(str, steps))} steps in every arm. Mean ± standard "
        "deviation over seeds, on held-out images. "
        f"Floors of the kNN: {', '.join(floor)}. "
        "Text gain is the loss with another image's captions minus that with those that the arm "
        "gives the image.",
    ]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(COLUMNS)
    return [f"| {' | '.join(row)} |" for row in (COLUMNS, rule, *rows)] if rows else []


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=how, epilog=f"arms: {', '.join(ARMS)}"
    )
    parser.add_argument("--data", required=True, help="folder with train and val")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=1000, help="of every run (default 1000)")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--seeds", type=_seeds, default=[0], help="such as 0,1,2 (default 0)")
    parser.add_argument("--report", help="markdown to write (default: OUT/RESULTS.md)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study.

    Returns:
      0 all has finished, 3 stopped (the same command goes on), 5 bad input; other codes are those
      of the command that failed.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    rest, overrides = configs.take_overrides(given)
    args = _parser().parse_args(rest)
    command = shlex.join(["python", "studies/rsicd.py", *given])
    try:
        study = Study(args, overrides)
        file = Path(args.report).expanduser() if args.report else study.out / "RESULTS.md"
        for folder in (study.out, file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        code = study.run(lambda: _write(file, study.table(command)))
    except ConfigError as error:
        print(one_line(error), file=sys.stderr)
        return BAD_INPUT
    print(file.read_text())
    return code


def _write(file: Path, text: str) -> None:
    file.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
