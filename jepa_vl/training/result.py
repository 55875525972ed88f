"""What result.json holds of the measured, and how a run is summed up on the screen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from jepa_vl.training import goodput
from jepa_vl.training.checkpoint import SCORE
from jepa_vl.training.console import Reporter
from jepa_vl.training.metrics import MetricsWriter


def measured(writer: MetricsWriter, k: int, classes: int) -> dict[str, Any]:
    """The part of result.json that is read from the metrics of the whole run.

    Args:
      writer: of the run.
      k: neighbours of the online kNN.
      classes: of the training data; 0: no labels.
    """
    return {
        "knn": {
            "target": writer.last("knn/target"),
            "untrained": writer.first("knn/target"),
            "pixels": writer.first("knn/pixels"),
            "k": k,
            "classes": classes,
        },
        "text_gain": writer.last("text_gain"),
        "dead_share": writer.last("dead_share"),
        "rankme": {
            "start": writer.first("rankme/target"),
            "end": writer.last("rankme/target"),
            "images": writer.last("rankme_images"),
        },
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share of ``count`` (Wilson 1927)."""
    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def best(kept: tuple[int, float] | None, writer: MetricsWriter, images: int) -> dict[str, Any]:
    """The best checkpoint that is kept, beside the final one, with what can be said of them.

    Args:
      kept: its step and score; None: none was scored.
      writer: of the run.
      images: that the online kNN classifies.

    Returns:
      {} where there is none, else ``step``, ``score``, ``interval`` (95 %), ``images``, the same of
      the last evaluation under ``final``, and ``beyond_chance``: the intervals do not overlap.
    """
    if kept is None or not images:
        return {}
    scored = [row for row in writer.rows if row.get(SCORE) is not None]
    final = scored[-1] if scored else {"step": kept[0], SCORE: kept[1]}
    low, high = interval(kept[1], images)
    last = interval(final[SCORE], images)
    return {
        "step": kept[0],
        "score": kept[1],
        "interval": [low, high],
        "images": images,
        "final": {"step": final["step"], "score": final[SCORE], "interval": list(last)},
        "beyond_chance": last[1] < low,
    }


def _tell_best(say: Callable[[str], None], found: dict[str, Any]) -> None:
    """Says that the final checkpoint is not the best one, where that is so."""
    final = found.get("final")
    if final is None or final["score"] >= found["score"]:
        return

    def told(of: dict[str, Any]) -> str:
        low, high = of["interval"]
        return f"step {of['step']}, kNN {of['score']:.3f} ({low:.3f} to {high:.3f})"

    surely = "" if found["beyond_chance"] else "; by this many images that may be chance"
    say(f"final != best: the best checkpoint is that of {told(found)}, the final one that of "
        f"{told(final)}, 95 % of {found['images']} images{surely}")  # fmt: skip


def summarise(
    reporter: Reporter, result: dict[str, Any], workdir: Path, init_from: str = ""
) -> None:
    """Says how a run ended; ``result`` is the content of result.json, ``init_from`` the run's."""
    say, knn = reporter.say, result["knn"]
    reporter.end(
        f"{result['status']}: {result['steps']} steps in {result['seconds']:.0f} s, {workdir}"
    )
    say(goodput.in_words(result["goodput"]))
    if knn["target"] is not None:
        say(f"kNN (k = {knn['k']}, {knn['classes']} classes, seed {result['seed']})")
        for name in ("target", "untrained", "pixels"):
            say(f"  {name:<10} {knn[name]:.3f}")
        if init_from:
            say(f"  (untrained: by this run; at step 0 it had the weights of {init_from})")
    _tell_best(say, result["best"])
    if result["text_gain"] is not None:
        say(f"text gain {result['text_gain']:+.4f} (0: captions are not read)")
    if result["dead_share"] is not None:
        say(f"dead share {result['dead_share']:.3f} (1: no patch finds a word)")
    ranks = result["rankme"]
    if ranks["end"] is not None:
        change = f"{ranks['start']:.1f} -> {ranks['end']:.1f}"
        say(f"RankMe {change} ({ranks['images']} images; a fall towards 1 is collapse)")
