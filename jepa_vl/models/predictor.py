"""The narrow predictor of I-JEPA, with places where a conditioner may let captions in."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models import conditioner
from jepa_vl.models.conditioner import Conditioner, Reading, Words
from jepa_vl.models.layers import NORMAL, Block, Dense, LayerNorm, sincos_table
from jepa_vl.models.stack import Plan, fold, is_in_place
from jepa_vl.schema import ConditionerConfig, PredictorConfig
from jepa_vl.shapes import Array, PyTree, check_shape


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
    how: Plan = Plan()

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
        x, readings = self._layers(x, valid, words, inside, c)
        x = LayerNorm(name="norm")(x[:, :, -c:].reshape(b * m, c, width))
        prediction = Dense(self.out_width, dtype=self.dtype, name="project")(x)
        return prediction.astype(jnp.float32).reshape(b, m, c, self.out_width), readings

    def _layers(
        self, x: Array, valid: Array | None, words: Words | None, readers: list[Conditioner], c: int
    ) -> tuple[Array, Reading | None]:
        """All layers; the last of them may keep the last c tokens alone."""
        last, readings = len(readers) - 1, []
        # Nobody reads the last block's context rows, unless a conditioner regularises them.
        alike = [(type(r), i == last and not r.reads) for i, r in enumerate(readers)]
        for (kind, skips), group in itertools.groupby(range(len(readers)), key=alike.__getitem__):
            x, found = self._run(list(group), readers, x, valid, words, c if skips else 0)
            readings += [found] if kind.reads else []
        if not readings:
            return x, None
        stacked: Reading = jax.tree.map(lambda *parts: jnp.concatenate(parts), *readings)
        return x, apart(stacked, x.shape[1])

    def _run(
        self, places: list[int], readers: list[Conditioner], x: Array, valid: Array | None,
        words: Words | None, tail: int,
    ) -> tuple[Array, Reading | None]:  # fmt: skip
        """Layers of one kind, in a row; their readings on axis 0."""
        make = functools.partial(Block, self.config.heads, 4 * self.config.width, self.dtype)
        if is_in_place(self, self.how):
            found = []
            for i in places:
                block = make(name=f"block_{i}")
                x, reading = run_layer(block, readers[i], x, valid, words, tail)
                found.append(kept(reading, self.dtype))
            return x, jax.tree.map(lambda *parts: jnp.stack(parts), *found)
        own: Any = self.variables["params"]
        params = [
            {"block": own[f"block_{i}"], "conditioner": own.get(f"conditioner_{i}", {})}
            for i in places
        ]
        layer = Layer(
            make(parent=None), readers[places[0]].clone(parent=None, name=None), parent=None
        )

        def run(params: PyTree, x: Array) -> tuple[Array, Reading | None]:
            done: Any = layer.apply({"params": params}, x, valid, words, tail)
            return done[0], kept(done[1], self.dtype)

        return fold(run, params, x, self.how, self.dtype)


class Layer(nn.Module):
    """A block and the conditioner that reads captions around it."""

    block: Block
    conditioner: Conditioner

    def __call__(self, x: Array, *seen: Any) -> tuple[Array, Reading | None]:
        """See :func:`run_layer`."""
        return run_layer(self.block, self.conditioner, x, *seen)


def run_layer(
    block: Block, reader: Conditioner, x: Array, valid: Array | None, words: Words | None, tail: int
) -> tuple[Array, Reading | None]:
    """x [B, M, T, P], valid bool [B, M, T] -> x again, of the last ``tail`` tokens if not 0."""
    b, m, t, width = x.shape
    key_valid = None if valid is None else valid.reshape(b * m, t)
    modulation = jax.tree.map(lambda s: jnp.repeat(s, m, axis=0), reader.modulate(words, width))
    x = block(x.reshape(b * m, t, width), key_valid, t - tail if tail else 0, modulation)
    return reader.read(x.reshape(b, m, -1, width), valid, words)


def kept(reading: Reading | None, dtype: Any) -> Reading | None:
    """A layer's reading as a stack of layers holds it: similarity [B, M T, N, S] in ``dtype``.

    It is the largest thing that outlives its layer. Copies and tokens on one axis are how the
    layer computes it, and fill the rows of a TPU's memory better.
    """
    if reading is None:
        return None
    o = reading.similarity
    joined = o.reshape(o.shape[0], -1, *o.shape[3:]).astype(dtype)
    return reading._replace(similarity=joined)


def apart(reading: Reading, copies: int) -> Reading:
    """Of all layers, as :class:`Predictor` gives it: similarity [L, B, M, T, N, S] float32."""
    o = reading.similarity
    shape = (*o.shape[:2], copies, -1, *o.shape[3:])
    return reading._replace(similarity=o.astype(jnp.float32).reshape(shape))
