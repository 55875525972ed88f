"""Sparse cross-attention to words in the predictor's layers (TC-JEPA, arXiv 2605.03245, Eq. 2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models.conditioner.base import Conditioner, Reading, Words, register
from jepa_vl.models.conditioner.contrast import contrast
from jepa_vl.models.conditioner.fusion import FUSIONS, Fuse
from jepa_vl.models.conditioner.similarity import REGULARISERS, normalised_entropy
from jepa_vl.models.layers import Dense, LayerNorm, Mlp
from jepa_vl.shapes import Array

Finish = Callable[[Array], Array]


def _before_mlp(finish: Finish, fuse: Fuse, x: Array, read: Array, captions: Array) -> Array:
    """One MLP a token. Exact for the maximum and means: the residual is common to all captions."""
    return finish(x + fuse(read, captions))


def _after_mlp(finish: Finish, fuse: Fuse, x: Array, read: Array, captions: Array) -> Array:
    """One MLP a token and caption."""
    # An image without captions goes on with the first, which has read 0.
    first = jnp.arange(captions.shape[-1]) == 0
    captions = captions | (first & ~jnp.any(captions, axis=-1, keepdims=True))
    return fuse(finish(x[:, :, None] + read), captions)


POOLS = {"before_mlp": _before_mlp, "after_mlp": _after_mlp}


@register("word_attention")
class WordAttention(Conditioner):
    """Each token attends to the words of each caption, then captions are fused (Eq. 2 to 4).

    One head, no bias, no output projection; q is the plain output of the block; an MLP with
    residual and a LayerNorm follow. With ``mlp_ratio`` 0, which is ours, the LayerNorm alone.
    """

    settings = ("layers", "fusion", "pool", "scale_logits")
    reads = True
    word_level = True

    @nn.compact
    def __call__(
        self, x: Array, words: Words, valid: Array | None = None, judged: int | None = None
    ) -> tuple[Array, Reading]:
        """Reads the captions.

        Args:
          x: [B, R, P] float32; keys and values are computed once an image.
          words: see :class:`Words`.
          valid: bool [B, judged], False for padding; None: all valid.
          judged: how many of the first tokens the contrast reads; None: all.

        Returns:
          [B, R, P] float32, and the :class:`Reading`. An image without captions gets attention 0.
        """
        width = x.shape[-1]
        t = words.states

        def project(name: str, tokens: Array) -> Array:
            return Dense(width, use_bias=False, dtype=self.dtype, name=name)(tokens)

        q, k, v = project("q", x), project("k", t), project("v", t)
        mask = words.present
        # One product serves the softmax and the cosine; both are float32 (unscaled logits grow).
        logits = jnp.einsum("brp,bnsp->brns", q, k).astype(jnp.float32)
        scaled = logits * width**-0.5 if self.scale_logits else logits
        # A finite floor: -inf would make the softmax of a missing caption NaN.
        attention = jax.nn.softmax(jnp.where(mask[:, None], scaled, -1e9), axis=-1)
        attention = attention * mask[:, None]
        read = jnp.einsum("brns,bnsp->brnp", attention.astype(self.dtype), v).astype(jnp.float32)

        norm = LayerNorm(name="norm")

        def finish(y: Array) -> Array:
            if self.mlp_ratio:
                mlp = Mlp(int(width * self.mlp_ratio), self.dtype, name="mlp")
                y = y + mlp(y).astype(jnp.float32)
            return norm(y)

        fuse = FUSIONS[self.fusion]()
        x = POOLS[self.pool](finish, fuse, x, read, words.caption_mask)
        keys, queries = k.astype(jnp.float32), q.astype(jnp.float32)
        overlap = REGULARISERS[self.similarity].similarity(logits, queries, keys, mask)
        entropy = normalised_entropy(attention, jnp.sum(mask, axis=-1)[:, None])
        apart = jnp.zeros(x.shape[0])
        if self.others:
            apart = contrast(queries[:, :judged], keys, words, valid, self.others)
        return x, Reading(overlap, entropy, apart)

    def read(
        self, x: Array, valid: Array | None, words: Words | None
    ) -> tuple[Array, Reading | None]:
        """See :meth:`Conditioner.read`; all block copies of an image share keys and values.

        The contrast reads the first copy: the others show the same context.
        """
        assert words is not None
        b, m, t, width = x.shape
        first = None if valid is None else valid[:, 0]
        y, (overlap, entropy, apart) = self(x.reshape(b, m * t, width), words, first, t)
        overlap, entropy = (r.reshape(b, m, t, *r.shape[2:]) for r in (overlap, entropy))
        return y.reshape(x.shape), Reading(overlap, entropy, apart)
