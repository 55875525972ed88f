"""The predictor of cross-modal TI-JEPA: tokens of one modality in, latents of the other out."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.layers import NORMAL, Block, Dense, LayerNorm, sincos_table
from jepa_vl.models.stack import Plan, run_blocks
from jepa_vl.schema import PredictorConfig
from jepa_vl.shapes import Array, check_shape

MODALITIES = ("image", "text")


class Tokens(NamedTuple):
    """Tokens that a predictor reads, for P pairs of image and caption.

    Attributes:
      states: float32 [P, R, D], features.
      index: int32 [P, R], patch or word that each one stands for.
      valid: bool [P, R], False for padding.
    """

    states: Array
    index: Array
    valid: Array


class CrossPredictor(nn.Module):
    """A narrow transformer over [context of the other modality ; own visible tokens ; queries].

    A query is the mask token plus the position of its target. Every position is asked for whether
    or not the caption has a word there: what is predicted from an image then depends on the image
    alone, not on the length of the caption that it is compared with.
    """

    target: str
    grid: int
    words: int
    out_width: int
    config: PredictorConfig
    dtype: Any = jnp.float32
    how: Plan = Plan()

    @nn.compact
    def __call__(self, context: Tokens, own: Tokens, query_idx: Array | None) -> Array:
        """Predicts.

        Args:
          context: of the other modality.
          own: of the target's modality; R = 0 for pure cross-modal prediction.
          query_idx: int32 [P, C], positions to predict; None for one query without a position.

        Returns:
          [P, C, out_width] float32, C = 1 without positions.
        """
        width, heads, pairs = self.config.width, self.config.heads, context.index.shape[0]
        if query_idx is not None:
            check_shape("query_idx", query_idx, "P C", P=pairs)
        tables = {
            "image": jnp.asarray(sincos_table(width, self.grid)),
            "text": self.param("word_position", NORMAL, (self.words, width)),
        }
        (source,) = (name for name in MODALITIES if name != self.target)

        mask_token = self.param("mask_token", NORMAL, (width,))
        queries = jnp.broadcast_to(mask_token, (pairs, 1, width))
        if query_idx is not None:
            queries = mask_token + tables[self.target][query_idx]
        count = queries.shape[1]
        valid = [context.valid, jnp.ones((pairs, count), bool)]
        parts = [Embed(width, self.dtype, name="context")(context, tables[source]), queries]
        if own.index.shape[1]:
            parts.insert(1, Embed(width, self.dtype, name="own")(own, tables[self.target]))
            valid.insert(1, own.valid)
        x, key_valid = jnp.concatenate(parts, axis=1), jnp.concatenate(valid, axis=1)
        make, last = functools.partial(Block, heads, 4 * width, self.dtype), self.config.depth - 1
        x = run_blocks(self, make, last, x, key_valid, how=self.how)
        x = make(name=f"block_{last}")(x, key_valid, x.shape[1] - count)
        x = LayerNorm(name="norm")(x)
        return Dense(self.out_width, dtype=self.dtype, name="project")(x).astype(jnp.float32)


class Embed(nn.Module):
    """Tokens in the predictor's width, with their positions."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array) -> Array:
        """Tokens of P pairs and a position table [_, width] -> [P, R, width] float32."""
        y = Dense(self.width, dtype=self.dtype, name="embed")(tokens.states)
        return y.astype(jnp.float32) + table[tokens.index]
