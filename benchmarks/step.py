"""How long is a training step, beside PyTorch, beside I-JEPA, and beside another setting of ours?

Command:    python benchmarks/step.py --size Ti/8@96 --arm torch --arm "ours train.micro_batches=2" --out RESULT.json
Needs:      the [parity] extra for arms of torch; a CPU will do.

An arm is a library and settings. "torch": our own twin of I-JEPA's public step (torch_ijepa.py), in float32; with
"attention=fused" torch's kernel, with "dtype=bfloat16" autocast. "ours": the step of `jepa-vl train`, and any
configuration keys; "text.captions" and "text.words" apply to "objective=tcjepa", whose words are embedded ahead
(768 channels, as of T5-base); "XLA_FLAGS=--xla_..." goes to the arm's compiler. Every arm is a process of its own that
takes turns with the others and sleeps otherwise; all see the same random images, and random masks of the sizes that
production masks have.

"ms": wall clock of a step. "cpu_seconds": of the arm's process, a step. "others": cores that other processes used
meanwhile; under load torch loses more than XLA does, so that only rows below 0.05, or the ratio of minima, count.
"rss_mib": the largest resident memory so far, of a process that finds its compilations kept; "temporaries_mib": what
the compiler sets aside for a step beside the state. "ratios": time and memory of each arm over the first; "flops":
model FLOPs over those of the first arm of ours.
"""  # noqa: E501

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

# Name -> variant, patch, image.
SIZES = {
    "Ti/8@96": ("Ti", 8, 96),
    "Ti/16@224": ("Ti", 16, 224),
    "S/16@224": ("S", 16, 224),
    "tiny": ("", 8, 48),
}
WIDTH = 768  # of the word embeddings


def settings(arm: str) -> tuple[str, dict[str, str]]:
    """Library and its options of ``"ours train.micro_batches=2"``."""
    library, *options = arm.split()
    return library, dict(option.split("=", 1) for option in options)


def make_config(size: str, batch: int, options: dict[str, str], folder: Path) -> Any:
    """Our resolved configuration; in the folder a cache of one embedded caption is written."""
    import numpy as np

    from jepa_vl.cli import configs
    from jepa_vl.config import defaults, resolve
    from jepa_vl.data import embeddings
    from jepa_vl.schema import TextConfig

    variant, patch, image = SIZES[size]
    c = defaults()
    c.objective = options.get("objective", "ijepa")
    c.encoder.update(variant=variant, image_size=image, patch_size=patch)
    if not variant:
        c.encoder.update(width=32, depth=2, heads=2)
        c.predictor.update(width=16, depth=2, heads=2)
    c.train.batch_size = batch
    if c.objective == "tcjepa":
        words = int(options.get("text.words", "64"))
        text = TextConfig(words=words, cache_dtype="bfloat16")
        states = np.zeros((words, WIDTH), np.float32)
        embeddings.write(folder / "cache", text, "{}", [("a caption", states)])
        c.text.update(kind="cached", path=str(folder / "cache"), words=words)
    pairs = [configs.Override(key, value) for key, value in options.items()]
    return configs.change(resolve(c), pairs)


def ours(config: Any) -> Any:
    """Steps of the configuration."""
    from stepping import Stepper

    from jepa_vl.training import compile_cache

    compile_cache.enable("")
    return Stepper(config)


def twin(config: Any, options: dict[str, str]) -> Callable[[], Any]:
    """A function that does the same step in torch."""
    import torch  # pyright: ignore[reportMissingImports]
    from stepping import make_batch
    from torch_ijepa import Twin

    from jepa_vl.models.layers import sincos_table
    from jepa_vl.models.vit import IMAGENET_MEAN, IMAGENET_STD

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    o, widths = config.optim, (config.encoder.width, config.predictor.width)
    tables = [sincos_table(width, config.encoder.grid) for width in widths]
    fused, half = options.get("attention") == "fused", options.get("dtype") == "bfloat16"
    model = Twin(config, tables, fused, half)
    batch = make_batch(config)
    pixels = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
    visible, blocks = (torch.tensor(batch[name]).long() for name in ("ctx_idx", "tgt_idx"))
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))

    def step() -> None:
        images = (pixels.float() / 255.0 - mean) / std
        model.step(images, visible, blocks, o.lr, o.weight_decay, o.ema)

    return step


