"""Which captions an image comes with: its own or, for control runs, others.

A control keeps the crops, the masks and the order of a run and takes away what captions say of
their image; what it reaches, the captions' content did not bring.
"""

from typing import Any

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import captions, faults
from jepa_vl.data.sources import Source
from jepa_vl.shapes import Array

# Keep their streams apart from others made of (seed, index).
PAIRING_SEED, TOKEN_SEED = 0x70616972, 0x746F6B73


class Own:
    """The captions of the image itself. Picklable, for data workers."""

    def __init__(self, config: Config, source: Source):
        """Opens the reader of captions.

        Raises:
          ConfigError: the tokenizer or the embeddings do not fit, or the source does not.
        """
        self.source, self.seed = source, config.seed
        self.reader = captions.build(config.text)

    def texts(self, index: int, own: list[str]) -> list[str]:
        """Captions that are drawn from for image ``index`` of the source, whose own are given."""
        return own

    def draw(self, index: int, own: list[str], rng: np.random.Generator) -> dict[str, Array]:
        """For training: arrays as of :meth:`captions.CaptionReader.encode`."""
        return self.reader.encode(self.texts(index, own), rng)

    def first(self, index: int, own: list[str]) -> dict[str, Array]:
        """For evaluation: the same arrays whenever it is called."""
        return self.reader.encode_all(self.texts(index, own))


class Shuffled(Own):
    """The captions of another image, the same one in every epoch: all images form one cycle."""

    def __init__(self, config: Config, source: Source):
        super().__init__(config, source)
        self.partner = pairing(len(source), config.seed)

    def texts(self, index: int, own: list[str]) -> list[str]:
        """Those of the partner; its record is read for them.

        Raises:
          BadSample: it cannot be read.
        """
        with faults.reading():
            return self.source[int(self.partner[index])]["captions"]


class Empty(Own):
    """No captions: ``caption_mask`` and ``word_mask`` are False throughout."""

    def texts(self, index: int, own: list[str]) -> list[str]:
        """None."""
        return []


class Random(Own):
    """As many random tokens as the own captions have, other ones each time an image is seen.

    Fixed ones would name the image, and could be learnt by heart.
    """

    def draw(self, index: int, own: list[str], rng: np.random.Generator) -> dict[str, Array]:
        """New tokens in each epoch."""
        return self.reader.scramble(super().draw(index, own, rng), rng)

    def first(self, index: int, own: list[str]) -> dict[str, Array]:
        """Tokens that depend on seed and index alone."""
        rng = np.random.default_rng([TOKEN_SEED, self.seed, index])
        return self.reader.scramble(super().first(index, own), rng)


def pairing(count: int, seed: int) -> Array:
    """For each image the one whose captions it gets: int64 [count], a permutation of one cycle.

    Raises:
      ConfigError: there is no other image.
    """
    if count < 2:
        raise ConfigError("data.captions", "shuffled", "needs two images")
    order = np.random.default_rng([PAIRING_SEED, seed]).permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


CONTROLS: dict[str, Any] = {"own": Own, "shuffled": Shuffled, "empty": Empty, "random": Random}


def build(config: Config, source: Source) -> Own:
    """What ``data.captions`` names, on a source."""
    return CONTROLS[config.data.captions](config, source)
