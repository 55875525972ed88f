"""Pictures of a scaling study."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa_vl import report
from jepa_vl.scaling import budgets
from jepa_vl.scaling.bootstrap import LEVEL
from jepa_vl.scaling.law import Law

MARKS = ("o", "s", "^", "D", "v", "P", "X")


def _look(i: int) -> dict[str, Any]:
    return {"color": report.COLOURS[i % 7], "marker": MARKS[i % 7]}


def _finish(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_xscale("log")
    ax.set_title(title, loc="left", **report.TITLE)
    ax.set_xlabel(x, **report.NORMAL)
    ax.set_ylabel(y, **report.NORMAL)
    ax.tick_params(labelsize=8, which="both")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False)


def isoflop(studies: Sequence[Any], y: str) -> Figure:
    """Quality over size, a colour a budget, with the parabola of each."""
    fig, axes = report.panels(len(studies), 3, 4.4, 3.6)
    for ax, study in zip(axes, studies, strict=True):
        points = study.points
        for i, group in enumerate(budgets.budgets(points.compute)):
            look, label = _look(i), f"{group.compute:.2g} FLOPs"
            ax.plot(
                points.size[group.rows], points.loss[group.rows], ls="", ms=5, label=label, **look
            )
            best = budgets.parabola(points, group)
            if best is None:
                continue
            x = np.log(points.size[group.rows])
            line = np.linspace(x.min(), x.max(), 60)
            root = np.sqrt(points.weight[group.rows])
            curve = np.polyfit(x - x.mean(), points.loss[group.rows], 2, w=root)
            ax.plot(
                np.exp(line), np.polyval(curve, line - x.mean()), "--", lw=1, color=look["color"]
            )
            if best.inside:
                ax.plot(best.size, best.loss, "*", ms=12, color=look["color"], mec="black")
        _finish(ax, study.arm, "N, parameters of the encoder", y)
    return fig


def optimum(lines: Sequence[tuple]) -> Figure:
    """N*(C) and D*(C): minima of parabolas, power laws, and bands of runs drawn again."""
    fig, axes = report.panels(2, 2, 4.4, 3.6)
    for i, (arm, inside, data, pair, powers) in enumerate(lines):
        compute = np.array([one.compute for one in inside])
        for k, values in enumerate(([one.size for one in inside], data)):
            label = arm
            if pair is not None:
                label = f"{arm}: C^{-pair[k].exponent:.2f}"
                x = np.geomspace(compute.min(), compute.max(), 40)
                axes[k].plot(x, pair[k](x), "-", lw=1.2, color=_look(i)["color"])
                if powers is not None and len(powers) >= 20:
                    middle = np.exp(np.log(compute).mean())
                    tilt = (x[:, None] / middle) ** (powers[:, k] + pair[k].exponent)
                    low, high = np.quantile(tilt, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
                    y = pair[k](x)
                    axes[k].fill_between(x, y * low, y * high, color=_look(i)["color"], alpha=0.15)
            axes[k].plot(compute, values, ls="", ms=6, label=label, **_look(i))
    for ax, what in zip(axes, ("N*, parameters", "D*, images"), strict=True):
        ax.set_yscale("log")
        _finish(ax, what, "compute, FLOPs", what)
    return fig


def law(studies: Sequence[Any], y: str) -> Figure:
    """Quality over images, a line a size, with the band of the bootstrap."""
    fig, axes = report.panels(len(studies), 3, 4.4, 3.6)
    for ax, study in zip(axes, studies, strict=True):
        points = study.points
        x = np.geomspace(points.data.min(), points.data.max(), 40)
        sizes = np.unique(points.size)
        shown = sizes if len(sizes) <= 6 else sizes[np.linspace(0, len(sizes) - 1, 6).astype(int)]
        for i, size in enumerate(shown):
            rows = points.size == size
            curves = Law(*study.draws.laws.T[:, :, None])(size, x)
            low, high = np.quantile(curves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            ax.fill_between(x, low, high, color=_look(i)["color"], alpha=0.12)
            ax.plot(x, study.fit.law(size, x), lw=1.2, color=_look(i)["color"])
            label = f"N = {size:.3g}"
            ax.plot(points.data[rows], points.loss[rows], ls="", ms=5, label=label, **_look(i))
        _finish(ax, study.arm, "D, images seen", y)
    return fig


def residuals(studies: Sequence[Any]) -> Figure:
    """Relative error of the law at each point, over compute and over size."""
    fig, axes = report.panels(2, 2, 4.4, 3.2)
    for i, study in enumerate(studies):
        points = study.points
        gaps = study.fit.law(points.size, points.data) / points.loss - 1
        for ax, x in zip(axes, (points.compute, points.size), strict=True):
            ax.plot(x, gaps, ls="", ms=4, label=study.arm, **_look(i))
    for ax, what in zip(axes, ("compute, FLOPs", "N, parameters"), strict=True):
        ax.axhline(0, color="0.4", lw=0.8)
        _finish(ax, f"over {what}", what, "law / measured - 1")
    return fig
