"""The attentive probe of V-JEPA 2: a learned query reads patch tokens; blocks may come before."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.layers import NORMAL, Block, Dense, LayerNorm, Mlp
from jepa_vl.shapes import Array, PyTree


class CrossBlock(nn.Module):
    """A query attends to tokens, then an MLP; as V-JEPA 2 without a map of what was attended to."""

    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, query: Array, tokens: Array) -> Array:
        """[B, Q, D] and [B, T, D] -> [B, Q, D]."""
        width, parts = tokens.shape[-1], self.heads
        x = LayerNorm(name="norm1")(tokens)

        def heads(name: str, y: Array) -> Array:
            y = Dense(width, name=name)(y)
            return y.reshape(*y.shape[:-1], parts, width // parts)

        q, k, v = heads("q", query), heads("k", x), heads("v", x)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // parts) ** -0.5
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)
        query = query + attended.reshape(query.shape)
        return query + Mlp(self.mlp_width, name="mlp")(LayerNorm(name="norm2")(query))


class Attentive(nn.Module):
    """Self-attention blocks, one cross-attention block with one query, and a linear map.

    Attributes:
      classes: C.
      blocks: of self-attention.
      heads: of attention.
      ratio: hidden over outer width of the MLPs.
    """

    classes: int
    blocks: int
    heads: int
    ratio: int = 4

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """[B, T, D] -> logits float32 [B, C]."""
        batch, _, width = tokens.shape
        hidden = self.ratio * width
        for i in range(self.blocks):
            tokens = Block(self.heads, hidden, name=f"block_{i}")(tokens)
        query = self.param("query", NORMAL, (width,))
        query = jnp.broadcast_to(query, (batch, 1, width))
        query = CrossBlock(self.heads, hidden, name="cross")(query, tokens)
        return Dense(self.classes, name="head")(query[:, 0])


def start(module: Attentive, tokens: int, width: int, seed: int) -> Any:
    """Parameters of a module for tokens [B, T, D]."""
    shape = jnp.zeros((1, tokens, width))
    return jax.jit(module.init)(jax.random.key(seed), shape)["params"]


def apply(module: Attentive, params: PyTree, tokens: Array) -> Any:
    """[B, T, D] -> logits [B, C]."""
    return module.apply({"params": params}, tokens)
