"""``jepa-vl eval``: the frozen features of a checkpoint under the registered protocols."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jepa_vl.cli import configs, eval_watch
from jepa_vl.cli.eval_session import Request, Session
from jepa_vl.cli.numbers import whole
from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError, one_of

BRANCHES = ("target", "context")
FLOORS = ("cheap", "all", "none")
DEFAULT = ("knn", "fast", "fewshot", "lidar")


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints a table, and writes the card: JSON and the same as a page.

    Raises:
      ConfigError: no such checkpoint, branch or evaluator; data that cannot serve it.
    """
    request = _request(args, overrides)
    if request.model:
        from jepa_vl.cli.eval_model import ModelSession

        card = ModelSession(request).card(request.tasks)
        print(*card.told(), sep="\n")
        return 0
    if args.watch:
        if args.json or args.step:
            option = "--json" if args.json else "--step"
            rule = "not with --watch, which evaluates each checkpoint into a card of its own"
            raise ConfigError(option, args.json or args.step, rule)
        return eval_watch.run(request)
    from jepa_vl.training import checkpoint

    trained, state, step = checkpoint.load(request.workdir.resolve(), request.step)
    card = Session(trained, request).evaluate(state, step, request.tasks)
    print(*card.told(), sep="\n")
    return 0


def _request(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> Request:
    """What is asked for, checked as far as that goes without the checkpoint."""
    workdir = _workdir(args)
    step = None if args.step is None else whole("--step", args.step, 0)
    layers = 1 if args.layers is None else whole("--layers", args.layers, 1)
    seed = None if args.seed is None else whole("--seed", args.seed, 0)
    branch, floor = args.branch or BRANCHES[0], args.floor or FLOORS[0]
    one_of("--branch", branch, BRANCHES)
    one_of("--floor", floor, FLOORS)
    from jepa_vl.evaluators.subject import tasks_of

    tasks = tasks_of(args.task.split(",") if args.task else DEFAULT, "--task")
    out = _out(args.json, workdir)
    if args.model and out is None:
        from jepa_vl.cli.eval_model import out_of

        out = out_of(args.model)
    return Request(
        workdir, step, branch, layers, tuple(tasks), floor, seed, args.data, tuple(overrides), out,
        again=args.again, cached=not args.no_cache, model=args.model or "",
    )  # fmt: skip


def _workdir(args: argparse.Namespace) -> Path:
    """Of the run; of a model by itself the folder that the command runs in."""
    if bool(args.workdir) == bool(args.model):
        raise ConfigError("--workdir", args.workdir or "", "give DIR, a run, or --model PATH")
    if args.model:
        for name in ("step", "watch"):
            if getattr(args, name):
                raise ConfigError(f"--{name}", getattr(args, name), "of runs, not of --model")
        return Path()
    workdir = Path(args.workdir).expanduser()
    if not workdir.is_dir():
        raise ConfigError("--workdir", args.workdir, "no such folder")
    return workdir


def _out(given: str | None, workdir: Path) -> Path | None:
    """The file that was asked for; None: one in the workdir, whose name is not known yet."""
    out = Path(given).expanduser() if given else None
    if out is not None and (out.is_dir() or out.suffix == ".html"):
        rule = (
            "is a folder; name the file" if out.is_dir() else "name a JSON file; a page comes too"
        )
        raise ConfigError("--json", given, rule)
    writable("--json", str(out.parent if out else workdir))
    return out
