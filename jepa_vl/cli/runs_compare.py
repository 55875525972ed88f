"""``jepa-vl runs compare``: in what runs differ, and what they came to."""

import argparse
from collections.abc import Sequence
from typing import Any

from jepa_vl.cli import outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override
from jepa_vl.cli.runs_show import cell
from jepa_vl.training import run_files


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints a table of differing keys and one of numbers, a column a run.

    Raises:
      ConfigError: fewer than two folders, one twice, or one without a run.
    """
    del overrides
    out, folders = outputs.json_file(args), run_files.several("RUN", args.words)
    facts = [run_files.summary("RUN", folder) for folder in folders]
    differing = run_files.differences([run_files.settings(folder) for folder in folders])
    names = run_files.names(folders)
    print("configuration:")
    if differing:
        print("\n".join(columns([("", "key", *names), *_rows(differing)])))
    else:
        print("  the same")
    print("\nnumbers:")
    numbers = {key: [fact[key] for fact in facts] for key in facts[0] if key not in run_files.APART}
    known = {key: row for key, row in numbers.items() if any(v is not None for v in row)}
    print("\n".join(columns([("", "", *names), *_rows(known)])))
    if apart := run_files.provenance(facts):
        print("\nprovenance:")
        print("\n".join(columns([("", "", *names), *_rows(apart)])))
    outputs.write(out, {"runs": facts, "configuration": differing})
    return 0


def _rows(values: dict[str, list[Any]]) -> list[tuple[str, ...]]:
    return [("", key, *map(cell, row)) for key, row in values.items()]
