"""The regularisers: similarities of patches and words, and how dense they are."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa_vl.models import fast
from jepa_vl.shapes import Array

ENTROPY_TEMPERATURE = 0.1  # of the softmax over cosines


def _cosine(logits: Array, q: Array, k: Array) -> Array:
    # From the product that the softmax needs anyway: no [B, R, N, S, P] array is ever made.
    return logits / (fast.safe_norm(q)[:, :, None, None] * fast.safe_norm(k)[:, None])


def paper_similarity(logits: Array, q: Array, k: Array, word_mask: Array) -> Array:
    """O = max(cos(q, k), 0), literally. One vector added to all keys can drive it to 0 for good.

    Args:
      logits: float32 [B, R, N, S], unscaled products of queries and keys.
      q: float32 [B, R, P]; k: float32 [B, N, S, P].
      word_mask: bool [B, N, S].

    Returns:
      float32 [B, R, N, S], >= 0, and 0 where masked; so do all functions here.
    """
    return jax.nn.relu(_cosine(logits, q, k)) * word_mask[:, None]


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


def entropy_similarity(logits: Array, q: Array, k: Array, word_mask: Array) -> Array:
    """p = softmax(cos(q, k) / 0.1) over the words that there are: no dead zone, each word has > 0.

    Its L1 norm is always 1; the normalised entropy stands in its place.
    """
    sharp = _cosine(logits, q, k) / ENTROPY_TEMPERATURE
    weights = jax.nn.softmax(jnp.where(word_mask[:, None], sharp, -1e9), axis=-1)
    return weights * word_mask[:, None]


def normalised_entropy(weights: Array, count: Array) -> Array:
    """Entropy over the last axis, divided by its maximum.

    Args:
      weights: [..., S], a distribution over the words, 0 at padding.
      count: int [...], words; broadcast.

    Returns:
      [...] in [0, 1]; 0 where there are fewer than two words.
    """
    entropy = -jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-20)), axis=-1)
    return jnp.where(count > 1, entropy / jnp.log(jnp.maximum(count, 2)), 0.0)


def _itself(similarity: Array) -> Array:
    return similarity


def _entropy(weights: Array) -> Array:
    """Normalised entropy, as the one entry of the axis of words; each word has a weight above 0."""
    return normalised_entropy(weights, jnp.sum(weights > 0, axis=-1))[..., None]


class Regulariser(NamedTuple):
    """One choice of ``loss.regulariser``.

    Attributes:
      similarity: what is measured, see :func:`paper_similarity`.
      density: of [..., S] what L_sparse sums over the last axis, and what is to be small.
    """

    similarity: Callable[[Array, Array, Array, Array], Array]
    density: Callable[[Array], Array] = _itself


REGULARISERS: dict[str, Regulariser] = {
    "paper": Regulariser(paper_similarity),
    "centred": Regulariser(centred_similarity),
    # A distribution's sum is 1 however sparse it is, its entropy is not.
    "entropy": Regulariser(entropy_similarity, _entropy),
    "off": Regulariser(paper_similarity),  # not in the loss, still measured
}
