"""``jepa-vl report``: runs or a model in, one HTML page, or the table of a proof, out."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jepa_vl.cli import proof_table
from jepa_vl.cli.configs import Override
from jepa_vl.cli.eval_model import name_of
from jepa_vl.cli.train import writable
from jepa_vl.config import ConfigError
from jepa_vl.training import run_files


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Writes the page and prints its path, or prints the table.

    Raises:
      ConfigError: the workdir holds no run, the path no whole model, or the page cannot be written.
    """
    del overrides
    if args.words and (args.workdir or args.model):
        option = "--workdir" if args.workdir else "--model"
        raise ConfigError(option, args.workdir or args.model, "give it, or RUN, not both")
    if len(args.words) == 1:
        args.workdir = args.words[0]
    elif not args.words and bool(args.workdir) == bool(args.model):
        raise ConfigError("--workdir", args.workdir or "", "give DIR, a run, or --model PATH")
    if len(args.words) > 1:
        _no_proof(args, "of one run, not of several")
        folders = run_files.several("RUN", args.words)
        out = _out(args.out, Path("report_runs.html"))
        from jepa_vl.report import compare

        page = compare.build(folders, print)
    elif args.model:
        _no_proof(args, "of runs, not of --model")
        out = _out(args.out, Path(f"report_{name_of(args.model)}.html"))
        page = _of_model(args.model)
    else:
        workdir = Path(args.workdir).expanduser()
        if not workdir.is_dir():
            raise ConfigError("--workdir", args.workdir, "no such folder")
        if args.proof:
            return proof_table.run(args)
        if args.reference:
            raise ConfigError("--reference", args.reference, "add --proof")
        out = _out(args.out, workdir / "report.html")
        from jepa_vl.report import collect

        page = collect.build(workdir.resolve(), print)
    out.parent.mkdir(parents=True, exist_ok=True)
    # In one piece: who looks at the page of a running run never sees half of it.
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    print(out)
    return 0


def _no_proof(args: argparse.Namespace, rule: str) -> None:
    if args.proof or args.reference:
        option = "--proof" if args.proof else "--reference"
        raise ConfigError(option, args.reference or "", rule)


def _out(given: str | None, otherwise: Path) -> Path:
    """The file to write."""
    out = Path(given).expanduser() if given else otherwise
    if out.is_dir():
        raise ConfigError("--out", given or str(out), "is a folder; name the file")
    writable("--out", str(out.parent))
    return out


def _of_model(path: str) -> str:
    """The page of a whole model, on the built-in scenes."""
    from jepa_vl.models import intake
    from jepa_vl.pretrained import fingerprint
    from jepa_vl.report import collect
    from jepa_vl.training import whole

    source = intake.open_source(path, "--model")
    model = whole.load(source, "the report")
    drawn = model._replace(config=whole.on_scenes(model.config))
    facts = {"kind": source.kind, "fingerprint": fingerprint(path, "--model")}
    return collect.build_model(path, drawn, facts, print)
