"""``jepa-vl scaling plan``: what a study would run, and what it would not, and why."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_vl.cli import configs, outputs, scaling_points
from jepa_vl.cli.columns import columns
from jepa_vl.cli.train import writable
from jepa_vl.scaling import ledger, study


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints the plan and stores it. Trains nothing.

    Returns:
      0, or 1 if all points are refused.

    Raises:
      ConfigError: a bad study, configuration or topology, or a folder that cannot be written.
    """
    asked = study.load(args.study)
    page = outputs.json_file(args)
    out = writable("--out", args.out) if args.out else None
    on = scaling_points.machines(args.topology)
    rows = ledger.Ledger(out / ledger.FILE).rows() if out else []
    plan = scaling_points.make(asked, rows, on)
    print("\n".join(told(plan)))
    if out is not None:
        outputs.write(out / scaling_points.FILE, plan)
    outputs.write(page, plan)
    return int(all(point["refused"] for point in plan["points"]))


def told(plan: Mapping[str, Any]) -> list[str]:
    """The plan for people: a row a size and budget, seeds together."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for point in plan["points"]:
        groups.setdefault((point["arm"], point["budget"], point["size"]), []).append(point)
    head = ("arm", "FLOPs", "size", "N", "MFLOPs/image", "steps", "images", "epochs", "lr", "seeds")
    hours = plan["topology"] is not None
    table: list[tuple[str, ...]] = [(*head, *(("chip-hours",) if hours else ()), "")]
    for points in groups.values():
        table.append(_line(points, hours))
    lines = columns(table, range(3, len(table[0]) - 1))
    for arm, law in plan["optimum"].items():
        lines.append(
            f"{arm}: best size {law['size']:.3g} at {law['compute']:.3g} FLOPs, growing with "
            f"C ** {law['exponent']:.3g} ({law['source']})"
        )
    going = [point for point in plan["points"] if not point["refused"]]
    flops = sum(point["flops"]["run"] for point in going)
    lines.append(
        f"{len(going)} points, {flops:.3g} FLOPs; {len(plan['points']) - len(going)} refused"
    )
    if hours and all(point["chip_hours_bound"] is not None for point in going):
        total = sum(point["chip_hours_bound"] for point in going)
        lines.append(f"at least {total:,.4g} chip-hours on {plan['topology']}, a bound from peaks")
    return lines


def _line(points: Sequence[Mapping[str, Any]], hours: bool) -> tuple[str, ...]:
    one = points[0]
    cells = [one["arm"], f"{one['budget']:.3g}", one["size"]]
    if "steps" not in one:
        return (*cells, *[""] * (7 + hours), f"refused: {one['refused']}")
    bound = one["chip_hours_bound"]
    return (
        *cells, f"{one['parameters'].get('encoder', 0):,}",
        f"{one['flops']['image_total'] / 1e6:,.1f}", f"{one['steps']:,}", f"{one['images']:,}",
        f"{one['epochs']:.3g}", f"{one['lr']:.3g}", str(len(points)),
        *([("" if bound is None else f"{bound * len(points):,.3g}")] if hours else []),
        f"refused: {one['refused']}" if one["refused"] else "",
    )  # fmt: skip


def read(out: Path) -> dict[str, Any] | None:
    """The plan that a folder holds; None: none yet."""
    import json

    file = out / scaling_points.FILE
    return json.loads(file.read_text()) if file.exists() else None
