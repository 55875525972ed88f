"""Ablation of TC-JEPA: the pooled caption scales and shifts the LayerNorms of each block."""

import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.conditioner.base import Conditioner, Words, mean_words, register
from jepa_vl.models.conditioner.fusion import FUSIONS
from jepa_vl.models.layers import Dense, Modulation
from jepa_vl.shapes import Array


@register("adaln")
class AdaLN(Conditioner):
    """Adaptive LayerNorm (DiT, arXiv 2212.09748): LN(x) (1 + scale) + shift, from the mean word.

    Captions are fused in the space of scales and shifts. The map starts at 0, as in DiT, so that
    the block starts as the unconditioned one; an image without captions keeps it.
    """

    settings = ("layers", "fusion")

    @nn.compact
    def modulate(self, words: Words | None, width: int) -> Modulation | None:
        """See :meth:`Conditioner.modulate`."""
        assert words is not None
        zeros = nn.initializers.zeros
        made: Array = Dense(4 * width, dtype=self.dtype, init=zeros, name="modulation")(
            mean_words(words)
        )
        made = FUSIONS[self.fusion]()(made.astype(jnp.float32)[:, None], words.caption_mask)
        return Modulation(*jnp.split(made, 4, axis=-1))
