"""The narrow predictor of I-JEPA, with an optional conditioner after each block."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models import conditioner
from jepa_vl.models.conditioner import Reading, Words
from jepa_vl.models.layers import NORMAL, Block, Dense, LayerNorm, sincos_table
from jepa_vl.schema import ConditionerConfig, PredictorConfig
from jepa_vl.shapes import Array, check_shape


class Predictor(nn.Module):
    """Predicts the target encoder's features of masked patches.

    Each target block is a sequence of its own, [context ; block]: blocks never see each other.
    """

    grid: int
    out_width: int
    config: PredictorConfig
    conditioner: ConditionerConfig
    similarity: str = "paper"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        context: Array,
        ctx_idx: Array,
        tgt_idx: Array,
        words: Words | None = None,
        ctx_valid: Array | None = None,
        tgt_valid: Array | None = None,
    ) -> tuple[Array, Reading | None]:
        """Predicts.

        Args:
          context: [B, K, D] float32, features of the visible patches.
          ctx_idx: int32 [B, K]; tgt_idx: int32 [B, M, C].
          words: embedded captions; None without a conditioner.
          ctx_valid, tgt_valid: bool [B, K] and [B, M, C], where indices may be padding.

        Returns:
          Prediction [B, M, C, D] float32, and the readings of all layers stacked on axis 0:
          similarity [L, B, M, K + C, N, S], entropy [L, B, M, K + C, N]; None without words.
        """
        b, m, c = tgt_idx.shape
        sizes = check_shape("context", context, "B K _", B=b)
        check_shape("ctx_idx", ctx_idx, "B K", **sizes)
        k, width = sizes["K"], self.config.width
        table = jnp.asarray(sincos_table(width, self.grid))
        mask_token = self.param("mask_token", NORMAL, (width,))

        visible = Dense(width, dtype=self.dtype, name="embed")(context).astype(jnp.float32)
        visible = visible + table[ctx_idx]
        masked = mask_token + table[tgt_idx]
        copies = jnp.broadcast_to(visible[:, None], (b, m, k, width))
        x = jnp.concatenate([copies, masked], axis=2).reshape(b * m, k + c, width)
        key_valid = None
        if ctx_valid is not None and tgt_valid is not None:
            copies = jnp.broadcast_to(ctx_valid[:, None], (b, m, k))
            key_valid = jnp.concatenate([copies, tgt_valid], axis=2).reshape(b * m, k + c)

        readings = []
        for i in range(self.config.depth):
            last = i == self.config.depth - 1
            # Nobody reads the last block's context rows, unless a conditioner regularises them.
            first_query = k if last and words is None else 0
            block = Block(self.config.heads, 4 * width, self.dtype, name=f"block_{i}")
            x = block(x, key_valid, first_query)
            reader = conditioner.build(
                self.conditioner, self.similarity, self.dtype, name=f"conditioner_{i}"
            )
            if reader is not None and words is not None:
                x, reading = reader(x.reshape(b, m * (k + c), width), words)
                x = x.reshape(b * m, k + c, width)
                readings.append(Reading(*(r.reshape(b, m, k + c, *r.shape[2:]) for r in reading)))

        x = LayerNorm(name="norm")(x[:, -c:])
        prediction = Dense(self.out_width, dtype=self.dtype, name="project")(x).astype(jnp.float32)
        stacked = (
            Reading(*(jnp.stack(r) for r in zip(*readings, strict=True))) if readings else None
        )
        return prediction.reshape(b, m, c, self.out_width), stacked
