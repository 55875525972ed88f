"""The coordinate check as a picture: how far layers move, over width."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jepa_vl import report

GROUPS = ("block", "attn", "mlp", "logits", "conditioner", "others")
STYLES = {"encoder": "-", "predictor": "--"}
MARKS = ("o", "s", "^", "D", "v", "x")
NAMES = {"mup": "muP"}  # as titles spell them


def group(name: str) -> str:
    """The kind of a layer: encoder/block_0/attn is an attn."""
    last = name.rpartition("/")[2].partition("_")[0]
    return last if last in GROUPS else "others"


def figure(page: Mapping[str, Any]) -> Figure:
    """Mean change of each layer over width, a row a parametrisation, a column a step.

    Args:
      page: ``widths``, ``steps`` and ``layers``: name -> parametrisation -> ``change``, a row a
        width, a column a step from 0 on.
    """
    widths: Sequence[int] = page["widths"]
    shown = sorted({1, (page["steps"] + 1) // 2, page["steps"]})
    kinds = list(next(iter(page["layers"].values())))
    fig, axes = report.panels(len(kinds) * len(shown), len(shown), 3.6, 3.0, extra=1.0)
    named = set()
    for i, ax in enumerate(axes):
        kind, step = kinds[i // len(shown)], shown[i % len(shown)]
        for name, found in page["layers"].items():
            tower, which = name.partition("/")[0], group(name)
            place = GROUPS.index(which)
            label = f"{tower}: {which}"
            look: dict[str, Any] = {"color": report.COLOURS[place], "ls": STYLES[tower]}
            look |= {"marker": MARKS[place], "ms": 3.5, "lw": 1.2}
            y = np.array(found[kind]["change"])[:, step]
            ax.plot(widths, y, label="" if label in named else label, **look)
            named.add(label)
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(widths, [str(w) for w in widths], minor=False)
        ax.minorticks_off()
        ax.set_title(f"{NAMES.get(kind, kind)}, step {step}", loc="left", **report.TITLE)
        ax.set_xlabel("encoder width", **report.NORMAL)
        ax.set_ylabel("mean |x - x at step 0|", **report.NORMAL)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
    low = min(ax.get_ylim()[0] for ax in axes)
    high = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    lines = sorted(axes[0].get_lines(), key=lambda line: str(line.get_label()))
    lines = [line for line in lines if not str(line.get_label()).startswith("_")]
    fig.legend(handles=lines, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig
