"""``jepa-vl checkpoint ls``: the checkpoints of a run, those set aside included."""

import argparse
from collections.abc import Sequence
from typing import Any

from jepa_vl.cli import checkpoints, outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override

HEAD = ("step", "images", "size", "written", "config", "commit", "bad", "where")


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints a row a checkpoint.

    Raises:
      ConfigError: no such folder, or none in it.
    """
    del overrides
    workdir, out = checkpoints.folder("--workdir", args.workdir), outputs.json_file(args)
    from jepa_vl.training import stored

    found = [*stored.current(workdir), *stored.aside(workdir)]
    rows = [_row(one) | {"where": str(one.folder.relative_to(workdir))} for one in found]
    table = [HEAD, *(_cells(row) for row in rows)]
    print("\n".join(columns(table, right=(0, 1, 2, 6))))
    for row in rows:
        if row["problem"]:
            print(f"{row['where']} cannot be read: {row['problem']}")
    outputs.write(out, rows)
    return 0


def _row(one: Any) -> dict[str, Any]:
    """Of one checkpoint; what cannot be read of a damaged one is None."""
    from jepa_vl.training.checkpoint import Damaged

    written = one.written()
    row: dict[str, Any] = {
        "step": one.step,
        "images": None,
        "bytes": one.size(),
        "written": written and written.isoformat(timespec="seconds"),
        "config_hash": None,
        "git": None,
        "bad_steps": None,
        "problem": "",
    }
    try:
        row["images"] = one.step * one.data["global_batch"]
        row |= {"config_hash": one.meta["config_hash"], "git": one.meta["git"]}
        row["bad_steps"] = one.scalar("bad_steps")
    except Damaged as error:
        row["problem"] = str(error)
    return row


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    images, bad = row["images"], row["bad_steps"]
    return (
        str(row["step"]),
        "?" if images is None else f"{images:,}",
        checkpoints.size(row["bytes"]),
        (row["written"] or "?")[:16].replace("T", " "),
        row["config_hash"] or "?",
        "?" if row["git"] is None else row["git"],
        "?" if bad is None else str(bad),
        row["where"],
    )
