"""What a ledger says to a fitter: sizes, data, compute and a quality that may be compared."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jepa_vl.config import ConfigError, flat, one_of
from jepa_vl.scaling import law
from jepa_vl.scaling.ledger import DONE, NAME, Row, latest
from jepa_vl.shapes import Array

TRAIN_LOSS = "train_loss"
RAW = (
    "the training loss of a JEPA is against its own target: it differs in scale between sizes, EMA "
    "and masks, and is least where features collapse; --force fits it all the same"
)
RAW_NAMES = (TRAIN_LOSS, "loss_train", "training_loss")  # of columns
PRIOR = 4  # degrees of freedom of the common noise, against those of a budget


def _measured(task: str, metric: str) -> Callable[[Row], float | None]:
    def find(row: Row) -> float | None:
        for result in row.get("evals", ()):
            if (result["task"], result["features"]) == (task, "encoder"):
                return result["metrics"].get(metric)
        return None

    return find


def _error(task: str, metric: str) -> Callable[[Row], float | None]:
    accuracy = _measured(task, metric)

    def error(row: Row) -> float | None:
        share = accuracy(row)
        return None if share is None else 1.0 - share

    return error


def _loss(row: Row) -> float | None:
    return row.get("train", {}).get("loss")


# What a law may be fitted to: all of held-out images, none against a target that the run made.
QUALITIES: dict[str, Callable[[Row], float | None]] = {
    "knn_error": _error("knn", "k20"),
    "probe_error": _error("fast", "accuracy"),
    "fewshot_error": _error("fewshot", "10shot"),
    "reference_loss": _measured("reference", "loss"),
    TRAIN_LOSS: _loss,
}


def check_quality(name: str, forced: bool) -> None:
    """Refuses what no law should be fitted to.

    Raises:
      ConfigError: an unknown name, or the raw training loss, unless forced.
    """
    one_of("--y", name, QUALITIES)
    if name == TRAIN_LOSS and not forced:
        raise ConfigError("--y", name, RAW)


def check_column(name: str, forced: bool) -> None:
    """Refuses a column of another table that is a raw training loss by its name, unless forced.

    Raises:
      ConfigError: it is.
    """
    plain = name.lower().replace("/", "_").replace(".", "_").replace("-", "_").replace(" ", "_")
    if plain in RAW_NAMES and not forced:
        raise ConfigError("--loss", name, RAW)


def finished(rows: Sequence[Row], arm: str = "") -> list[Row]:
    """Rows of points that are done, one each; ``arm``: of this one alone."""
    found = [row for row in latest(list(rows)).values() if row["status"] == DONE]
    return [row for row in found if not arm or row["arm"] == arm]


def arms(rows: Sequence[Row]) -> list[str]:
    """Names of the arms that have finished points, in their order."""
    return list(dict.fromkeys(row["arm"] for row in finished(rows)))


def size_of(row: Row) -> float:
    """Parameters of the encoder: what is kept of a run, and what features come from."""
    parts = row["parameters"]
    return float(parts.get("encoder") or sum(parts.values()))


def points(rows: Sequence[Row], y: str, arm: str = "", forced: bool = False) -> law.Points:
    """Finished points as a fitter takes them: N, D in images seen, and compute in FLOPs.

    Each row is a run of its own. Weights are one over the variance between seeds, see
    :func:`seed_variance`; where no point has two seeds they are equal.

    Args:
      rows: of a ledger.
      y: one of :data:`QUALITIES`.
      arm: of this one alone; "": a ledger of one arm.
      forced: take the raw training loss.

    Raises:
      ConfigError: an unknown or refused quality, several arms, a row without that quality, or too
        few points.
    """
    check_quality(y, forced)
    names = arms(rows)
    if arm:
        one_of("--arm", arm, names)
    elif len(names) > 1:
        raise ConfigError("--arm", "", f"one of {', '.join(names)}: a law is of one of them")
    chosen = finished(rows, arm)
    loss = np.array([quality(row, y) for row in chosen])
    budget = np.array([row["budget"] for row in chosen], np.float64)
    group = [(row["size"], row["budget"]) for row in chosen]
    return law.points(
        np.array([size_of(row) for row in chosen]),
        np.array([float(row["images"]) for row in chosen]),
        loss,
        weight=1.0 / seed_variance(loss, group, budget),
        compute=np.array([float(row["flops"]["run"]) for row in chosen]),
    )


def quality(row: Row, y: str) -> float:
    """One number of a row, the lower the better.

    Raises:
      ConfigError: it was not measured.
    """
    found = QUALITIES[y](row)
    if found is None:
        had = sorted({result["task"] for result in row.get("evals", ())})
        rule = f"measured at each point; {row['arm']}, size {row['size']} has {', '.join(had)}"
        raise ConfigError("--y", y, rule)
    return float(found)


def seed_variance(loss: Array, group: Sequence[Any], budget: Array) -> Array:
    """Variance between seeds of each row, float64 [n]; ones where nothing tells it.

    Pooled over the points of a budget, and drawn to that of all budgets as if that had
    :data:`PRIOR` degrees of freedom: two or three seeds a point say little by themselves.

    Args:
      loss: float64 [n].
      group: of each row; rows of one group differ by their seed alone.
      budget: float64 [n].
    """
    groups: dict[Any, list[int]] = {}
    for i, name in enumerate(group):
        groups.setdefault(name, []).append(i)
    square, free = np.zeros(len(loss)), np.zeros(len(loss))
    for rows in groups.values():
        square[rows[0]] = np.square(loss[rows] - loss[rows].mean()).sum()
        free[rows[0]] = len(rows) - 1
    if not free.sum() or not square.sum():
        return np.ones(len(loss))
    common, out = square.sum() / free.sum(), np.empty(len(loss))
    for value in np.unique(budget):
        rows = budget == value
        out[rows] = (square[rows].sum() + PRIOR * common) / (free[rows].sum() + PRIOR)
    return out


def to_csv(rows: Sequence[Row]) -> str:
    """All points, done or not, one line each: their names, numbers and qualities.

    Nested values become columns with dots, as in ``flops.image.target_forward``; evaluations
    become ``TASK.METRIC``, with ``TASK.METRIC.FEATURES`` for what stands beside the encoder.
    """
    lines = [_line(row) for row in latest(list(rows)).values()]
    names = list(dict.fromkeys([*NAME, "status", *QUALITIES]))
    rest = sorted({key for line in lines for key in line} - set(names))
    file = io.StringIO()
    writer = csv.DictWriter(file, [*names, *rest], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _line(row: Row) -> dict[str, Any]:
    plain = {key: value for key, value in row.items() if key not in ("evals", "versions")}
    out = flat(plain) | {y: read(row) for y, read in QUALITIES.items()}
    for result in row.get("evals", ()):
        beside = "" if result["features"] == "encoder" else f".{result['features']}"
        out |= _metrics(result["task"], result["metrics"], beside)
    return out


def _metrics(task: str, metrics: Mapping[str, Any], beside: str) -> dict[str, Any]:
    return {f"{task}.{name}{beside}": value for name, value in metrics.items()}
