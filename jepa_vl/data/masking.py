"""Multi-block masks: which patches the encoder sees and which ones it must predict.

Two modes. ``production``, here, has static shapes and no bias by position: independent uniforms for
area and aspect, every cell reachable, random subsets instead of "the first rows". ``reference``,
in :mod:`jepa_vl.data.masking_reference`, reproduces the public I-JEPA collator with its quirks.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data.chance import Uniforms, from_generator, from_places
from jepa_vl.data.masking_reference import Range, Size, plan_reference
from jepa_vl.data.masking_reference import pad_reference as pad_reference
from jepa_vl.data.masking_reference import reference_masks as reference_masks
from jepa_vl.shapes import Array

RETRIES = 32  # draws of the offsets before the constructive fallback
CONTEXT_SHARE = 0.27  # of the grid, when masks.context_tokens = 0
PROBES = 64  # images that the plan tries before it accepts a context size
HIDDEN = 2.0  # in place of a uniform draw: this cell comes last


@dataclass(frozen=True)
class MaskPlan:
    """Everything that mask drawing needs; checked to be feasible by :func:`plan_masks`."""

    mode: str
    grid: int  # G
    context_tokens: int  # K; the static (padded) size in reference mode
    target_tokens: int  # C; the static (padded) size in reference mode
    target_blocks: int  # M
    sizes: tuple[Size, ...]  # (h, w) that a target block can have
    target_scale: Range
    target_aspect: Range
    context_scale: Range
    min_keep: int


def block_sizes(grid: int, scale: Range, aspect: Range) -> list[Size]:
    """Sizes that a block can have when area and aspect are drawn independently.

    Args:
      grid: G, cells along a side.
      scale: range of the area over ``G * G``.
      aspect: range of height over width.

    Returns:
      Distinct ``(h, w)``, sorted, each at most G; sizes of measure zero are left out.
    """
    cells, (low, high) = grid * grid, aspect
    first, last = int(cells * scale[0]), math.ceil(cells * scale[1]) - 1
    sizes = set()
    for area in range(max(first, 1), max(first, last, 1) + 1):
        # Heights and widths change where sqrt(area * a) or sqrt(area / a) is k + 1/2.
        halves = (np.arange(grid + 1) + 0.5) ** 2
        edges = np.concatenate([halves / area, area / halves])
        edges = np.unique(np.concatenate([[low, high], edges[(low < edges) & (edges < high)]]))
        middles = (edges[1:] + edges[:-1]) / 2 if len(edges) > 1 else edges
        sizes.update(_block(area, float(middle), grid) for middle in middles)
    return sorted(sizes)


def plan_masks(config: Config) -> MaskPlan:
    """Fills in derived sizes and checks that masks can always be drawn.

    Args:
      config: reads ``masks`` and the encoder's grid.

    Raises:
      ConfigError: names the key of ``masks`` that asks for the impossible.
    """
    masks, grid = config.masks, config.encoder.grid
    for name in ("context_tokens", "target_tokens", "min_keep"):
        if getattr(masks, name) < 0:
            raise ConfigError(f"masks.{name}", getattr(masks, name), "not negative")
    if grid < 2:
        raise ConfigError("encoder.patch_size", config.encoder.patch_size, "at least 2 x 2 patches")
    plan = MaskPlan(
        mode=masks.mode, grid=grid, target_blocks=masks.target_blocks, min_keep=masks.min_keep,
        context_tokens=masks.context_tokens, target_tokens=masks.target_tokens, sizes=(),
        target_scale=tuple(masks.target_scale), target_aspect=tuple(masks.target_aspect),
        context_scale=tuple(masks.context_scale),
    )  # fmt: skip
    return _plan_production(plan) if masks.mode == "production" else plan_reference(plan)


@functools.lru_cache(maxsize=64)
def _plan_production(plan: MaskPlan) -> MaskPlan:
    cells = plan.grid * plan.grid
    sizes = block_sizes(plan.grid, plan.target_scale, plan.target_aspect)
    areas = [h * w for h, w in sizes]
    context, target = plan.context_tokens, plan.target_tokens or min(areas)
    if not context:
        context = int(CONTEXT_SHARE * cells)
        context = context - context % 8 if context >= 32 else max(context, 1)
    if target > min(areas):
        rule = (
            f"at most {min(areas)}, the smallest target block on a {plan.grid} x {plan.grid} grid"
        )
        raise ConfigError("masks.target_tokens", target, rule)
    if context > cells - max(areas):
        rule = f"at most {cells - max(areas)}: {cells} patches less a target block of {max(areas)}"
        raise ConfigError("masks.context_tokens", context, rule)
    plan = dataclasses.replace(
        plan, context_tokens=context, target_tokens=target, sizes=tuple(sizes)
    )
    # The fallback is always feasible but puts all targets in one place: it must stay the exception.
    uniforms = from_generator(np.random.Generator(np.random.Philox(0)))
    failures = int(_draw_production(plan, uniforms, PROBES).fallback.sum())
    if failures > PROBES // 4:
        rule = (
            f"rarely left visible by {plan.target_blocks} target blocks of {min(areas)} to "
            f"{max(areas)} of {cells} patches; lower it or masks.target_scale"
        )
        raise ConfigError("masks.context_tokens", context, rule)
    return plan


def _block(area: int, aspect: float, grid: int) -> Size:
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(height, 1), grid), min(max(width, 1), grid)


class Drawn(NamedTuple):
    """Masks of b images.

    Attributes:
      ctx_idx: int32 [b, K], visible patches, ascending, disjoint from every target block.
      tgt_idx: int32 [b, M, C], for each target block a random subset of its patches, ascending.
      sizes: int64 [b, 2], height and width of the target blocks.
      fallback: bool [b], images of which no draw left K patches visible.
    """

    ctx_idx: Array
    tgt_idx: Array
    sizes: Array
    fallback: Array


def _draw_production(plan: MaskPlan, uniforms: Uniforms, images: int) -> Drawn:
    """All images at once: for single ones the calls would cost more than what they compute.

    Args:
      plan: from :func:`plan_masks`.
      uniforms: see :data:`Uniforms`.
      images: b.
    """
    g, m, rows = plan.grid, plan.target_blocks, np.arange(images)
    largest = max(h * w for h, w in plan.sizes)
    first = uniforms(rows, 0, 2 + m * largest + 2 * m + 3 + g * g)
    sizes = _block_of(plan, first[:, :2])
    order = first[:, 2 : 2 + m * largest].reshape(images, m, largest)
    corners = np.zeros((images, 2, m), np.int64)
    context = np.zeros((images, plan.context_tokens), np.int32)
    again = np.ones(images, bool)
    draws = first[:, 2 + m * largest :]
    for attempt in range(1, RETRIES + 1):
        corners[rows], context[rows], again[rows] = _try(plan, sizes[rows], draws)
        rows = np.flatnonzero(again)
        if not len(rows):
            break
        draws = uniforms(rows, attempt, draws.shape[1])
    if len(rows):  # all target blocks on the first one, the whole image as context block
        corners[rows] = corners[rows][:, :, :1]
        free = np.where(_covered(g, corners[rows], sizes[rows]), HIDDEN, draws[:, -g * g :])
        context[rows] = _lowest(free, plan.context_tokens)
    return Drawn(context, _targets(plan, sizes, corners, order), sizes, again)


def _block_of(plan: MaskPlan, draws: Array) -> Array:
    """Height and width of each image's target blocks, int64 [b, 2], of uniforms [b, 2]."""
    (low, high), aspect = plan.target_scale, plan.target_aspect
    area = np.maximum(np.floor(plan.grid**2 * (low + draws[:, 0] * (high - low))), 1)
    ratio = aspect[0] + draws[:, 1] * (aspect[1] - aspect[0])
    sides = np.sqrt(np.stack([area * ratio, area / ratio], axis=1))
    return np.clip(np.rint(sides), 1, plan.grid).astype(np.int64)


