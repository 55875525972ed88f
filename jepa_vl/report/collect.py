"""From a workdir to its page: what the run wrote down, and what its newest checkpoint shows."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError, flat, resolve, to_dict
from jepa_vl.report import card, checks, curves, health
from jepa_vl.report.page import Section, render_page
from jepa_vl.training import goodput, metrics, proof
from jepa_vl.training.whole import Model

WITHOUT_RUN = (
    "Result, Curves and Time, which are of the metrics.jsonl and result.json of a run; a model by "
    "itself has none. `jepa-vl eval --model` measures it."
)


@dataclass(frozen=True)
class Written:
    """What a run left in its workdir, whatever state it is in.

    Attributes:
      config: resolved.
      meta: of config.json: config_hash, git, versions.
      rows: lines of metrics.jsonl.
      result: of result.json; empty while the run goes on, or after a kill.
    """

    config: Config
    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any]

    def first(self, name: str) -> Any:
        """The earliest logged value; None if there is none."""
        return metrics.first(self.rows, name)

    def last(self, name: str) -> Any:
        """The latest logged value; None if there is none."""
        return metrics.last(self.rows, name)


def read(workdir: Path) -> Written:
    """Reads the text files of a workdir.

    Raises:
      ConfigError: it holds no run.
    """
    meta = _json(workdir / "config.json")
    if not meta:
        raise ConfigError("--workdir", str(workdir), "holds no run (no config.json); train first")
    rows, result = metrics.read_rows(workdir / "metrics.jsonl"), _json(workdir / "result.json")
    steps = max((row["step"] for row in rows), default=0)
    # A resumed run goes beyond what an earlier process wrote when it ended.
    current = result.get("steps") == steps
    return Written(resolve(meta["config"]), meta, rows, result if current else {})


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError("--workdir", str(path), f"cannot be read: {error}") from error


def proved(written: Written, workdir: Path) -> list[checks.Check]:
    """The claims that a run can make, judged."""
    return checks.of(written.config, written.rows, written.result, proof.read(workdir))


def build(workdir: Path, say: Callable[[str], None]) -> str:
    """The page of a run, as HTML.

    Args:
      workdir: of the run.
      say: receives one line for each part that had to be left out.

    Raises:
      ConfigError: the workdir holds no run.
    """
    written = read(workdir)
    claims = proved(written, workdir)
    sections = [
        _results(written), checks.section(claims), *_evaluated(workdir),
        curves.section({"": written.rows}), *health.sections(workdir, written.rows, written.result),
        *_time(written),
    ]  # fmt: skip
    data: dict[str, Any] = {"result": written.result, "config": to_dict(written.config)}
    data["proof"] = [check._asdict() for check in claims]
    cards = []
    try:
        from jepa_vl.report import pictures

        shown, step = pictures.sections(workdir, data)
        sections += shown
        cards = [("checkpoint drawn", f"step {step}")]
    except ConfigError as error:  # no checkpoint yet, or the data has gone
        note = f"Pictures of what was learnt are left out: {error}"
        say(note)
        sections.append(Section("Left out", note))
    sections.append(_configuration(written.config, written.meta.get("versions", {})))
    title = f"{written.config.objective} on {_data_name(written)}: {workdir.name}"
    return render_page(title, [*_summary(written), *cards], sections, data)


def build_model(path: str, model: Model, facts: dict[str, str], say: Callable[[str], None]) -> str:
    """The page of a model without its run, as HTML.

    Args:
      path: that names it.
      model: drawn on the images that its configuration names.
      facts: more cards.
      say: receives one line on what a page of its run would have too.

    Raises:
      ConfigError: its images, or frozen towers, cannot be read.
    """
    from jepa_vl.report import pictures

    config = model.config
    data: dict[str, Any] = {"model": path, "config": to_dict(config)}
    shown = pictures.draw(config, model.params, model.target, data)
    say(f"left out: {WITHOUT_RUN}")
    cards = {
        "model": path, **facts, "objective": config.objective,
        "parameters": f"{tree.count(model.params):,}", "images drawn from": config.data.kind,
        "drawn at": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip
    sections = [*shown, Section("Left out", WITHOUT_RUN), _configuration(config, {})]
    return render_page(f"{config.objective}: {path}", list(cards.items()), sections, data)


def _evaluated(workdir: Path) -> list[Section]:
    """The card of the newest checkpoint that has one, without its protocols."""
    sections, names = card.newest(workdir)
    if not sections:
        return []
    told = f"From {names[0]}, whose page beside it has the protocols."
    if names[1:]:
        told += f" Other cards: {', '.join(names[1:])}."
    first = sections[0]
    return [dataclasses.replace(first, text=f"{told}\n\n{first.text}"), *sections[1:]]


def _data_name(written: Written) -> str:
    data = written.config.data
    return written.result.get("data") or (
        data.kind if not data.path else f"{data.kind} {Path(data.path).name}"
    )


def _summary(written: Written) -> list[tuple[str, str]]:
    config, last = written.config, written.last
    steps = last("step") or 0
    status = written.result.get("status") or "running, or killed"
    seconds = written.result.get("seconds") or last("seconds")
    cards = [
        ("status", status),
        ("steps", f"{steps} of {config.train.steps}"),
        ("time", _clock(seconds)),
        ("images a second", _number(metrics.speed(written.rows), ".0f")),
        ("goodput", _number(last("goodput"), ".0%")),
        ("objective", config.objective),
        ("data", _data_name(written)),
        ("seed", str(config.seed)),
        ("text gain", _number(last("text_gain"), "+.4f")),
        ("dead share", _number(last("dead_share"), ".3f")),
        ("RankMe, start to end", _span(written, "rankme/target")),
        ("steps skipped", _number(last("bad_steps"), ".0f")),
        ("compilations of the step", str(written.result.get("compiles", ""))),
        ("configuration", written.meta.get("config_hash", "")),
        ("commit", written.meta.get("git", "")),
        ("drawn at", time.strftime("%Y-%m-%d %H:%M")),
    ]
    return [(name, value) for name, value in cards if value]


def _span(written: Written, name: str) -> str:
    first, last = written.first(name), written.last(name)
    images = written.last("rankme_images")
    return "" if last is None else f"{first:.1f} to {last:.1f} ({images} images)"


def _number(value: Any, style: str) -> str:
    return "" if value is None else format(value, style)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _results(written: Written) -> Section:
    floor = written.first("knn/pixels")
    if written.last("knn/target") is None:
        return Section("Result", "The run has no kNN accuracy: no labels, or not measured yet.")
    e = written.config.eval
    measured = [row["step"] for row in written.rows if row.get("knn/target") is not None]
    rows: list[list[Any]] = [
        [f"target encoder, step {measured[-1]}", written.last("knn/target")],
        ["the same network before its first step", written.first("knn/target")],
        ["raw pixels, 16 x 16, centred", floor],
    ]
    classes = written.result.get("knn", {}).get("classes")
    if classes:
        rows.append([f"chance, if the {classes} classes are equally frequent", 1 / classes])
    text = (
        f"Accuracy of a vote of the {e.k} nearest of up to {e.train_images} training images "
        f"(temperature {e.temperature:g}) on up to {e.val_images} held-out images, from "
        "average-pooled patches of the final layer, without augmentation."
    )
    rows = [[name, f"{value:.3f}"] for name, value in rows if value is not None]
    return Section("Result", text, table=(("features", "kNN accuracy"), rows))


def _time(written: Written) -> list[Section]:
    found = written.result.get("goodput")
    if not found:  # the run goes on, or is older than the clock
        return []
    whole = sum(found["seconds"].values())
    rows = [
        [part.replace("_", " "), text, f"{found['seconds'][part]:.1f}",
         f"{found['seconds'][part] / whole:.1%}"]
        for part, text in goodput.PARTS.items()
    ]  # fmt: skip
    text = (
        "Each moment from the first process of the run to its last is charged to one part. Goodput "
        f"is the share of training steps whose result was kept: {found['share']:.1%}."
    )
    return [Section("Time", text, table=(("part", "what it holds", "seconds", "share"), rows))]


def _configuration(config: Config, versions: dict[str, str]) -> Section:
    rows = [[key, json.dumps(value)] for key, value in flat(to_dict(config)).items()]
    rows += [[f"version of {name}", version] for name, version in versions.items()]
    text = "Every key after overrides and derivation, and the libraries of the run."
    return Section("Configuration", text, table=(("key", "value"), rows))
