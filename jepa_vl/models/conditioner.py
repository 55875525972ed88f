"""Conditioners: how one predictor layer reads the captions (TC-JEPA, arXiv 2605.03245, Eq. 2).

A conditioner is a module ``(x, words) -> (x, reading)`` chosen by name from :data:`CONDITIONERS`;
adding one touches this registry and nothing else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jepa_vl.models import fast
from jepa_vl.models.layers import Dense, LayerNorm, Mlp
from jepa_vl.schema import ConditionerConfig
from jepa_vl.shapes import Array


class Words(NamedTuple):
    """Embedded captions of a batch.

    Attributes:
      states: [B, N, S, E], word embeddings; padding holds anything.
      word_mask: bool [B, N, S], True for words.
      caption_mask: bool [B, N], True for captions that exist.
    """

    states: Array
    word_mask: Array
    caption_mask: Array


class Reading(NamedTuple):
    """What one conditioner saw; R runs over all tokens of all block copies of an image.

    Attributes:
      similarity: float32 [B, R, N, S], O of TC-JEPA: >= 0, and 0 at padding.
      entropy: float32 [B, R, N], of the attention over words, divided by log(number of words).
    """

    similarity: Array
    entropy: Array


def paper_similarity(logits: Array, q: Array, k: Array, word_mask: Array) -> Array:
    """O = max(cos(q, k), 0), literally. One vector added to all keys can drive it to 0 for good."""
    cosine = logits / (fast.safe_norm(q)[:, :, None, None] * fast.safe_norm(k)[:, None])
    return jax.nn.relu(cosine) * word_mask[:, None]


def centred_similarity(logits: Array, q: Array, k: Array, word_mask: Array) -> Array:
    """O = max(cos(q, k - mean of the caption's keys), 0).

    Blind to a shift of all keys, as the softmax is; some word is always positive. Captions of one
    word have O = 0.
    """
    valid = word_mask.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1.0)
    mean_logit = jnp.sum(logits * valid[:, None], axis=-1, keepdims=True) / count[:, None]
    mean_key = jnp.sum(k * valid[..., None], axis=-2, keepdims=True) / count[..., None]
    # Masked before the norm: a padded key must not bring its gradient through the square root.
    centred = jnp.where(word_mask[..., None], k - mean_key, 0.0)
    norms = fast.safe_norm(q)[:, :, None, None] * fast.safe_norm(centred)[:, None]
    return jax.nn.relu((logits - mean_logit) / norms) * word_mask[:, None]


SIMILARITIES = {
    "paper": paper_similarity,
    "centred": centred_similarity,
    "off": paper_similarity,  # not in the loss, still measured
}


class WordAttention(nn.Module):
    """Sparse cross-attention to words, max-pooled over captions (TC-JEPA Eq. 2 to 4).

    One head, no bias, no output projection; q is the plain output of the block. The maximum over
    captions is taken before the MLP, which is exact since the residual is common to all captions.
    """

    mlp_ratio: float
    scale_logits: bool
    similarity: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, words: Words) -> tuple[Array, Reading]:
        """Reads the captions.

        Args:
          x: [B, R, P] float32; keys and values are computed once an image.
          words: see :class:`Words`.

        Returns:
          [B, R, P] float32, and the :class:`Reading`. An image without captions gets attention 0.
        """
        width = x.shape[-1]
        t = words.states

        def project(name: str, tokens: Array) -> Array:
            return Dense(width, use_bias=False, dtype=self.dtype, name=name)(tokens)

        q, k, v = project("q", x), project("k", t), project("v", t)
        mask = words.word_mask & words.caption_mask[..., None]
        # One product serves the softmax and the cosine; both are float32 (unscaled logits grow).
        logits = jnp.einsum("brp,bnsp->brns", q, k).astype(jnp.float32)
        scaled = logits * width**-0.5 if self.scale_logits else logits
        # A finite floor: -inf would make the softmax of a missing caption NaN.
        attention = jax.nn.softmax(jnp.where(mask[:, None], scaled, -1e9), axis=-1)
        attention = attention * mask[:, None]
        read = jnp.einsum("brns,bnsp->brnp", attention.astype(self.dtype), v).astype(jnp.float32)
        read = jnp.where(words.caption_mask[:, None, :, None], read, -1e9)
        any_caption = jnp.any(words.caption_mask, axis=-1)[:, None, None]
        x = x + jnp.where(any_caption, fast.max_first(read), 0.0)

        hidden = int(width * self.mlp_ratio)
        x = LayerNorm(name="norm")(x + Mlp(hidden, self.dtype, name="mlp")(x).astype(jnp.float32))
        keys, queries = k.astype(jnp.float32), q.astype(jnp.float32)
        overlap = SIMILARITIES[self.similarity](logits, queries, keys, mask)
        return x, Reading(overlap, _entropy(attention, mask))


def _entropy(attention: Array, mask: Array) -> Array:
    """Entropy of [B, R, N, S] over S, divided by its maximum; 0 for captions of one word."""
    entropy = -jnp.sum(attention * jnp.log(jnp.maximum(attention, 1e-20)), axis=-1)
    count = jnp.sum(mask, axis=-1)[:, None]
    return jnp.where(count > 1, entropy / jnp.log(jnp.maximum(count, 2)), 0.0)


CONDITIONERS = {"word_attention": WordAttention}


def build(config: ConditionerConfig, similarity: str, dtype: Any, name: str) -> nn.Module | None:
    """One layer's conditioner, or None for I-JEPA."""
    if config.kind == "none":
        return None
    return CONDITIONERS[config.kind](
        mlp_ratio=config.mlp_ratio,
        scale_logits=config.scale_logits,
        similarity=similarity,
        dtype=dtype,
        name=name,
    )
