"""``jepa-vl scaling run``: trains and evaluates what a plan holds, or prints how to."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import configs, outputs, scaling_plan, scaling_points, scaling_rows
from jepa_vl.cli.numbers import whole
from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError, one_of
from jepa_vl.scaling import ledger, runner, study

# Back-end -> its command, what names the run there, and what stands between.
BACK_ENDS = {
    "local": ("jepa-vl train", "", ""),
    "slurm": ("sbatch launch/slurm.sbatch", "", ""),
    "tpu_vm": ("launch/tpu_vm.sh run", "", "--"),
    "xpk": ("launch/xpk.sh run", "--workload", "--"),
    "jobset": ("launch/jobset.sh", "--workload", "--"),
}


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Works through the plan of a folder, which is made where there is none.

    Returns:
      0: each point has its row; 3: stopped, or other runners still work on some.

    Raises:
      ConfigError: a bad study or option, or a plan of another study.
    """
    asked, out = study.load(args.study), writable("--out", args.out)
    parallel = whole("--parallel", args.parallel or "1", 1)
    if args.commands:
        one_of("--commands", args.commands, BACK_ENDS)
    elif args.options:
        raise ConfigError("--options", args.options, "of --commands")
    plan = _plan(asked, out, args.replan)
    jobs = [_job(asked, point, out) for point in _order(asked, plan["points"])]
    if args.collect:
        jobs = [job for job in jobs if (job.workdir / "result.json").exists()]
    with runner.Runner(out, parallel, args.retry, lambda line: print(line, flush=True)) as works:
        jobs = [job for job in jobs if works.is_open(job.point)]
        if args.commands:
            print("\n".join(command(job, args.commands, args.options or "") for job in jobs))
            return 0
        print(f"{len(jobs)} points are open", flush=True)
        if not args.collect:
            _check_as_planned(asked, [job.point for job in jobs])
        code = works.run(jobs)
    rows = ledger.latest(works.ledger.rows()).values()
    counts = {status: 0 for status in sorted({row["status"] for row in rows})}
    for row in rows:
        counts[row["status"]] += 1
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no rows yet")
    return code


def _plan(asked: study.Study, out: Path, again: bool) -> dict[str, Any]:
    """That of the folder; made, and stored, where there is none or another one is asked for."""
    plan = None if again else scaling_plan.read(out)
    if plan is None:
        rows = ledger.Ledger(out / ledger.FILE).rows()
        plan = scaling_points.make(asked, rows)
        outputs.write(out / scaling_points.FILE, plan)
    elif plan["study_hash"] != asked.hash():
        rule = f"what {out / scaling_points.FILE} was made of; --replan makes a new one"
        raise ConfigError("--study", asked.name, rule)
    return plan


def _check_as_planned(asked: study.Study, points: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to train what is no longer what was planned, before an hour is lost on it.

    Raises:
      ConfigError: this version of the code resolves points to other configurations.
    """
    changed = [p for p in points if p["config_hash"] != scaling_points.meant(asked, p["words"])]
    if changed:
        rule = (
            f"{len(changed)} of {len(points)} open points mean another configuration now than when "
            f"{scaling_points.FILE} was made, as with another version of jepa_vl or another "
            f"{Path(asked.config).name}; --replan plans all anew"
        )
        raise ConfigError("--study", asked.name, rule)


def _order(asked: study.Study, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What can be run: seed after seed the cheap ones first, so that there is soon one of each."""
    going = [point for point in points if not point["refused"]]
    return sorted(going, key=lambda p: (asked.seeds.index(p["seed"]), p["budget"]))


def _job(asked: study.Study, point: Mapping[str, Any], out: Path) -> runner.Job:
    folder = scaling_points.workdir(out, point)
    where = ["--workdir", str(folder)]
    train = ["train", "--config", asked.config, *where, *point["words"]]
    card = ["--json", str(folder / scaling_rows.EVAL), "--seed", "0", "--floor", "none"]
    tasks = ["--task", ",".join(asked.tasks), *card, "--no-cache"]
    measure = ["eval", *where, *tasks, *scaling_points.words(asked.evaluation)]

    def row(code: int, reason: str) -> dict[str, Any]:
        return scaling_rows.make(point, folder, code, reason)

    return runner.Job(point, folder, [train, measure], row)


def command(job: runner.Job, where: str, options: str) -> str:
    """One line that launches the training of a point.

    Args:
      job: of the point.
      where: one of :data:`BACK_ENDS`.
      options: of that launcher, as for a shell.
    """
    program, name, between = BACK_ENDS[where]
    named = f" {name} s-{job.point['id']}" if name else ""
    given = f" {options}" if options else ""
    words = shlex.join(job.commands[0][1:])
    return f"{program}{named}{given}{f' {between}' if between else ''} {words}"
