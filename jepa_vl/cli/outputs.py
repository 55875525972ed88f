"""Files that options name, and numbers written to them."""

import argparse
import math
from pathlib import Path
from typing import Any

from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError


def file(option: str, text: str) -> Path:
    """A file that can be written.

    Raises:
      ConfigError: it cannot.
    """
    path = Path(text).expanduser()
    if not text or path.is_dir():
        raise ConfigError(option, text, "name the file to write")
    writable(option, str(path.parent))
    return path


def json_file(args: argparse.Namespace) -> Path | None:
    """What --json names; None where it is not given.

    Raises:
      ConfigError: it cannot be written.
    """
    return None if args.json is None else file("--json", args.json)


def write(path: Path | None, page: Any) -> None:
    """Writes numbers as JSON, where a file was asked for, and prints its path.

    JSON knows no infinity and no NaN: a number that is not finite, such as the open end of an
    interval, is written as null.
    """
    if path is None:
        return
    from jepa_vl.training.metrics import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _finite(page))
    print(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
