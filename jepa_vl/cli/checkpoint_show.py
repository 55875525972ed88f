"""``jepa-vl checkpoint show``: what a checkpoint holds, module by module."""

import argparse
from collections.abc import Sequence
from typing import Any

from jepa_vl.cli import checkpoints, outputs
from jepa_vl.cli.checkpoints import number
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override

HEAD = ("module", "parameters", "norm", "target", "cosine", "drift", "rank", "not finite")
LEGEND = (
    "cosine, drift: of params and target; drift = |params - target| / |params|.",
    "rank: exp(entropy of the singular values), over the full rank; mean over the matrices.",
    "not finite: numbers in params, target and moments.",
)


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints the run's facts and a table.

    Raises:
      ConfigError: no such folder or step, or a checkpoint that cannot be read.
    """
    del overrides
    workdir, out = checkpoints.folder("--workdir", args.workdir), outputs.json_file(args)
    step = checkpoints.step(args)
    from jepa_vl.training import inspect, stored

    one = stored.find(workdir, step)
    with checkpoints.readable(workdir):
        page = {**_facts(one), **inspect.summary(one)}
    print("\n".join(_text(page)))
    outputs.write(out, page)
    return 0


def _facts(one: Any) -> dict[str, Any]:
    """Of the run: what its meta and data items tell."""
    spent, config = one.meta.get("spent", {}), one.meta["config"]
    parts = spent.get("goodput", {}).get("parts", {})
    total = sum(parts.values())
    return {
        "step": one.step,
        "images": one.step * one.data["global_batch"],
        "objective": config["objective"],
        "data": one.data.get("name", ""),
        "mesh": one.mesh(),
        "bad_steps": one.scalar("bad_steps"),
        "seconds": spent.get("seconds"),
        "goodput": parts["step"] / total if total else None,
        "config_hash": one.meta["config_hash"],
        "git": one.meta["git"],
        "versions": one.meta["versions"],
        "checksums": len(one.meta.get("checksums", {})),
    }


def _text(page: dict[str, Any]) -> list[str]:
    seconds, goodput = page["seconds"], page["goodput"]
    time = "" if seconds is None else f", {seconds:,.0f} s"
    time += "" if goodput is None else f", goodput {goodput:.0%}"
    lines = [
        f"step {page['step']}, {page['images']:,} images of {page['data']}, {page['objective']}",
        f"config {page['config_hash']}, commit {page['git'] or 'unknown'}{time}, "
        f"{page['bad_steps']} bad steps",
        f"written on {page['mesh'] or 'an unknown mesh'}, {page['checksums']} checksums",
        ", ".join(f"{name} {version}" for name, version in page["versions"].items()),
        "",
    ]
    rows = [_cells(row) for row in (*page["modules"], page["all"])]
    return [*lines, *columns([HEAD, *rows], right=range(1, len(HEAD))), "", *LEGEND]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["module"],
        f"{row['parameters']:,}",
        number(row["norm"]),
        number(row["target_norm"]),
        number(row["cosine"], 6),
        number(row["drift"], 3),
        number(row["rank"], 3),
        str(row["non_finite"]),
    )
