"""Is a step's loss a spike? A robust z-score against the losses before it, inside the step.

The losses are part of the train state: no host waits for them, a resumed run judges as the
unbroken one, and every mesh judges alike.
"""

import jax.numpy as jnp

from jepa_vl.shapes import Array

WINDOW = 64  # losses that are remembered
LEAST = 32  # with fewer nothing is called a spike
MAD = 1.4826  # median absolute deviation of a normal distribution -> its standard deviation
FLOOR = 1e-3  # of the median: a loss that hardly moves has no deviations to speak of


def no_losses() -> Array:
    """float32 [WINDOW] of NaN, before the first step."""
    return jnp.full((WINDOW,), jnp.nan, jnp.float32)


def score(loss: Array, recent: Array) -> Array:
    """How many robust standard deviations a loss lies above the median of those before it.

    Args:
      loss: float32 scalar.
      recent: float32 [WINDOW], NaN where there is none yet.

    Returns:
      float32 scalar; 0 while there are too few to tell.
    """
    median = jnp.nanmedian(recent)
    deviation = MAD * jnp.nanmedian(jnp.abs(recent - median))
    deviation = jnp.maximum(deviation, FLOOR * jnp.abs(median))
    enough = jnp.sum(jnp.isfinite(recent)) >= LEAST
    return jnp.where(enough, (loss - median) / jnp.maximum(deviation, 1e-12), 0.0)


def remember(loss: Array, recent: Array) -> Array:
    """The window with one more loss. A spike is remembered too, so that a new level becomes usual.

    A loss that is not finite is not remembered.
    """
    moved = jnp.concatenate([loss.astype(jnp.float32)[None], recent[:-1]])
    return jnp.where(jnp.isfinite(loss), moved, recent)
