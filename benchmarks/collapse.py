"""Does the alarm see a collapse before the kNN does, and is it silent on healthy runs?

Command:    python benchmarks/collapse.py --data shapes_world --runs RUNS --out RESULT.json
            python benchmarks/collapse.py --data rsicd --path RSICD --runs RUNS --out RESULT.json
            RSICD holds WebDataset tars in its folders train and val.
Needs:      two CPU cores; about a minute a run.

Trains a small TC-JEPA, first broken on purpose in each way of COLLAPSES, then healthy with other
seeds; each run lies in RUNS/DATA-NAME-SEED, and one that has finished is not trained again. The
alarm is replayed over what the runs wrote down: thresholds may change without training anew. The
file keeps the runs of the other data set; ``--table FILE`` writes all of it as markdown.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import numpy as np

from jepa_vl.cli import configs
from jepa_vl.config import Config, flat, to_dict
from jepa_vl.data.pipeline import TrainElement
from jepa_vl.objectives import base, tcjepa
from jepa_vl.schema import LogConfig
from jepa_vl.training import loop
from jepa_vl.training.alarm import replay
from jepa_vl.training.health import Health
from jepa_vl.training.metrics import read_rows, write_json

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"shapes_world": "configs/quickstart.py", "rsicd": "configs/rsicd_study.py:arm=own"}
# The recipe with a smaller network, smaller pictures and steps, and 32 looks at it.
SMALL: dict[str, Any] = {
    "encoder.image_size": 48, "encoder.width": 64, "encoder.depth": 2, "masks.context_tokens": 0,
    "predictor.width": 48, "predictor.depth": 2, "text.width": 48, "text.captions": 2,
    "train.steps": 480, "train.batch_size": 16, "optim.warmup_steps": 30, "data.workers": 0,
    "log.every": 10, "log.diagnostics_every": 10, "log.diagnostics_images": 128,
    "log.progress": "off", "log.tensorboard": False, "eval.every": 30, "eval.train_images": 500,
    "eval.val_images": 400, "checkpoint.every": 10_000, "health.lull": 480,
}  # fmt: skip
HEALTHY = "healthy"
# What breaks a run: factors and values of the configuration; and patches, by name.
TIMES: dict[str, dict[str, float]] = {
    "lr x 30": {"optim.lr": 30, "optim.start_lr": 30, "optim.final_lr": 30},
    "regularisers x 20": {"loss.sparse": 20, "loss.consistency": 20, "loss.contrast": 20},
}
VALUES: dict[str, dict[str, Any]] = {
    "momentum 0": {"optim.ema": 1e-9, "optim.final_ema": 1e-9},  # 0 itself is refused
    "regularisers x 20": {"loss.regulariser": "paper"},
    "shuffled captions": {"data.captions": "shuffled"},
}


class NoStopGradient(tcjepa.TCJepa):
    """Targets are those of the encoder that is trained, and it may move them to where it aims."""

    def loss(self, params: Any, target: Any, *args: Any) -> Any:
        """As TC-JEPA's."""
        del target
        norms = base.TARGET_NORMS
        with mock.patch.object(
            base, "as_targets", lambda features, norm="layer_norm": norms[norm](features)
        ):
            return super().loss(params, params["encoder"], *args)


def grey(element: TrainElement, record: Any, rng: np.random.Generator) -> np.ndarray:
    """A training crop without content."""
    del record, rng
    return np.full((element.size, element.size, 3), 127, np.uint8)


PATCHES: dict[str, Any] = {
    "no stop-gradient": lambda: mock.patch.dict(base.REGISTRY, {"tcjepa": NoStopGradient}),
    "constant images": lambda: mock.patch.object(TrainElement, "crop", grey),
}
COLLAPSES = (
    "no stop-gradient", "momentum 0", "lr x 30", "regularisers x 20", "constant images",
    "shuffled captions",
)  # fmt: skip


def make_config(data: str, path: str, name: str, seed: int) -> Config:
    """The recipe, small, and broken as the name says."""
    recipe, _, arg = RECIPES[data].partition(":")
    file = f"{ROOT / recipe}:{arg}" if arg else str(ROOT / recipe)
    given = {**SMALL, "seed": seed} | ({"data.path": f"{path}/train"} if path else {})
    if name in TIMES:
        plain = flat(to_dict(configs.load(file, _overrides(given))))
        given |= {key: factor * plain[key] for key, factor in TIMES[name].items()}
    return configs.load(file, _overrides(given | VALUES.get(name, {})))


def _overrides(values: dict[str, Any]) -> list[configs.Override]:
    return [configs.Override(key, str(value)) for key, value in values.items()]


@contextmanager
def stopwatch(seconds: list[float]) -> Iterator[None]:
    """Notes how long each round of diagnostics takes."""
    run = Health.run

    def timed(self: Health, state: Any) -> dict[str, Any]:
        state.step.block_until_ready()
        start = time.perf_counter()
        found = run(self, state)
        seconds.append(time.perf_counter() - start)
        return found

    with mock.patch.object(Health, "run", timed):
        yield


def train(config: Config, name: str, workdir: Path) -> None:
    """One run from its start; ``cost.json`` says what its diagnostics took."""
    shutil.rmtree(workdir, ignore_errors=True)
    seconds: list[float] = []
    with ExitStack() as broken:
        broken.enter_context(stopwatch(seconds))
        if name in PATCHES:
            broken.enter_context(PATCHES[name]())
        code = loop.train(config, workdir)
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    if code not in (loop.DONE, loop.STOPPED):
        raise SystemExit(code)
    rows = read_rows(workdir / "metrics.jsonl")
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    step = config.train.batch_size / statistics.median(speeds)
    # The first round compiles.
    cost = {"diagnostics_seconds": statistics.median(seconds[1:]), "step_seconds": step}
    write_json(workdir / "cost.json", cost)


