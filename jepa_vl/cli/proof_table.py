"""The table of ``jepa-vl report --proof``: were repeated steps the same, hash by hash?"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli.columns import columns
from jepa_vl.config import ConfigError

# A step, and how many batches the data was ahead of it: after a rewind it sees other images.
SAMPLES = "sample_hash"
Place = tuple[int, int]
HEAD = ("start", "processes", "devices", "steps", "repeated", "samples", "parameters", "target")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0 where all hashes that can be compared are equal, else 1.

    Raises:
      ConfigError: a workdir has no proof, or there is nothing to compare.
    """
    rows = _read("--workdir", args.workdir)
    wanted = _last(_read("--reference", args.reference)) if args.reference else {}
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


def _last(rows: Sequence[dict[str, Any]]) -> dict[Place, dict[str, Any]]:
    """The row of each step that counts: of repeated ones the last."""
    devices: tuple = ()
    found = {}
    for start, steps in _starts(rows):
        devices = _moved(devices, start)
        for row in steps:
            found[row["step"], start["skipped"]] = row | {"devices": devices}
    return found


def _moved(devices: tuple, start: dict[str, Any]) -> tuple:
    """The devices that a run has been on, one after the other, with those of one more start."""
    now = (start["processes"], start["devices"])
    return devices if devices and devices[-1] == now else (*devices, now)


def table(
    rows: Sequence[dict[str, Any]], wanted: dict[Place, dict[str, Any]]
) -> tuple[list[str], list[str], int]:
    """One line a start of the run: which of its steps had been made before, and how they compare.

    Samples must be the same on any devices. Parameters are compared where both were made on the
    same devices from the first step on: sums over other devices round otherwise.

    Args:
      rows: of proof.jsonl.
      wanted: of another run, by step; {}: none.

    Returns:
      Lines to print; a line for each hash that differs; how many hashes were compared.
    """
    from jepa_vl.training.proof import HASHES

    seen, compared, devices = dict(wanted), 0, ()
    differing: list[str] = []
    out: list[tuple[str, ...]] = [HEAD]
    for start, steps in _starts(rows):
        devices = _moved(devices, start)
        counts = {name: [0, 0] for name in HASHES}
        repeated = 0
        for row in steps:
            place = row["step"], start["skipped"]
            before = seen.get(place, {})
            repeated += bool(before)
            for name in HASHES:
                if name not in before or name not in row:
                    continue
                if name == SAMPLES or before["devices"] == devices:
                    counts[name][before[name] == row[name]] += 1
                    if before[name] != row[name]:
                        differing.append(
                            f"step {row['step']}: {name} {before[name]} -> {row[name]}"
                        )
            seen[place] = before | row | {"devices": devices}
        compared += sum(map(sum, counts.values()))
        span = f"{steps[0]['step']}-{steps[-1]['step']}" if steps else "-"
        told = [_told(*counts[name]) for name in HASHES]
        out.append(tuple(map(str, (
            start["start"], start["processes"], start["devices"], span, repeated, *told
        ))))  # fmt: skip
    return columns(out), differing, compared


def _starts(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for row in rows:
        if "start" in row:
            found.append((row, []))
        elif found:
            found[-1][1].append(row)
    return found


def _told(different: int, equal: int) -> str:
    if different:
        return f"{different} of {different + equal} differ"
    return f"{equal} equal" if equal else "-"
