"""How long is it from the command to the first step, without and with compilations kept?

Command:    python benchmarks/start.py --out RESULT.json
            Words after -- are overrides of the run, e.g. -- --config.train.batch_size=16.
Needs:      nothing beyond the package; a CPU will do.

``jepa-vl train`` as a user gives it: the quickstart with ViT-S/16 at 224 px, whose evaluation
before the first step reads few images (32 and 32, diagnostics 8), or another --config as it is.
Arms: "cold", whose cache of compilations is empty, and "warm", which finds what the cold run before
it has left. Told are seconds from the start of the process to the row of step 0, the untrained
network's numbers, and to that of step 1; then the run is ended.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.py"
TOLD = {"log.every": 1, "log.progress": "json", "log.tensorboard": False}
SIZE = {
    "encoder.variant": "S", "encoder.image_size": 224, "encoder.patch_size": 16,
    "encoder.width": 0, "encoder.depth": 0, "encoder.heads": 0, "encoder.mlp_width": 0,
    "predictor.width": 384, "predictor.depth": 6, "predictor.heads": 6,
    "masks.context_tokens": 0, "train.batch_size": 8, "log.diagnostics_images": 8,
    "eval.train_images": 32, "eval.val_images": 32,
}  # fmt: skip


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What of the configuration is changed."""
    return TOLD | (SIZE if args.config == str(CONFIG) else {})


def command(args: argparse.Namespace, workdir: Path) -> list[str]:
    """What a user would give."""
    words = [f"--config.{key}={value}" for key, value in settings(args).items()]
    base = [sys.executable, "-m", "jepa_vl", "train", "--config", args.config]
    return [*base, "--workdir", str(workdir), *words, *args.words]


def start(args: argparse.Namespace, folder: Path) -> measure.Sample:
    """Runs until step 1 is there.

    Raises:
      RuntimeError: the run ended before it.
    """
    workdir = folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    environment = os.environ | {"JEPA_VL_CACHE": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would be warm for both arms
    began, busy = time.monotonic(), measure.busy_seconds()
    found: measure.Sample = {}
    with subprocess.Popen(
        command(args, workdir),
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            step = json.loads(line).get("step") if line.startswith("{") else None
            if step in (0, 1):
                found.setdefault(f"to_step_{step}_s", time.monotonic() - began)
            if step == 1:
                break
        after = measure.busy_seconds()
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(run.pid, signal.SIGKILL)  # data workers too
    if "to_step_1_s" not in found:
        raise RuntimeError(f"the run ended with exit code {run.returncode} before its first step")
    told = None if busy is None or after is None else after - busy
    return found | {"machine_cpu_s": told}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=str(CONFIG), help="default: the quickstart")
    parser.add_argument("--repeats", type=int, default=3, help="default 3")
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    parser.add_argument("words", nargs="*", help="overrides of the run")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measures and writes JSON."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def cold() -> measure.Sample:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            return start(args, folder)

        arms: dict[str, Callable[[], measure.Sample]] = {
            "cold": cold,
            "warm": lambda: start(args, folder),
        }
        found = measure.interleave(arms, args.repeats)
    told = measure.summaries(found)
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": measure.machine("jax", "jaxlib", "grain"),
        "settings": {"config": Path(args.config).name, **settings(args), "words": args.words},
        "arms": told,
        "cold_over_warm": measure.ratio(told["cold"]["to_step_1_s"], told["warm"]["to_step_1_s"]),
    }
    measure.write(result, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
