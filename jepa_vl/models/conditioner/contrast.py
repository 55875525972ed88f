"""Words must find patches of their own image: a contrast of captions, ours and not TC-JEPA's.

The loss of TC-JEPA asks the context encoder for what the text does *not* tell of the targets; its
regularisers make a patch pick few words, whichever. Nothing asks that a patch picks a word that is
true of it. This term does, through the queries and keys that the conditioner has anyway.
"""

import jax
import jax.numpy as jnp

from jepa_vl.models import fast
from jepa_vl.models.conditioner.base import Words
from jepa_vl.shapes import Array

TEMPERATURE = 1 / 30  # of the softmax over captions


def _unit(x: Array) -> Array:
    return x / fast.safe_norm(x)[..., None]


def scores(q: Array, k: Array, present: Array, valid: Array | None) -> Array:
    """How well captions fit tokens: float32 [B], in [-1, 1].

    For each word the cosine of the token that it fits best; then means over the words of a
    caption and over captions. -inf for images without captions.

    Args:
      q: unit vectors, float32 [B, T, P]; k: unit vectors, float32 [B, N, S, P].
      present: bool [B, N, S], words of captions that exist.
      valid: bool [B, T], False for padding; None: all valid.
    """
    cosine = jnp.einsum("btp,bnsp->btns", q, k)
    if valid is not None:
        cosine = jnp.where(valid[:, :, None, None], cosine, -1.0)
    b, t, n, s = cosine.shape
    best = fast.max_first(cosine.reshape(b, t, n * s)).reshape(b, n, s)
    of_caption = jnp.sum(jnp.where(present, best, 0.0), axis=-1)
    of_caption = of_caption / jnp.maximum(jnp.sum(present, axis=-1), 1)
    captions = jnp.any(present, axis=-1)
    mean = jnp.sum(of_caption, axis=-1) / jnp.maximum(jnp.sum(captions, axis=-1), 1)
    return jnp.where(jnp.any(captions, axis=-1), mean, -jnp.inf)


def contrast(q: Array, k: Array, words: Words, valid: Array | None, others: int) -> Array:
    """Cross-entropy of an image's own captions among those of other images of the batch.

    Captions are rolled along the batch, so on a mesh they are exchanged between devices, and the
    value does not depend on it. Of captions that several images share nothing is known: such a
    pair counts as a wrong one.

    Args:
      q: queries, float32 [B, T, P], of the tokens of an image.
      k: keys, float32 [B, N, S, P].
      words: see :class:`Words`; its states are not read.
      valid: bool [B, T], False for padding; None: all valid.
      others: images whose captions stand against an image's own; at most B - 1 are.

    Returns:
      float32 [B]; 0 for images without captions.
    """
    q, k = _unit(q), _unit(k)
    present = words.existing.present
    candidates = []
    for shift in range(min(others, q.shape[0] - 1) + 1):
        keys, there = (jnp.roll(x, shift, axis=0) for x in (k, present))
        candidates.append(scores(q, keys, there, valid))
    fit = jnp.stack(candidates, axis=-1) / TEMPERATURE
    captioned = jnp.isfinite(fit[:, 0])
    # The first column may be -inf: it must not reach the softmax, not even under a where.
    fit = jnp.where(captioned[:, None] | (jnp.arange(fit.shape[-1]) > 0), fit, 0.0)
    return jnp.where(captioned, -jax.nn.log_softmax(fit, axis=-1)[:, 0], 0.0)
