"""``jepa-vl checkpoint verify``: is every array what was written?"""

import argparse
from collections.abc import Sequence

from jepa_vl.cli import checkpoints, outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.configs import Override

DAMAGED = 1
LISTED = 20  # names of arrays


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints a verdict for each checkpoint.

    Returns:
      0; 1: an array is not what was written, or cannot be read.

    Raises:
      ConfigError: no such folder or step.
    """
    del overrides
    workdir, out = checkpoints.folder("--workdir", args.workdir), outputs.json_file(args)
    step = checkpoints.step(args)
    from jepa_vl.training import stored, verify

    chosen = stored.current(workdir) if step is None else [stored.find(workdir, step)]
    verdicts = {one.folder: verify.verify(one) for one in chosen}
    # A run that goes on deletes its older ones.
    found = [verdict for folder, verdict in verdicts.items() if folder.is_dir()]
    head = ("step", "verdict", "arrays", "read")
    rows = [
        (str(x["step"]), x["verdict"], str(x["arrays"]), checkpoints.size(x["bytes"]))
        for x in found
    ]
    print("\n".join(columns([head, *rows], right=(0, 2, 3))))
    for verdict in found:
        for name, what in [*verdict["damaged"].items()][:LISTED]:
            print(f"step {verdict['step']}: {name} {what}")
        if len(verdict["damaged"]) > LISTED:
            print(f"step {verdict['step']}: and {len(verdict['damaged']) - LISTED} more")
        if verdict["verdict"] == verify.UNKNOWN:
            print(f"step {verdict['step']}: can be read; saved without checksums to compare with")
    outputs.write(out, found)
    return DAMAGED if any(x["damaged"] for x in found) else 0
