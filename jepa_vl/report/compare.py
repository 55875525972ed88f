"""Several runs on one page: what they came to, in what they differ, their curves in one panel."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.report import collect, curves
from jepa_vl.report.page import Section, render_page
from jepa_vl.training import metrics, run_files

FACTS = {
    "objective": "objective",
    "data": "data",
    "seed": "seed",
    "status": "status",
    "step": "step",
    "steps": "steps asked for",
    "alarm": "newest alarm",
    "began": "began",
    "written": "last written",
}
NUMBERS = {
    "knn": "kNN accuracy, target encoder",
    "untrained": "kNN accuracy, the same network before its first step",
    "pixels": "kNN accuracy, raw pixels",
    "best_knn": "kNN accuracy, best checkpoint",
    "best_step": "step of the best checkpoint",
    "text_gain": "text gain",
    "held_out_loss": "held-out prediction loss",
    "unexplained": "unexplained share of the targets",
    "loss": "loss of the last step",
    "rankme_start": "RankMe at the start",
    "rankme": "RankMe at the end",
    "dead_share": "dead share",
    "bad_steps": "steps skipped",
    "rewinds": "rewinds",
    "alarms": "alarms",
    "images_per_second": "images a second",
    "seconds": "seconds",
    "goodput": "goodput",
}
READ = """\
Runs may differ in more than one key, and in their seed: what is a cause takes runs that differ in \
one. Losses of different objectives or weights are different numbers; kNN is of the same images \
where the data is."""


def build(folders: list[Path], say: Callable[[str], None]) -> str:
    """The page of several runs, as HTML.

    Args:
      folders: their workdirs.
      say: receives a line where nothing differs.

    Raises:
      ConfigError: one of them holds no run.
    """
    facts = [run_files.summary("RUN", folder) for folder in folders]
    shown = [fact | {key: _minute(fact[key]) for key in ("began", "written")} for fact in facts]
    names = run_files.names(folders)
    written = [_read(folder) for folder in folders]
    rows = {
        name: metrics.read_rows(folder / "metrics.jsonl") if one is None else one.rows
        for name, folder, one in zip(names, folders, written, strict=True)
    }
    differing = run_files.differences([run_files.settings(folder) for folder in folders])
    if not differing:
        say("the runs have one configuration")
    sections = [
        Section("Runs", table=_table("fact", names, _known(FACTS, shown))),
        Section("Numbers", READ, table=_table("number", names, _known(NUMBERS, facts))),
        *_proofs(names, folders, written),
        _differences(names, differing),
        curves.section(rows),
    ]
    if apart := run_files.provenance(facts):
        text = "Commit, hash of the configuration and libraries, where they are not the same."
        sections.append(Section("Provenance", text, table=_table("fact", names, apart)))
    title = f"{len(names)} runs: {', '.join(names)}"
    data = {"runs": facts, "configuration": differing}
    cards = [("runs", str(len(names))), ("keys that differ", str(len(differing)))]
    cards.append(("drawn at", time.strftime("%Y-%m-%d %H:%M")))
    return render_page(title, cards, sections, data)


def _known(labels: dict[str, str], facts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Facts by what they are called here, without those that no run has."""
    rows = {label: [fact[key] for fact in facts] for key, label in labels.items()}
    return {label: row for label, row in rows.items() if any(value is not None for value in row)}


def _read(folder: Path) -> collect.Written | None:
    """None: the run's configuration has no meaning now."""
    try:
        return collect.read(folder)
    except ConfigError:
        return None


def _proofs(
    names: list[str], folders: list[Path], written: list[collect.Written | None]
) -> list[Section]:
    """The verdicts on each claim; a run that was not read has none."""
    verdicts: dict[str, list[str]] = {}
    for column, (folder, one) in enumerate(zip(folders, written, strict=True)):
        if one is None:
            continue
        with contextlib.suppress(ConfigError):
            for check in collect.proved(one, folder):
                verdicts.setdefault(check.claim, [""] * len(folders))[column] = check.verdict
    table = ("claim", *names), [[claim, *row] for claim, row in verdicts.items()]
    text = "What each run shows of itself; its own page has the numbers and the rules."
    return [Section("Proof", text, table=table)] if verdicts else []


def _differences(names: list[str], differing: dict[str, list[Any]]) -> Section:
    if not differing:
        return Section("Configuration", "The runs have one configuration, seed included.")
    text = "The keys that are not the same. A key that has come since a run began is its default."
    return Section("Configuration", text, table=_table("key", names, differing))


def _table(
    first: str, names: list[str], rows: dict[str, list[Any]]
) -> tuple[tuple[str, ...], list[list[Any]]]:
    return (first, *names), [[key, *map(_cell, row)] for key, row in rows.items()]


def _minute(moment: str | None) -> str | None:
    """An ISO time without its seconds and zone."""
    return moment and moment[:16].replace("T", " ")


def _cell(value: Any) -> Any:
    """A value as a table shows it: nothing where there is none, lists with commas."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
