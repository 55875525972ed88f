"""Ablation of TC-JEPA: words as further tokens of the predictor's sequence."""

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.conditioner.base import Conditioner, Words, register
from jepa_vl.models.layers import Dense
from jepa_vl.shapes import Array


@register("sequence")
class WordSequence(Conditioner):
    """The words of all captions, projected to the predictor's width, join each block copy.

    Self-attention reads them, all captions at once: there is nothing to fuse. The order of words is
    in their embeddings; that of captions means nothing.
    """

    at_input = True

    @nn.compact
    def prepare(
        self, x: Array, valid: Array | None, words: Words | None
    ) -> tuple[Array, Array | None]:
        """See :meth:`Conditioner.prepare`; T grows by N * S."""
        assert words is not None
        b, m, t, width = x.shape
        present = words.present.reshape(b, -1)
        states = words.states.reshape(b, present.shape[1], -1)
        # Made 0 before it becomes tokens: a weight of 0 does not stop what is not finite.
        states = jnp.where(present[..., None], states, 0.0)
        tokens = Dense(width, dtype=self.dtype, name="embed")(states).astype(jnp.float32)
        tokens = jnp.broadcast_to(tokens[:, None], (b, m, *tokens.shape[1:]))
        known = jnp.broadcast_to(present[:, None], (b, m, present.shape[1]))
        rest = jnp.ones((b, m, t), bool) if valid is None else valid
        return jnp.concatenate([tokens, x], axis=2), jnp.concatenate([known, rest], axis=2)
