"""The sections of the page that look at the model: masks, words, patch features, neighbours."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jepa_vl import objectives, sharding
from jepa_vl.config import Config, reads_masks
from jepa_vl.data import masking, pipeline, sources
from jepa_vl.data.sources import Source
from jepa_vl.evaluators import features
from jepa_vl.report import figures, grounding, pca
from jepa_vl.report.page import Section
from jepa_vl.schema import MeshConfig
from jepa_vl.shapes import Array, PyTree
from jepa_vl.training import checkpoint

MASKED_IMAGES = 4
QUERIES, NEIGHBOURS = 8, 6
SEARCHED = 2000  # training images at most
CANDIDATES = 64  # images that are read to learn their classes


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and its data, on one device: parameters and target are those of a train state."""

    config: Config
    params: PyTree
    target: PyTree
    objective: Any
    frozen: PyTree
    train: Source
    held_out: Source

    def read(self, source: Source, indices: Any) -> list[dict[str, Array]]:
        """Batches of a source, with ``valid`` where an image is no repeat."""
        size = self.config.eval.batch_size
        return list(pipeline.eval_batches(self.config, source, indices, size))

    def spread(self, count: int) -> Array:
        """Indices of held-out images, of as many classes as possible; the same ones every time."""
        order = np.random.default_rng(self.config.seed).permutation(len(self.held_out))
        labels = getattr(self.held_out, "labels", None)
        candidates = order[: CANDIDATES if labels is None else None].tolist()
        first, rest, seen = [], [], set()
        for index in candidates:
            label = int(self.held_out[index]["label"] if labels is None else labels[index])
            (rest if label in seen else first).append(index)
            seen.add(label)
        return np.array((first + rest)[:count])


def sections(workdir: Path, data: dict[str, Any]) -> tuple[list[Section], int]:
    """Draws the newest checkpoint of a run; numbers for machines are entered into ``data``.

    Returns:
      The sections, and the step of the checkpoint.

    Raises:
      ConfigError: there is no checkpoint, or the data cannot be read.
    """
    config, state, step = checkpoint.load(workdir)
    return draw(config, state.params, state.target, data), step


def draw(config: Config, params: PyTree, target: PyTree, data: dict[str, Any]) -> list[Section]:
    """Draws a model on the data of its configuration; see :func:`sections`.

    Args:
      config: resolved.
      params, target: of a train state.
      data: receives numbers.

    Raises:
      ConfigError: the data, or frozen towers, cannot be read.
    """
    # Control runs too are shown reading the captions that belong to the image.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, captions="own"))
    train, held_out = sources.open_sources(config)
    objective = objectives.build(config)
    frozen = jax.device_put(objective.load_frozen())
    run = Loaded(config, params, target, objective, frozen, train, held_out)
    out = [_masks(run)] if reads_masks(config) else []
    if getattr(run.objective, "maps_words", False):
        out += grounding.sections(run, data)
    return [*out, *pca.sections(run), _neighbours(run)]


def _rows(batches: list[dict[str, Array]], name: str) -> Array:
    return np.concatenate([batch[name][batch["valid"]] for batch in batches])


def _indices(batches: list[dict[str, Array]], name: str) -> Array:
    """Indices of patches, -1 where they are padding."""
    return np.concatenate([masking.mark_padding(b, name)[b["valid"]] for b in batches])


def _masks(run: Loaded) -> Section:
    batches = run.read(run.held_out, run.spread(MASKED_IMAGES))
    images, grid = _rows(batches, "image"), run.config.encoder.grid
    fig = figures.masks(images, _indices(batches, "ctx"), _indices(batches, "tgt"), grid)
    text = (
        "The encoder sees the context alone; from it the predictor must tell the target encoder's "
        "features of each target block. Which patches of a block are kept is drawn at random."
    )
    note = "Held-out images, what the encoder sees of them, and the blocks that are predicted."
    return Section("Masks", text, [(figures.to_png(fig), note)])


def _neighbours(run: Loaded) -> Section:
    order = np.random.default_rng(run.config.seed)
    searched = np.sort(order.permutation(len(run.train))[:SEARCHED])
    queries = run.spread(QUERIES)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    encode = features.make_encode(run.objective.encoder, mesh)
    weights = run.objective.encoder_params(run.target, run.frozen)

    def unit(batches: list[dict[str, Array]]) -> Array:
        images, valid = [b["image"] for b in batches], [b["valid"] for b in batches]
        return features.unit(features.pooled(encode, weights, images, valid))

    asked = run.read(run.held_out, queries)
    library = run.read(run.train, searched)
    cosine = unit(asked) @ unit(library).T
    nearest = np.argsort(-cosine, axis=1)[:, : min(NEIGHBOURS, len(searched))]
    images, labels = _rows(library, "image"), _names(run.train, _rows(library, "label"))
    fig = figures.neighbours(
        _rows(asked, "image"),
        images[nearest],
        _names(run.held_out, _rows(asked, "label")),
        [[labels[i] for i in row] for row in nearest],
        np.take_along_axis(cosine, nearest, axis=1),
    )
    text = (
        f"Held-out images and the {nearest.shape[1]} most similar of {len(searched)} training "
        "images, by the cosine of the target encoder's pooled features (the number below each)."
    )
    note = "Left: queries. A tick where the class is the query's, a cross where it is another."
    return Section("Nearest neighbours", text, [(figures.to_png(fig), note)])


def _names(source: Source, labels: Array) -> list[str]:
    return [source.classes[i] if i >= 0 else "" for i in labels.tolist()]
