"""How much of a training run's time does the host spend waiting for data?

Command:    python benchmarks/data_wait.py --data FOLDER --out RESULT.json
            FOLDER holds captions.jsonl; without it photograph-like JPEGs are made.
Needs:      nothing beyond the package; a CPU will do.

A whole run of ``jepa-vl train``: ViT-S/16 at 224 px with its predictor of 6 layers, I-JEPA or
TC-JEPA, in float32, batches made by worker processes. Each step is logged, and "data_wait" is that
of its row: taking a batch and handing it to the devices, over the time of the step. The first
steps, in which workers and compiler start, are left out. On a CPU, workers and steps share cores.
A step of this size takes seconds there: a small share says that the loop adds no wait of its own,
not that the same input keeps up with an accelerator (input_pipeline.py has its images a second).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
from photographs import make_folder

from jepa_vl.config import Config, defaults, resolve
from jepa_vl.training import loop


def make_config(args: argparse.Namespace) -> Config:
    """A run of nothing but steps."""
    c = defaults()
    c.objective = args.objective
    c.encoder.variant, c.encoder.image_size, c.encoder.patch_size = args.variant, args.size, 16
    c.data.kind, c.data.path, c.data.workers = "folder", args.data, args.workers
    c.train.steps, c.train.batch_size = args.warmup + args.steps, args.batch
    c.train.compile_cache = args.cache or "off"
    c.optim.warmup_steps = c.loss.ramp_steps = 0
    c.log.every, c.log.diagnostics_every, c.log.diagnostics_images = 1, 10**6, args.batch
    c.log.progress, c.log.tensorboard = "lines", False
    c.eval.every, c.eval.train_images, c.eval.val_images = 10**6, args.batch, args.batch
    c.checkpoint.every = 10**6
    return resolve(c)


def train(config: Config, workdir: Path, warmup: int) -> dict[str, Any]:
    """What the rows and the result of a run say, the first steps left out.

    Raises:
      RuntimeError: it did not end well.
    """
    if loop.train(config, workdir) != loop.DONE:
        raise RuntimeError("the run did not end")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"] > warmup]
    seconds = [config.train.batch_size / row["images_per_second"] for row in rows]
    waits = [row["data_wait"] for row in rows]
    waited = sum(wait * whole for wait, whole in zip(waits, seconds, strict=True))
    result = json.loads((workdir / "result.json").read_text())
    return {
        "data_wait": waited / sum(seconds),
        "data_wait_of_a_step": measure.summary(waits),
        "step_seconds": measure.summary(seconds),
        "images_per_second": len(rows) * config.train.batch_size / sum(seconds),
        "tokens_per_second": measure.summary([row["tokens_per_second"] for row in rows]),
        "whole_run": result["goodput"],
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="", help="folder with captions.jsonl")
    parser.add_argument("--make", default="64x500x375", help="IMAGESxWIDTHxHEIGHT to make instead")
    parser.add_argument("--objective", default="ijepa", help="default ijepa")
    parser.add_argument("--variant", default="S", help="of the encoder; default S")
    for name, value in (("size", 224), ("batch", 16), ("workers", 1), ("steps", 20), ("warmup", 3)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--cache", default="", help="folder of compilations; default: none")
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        made, settings = not args.data, {k: v for k, v in vars(args).items() if k != "out"}
        if made:
            args.data = str(Path(scratch) / "photographs")
            Path(args.data).mkdir()
            make_folder(Path(args.data), *(int(number) for number in args.make.split("x")))
        settings["data"] = "made" if made else Path(args.data).name
        settings.pop("cache")
        load = os.getloadavg()[0]
        result = {
            "question": (__doc__ or "").splitlines()[0],
            "machine": measure.machine("jax", "grain", "pillow"),
            "settings": settings,
            "load_at_start": load,
            "run": train(make_config(args), Path(scratch) / "run", args.warmup),
            "load_at_end": os.getloadavg()[0],
        }
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
