"""Random numbers in tables: from a generator, or as a function of where an image stands.

The latter are SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a stream for each seed, position and
attempt, whose key is a hash of the three. A table of many images costs as many calls as one.
"""

from collections.abc import Callable

import numpy as np

from jepa_vl.shapes import Array

# (rows of the images, int [r]; number of the attempt; count) -> uniforms in [0, 1), float64
# [r, count]. A row's numbers do not depend on the other rows.
Uniforms = Callable[[Array, int, int], Array]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def from_generator(rng: np.random.Generator) -> Uniforms:
    """Numbers in the order in which they are asked for."""
    return lambda rows, attempt, count: rng.random((len(rows), count))


def from_places(seed: int, positions: Array) -> Uniforms:
    """Numbers that seed, position and attempt decide, whoever else is drawn with them.

    Args:
      seed: 0 <= seed < 2**64.
      positions: int [b] >= 0, of the images.
    """
    # Hashed twice: neighbouring seeds and positions share no part of their streams.
    keys = _mix(_mix(np.full(len(positions), seed, np.uint64)) + positions.astype(np.uint64))

    def uniforms(rows: Array, attempt: int, count: int) -> Array:
        start = _mix(keys[rows] + np.uint64(attempt))
        words = _mix(start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
        return (words >> np.uint64(11)) * 2.0**-53

    return uniforms


def _mix(x: Array) -> Array:
    """SplitMix64's finaliser of uint64 [...], a bijection."""
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
