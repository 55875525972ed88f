"""What does a checkpoint cost the steps around it, and does memory grow with their number?

Command:    python benchmarks/checkpoints.py --out RESULT.json
Needs:      nothing beyond the package; a CPU will do. 3 GB of disk in the temporary folder.

"blocking": seconds that the call which saves holds the training up, checksums and the copy of the
state included, over the seconds of a step; each save is measured beside the step before it, in one
run. The rest of a save goes on in the background, on a CPU on the same cores: "steps_beside" tells
how much longer a step takes then. "amortised": all of it over --every steps, as a run of that
checkpoint.every has it. "memory": resident MiB after each tenth of --saves saves of a small model,
and their slope over the second half.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np
from stepping import Stepper

from jepa_vl.config import Config, defaults, resolve
from jepa_vl.schema import CheckpointConfig
from jepa_vl.training.checkpoint import Checkpoints, provenance


def make_config(variant: str, size: int, batch: int) -> Config:
    """I-JEPA on random images; ``variant`` "" is a model of a few kilobytes."""
    c = defaults()
    c.objective = "ijepa"
    c.encoder.variant, c.encoder.image_size, c.encoder.patch_size = variant, size, 16
    if not variant:
        c.encoder.width, c.encoder.depth, c.encoder.heads = 32, 1, 2
        c.predictor.width, c.predictor.depth, c.predictor.heads = 16, 1, 2
        c.encoder.image_size, c.encoder.patch_size = 32, 8
    c.train.batch_size = batch
    return resolve(c)


class Bench(Stepper):
    """A state that is stepped and saved."""

    def __init__(self, config: Config, workdir: Path):
        super().__init__(config)
        self.checkpoints = Checkpoints(workdir, CheckpointConfig(keep_last=2, keep_best=0))
        self.meta, self.number = provenance(config), 0

    def timed(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began

    def save(self) -> float:
        """Seconds that a save holds its caller up."""
        began, self.number = time.perf_counter(), self.number + 1
        self.checkpoints.save(self.state, self.number, {}, self.meta)
        return time.perf_counter() - began


def blocking(args: argparse.Namespace, workdir: Path) -> dict[str, Any]:
    """The cost of saves beside that of steps."""
    bench = Bench(make_config(args.variant, args.size, args.batch), workdir)
    bench.step()  # compiles
    bench.save()
    bench.checkpoints.wait()
    rows: dict[str, list[float]] = {"step": [], "save": [], "beside": [], "background": []}
    for _ in range(args.repeats):
        rows["step"].append(bench.timed())
        rows["save"].append(bench.save())
        began = time.perf_counter()
        rows["beside"].append(bench.timed())
        bench.checkpoints.wait()
        rows["background"].append(time.perf_counter() - began)
    shares = [save / step for save, step in zip(rows["save"], rows["step"], strict=True)]
    beside = [after / step for after, step in zip(rows["beside"], rows["step"], strict=True)]
    extra = [s + b - 1 for s, b in zip(shares, beside, strict=True)]
    state = sum(x.nbytes for x in jax.tree.leaves(bench.state))
    bench.checkpoints.close()
    return {
        "state_mb": state / 1e6,
        "seconds": {name: measure.summary([*values]) for name, values in rows.items()},
        "blocking": measure.summary([*shares]),
        "steps_beside": measure.summary([*beside]),
        "amortised": measure.summary([share / args.every for share in extra]),
    }


def resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(args: argparse.Namespace, workdir: Path) -> dict[str, Any]:
    """Resident memory over many saves of a small model, MiB."""
    bench = Bench(make_config("", 32, 8), workdir)
    points: list[tuple[int, float]] = []
    for number in range(1, args.saves + 1):
        bench.step()
        bench.save()
        if number % max(1, args.saves // 10) == 0:
            bench.checkpoints.wait()
            points.append((number, round(resident(), 1)))
    bench.checkpoints.close()
    half = np.array(points[len(points) // 2 :])
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0])
    return {"mib": points, "mib_per_100_saves": 100 * slope}


def main() -> None:
    """Measures and writes."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", default="S")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "cores": os.cpu_count(),
            "arguments": {k: v for k, v in vars(args).items() if k != "out"},
            **blocking(args, Path(folder, "large")),
            "memory": memory(args, Path(folder, "small")),
        }
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
