"""Multi-block masks: which patches the encoder sees and which ones it must predict.

Two modes. ``production``, here, has static shapes and no bias by position: independent uniforms for
area and aspect, every cell reachable, random subsets instead of "the first rows". ``reference``,
in :mod:`jepa_vl.data.masking_reference`, reproduces the public I-JEPA collator with its quirks.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.data.masking_reference import Range, Size, block_cells, plan_reference
from jepa_vl.data.masking_reference import pad_reference as pad_reference
from jepa_vl.data.masking_reference import reference_masks as reference_masks
from jepa_vl.shapes import Array

RETRIES = 32  # draws of the offsets before the constructive fallback
CONTEXT_SHARE = 0.27  # of the grid, when masks.context_tokens = 0
PROBES = 64  # images that the plan tries before it accepts a context size


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
    rng = np.random.Generator(np.random.Philox(0))
    failures = sum(_draw_blocks(plan, rng)[3] for _ in range(PROBES))
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


def _draw_blocks(plan: MaskPlan, rng: np.random.Generator) -> tuple[Size, Array, Array, bool]:
    """One image: size of its target blocks, their origins [M], visible cells, fallback taken?"""
    grid, blocks = plan.grid, plan.target_blocks
    scale, aspect, keep = plan.target_scale, plan.target_aspect, plan.context_tokens
    draws = rng.random(2).tolist()
    area = int(grid * grid * (scale[0] + draws[0] * (scale[1] - scale[0])))
    height, width = _block(max(area, 1), aspect[0] + draws[1] * (aspect[1] - aspect[0]), grid)
    for _ in range(RETRIES):
        # Plain numbers: for a handful of them numpy's calls cost more than what they compute.
        draws = rng.random(2 * blocks + 3).tolist()
        tops = [int(draw * (grid - height + 1)) for draw in draws[:blocks]]
        lefts = [int(draw * (grid - width + 1)) for draw in draws[blocks : 2 * blocks]]
        low, high = plan.context_scale
        side = round(math.sqrt(int(grid * grid * (low + draws[-3] * (high - low)))))
        side = min(max(side, 1), grid)
        top, left = int(draws[-2] * (grid - side + 1)), int(draws[-1] * (grid - side + 1))
        visible = np.zeros((grid, grid), bool)
        visible[top : top + side, left : left + side] = True
        for y, x in zip(tops, lefts, strict=True):
            visible[y : y + height, x : x + width] = False
        context = visible.ravel().nonzero()[0]
        if len(context) >= keep:
            corners = [y * grid + x for y, x in zip(tops, lefts, strict=True)]
            return (height, width), np.array(corners, np.int32), context, False
    # All target blocks on the first one, the whole image as context block.
    visible = np.ones((grid, grid), bool)
    visible[tops[0] : tops[0] + height, lefts[0] : lefts[0] + width] = False
    origins = np.full(blocks, tops[0] * grid + lefts[0], np.int32)
    return (height, width), origins, visible.ravel().nonzero()[0], True


def production_masks(plan: MaskPlan, rng: np.random.Generator) -> dict[str, Array]:
    """Masks of one image, in production mode.

    Args:
      plan: from :func:`plan_masks`.
      rng: the image's own generator.

    Returns:
      ``ctx_idx``: int32 [K], visible patches, ascending, disjoint from every target block.
      ``tgt_idx``: int32 [M, C], for each target block a random subset of its patches, ascending.
    """
    (height, width), origins, context, _ = _draw_blocks(plan, rng)
    chosen = rng.random(len(context)).argpartition(plan.context_tokens - 1)
    chosen = chosen[: plan.context_tokens]
    chosen.sort()
    cells = block_cells(height, width, plan.grid)
    draws = rng.random((plan.target_blocks, len(cells)))
    kept = draws.argpartition(plan.target_tokens - 1, axis=1)[:, : plan.target_tokens]
    kept.sort(axis=1)
    tgt_idx = cells[kept] + origins[:, None]
    return {"ctx_idx": context[chosen].astype(np.int32), "tgt_idx": tgt_idx.astype(np.int32)}


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
    rows = [production_masks(plan, rng) for _ in range(batch)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


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
