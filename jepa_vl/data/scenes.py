"""Scenes of coloured shapes drawn at random and rendered at any size, with numpy alone.

Lengths are in units of the image side, x to the right, y down, so that a scene knows nothing of
pixels. A shape is a signed-distance function (negative inside); a pixel belongs to it if its centre
does. Arrays see only operations that IEEE 754 rounds the same everywhere (``+ - * / sqrt``,
comparisons): sines come from ``math``, rounded, as vectorised ones differ between processors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from jepa_vl.data.textures import TEXTURES
from jepa_vl.shapes import Array

T = TypeVar("T")
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

# Pale, so that colour, which says nothing about the label, does not drown the textures.
COLOURS: dict[str, Colour] = {
    "red": (0.649, 0.572, 0.579),
    "green": (0.579, 0.635, 0.586),
    "blue": (0.572, 0.579, 0.649),
    "yellow": (0.635, 0.621, 0.544),
    "purple": (0.607, 0.565, 0.628),
    "orange": (0.649, 0.60, 0.551),
    "cyan": (0.551, 0.621, 0.628),
    "grey": (0.60, 0.60, 0.60),
}
TILES = {"fine": 16, "coarse": 12}  # of a mosaic, along a side

BOUND = 1.58  # every shape of radius 1 fits in the disc of this radius, however it is turned
_REACH = {  # the same for each shape alone
    "circle": 1.0, "square": 1.26, "triangle": 1.56, "star": 1.47,
    "cross": 1.23, "ring": 1.08, "heart": 1.22, "crescent": 1.58,
}  # fmt: skip
_RADII = {"small": (0.14, 0.16), "large": (0.17, 0.185)}
_AREA = (0.19, 0.25)  # of all objects, where _TRIES draws of their sizes find it
_TRIES = 20  # at a place for an object, and at the sizes of all
_LAYOUTS = 150  # tried before the scene goes without its last objects
_GAP = 0.015  # least distance of two bodies; a body is halfway between the disc and the reach
_EDGE = 0.008  # least distance of an object from the edge
_SPOTS = ((0.3, 0.3), (0.7, 0.7))  # for the first two objects if nothing else is found
_SHADE = 0.4  # a texture's dark tone is the colour times this
_TONES = (0.4, 0.8)  # of tiles, about as dark and as light as objects
_TURN = 0.2  # radians that a texture may be turned off its own direction
_PERIOD = (0.082, 0.1)  # of the textures


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
    grain: float  # angle of the texture
    period: float  # of the texture
    phase: tuple[float, float]  # of the texture, in [0, 1)
    tint: Colour  # the colour as drawn, slightly off its name's


@dataclass(frozen=True)
class Background:
    """A mosaic of square grey tiles, each as light or dark as chance has it."""

    kind: str  # of TILES
    tiles: tuple[float, ...]  # brightness in [0, 1], row-major


@dataclass(frozen=True)
class Scene:
    """A background and its 2 or 3 objects in drawing order, all of one texture."""

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
    """Draws a scene of 2 or 3 objects of different shapes and one texture."""
    texture = pick(rng, tuple(TEXTURES))
    kind = pick(rng, tuple(TILES))
    background = Background(kind, tuple(between(rng, *_TONES) for _ in range(TILES[kind] ** 2)))
    shapes = shuffled(rng, tuple(SHAPES))[: 2 + int(rng.random() * 2)]
    sized = _sizes(rng, len(shapes))
    reaches = [(radius, _REACH[s] * radius) for s, (_, radius) in zip(shapes, sized, strict=True)]
    objects: list[SceneObject] = []
    # Fewer places than shapes are found in very few scenes: the last shapes are left out.
    for shape, (size, radius), (x, y) in zip(shapes, sized, _places(rng, reaches), strict=False):
        colour = pick(rng, tuple(COLOURS))
        tilt, turn = between(rng, -0.35, 0.35), between(rng, -_TURN, _TURN)
        period, phase = between(rng, *_PERIOD), (rng.random(), rng.random())
        tint, grain = _near(rng, COLOURS[colour], 0.04), TEXTURES[texture].angle + turn
        objects.append(
            SceneObject(
                shape, colour, size, texture, x, y, radius, tilt, grain, period, phase, tint
            )
        )
    return Scene(background, tuple(objects))


def _sizes(rng: np.random.Generator, count: int) -> list[tuple[str, float]]:
    """Sizes and radii, the largest first, of objects that cover as much as they should."""
    sized: list[tuple[str, float]] = []
    for _ in range(_TRIES):
        names = [pick(rng, tuple(_RADII)) for _ in range(count)]
        sized = sorted(((n, between(rng, *_RADII[n])) for n in names), key=lambda pair: -pair[1])
        if _AREA[0] <= math.pi * sum(radius * radius for _, radius in sized) <= _AREA[1]:
            break
    return sized


def _places(
    rng: np.random.Generator, reaches: Sequence[tuple[float, float]]
) -> Sequence[tuple[float, float]]:
    """Random centres for objects of given radii and reaches, or two spots if they do not fit."""
    for _ in range(_LAYOUTS):
        placed: list[tuple[float, float, float]] = []
        for radius, reach in reaches:
            body, edge = (radius + reach) / 2, reach + _EDGE
            for x, y in (edge + (1 - 2 * edge) * rng.random((_TRIES, 2))).tolist():
                for a, b, c in placed:
                    least = body + c + _GAP
                    if (x - a) * (x - a) + (y - b) * (y - b) < least * least:
                        break
                else:
                    placed.append((x, y, body))
                    break
            else:
                break
        if len(placed) == len(reaches):
            return [(x, y) for x, y, _ in placed]
    return _SPOTS


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
    coverage = _soft(SHAPES[item.shape](u, v), item.radius * size)
    u, v = _turned(xs, ys, item.grain, 1 / item.period)
    p, q = (np.float32(phase) for phase in item.phase)
    dark = _soft(TEXTURES[item.texture].distance(u, v, p, q), item.period * size)
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
    side = TILES[background.kind]
    tiles = np.asarray(background.tiles, np.float32).reshape(side, side)
    place = (2 * np.arange(size) + 1) * side // (2 * size)
    return np.repeat(tiles[place[:, None], place][:, :, None], 3, axis=2)


# Shapes: signed distance (exact near the edges, corners apart) at u to the right, v down, in a
# frame where the shape's area is pi. tests/test_scenes.py holds the areas equal.


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
    return np.abs(np.sqrt(u * u + v * v) - 0.7440) - 0.3360


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
