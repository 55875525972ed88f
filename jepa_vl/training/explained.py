"""How much of the targets a predictor explains: its squared error beside the mean target's."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jepa_vl.objectives.base import Predicted, masked_pool
from jepa_vl.shapes import Array

CONSTANT = 1e-6  # share of the targets' square that is rounding of float32, not spread


def summary(found: Predicted) -> dict[str, Array]:
    """What is kept of the predictions of a batch of B images.

    Returns:
      ``pooled`` [B, D], the mean prediction of each image; ``distance`` [B], its mean, as in the
      loss; and over all valid tokens ``count``, ``mean`` [D] of the targets, ``spread`` and
      ``error``: sums of squares of targets about that mean, and of predictions about targets.
    """
    rows, width = found.targets.shape[0], found.targets.shape[-1]
    prediction, targets = (x.reshape(rows, -1, width) for x in (found.prediction, found.targets))
    distance = found.distance.reshape(rows, -1)
    valid = jnp.ones(distance.shape, bool) if found.valid is None else found.valid
    valid = valid.reshape(rows, -1)
    weight = valid.astype(jnp.float32)
    count = jnp.sum(weight)
    mean = jnp.einsum("bt,btd->d", weight, targets) / jnp.maximum(count, 1.0)

    def squares(x: Array) -> Array:
        return jnp.sum(weight * jnp.sum(jnp.square(x), axis=-1))

    return {
        "pooled": masked_pool(prediction, valid),
        "distance": masked_pool(distance[..., None], valid)[:, 0],
        "count": count,
        "mean": mean,
        "spread": squares(targets - mean),
        "error": squares(prediction - targets),
    }


def unexplained(parts: Sequence[dict[str, Any]]) -> float:
    """1 - R^2: the predictor's squared error over that of the mean target; 1 is predicting it.

    Args:
      parts: :func:`summary` of batches, on the host. Their spreads are put together about the mean
        of all, without a difference of large numbers.
    """
    count, spread, error = (
        np.array([part[name] for part in parts], np.float64)
        for name in ("count", "spread", "error")
    )
    means = np.array([part["mean"] for part in parts], np.float64)
    total = max(count.sum(), 1.0)
    mean = count @ means / total
    whole = spread.sum() + count @ np.square(means - mean).sum(axis=1)
    square = whole + total * np.square(mean).sum()
    return float(error.sum() / max(whole, CONSTANT * square, 1e-30))
