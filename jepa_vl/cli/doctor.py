"""``jepa-vl doctor``: is this installation fit to train, and what to do where it is not?"""

import argparse
from collections.abc import Sequence

from jepa_vl.cli import outputs
from jepa_vl.cli.configs import Override

UNFIT = 1


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints a line a check, as each is done; returns 1 where one failed.

    Raises:
      ConfigError: --json cannot be written.
    """
    del overrides
    from jepa_vl.cli import checkup

    out, found = outputs.json_file(args), []
    for check in (*checkup.CHECKS, *([checkup.tpu_compiler] if args.tpu else [])):
        for finding in check():
            found.append(finding)
            advice = f"  -> {finding.advice}" if finding.advice else ""
            print(f"{finding.state:<4}  {finding.check:<17}  {finding.found}{advice}", flush=True)
    failed = sum(finding.state == checkup.FAIL for finding in found)
    print(f"{failed} of {len(found)} checks failed" if failed else "fit to train")
    outputs.write(out, [finding._asdict() for finding in found])
    return UNFIT if failed else 0
