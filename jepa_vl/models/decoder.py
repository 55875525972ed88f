"""A small autoregressive decoder that reads patches: captions and answers of frozen features."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.crosser import CrossAttention
from jepa_vl.models.layers import NORMAL, Dense, LayerNorm, Mlp
from jepa_vl.shapes import Array, check_shape


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a word sees itself and those before it."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, L, H] -> [B, L, H]."""
        length, width = x.shape[1:]

        def heads(name: str) -> Array:
            y = Dense(width, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        q, k, v = heads("q"), heads("k"), heads("v")
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // self.heads) ** -0.5
        seen = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(seen, logits, -1e9), axis=-1)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return Dense(width, name="out")(y.reshape(x.shape))


class Decoder(nn.Module):
    """Words -> what follows each of them, given the patches of an image.

    Attributes:
      vocabulary: V, words that are read.
      outputs: O, what is told apart: words again, or answers.
      width: H. depth: blocks of self-attention, attention to patches and MLP. heads: of both.
    """

    vocabulary: int
    outputs: int
    width: int = 128
    depth: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, word_ids: Array, patches: Array) -> Array:
        """Logits after each word.

        Args:
          word_ids: int32 [B, L]; padding stands at the end, where no word sees it.
          patches: float32 [B, T, D], frozen features.

        Returns:
          [B, L, O] float32.
        """
        sizes = check_shape("word_ids", word_ids, "B L")
        check_shape("patches", patches, "B T _", **{"B": sizes["B"]})
        embedding = self.param("word_embedding", NORMAL, (self.vocabulary, self.width))
        position = self.param("word_position", NORMAL, (word_ids.shape[1], self.width))
        x = embedding[word_ids] + position
        memory = LayerNorm(name="memory_norm")(Dense(self.width, name="project")(patches))
        there: Any = jnp.ones(patches.shape[:2], bool)
        for i in range(self.depth):
            y = LayerNorm(name=f"norm{i}_self")(x)
            x = x + CausalAttention(self.heads, name=f"self{i}")(y)
            y = LayerNorm(name=f"norm{i}_cross")(x)
            x = x + CrossAttention(self.heads, name=f"cross{i}")(y, memory, there)
            x = x + Mlp(4 * self.width, name=f"mlp{i}")(LayerNorm(name=f"norm{i}_mlp")(x))
        return Dense(self.outputs, name="head")(LayerNorm(name="norm")(x))
