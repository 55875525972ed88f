"""Do the time of a step and memory stay what they are over ten thousand steps?

Command:    python benchmarks/steady.py --out RESULT.json
            Words after -- are overrides of the run, e.g. -- --config.train.batch_size=16.
Needs:      nothing beyond the package; a CPU will do.

``jepa-vl train`` as a user gives it: the quickstart with a small encoder and predictor, or another
--config as it is; evaluation and checkpoints wait for the end. Told of each tenth of the run but
the first, which compiles: "ms" and "cpu_ms", wall clock and CPU time of a step, all processes of
the run together (CPU time tells more where other work shares the machine); "rss_mib" at its end.
"last_over_second": of the last tenth over the second one; "mib_per_1000_steps": slope of memory
over the second half.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.py"
SMALL = {
    "encoder.width": 48, "encoder.depth": 2, "encoder.heads": 4, "encoder.mlp_width": 0,
    "predictor.width": 48, "predictor.depth": 2, "predictor.heads": 4, "train.batch_size": 8,
}  # fmt: skip
TENTHS = 10


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What of the configuration is changed."""
    rare = ("eval.every", "checkpoint.every", "log.diagnostics_every")
    late = dict.fromkeys(rare, 2 * args.steps)
    told = {"log.every": args.steps // TENTHS, "log.progress": "json", "log.tensorboard": False}
    size = SMALL if args.config == str(CONFIG) else {}
    # A tenth more, as the last row waits for the evaluation at the end.
    return {"train.steps": args.steps + args.steps // TENTHS, **late, **told, **size}


def follow(args: argparse.Namespace, workdir: Path) -> list[dict[str, float]]:
    """Runs, and notes time and memory whenever a tenth is done.

    Raises:
      RuntimeError: the run failed.
    """
    words = [f"--config.{key}={value}" for key, value in settings(args).items()]
    base = [sys.executable, "-m", "jepa_vl", "train", "--config", args.config]
    command = [*base, "--workdir", str(workdir), *words, *args.words]
    points: list[dict[str, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            row = json.loads(line) if line.startswith("{") else {}
            if row.get("step") and row["step"] % (args.steps // TENTHS) == 0:
                found = {"cpu": measure.cpu_seconds(), "rss_mib": measure.resident_mib()}
                known = {name: value for name, value in found.items() if value is not None}
                points.append({"step": row["step"], "s": time.monotonic(), **known})
    if run.returncode:
        raise RuntimeError(f"the run ended with exit code {run.returncode}")
    return points[:TENTHS]


def tenths(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """What a step cost between each two points."""
    rows = []
    for before, after in itertools.pairwise(points):
        steps = after["step"] - before["step"]
        row = {"to_step": after["step"], "ms": 1e3 * (after["s"] - before["s"]) / steps}
        if "cpu" in after:
            row["cpu_ms"] = 1e3 * (after["cpu"] - before["cpu"]) / steps
            row["rss_mib"] = after["rss_mib"]
        rows.append(row)
    return rows


def verdict(rows: list[dict[str, float]]) -> dict[str, Any]:
    """How flat it is."""
    keys = [key for key in ("ms", "cpu_ms", "rss_mib") if key in rows[-1]]
    told: dict[str, Any] = {"last_over_second": {k: rows[-1][k] / rows[0][k] for k in keys}}
    if "rss_mib" in keys:
        half = np.array([(row["to_step"], row["rss_mib"]) for row in rows[len(rows) // 2 :]])
        told["mib_per_1000_steps"] = 1000 * float(np.polyfit(half[:, 0], half[:, 1], 1)[0])
    return told


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--config", default=str(CONFIG), help="default: the quickstart")
    parser.add_argument("--steps", type=int, default=10_000, help=f"a multiple of {TENTHS}")
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    parser.add_argument("words", nargs="*", help="overrides of the run")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = tenths(follow(args, Path(folder)))
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": measure.machine("jax", "jaxlib", "grain"),
        "settings": {"config": Path(args.config).name, **settings(args), "words": args.words},
        "tenths": rows,
        **verdict(rows),
    }
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
