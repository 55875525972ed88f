"""Masks with the statistics of the public I-JEPA collator, biases included.

One uniform sets area and aspect of all target blocks of a batch; offsets never reach the last row
and column; contexts are cut to the first entries of the batch's shortest, which drops the bottom.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

if TYPE_CHECKING:
    from jepa_vl.data.masking import MaskPlan

TRIES = 20  # failures before the collator drops one more target block

Size = tuple[int, int]  # height, width
Range = tuple[float, float]


@functools.lru_cache(maxsize=1024)
def block_cells(height: int, width: int, grid: int) -> Array:
    """int32 [h * w], read-only: row-major cells of a block at the top left."""
    cells = (np.arange(height)[:, None] * grid + np.arange(width)).ravel().astype(np.int32)
    cells.flags.writeable = False
    return cells


def reference_sizes(grid: int, scale: Range, aspect: Range) -> list[Size]:
    """Sizes in reference mode: one uniform for both, at most G - 1. Sorted ``(h, w)``."""
    return sorted({_reference_block(u, grid, scale, aspect) for u in np.linspace(0, 1, 20_001)})


def _reference_block(u: float, grid: int, scale: Range, aspect: Range) -> Size:
    area = int(grid * grid * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, grid - 1), min(width, grid - 1)


def plan_reference(plan: "MaskPlan") -> "MaskPlan":
    """Static sizes for the reference mode.

    Raises:
      ConfigError: names the key of ``masks`` that asks for the impossible.
    """
    targets = reference_sizes(plan.grid, plan.target_scale, plan.target_aspect)
    sides = [h for h, _ in reference_sizes(plan.grid, plan.context_scale, (1.0, 1.0))]
    areas = [h * w for h, w in targets]
    if min(areas) <= plan.min_keep:
        rule = f"below {min(areas)}, the smallest target block on a {plan.grid} x {plan.grid} grid"
        raise ConfigError("masks.min_keep", plan.min_keep, rule)
    if min(sides) ** 2 - max(areas) <= plan.min_keep:
        rule = f"leaves at most {plan.min_keep} patches beside a target block of {max(areas)}"
        raise ConfigError("masks.context_scale", plan.context_scale, rule)
    # Blocks lie in the first G - 1 rows and columns, so context and a target block overlap at
    # least by this much; at least one target block is always removed from the context.
    room = plan.grid - 1
    context = max(
        side**2 - max(side + h - room, 0) * max(side + w - room, 0)
        for side in sides
        for h, w in targets
    )
    for name, size in (("context_tokens", context), ("target_tokens", max(areas))):
        if getattr(plan, name) not in (0, size):
            rule = f"0 (or {size}, the largest size) in reference mode, where sizes vary by batch"
            raise ConfigError(f"masks.{name}", getattr(plan, name), rule)
    return dataclasses.replace(
        plan, context_tokens=context, target_tokens=max(areas), sizes=tuple(targets)
    )


def reference_masks(plan: "MaskPlan", batch: int, rng: np.random.Generator) -> dict[str, Array]:
    """Masks of one batch with the statistics of the public collator, biases included.

    Args:
      plan: from :func:`plan_masks`, mode ``reference``.
      batch: B. The context size depends on it: it is the smallest of the batch.
      rng: a generator for the whole batch, e.g. seeded by the step.

    Returns:
      ``ctx_idx``: int32 [B, Kc] and ``tgt_idx``: int32 [B, M, Kt], with Kc and Kt of this batch.
    """
    grid = plan.grid
    height, width = _reference_block(rng.random(), grid, plan.target_scale, plan.target_aspect)
    side, _ = _reference_block(rng.random(), grid, plan.context_scale, (1.0, 1.0))
    tops = rng.integers(0, grid - height, (batch, plan.target_blocks))
    lefts = rng.integers(0, grid - width, (batch, plan.target_blocks))
    contexts = []
    for ys, xs in zip(tops.tolist(), lefts.tolist(), strict=True):
        contexts.append(_reference_context(plan, (height, width), side, ys, xs, rng))
    shortest = min(map(len, contexts))
    ctx_idx = np.stack([context[:shortest] for context in contexts])
    tgt_idx = block_cells(height, width, grid) + (tops * grid + lefts)[..., None]
    return {"ctx_idx": ctx_idx.astype(np.int32), "tgt_idx": tgt_idx.astype(np.int32)}


def _reference_context(
    plan: "MaskPlan", size: Size, side: int, ys: list[int], xs: list[int], rng: np.random.Generator
) -> Array:
    # Ends: with a single block left, more than min_keep cells remain (checked in the plan).
    for removed in range(plan.target_blocks, 0, -1):
        for _ in range(TRIES):
            top, left = rng.integers(0, plan.grid - side, 2).tolist()
            visible = np.zeros((plan.grid, plan.grid), bool)
            visible[top : top + side, left : left + side] = True
            for y, x in zip(ys[:removed], xs[:removed], strict=True):
                visible[y : y + size[0], x : x + size[1]] = False
            context = np.flatnonzero(visible)
            if len(context) > plan.min_keep:
                return context
    raise AssertionError("unreachable: the plan leaves more than min_keep cells")


def pad_reference(plan: "MaskPlan", masks: dict[str, Array]) -> dict[str, Array]:
    """Static shapes for the masks of :func:`reference_masks`.

    Returns:
      ``ctx_idx``: int32 [B, K] and ``tgt_idx``: int32 [B, M, C], padded with index 0;
      ``ctx_valid``: bool [B, K] and ``tgt_valid``: bool [B, M, C], False where padded.
    """
    out = {}
    for name, size in (("ctx", plan.context_tokens), ("tgt", plan.target_tokens)):
        idx = masks[f"{name}_idx"]
        widths = [(0, 0)] * (idx.ndim - 1) + [(0, size - idx.shape[-1])]
        out[f"{name}_idx"] = np.pad(idx, widths)
        out[f"{name}_valid"] = np.pad(np.ones(idx.shape, bool), widths)
    return out
