"""Do words look at what they name? The pointing game and IoU of word-to-patch maps and masks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import masking, naming
from jepa_vl.data.captions import CaptionReader
from jepa_vl.evaluators import intervals, wordmaps
from jepa_vl.evaluators.base import JOINT, Measured, Measures, register
from jepa_vl.evaluators.joint import Joint
from jepa_vl.evaluators.truths import Scene, scenes
from jepa_vl.evaluators.wordmaps import WordMaps, points_at
from jepa_vl.shapes import Array, PyTree

DRAWS = 16  # masks an image
HALF = 0.5  # of a map's range, from which on a patch is taken
BLOB = 0.25  # of the grid: standard deviation of the prior that looks at the centre

# batch of ``image`` and captions, numbers of its rows -> maps
Draw = Callable[[dict[str, Array], Sequence[int]], WordMaps]


def taken(heat: Array) -> Array:
    """bool [G, G]: patches at half of the range of a map, or above; none of a map that is flat."""
    low, high = heat.min(), heat.max()
    return heat >= low + HALF * (high - low) if high > low else np.zeros(heat.shape, bool)


def iou(heat: Array, own: Array) -> float:
    """Intersection over union of the patches that a map takes and those of the object."""
    mine = taken(heat)
    both, either = np.logical_and(mine, own), np.logical_or(mine, own)
    return float(both.sum() / either.sum())


def centre_prior(grid: int) -> Array:
    """A map that looks at the middle, whatever the word: [G, G]."""
    place = np.arange(grid) - grid // 2
    line = np.exp(-0.5 * (place / (BLOB * grid)) ** 2)
    return line[:, None] * line


def play(draw: Draw, reader: CaptionReader, found: Sequence[Scene], size: int) -> list[dict]:
    """Every word of every scene, in their order: who points at what it names, and with which IoU.

    Args:
      draw: gives maps.
      reader: of the captions.
      found: at least two scenes. Another image, and other captions, are those of the scene before.
      size: images a batch.

    Returns:
      For each word ``scene`` (its place in ``found``), ``kind``, ``chance`` (share of the patches
      that are its object's), and pairs (points, IoU): ``maps``; ``visible`` and ``predicted``, of
      patches that the encoder saw and of those to be predicted; ``another_image``, the maps of the
      same captions on another image; ``shuffled_captions``, the map that a naming word of another
      image's captions has on this one; ``centre``.
    """
    out: list[dict] = []
    encoded = [reader.encode_all(scene.texts) for scene in found]
    for start in range(0, len(found), size):
        places = list(range(start, min(start + size, len(found))))
        rows = places + places[-1:] * (size - len(places))
        before = [(row or len(found)) - 1 for row in rows]
        batch = {name: np.stack([encoded[row][name] for row in rows]) for name in encoded[0]}
        other = {name: np.stack([encoded[row][name] for row in before]) for name in encoded[0]}
        images = np.stack([found[row].image for row in rows])
        own = draw({**batch, "image": images}, rows)
        moved = draw({**batch, "image": np.stack([found[row].image for row in before])}, rows).both
        swapped = draw({**other, "image": images}, rows).both
        for i, place in enumerate(places):
            scene, stranger = found[place], found[before[i]]
            maps = [_by_word(reader, scene.texts, part[i]) for part in (*own, moved)]
            theirs = _by_word(reader, stranger.texts, swapped[i])
            for number, word in enumerate(scene.words):
                at = stranger.words[number % len(stranger.words)]
                heats = [_mean(part[word.row], word.places) for part in maps]
                heats += [_mean(theirs[at.row], at.places), centre_prior(len(word.own))]
                names = ("maps", "visible", "predicted", "another_image", "shuffled_captions")
                pairs = zip((*names, "centre"), heats, strict=True)
                out.append({
                    "scene": place, "kind": word.kind, "chance": float(word.own.mean()),
                    **{n: (points_at(heat, word.own), iou(heat, word.own)) for n, heat in pairs},
                })  # fmt: skip
    return out


def _by_word(reader: CaptionReader, texts: Sequence[str], maps: Array) -> list[Array]:
    """Maps of the words of each caption: [W, G, G] each, of [N, S, G, G]."""
    return [wordmaps.by_word(reader, text, maps[row])[1] for row, text in enumerate(texts)]


def _mean(maps: Array, places: Sequence[int]) -> Array:
    """The map of a run of words; of words beyond the caption's kept end it is dark."""
    kept = [place for place in places if place < len(maps)]
    return maps[kept].mean(axis=0) if kept else np.zeros(maps.shape[1:], np.float32)


@register("grounding")
class Grounding(Measures):
    """Pointing game and IoU of the words that name an object, beside three habits of place."""

    reads = JOINT

    def __init__(self, config: Config, joint: Joint):
        """Takes an objective whose words look at patches.

        Raises:
          ConfigError: it has no maps of words.
        """
        joint.need_text("grounding")
        if not getattr(joint.objective, "maps_words", False):
            rule = "grounding needs maps of words over patches: objective 'tcjepa', with words"
            raise ConfigError("objective", config.objective, rule)
        self.config, self.joint = config, joint
        self.protocol: dict[str, Any] = {
            "maps": f"similarity O of TC-JEPA, mean over layers and {DRAWS} draws of masks",
            "weights": "online encoder and predictor",
            "captions": f"the first {config.text.captions} of an image",
            "names": naming.RULE if config.data.kind != "shapes_world" else "told by the source",
            "synonyms": {name: list(said) for name, said in naming.SYNONYMS.items()}
            if config.data.kind != "shapes_world"
            else {},
            "pointing": f"the brightest patch lies on the object, which owns patches that it "
            f"covers by {wordmaps.OWN_SHARE} or more, and the one it covers most",
            "iou": f"patches at {HALF} of the map's range or above, and the object's; mean",
            "centre": f"a Gaussian at the middle, standard deviation {BLOB} of the side",
            "interval": intervals.WORDS,
        }

    def measure(self, params: tuple[PyTree, PyTree]) -> Measured:
        """``pointing`` and ``iou``, means over words; ``pointing_KIND`` for each kind of word.

        ``pointing_visible`` and ``pointing_predicted`` read patches that the encoder saw, and
        those that it did not. Baselines: ``centre``, ``another_image``, ``shuffled_captions``,
        and ``chance``, which points anywhere.

        Args:
          params: (params, target) of a train state.

        Raises:
          ConfigError: fewer than two images whose captions name something that has a mask.
        """
        joint, config = self.joint, self.config
        found = scenes(config, joint.sources["held_out"], joint.draw("held_out"), joint.log)
        joint.used("held_out", [scene.index for scene in found])
        plan, (online, target) = masking.plan_masks(config), params

        def draw(batch: dict[str, Array], numbers: Sequence[int]) -> WordMaps:
            weights = online, target, joint.frozen
            how = {"draws": DRAWS, "seed": config.seed, "numbers": numbers, "mesh": joint.mesh}
            return wordmaps.word_maps(joint.objective, *weights, batch, plan, **how)

        words = play(draw, joint.captions, found, joint.size)
        self.protocol |= {**joint.describe(), "images": len(found), "words": len(words)}
        columns = {
            "pointing": [word["maps"][0] for word in words],
            "iou": [word["maps"][1] for word in words],
            "pointing_visible": [word["visible"][0] for word in words],
            "pointing_predicted": [word["predicted"][0] for word in words],
        }
        scores = {name: float(np.mean(values)) for name, values in columns.items()}
        if config.data.kind == "shapes_world":
            for kind in sorted({word["kind"] for word in words}):
                of = [word["maps"][0] for word in words if word["kind"] == kind]
                scores[f"pointing_{kind}"] = float(np.mean(of))
        baselines = {
            name: {
                "pointing": float(np.mean([word[name][0] for word in words])),
                "iou": float(np.mean([word[name][1] for word in words])),
            }
            for name in ("centre", "another_image", "shuffled_captions")
        }
        baselines["chance"] = {"pointing": float(np.mean([word["chance"] for word in words]))}
        places = np.array([word["scene"] for word in words])
        ci = {name: _interval(np.array(values), places) for name, values in columns.items()}
        return Measured(scores, {}, ci, baselines)


def _interval(values: Array, scene: Array) -> tuple[float, float]:
    """Of a mean over words, where images are drawn again with all their words."""
    sums = np.stack([np.bincount(scene, values), np.bincount(scene)])
    total, count = intervals.resampled(sums).T
    return intervals.ends(total / count)
