"""``jepa-vl train``: configuration and workdir in, training loop on."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jepa_vl.cli import configs
from jepa_vl.config import ConfigError


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Trains; returns the exit code of the run.

    Raises:
      ConfigError: a bad configuration, data, workdir or window of steps to trace.
    """
    config = configs.load(args.config, overrides)
    workdir = writable("--workdir", args.workdir)
    from jepa_vl.training import profiling
    from jepa_vl.training.loop import train

    window = profiling.window(args.profile, config.train.steps) if args.profile else None
    return train(config, workdir, window)


def writable(key: str, path: str) -> Path:
    """A folder that can be written, or made; it is not made here, so that bad data leaves no trace.

    Raises:
      ConfigError: it cannot.
    """
    folder = Path(path).expanduser().absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise ConfigError(key, path, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(key, path, f"{there} cannot be written")
    return folder
