"""``jepa-vl runs compare``: in what runs differ, and what they came to."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import outputs, run_files
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override
from jepa_vl.cli.runs_show import cell
from jepa_vl.config import ConfigError

ABSENT = "(none)"
APART = ("run", "config_hash", "versions", "git")  # shown, but no numbers


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints a table of differing keys and one of numbers, a column a run.

    Raises:
      ConfigError: fewer than two folders, one twice, or one without a run.
    """
    del overrides
    out, folders = outputs.json_file(args), [Path(word).expanduser() for word in args.words]
    if len(folders) < 2:
        raise ConfigError("RUN", " ".join(args.words), "give two workdirs, or more")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("RUN", " ".join(args.words), "one workdir stands there twice")
    facts = [run_files.summary("RUN", folder) for folder in folders]
    differing = differences([run_files.settings(folder) for folder in folders])
    names = _names(folders)
    print("configuration:")
    if differing:
        print("\n".join(columns([("", "key", *names), *_rows(differing)])))
    else:
        print("  the same")
    print("\nnumbers:")
    numbers = {key: [fact[key] for fact in facts] for key in facts[0] if key not in APART}
    known = {key: row for key, row in numbers.items() if any(v is not None for v in row)}
    print("\n".join(columns([("", "", *names), *_rows(known)])))
    provenance = {
        key: [fact[key] for fact in facts]
        for key in APART[1:]
        if any(fact[key] != facts[0][key] for fact in facts)
    }
    if provenance:
        print("\nprovenance:")
        print("\n".join(columns([("", "", *names), *_rows(provenance)])))
    outputs.write(out, {"runs": facts, "configuration": differing})
    return 0


def differences(settings: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Keys that are not the same in all flat configurations, with a value of each."""
    keys = sorted(set().union(*settings))
    values = {key: [one.get(key, ABSENT) for one in settings] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _rows(values: dict[str, list[Any]]) -> list[tuple[str, ...]]:
    return [("", key, *map(cell, row)) for key, row in values.items()]


def _names(folders: list[Path]) -> list[str]:
    """Folders without what all of them begin with."""
    parts = [folder.absolute().parts for folder in folders]
    shared = 0
    while len({one[: shared + 1] for one in parts}) == 1:
        shared += 1
    return [str(Path(*one[shared:])) or "." for one in parts]
