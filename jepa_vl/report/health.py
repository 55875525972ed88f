"""How a run went: what was skipped, rewound or restarted, how fast it was, and what happened."""

from pathlib import Path
from typing import Any

from jepa_vl.report.page import Section
from jepa_vl.training import metrics, run_files

SHOWN = 40  # events at most, the newest ones
COUNTS = {
    "bad_steps": "steps skipped, because a gradient was not finite",
    "spikes": "steps whose loss was a spike",
    "data/bad": "samples that could not be used",
    "data/left_out": "samples left out of evaluations",
}
RATES = {"tokens_per_second": "tokens a second", "data_wait": "share of time that waits for data",
         "mfu": "share of the devices' peak", "goodput": "goodput"}  # fmt: skip


def sections(workdir: Path, rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Section]:
    """Numbers of the run's health and, where anything happened, its events.

    Args:
      workdir: of the run; events.jsonl and restarts.jsonl are read.
      rows: of metrics.jsonl.
      result: of result.json; {}: the run has not ended.
    """
    events, restarts = run_files.events(workdir), run_files.restarts(workdir)
    kinds = [row.get("event") for row in events]
    found: dict[str, Any] = {
        text: metrics.last(rows, name) for name, text in COUNTS.items()
    }  # of a run that never logged it: none
    found |= {
        "alarms": kinds.count("alarm"),
        "rewinds": kinds.count("rewind"),
        "restarts by a supervisor": sum(row.get("restart") is not None for row in restarts),
        "images a second, median": result.get("images_per_second") or metrics.speed(rows),
    }
    found |= {text: metrics.last(rows, name) for name, text in RATES.items()}
    table = [[name, value] for name, value in found.items() if value is not None]
    text = "Counts are of the whole run; what is a share or a speed is as logged last."
    out = [Section("Health", text, table=(("number", "value"), table))]
    told = [(row.get("time", ""), row.get("step", ""), row.get("event", ""), row.get("message", ""))
            for row in events]  # fmt: skip
    told += [(row.get("time", ""), row.get("step", ""), "death", _death(row)) for row in restarts]
    if told:
        told.sort(key=lambda row: row[0])
        rest = f" The newest {SHOWN} of {len(told)}." if len(told) > SHOWN else ""
        text = f"What happened beside the steps.{rest} The alarm's messages say what usually helps."
        lines = [(time[:19].replace("T", " "), *other) for time, *other in told[-SHOWN:]]
        out.append(Section("Events", text, table=(("time", "step", "event", "message"), lines)))
    return out


def _death(row: dict[str, Any]) -> str:
    who = "the training" if row.get("process") is None else f"process {row['process']}"
    after = "the end" if row.get("restart") is None else f"restart {row['restart']}"
    return f"{who} on {row.get('host', '?')}: {row.get('cause', '?')}; {after}"
