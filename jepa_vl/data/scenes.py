"""Scenes of coloured shapes drawn at random and rendered at any size, with numpy alone.

Lengths are in units of the image side, x to the right, y down, so that a scene knows nothing of
pixels. A shape is a signed-distance function (negative inside); coverage falls from 1 to 0 over
one pixel at its edge. Arrays see only operations that IEEE 754 rounds the same everywhere
(``+ - * / sqrt``, comparisons): sines come from ``math``, rounded, as vectorised ones differ
between processors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from jepa_vl.shapes import Array

T = TypeVar("T")
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

COLOURS: dict[str, Colour] = {
    "red": (0.88, 0.12, 0.14),
    "green": (0.16, 0.70, 0.20),
    "blue": (0.14, 0.26, 0.92),
    "yellow": (0.96, 0.88, 0.12),
    "purple": (0.58, 0.14, 0.74),
    "orange": (0.98, 0.52, 0.06),
    "cyan": (0.14, 0.84, 0.90),
    "white": (0.95, 0.95, 0.95),
}
TEXTURES = ("solid", "striped", "dotted", "checkered")
BACKGROUNDS = ("plain", "gradient", "textured")

BOUND = 1.58  # every shape of radius 1 fits in the disc of this radius, however it is turned
_RADII = {"small": (0.075, 0.09), "medium": (0.105, 0.125), "large": (0.20, 0.25)}
_GAP = 1.2  # sum of radii to distance of centres: tips may touch, bodies do not
_TRIES = 30  # places tried for an object before the scene goes without it
_SHADE = 0.5  # the second tone of a texture is the colour times this
_PERIOD = (0.05, 0.12)  # of stripes, dots and checks: the first plus radius times the second
_LATTICE = 9  # nodes along a side of a textured background


@dataclass(frozen=True)
class SceneObject:
    """One object; lengths in units of the image side, angles in radians."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float  # centre
    y: float
    radius: float  # of the disc with the same area, so that area tells nothing about the shape
    tilt: float  # of the outline
    grain: float  # of the texture
    tint: Colour  # the colour as drawn, slightly off its name's


@dataclass(frozen=True)
class Background:
    """What lies behind the objects, in muted colours."""

    kind: str
    colour: Colour
    other: Colour  # the far end of a gradient
    angle: float  # of the gradient
    lattice: tuple[float, ...]  # [_LATTICE ** 2], brightness added at the nodes of a texture


@dataclass(frozen=True)
class Scene:
    """A background and its objects in drawing order; the first is the main one."""

    background: Background
    objects: tuple[SceneObject, ...]


# Only ``random`` is drawn from the generator: numpy keeps its stream from version to version.


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, each as likely."""
    return items[int(rng.random() * len(items))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn evenly from a range."""
    return low + (high - low) * rng.random()


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """All items in random order."""
    keys = rng.random(len(items)).tolist()
    return [item for _, item in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0])]


