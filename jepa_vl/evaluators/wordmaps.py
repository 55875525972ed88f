"""Where each word looks: similarities of words and patches, back on the grid, and a test of them.

What is averaged is O of TC-JEPA (arXiv 2605.03245), the similarity that the regularisers see. It is
read in the predictor, at visible patches and at patches to be predicted, which it has never seen.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl.data import captions, masking
from jepa_vl.data.captions import CaptionReader
from jepa_vl.data.masking import MaskPlan
from jepa_vl.evaluators.features import from_all_hosts
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import batch_sharding, replicated

MASKS = 32  # different ones in a draw, where rows have numbers
OWN_SHARE = 0.25  # a patch belongs to an object that covers this share of it


class WordMaps(NamedTuple):
    """Mean similarity of each word at each patch, float32 [B, N, S, G, G], over layers and draws.

    Attributes:
      both: over all tokens. context: at visible patches. target: at patches to be predicted.
        Patches that no draw has put there are 0.
    """

    both: Array
    context: Array
    target: Array


def word_maps(
    objective: Any,
    params: PyTree,
    target: PyTree,
    frozen: PyTree,
    batch: dict[str, Array],
    plan: MaskPlan,
    draws: int = 16,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> WordMaps:
    """Averages O over layers and over masks drawn at random, which together cover the image.

    Args:
      objective: one that reads text; ``loss`` gives ``aux["reading"]``.
      params: of the objective; target: of its EMA encoder; frozen: weights beside them.
      batch: ``image`` [B, H, W, 3], the words in ``word_ids`` [B, N, S] or ``word_states``
        [B, N, S, E], ``word_mask`` [B, N, S], ``caption_mask`` [B, N].
      plan: of the masks.
      draws: masks an image.
      seed: of the draws; image i of the batch gets the same masks whatever the image.
      numbers: of the rows in the data, which their masks then depend on in the place of i.
      mesh: devices that share the batch; None: one.
    """
    reader = _reader(objective, plan.grid, mesh)
    total = _total(reader, (params, target, frozen), batch, plan, draws, seed, numbers, mesh)
    (at_context, context_count), (at_target, target_count) = total
    return WordMaps(
        _mean(at_context + at_target, context_count + target_count, plan.grid),
        _mean(at_context, context_count, plan.grid),
        _mean(at_target, target_count, plan.grid),
    )


def layer_maps(
    objective: Any,
    params: PyTree,
    target: PyTree,
    frozen: PyTree,
    batch: dict[str, Array],
    plan: MaskPlan,
    draws: int = 16,
    seed: int = 0,
) -> Array:
    """O of each layer by itself, float32 [B, L, N, S, G, G], over all tokens; else as word_maps.

    Its mean over layers is ``word_maps(...).both``.
    """
    reader = _reader(objective, plan.grid, None, by_layer=True)
    total = _total(reader, (params, target, frozen), batch, plan, draws, seed, None, None)
    sums, count = (seen + wanted for seen, wanted in zip(*total, strict=True))
    found, captions_of = _mean(sums, count, plan.grid), batch["caption_mask"].shape[1]
    return found.reshape(len(found), -1, captions_of, *found.shape[2:])


def _total(
    read: Callable[..., Any],
    weights: tuple[PyTree, PyTree, PyTree],
    batch: dict[str, Array],
    plan: MaskPlan,
    draws: int,
    seed: int,
    numbers: Sequence[int] | None,
    mesh: Mesh | None,
) -> Any:
    """Sums and counts of all draws, at context and at target tokens."""
    size = len(batch["image"])
    rows = np.arange(size) if numbers is None else np.asarray(numbers) % MASKS
    drawn = size if numbers is None else MASKS
    names = ("image", "word_ids", "word_states", "word_mask", "caption_mask")
    put: Any = jnp.asarray
    if mesh is not None:
        put = functools.partial(from_all_hosts, place=batch_sharding(mesh))
    shown = {name: put(batch[name]) for name in names if name in batch}
    total: Any = None
    for draw in range(draws):
        masks = masking.draw(plan, drawn, np.random.default_rng([seed, draw]))
        masks = {name: put(array[rows]) for name, array in masks.items()}
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            sums = jax.device_get(read(*weights, {**shown, **masks}))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return total


def _mean(sums: Array, count: Array, grid: int) -> Array:
    """[B, G * G, N, S] and [B, G * G] to [B, N, S, G, G]."""
    average = sums / np.maximum(count, 1)[..., None, None]
    b, _, n, s = average.shape
    return np.moveaxis(average, 1, -1).reshape(b, n, s, grid, grid)


@functools.lru_cache(maxsize=2)
def _reader(
    objective: Any, grid: int, mesh: Mesh | None, by_layer: bool = False
) -> Callable[..., Any]:
    """Compiles one pass: sums and counts on the grid, at context and at target tokens.

    With a mesh every device gets the whole result: so does every process. ``by_layer``: layers are
    not averaged; they stand in front of the captions, [L * N] in the place of [N].
    """

    def scatter(values: Array, index: Array, valid: Array) -> tuple[Array, Array]:
        """values [B, R, N, S] at patches index [B, R]: sums [B, G * G, N, S], counts [B, G * G]."""
        rows = jnp.arange(index.shape[0])[:, None]
        weight = valid.astype(values.dtype)
        sums = jnp.zeros((index.shape[0], grid * grid, *values.shape[2:]))
        sums = sums.at[rows, index].add(values * weight[..., None, None])
        return sums, jnp.zeros(sums.shape[:2]).at[rows, index].add(weight)

    def read(params: PyTree, target: PyTree, frozen: PyTree, batch: dict[str, Array]) -> Any:
        key, ramp = jax.random.key(0), jnp.float32(1)
        _, _, aux = objective.loss(params, target, frozen, batch, key, ramp)
        o = aux["reading"].similarity  # [L, B, M, K + C, N, S]
        o = jnp.concatenate(o, axis=-2) if by_layer else jnp.mean(o, axis=0)
        ctx_idx, tgt_idx = batch["ctx_idx"], batch["tgt_idx"]
        (b, k), m = ctx_idx.shape, tgt_idx.shape[1]
        seen = jnp.broadcast_to(ctx_idx[:, None], (b, m, k))
        seen_valid = jnp.broadcast_to(
            batch.get("ctx_valid", jnp.ones_like(ctx_idx, bool))[:, None], (b, m, k)
        )
        wanted_valid = batch.get("tgt_valid", jnp.ones_like(tgt_idx, bool))
        parts = ((o[:, :, :k], seen, seen_valid), (o[:, :, k:], tgt_idx, wanted_valid))
        return tuple(
            scatter(x.reshape(b, -1, *x.shape[3:]), i.reshape(b, -1), v.reshape(b, -1))
            for x, i, v in parts
        )

    return jax.jit(read, out_shardings=None if mesh is None else replicated(mesh))


def by_word(reader: CaptionReader, text: str, maps: Array) -> tuple[list[str], Array]:
    """The words of a caption and their maps; a word of several pieces gets the mean of these.

    Args:
      reader: of the captions.
      text: the caption.
      maps: [S, G, G], by piece; captions longer than S pieces lose their end.

    Returns:
      W strings and [W, G, G]; a word without a piece of its own has a map of zeros.
    """
    owners = np.array([-1 if t.word is None else t.word for t in reader.tokens(text)], int)
    owners = owners[: len(maps)]
    words = captions.words(text)[: owners.max(initial=-1) + 1]
    if not words:
        return [], np.zeros((0, *maps.shape[1:]), np.float32)
    maps = maps[: len(owners)]
    pieces = [np.flatnonzero(owners == i) for i in range(len(words))]
    return words, np.stack([maps[p].sum(0) / max(1, len(p)) for p in pieces])


def captions_shown(texts: Sequence[str], count: int) -> list[int]:
    """Indices of the captions that ``CaptionReader.encode_all`` keeps, in its order."""
    return [i for i, text in enumerate(texts) if captions.words(text)][:count]


def own_patches(mask: Array, grid: int) -> Array:
    """bool [G, G]: patches that an object covers enough, in any case the one that it covers most.

    Args:
      mask: bool [H, W], where the object is seen.
      grid: G.
    """
    height, width = mask.shape
    rows, columns = np.arange(height) * grid // height, np.arange(width) * grid // width
    covered, area = np.zeros((grid, grid)), np.zeros((grid, grid))
    np.add.at(covered, (rows[:, None], columns[None]), mask)
    np.add.at(area, (rows[:, None], columns[None]), 1)
    share = covered / area
    return share >= min(OWN_SHARE, max(share.max(), 1e-9))


def points_at(heat: Array, own: Array) -> bool:
    """Is the maximum of a map [G, G] on one of the object's patches? A map of zeros is not."""
    return bool(heat.max() > 0 and own.ravel()[int(heat.argmax())])
