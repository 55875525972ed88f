"""``jepa-vl report``: a workdir in, one HTML page, or the table of a proof, out."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jepa_vl.cli import proof_table
from jepa_vl.cli.configs import Override
from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Writes the page and prints its path, or prints the table.

    Raises:
      ConfigError: the workdir holds no run, or the page cannot be written.
    """
    del overrides
    workdir = Path(args.workdir).expanduser()
    if not workdir.is_dir():
        raise ConfigError("--workdir", args.workdir, "no such folder")
    if args.proof:
        return proof_table.run(args)
    if args.reference:
        raise ConfigError("--reference", args.reference, "add --proof")
    out = Path(args.out).expanduser() if args.out else workdir / "report.html"
    if out.is_dir():
        raise ConfigError("--out", args.out, "is a folder; name the file")
    writable("--out", str(out.parent))
    from jepa_vl.report import collect

    page = collect.build(workdir.resolve(), print)
    out.parent.mkdir(parents=True, exist_ok=True)
    # In one piece: who looks at the page of a running run never sees half of it.
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    print(out)
    return 0