def _try(plan: MaskPlan, sizes: Array, draws: Array) -> tuple[Array, Array, Array]:
    """One draw of all offsets: corners int64 [b, 2, M], context int32 [b, K], too few visible?"""
    g, m, keep = plan.grid, plan.target_blocks, plan.context_tokens
    low, high = plan.context_scale
    corners = _offsets(draws[:, : 2 * m].reshape(-1, 2, m), g - sizes[..., None] + 1)
    side = np.sqrt(np.floor(g * g * (low + draws[:, 2 * m] * (high - low))))
    side = np.clip(np.rint(side), 1, g).astype(np.int64)
    start = _offsets(draws[:, 2 * m + 1 : 2 * m + 3], g - side[:, None] + 1)
    block = _covered(g, start[..., None], np.stack([side, side], axis=1))
    visible = block & ~_covered(g, corners, sizes)
    context = _lowest(np.where(visible, draws[:, -g * g :], HIDDEN), keep)
    return corners, context, visible.sum(axis=1) < keep


def _offsets(draws: Array, places: Array) -> Array:
    return (draws * places).astype(np.int64)


def _covered(grid: int, corners: Array, sizes: Array) -> Array:
    """Cells of any block, bool [b, G * G]: top left corners [b, 2, M], one size an image [b, 2]."""
    cell = np.arange(grid)
    inside = (cell >= corners[..., None]) & (cell < (corners + sizes[..., None])[..., None])
    down, across = inside[:, 0, :, :, None], inside[:, 1, :, None, :]  # [b, M, G, 1], [b, M, 1, G]
    return (down & across).any(axis=1).reshape(len(corners), grid * grid)


