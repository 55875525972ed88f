"""The text-to-image crosser of TI-JEPA (arXiv 2503.06380, public code): patches read words."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.frozen_vit import FrozenViT
from jepa_vl.models.layers import Dense, LayerNorm, Mlp
from jepa_vl.models.stack import Plan, run_blocks
from jepa_vl.schema import TIJepaConfig
from jepa_vl.shapes import Array, check_shape
from jepa_vl.sharding import constrain


class CrossAttention(nn.Module):
    """Multi-head attention of patches to words; an image without a word gets zeros."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text: Array, text_valid: Array) -> Array:
        """Attends.

        Args:
          x: [B, R, H], normalised queries.
          text: [B, S, E], normalised keys and values.
          text_valid: bool [B, S], False for padding.

        Returns:
          [B, R, H] in ``dtype``.
        """
        width = x.shape[-1]

        def heads(name: str, tokens: Array) -> Array:
            y = Dense(width, dtype=self.dtype, name=name)(tokens)
            y = y.reshape(*y.shape[:-1], self.heads, width // self.heads)
            return constrain(y, "batch", None, "heads", None)

        q, k, v = heads("q", x), heads("k", text), heads("v", text)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
        logits = logits * (width // self.heads) ** -0.5
        logits = jnp.where(text_valid[:, None, None, :], logits, -1e9)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        y = Dense(width, dtype=self.dtype, name="out")(y)
        return jnp.where(jnp.any(text_valid, axis=-1)[:, None, None], y, 0.0)


class CrossBlock(nn.Module):
    """V <- V + Attn(LN(V), LN'(T)); V <- V + MLP(LN(V)). There is no self-attention.

    Patches and words have a LayerNorm each; in the public code one serves both (``shared_norm``).
    """

    heads: int
    shared_norm: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text: Array, text_valid: Array) -> Array:
        """x [B, R, H], text [B, S, E], text_valid bool [B, S] -> [B, R, H] float32."""
        norm = LayerNorm(name="norm1")
        text_norm = norm if self.shared_norm else LayerNorm(name="norm_text")
        attention = CrossAttention(self.heads, self.dtype, name="attn")
        x = x + attention(norm(x), text_norm(text), text_valid).astype(jnp.float32)
        mlp = Mlp(4 * x.shape[-1], self.dtype, name="mlp")(LayerNorm(name="norm2")(x))
        return constrain(x + mlp.astype(jnp.float32), "batch", None, "embed")


class Crosser(nn.Module):
    """Image features that have read the text; the output has no final norm, as published.

    Published: queries are patches, keys and values words; LN(Linear) before the first block; MLP
    ratio 4; exact GELU; sizes (4, 8) and (8, 12). Ours: no dropout (the scripts have 0.15, the
    newest of them 0), a LayerNorm of the words' own, words of any width.
    """

    config: TIJepaConfig
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @nn.compact
    def __call__(self, features: Array, text: Array, text_valid: Array) -> Array:
        """Crosses.

        Args:
          features: [B, R, D] float32, of the frozen image tower.
          text: [B, S, E] float32, word states; padding holds anything.
          text_valid: bool [B, S]; an image without a word keeps to itself.

        Returns:
          [B, R, H] float32.
        """
        sizes = check_shape("features", features, "B R _")
        check_shape("text_valid", text_valid, "B S", **check_shape("text", text, "B S _", **sizes))
        c = self.config
        x = Dense(c.width, dtype=self.dtype, name="project")(features)
        x = LayerNorm(name="norm")(x)
        make = functools.partial(CrossBlock, c.heads, c.parity, self.dtype)
        return run_blocks(self, make, c.depth, x, text, text_valid, how=self.how)


class CrossedImage(nn.Module):
    """Frozen image tower and crosser as one encoder of images: what evaluators of images see.

    No caption is read, so that its numbers compare with those of other encoders. With captions:
    ``TIJepa.features``.
    """

    FEATURES: ClassVar[str] = "of the crosser, which reads no caption and has no final LayerNorm"

    image: FrozenViT
    crosser: Crosser
    text_width: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """uint8 or normalised float32 [B, H, W, 3] -> [B, T, H] float32."""
        b = images.shape[0]
        nothing = jnp.zeros((b, 1, self.text_width)), jnp.zeros((b, 1), bool)
        return self.crosser(self.image(images), *nothing)
