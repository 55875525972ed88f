"""What the text files of a run tell of it, whatever state it is in; jax is not imported.

Of metrics.jsonl, which may be long, the lines that are asked for are read alone.
"""

import contextlib
import datetime
import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_vl.config import Config, ConfigError, flat, to_dict

UNFINISHED = "unfinished"  # going on, or killed
ABSENT = "(none)"  # a key that a run's configuration lacks
APART = ("run", "config_hash", "versions", "git")  # of a summary: no numbers
RESTARTS = "restarts.jsonl"  # of a supervised run: who died, of what, when, at which step
OLDEST = ("untrained", "rankme_start")
NUMBERS = {  # name here -> name of a metric, whose newest value counts, or its oldest
    "knn": "knn/target",
    "untrained": "knn/target",
    "pixels": "knn/pixels",
    "rankme_start": "rankme/target",
    "rankme": "rankme/target",
    "text_gain": "text_gain",
    "dead_share": "dead_share",
    "unexplained": "unexplained",
    "held_out_loss": "held_out_loss",
    "loss": "loss",
    "images_per_second": "images_per_second",
    "goodput": "goodput",
    "seconds": "seconds",
    "bad_steps": "bad_steps",
}


def find(root: Path) -> list[Path]:
    """Workdirs at or below a folder, by name; a run's own folders are not looked into."""
    found = []
    for folder, below, files in os.walk(root):
        if "config.json" in files and _meta(Path(folder)) is not None:
            found.append(Path(folder))
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found)


def _meta(workdir: Path) -> dict[str, Any] | None:
    """config.json of a run; None where it is something else, as models have it."""
    meta = _read(workdir / "config.json")
    whole = {"config", "config_hash", "git"} <= meta.keys() and isinstance(meta["config"], dict)
    return meta if whole else None


def _read(path: Path) -> dict[str, Any]:
    """An object of JSON; {} where there is none, or nothing that can be read."""
    try:
        page = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return page if isinstance(page, dict) else {}


def settings(workdir: Path) -> dict[str, Any]:
    """The configuration of a run, flat; keys that have come since are their defaults."""
    meta = _meta(workdir) or {"config": {}}
    return flat(to_dict(Config())) | flat(meta["config"])