def work(args: argparse.Namespace) -> None:
    """Builds an arm, warms it up, then does as many steps as each line of stdin says."""
    from jepa_vl.training import flops

    library, options = settings(args.arm[0])
    with tempfile.TemporaryDirectory() as folder:
        if "XLA_FLAGS" in options:  # before JAX looks for them
            os.environ["XLA_FLAGS"] = options.pop("XLA_FLAGS")
        of_ours = {} if library == "torch" else options
        config = make_config(args.size, args.batch, of_ours, Path(folder))
        of_jax = None if library == "torch" else ours(config)
        step = twin(config, options) if of_jax is None else of_jax.step
        began = time.perf_counter()
        step()
        first = time.perf_counter() - began
        step()
        said = {"flops": flops.count(config).total, "first_step_s": first}
        if args.compiles and of_jax is not None:  # beside the measured process: it takes memory
            sizes = of_jax.program().memory_analysis()
            said["temporaries_mib"] = sizes.temp_size_in_bytes / 2**20
        print(json.dumps(said), flush=True)
        for line in sys.stdin:
            print(json.dumps(timed(step, int(line))), flush=True)


def timed(step: Callable[[], Any], steps: int) -> dict[str, float | None]:
    """Steps one after the other, and what they cost each."""
    busy, own = measure.busy_seconds(), sum(os.times()[:2])
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wall = time.perf_counter() - began
    cpu = sum(os.times()[:2]) - own
    now = measure.busy_seconds()
    others = None if busy is None or now is None else max(0.0, now - busy - cpu) / wall
    found = {"ms": 1e3 * wall / steps, "cpu_seconds": cpu / steps, "others": others}
    return found | {"rss_mib": measure.peak_resident_mib()}


class Arm:
    """A process that measures one arm, when it is asked to."""

    def __init__(self, arm: str, args: argparse.Namespace, *more: str):
        """Starts it and waits until it is warm."""
        command = [sys.executable, __file__, "--worker", f"--size={args.size}"]
        command += [f"--batch={args.batch}", f"--arm={arm}", *more]
        pipe = subprocess.PIPE
        self.process: Any = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.steps = args.steps
        self.said = self._line()

    def _line(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended: {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()

    def __call__(self) -> dict[str, float | None]:
        """Measures some steps."""
        self.process.stdin.write(f"{self.steps}\n")
        self.process.stdin.flush()
        return self._line()


def report(found: dict[str, dict[str, Any]], arms: dict[str, Arm]) -> dict[str, Any]:
    """Summaries, and each arm over the first."""
    first = next(iter(found))
    flops = next((a.said["flops"] for n, a in arms.items() if n.startswith("ours")), None)
    rows = {}
    for name, numbers in found.items():
        paired = [a / b for a, b in zip(numbers["ms"], found[first]["ms"], strict=True)]
        memory = [found[n]["rss_mib"][-1] for n in (name, first)]
        both = measure.summary(numbers["ms"]), measure.summary(found[first]["ms"])
        rows[name] = {key: measure.summary(values) for key, values in numbers.items()} | {
            "first_step_s": arms[name].said["first_step_s"],
            "flops": arms[name].said["flops"] / flops if flops else None,
            "ratios": {
                "of_rounds": measure.summary(paired),
                **measure.ratio(*both),
                "rss": memory[0] / memory[1] if all(memory) else None,
            },
        }
    return rows


def main() -> None:
    """Starts all arms, then gives each its turn in each round."""
    parser = argparse.ArgumentParser(description="the time of a training step")
    parser.add_argument("--size", choices=SIZES, default="Ti/8@96", help="encoder, patch, image")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--arm", action="append", help="LIBRARY KEY=VALUE ...; the first is 1")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--steps", type=int, default=2, help="of an arm's turn")
    parser.add_argument("--out", default="", help="JSON file; empty: printed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compiles", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.arm = args.arm or ["torch", "ours"]
    if args.worker:
        return work(args)
    temporaries = {}
    for arm in args.arm:
        if arm.startswith("ours"):  # so that all find their compilations kept
            first = Arm(arm, args, "--compiles")
            temporaries[arm] = first.said["temporaries_mib"]
            first.close()
    arms = {arm: Arm(arm, args) for arm in args.arm}
    rows = report(measure.interleave(arms, args.repeats), arms)
    for arm, row in rows.items():
        row["temporaries_mib"] = temporaries.get(arm)
    for arm in arms.values():
        arm.close()
    for name, row in rows.items():
        ms, ratios = row["ms"], row["ratios"]
        print(f"{name}: {ms['median']:.0f} ms, {ratios['of_rounds']['median']:.3f} of the first "
              f"(minima {ratios['of_minima']:.3f}), others {row['others']['median']}")  # fmt: skip
    asked = {"size": args.size, "batch": args.batch, "repeats": args.repeats, "steps": args.steps}
    packages = measure.machine("jax", "jaxlib", "torch")
    question = "how long is a training step?"
    measure.write({"question": question, "machine": packages, "settings": asked, "arms": rows},
                  args.out)  # fmt: skip


if __name__ == "__main__":
    main()
