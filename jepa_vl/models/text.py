"""Text towers: token ids of captions -> word embeddings [B, N, S, E]."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.layers import NORMAL, Block, LayerNorm
from jepa_vl.schema import TextConfig
from jepa_vl.shapes import Array, check_shape


class HashedText(nn.Module):
    """The built-in tower, trained with the model: hashed word pieces, positions, a few blocks.

    It needs no download and no vocabulary file. It is no substitute for a pretrained tower:
    captions in which a word is new tell it nothing about that word.
    """

    config: TextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, word_ids: Array, word_mask: Array) -> Array:
        """Embeds captions.

        Args:
          word_ids: int32 [B, N, S], 0 = padding.
          word_mask: bool [B, N, S].

        Returns:
          [B, N, S, E] float32, after a LayerNorm.
        """
        c = self.config
        sizes = check_shape("word_ids", word_ids, "B N S", S=c.words)
        check_shape("word_mask", word_mask, "B N S", **sizes)
        b, n, s = word_ids.shape
        embedding = self.param("word_embedding", NORMAL, (c.vocabulary, c.width))
        # From 0, so that a word starts as itself wherever it stands. Normalised, as blocks would
        # drown embeddings of 0.02 in what all words of a caption share.
        position = self.param("word_position", nn.initializers.zeros, (c.words, c.width))
        x = LayerNorm(name="embedding_norm")(embedding[word_ids] + position)
        x = x.reshape(b * n, s, c.width)
        for i in range(c.depth):
            block = Block(c.heads, 4 * c.width, self.dtype, name=f"block_{i}")
            x = block(x, word_mask.reshape(b * n, s))
        return LayerNorm(name="norm")(x).reshape(b, n, s, c.width)


TOWERS = {"hashed": HashedText}


def build(config: TextConfig, dtype: Any = jnp.float32) -> nn.Module:
    """The text tower of a resolved configuration."""
    return TOWERS[config.kind](config, dtype)
