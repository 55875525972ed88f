"""``jepa-vl checkpoint convert``: a checkpoint as one safetensors file."""

import argparse
from collections.abc import Sequence

from jepa_vl.cli import checkpoints, outputs
from jepa_vl.cli.configs import Override
from jepa_vl.config import ConfigError, one_of

SUFFIX = ".safetensors"


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Writes the file and says what is in it.

    Raises:
      ConfigError: no such folder, step, branch or dtype; a damaged checkpoint; a file that cannot
        be written.
    """
    del overrides
    workdir, step = checkpoints.folder("--workdir", args.workdir), checkpoints.step(args)
    out = outputs.file("--out", args.out or "")
    if out.suffix != SUFFIX:
        raise ConfigError("--out", args.out, f"a name that ends in {SUFFIX}")
    from jepa_vl.training import convert, stored

    branch, dtype = args.branch or "all", args.dtype or "float32"
    one_of("--branch", branch, convert.BRANCHES)
    one_of("--dtype", dtype, convert.DTYPES)
    one = stored.find(workdir, step)
    out.parent.mkdir(parents=True, exist_ok=True)
    with checkpoints.readable(workdir):
        told = convert.convert(one, out, branch, dtype)
    whole = "equal to its checksums" if told["checked"] else "saved without checksums"
    print(
        f"step {one.step}, {branch}: {told['arrays']} arrays, {checkpoints.size(told['bytes'])} "
        f"in {dtype}; read {whole}, written, read again, the same\n{out}"
    )
    return 0
