"""``jepa-vl runs show``: what the text files of one run tell of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override
from jepa_vl.config import Config, ConfigError, flat, to_dict
from jepa_vl.training import run_files

EVENTS = 5  # newest ones that are shown


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints a line a fact, then the configuration's changes, then events.

    Raises:
      ConfigError: not one folder, or one without a run.
    """
    del overrides
    out = outputs.json_file(args)
    if len(args.words) != 1:
        raise ConfigError("RUN", " ".join(args.words), "give one workdir")
    folder = Path(args.words[0]).expanduser()
    facts = run_files.summary("RUN", folder)
    changed, told = changes(folder), run_files.events(folder)[-EVENTS:]
    print("\n".join(columns([(key, cell(value)) for key, value in facts.items()])))
    print("\nconfiguration, where it is not the default:")
    print("\n".join(columns([("", key, cell(value)) for key, value in changed.items()])))
    if told:
        print("\nnewest events:")
        print(*(f"  step {row.get('step')}: {row.get('message')}" for row in told), sep="\n")
    outputs.write(out, {**facts, "changed": changed, "events": told})
    return 0


def changes(folder: Path) -> dict[str, Any]:
    """Keys of a run's configuration whose values are not the default."""
    defaults = flat(to_dict(Config()))
    return {k: v for k, v in run_files.settings(folder).items() if v != defaults.get(k)}


def cell(value: Any) -> str:
    """A value on one line; a dash where there is none."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(cell, value)) + ")"
    return str(value)
