"""The row of the ledger that a point leaves: what was planned, and what its workdir says of it."""

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError, reads_text, resolve

EVAL = "eval_scaling.json"  # the card of the final checkpoint
STOPPED = 4  # exit code of a training whose loss or features ended it
COUNTED = 256  # images whose caption tokens are counted
PLANNED = (
    "study", "arm", "size", "budget", "seed", "config_hash", "id", "objective", "width", "depth",
    "lr", "ema", "steps", "batch_size", "epochs", "parameters", "flops",
)  # fmt: skip
KEPT = ("task", "features", "metrics", "ci", "protocol", "data_hash", "seed")  # of an evaluation


def make(point: Mapping[str, Any], workdir: Path, code: int, reason: str) -> dict[str, Any]:
    """The row of a point that has ended.

    Args:
      point: of the plan.
      workdir: of its run; what is not there is null.
      code: exit code of the command that ended it.
      reason: empty where all was done.
    """
    meta, result = _json(workdir / "config.json"), _json(workdir / "result.json")
    rows = _metrics(workdir)
    # A loss that is not finite, or features that collapsed, are results; other codes are failures.
    status = {0: "done", STOPPED: result.get("status", "failed")}.get(code, "failed")
    trained = meta.get("config_hash", point["config_hash"])
    if trained != point["config_hash"]:
        status, reason = "failed", f"{trained} was trained, not what was planned: plan anew"
    row = {name: point[name] for name in PLANNED} | {
        "status": status, "reason": reason, "written": _now(),
        "git": meta.get("git"), "versions": meta.get("versions"),
    }  # fmt: skip
    seen = min(result.get("steps", 0), point["steps"]) * point["batch_size"]
    row |= {"images": seen, "unique_images": min(seen, point["unique_images"])}
    row["caption_tokens"], row["caption_tokens_counted"] = _caption_tokens(meta, seen)
    row |= _clock(result, rows)
    row["train"] = {"loss": _last(rows, "loss"), "rankme": _last(rows, "rankme/target")}
    page = _json(workdir / EVAL)
    row["checkpoint_hash"] = page.get("checkpoint_hash")
    row["evals"] = [{key: one.get(key) for key in KEPT} for one in page.get("results", ())]
    return _finite(row)


def _finite(value: Any) -> Any:
    """Null in the place of NaN and infinities, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds, devices = result.get("seconds"), result.get("devices")
    mfu = _last(rows, "mfu")
    return {
        "seconds": seconds, "devices": devices, "device_kind": result.get("device_kind"),
        "chip_hours": seconds * devices / 3600 if seconds and devices else None,
        "images_per_second": result.get("images_per_second"), "mfu": mfu,
        "mfu_missing": "" if mfu is not None else "the peak of this device is not known",
    }  # fmt: skip


def _caption_tokens(meta: Mapping[str, Any], images: int) -> tuple[int | None, int]:
    """Tokens of captions in as many images as were seen, and of how many images that is known.

    Those of the first batches are counted; all of the rest have as many each. A caption that is
    drawn counts, also where text.dropout keeps the predictor from it.
    """
    if not meta:
        return None, 0
    config = resolve(meta["config"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    if not reads_text(config):
        return 0, images
    from jepa_vl.data import pipeline, sources

    tokens, counted = 0, 0
    try:
        source = sources.open_sources(config)[0]
        with pipeline.make_batches(config, source, 0) as stream:
            while counted < min(COUNTED, images):
                batch = next(stream)
                tokens += int(batch["word_mask"].sum())
                counted += len(batch["word_mask"])
    except ConfigError:  # the data lie where the run was, not here
        return None, 0
    return (round(tokens / counted * images) if counted else 0), counted


def _metrics(workdir: Path) -> list[dict[str, Any]]:
    from jepa_vl.training.metrics import read_rows

    return read_rows(workdir / "metrics.jsonl")


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    from jepa_vl.training.metrics import last

    return last(rows, name)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
