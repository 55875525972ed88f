"""Captions of an image in one row without padding, for towers that are computed in each step.

Most captions are a fraction of S words long; a tower that reads them padded computes the padding
too. Here the words of an image's captions stand one behind the other, and a word sees those of its
own caption alone, so that the embeddings are the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa_vl.shapes import Array, check_shape

Tower = Callable[[Array, Array], Array]


class Packed(NamedTuple):
    """Rows of R places, one an image.

    Attributes:
      ids: int32 [B, 1, R]; at places that are left over, any.
      caption: int32 [B, 1, R], the number of the caption that a word stands in, from 1; 0: none.
      place: int32 [B, N, S], where each word stands in its row; of padding, any.
    """

    ids: Array
    caption: Array
    place: Array


def pack(word_ids: Array, word_mask: Array, room: int) -> Packed:
    """Puts the words of an image behind each other, captions in their order.

    Args:
      word_ids: int32 [B, N, S].
      word_mask: bool [B, N, S], False for padding.
      room: R; words of an image beyond it are lost.
    """
    b, n, s = word_ids.shape
    there = word_mask.reshape(b, n * s)
    order = jnp.argsort(~there, axis=1, stable=True)[:, :room]
    words = jnp.sum(there, axis=1, keepdims=True)
    caption = jnp.where(jnp.arange(order.shape[1]) < words, order // s + 1, 0)
    ids = jnp.take_along_axis(word_ids.reshape(b, n * s), order, axis=1)
    place = jnp.clip(jnp.cumsum(there, axis=1) - 1, 0, order.shape[1] - 1)
    return Packed(ids[:, None], caption[:, None], place.reshape(b, n, s))


def embed(tower: Tower, word_ids: Array, word_mask: Array, room: int) -> Array:
    """What a tower says of the words of a batch, computed without padding where all words fit.

    Args:
      tower: ``(ids, mask) -> states [B, N, S, E]`` of a pretrained kind, see
        :class:`jepa_vl.models.text_layers.TextAttention` for its mask.
      word_ids: int32 [B, N, S].
      word_mask: bool [B, N, S].
      room: R, places in the row of an image. If an image of the batch has more words, all are
        computed padded in this step: slower, and the same numbers.

    Returns:
      [B, N, S, E]; 0 at padding.
    """
    sizes = check_shape("word_ids", word_ids, "B N S")
    check_shape("word_mask", word_mask, "B N S", **sizes)
    b, n, s = word_ids.shape

    def packed() -> Array:
        rows = pack(word_ids, word_mask, room)
        states = tower(rows.ids, rows.caption)[:, 0]
        index = rows.place.reshape(b, n * s, 1)
        return jnp.take_along_axis(states, index, axis=1).reshape(b, n, s, -1)

    fits = jnp.all(jnp.sum(word_mask, axis=(1, 2)) <= room)
    # In this order: what counts FLOPs and cycles reads the first branch of a choice.
    states = jax.lax.cond(~fits, lambda: tower(word_ids, word_mask), packed)
    return jnp.where(word_mask[..., None], states, 0.0)
