"""``jepa-vl checkpoint diff``: how one checkpoint differs from another, of any run."""

import argparse
import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import checkpoints, outputs
from jepa_vl.cli.checkpoints import number
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override
from jepa_vl.cli.numbers import whole
from jepa_vl.config import ConfigError

HEAD = ("part", "module", "arrays", "norm", "difference", "relative", "cosine", "bits")
SECTIONS = ("config", "data", "provenance", "counters")
LISTED = 20  # lines of a list
WIDE = 40  # characters of a value


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints what differs.

    Raises:
      ConfigError: no such folder or step, or a checkpoint that cannot be read.
    """
    del overrides
    workdir, out = checkpoints.folder("--workdir", args.workdir), outputs.json_file(args)
    step = checkpoints.step(args)
    other, other_step = _against(args.against, workdir)
    from jepa_vl.training import inspect, stored

    a, b = stored.find(workdir, step), stored.find(other, other_step)
    if a.folder == b.folder:
        rule = f"it is the checkpoint of step {a.step} itself; give FOLDER, FOLDER@N or @N"
        raise ConfigError("--against", args.against, rule)
    with checkpoints.readable(workdir):
        page = inspect.difference(a, b)
    names = [f"{one.folder.parents[1].name}@{one.step}" for one in (a, b)]
    print("\n".join(_text(page, names)))
    outputs.write(out, {"checkpoints": names, **page})
    return 0


def _against(text: str, workdir: Path) -> tuple[Path, int | None]:
    """``FOLDER``, ``FOLDER@N`` or ``@N``, another step of the same folder."""
    path, at, number = text.rpartition("@")
    if not at or not number.isdecimal():
        return checkpoints.folder("--against", text), None
    step = whole("--against", number, 0)
    return (checkpoints.folder("--against", path) if path else workdir), step


def _text(page: dict[str, Any], names: list[str]) -> list[str]:
    from jepa_vl.training import inspect

    lines = [f"{names[0]} -> {names[1]}"]
    if page["same_bits"]:
        lines.append("the same bits: parameters, target, moments and counters")
    same = [title for title in SECTIONS if not page[title]]
    lines += [f"the same {', '.join(same)}"] if same else []
    for title in SECTIONS:
        changed = page[title]
        rows = [(f"  {key}", _short(a), "->", _short(b)) for key, (a, b) in changed.items()]
        lines += ["", title, *columns(rows)] if rows else []
    for name, arrays in zip(names, page["only_in"], strict=True):
        counted = collections.Counter(inspect.part_and_module(array) for array in arrays)
        told = [f"{' '.join(place).strip()}: {count} arrays" for place, count in counted.items()]
        lines += _listing(f"only in {name}", told)
    kinds = page["other_shape"].items()
    lines += _listing("other shape or dtype", [f"{n}: {a} -> {b}" for n, (a, b) in kinds])
    if page["same_bits"] or not page["modules"]:
        return lines
    rows = [_cells(row) for row in page["modules"]]
    return [*lines, "", *columns([HEAD, *rows], right=range(2, 7))]


def _listing(title: str, told: list[str]) -> list[str]:
    if not told:
        return []
    more = [f"  and {len(told) - LISTED} more; --json lists all"] if len(told) > LISTED else []
    return ["", title, *(f"  {line}" for line in told[:LISTED]), *more]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= WIDE else f"{text[: WIDE - 3]}..."


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["part"],
        row["module"],
        str(row["arrays"]),
        number(row["norm"]),
        number(row["difference"]),
        number(row["relative"], 3),
        number(row["cosine"], 6),
        "same" if row["same_bits"] else "",
    )
