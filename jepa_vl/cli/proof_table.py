"""The table of ``jepa-vl report --proof``: were repeated steps the same, hash by hash?"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli.columns import columns
from jepa_vl.config import ConfigError
from jepa_vl.training import repeats

HEAD = ("start", "processes", "devices", "steps", "repeated", "samples", "parameters", "target")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0 where all hashes that can be compared are equal, else 1.

    Raises:
      ConfigError: a workdir has no proof, or there is nothing to compare.
    """
    rows = _read("--workdir", args.workdir)
    wanted = repeats.last(_read("--reference", args.reference)) if args.reference else {}
    lines, differing, compared = table(rows, wanted)
    print("\n".join(lines))
    if not compared:
        rule = "no step was repeated: the run was never restarted; give --reference another one"
        raise ConfigError("--workdir", args.workdir, rule)
    for line in differing[:10]:
        print(line)
    print(f"{compared} hashes compared, {len(differing)} differ")
    return 1 if differing else 0


def _read(option: str, folder: str) -> list[dict[str, Any]]:
    from jepa_vl.training import proof

    rows = proof.read(Path(folder).expanduser())
    if not rows:
        rule = f"holds no {proof.FILE}; train with --proof"
        raise ConfigError(option, folder, rule)
    return rows


def table(
    rows: Sequence[dict[str, Any]], wanted: dict[repeats.Place, dict[str, Any]]
) -> tuple[list[str], list[str], int]:
    """See :func:`repeats.compare`: lines to print, one a start; what differs; what was compared."""
    found = repeats.compare(rows, wanted)
    lines = [
        (
            *map(str, (start.start, start.processes, start.devices)),
            f"{start.steps[0]}-{start.steps[1]}" if start.steps else "-",
            str(start.repeated),
            *(_told(*start.found[name]) for name in repeats.HASHES),
        )
        for start in found.starts
    ]
    return columns([HEAD, *lines]), found.differing, found.compared


def _told(different: int, equal: int) -> str:
    if different:
        return f"{different} of {different + equal} differ"
    return f"{equal} equal" if equal else "-"
