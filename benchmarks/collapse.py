"""Does the alarm see a collapse before the kNN does, and is it silent on healthy runs?

Command:    python benchmarks/collapse.py --data shapes_world --runs RUNS --out benchmarks/collapse.json
            python benchmarks/collapse.py --data rsicd --path RSICD --runs RUNS --out ...
            RSICD holds WebDataset tars in its folders train and val.
Needs:      two CPU cores; about a minute a run.

Trains a small TC-JEPA, first broken on purpose in each way of COLLAPSES, then healthy with other
seeds; each run lies in RUNS/DATA-NAME-SEED, and one that has finished is not trained again. The
alarm is replayed over what the runs wrote down: thresholds may change without training anew. The
file keeps the runs of the other data set; ``--table FILE`` writes all of it as markdown.
"""

import argparse
import json
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
from jepa_vl.config import Config
from jepa_vl.data.pipeline import TrainElement
from jepa_vl.objectives import base, tcjepa
from jepa_vl.training import loop
from jepa_vl.training.health import Health
from jepa_vl.training.metrics import read_rows, write_json

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"shapes_world": "configs/quickstart.py", "rsicd": "configs/rsicd_study.py:arm=own"}
# The recipe with a smaller network, smaller pictures and steps, and 15 looks at it.
SMALL: dict[str, Any] = {
    "encoder.image_size": 48, "encoder.width": 64, "encoder.depth": 2, "masks.context_tokens": 0,
    "predictor.width": 48, "predictor.depth": 2, "text.width": 48, "text.captions": 2,
    "train.steps": 480, "train.batch_size": 16, "optim.warmup_steps": 30, "data.workers": 0,
    "log.every": 15, "log.diagnostics_every": 15, "log.diagnostics_images": 128,
    "log.progress": "off", "log.tensorboard": False, "eval.every": 30, "eval.train_images": 500,
    "eval.val_images": 400, "checkpoint.every": 10_000, "health.lull": 400,
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
        with mock.patch.object(base, "as_targets", lambda features, norm: norms[norm](features)):
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
    plain = configs.load(file, _overrides(given))
    for key, factor in TIMES.get(name, {}).items():
        section, leaf = key.split(".")
        given[key] = factor * getattr(getattr(plain, section), leaf)
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
    if code not in (loop.DONE, loop.NOT_FINITE):
        raise SystemExit(code)
    rows = read_rows(workdir / "metrics.jsonl")
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    step = config.train.batch_size / statistics.median(speeds)
    # The first round compiles.
    cost = {"diagnostics_seconds": statistics.median(seconds[1:]), "step_seconds": step}
    write_json(workdir / "cost.json", cost)
