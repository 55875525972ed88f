"""What result.json holds of the measured, and how a run is summed up on the screen."""

from pathlib import Path
from typing import Any

from jepa_vl.training import goodput
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


def summarise(reporter: Reporter, result: dict[str, Any], workdir: Path) -> None:
    """Says how a run ended; ``result`` is the content of result.json."""
    say, knn = reporter.say, result["knn"]
    say(f"{result['status']}: {result['steps']} steps in {result['seconds']:.0f} s, {workdir}")
    say(goodput.in_words(result["goodput"]))
    if knn["target"] is not None:
        say(f"kNN (k = {knn['k']}, {knn['classes']} classes, seed {result['seed']})")
        for name in ("target", "untrained", "pixels"):
            say(f"  {name:<10} {knn[name]:.3f}")
    if result["text_gain"] is not None:
        say(f"text gain {result['text_gain']:+.4f}")
    if result["dead_share"] is not None:
        say(f"dead share {result['dead_share']:.3f}")
    ranks = result["rankme"]
    if ranks["end"] is not None:
        say(f"RankMe {ranks['start']:.1f} -> {ranks['end']:.1f} ({ranks['images']} images)")
