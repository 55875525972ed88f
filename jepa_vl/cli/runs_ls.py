"""``jepa-vl runs ls``: the runs below a folder, a row each."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override
from jepa_vl.config import ConfigError
from jepa_vl.training import run_files

ROOT = "runs"
HEAD = (
    "run", "objective", "data", "step", "status", "kNN", "untrained", "pixels", "RankMe",
    "goodput", "age", "alarm",
)  # fmt: skip


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints the table.

    Raises:
      ConfigError: no such folder, or no run in it.
    """
    del overrides
    root, out = Path(args.root or ROOT).expanduser(), outputs.json_file(args)
    if not root.is_dir():
        raise ConfigError("--root", str(root), "no such folder")
    rows = [run_files.summary("--root", folder) for folder in run_files.find(root)]
    if not rows:
        raise ConfigError("--root", str(root), "holds no run (no config.json that training wrote)")
    table = [HEAD, *(_cells(root, row) for row in rows)]
    print("\n".join(columns(table, right=range(5, 11))))
    outputs.write(out, rows)
    return 0


def _cells(root: Path, row: dict[str, Any]) -> tuple[str, ...]:
    alarm = f"{row['alarm']} (step {row['alarm_step']})" if row["alarms"] else ""
    path = Path(row["run"])
    return (
        path.name if path == root else str(path.relative_to(root)),
        str(row["objective"]),
        row["data"],
        f"{row['step']}/{row['steps']}",
        row["status"],
        number(row["knn"]),
        number(row["untrained"]),
        number(row["pixels"]),
        number(row["rankme"], ".1f"),
        number(row["goodput"], ".0%"),
        run_files.age(row["written"]),
        alarm,
    )


def number(value: Any, form: str = ".3f") -> str:
    """A number as tables show it; a dash where there is none."""
    return "-" if value is None else format(value, form)
