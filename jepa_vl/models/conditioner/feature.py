"""Ablation of TC-JEPA: the mean-pooled caption is mixed into the predictor's input."""

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.conditioner.base import Conditioner, Words, mean_words, register
from jepa_vl.models.conditioner.fusion import FUSIONS
from jepa_vl.models.layers import LayerNorm, Mlp
from jepa_vl.shapes import Array


@register("feature")
class Feature(Conditioner):
    """z + MLP(LN([z, mean word])) for each token, context and mask tokens alike, fused before +."""

    settings = ("fusion",)
    at_input = True
    needs_mlp = True

    @nn.compact
    def prepare(
        self, x: Array, valid: Array | None, words: Words | None
    ) -> tuple[Array, Array | None]:
        """See :meth:`Conditioner.prepare`."""
        assert words is not None
        b, m, t, width = x.shape
        caption = mean_words(words)
        n, e = caption.shape[1:]
        pairs = jnp.concatenate([
            jnp.broadcast_to(x.reshape(b, m * t, 1, width), (b, m * t, n, width)),
            jnp.broadcast_to(caption[:, None], (b, m * t, n, e)),
        ], axis=-1)  # fmt: skip
        hidden = int(width * self.mlp_ratio)
        update = Mlp(hidden, self.dtype, features=width, name="mlp")(LayerNorm(name="norm")(pairs))
        update = FUSIONS[self.fusion]()(update.astype(jnp.float32), words.caption_mask)
        return x + update.reshape(x.shape), valid