def differences(settings: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Keys that are not the same in all flat configurations, with a value of each."""
    keys = sorted(set().union(*settings))
    values = {key: [one.get(key, ABSENT) for one in settings] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def provenance(facts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Hash, versions and commit of runs' summaries, where they are not all the same."""
    return {
        key: [fact[key] for fact in facts]
        for key in APART[1:]
        if any(fact[key] != facts[0][key] for fact in facts)
    }


def several(option: str, words: list[str]) -> list[Path]:
    """The workdirs to set side by side.

    Raises:
      ConfigError: fewer than two, or one twice.
    """
    folders = [Path(word).expanduser() for word in words]
    if len(folders) < 2:
        raise ConfigError(option, " ".join(words), "give two workdirs, or more")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(option, " ".join(words), "one workdir stands there twice")
    return folders


def names(folders: list[Path]) -> list[str]:
    """Folders without what all of them begin with."""
    parts = [folder.absolute().parts for folder in folders]
    shared = 0
    while len({one[: shared + 1] for one in parts}) == 1:
        shared += 1
    return [str(Path(*one[shared:])) or "." for one in parts]


def summary(option: str, workdir: Path) -> dict[str, Any]:
    """What one run came to; what is not known of it is None.

    Args:
      option: that named the folder, for errors.
      workdir: of the run.

    Raises:
      ConfigError: it holds no run.
    """
    if not workdir.is_dir():
        raise ConfigError(option, str(workdir), "no such folder")
    meta = _meta(workdir)
    if meta is None:
        rule = "holds no run (no config.json that training wrote)"
        raise ConfigError(option, str(workdir), rule)
    config, result = flat(meta["config"]), _read(workdir / "result.json")
    with _lines(workdir / "metrics.jsonl") as lines:
        logged = _newest(lines, "step") or 0
        out = {
            name: (_oldest if name in OLDEST else _newest)(lines, metric)
            for name, metric in NUMBERS.items()
        }
    # A resumed run goes beyond what an earlier process wrote when it ended.
    over = result.get("steps", -1) >= logged
    if over:
        out |= {key: result.get(key) for key in ("images_per_second", "seconds")}
        out["goodput"] = (result.get("goodput") or {}).get("share", out["goodput"])
    alarms = [row for row in events(workdir) if row.get("event") == "alarm"]
    best = (result.get("best") or {}) if over else {}
    data = config.get("data.kind"), config.get("data.path") or ""
    return {
        "run": str(workdir),
        "objective": config.get("objective"),
        "data": " ".join(filter(None, (data[0], Path(data[1]).name))),
        "seed": config.get("seed"),
        "step": result["steps"] if over else logged,
        "steps": config.get("train.steps"),
        "status": result.get("status", UNFINISHED) if over else UNFINISHED,
        **out,
        "best_step": best.get("step"),
        "best_knn": best.get("score"),
        "rewinds": result.get("rewinds") if over else None,
        "alarm": alarms[-1].get("rule") if alarms else None,
        "alarm_step": alarms[-1].get("step") if alarms else None,
        "alarms": len(alarms),
        "began": _when(meta.get("began")),
        "written": _when(_changed(workdir)),
        "config_hash": meta["config_hash"],
        "git": meta["git"],
        "versions": meta.get("versions", {}),
    }


def events(workdir: Path) -> list[dict[str, Any]]:
    """Rows of events.jsonl; a torn last line is left out."""
    return _rows(workdir / "events.jsonl")


def restarts(workdir: Path) -> list[dict[str, Any]]:
    """Rows of what supervisors wrote down; a torn last line is left out."""
    return _rows(workdir / RESTARTS)


def _rows(path: Path) -> list[dict[str, Any]]:
    out = []
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            out.append(json.loads(line))
    return out


def age(written: str | None) -> str:
    """How long ago a time was, briefly."""
    if written is None:
        return "?"
    seconds = max(0.0, time.time() - datetime.datetime.fromisoformat(written).timestamp())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _changed(workdir: Path) -> float | None:
    """Unix time at which a run last wrote."""
    times = []
    for name in ("metrics.jsonl", "result.json", "config.json", "events.jsonl"):
        with contextlib.suppress(OSError):
            times.append((workdir / name).stat().st_mtime)
    return max(times, default=None)


def _when(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    at = datetime.datetime.fromtimestamp(seconds).astimezone()
    return at.isoformat(timespec="seconds")


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, of which the pages that are looked at are read alone."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
            yield lines
    except (FileNotFoundError, PermissionError, ValueError):  # mmap knows no empty file
        yield b""


def _newest(lines: mmap.mmap | bytes, metric: str) -> Any:
    """The latest value of a metric that is no null."""
    word, before = json.dumps(metric).encode() + b": ", len(lines)
    while (place := lines.rfind(word, 0, before)) >= 0:
        value, before = _value(lines, place, metric)
        if value is not None:
            return value
    return None


def _oldest(lines: mmap.mmap | bytes, metric: str) -> Any:
    """The earliest value of a metric that is no null."""
    word, after = json.dumps(metric).encode() + b": ", 0
    while (place := lines.find(word, after)) >= 0:
        value, _ = _value(lines, place, metric)
        if value is not None:
            return value
        after = place + 1
    return None


def _value(lines: mmap.mmap | bytes, place: int, metric: str) -> tuple[Any, int]:
    """A metric in the line around a place, None in a torn one; and where that line begins."""
    start, end = lines.rfind(b"\n", 0, place) + 1, lines.find(b"\n", place)
    try:
        row = json.loads(lines[start : end if end >= 0 else len(lines)])
    except ValueError:
        return None, start
    return row.get(metric), start
