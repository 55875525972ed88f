"""What a person looks at: figures and one self-contained page. numpy and matplotlib, never jax.

Imported by the commands ``report`` and ``preview`` alone, so that training never loads matplotlib.
Here is what the figures share. No pyplot, hence no global state and no display. Text is 8 points or
more, colours are those of Okabe and Ito (distinct under colour blindness), and a second sign (line
style, number, hatch, tick or cross) goes with each colour.
"""

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jepa_vl.shapes import Array

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Captions, words and labels are data: a dollar sign in them does not start mathematics.
SMALL: dict[str, Any] = {"fontsize": 8, "parse_math": False}
NORMAL: dict[str, Any] = {"fontsize": 9, "parse_math": False}
TITLE: dict[str, Any] = {"fontsize": 10, "parse_math": False, "weight": "bold"}


def panels(
    count: int, columns: int, width: float, height: float, extra: float = 0.4
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` axes, each width x height inches; ``extra`` is for titles and bars."""
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    fig = Figure(figsize=(columns * width + extra, rows * height + extra))
    fig.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    return fig, [fig.add_subplot(rows, columns, i + 1) for i in range(count)]


def show(ax: Axes, image: Array, **how: Any) -> None:
    """Draws [H, W, 3] (uint8, or float in 0..1) or [H, W] without ticks and frame."""
    ax.imshow(image, interpolation="nearest", **how)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def over_steps(ax: Axes, title: str) -> None:
    """Titles and labels a panel of curves over training steps (1500 reads 1.5k)."""
    ax.set_title(title, loc="left", **TITLE)
    ax.set_xlabel("step", **NORMAL)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))
    ax.yaxis.get_offset_text().set_fontsize(8)
    ax.margins(y=0.1)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def wrap(text: str, width: int, lines: int = 1) -> str:
    """At most ``lines`` lines of ``width`` characters; an ellipsis where something was cut."""
    wide = sum(char.isupper() or ord(char) > 0x2E80 for char in text) / max(1, len(text))
    width = int(width / (1 + 0.5 * wide))
    if lines == 1:
        text = " ".join(w if len(w) <= width else w[: width - 1] + "…" for w in text.split())
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…"))


def series(rows: list[dict], key: str) -> np.ndarray:
    """[_, 2] float64, step and value in the order of steps; of one step's values, the last."""
    found = {row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float)}
    points = np.array(sorted(found.items()), np.float64).reshape(-1, 2)
    return points[np.isfinite(points[:, 1])]


def smooth(values: np.ndarray) -> np.ndarray:
    """[_] float64, mean over a twentieth of the values around each; fewer than 40 stay as they are.

    Half a window from either end a fitted line stands in: the last value of a noisy curve is then
    not its noise, and a steep start is not flattened.
    """
    window = 2 * (len(values) // 40) + 1
    if window == 1:
        return values
    middle, x = np.convolve(values, np.ones(window) / window, "valid"), np.arange(window)
    first = np.polyval(np.polyfit(x, values[:window], 1), x[: window // 2])
    last = np.polyval(np.polyfit(x, values[-window:], 1), x[window // 2 + 1 :])
    return np.concatenate([first, middle, last])


def pixels(index: Array, grid: int, image: Array) -> np.ndarray:
    """[H, W] bool, the pixels of the patches in ``index``; entries outside the grid are padding."""
    index = np.asarray(index)
    on = np.zeros(grid * grid, bool)
    on[index[(index >= 0) & (index < grid * grid)]] = True
    height, width = image.shape[:2]
    rows, columns = np.arange(height) * grid // height, np.arange(width) * grid // width
    return on.reshape(grid, grid)[rows[:, None], columns]
