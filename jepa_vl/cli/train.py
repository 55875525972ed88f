"""``jepa-vl train``: configuration and workdir in, training loop on."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from jepa_vl.cli import configs, supervise
from jepa_vl.config import ConfigError

FAILED = 1


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Trains; returns the exit code of the run.

    Raises:
      ConfigError: a bad configuration, data, workdir, process or window of steps to trace.
    """
    config = configs.load(args.config, overrides)
    workdir = writable("--workdir", args.workdir)
    if args.supervise:
        return supervise.run(args, overrides, workdir)
    supervise.refuse_without(args)
    supervise.end_with_supervisor()
    from jepa_vl.training import distributed, profiling
    from jepa_vl.training.loop import train

    window = profiling.window(args.profile, config.train.steps) if args.profile else None

    distributed.initialize(args.coordinator, args.processes, args.process)
    if distributed.alone():
        return train(config, workdir, window, args.proof)
    try:
        if config.log.progress != "off":
            to = sys.stderr if config.log.progress == "json" else sys.stdout
            print(distributed.describe(), file=to, flush=True)
        return train(config, workdir, window, args.proof)
    except BaseException as error:
        distributed.leave(_tell(error))


def _tell(error: BaseException) -> int:
    """Says what ends a process that others count on; returns its exit code."""
    from jepa_vl.cli.main import BAD_INPUT, INTERRUPTED, one_line

    if isinstance(error, ConfigError):
        print(one_line(error), file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    traceback.print_exception(error)
    return FAILED


def writable(key: str, path: str) -> Path:
    """A folder that can be written, or made; it is not made here, so that bad data leaves no trace.

    Raises:
      ConfigError: it cannot.
    """
    if "://" in path:
        raise ConfigError(key, path, "a folder, not a URL; mount a bucket and give its folder")
    folder = Path(path).expanduser().absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise ConfigError(key, path, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(key, path, f"{there} cannot be written")
    return folder