def _targets(plan: MaskPlan, sizes: Array, corners: Array, order: Array) -> Array:
    """Random cells of each block, int32 [b, M, C]; ``order``: uniforms [b, M, >= cells]."""
    height, width = sizes[:, 0, None, None], sizes[:, 1, None, None]
    inside = np.arange(order.shape[2]) < height * width
    kept = _lowest(np.where(inside, order, HIDDEN), plan.target_tokens)
    down, across = kept // width + corners[:, 0, :, None], kept % width + corners[:, 1, :, None]
    return (down * plan.grid + across).astype(np.int32)


def _lowest(order: Array, count: int) -> Array:
    """Indices of the lowest values along the last axis, ascending: [..., n] -> int32 [..., k]."""
    found = order.argpartition(count - 1, axis=-1)[..., :count].astype(np.int32)
    found.sort(axis=-1)
    return found


def draw(plan: MaskPlan, batch: int, rng: np.random.Generator) -> dict[str, Array]:
    """Masks of several images, in the plan's mode and with its static shapes.

    Args:
      plan: from :func:`plan_masks`.
      batch: B; in reference mode the masks depend on it.
      rng: a generator for the whole batch.

    Returns:
      ``ctx_idx``: int32 [B, K], ``tgt_idx``: int32 [B, M, C]; in reference mode also ``ctx_valid``
      and ``tgt_valid``, bool, False where padded.
    """
    if plan.mode == "reference":
        return pad_reference(plan, reference_masks(plan, batch, rng))
    return _named(_draw_production(plan, from_generator(rng), batch))


def at_positions(plan: MaskPlan, seed: int, positions: Array) -> dict[str, Array]:
    """Masks of images, each a function of the seed and its position alone; mode ``production``.

    Args:
      plan: from :func:`plan_masks`.
      seed: of the run.
      positions: int [B], in the infinite order.

    Returns:
      As :func:`draw`.
    """
    return _named(_draw_production(plan, from_places(seed, positions), len(positions)))


def _named(drawn: Drawn) -> dict[str, Array]:
    return {"ctx_idx": drawn.ctx_idx, "tgt_idx": drawn.tgt_idx}


def mark_padding(masks: dict[str, Array], name: str) -> Array:
    """``ctx`` or ``tgt`` indices of a batch, int, -1 where they are padding: for people."""
    return np.where(masks.get(f"{name}_valid", True), masks[f"{name}_idx"], -1)


def coverage(ctx_idx: Array, tgt_idx: Array, grid: int) -> tuple[Array, Array]:
    """How often each patch is visible, and how often it is a target, over a batch of images.

    Args:
      ctx_idx: int [B, K]; negative ones are padding.
      tgt_idx: int [B, M, C], likewise.
      grid: G.

    Returns:
      float64 [G, G] twice: share of images that see the patch; mean over blocks of the share of
      images where the block holds it.
    """
    images, blocks = tgt_idx.shape[:2]
    seen = np.bincount(ctx_idx[ctx_idx >= 0], minlength=grid * grid) / images
    wanted = np.bincount(tgt_idx[tgt_idx >= 0], minlength=grid * grid) / (images * blocks)
    return seen.reshape(grid, grid), wanted.reshape(grid, grid)
