"""Images found by captions and captions by images, of the held-out part: recall at 1, 5 and 10."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_vl.config import Config, ConfigError, reads_masks
from jepa_vl.data import masking
from jepa_vl.data.captions import words
from jepa_vl.evaluators.base import JOINT, Measured, Measures, register
from jepa_vl.evaluators.intervals import WORDS
from jepa_vl.evaluators.joint import Joint, Shown
from jepa_vl.shapes import Array, PyTree

RANKS = (1, 5, 10)


class Energies(NamedTuple):
    """All pairs of a data set.

    Attributes:
      energy: float32 [n, C], of n images and C distinct captions; low is compatible.
      owned: for each image the numbers of its captions in their order, equal ones repeated.
      indices: of the images in their source.
    """

    energy: Array
    owned: list[list[int]]
    indices: list[int]

    def right(self) -> Array:
        """bool [n, C]: is a caption one of the image's?"""
        out = np.zeros(self.energy.shape, bool)
        for row, numbers in zip(out, self.owned, strict=True):
            row[numbers] = True
        return out


def without_prior(energy: Array) -> Array:
    """E(x, t) - mean of E(x', t) over the other images x': [n, C] -> [n, C]."""
    count = len(energy)
    others = (energy.sum(axis=0, dtype=np.float64) - energy) / max(count - 1, 1)
    return energy - others


def ranks(energy: Array, right: Array) -> Array:
    """The place of the best right candidate of each query, from 1: [q, g], bool [q, g] -> int [q].

    Of equal energies the right one comes last, so that an encoder that tells nothing apart finds
    nothing; one that is no number is as good as any.
    """
    best = np.where(right, energy, np.inf).min(axis=1, keepdims=True)
    return 1 + np.sum(~right & ~(energy > best), axis=1)


def chance(right: Array, rank: int) -> Array:
    """How often ``rank`` candidates drawn blindly hold a right one: bool [q, g] -> float64 [q]."""
    queries, count = right.shape[0], right.shape[1]
    good = right.sum(axis=1)
    table = {n: math.comb(count - n, rank) / math.comb(count, rank) for n in set(good.tolist())}
    return np.array([1.0 - table[n] for n in good.tolist()]).reshape(queries)


@register("retrieval")
class Retrieval(Measures):
    """Recall at 1, 5 and 10 in both directions, by the energy or the cosine of the objective."""

    reads = JOINT

    def __init__(self, config: Config, joint: Joint):
        """Takes an objective with a ``pairing``.

        Raises:
          ConfigError: the objective reads no captions, or compares no pairs.
        """
        joint.need_text("retrieval")
        pairing = getattr(joint.objective, "pairing", None)
        if pairing is None:
            rule = "retrieval needs the energy or cosine of a pair, which this objective has not"
            raise ConfigError("objective", config.objective, rule)
        self.config, self.joint, self.pairing = config, joint, pairing
        self.protocol: dict[str, Any] = {
            "score": pairing.words,
            "draws": pairing.draws,
            "correction": "image to text: less the caption's mean energy with the other images"
            if pairing.has_prior
            else "none",
            "gallery": "image to text: the distinct captions, by their words; text to image: all "
            "images; a query may have several right answers and counts by the best",
            "queries": "each image; each caption of an image, as often as it stands there",
            "ties": "the right answer comes last",
            "interval": WORDS,
        }

    def measure(self, params: tuple[PyTree, PyTree]) -> Measured:
        """``image_to_text_rK`` and ``text_to_image_rK``; a K that every gallery meets is left out.

        Where captions differ in how easy they are, also ``image_to_text_rK_uncorrected``. Images
        with fewer captions than others ask with some of them twice.

        Args:
          params: (params, target) of a train state.

        Raises:
          ConfigError: fewer than two images have a caption.
        """
        pairs = energies(self.joint, self.pairing, params)
        self.joint.used("held_out", pairs.indices)
        self.protocol |= {
            **self.joint.describe(),
            "images": len(pairs.owned),
            "captions": sum(map(len, pairs.owned)),
            "distinct_captions": pairs.energy.shape[1],
        }
        right, queries = pairs.right(), _queries(pairs.owned)
        corrected = without_prior(pairs.energy) if self.pairing.has_prior else pairs.energy
        every, to_image = slice(None), ranks(pairs.energy.T, right.T)
        found = [
            ("image_to_text_r{}", ranks(corrected, right)[None], right, every),
            ("text_to_image_r{}", to_image[queries], right.T, queries),
        ]
        if self.pairing.has_prior:
            places = ranks(pairs.energy, right)[None]
            found.append(("image_to_text_r{}_uncorrected", places, right, every))
        hits, blind = {}, {}
        for name, places, gallery, queried in found:
            for rank in [rank for rank in RANKS if rank < gallery.shape[1]]:
                hits[name.format(rank)] = places <= rank
                blind[name.format(rank)] = float(chance(gallery, rank)[queried].mean())
        scores = {name: float(rows.mean()) for name, rows in hits.items()}
        return Measured(scores, hits, baselines={"chance": blind})


