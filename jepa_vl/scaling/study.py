"""A study file: what is varied, what is held, and the rules that turn a size into a run."""

import dataclasses
import hashlib
import json
import math
import os
import runpy
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError, one_of
from jepa_vl.scaling import family
from jepa_vl.scaling.table import TRAIN_LOSS, check_quality

GRIDS = ("isoflop", "full")
TEXT = "study"


@dataclasses.dataclass(frozen=True)
class Study:
    """The keys of the dictionary that ``get_study()`` returns.

    Attributes:
      name: of the study, in its ledger.
      config: base configuration, FILE[:ARGS] as of --config; from the study file's folder on.
      arms: name -> values of the configuration that this arm changes.
      values: of the configuration that all points change, beside the arm's.
      sizes: see :mod:`.family`.
      budgets: FLOPs of a run each, as ``training/flops.py`` counts them.
      seeds: of the runs.
      batch_size: images a step, for all.
      lr, lr_width, lr_exponent: learning rate lr * (width / lr_width) ** -lr_exponent.
      ema_half_life: images after which a weight has half gone from the target; the same for all,
        so that targets of runs of other lengths and batches are as old.
      warmup: share of the steps.
      grid: isoflop: the sizes within ``factor`` around the best one of each budget; full: all.
      factor: see grid.
      optimum_size, optimum_compute, optimum_exponent: where the search for it begins: a size of
        encoder parameters at a budget, and N* ~ C ** exponent from there. A ledger that tells
        more takes its place.
      least_steps: a point with fewer steps after its warm-up is refused.
      most_epochs: and one that sees the training images more often.
      tasks: of `jepa-vl eval`, on the final checkpoint.
      evaluation: values of eval.* that it changes; its seed is 0 at all points, so that they are
        measured on the same images.
      quality: what laws are fitted to.
    """

    name: str
    config: str
    arms: dict
    sizes: tuple
    budgets: tuple
    seeds: tuple
    batch_size: int
    lr: float
    ema_half_life: float
    optimum_size: float
    optimum_compute: float
    values: dict = dataclasses.field(default_factory=dict)
    evaluation: dict = dataclasses.field(default_factory=dict)
    lr_width: int = 96
    lr_exponent: float = 0.0
    warmup: float = 0.1
    grid: str = "isoflop"
    factor: float = 4.0
    optimum_exponent: float = 0.5
    least_steps: int = 100
    most_epochs: float = 10.0
    tasks: tuple = ("knn", "fewshot")
    quality: str = "knn_error"

    def hash(self) -> str:
        """12 hex digits that name all its values."""
        page = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(page.encode()).hexdigest()[:12]

    def rate(self, width: int) -> float:
        """Learning rate of an encoder's width."""
        return float(f"{self.lr * (width / self.lr_width) ** -self.lr_exponent:.6g}")

    def momentum(self) -> float:
        """Of the EMA a step: a half after ``ema_half_life`` images."""
        return float(f"{0.5 ** (self.batch_size / self.ema_half_life):.8g}")

    def values_of(self, arm: str, size: family.Size, steps: int, seed: int) -> dict[str, Any]:
        """The keys of the configuration that a point changes; those of the arm come last."""
        ema, warmup = self.momentum(), self.warmup_of(steps)
        return {
            **size.overrides(), "train.batch_size": self.batch_size, "train.steps": steps,
            "optim.lr": self.rate(size.width), "optim.warmup_steps": warmup,
            "optim.ema": ema, "optim.final_ema": ema, "seed": seed,
            **self.values, **self.arms[arm],
        }  # fmt: skip

    def warmup_of(self, steps: int) -> int:
        """Steps of the warm-up, at least one."""
        return max(1, round(self.warmup * steps))


RULED = set(family.size("96x4").overrides()) | {
    "train.batch_size", "train.steps", "optim.lr", "optim.warmup_steps", "optim.ema",
    "optim.final_ema", "seed",
}  # fmt: skip


def load(path: str) -> Study:
    """Reads and checks a study file.

    Raises:
      ConfigError: no such file, a file that fails, or a key, a value and the rule it breaks.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError("--study", path, "no such file")
    try:
        given = runpy.run_path(str(file))["get_study"]()
    except ConfigError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        rule = f"a Python file with get_study(); cannot be loaded: {what}"
        raise ConfigError("--study", path, rule) from error
    study = build(given)
    base, colon, arg = study.config.partition(":")
    base = os.path.relpath((file.parent / base).resolve())
    return dataclasses.replace(study, config=f"{base}{colon}{arg}")


def build(given: Any) -> Study:
    """A study of plain values.

    Raises:
      ConfigError: names the key, the value and the rule.
    """
    if not isinstance(given, dict):
        raise ConfigError(TEXT, given, "get_study() returns a dictionary")
    fields = {field.name: field for field in dataclasses.fields(Study)}
    for name in given:
        one_of(f"key of {TEXT}", name, fields)
    for name, field in fields.items():
        missing = field.default is field.default_factory is dataclasses.MISSING
        if name not in given and missing:
            raise ConfigError(f"{TEXT}.{name}", None, "must be given")
    typed = {name: _typed(name, value, fields[name].type) for name, value in given.items()}
    study = Study(**typed)
    _check(study)
    return study


def _typed(name: str, value: Any, hint: Any) -> Any:
    if hint is tuple and isinstance(value, list):
        value = tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise ConfigError(f"{TEXT}.{name}", value, f"must be {hint.__name__}")
    return value


def _check(study: Study) -> None:
    one_of(f"{TEXT}.grid", study.grid, GRIDS)
    for name in ("name", "arms", "sizes", "budgets", "seeds", "tasks"):
        if not getattr(study, name):
            raise ConfigError(f"{TEXT}.{name}", getattr(study, name), "must not be empty")
    for name in ("sizes", "budgets", "seeds", "tasks"):
        values = getattr(study, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"{TEXT}.{name}", values, "each one once")
    positive = ("batch_size", "lr", "ema_half_life", "optimum_size", "optimum_compute", "lr_width")
    for name in (*positive, "most_epochs"):
        _above_0(name, getattr(study, name))
    for budget in study.budgets:
        _above_0("budgets", budget)
    for seed in study.seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ConfigError(f"{TEXT}.seeds", seed, "whole, 0 <= seed < 2**32")
    if not 0 <= study.warmup < 1:
        raise ConfigError(f"{TEXT}.warmup", study.warmup, "a share of the steps, 0 <= value < 1")
    if study.factor < 1:
        raise ConfigError(f"{TEXT}.factor", study.factor, "at least 1")
    if study.least_steps < 1:
        raise ConfigError(f"{TEXT}.least_steps", study.least_steps, "at least 1")
    for name in study.sizes:
        family.size(name if isinstance(name, str) else repr(name))
    check_quality(study.quality, forced=study.quality == TRAIN_LOSS)
    _check_values("values", study.values)
    for arm, values in study.arms.items():
        if not isinstance(arm, str) or not arm.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{TEXT}.arms", arm, "a name of letters, digits, - and _")
        _check_values(f"arms.{arm}", values)
    for key in study.evaluation:
        if not isinstance(key, str) or not key.startswith("eval."):
            raise ConfigError(f"{TEXT}.evaluation", key, "a key of eval.*")


def _above_0(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{TEXT}.{name}", value, "a number above 0")


def _check_values(name: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{TEXT}.{name}", values, "a dictionary: key -> value")
    for key in values:
        if not isinstance(key, str) or key in RULED:
            rule = "a key of the configuration that sizes, seeds and rules do not set"
            raise ConfigError(f"{TEXT}.{name}", key, rule)