def jobs(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Collapses first, then healthy runs: name and seed."""
    names = [name for name in COLLAPSES if not args.only or name in args.only.split(",")]
    return [(name, args.collapse_seed) for name in names] + [
        (HEALTHY, int(seed)) for seed in args.healthy_seeds.split(",")
    ]


def told(workdir: Path, config: Config, name: str, seed: int) -> dict[str, Any]:
    """What a finished run says: its diagnostics and kNN, the alarm over them, what they cost."""
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if "held_out_loss" in row]
    knn = [(int(row["step"]), row["knn/target"]) for row in rows if row.get("knn/target")]
    start, images = knn[0][1], config.eval.val_images
    noise = (start * (1 - start) / images) ** 0.5
    cost = json.loads((workdir / "cost.json").read_text())
    steps = cost["diagnostics_seconds"] / cost["step_seconds"]  # that one round costs
    cost |= {"share_as_measured": steps / config.log.diagnostics_every}
    cost |= {"share_by_default": steps / LogConfig().diagnostics_every}
    return {
        "name": name,
        "seed": seed,
        "alarms": [trouble._asdict() for trouble in replay(rows, config.health)],
        "knn": {"start": start, "least": min(x for _, x in knn), "end": knn[-1][1]},
        "knn_falls": _first_below(knn, start),
        "knn_falls_by_two_errors": _first_below(knn, start - 2 * noise),
        **cost,
    }


def _first_below(knn: list[tuple[int, float]], bound: float) -> int | None:
    return next((step for step, value in knn if value < bound), None)


HEAD = (
    "run", "seed", "first alarm: step, rule", "other alarms", "kNN start, least, end",
    "kNN below its start", "by two errors", "in time",
)  # fmt: skip


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Markdown, one row a run."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for run in runs:
        alarms, knn = run["alarms"], run["knn"]
        names = [f"{a['step']}, {a['name']}" for a in alarms]
        falls = run["knn_falls"], run["knn_falls_by_two_errors"]
        cells = (
            run["name"], run["seed"], names[0] if names else "none", "; ".join(names[1:]),
            " ".join(f"{knn[key]:.3f}" for key in ("start", "least", "end")),
            *("never" if step is None else step for step in falls), in_time(run),
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, "", costs(runs)]


def costs(runs: list[dict[str, Any]]) -> str:
    """One sentence: medians over the runs."""

    def median(name: str) -> float:
        return statistics.median(float(run[name]) for run in runs)

    images = SMALL["log.diagnostics_images"]
    return (
        f"Diagnostics of {images} images take {median('diagnostics_seconds'):.2f} s, a step "
        f"{median('step_seconds'):.3f} s: {median('share_as_measured'):.0%} of the "
        f"steps' time every {SMALL['log.diagnostics_every']} steps, "
        f"{median('share_by_default'):.1%} every 100, the default (medians)."
    )


def in_time(run: dict[str, Any]) -> str:
    """Was the alarm before the kNN's fall? Of a healthy run: was there none?

    A run whose kNN never falls by two errors, and in which nothing fires, has not collapsed.
    """
    alarms = run["alarms"]
    if run["name"] == HEALTHY:
        return "false alarm" if alarms else "silent"
    falls = (run["knn_falls"], run["knn_falls_by_two_errors"])
    if not alarms:
        return "missed" if falls[1] is not None else "no collapse, no alarm"
    first = alarms[0]["step"]
    raw, clear = (step is None or first < step for step in falls)
    return "yes" if raw else "before it falls by two errors" if clear else "too late"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=RECIPES, default="shapes_world")
    parser.add_argument("--path", default="", help="rsicd: folder that holds train and val")
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--only", default="", help="collapses, separated by commas (default: all)")
    parser.add_argument("--collapse-seed", type=int, default=17, help="default 17")
    parser.add_argument("--healthy-seeds", default="21,22,23,24,25,26", help="default 21 to 26")
    parser.add_argument("--out", default="", help="JSON file; printed if absent")
    parser.add_argument("--table", default="", help="markdown file of all that --out holds")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Trains what is missing, judges all of it and writes it."""
    args = parse(argv)
    load, runs = os.getloadavg()[0], []
    for name, seed in jobs(args):
        config = make_config(args.data, args.path, name, seed)
        workdir = Path(args.runs) / f"{args.data}-{name.replace(' ', '_')}-{seed}"
        if not (workdir / "cost.json").exists():
            print(workdir.name, flush=True)
            train(config, name, workdir)
        runs.append(told(workdir, config, name, seed))
    out = Path(args.out) if args.out else None
    found = json.loads(out.read_text()) if out and out.exists() else {}
    found |= {"question": (__doc__ or "").splitlines()[0], "settings": SMALL}
    ran = {"machine": measure.machine("jax", "optax"), "load_at_start": load, "runs": runs}
    found["data"] = {**found.get("data", {}), args.data: ran}
    measure.write(found, args.out)
    if args.table:
        parts = [[f"### {name}", "", *table(ran["runs"])] for name, ran in found["data"].items()]
        Path(args.table).write_text("\n\n".join("\n".join(part) for part in parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
