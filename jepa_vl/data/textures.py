"""Two-tone textures as signed-distance functions, of operations that round the same everywhere.

A texture gives the signed distance to its dark tone, in periods, at u and v, also in periods and
turned, from the object's centre; p and q are phases in [0, 1). Both tones cover one half, so that
objects of every texture are equally bright on average.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jepa_vl.shapes import Array

Phase = np.float32
_NOISE = 32  # nodes along a side of the noise of speckles, which repeats
_NODES = np.random.Generator(np.random.Philox(0)).random((_NOISE, _NOISE)).astype(np.float32) - 0.5


def _wave(t: Array) -> Array:
    """Triangle wave of period 1 and slope 1, from -1/4 to 1/4."""
    return np.abs(t - np.floor(t) - 0.5) - 0.25


def _striped(u: Array, v: Array, p: Phase, q: Phase) -> Array:
    del u, q
    return _wave(v + p)


def _checkered(u: Array, v: Array, p: Phase, q: Phase) -> Array:
    x, y = _wave(u * 0.65 + p), _wave(v * 0.65 + q)
    return np.where((x < 0) == (y < 0), -1, 1) * np.minimum(np.abs(x), np.abs(y)) / np.float32(0.65)


def _dotted(u: Array, v: Array, p: Phase, q: Phase) -> Array:
    x, y = _wave(u + p) + 0.25, _wave(v + q) + 0.25
    return np.sqrt(x * x + y * y) - 0.3989


def _gridded(u: Array, v: Array, p: Phase, q: Phase) -> Array:
    return 0.1036 - np.maximum(_wave(u + p), _wave(v + q))


def _speckled(u: Array, v: Array, p: Phase, q: Phase) -> Array:
    x, y = u * 2 + p * _NOISE, v * 2 + q * _NOISE
    i, j = np.floor(x), np.floor(y)
    x, y = x - i, y - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    i, j = i.astype(np.intp) % _NOISE, j.astype(np.intp) % _NOISE
    right, below = (i + 1) % _NOISE, (j + 1) % _NOISE
    upper = _NODES[j, i] + x * (_NODES[j, right] - _NODES[j, i])
    lower = _NODES[below, i] + x * (_NODES[below, right] - _NODES[below, i])
    return upper + y * (lower - upper)


class Texture(NamedTuple):
    """A texture: its signed distance, and the direction of its lines, radians from x to y."""

    distance: Callable[[Array, Array, Phase, Phase], Array]
    angle: float


TEXTURES: dict[str, Texture] = {
    "banded": Texture(_striped, 0.0),
    "barred": Texture(_striped, math.pi / 2),
    "hatched": Texture(_striped, math.pi / 4),
    "slanted": Texture(_striped, -math.pi / 4),
    "checkered": Texture(_checkered, 0.0),
    "dotted": Texture(_dotted, 0.0),
    "gridded": Texture(_gridded, 0.0),
    "speckled": Texture(_speckled, 0.0),
}
