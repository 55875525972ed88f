"""Captions as fixed arrays of hashed word pieces."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from jepa_vl.schema import TextConfig
from jepa_vl.shapes import Array

PAD = 0
FIRST_PIECE = 2  # 0 pads, 1 is kept free for a special token
PIECE_LENGTH = 8  # letters; longer words are several pieces, the later ones marked with "##"


def words(text: str) -> list[str]:
    """Splits a caption into lower-case words, in any script."""
    return re.findall(r"\w+", text.lower())


def pieces(text: str) -> list[tuple[str, int]]:
    """Word pieces of a caption and, for each, the index of the word it belongs to."""
    out: list[tuple[str, int]] = []
    for position, word in enumerate(words(text)):
        for start in range(0, len(word), PIECE_LENGTH):
            out.append((("##" if start else "") + word[start : start + PIECE_LENGTH], position))
    return out


def piece_words(text: str, length: int) -> list[str]:
    """The word that each kept token of a caption belongs to, for display.

    Args:
      text: a caption.
      length: S, tokens that are kept.
    """
    split = words(text)
    return [split[position] for _, position in pieces(text)[:length]]


def encode(
    captions: Sequence[str], config: TextConfig, rng: np.random.Generator
) -> dict[str, Array]:
    """Draws captions of one image, uniformly and without replacement, and hashes their words.

    Args:
      captions: of the image; those without a word count as missing.
      config: reads captions (N), words (S) and vocabulary.
      rng: the image's own generator.

    Returns:
      ``word_ids``: int32 [N, S], 0 where padded; ``word_mask``: bool [N, S]; ``caption_mask``:
      bool [N], False for captions that are missing.
    """
    split = [found for found in map(pieces, captions) if found]
    drawn = rng.permutation(len(split))[: config.captions]
    return _arrays([split[i] for i in drawn], config)


def encode_all(captions: Sequence[str], config: TextConfig) -> dict[str, Array]:
    """As :func:`encode`, without chance: the first N captions in their order."""
    split = [found for found in map(pieces, captions) if found]
    return _arrays(split[: config.captions], config)


def _arrays(split: list[list[tuple[str, int]]], config: TextConfig) -> dict[str, Array]:
    word_ids = np.full((config.captions, config.words), PAD, np.int32)
    for row, caption in zip(word_ids, split, strict=False):
        ids = [
            FIRST_PIECE + zlib.crc32(piece.encode()) % (config.vocabulary - FIRST_PIECE)
            for piece, _ in caption[: config.words]
        ]
        row[: len(ids)] = ids
    word_mask = word_ids != PAD
    return {"word_ids": word_ids, "word_mask": word_mask, "caption_mask": word_mask.any(axis=1)}
