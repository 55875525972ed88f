"""Another global batch in the middle of a run: progress is counted in images, steps follow.

The images come in one order, whatever the batch; a checkpoint of step s and batch B has seen s * B
of them. With batch B' the run goes on as step s * B / B', and what the configuration counts in
steps must count the same images as before.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.training.metrics import read_rows, write_rows
from jepa_vl.training.state import TrainState

IN_STEPS = (("train", "steps"), ("optim", "warmup_steps"), ("loss", "ramp_steps"))
SET_ASIDE = "checkpoints_batch"  # how folders of checkpoints of another batch begin


def continue_at(step: int, old: int, new: int) -> int:
    """The step of the same image with another batch.

    Raises:
      ConfigError: the new batch would begin in the middle of a step.
    """
    if step * old % new:
        rule = f"the checkpoint of step {step} has seen {step * old} images, no multiple of it"
        raise ConfigError("train.batch_size", new, rule)
    return step * old // new


def saved_as(saved: dict[str, Any], config: Config) -> dict[str, Any]:
    """The saved configuration, as it reads with the batch of another one.

    Raises:
      ConfigError: a number of steps cannot be expressed so.
    """
    out, old, new = copy.deepcopy(saved), saved["train"]["batch_size"], config.train.batch_size
    if old == new:
        return out
    for section, name in IN_STEPS:
        steps = saved[section][name]
        if steps * old % new:
            rule = f"{section}.{name} = {steps} steps of {old} images are no whole number of steps"
            raise ConfigError("train.batch_size", new, rule)
        out[section][name] = steps * old // new
    out["train"] |= {"batch_size": new, "micro_batches": config.train.micro_batches}
    return out


def renumber(state: TrainState, step: int) -> TrainState:
    """The same state as another step."""
    number = jax.device_put(np.asarray(step, state.step.dtype), state.step.sharding)
    return dataclasses.replace(state, step=number)


def set_aside(workdir: Path, step: int, old: int, new: int) -> None:
    """Takes the checkpoints of the old batch out of the way and renumbers metrics.jsonl.

    Args:
      workdir: of the run; no checkpoint is open.
      step: of the checkpoint that the run goes on from.
      old: batch before.
      new: batch from now on.
    """
    (workdir / "checkpoints").rename(workdir / f"{SET_ASIDE}{old}_step{step}")
    path = workdir / "metrics.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    for row in read_rows(path):
        if row["step"] <= step:
            number = row["step"] * old // new  # one row a step: later values of a name count
            rows[number] = rows.get(number, {}) | row | {"step": number}
    write_rows(path, rows.values())


def check_whole(workdir: Path) -> None:
    """For a workdir without a checkpoint: was it left so by a change of batch that was cut short?

    Raises:
      ConfigError: it was; says how to undo it.
    """
    left = sorted(path.name for path in workdir.glob(f"{SET_ASIDE}*"))
    if left:
        rule = f"a change of batch was cut short; rename its {left[-1]} to checkpoints"
        raise ConfigError("workdir", str(workdir), rule)
