"""How sure a share of right images is: the bootstrap over held-out images.

It tells what other held-out images of the same kind would have changed; neither what another seed
of the training, nor what other training images would.
"""

import numpy as np

from jepa_vl.shapes import Array

RESAMPLES, LEVEL = 1000, 0.95
WORDS = f"percentiles of {RESAMPLES:,} resamples of the held-out images, {LEVEL:.0%}"
SEED = 0x626F6F74  # the same resamples for all scores of a number of images: differences are paired
PART = 50  # resamples made at a time; bounds the memory


def resampled(values: Array) -> Array:
    """Means over resampled images.

    Args:
      values: [S, m], of m images.

    Returns:
      float64 [RESAMPLES, S].
    """
    rng, count = np.random.default_rng(SEED), values.shape[1]
    columns = np.asarray(values, np.float64).T
    rows = np.arange(PART)[:, None] * count
    out = []
    for _ in range(RESAMPLES // PART):
        drawn = rng.integers(count, size=(PART, count)) + rows
        times = np.bincount(drawn.ravel(), minlength=PART * count).reshape(PART, count)
        out.append(times @ columns / count)
    return np.concatenate(out)


def intervals(values: Array) -> list[tuple[float, float]]:
    """Low and high end of the mean of each row: values [S, m] -> S pairs."""
    return [ends(drawn) for drawn in resampled(values).T]


def ends(drawn: Array) -> tuple[float, float]:
    """Low and high end, between which :data:`LEVEL` of the resampled numbers [RESAMPLES] lie."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
