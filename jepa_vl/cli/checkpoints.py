"""What the verbs of ``jepa-vl checkpoint`` share: options, cells of tables, errors."""

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from jepa_vl.cli.numbers import whole
from jepa_vl.config import ConfigError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def folder(option: str, text: str) -> Path:
    """The workdir that an option names.

    Raises:
      ConfigError: there is no such folder.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ConfigError(option, text, "no such folder")
    return path.resolve()


def step(args: argparse.Namespace) -> int | None:
    """The step that was asked for; None: the newest, or all.

    Raises:
      ConfigError: it is no number.
    """
    return None if args.step is None else whole("--step", args.step, 0)


@contextlib.contextmanager
def readable(workdir: Path) -> Iterator[None]:
    """What cannot be read in a workdir is one line.

    Raises:
      ConfigError: in place of Damaged.
    """
    from jepa_vl.training.checkpoint import Damaged

    try:
        yield
    except Damaged as error:
        rule = f"cannot be read: {error}; see jepa-vl checkpoint verify"
        raise ConfigError("--workdir", str(workdir), rule) from error


def size(count: int) -> str:
    """Bytes in words."""
    power = min(int(math.log2(count) // 10), len(UNITS) - 1) if count else 0
    return f"{count / 1024**power:.4g} {UNITS[power]}"


def number(value: float | None, digits: int = 4) -> str:
    """A number in a table; empty where there is none."""
    return "" if value is None else f"{value:.{digits}g}"
