"""The two sides of a cross-modal pair: what is read, shown, asked for and expected."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa_vl.models.cross_predictor import Tokens
from jepa_vl.models.layers import gather
from jepa_vl.objectives.base import as_targets, masked_pool
from jepa_vl.shapes import Array

Encode = Callable[..., Array]


class Side(NamedTuple):
    """One modality of R images or captions.

    Attributes:
      tokens: all its online tokens; the other modality is predicted from them.
      own: its tokens that the predictor of this modality sees; none for pure prediction.
      query_idx: int32 [R, C], positions asked for; None for the pooled vector.
      targets: float32 [R, C, D], without gradient.
      tgt_valid: bool [R, C].
    """

    tokens: Tokens
    own: Tokens
    query_idx: Array | None
    targets: Array
    tgt_valid: Array


class View(NamedTuple):
    """How the positions of R rows are split: shown [R, K] and asked [R, C], int32.

    ``shown_valid`` bool [R, K], ``asked_valid`` bool [R, C]: False at padding; no position is valid
    in both.
    """

    shown: Array
    shown_valid: Array
    asked: Array
    asked_valid: Array


class Pure:
    """Nothing of the target modality is shown; every position is asked for."""

    def image(self, valid: Array, key: Array) -> View:
        """Splits the patches, bool [R, T]."""
        del key
        return View(*_none(valid), _positions(valid), valid)

    text = image


@dataclass(frozen=True)
class Partial:
    """A random share of the target modality's own tokens is shown, the others are asked for."""

    fraction: float

    def image(self, valid: Array, key: Array) -> View:
        """A fixed number of patches, so that the encoder skips the others."""
        rows, count = valid.shape
        shown = min(max(round(self.fraction * count), 1), count - 1)
        order = jnp.argsort(_chance(key, (rows, count)), axis=1).astype(jnp.int32)
        parts = order[:, :shown], order[:, shown:]
        return View(parts[0], valid[:, :shown], parts[1], valid[:, shown:])

    def text(self, valid: Array, key: Array) -> View:
        """Each word by itself: captions differ in length."""
        chosen = valid & (_chance(key, valid.shape) < self.fraction)
        positions = _positions(valid)
        return View(positions, chosen, positions, valid & ~chosen)


def _chance(key: Array, shape: tuple[int, int]) -> Array:
    """Uniform [R, T], by one key, or by a key for each row, [R], whatever the other rows."""
    if not key.ndim:
        return jax.random.uniform(key, shape)
    return jax.vmap(lambda own: jax.random.uniform(own, shape[1:]))(key)


def _positions(valid: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(valid.shape[1], dtype=jnp.int32), valid.shape)


def _none(valid: Array) -> tuple[Array, Array]:
    rows = valid.shape[0]
    return jnp.zeros((rows, 0), jnp.int32), jnp.zeros((rows, 0), bool)


def token_targets(features: Array, valid: Array, view: View) -> tuple[Array, Array, Array]:
    """Each asked token: positions, LayerNorm of features [R, T, D] there, validity."""
    del valid
    return view.asked, gather(as_targets(features), view.asked), view.asked_valid


def pooled_targets(features: Array, valid: Array, view: View) -> tuple[None, Array, Array]:
    """One target a row: LayerNorm of the mean over valid [R, T] of all its tokens."""
    del view
    pooled = as_targets(masked_pool(features, valid))[:, None]
    return None, pooled, jnp.any(valid, axis=1, keepdims=True)


Targets = Callable[[Array, Array, View], tuple[Array | None, Array, Array]]
TARGETS: dict[str, Targets] = {"tokens": token_targets, "pooled": pooled_targets}


def image_side(
    online: Encode, ema: Encode, images: Array, view: Pure | Partial, targets: Targets, key: Array
) -> Side:
    """The side of images [R, H, W, 3].

    Args:
      online, ema: ``(images, visible patches or None) -> tokens``, by either tower.
      view: what is shown and asked for; targets: of :data:`TARGETS`.
      key: of the view; or one for each row, [R].
    """
    full = online(images)
    valid = jnp.ones(full.shape[:2], bool)
    seen = view.image(valid, key)
    shown = full[:, :0] if seen.shown.shape[1] == 0 else online(images, seen.shown)
    tokens = Tokens(full, _positions(valid), valid)
    own = Tokens(shown, seen.shown, seen.shown_valid)
    with jax.named_scope("target"):
        wanted = ema(images)
    return Side(tokens, own, *targets(wanted, valid, seen))


def text_side(
    online: Encode, ema: Encode, mask: Array, view: Pure | Partial, targets: Targets, key: Array
) -> Side:
    """The side of captions, one row each.

    Args:
      online, ema: ``words to read, bool [B, N, S] -> states [B * N, S, E]``, by either tower.
      mask: bool [B, N, S], the words that there are.
      view, targets, key: as for :func:`image_side`.
    """
    full, valid = online(mask), mask.reshape(-1, mask.shape[-1])
    seen = view.text(valid, key)
    shown = full[:, :0]
    if seen.shown.shape[1]:  # the words to predict are hidden from the tower too
        shown = online(seen.shown_valid.reshape(mask.shape))
    tokens = Tokens(full, _positions(valid), valid)
    own = Tokens(shown, seen.shown, seen.shown_valid)
    with jax.named_scope("target"):
        wanted = ema(mask)
    return Side(tokens, own, *targets(wanted, valid, seen))
