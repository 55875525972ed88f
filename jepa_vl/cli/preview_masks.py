"""``jepa-vl preview --what masks``: sizes, coverage and bias of the masks, in both modes."""

import dataclasses
from typing import NamedTuple

import numpy as np

from jepa_vl.cli.columns import columns
from jepa_vl.config import Config, ConfigError
from jepa_vl.data import masking
from jepa_vl.data.masking import MaskPlan
from jepa_vl.shapes import Array

DRAWN = 2048  # images, or a few more: whole batches
BINS = 8  # of a histogram
BAR = 40  # characters of its longest bar
MODES = ("production", "reference")


class Drawn(NamedTuple):
    """Masks as training draws them: ``context`` int [n, K], ``target`` int [n, M, C]; -1 pads."""

    context: Array
    target: Array


def draw(config: Config, plan: MaskPlan) -> Drawn:
    """Draws by batches: in reference mode their size decides how much of a context is cut off."""
    rng, size = np.random.default_rng(config.seed), config.train.batch_size
    batches = [masking.draw(plan, size, rng) for _ in range(-(-DRAWN // size))]
    return Drawn(*(
        np.concatenate([masking.mark_padding(batch, name) for batch in batches])
        for name in ("ctx", "tgt")
    ))  # fmt: skip


def other_mode(config: Config) -> tuple[str, MaskPlan | str]:
    """The mode that the configuration does not choose: its name, and a plan or why there is none.

    The numbers of tokens are derived anew: those that are set belong to the chosen mode.
    """
    mode = MODES[1 - MODES.index(config.masks.mode)]
    masks = dataclasses.replace(config.masks, mode=mode, context_tokens=0, target_tokens=0)
    try:
        return mode, masking.plan_masks(dataclasses.replace(config, masks=masks))
    except ConfigError as error:
        return mode, str(error)


def sizes(plan: MaskPlan, patch: int) -> str:
    """What the plan fixes, one line each."""
    cells = plan.grid**2
    padded = " at most, padded" if plan.mode == "reference" else ""
    return (
        f"mode             {plan.mode}\n"
        f"grid             G = {plan.grid}: {cells} patches of {patch} px\n"
        f"context          K = {plan.context_tokens}{padded} ({plan.context_tokens / cells:.1%})\n"
        f"target blocks    M = {plan.target_blocks}\n"
        f"tokens a block   C = {plan.target_tokens}{padded} ({plan.target_tokens / cells:.1%})\n"
        f"block sizes      {', '.join(f'{h}x{w}' for h, w in plan.sizes)} (height x width)"
    )


def tables(drawn: dict[str, Drawn], grid: int) -> str:
    """Coverage by row, histograms and bias of the modes drawn, side by side."""
    shares = {mode: masking.coverage(d.context, d.target, grid) for mode, d in drawn.items()}
    heads = [f"{mode}: {what}" for mode in drawn for what in ("context", "target")]
    halves = [half for pair in shares.values() for half in pair]
    rows = [(str(i), *(f"{h[i].mean():.3f}" for h in halves)) for i in range(grid)]
    rows.append(("all", *(f"{h.mean():.3f}" for h in halves)))
    parts = [
        f"how often a patch of a row is context, in one target block ({DRAWN} images)",
        *columns([("row", *heads), *rows], right=range(1, len(heads) + 1)),
    ]
    for mode, masks in drawn.items():
        for what, index in (("context tokens an image", 0), ("tokens of a target block", 1)):
            counts = (masks[index] >= 0).sum(-1).ravel()
            parts += ["", f"{mode}: {what}", *histogram(counts)]
    biases = [bias(*pair) for pair in shares.values()]
    rows = [(name, *(b[name] for b in biases)) for name in biases[0]]
    table = columns([("bias", *drawn), *rows], right=range(1, 1 + len(drawn)))
    return "\n".join([*parts, "", *table])


def histogram(counts: Array) -> list[str]:
    """A bar a bin: counts int [n] in at most :data:`BINS` bins of equal width."""
    low, high = int(counts.min()), int(counts.max())
    width = -(-(high - low + 1) // BINS)
    share = np.bincount((counts - low) // width) / len(counts)
    rows = []
    for i, part in enumerate(share):
        first, last = low + i * width, min(low + (i + 1) * width - 1, high)
        name = str(first) if first == last else f"{first} to {last}"
        rows.append((name, f"{part:.1%}", "#" * round(BAR * part / share.max())))
    return columns(rows, right=(0, 1))


def bias(context: Array, target: Array) -> dict[str, str]:
    """How far the coverage [G, G] is from the same everywhere."""
    out, half = {}, len(context) // 2
    for name, share in (("context", context), ("target", target)):
        top, bottom = share[:half].mean(), share[len(share) - half :].mean()
        out[f"{name}, upper over lower half"] = _ratio(top, bottom)
        out[f"{name}, most over least likely patch"] = _ratio(share.max(), share.min())
        out[f"patches that are never {name}"] = str(int((share == 0).sum()))
    return out


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b else "inf"
