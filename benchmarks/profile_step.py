"""Where does the time of a training step on a CPU go?

Command:    python benchmarks/profile_step.py --size Ti/8@96 --batch 8 --out RESULT.json
            Words after -- are configuration keys, e.g. -- objective=tcjepa text.words=32.
Needs:      nothing beyond the package; a CPU.

The step of `jepa-vl train`, traced by XLA's profiler. "ms": time of a step that threads spent in
operations of a kind, all threads together; "share": of all operations; "runs": operations of a
step. Kinds are told apart by what an operation is, and by the name that tracing gave it.
"""

import argparse
import gzip
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import measure
from step import SIZES, make_config
from stepping import Stepper

# The first pattern that is found in "operation | traced name" names the kind.
KINDS = {
    "transposes and copies": r"^(transpose|copy)\S* \|",
    "update of the state": r"\| (?!.*(jvp|transpose)\().*(select_n|sqrt|square|div|mul|sub|add)$",
    "products of attention": r"\| .*(bqhd,bkhd|bhqk,bkhd)",
    "products of the MLP": r"\| .*mlp/fc[12]/dot_general",
    "products of q, k, v, out": r"\| .*attn/(q|k|v|out)/dot_general",
    "GELU": r"\| .*mlp/(erf|mul|add|exp|neg)",
    "softmax": r"\| .*attn/(exp|sub|div|reduce_max|reduce_sum|mul)",
    "LayerNorm": r"\| .*norm\d?/",
    "gradients of biases": r"\| .*(fc[12]|q|k|v|out)/reduce_sum",
    "the rest": r"",
}


def kind(operation: str, traced: str) -> str:
    """Of :data:`KINDS`."""
    line = f"{operation} | {traced}"
    return next(name for name, pattern in KINDS.items() if re.search(pattern, line))


def traced_names(text: str) -> dict[str, str]:
    """The name that tracing gave each operation of a compiled program."""
    return dict(re.findall(r'%([\w.\-]+) = .*?op_name="([^"]*)"', text))


def events(folder: str) -> list[dict[str, Any]]:
    """The operations that a trace holds, each with its microseconds."""
    (file,) = Path(folder).rglob("*.trace.json.gz")
    found = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [e for e in found if e.get("ph") == "X" and "hlo_op" in (e.get("args") or {})]


def profile(stepper: Stepper, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds, share and number of operations of a step by kind, most of it first."""
    stepper.step()
    names = traced_names(stepper.program().as_text())
    stepper.step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                stepper.step()
        found = events(folder)
    spent: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for event in found:
        name = event["args"]["hlo_op"]
        group = kind(name, names.get(name, ""))
        spent[group] += event["dur"]
        runs[group] += 1
    total = spent.total()
    return {
        group: {"ms": us / steps / 1e3, "share": us / total, "runs": runs[group] / steps}
        for group, us in spent.most_common()
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--size", choices=SIZES, default="Ti/8@96", help="encoder, patch, image")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--steps", type=int, default=5, help="traced")
    parser.add_argument("--out", default="", help="JSON file; empty: printed")
    parser.add_argument("words", nargs="*", help="KEY=VALUE of the configuration")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Traces and writes JSON."""
    args = parse(argv)
    options = dict(word.split("=", 1) for word in args.words)
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(make_config(args.size, args.batch, options, Path(folder)))
        found = profile(stepper, args.steps)
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": measure.machine("jax", "jaxlib"),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "kinds": found,
    }
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
