"""The built-in data set: procedural scenes with captions, a label, masks and word-to-object links.

A scene has 2 or 3 objects that share one texture, the label, on a mosaic of grey tiles. Phases are
random and both tones of every texture cover one half, so that neither a histogram of colours nor
raw pixels tell the label: one has to see patterns, wherever they are. Colours, shapes, sizes and
places differ from object to object; shapes differ within a scene, so that a noun names one object.
Item i is a function of (seed, split, i) alone; the image size changes nothing but pixels.
"""

import hashlib
import operator
from typing import Any, SupportsIndex

import numpy as np

from jepa_vl.data.scenes import SHAPES, Scene, SceneObject, pick, random_scene, render, shuffled
from jepa_vl.data.textures import TEXTURES
from jepa_vl.shapes import Array

_VERSION = 4  # raise it whenever a pixel or a caption changes
_SPLITS = ("train", "val")
_CLEAR = (
    0.15  # least distance of centres, in sides, that a caption calls left, right, above or below
)
_MAX_WORDS = 16
_USUAL = 0.6  # chance of the first, usual word among synonyms
_COLOURED = 0.6  # chance that an object's phrase is sure to name its colour
_TRIES = 60  # captions made, among which are repeats and long ones, before the plain ones are taken

# What captions say. The first word of a row is the usual one; several words name the same object.
_WORDS = {
    "circle": ("circle", "disc", "disk"),
    "square": ("square", "box"),
    "triangle": ("triangle", "triangular shape"),
    "star": ("star", "star shape"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart", "heart shape"),
    "crescent": ("crescent", "moon"),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge"),
    "banded": ("banded", "layered"),
    "barred": ("barred", "fluted"),
    "slanted": ("slanted", "oblique"),
    "checkered": ("checkered", "chequered", "checked"),
    "dotted": ("dotted", "spotted"),
    "gridded": ("gridded", "latticed"),
    "speckled": ("speckled", "mottled", "blotchy"),
    "red": ("red", "crimson"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "grey": ("grey", "gray"),
}
_NUMBERS = ("", "one", "two", "three")

# Slots: {a0} and {the0} are phrases of the first object spoken of, {shape0}, {colour0}, ... single
# attributes, {list} all objects with adjectives, {nouns} without, {texture} what all share,
# {grain} the mosaic's, {count} a number. {texture}, {grain} and {count} name no single object.
_WHOLE = (
    "several {texture} shapes",
    "{count} {texture} shapes",
    "{count} {texture} shapes on a {grain} mosaic",
    "{texture} shapes on a {grain} mosaic",
    "a picture of {count} {texture} things",
    "a scene with {texture} shapes",
    "all of the {count} shapes are {texture}",
    "every shape is {texture}",
    "{count} {texture} shapes , {nouns}",
    "{texture} shapes , {nouns}",
    "{nouns} , each of them {texture}",
    "{nouns} are {texture}",
    "{list}",
    "a scene with {list}",
    "{list} on a {grain} mosaic",
)
_SINGLE = (
    "{a0}",
    "there is {a0}",
    "{a0} in the picture",
    "one of {count} shapes is {a0}",
    "the {shape0} is {colour0}",
    "the {shape0} is {colour0} and {texture0}",
    "the {colour0} {shape0} is {texture0}",
    "the {shape0} is {texture0}",
    "a {texture0} {shape0} in {colour0}",
    "a {size0} {colour0} {shape0}",
)
_PLAIN = (
    "the {shape0} is {texture0}",
    "the {shape0} is {colour0}",
    "the {shape0} is {size0}",
)  # 3 for each of 2 objects: >= 5
_RELATIONS = {
    "left": (
        "{a0} to the left of {a1}",
        "{the0} is to the left of {the1}",
        "{a0} left of {a1}",
        "{the0} has {a1} on its right",
    ),
    "right": (
        "{a0} to the right of {a1}",
        "{the0} is to the right of {the1}",
        "{a0} right of {a1}",
        "{the0} has {a1} on its left",
    ),
    "above": (
        "{a0} above {a1}",
        "{the0} is above {the1}",
        "{a0} higher up than {a1}",
        "{the0} has {a1} below it",
    ),
    "below": (
        "{a0} below {a1}",
        "{the0} is below {the1}",
        "{a0} lower down than {a1}",
        "{the0} has {a1} above it",
    ),
}

# A caption while it is made: words (or a comma) and the object that each one names, 0 for none.
_Words = list[tuple[str, int]]


class ShapesWorld:
    """Random-access source of scenes.

    Attributes:
      classes: names of the labels, in order.
      segment_classes: names of the numbers that :meth:`segments` gives.
      image_size: side of the images, pixels.
    """

    classes: tuple[str, ...] = tuple(TEXTURES)
    segment_classes: tuple[str, ...] = ("background", *SHAPES)

    def __init__(self, seed: int, length: int, image_size: int, split: str = "train"):
        """Names the scenes; none is made yet.

        Args:
          seed: names the world, at least 0.
          length: number of scenes.
          image_size: side of the images, pixels.
          split: "train" or "val"; they share no stream of scenes.

        Raises:
          ValueError: a value outside its range.
        """
        if split not in _SPLITS:
            raise ValueError(f"split = {split!r}: one of {', '.join(_SPLITS)}")
        if min(seed, length) < 0 or image_size < 1:
            raise ValueError(
                f"seed, length, image_size = {seed}, {length}, {image_size}: too small"
            )
        self.seed, self.length, self.image_size, self.split = seed, length, image_size, split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """``image`` [H, W, 3] uint8, ``captions`` (5 to 9), ``label`` int and ``key``, a name.

        Raises:
          IndexError: index not in [0, length).
        """
        item = self.annotate(index)
        return {name: item[name] for name in ("image", "captions", "label", "key")}

    def annotate(self, index: SupportsIndex) -> dict[str, Any]:
        """What ``self[index]`` holds, and the truth behind it.

        Returns:
          Also ``mask`` [H, W] uint8 (0 background, k where object k is seen), ``objects`` (a list
          of ``SceneObject`` in drawing order) and ``word_objects``: for each caption and each of
          its words (as ``captions.words`` splits it) the object that it names, from 1, 0 for none.

        Raises:
          IndexError: index not in [0, length).
        """
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        entropy = (self.seed, _SPLITS.index(self.split), index)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        scene = random_scene(rng)
        captions = _captions(scene, rng)
        image, mask = render(scene, self.image_size)
        return {
            "image": image,
            "captions": list(captions),
            "label": self.classes.index(scene.objects[0].texture),
            "key": self._key(index),
            "mask": mask,
            "objects": list(scene.objects),
            "word_objects": list(captions.values()),
        }

    def segments(self, index: SupportsIndex) -> Array:
        """The shape that is seen at each pixel: uint8 [H, W], numbered as ``segment_classes``.

        Raises:
          IndexError: index not in [0, length).
        """
        item = self.annotate(index)
        shapes = [self.segment_classes.index(thing.shape) for thing in item["objects"]]
        return np.array([0, *shapes], np.uint8)[item["mask"]]

    @property
    def segmented(self) -> Array:
        """Each scene has a mask: bool [length]."""
        return np.ones(self.length, bool)

    def _key(self, index: int) -> str:
        return f"{self.split}-{index:08d}"

    @property
    def keys(self) -> list[str]:
        """Of all scenes, none of which is drawn for it."""
        return [self._key(index) for index in range(self.length)]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the generator's version and all arguments."""
        text = f"{_VERSION} {self.seed} {self.split} {self.length} {self.image_size}"
        return hashlib.sha256(f"shapes_world {text}".encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The source and its split."""
        return f"shapes_world/{self.split}"


def _captions(scene: Scene, rng: np.random.Generator) -> dict[str, list[int]]:
    """5 to 9 different captions, each with the object that every word names."""
    makers = (_whole, _single, _relation) if _related(scene) else (_whole, _single)
    count = 5 + int(rng.random() * 5)
    out: dict[str, list[int]] = {}
    for _ in range(_TRIES):
        if len(out) == count:
            return out
        _keep(makers[len(out) % len(makers)](scene, rng), out)
    for template in _PLAIN:
        for number in range(len(scene.objects)):
            if len(out) < 5:
                _keep(_fill(template, scene, rng, [number], 0), out)
    return out


def _keep(said: _Words, out: dict[str, list[int]]) -> None:
    """Adds a caption that is neither too long nor there already."""
    named = [number for word, number in said if word != ","]
    if len(named) <= _MAX_WORDS:
        out.setdefault(" ".join(word for word, _ in said).replace(" ,", ","), named)


def _whole(scene: Scene, rng: np.random.Generator) -> _Words:
    order = shuffled(rng, range(len(scene.objects)))
    return _fill(pick(rng, _WHOLE), scene, rng, order, 2)


def _single(scene: Scene, rng: np.random.Generator) -> _Words:
    return _fill(pick(rng, _SINGLE), scene, rng, [pick(rng, range(len(scene.objects)))], 3)


def _relation(scene: Scene, rng: np.random.Generator) -> _Words:
    first, second, relation = pick(rng, _related(scene))
    return _fill(pick(rng, _RELATIONS[relation]), scene, rng, [first, second], 3)


def _related(scene: Scene) -> list[tuple[int, int, str]]:
    """Pairs of objects and where the first is, seen from the second, along the clearer axis."""
    out = []
    for i, a in enumerate(scene.objects):
        for j, b in enumerate(scene.objects):
            dx, dy = a.x - b.x, a.y - b.y
            if abs(dx) >= max(_CLEAR, abs(dy)):
                out.append((i, j, "left" if dx < 0 else "right"))
            elif abs(dy) >= _CLEAR:
                out.append((i, j, "above" if dy < 0 else "below"))
    return out


def _fill(
    template: str, scene: Scene, rng: np.random.Generator, spoken: list[int], detail: int
) -> _Words:
    """Fills a template; ``spoken`` are the objects by slot, ``detail`` is as in ``_phrase``."""
    shared = {
        "{count}": _NUMBERS[len(scene.objects)],
        "{grain}": scene.background.kind,
    }
    out: _Words = []
    for token in template.split():
        if token in ("{list}", "{nouns}"):
            for place, number in enumerate(spoken):
                if place:
                    out.append(("and" if place == len(spoken) - 1 else ",", 0))
                item = scene.objects[number]
                out += _phrase("a", item, number + 1, rng, detail if token == "{list}" else 0)
        elif token == "{texture}":
            out += [(word, 0) for word in _said(scene.objects[0].texture, rng)]
        elif not token.startswith("{") or token in shared:
            out.append((shared.get(token, token), 0))
        else:
            kind, number = token[1:-2], spoken[int(token[-2])]
            item = scene.objects[number]
            if kind in ("a", "the"):
                out += _phrase(kind, item, number + 1, rng, detail)
            else:
                out += [(word, number + 1) for word in _said(getattr(item, kind), rng)]
    return out


def _phrase(
    article: str, item: SceneObject, number: int, rng: np.random.Generator, detail: int
) -> _Words:
    """An article, 1 to ``detail`` adjectives, or none if it is 0, and the noun."""
    kept = shuffled(rng, ("size", "texture", "colour"))
    if rng.random() < _COLOURED:
        kept.sort(key=lambda kind: kind != "colour")
    kept = kept[: min(detail, 1 + int(rng.random() * detail))]
    kept.sort(key=lambda kind: kind != "size")  # size comes first, colour and texture in any order
    said = [word for kind in (*kept, "shape") for word in _said(getattr(item, kind), rng)]
    if article == "a" and said[0][0] in "aeiou":
        article = "an"
    return [(article, 0), *((word, number) for word in said)]


def _said(attribute: str, rng: np.random.Generator) -> list[str]:
    """An attribute in the usual words, or in others."""
    ways = _WORDS.get(attribute, (attribute,))
    usual = len(ways) == 1 or rng.random() < _USUAL
    return (ways[0] if usual else pick(rng, ways[1:])).split()


def attribute(word: str, item: SceneObject) -> str:
    """Which attribute of an object a word names: shape, colour, size, texture or none ("")."""
    for kind in ("shape", "colour", "size", "texture"):
        name = getattr(item, kind)
        if any(word in way.split() for way in _WORDS.get(name, (name,))):
            return kind
    return ""
