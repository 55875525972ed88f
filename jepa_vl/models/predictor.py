"""The narrow predictor of I-JEPA, with places where a conditioner may let captions in."""

from typing import Any

import jax
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
    others: int = 0
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
          words: embedded captions; without them no conditioner is built.
          ctx_valid, tgt_valid: bool [B, K] and [B, M, C], where indices may be padding.

        Returns:
          Prediction [B, M, C, D] float32, and the readings of the L layers that give one, stacked
          on axis 0: similarity [L, B, M, K + C, N, S], entropy [L, B, M, K + C, N], contrast
          [L, B]; or None.
        """
        b, m, c = tgt_idx.shape
        sizes = check_shape("context", context, "B K _", B=b)
        check_shape("ctx_idx", ctx_idx, "B K", **sizes)
        k, width = sizes["K"], self.config.width
        table = jnp.asarray(sincos_table(width, self.grid))
        mask_token = self.param("mask_token", NORMAL, (width,))

        at_input, inside = conditioner.build(
            ConditionerConfig(kind="none") if words is None else self.conditioner,
            self.config.depth,
            self.similarity,
            self.others,
            self.dtype,
        )
        visible = Dense(width, dtype=self.dtype, name="embed")(context).astype(jnp.float32)
        visible = visible + table[ctx_idx]
        masked = mask_token + table[tgt_idx]
        copies = jnp.broadcast_to(visible[:, None], (b, m, k, width))
        valid = None
        if ctx_valid is not None and tgt_valid is not None:
            valid = jnp.broadcast_to(ctx_valid[:, None], (b, m, k))
            valid = jnp.concatenate([valid, tgt_valid], axis=2)
        x, valid = at_input.prepare(jnp.concatenate([copies, masked], axis=2), valid, words)
        key_valid = None if valid is None else valid.reshape(b * m, -1)

        readings = []
        for i, reader in enumerate(inside):
            x = x.reshape(b * m, -1, width)
            # Nobody reads the last block's context rows, unless a conditioner regularises them.
            only_block = i == len(inside) - 1 and not reader.reads
            modulation = jax.tree.map(
                lambda s: jnp.repeat(s, m, axis=0), reader.modulate(words, width)
            )
            block = Block(self.config.heads, 4 * width, self.dtype, name=f"block_{i}")
            x = block(x, key_valid, x.shape[1] - c if only_block else 0, modulation)
            x, reading = reader.read(x.reshape(b, m, -1, width), valid, words)
            if reading is not None:
                readings.append(reading)

        x = LayerNorm(name="norm")(x.reshape(b * m, -1, width)[:, -c:])
        prediction = Dense(self.out_width, dtype=self.dtype, name="project")(x)
        stacked = jax.tree.map(lambda *r: jnp.stack(r), *readings) if readings else None
        return prediction.astype(jnp.float32).reshape(b, m, c, self.out_width), stacked
