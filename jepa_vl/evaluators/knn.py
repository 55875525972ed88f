"""k nearest neighbours with DINO's weighted vote, on frozen pooled features."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import pipeline
from jepa_vl.data.sources import Source, labelled_indices
from jepa_vl.evaluators import features
from jepa_vl.shapes import Array, PyTree


def classify(
    train: Array, train_labels: Array, queries: Array, k: int, temperature: float
) -> Array:
    """Labels by a vote of the k nearest, weighted by exp(cosine / temperature).

    Args:
      train: float [n, D]; train_labels: int [n], >= 0.
      queries: float [m, D].
      k: neighbours, at most n are used.
      temperature: of the vote; DINO: 0.07.

    Returns:
      int [m].
    """
    train, queries = features.unit(train), features.unit(queries)
    k = min(k, len(train))
    classes = int(train_labels.max()) + 1
    out = []
    for part in np.array_split(queries, max(1, len(queries) // 1024)):
        cosine = part @ train.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(cosine, nearest, axis=1) / temperature)
        votes = np.zeros((len(part), classes))
        rows = np.repeat(np.arange(len(part)), k)
        np.add.at(votes, (rows, train_labels[nearest].ravel()), weight.ravel())
        out.append(votes.argmax(axis=1))
    return np.concatenate(out)


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Preprocessed images of one part, in memory: [batches, b, H, W, 3] uint8 and their labels."""

    images: list[Array]
    valid: list[Array]
    labels: Array

    def all_images(self) -> Array:
        """uint8 [n, H, W, 3]."""
        return np.concatenate([x[v] for x, v in zip(self.images, self.valid, strict=True)])


def load(config: Config, source: Source, count: int) -> LabelledImages:
    """Reads up to ``count`` labelled images with the evaluation transform (resize, centre crop)."""
    indices = labelled_indices(source, count, config.seed)
    batches: Iterator = pipeline.eval_batches(config, source, indices, config.eval.batch_size)
    rows = [(b["image"], b["valid"], b["label"][b["valid"]]) for b in batches]
    if not rows:
        empty = np.zeros(0, np.int32)
        return LabelledImages([], [], empty)
    return LabelledImages(
        [r[0] for r in rows], [r[1] for r in rows], np.concatenate([r[2] for r in rows])
    )


class Knn:
    """kNN accuracy on the held-out part, searching the training part.

    Protocol: average-pooled patches of the final layer (after its LayerNorm), no augmentation,
    cosine, ``eval.k`` neighbours, temperature ``eval.temperature``. Whoever calls :meth:`run`
    chooses the branch; the loop passes the target encoder.
    """

    def __init__(self, config: Config, encode: features.Encode, train: Source, held_out: Source):
        """Loads the images once.

        Raises:
          ConfigError: one of the parts has no labelled image.
        """
        self.config, self.encode = config, encode
        self.train = load(config, train, config.eval.train_images)
        self.held_out = load(config, held_out, config.eval.val_images)
        for name, part in (("train", self.train), ("held-out", self.held_out)):
            if not len(part.labels):
                raise ConfigError("data.label_key", config.data.label_key, f"{name} has no labels")

    def run(self, params: PyTree) -> dict[str, float]:
        """Accuracy of an encoder's parameters: {"knn": ...} in [0, 1]."""
        return {
            "knn": self._accuracy(
                self._features(params, self.train), self._features(params, self.held_out)
            )
        }

    def pixels(self) -> dict[str, float]:
        """The same protocol on raw 16 x 16 pixels, centred by the training mean."""
        train = features.pixels(self.train.all_images())
        held_out = features.pixels(self.held_out.all_images())
        mean = train.mean(axis=0)
        return {"knn": self._accuracy(train - mean, held_out - mean)}

    def _features(self, params: PyTree, part: LabelledImages) -> Array:
        return features.pooled(self.encode, params, part.images, part.valid)

    def _accuracy(self, train: Array, held_out: Array) -> float:
        c = self.config.eval
        found = classify(train, self.train.labels, held_out, c.k, c.temperature)
        return float(np.mean(found == self.held_out.labels))