def _near(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """A colour whose channels differ by up to the spread."""
    r, g, b = (min(1.0, max(0.0, c + spread * (2 * rng.random() - 1))) for c in colour)
    return r, g, b


def random_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene of 1 to 4 objects of different shapes; the first alone is large."""
    grey = between(rng, 0.18, 0.42)
    muted = _near(rng, (grey, grey, grey), 0.05)
    grey += 0.15 if grey < 0.3 else -0.15
    other = _near(rng, (grey, grey, grey), 0.05)
    lattice = tuple((0.16 * (rng.random(_LATTICE**2) - 0.5)).tolist())
    angle = between(rng, -math.pi, math.pi)
    background = Background(pick(rng, BACKGROUNDS), muted, other, angle, lattice)
    shapes = shuffled(rng, tuple(SHAPES))[: 1 + int(rng.random() * 4)]
    objects: list[SceneObject] = []
    for shape in shapes:
        # Finding a place depends on radii alone: the number of objects must not tell the label.
        size = pick(rng, ("small", "medium")) if objects else "large"
        radius = between(rng, *_RADII[size])
        edge = BOUND * radius
        for _ in range(_TRIES):
            x, y = between(rng, edge, 1 - edge), between(rng, edge, 1 - edge)
            gaps = (math.hypot(o.x - x, o.y - y) - _GAP * (o.radius + radius) for o in objects)
            if min(gaps, default=0) >= 0:
                colour, texture = pick(rng, tuple(COLOURS)), pick(rng, TEXTURES)
                tilt, grain = between(rng, -0.35, 0.35), between(rng, 0, math.pi)
                tint = _near(rng, COLOURS[colour], 0.04)
                objects.append(
                    SceneObject(shape, colour, size, texture, x, y, radius, tilt, grain, tint)
                )
                break
    return Scene(background, tuple(objects))


def render(scene: Scene, image_size: int) -> tuple[Array, Array]:
    """Draws a scene.

    Args:
      scene: what to draw.
      image_size: side of the image, pixels.

    Returns:
      The image ``[H, W, 3] uint8`` and the mask ``[H, W] uint8``: k where object k (from 1, in
      drawing order) is seen, 0 where the background is.
    """
    canvas = _background(scene.background, image_size)
    mask = np.zeros((image_size, image_size), np.uint8)
    for number, item in enumerate(scene.objects, 1):
        reach = item.radius * BOUND + 1 / image_size
        box = (_span(item.y, reach, image_size), _span(item.x, reach, image_size))
        ys, xs = _offsets(item.y, box[0], image_size), _offsets(item.x, box[1], image_size)
        coverage, shade = _cover(item, xs, ys[:, None], image_size)
        patch = canvas[box]
        tint = np.asarray(item.tint, np.float32)
        patch += coverage[:, :, None] * (shade[:, :, None] * tint - patch)
        mask[box][coverage >= 0.5] = number
    return (canvas * np.float32(255) + np.float32(0.5)).astype(np.uint8), mask


def _span(centre: float, reach: float, size: int) -> slice:
    """Pixels along one axis that an object may touch."""
    start, stop = math.floor((centre - reach) * size), math.ceil((centre + reach) * size)
    return slice(max(0, start), min(size, stop))


def _offsets(centre: float, span: slice, size: int) -> Array:
    """Places of the pixels' centres relative to an object's centre: ``[n] f32``."""
    return ((np.arange(span.start, span.stop) + 0.5) / size - centre).astype(np.float32)


def _cover(item: SceneObject, xs: Array, ys: Array, size: int) -> tuple[Array, Array]:
    """Coverage and brightness of an object on a grid, both ``[h, w] f32`` in [0, 1]."""
    u, v = _turned(xs, ys, item.tilt, 1 / item.radius)
    distance = SHAPES[item.shape](u, v)
    coverage = _soft(distance, item.radius * size)
    if item.texture == "solid":
        return coverage, np.ones_like(coverage)
    period = _PERIOD[0] + _PERIOD[1] * item.radius
    u, v = _turned(xs, ys, item.tilt + item.grain, 1 / period)
    dark = _soft(_PATTERNS[item.texture](u, v), period * size)
    return coverage, 1 - np.float32(1 - _SHADE) * dark


def _soft(distance: Array, scale: float) -> Array:
    """Coverage of a pixel whose centre lies ``distance * scale`` pixels outside an edge."""
    return np.clip(np.float32(0.5) - distance * np.float32(scale), 0, 1)


def _turned(xs: Array, ys: Array, angle: float, scale: float) -> tuple[Array, Array]:
    """Coordinates in a frame turned by an angle, times a scale: two ``[h, w] f32``."""
    cos, sin = (np.float32(round(f(angle), 6) * scale) for f in (math.cos, math.sin))
    return xs * cos + ys * sin, ys * cos - xs * sin


def _background(background: Background, size: int) -> Array:
    """``[H, W, 3] f32`` in [0, 1]."""
    colour = np.asarray(background.colour, np.float32)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = colour
    places = ((np.arange(size) + 0.5) / size).astype(np.float32)
    if background.kind == "gradient":
        along, _ = _turned(places - 0.5, places[:, None] - 0.5, background.angle, math.sqrt(0.5))
        canvas += (along + np.float32(0.5))[:, :, None] * (
            np.asarray(background.other, np.float32) - colour
        )
    elif background.kind == "textured":
        nodes = np.asarray(background.lattice, np.float32).reshape(_LATTICE, _LATTICE)
        low = (places * (_LATTICE - 1)).astype(np.intp)
        part = places * (_LATTICE - 1) - low.astype(np.float32)
        part = part * part * (3 - 2 * part)
        rows = nodes[low] + part[:, None] * (nodes[low + 1] - nodes[low])
        canvas += (rows[:, low] + part * (rows[:, low + 1] - rows[:, low]))[:, :, None]
    return canvas


# Shapes: signed distance (exact near the edges, corners apart) at u to the right, v down, in a
# frame where the shape's area is pi. tests/test_shapes_world.py holds the areas equal.


def _circle(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - 1


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.8862


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(v, 0.8660 * np.abs(u) - 0.5 * v) - 0.7776


def _star(u: Array, v: Array) -> Array:
    # Folds the plane into the sector of the upper tip, where the edge is one line.
    x, y = np.abs(u), -v
    fold = 2 * np.maximum(0.8090 * x - 0.5878 * y, 0)
    x, y = x - 0.8090 * fold, y + 0.5878 * fold
    fold = 2 * np.maximum(-0.8090 * x - 0.5878 * y, 0)
    x, y = np.abs(x + 0.8090 * fold), y + 0.5878 * fold
    # The tip is at (0, 1.4621), the notch at half that distance, 36 degrees further.
    return (1.4621 - y) * -0.4425 + x * 0.8968


def _cross(u: Array, v: Array) -> Array:
    x, y = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(x, y) - 1.1534, np.minimum(x, y) - 0.4152)


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - 0.8660) - 0.2887


def _heart(u: Array, v: Array) -> Array:
    # A square on its corner and two half discs upon its upper sides.
    x, y = np.abs(u), 0.1876 - v
    diamond = (x + np.abs(y)) * 0.7071 - 0.6633
    x, y = x - 0.4690, y - 0.4690
    return np.minimum(diamond, np.sqrt(x * x + y * y) - 0.6633)


def _crescent(u: Array, v: Array) -> Array:
    # A disc less a smaller one to its right.
    outer, inner, square = u - 0.215, u - 0.9316, v * v
    disc = np.sqrt(outer * outer + square) - 1.4332
    return np.maximum(disc, 1.1466 - np.sqrt(inner * inner + square))


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}


# Patterns: signed distance to the dark tone, in periods.


def _wave(t: Array) -> Array:
    """Triangle wave of period 1 and slope 1, from -1/4 to 1/4."""
    return np.abs(t - np.floor(t) - 0.5) - 0.25


def _stripes(u: Array, v: Array) -> Array:
    del u
    return _wave(v)


def _dots(u: Array, v: Array) -> Array:
    x, y = _wave(u) + 0.25, _wave(v) + 0.25
    return np.sqrt(x * x + y * y) - 0.3


def _checks(u: Array, v: Array) -> Array:
    x, y = _wave(u * 0.7), _wave(v * 0.7)
    return np.where((x < 0) == (y < 0), -1, 1) * np.minimum(np.abs(x), np.abs(y)) / np.float32(0.7)


_PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "striped": _stripes,
    "dotted": _dots,
    "checkered": _checks,
}