def _queries(owned: Sequence[Sequence[int]]) -> Array:
    """int [Q, n]: in draw q image i asks with its caption q, or begins again."""
    most = max(map(len, owned))
    return np.array([[own[q % len(own)] for own in owned] for q in range(most)])


def energies(joint: Joint, pairing: Any, params: tuple[PyTree, PyTree]) -> Energies:
    """Energies of all held-out images that have a caption with all their captions.

    Raises:
      ConfigError: fewer than two such images.
    """
    online, target = params
    take = {
        way: joint.compiled(_rows(getattr(pairing, way), joint), 3) for way in ("images", "texts")
    }
    weigh = joint.compiled(pairing.energy, 3)
    numbers: dict[tuple[str, ...], int] = {}
    distinct, owned, indices = [], [], []
    galleries: list[list[tuple[PyTree, int]]] = [[] for _ in range(pairing.draws)]
    for shown in joint.read("held_out", joint.draw("held_out")):
        kept = [i for i, record in enumerate(shown.records) if _said(record)]
        if not kept:
            continue
        for i in kept:
            texts = _said(shown.records[i])
            for text in texts:
                if numbers.setdefault(tuple(words(text)), len(distinct)) == len(distinct):
                    distinct.append(text)
            owned.append([numbers[tuple(words(text))] for text in texts])
            indices.append(shown.indices[i])
        for draw, gallery in enumerate(galleries):
            batch = _image_batch(joint, shown, draw)
            rows = take["images"](online, target, joint.frozen, *batch)
            gallery.append((_keep(joint, rows, kept), len(kept)))
    if len(owned) < 2:
        source = joint.sources["held_out"].name
        rule = f"retrieval needs two images with a caption that has a word; {len(owned)} has one"
        raise ConfigError("data.path", source, rule)
    out = np.zeros((len(owned), len(distinct)), np.float32)
    for start in range(0, len(distinct), joint.size):
        said = distinct[start : start + joint.size]
        number = joint.fill(np.arange(start, start + len(said), dtype=np.int32))
        for draw, gallery in enumerate(galleries):
            chance_of = (number, np.full_like(number, draw))
            rows = take["texts"](online, target, joint.frozen, joint.words(said), *chance_of)
            place = 0
            for images, count in gallery:
                block = weigh(online, target, images, rows)[:count, : len(said)]
                out[place : place + count, start : start + len(said)] += block / pairing.draws
                place += count
    return Energies(out, owned, indices)


def _keep(joint: Joint, rows: PyTree, kept: list[int]) -> PyTree:
    return jax.tree.map(lambda x: joint.fill(x[kept]), rows)


def _said(record: dict[str, Any]) -> list[str]:
    return [text for text in record["captions"] if words(text)]


def _rows(function: Callable[..., PyTree], joint: Joint) -> Callable[..., PyTree]:
    """Gives each row the key of its number and draw, whatever batch it stands in."""
    key = jax.random.key(joint.config.seed)

    def run(
        params: PyTree, target: PyTree, frozen: PyTree, batch: PyTree, number: Array, draw: Array
    ) -> PyTree:
        keys = jax.vmap(lambda n, d: jax.random.fold_in(jax.random.fold_in(key, d), n))
        return function(params, target, frozen, batch, keys(number, draw))

    return run


def _image_batch(joint: Joint, shown: Shown, draw: int) -> tuple[dict[str, Array], Array, Array]:
    """A batch of images, with masks where the objective reads some, and what keys are made of."""
    config, batch = joint.config, {"image": shown.images}
    if reads_masks(config):
        plan = masking.plan_masks(config)
        drawn = [
            masking.draw(plan, 1, np.random.default_rng([config.seed, index, draw]))
            for index in shown.indices
        ]
        for name in drawn[0]:
            batch[name] = joint.fill(np.concatenate([masks[name] for masks in drawn]))
    number = joint.fill(np.array(shown.indices, np.int32))
    return batch, number, np.full_like(number, draw)
