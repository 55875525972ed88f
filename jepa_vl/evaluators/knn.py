"""k nearest neighbours with DINO's weighted vote, on frozen pooled features."""

from collections.abc import Sequence

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data.faults import Log
from jepa_vl.data.sources import Source
from jepa_vl.evaluators import features
from jepa_vl.evaluators.base import Extract, Features, Measured, Measures, accuracy, register
from jepa_vl.shapes import Array, PyTree

NEIGHBOURS = (10, 20, 100, 200)  # DINO's; 20 is the one that is quoted
TEMPERATURE = 0.07  # DINO's


def classify(
    train: Array,
    train_labels: Array,
    queries: Array,
    neighbours: Sequence[int],
    temperature: float,
) -> Array:
    """Labels by a vote of the k nearest, weighted by exp(cosine / temperature).

    Args:
      train: float [n, X]; train_labels: int [n], >= 0.
      queries: float [m, X].
      neighbours: each k; at most n are used.
      temperature: of the vote.

    Returns:
      int [len(neighbours), m].
    """
    train, queries = features.unit(train), features.unit(queries)
    most = min(max(neighbours), len(train))
    classes = int(train_labels.max()) + 1
    out = []
    for part in np.array_split(queries, max(1, len(queries) // 1024)):
        cosine = part @ train.T
        nearest = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(cosine, nearest, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        near, nearest = (np.take_along_axis(x, order, axis=1) for x in (near, nearest))
        weight = np.exp((near - near[:, :1]) / temperature)  # of the nearest: 1; nothing overflows
        labels = train_labels[nearest]
        out.append([_vote(labels[:, :k], weight[:, :k], classes) for k in neighbours])
    return np.concatenate(out, axis=1)


def _vote(labels: Array, weight: Array, classes: int) -> Array:
    """The label of most weight: [q, k], [q, k] -> int [q]; the lowest of those that tie."""
    votes = np.zeros((len(labels), classes))
    rows = np.repeat(np.arange(len(labels)), labels.shape[1])
    np.add.at(votes, (rows, labels.ravel()), weight.ravel())
    return votes.argmax(axis=1)


@register("knn")
class Knn(Measures):
    """kNN accuracy of the held-out part by DINO's protocol, which searches the training part."""

    def __init__(self, config: Config, extract: Extract):
        """Needs nothing of the configuration: k and the temperature are the protocol's."""
        del config
        self.extract = extract
        self.protocol = {"normalisation": "unit length", "temperature": TEMPERATURE}

    def measure(self, params: PyTree) -> Measured:
        """``k10`` to ``k200``; a k beyond the number of training images is left out.

        Raises:
          ConfigError: there are fewer than 10 training images.
        """
        found = self.extract(params)
        possible = [k for k in NEIGHBOURS if k <= len(found.train)]
        if not possible:
            rule = f"kNN needs {NEIGHBOURS[0]} labelled training images or more"
            raise ConfigError("eval.train_images", len(found.train), rule)
        labels = classify(found.train, found.train_labels, found.held_out, possible, TEMPERATURE)
        hits = {
            f"k{k}": (row == found.held_out_labels)[None]
            for k, row in zip(possible, labels, strict=True)
        }
        return Measured({name: float(right.mean()) for name, right in hits.items()}, hits)


class OnlineKnn:
    """kNN accuracy while training, on images that are read once and stay in memory.

    Protocol: average-pooled patches of the final layer (after its LayerNorm), no augmentation,
    cosine, ``eval.k`` neighbours, temperature ``eval.temperature``. Whoever calls :meth:`run`
    chooses the branch; the loop passes the target encoder.
    """

    def __init__(
        self,
        config: Config,
        encode: features.Encode,
        train: Source,
        held_out: Source,
        log: Log | None = None,
    ):
        """Reads the images; ``log`` lists those that cannot be used.

        Raises:
          ConfigError: one of the parts has no labelled image, or none that can be read.
        """
        self.config, self.encode = config, encode
        self.reader = features.Reader(config, train, held_out, log)
        self.reader.keep_images()

    def run(self, params: PyTree) -> dict[str, float]:
        """Accuracy of an encoder's parameters: {"knn": ...} in [0, 1]."""
        return self._score(self.reader.read(lambda images: self.encode(params, images)))

    def pixels(self) -> dict[str, float]:
        """The same protocol on raw 16 x 16 pixels, centred by the training mean."""
        return self._score(features.centred(self.reader.read(features.pixels)))

    def _score(self, found: Features) -> dict[str, float]:
        c = self.config.eval
        labels = classify(found.train, found.train_labels, found.held_out, [c.k], c.temperature)
        return {"knn": accuracy(labels[0], found.held_out_labels)}
