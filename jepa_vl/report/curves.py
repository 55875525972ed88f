"""Curves over the steps of one run or several: data of curves.js, and a picture in its place."""

import itertools
from typing import Any

import numpy as np

from jepa_vl.report import figures, series
from jepa_vl.report import smooth as smoothed
from jepa_vl.report.page import Section, Widget

CURVES = {
    "loss and its parts": [
        "loss", "loss/predict", "loss/sparse", "loss/consistency", "loss/contrast",
        "loss/text_to_image", "loss/image_to_text",
    ],
    "kNN accuracy, held out": ["knn/target", "knn/untrained", "knn/pixels"],
    "text gain": ["text_gain"],
    "held-out prediction loss": ["held_out_loss"],
    "share of patches with O = 0": [
        "dead_share", "dead_share/context", "dead_share/target",
    ],
    "attention entropy (1: all words alike)": ["attention_entropy"],
    "spread of the targets (0: collapse)": [
        "target_std", "target_std/image", "target_std/text",
    ],
    "terms against collapse": [
        "anticollapse/variance", "anticollapse/covariance", "anticollapse/rank",
        "anticollapse/sigreg",
    ],
    "RankMe of pooled features": ["rankme/target", "rankme/context", "rankme/predictor"],
    "effective rank of centred features": [
        "effective_rank/target", "effective_rank/context", "effective_rank/predictor",
    ],
    "spread of features over images (0: collapse)": ["std/target", "std/context", "std/predictor"],
    "mean cosine of two images (1: collapse)": [
        "cosine/target", "cosine/context", "cosine/predictor",
    ],
    "unexplained of the targets (1: as good as their mean)": ["unexplained", "unexplained/text"],
    "distance of encoder and target": ["ema_drift"],
    "gradient norm": ["grad_norm"],
    "gradient, regularisers / prediction": ["regulariser_gradient_ratio"],
    "images a second": ["images_per_second"],
    "shares: of time well spent, waiting for data, of the peak": ["goodput", "data_wait", "mfu"],
    "learning rate": ["lr"],
}  # fmt: skip
READING = """\
Each curve is one number over the steps of the run. A run that learns shows kNN of the target \
encoder above the untrained network and above raw pixels, a text gain above 0 that rises, and a \
RankMe that does not fall.

Text gain is measured on fixed held-out images, masks and captions: prediction loss with the \
captions of another image, minus that with the image's own."""
POINTS = 1500  # of a line, at most: more than a screen has pixels
LEAST_POINTS = 300  # of a line, where many runs share the page
LEVELS = {"knn/untrained": "knn/target", "knn/pixels": "knn/pixels"}  # lines across: first value of


def section(runs: dict[str, list[dict[str, Any]]]) -> Section:
    """The section of the curves.

    Args:
      runs: name of each run -> its lines of metrics.jsonl; the name of a single one is not shown.
    """
    levelled = {name: with_levels(rows) for name, rows in runs.items()}
    found = panels(levelled)
    if len(runs) == 1:
        merged, groups = next(iter(levelled.values())), CURVES
    else:
        merged, groups = _side_by_side(levelled, [p["title"] for p in found if not p["more"]])
    png = figures.to_png(figures.curves(merged, groups), colours=64)
    widget = Widget("curves", {"panels": found}) if found else None
    return Section("Curves", READING, [(png, "The logged numbers over the steps.")], widget=widget)


def with_levels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which what is measured once, to compare with, stands at the first and last step."""
    if not rows:
        return []
    plain = [{k: v for k, v in row.items() if k not in LEVELS} for row in rows]
    firsts = {level: series(rows, name)[:1, 1].tolist() for level, name in LEVELS.items()}
    levels = {level: first[0] for level, first in firsts.items() if first}
    steps = [row["step"] for row in rows]
    return [*plain, *({"step": step, **levels} for step in (min(steps), max(steps)))]


def panels(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What curves.js draws: of one run a panel for each group of metrics that has data.

    Of several runs a panel for each metric, a line in it for each run; ``more`` are those that a
    reader unfolds: all of a group but the first one that there is.
    """
    out: list[dict[str, Any]] = []
    for title, keys in CURVES.items():
        found = {
            key: {name: points for name, rows in runs.items() if len(points := series(rows, key))}
            for key in keys
        }
        found = {key: lines for key, lines in found.items() if lines}
        if len(runs) > 1:
            numbers = {name: number for number, name in enumerate(runs)}
            limit = max(LEAST_POINTS, POINTS // len(runs))
            out += [
                {"title": key, "note": title, "more": i > 0, "lines": [
                    {"name": name, "colour": numbers[name], "dash": numbers[name],
                     **_line(points, limit)} for name, points in lines.items()
                ]}
                for i, (key, lines) in enumerate(found.items())
            ]  # fmt: skip
        elif found:
            lines = [
                {"name": key, "colour": i, "dash": i, **_line(points)}
                for i, (key, one) in enumerate(found.items())
                for points in one.values()
            ]
            out.append({"title": title, "lines": lines})
    return out


def _line(points: np.ndarray, limit: int = POINTS) -> dict[str, Any]:
    """x, y and, where smoothing changes anything, the smooth values; [_, 2] in."""
    smooth, kept = smoothed(points[:, 1]), thin(points[:, 1], limit)
    out: dict[str, Any] = {"x": [int(step) for step in points[kept, 0]]}
    out["y"] = _short(points[kept, 1])
    if not np.array_equal(smooth, points[:, 1]):
        out["smooth"] = _short(smooth[kept])
    return out


def thin(values: np.ndarray, limit: int = POINTS) -> np.ndarray:
    """Indices of at most ``limit`` values, ascending: ends, and of each stretch both extremes.

    A spike of a single step is therefore still seen.
    """
    count = len(values)
    if count <= limit:
        return np.arange(count)
    edges = np.linspace(0, count, limit // 2).astype(int)  # limit // 2 - 1 stretches
    kept = {0, count - 1}
    for start, end in itertools.pairwise(edges):
        kept |= {start + int(values[start:end].argmin()), start + int(values[start:end].argmax())}
    return np.array(sorted(kept))


def _short(values: np.ndarray) -> list[float]:
    """Six digits: half the page that sixteen would be."""
    return [float(f"{value:.6g}") for value in values]


def _side_by_side(
    runs: dict[str, list[dict[str, Any]]], metrics: list[str]
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Rows of all runs, whose metrics bear the name of their run, and a group for each metric."""
    rows = [
        {"step": row["step"], **{f"{name}: {key}": row[key] for key in metrics if key in row}}
        for name, own in runs.items()
        for row in own
    ]
    return rows, {key: [f"{name}: {key}" for name in runs] for key in metrics}
