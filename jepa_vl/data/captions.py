"""Captions as fixed arrays: of word ids or, from a cache, of word embeddings."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jepa_vl.data import tokenizers
from jepa_vl.data.embeddings import EmbeddingCache
from jepa_vl.data.tokenizers import Token, has_word
from jepa_vl.data.tokenizers import words as words
from jepa_vl.schema import TextConfig
from jepa_vl.shapes import Array

PAD = 0


class CaptionReader:
    """Draws the captions of an image and turns them into arrays. Picklable, for data workers."""

    def __init__(self, config: TextConfig):
        """Opens the tokenizer and, for kind ``cached``, the embeddings.

        Raises:
          ConfigError: they are not at ``text.path``, or do not fit.
        """
        self.captions, self.length = config.captions, config.words
        self.cache = EmbeddingCache(config) if config.kind == "cached" else None
        self.tokenize = tokenizers.build(config)

    def encode(self, captions: Sequence[str], rng: np.random.Generator) -> dict[str, Array]:
        """Draws captions of one image, uniformly and without replacement.

        Args:
          captions: of the image; those without a word count as missing.
          rng: the image's own generator.

        Returns:
          ``word_ids``: int32 [N, S], 0 where padded, or from a cache ``word_states``: [N, S, E] of
          its float type; ``word_mask``: bool [N, S]; ``caption_mask``: bool [N], False for captions
          that are missing.
        """
        present = [text for text in captions if has_word(text)]
        drawn = rng.permutation(len(present))[: self.captions]
        return self._arrays([present[i] for i in drawn])

    def encode_all(self, captions: Sequence[str]) -> dict[str, Array]:
        """As :meth:`encode`, without chance: the first N captions in their order."""
        return self._arrays([text for text in captions if has_word(text)][: self.captions])

    def scramble(self, arrays: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
        """Random tokens in the place of those of :meth:`encode`'s arrays; the masks stay.

        Ids are drawn uniformly from the vocabulary, and special tokens keep their places. A cache
        gives the embeddings of random tokens of random captions, wherever they stood.
        """
        mask = arrays["word_mask"]
        if self.cache is not None:
            states = arrays["word_states"].copy()
            states[mask] = self.cache.random_states(int(mask.sum()), rng)
            return {**arrays, "word_states": states}
        ids, known = arrays["word_ids"].copy(), self.ordinary_ids
        replaced = mask & np.isin(ids, known, kind="table")
        ids[replaced] = rng.choice(known, int(replaced.sum()))
        return {**arrays, "word_ids": ids}

    @functools.cached_property
    def ordinary_ids(self) -> Array:
        """int32 [V']: the vocabulary without padding and special tokens."""
        return np.array(self.tokenize.ordinary_ids(), np.int32)

    def tokens(self, text: str) -> list[Token]:
        """The at most S tokens of a caption that are kept."""
        return self.tokenize(text)

    def piece_words(self, text: str) -> list[str]:
        """What each kept token shows to people: its word, or itself where it belongs to none."""
        split = words(text)
        return [
            split[token.word] if token.word is not None else token.piece
            for token in self.tokens(text)
        ]

    def _arrays(self, drawn: list[str]) -> dict[str, Array]:
        mask = np.zeros((self.captions, self.length), bool)
        if self.cache is not None:
            shape = (*mask.shape, self.cache.width)
            name, content = "word_states", np.zeros(shape, self.cache.dtype)
            found: list[Any] = [self.cache.states(text) for text in drawn]
        else:
            name, content = "word_ids", np.full(mask.shape, PAD, np.int32)
            found = [self.tokenize.ids(text) for text in drawn]
        for row, values in enumerate(found):
            content[row, : len(values)] = values
            mask[row, : len(values)] = True
        return {name: content, "word_mask": mask, "caption_mask": mask.any(axis=1)}


@functools.lru_cache(maxsize=8)
def build(config: TextConfig) -> CaptionReader:
    """The reader of a resolved configuration."""
    return CaptionReader(config)
