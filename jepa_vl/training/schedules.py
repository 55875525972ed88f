"""Schedules as functions of the step, for the jitted step: no Python branch on a traced value.

``step`` counts updates already made, 0 for the first. I-JEPA advances its schedulers before the
first update, so learning rate and weight decay are read at t = step + 1 and the EMA momentum at
i = step.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jepa_vl.config import Config
from jepa_vl.shapes import Array


class Schedule(NamedTuple):
    """Values of one step, float32 scalars."""

    lr: Array
    weight_decay: Array
    momentum: Array
    ramp: Array


def _cosine(start: float, end: float, progress: Array) -> Array:
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


def at(config: Config, step: Array) -> Schedule:
    """The schedules of I-JEPA (linear warm-up and cosine; cosine decay; linear momentum) at a step.

    Args:
      config: resolved.
      step: int32 scalar.
    """
    o = config.optim
    length, warmup = config.train.steps * o.schedule_scale, o.warmup_steps
    total = int(length)  # the momentum alone uses the unrounded length, as the reference does
    i = jnp.asarray(step, jnp.float32)
    t = i + 1.0
    rising = o.start_lr + (o.lr - o.start_lr) * t / max(warmup, 1)
    falling = _cosine(o.lr, o.final_lr, (t - warmup) / max(total - warmup, 1))
    return Schedule(
        lr=jnp.where(t < warmup, rising, falling),
        weight_decay=_cosine(o.weight_decay, o.final_weight_decay, t / total),
        momentum=jnp.minimum(o.ema + i * (o.final_ema - o.ema) / length, 1.0),
        ramp=jnp.clip(i / max(config.loss.ramp_steps, 1), 0.0, 1.0),
    )
