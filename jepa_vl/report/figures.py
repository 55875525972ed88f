"""Figures of the report: numpy arrays in, a ``matplotlib.figure.Figure`` out.

Besides the glossary's letters, R is rows (images shown) and k neighbours.
"""

import io
import warnings
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from jepa_vl import report
from jepa_vl.report import COLOURS, NORMAL, SMALL, TITLE
from jepa_vl.shapes import Array, check_shape

STYLES = ("-", "--", "-.", ":")
RIGHT, WRONG, UNKNOWN = ("✓", "#007A5A"), ("✗", "#C24E00"), ("", "0.4")
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
BELOW |= {"fontsize": 8, "frameon": False, "handlelength": 2.6}
Box = tuple[float, float, float, float]


def to_png(fig: Figure, dpi: int = 110, colours: int = 0) -> bytes:
    """Renders a figure as PNG; characters that the font lacks become boxes, without a warning.

    Args:
      fig: the figure.
      dpi: pixels an inch.
      colours: of a palette, at most 256, which takes about a third of the bytes; 0: all.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        fig.savefig(buffer, format="png", dpi=dpi)
    if colours:
        whole = Image.open(buffer).convert("RGB")
        buffer = io.BytesIO()
        whole.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def curves(
    rows: list[dict], groups: dict[str, list[str]], evals: list[dict] | None = None
) -> Figure:
    """One panel for each group of metrics that has data, in up to three columns.

    Args:
      rows: lines of metrics.jsonl: ``step`` and any metrics. A value that is absent or not finite
        leaves no point; of two with one step (a resumed run) the later counts.
      groups: panel title -> metric names.
      evals: further rows, of measurements that are made more rarely.
    """
    filled = {}
    for title, keys in groups.items():
        lines = {key: report.series([*rows, *(evals or [])], key) for key in keys}
        if lines := {key: points for key, points in lines.items() if len(points)}:
            filled[title] = lines
    fig, axes = report.panels(len(filled), 3, 3.7, 2.9)
    for ax, (title, lines) in zip(axes, filled.items(), strict=True):
        for i, (key, points) in enumerate(lines.items()):
            look: dict[str, Any] = {"color": COLOURS[i % 7], "ls": STYLES[i % 4], "label": key}
            ax.plot(*points.T, color=look["color"], alpha=0.25, lw=0.8)
            dot = "o" if len(points) < 20 else ""
            ax.plot(points[:, 0], report.smooth(points[:, 1]), marker=dot, ms=4, lw=1.6, **look)
        report.over_steps(ax, title)
        if len(lines) > 1:
            ax.legend(**BELOW)
        else:
            ax.set_ylabel(next(iter(lines)), **NORMAL)
    note = "faint: as logged; strong: mean over neighbouring points; dots: single measurements"
    if not filled:
        note = "no metrics logged yet"
        fig.set_figheight(0.6)
    fig.supxlabel(report.wrap(note, 50 * max(1, min(3, len(axes))), lines=2), color="0.35", **SMALL)
    return fig


def masks(images: Array, ctx_idx: Array, tgt_idx: Array, grid: int) -> Figure:
    """What a model sees and what it must predict: image, context and target blocks, row by row.

    Args:
      images: [R, H, W, 3] uint8.
      ctx_idx: [R, K] int, visible patches, row-major; entries outside 0..G*G-1 are padding.
      tgt_idx: [R, M, C] int, patches of each target block; likewise.
      grid: G, patches along a side.

    Raises:
      ValueError: shapes that do not fit together.
    """
    sizes = check_shape("images", images, "R H W 3")
    check_shape("ctx_idx", ctx_idx, "R K", R=sizes["R"])
    blocks = check_shape("tgt_idx", tgt_idx, "R M C", R=sizes["R"])["M"]
    centred: dict[str, Any] = {"ha": "center", "va": "center", "clip_on": True, **TITLE}
    fig, axes = report.panels(3 * sizes["R"], 3, 2.5, 2.55)
    for row in range(sizes["R"]):
        image = images[row]
        seen = report.pixels(ctx_idx[row], grid, image)
        report.show(axes[3 * row], image)
        report.show(axes[3 * row + 1], np.where(seen[..., None], image, 205))
        dimmed = 0.35 * image / 255.0 + 0.6
        targets = axes[3 * row + 2]
        for m in range(blocks):
            colour, inside = COLOURS[m % 7], report.pixels(tgt_idx[row, m], grid, image)
            tint = 0.6 * dimmed + 0.4 * np.array(to_rgb(colour))
            dimmed = np.where(inside[..., None], tint, dimmed)
            edge = np.pad(inside, 1).astype(float)
            span = np.arange(-1, edge.shape[1] - 1), np.arange(-1, edge.shape[0] - 1)
            targets.contour(*span, edge, [0.5], colors=[colour], linewidths=1.8)
            if inside.any():
                y, x = np.argwhere(inside).mean(0)
                halo = [withStroke(linewidth=2.5, foreground="white")]
                targets.text(x, y, str(m + 1), color=colour, path_effects=halo, **centred)
        report.show(targets, dimmed)
    titles = (
        "image",
        f"context: {ctx_idx.shape[1]} of {grid * grid} patches",
        f"{blocks} target blocks of {tgt_idx.shape[2]} patches",
    )
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, **TITLE)
    return fig


def coverage(context: Array, target: Array) -> Figure:
    """How often each patch is context or target, and the means of the rows of patches.

    Args:
      context: [G, G] float, share of the images that have the patch in their context.
      target: [G, G] float, likewise for the target blocks.
    """
    grid = check_shape("context", context, "G G")["G"]
    check_shape("target", target, "G G", G=grid)
    fig = Figure(figsize=(10.5, 3.5), layout="constrained")
    axes = list(fig.subplots(1, 3, width_ratios=(1, 1, 0.9)))
    named = (("context", np.asarray(context), "-0.2"), ("target", np.asarray(target), "0.2"))
    for i, (name, share, shift) in enumerate(named):
        picture = axes[i].imshow(share, cmap="cividis", vmin=0)
        fig.colorbar(picture, ax=axes[i], shrink=0.85).ax.tick_params(labelsize=8)
        axes[i].set_title(f"how often a patch is {name}", **TITLE)
        axes[i].set_xlabel(f"patch column (mean {share.mean():.3f})", **NORMAL)
        rows = np.arange(grid) + float(shift)
        hatch = "" if i == 0 else "///"
        axes[2].barh(rows, share.mean(1), 0.4, color=COLOURS[4 * i], hatch=hatch, label=name)
    axes[2].set(ylim=axes[0].get_ylim(), xlim=(0, None))
    axes[2].set_title("mean of each row of patches", **TITLE)
    axes[2].set_xlabel("share of the images", **NORMAL)
    axes[2].legend(**BELOW)
    for ax in axes:
        ax.set_ylabel("patch row", **NORMAL)
        ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.tick_params(labelsize=8)
    return fig


def word_maps(
    image: Array,
    words: list[str],
    maps: Array,
    title: str,
    columns: int = 8,
    boxes: list[Box | None] | None = None,
) -> Figure:
    """Where each word of a caption looks: the image, then one heat map a word, on one scale.

    Args:
      image: [H, W, 3] uint8.
      words: S strings.
      maps: [S, G, G] float in 0..1, similarity of word and patch; all zero means no patch.
      title: of the figure, e.g. the caption.
      columns: panels in a row.
      boxes: for each word None or the true place (left, top, right, bottom) in pixels of the image.
    """
    count = check_shape("maps", maps, "S G G", S=len(words))["S"]
    maps, grey = np.asarray(maps, np.float32), np.asarray(image).mean(-1) / 255.0
    looking = maps[maps.any(axis=(1, 2))]
    # From the least value: where all similarities are high, their differences still show.
    low, high = (float(looking.min()), float(looking.max())) if len(looking) else (0.0, 1.0)
    scale = Normalize(low if low < high else 0.0, high)
    fig, axes = report.panels(1 + count, min(columns, 1 + count), 1.4, 1.75, extra=0.9)
    fig.suptitle(report.wrap(title, 15 * min(columns, 1 + count), lines=4), **TITLE)
    report.show(axes[0], image)
    axes[0].set_title("image", **NORMAL)
    height, width = grey.shape
    for s, ax in enumerate(axes[1:]):
        empty = not maps[s].any()
        report.show(ax, 0.3 * grey + 0.65 if empty else grey, cmap="gray", vmin=0, vmax=1)
        ax.set_title(report.wrap(words[s], 16), **NORMAL)
        ax.set_xlabel("no patch" if empty else f"max {maps[s].max():.2g}", **SMALL)
        if empty:
            ax.title.set_color("0.5")
            continue
        over: dict[str, Any] = {"cmap": "magma", "norm": scale, "interpolation": "bilinear"}
        over["extent"] = (-0.5, width - 0.5, height - 0.5, -0.5)
        ax.imshow(maps[s], alpha=0.35 + 0.5 * np.clip(scale(maps[s]), 0, 1), **over)
        if boxes and (box := boxes[s]):
            place = (box[0] - 0.5, box[1] - 0.5), box[2] - box[0], box[3] - box[1]
            ax.add_patch(Rectangle(*place, fill=False, ec="black", lw=2.4))
            ax.add_patch(Rectangle(*place, fill=False, ec="white", lw=1.2, ls="--"))
    bar = fig.colorbar(ScalarMappable(scale, "magma"), ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("similarity", **NORMAL)
    bar.ax.tick_params(labelsize=8)
    return fig


def neighbours(
    queries: Array,
    found: Array,
    query_labels: list[str],
    found_labels: list[list[str]],
    scores: Array,
) -> Figure:
    """Nearest images in feature space: a tick where the label is the query's, else a cross.

    Args:
      queries: [R, H, W, 3] uint8.
      found: [R, k, H, W, 3] uint8, the most similar first.
      query_labels: R strings; an empty one (unlabelled) gets neither tick nor cross.
      found_labels: R lists of k strings.
      scores: [R, k] float, similarity to the query.
    """
    sizes = check_shape("queries", queries, "R H W 3")
    k = check_shape("found", found, "R k H W 3", **sizes)["k"]
    check_shape("scores", scores, "R k", R=sizes["R"], k=k)
    fig, axes = report.panels(sizes["R"] * (1 + k), 1 + k, 1.5, 1.95)
    for row, label in enumerate(query_labels):
        start = row * (1 + k)
        report.show(axes[start], queries[row])
        axes[start].set_xlabel(report.wrap(label, 19, lines=2), weight="bold", **SMALL)
        for i, ax in enumerate(axes[start + 1 : start + 1 + k]):
            other = found_labels[row][i]
            sign, colour = (RIGHT if other == label else WRONG) if label else UNKNOWN
            report.show(ax, found[row, i])
            ax.spines[:].set(visible=True, color=colour, linewidth=3)
            text = report.wrap(f"{sign} {other}".strip(), 19, lines=2)
            ax.set_xlabel(f"{text}\n{scores[row, i]:.3f}", color=colour, **SMALL)
    for i, ax in enumerate(axes[: 1 + k]):
        ax.set_title(f"neighbour {i}" if i else "query", **TITLE)
    return fig


def batch_sheet(images: Array, captions: list[list[str]]) -> Figure:
    """A contact sheet of a batch: each image with its captions beneath.

    Args:
      images: [R, H, W, 3] uint8.
      captions: R lists of N captions; of each, three lines are shown.
    """
    title = f"images of a batch ({len(images)}), each with its captions"
    return contact_sheet(images, [], captions, title)


def contact_sheet(
    images: Array, titles: list[tuple[str, ...]], captions: list[list[str]], title: str
) -> Figure:
    """Images with their captions beneath and, where given, some lines above.

    Args:
      images: [R, H, W, 3] uint8.
      titles: R tuples of lines, or none.
      captions: R lists of N captions; of each, three lines are shown.
      title: of the figure.
    """
    count = check_shape("images", images, "R H W 3")["R"]
    texts = ["\n".join(report.wrap("- " + text, 36, lines=3) for text in of) for of in captions]
    lines = max((text.count("\n") + 1 for text in texts), default=0)
    above = max(map(len, titles), default=0)
    fig, axes = report.panels(count, 4, 2.6, 2.9 + 0.16 * (lines + above))
    for ax, image, text in zip(axes, images, texts, strict=True):
        report.show(ax, image)
        ax.set_xlabel(text, ha="left", x=0.0, **SMALL)
    for ax, of in zip(axes, titles, strict=False):
        ax.set_title("\n".join(report.wrap(line, 36) for line in of), loc="left", **SMALL)
    fig.suptitle(report.wrap(title, 28 * max(1, min(4, count)), lines=2), **TITLE)
    return fig
